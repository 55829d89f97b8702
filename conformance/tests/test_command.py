"""The command: a table, JSON, a page of many; and the README's adapter of a stranger."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scoremle_conformance import subjects
from scoremle_conformance.__main__ import main
from scoremle_conformance.adapter import Ask
from scoremle_conformance.adapters import ADAPTERS, adapter_class
from scoremle_conformance.checks import CHECKS
from scoremle_conformance.fields import Field
from scoremle_conformance.paths import PATHS, cut
from scoremle_conformance.signatures import SIGNATURES

LONG = pytest.mark.long

README = Path(__file__).parents[1] / "README.md"
OTHERS = [name for name in ADAPTERS if name != "sample"]


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """The adapter of the README, in a folder of its own."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 30
    (tmp_path / "my_adapter.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_adapter:Mine"
    sys.modules.pop("my_adapter", None)


def test_a_stranger_s_adapter_is_examined(stranger, tmp_path, capsys):
    file = tmp_path / "found.json"
    assert main([stranger, "--quick", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "nothing wrong was found" in printed and "value        pass 9/9" in printed
    (record,) = json.loads(file.read_text())["reports"]
    assert record["checks"]["value"] == "pass 9/9"
    assert record["checks"]["images"] == "not applicable"
    assert main(["--markdown", str(file), str(file)]) == 0
    page = capsys.readouterr().out
    rows = [line for line in page.splitlines() if line.startswith("| mine")]
    assert len(rows) == 4 and "pass 9/9" in rows[0] and "nothing found" in rows[0]
    assert f"numpy {np.__version__}" in page and "### What fails\n\nNothing." in page
    assert "| log P of integer images | mine |" in page and "| exact traces |" not in page


def test_a_fault_is_told_and_the_exit_code_is_one(tmp_path, capsys):
    file = tmp_path / "found.json"
    arguments = ["sample", "--setting", "labels", "--quick", "--json", str(file)]
    assert main(arguments) == 1
    assert "WRONG: labels off by one: values under a class" in capsys.readouterr().out
    assert json.loads(file.read_text())["reports"][0]["faults"] == ["labels off by one"]


def test_the_text_for_maintainers_has_the_smallest_example(capsys):
    assert main(["sample", "--setting", "prior", "--quick", "--issue"]) == 1
    text = capsys.readouterr().out.partition("# sample 1: log p is off (prior of the wrong")[2]
    (x,) = re.findall(r"x = (\[.*\])", text)
    exact, found = map(float, re.findall(r"log p\(x\), (?:closed form|found): +(\S+) nats", text))
    subject, path = subjects.far(3), PATHS["ve"]
    assert f"eps of these on the path {path}, to t = 1" in text
    truth = subject.log_model(np.array([json.loads(x)]), path)[0]
    assert exact == pytest.approx(truth, abs=1e-5)
    assert abs(found - exact) > 0.01
    assert "--setting prior" in text and f"means {subject.means.tolist()}" in text
    assert main(["sample", "--quick", "--issue"]) == 0
    assert "# sample" not in capsys.readouterr().out


def test_a_stranger_s_issue_repeats_the_command_and_names_a_missing_method(
    stranger, tmp_path, monkeypatch, capsys
):
    code = (tmp_path / "my_adapter.py").read_text()
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "claims.py").write_text(code.replace('{"exact"', '{"gradient", "exact"'))
    assert main(["claims:Mine", "--quick", "--issue"]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("mine, default: as it is\n") and "\n# mine: log p" in printed
    assert "python -m scoremle_conformance claims:Mine --setting default" in printed
    assert "NotImplementedError: mine has no method gradient" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "no adapter"),
        (["no_module:Class"], "no_module"),
        (["json:JSONDecoder"], "not a subclass"),
        (["sample", "--setting", "odd"], "setting 'odd'"),
        (["--markdown", "no.json"], "FileNotFound"),
    ],
)
def test_mistakes_are_one_line(arguments, words, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_the_list_names_every_adapter(capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(ADAPTERS)


def test_the_readme_has_the_table_of_signatures():
    text = README.read_text().replace("\\|", "|")
    for signature in SIGNATURES:
        assert f"| {signature.name} | {signature.words} |" in text


def test_the_page_of_results_has_every_library_in_every_setting():
    page = README.parents[1] / "docs" / "conformance.md"
    head = ["library", "version", "setting", *CHECKS, "what is wrong"]
    _, _, below = page.read_text().partition(f"| {' | '.join(head)} |")
    rows = [row.strip("| ").split(" | ") for row in below.split("\n\n")[0].splitlines()]
    found = {(row[0], row[2]) for row in rows[2:]}
    assert {library for library, _ in found} == set(ADAPTERS)
    assert len(found) == len(rows[2:])


@pytest.mark.parametrize("library", OTHERS)
def test_an_adapter_s_best_setting_is_right(library):
    try:
        kind = adapter_class(library)
    except ImportError as error:
        pytest.skip(f"{library} is not installed: {error}")
    adapter = kind("best")
    path, output = adapter.networks[0]
    field = Field(subjects.anisotropic(2), cut(PATHS[path]), output)
    if "noise" not in adapter.can:
        field = Field(subjects.anisotropic(2), PATHS[path], output)
    x, exact = field.subject.draw(np.random.default_rng(0), 3, field.path), "exact" in adapter.can
    copies = 1 if exact else 16  # each with probes of its own
    found = adapter.log_prob(field, np.repeat(x, copies, axis=0), Ask(exact)).log_prob
    means = np.asarray(found, np.float64).reshape(3, copies).mean(axis=1)
    np.testing.assert_allclose(means, field.subject.log_model(x, field.path), atol=0.01)


@pytest.mark.parametrize("library", [
    "torchdiffeq", "zuko", *(pytest.param(each, marks=LONG) for each in ("azula", "flow_matching"))
])  # fmt: skip
def test_a_torch_library_has_the_precision_that_it_states_and_probes_by_the_seed(library):
    pytest.importorskip(library)
    kind = adapter_class(library)
    for setting, words in kind.settings.items():
        adapter = kind(setting)
        path, output = adapter.networks[0]
        field = Field(subjects.anisotropic(3), PATHS[path], output)
        x = field.subject.draw(np.random.default_rng(0), 4, field.path)
        found, same, other = (
            adapter.log_prob(field, x, Ask(exact=False, seed=seed)).log_prob for seed in (1, 1, 2)
        )
        assert words.startswith(str(found.dtype))
        assert np.array_equal(found, same) and not np.allclose(found, other, rtol=1e-3)
