"""The documents: links lead somewhere, commands parse, equations have numbers of their own."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers.places import ROOT

from scoremle.cli import flags
from scoremle.cli.commands import COMMANDS
from scoremle.cli.parsers import PARSERS
from scoremle.experiment.config import load_config

DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks/README.md"]
)
QUICKSTART = ROOT / "docs" / "quickstart.md"
VECTORS = ROOT / "docs" / "howto" / "vectors.md"
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^ *scoremle ((?:.*\\\n)*.*)$", re.MULTILINE)
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
    for command in COMMAND.findall("\n".join(CODE.findall(path.read_text()))):
        name, *arguments = shlex.split(command.replace("\\\n", " "), comments=True)
        if name in ("eval", "train-deq"):
            arguments.append("--config=digits")  # where there is no working directory to know it
        if name.startswith("--config"):
            flags.parse([name, *arguments])
        elif name in PARSERS and "--help" not in arguments:
            PARSERS[name]().parse_args(arguments)
        else:
            assert name in (*COMMANDS, "--help", "--version")


def test_the_config_in_the_quickstart_is_one(tmp_path):
    (code,) = re.findall(r"```python\n([^`]*def get_config[^`]*)```", QUICKSTART.read_text())
    (tmp_path / "mine.py").write_text(code)
    config, _ = load_config(str(tmp_path / "mine.py"))
    assert (config.data.dataset, config.model.nf) == ("fashion_mnist", 32)


def test_the_page_on_vectors_runs_as_it_stands():
    """But for the blocks that need PyTorch (tests/interop/test_sbi.py)."""
    blocks = re.findall(r"```python\n(.*?)```", VECTORS.read_text(), re.DOTALL)
    names, seen = {}, []
    for block in blocks:
        if "import torch" not in block:
            exec(block, names)
            seen.append(names["found"])
    first, with_tolerance, double = seen[0], seen[1], seen[-1]
    np.testing.assert_allclose(first.log_prob, -1.5 * np.log(2 * np.pi), atol=1e-3)
    assert with_tolerance.trace.startswith("Hutchinson(probes=2")
    assert names["accuracy"].met and double.log_prob.dtype == np.float64
    assert names["by_parameters"]["scale"].shape == () and names["by_x"].shape == (5, 2)
    assert np.all(np.isfinite(names["by_x"])) and np.all(names["by_x"] < 0)


def test_equations_are_numbered_once_and_in_order():
    numbers = [int(number) for number in TAG.findall((ROOT / "docs" / "math.md").read_text())]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 40
