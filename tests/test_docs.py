"""The documents: links lead somewhere, commands parse and run, equations have their numbers.

Each command that a user finds is run here, or by the test that ``RUN_BY`` names, or its block
begins with ``# long:`` or ``# needs``. Those here run in one folder, in the order in which a
reader meets them, with a smaller network and fewer steps.
"""

import contextlib
import importlib.util
import io
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.places import ROOT
from PIL import Image

from scoremle.cli import main as cli
from scoremle.cli.commands import COMMANDS, parser_of
from scoremle.experiment.config import load_config
from scoremle.experiment.configs import NAMED_CONFIGS
from scoremle.experiment.rules import check_config

DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks/README.md"]
)
TRAIN = ROOT / "docs" / "howto" / "train.md"
VECTORS = ROOT / "docs" / "howto" / "vectors.md"
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^ *scoremle ((?:.*\\\n)*.*)$", re.MULTILINE)
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```(?:\n\n```\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+\.\d+")
TAG = re.compile(r"\\qquad \((\d+)\)\n")


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = HEADING.findall(CODE.sub("", path.read_text()))
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for link in LINK.findall(CODE.sub("", path.read_text())):
        file, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_understood(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = "\n".join(CODE.findall(path.read_text())).replace(" && ", "\n")
    for command in COMMAND.findall(text):
        name, *arguments = shlex.split(command.replace("\\\n", " "), comments=True)
        if name in ("eval", "train-deq"):
            arguments.append("--config=digits")  # where there is no working directory to know it
        if name.startswith("--config"):
            parser_of("").checked([name, *arguments])
        elif name in COMMANDS and "--help" not in arguments:
            options = parser_of(name).parse_args(arguments)
            if name == "train" and arguments[0] in NAMED_CONFIGS:
                parser_of(name).check(options)
                check_config(options.config)
        else:
            assert name in (*COMMANDS, "--help", "--version")
    # Those within other languages, such as YAML: their configs.
    for config in re.findall(r"scoremle train ([a-z]\w*[\w/-]*) [\w/]", path.read_text()):
        assert config in NAMED_CONFIGS


def test_the_two_commands_come_before_all_else_in_the_readme():
    """Each with how long it takes, and each a target of the Makefile."""
    top = (ROOT / "README.md").read_text().split("\n## ")[0]
    commands, python = SHELL.search(top), PYTHON.search(top)
    assert re.findall(r"^make (\w+) +#.*minutes", commands[1], re.M) == ["demo", "test"]
    assert commands.start() < python.start() < top.index("| you have | you write |")
    assert python[1].count("\n") <= 5 and python[2]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}: .venv/" in makefile for target in ("demo", "test"))


def test_the_config_in_a_how_to_is_one(tmp_path):
    (code,) = re.findall(r"```python\n([^`]*def get_config[^`]*)```", TRAIN.read_text())
    (tmp_path / "mine.py").write_text(code)
    config, _ = load_config(str(tmp_path / "mine.py"))
    assert (config.data.dataset, config.model.nf) == ("fashion_mnist", 32)


@pytest.mark.long
def test_the_page_on_vectors_runs_unchanged():
    blocks = re.findall(r"```python\n(.*?)```", VECTORS.read_text(), re.DOTALL)
    if not importlib.util.find_spec("diffrax"):
        blocks = [block for block in blocks if "import diffrax" not in block]
    names, seen = {}, []
    for block in blocks:
        exec(block, names)
        seen.append(names["found"])
    first, with_tolerance, double = seen[0], seen[1], seen[-1]
    np.testing.assert_allclose(first.log_prob, -1.5 * np.log(2 * np.pi), atol=1e-3)
    assert with_tolerance.trace.startswith("Hutchinson(probes=2")
    assert names["choice"].met and double.log_prob.dtype == np.float64
    assert names["by_parameters"]["scale"].shape == () and names["by_x"].shape == (5, 2)
    assert np.all(np.isfinite(names["by_x"])) and np.all(names["by_x"] < 0)


def test_equations_are_numbered_once_and_in_order():
    numbers = [int(number) for number in TAG.findall((ROOT / "docs" / "math.md").read_text())]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 40


# Commands ----------------------------------------------------------------------------------------

READ_IN_ORDER = [
    ROOT / "docs" / name
    for name in (
        "quickstart.md", "exit-codes.md", "howto/evaluation.md", "howto/own-data.md",
        "howto/steps-and-size.md", "troubleshooting.md",
    )
]  # fmt: skip
# Others, by how they begin, and the file that runs them: a test, or an example that a test runs.
RUN_BY = {
    "pip install": "tests/test_wheel.py",
    "scoremle sample digits": "tests/cli/test_sample.py",
    "scoremle score digits": "tests/cli/test_score.py",
    "scoremle score runs/digits": "tests/cli/test_score.py",
    "scoremle score ddpm-cifar10-32/": "examples/any_model.py",
    "scoremle import": "tests/cli/test_import_export.py",
    "scoremle export": "tests/cli/test_import_export.py",
    "scoremle verify": "tests/cli/test_verify.py",
    "scoremle anomaly": "tests/cli/test_anomaly.py",
}
SMALL = {
    "sample": ["-n", "3"],
    "score": ["--repeats=1"],
    "train": [
        f"--config.{field}"
        for field in (
            "model.nf=4", "model.ch_mult=(1,)", "model.attn_resolutions=(1,)", "optim.warmup=5",
            "training.n_iters=10", "training.snapshot_freq=10", "training.batch_size=16",
            "training.snapshot_sampling=False",
        )
    ],
    "eval": [
        f"--config.eval.{field}"
        for field in (
            "num_images=20", "batch_size=20", "solver=multistep", "nodes=6", "bound_draws=4",
            "bound_times=log_snr",
        )
    ],
}  # fmt: skip


def shell(path: Path) -> list[str]:
    """The commands of a document, but for those of marked blocks."""
    blocks = SHELL.findall(path.read_text())
    kept = [block for block in blocks if not block.startswith(("# long:", "# needs"))]
    lines = "".join(kept).replace("\\\n", " ").splitlines()
    plain = [re.sub(r" +", " ", re.sub(r"(^|\s)#.*", "", line)).strip() for line in lines]
    return [command for command in plain if command]


USERS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", USERS, ids=lambda path: path.stem)
def test_each_command_is_run_somewhere_or_marked(path):
    here = {command for page in READ_IN_ORDER for command in shell(page)}
    for command in shell(path):
        if command in here:
            continue
        by = next((file for start, file in RUN_BY.items() if command.startswith(start)), None)
        assert by, f"{command}: nothing runs it, and its block has no '# long:'"
        assert f'"{command.split()[1]}"' in (ROOT / by).read_text()


def prepared(folder: Path) -> None:
    """What a reader has by then: pictures."""
    for name, size, count in (("my_pictures", 12, 3), ("holiday", 40, 40)):
        (folder / name).mkdir()
        for i in range(count):
            rng = np.random.default_rng(i)
            pixels = rng.integers(0, 256, (size, size, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_commands_run_in_the_order_in_which_they_are_read(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    prepared(tmp_path)
    done = set()
    for command in (line for page in READ_IN_ORDER for line in shell(page)):
        if not command.startswith("scoremle") or command in done:
            continue
        done.add(command)
        for part in command.split(" && "):
            _, *arguments = shlex.split(part)
            for place in re.findall(r"runs/(?:vp|subvp)\b", part):  # trainings like the first
                if not Path(place).exists():
                    shutil.copytree("runs/digits", place)
            assert cli.main([*arguments, *SMALL.get(arguments[0], ())]) == 0, part
    assert len(done) > 18
    left = ("grid.png", "samples.csv", "mine.csv", "runs/digits/report/index.html", "images.png")
    for name in left:
        assert (tmp_path / name).stat().st_size > 100, name


WITH_CODE = [
    path
    for path in USERS
    if (path.parent.name == "concepts" or path.name in ("README.md", "quickstart.md"))
    and PYTHON.search(path.read_text())
]


FIRST_PAGES = (ROOT / "README.md", ROOT / "docs" / "quickstart.md")


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.long] * (path not in FIRST_PAGES), id=path.stem)
     for path in WITH_CODE],
)  # fmt: skip
def test_python_runs_and_prints_what_is_below_it(path):
    pytest.importorskip("sklearn")
    for code, told in PYTHON.findall(path.read_text()):
        if not told:  # it need only run
            code = re.sub(r"\.test\[:\d+\]", ".test[:4]", code)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, {})
        if told:
            texts = (out.getvalue(), told)
            found, stated = ([float(number) for number in NUMBER.findall(text)] for text in texts)
            np.testing.assert_allclose(found, stated, atol=0.02)
