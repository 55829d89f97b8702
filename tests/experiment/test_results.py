"""results.json: every result by its name, sealed, added to what is there."""

import json

import numpy as np
import pytest

from scoremle.cli import main as cli
from scoremle.errors import UserError
from scoremle.evaluation.result import Result
from scoremle.experiment.results import add_results, measured, read_results
from scoremle.experiment.shipped import FOLDER
from scoremle.files import write_npz
from scoremle.training.checksums import tree_hash

RESULTS = {
    "exact_test_ckpt_2": {"mean": 1.25, "stderr": None, "solver": {"nodes": 6}, "edges": (1, 2)},
    "checks_test_ckpt_2": [
        {"words": "a <= b", "holds": True, "difference": 0.5, "stderr": 0.125, "meaning": ""},
        {"words": "c", "holds": False, "difference": 2.5, "stderr": 0.125, "meaning": "a fault"},
    ],
}


@pytest.fixture
def path(tmp_path):
    add_results(tmp_path / "results.json", RESULTS)
    return tmp_path / "results.json"


def test_results_are_added_and_replaced(path):
    add_results(path, {"exact_test_ckpt_2": {"mean": 2.5}, "other": {"mean": 3.5}})
    found = read_results(path)
    assert list(found) == [*RESULTS, "other"]
    assert (found["exact_test_ckpt_2"]["mean"], found["other"]["mean"]) == (2.5, 3.5)
    assert "seal" not in RESULTS["exact_test_ckpt_2"]


@pytest.mark.parametrize(
    ("old", "new"),
    [("1.25", "1.26"), ("null", "0.01"), ('"nodes": 6', '"nodes": 7'), ("a <= b", "a >= b"),
     ("false", "true"), ("exact_test_ckpt_2", "exact_test_ckpt_3")],
)  # fmt: skip
def test_a_result_that_was_altered_is_named(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=r"ckpt_\d .*written"):
        read_results(path)
    with pytest.raises(UserError, match="was written"):
        add_results(path, {})
    assert path.read_text() == text.replace(old, new)


def test_results_of_an_earlier_version_are_read(path):
    path.write_text(json.dumps(RESULTS))
    assert read_results(path) == json.loads(json.dumps(RESULTS))


def test_the_results_that_the_package_ships_are_read():
    """They were written by an evaluation: each field that is typed is of that type."""
    found = read_results(FOLDER / "digits" / "eval" / "results.json")
    assert found["exact_test_ckpt_3"]["divergence"]["type"] == "Hutchinson"


def test_a_result_is_written_as_it_was_read():
    """Fields that no reader takes are written, too."""
    entries = read_results(FOLDER / "digits" / "eval" / "results.json")
    for result in measured(FOLDER / "digits", "eval"):
        facts, written = entries[result.name], json.loads(json.dumps(result.to_json()))
        assert "sde" in facts and {name: written[name] for name in facts} == facts


@pytest.mark.parametrize("values", [np.ones((2, 4)), np.ones((1, 5)), np.full((1, 4), np.nan)])
def test_values_of_other_images_are_not_those_of_a_result(values, tmp_path):
    facts = read_results(FOLDER / "digits" / "eval" / "results.json")["exact_test_ckpt_3"]
    result = Result.read("x", facts | {"images": 4, "passes": 1}, tmp_path)
    write_npz(tmp_path / "x.npz", {"bpd": np.arange(4.0)[None]})
    np.testing.assert_array_equal(result.column("bpd"), [[0, 1, 2, 3]])
    write_npz(tmp_path / "x.npz", {"bpd": values})
    with pytest.raises(UserError, match="of 4 images"):
        result.column("bpd")


def test_values_of_another_evaluation_are_not_those_of_a_result(tmp_path):
    """As an evaluation leaves them that is killed before it writes its result."""
    facts = read_results(FOLDER / "digits" / "eval" / "results.json")["exact_test_ckpt_3"]
    rows = {"bpd": np.arange(4.0)[None], "nfe": np.full((1, 4), 6)}
    own = {"images": 4, "passes": 1, "values_hash": tree_hash(rows)}
    result = Result.read("x", facts | own, tmp_path)
    write_npz(tmp_path / "x.npz", rows)
    np.testing.assert_array_equal(result.column("bpd"), rows["bpd"])
    add_results(tmp_path / "results.json", {"x": result.to_json()})
    write_npz(tmp_path / "x.npz", rows | {"bpd": rows["bpd"] + 1e-3})
    with pytest.raises(UserError, match="evaluate again"):
        result.column("bpd")
    for command in (["compare", tmp_path, tmp_path], ["verify", tmp_path]):
        assert cli.main([*map(str, command)]) == 2


@pytest.mark.parametrize(
    "facts",
    [
        {"level_nodes": [24, 48], "level_images": [360]}, {"level_nodes": [], "level_images": []},
        {"profile": {"log_snr_edges": [0.0], "bits_per_dim": [], "stderr": []}},
        {"profile": {"log_snr_edges": [0.0, 1.0], "bits_per_dim": [1.0], "stderr": [0.1, 0.1]}},
        {"log_snr": {"t": [0.0, 1.0], "learned": [1.0], "fixed": [1.0, 0.0]}},
    ],
)  # fmt: skip
def test_lists_that_belong_together_have_one_length(facts, tmp_path):
    whole = read_results(FOLDER / "digits" / "eval" / "results.json")["exact_test_ckpt_3"]
    del whole["seal"]
    add_results(tmp_path / "results.json", {"x": whole | facts})
    with pytest.raises(UserError, match="other lengths"):
        read_results(tmp_path / "results.json")
