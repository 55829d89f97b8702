"""One run on so many processes with so many devices each: the same numbers, and files of one."""

import json

import jax
import numpy as np
import pytest
from helpers import on_processes
from PIL import Image

from scoremle.experiment.build import build
from scoremle.experiment.workdir import Workdir

LONGEST = 1200


def run(folder, eval_folder, what, processes=1, devices=1):
    """Trains or measures in this folder; the first process alone talks."""
    told = on_processes.run(
        "layout_worker", folder, eval_folder, what,
        processes=processes, devices=devices, timeout=LONGEST,
    )  # fmt: skip
    assert not any("image" in text for text in told[1:])
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(tmp_path_factory.mktemp("alone") / "run", "alone", "train")


def states(folder):
    """The arrays of the last states of the model and of its flow."""
    place, of_flow = Workdir(folder), Workdir(folder / "flowpp_dequantizer")
    model, flow = (build(each.config(), levels=17) for each in (place, of_flow))
    return jax.tree.leaves([
        place.snapshots.restore(model.training.template).tree,
        of_flow.snapshots.restore(flow.flow_training.template).tree,
    ])  # fmt: skip


def numbers(content, name=""):
    """The numbers of nested records, by their names; but for the time that it took."""
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        timed = name.endswith("seconds_per_image")
        return {name: content} if isinstance(content, (int, float)) and not timed else {}
    nested = (numbers(value, f"{name}/{key}") for key, value in content.items())
    return {name: value for each in nested for name, value in each.items()}


def check_same_numbers(found, expected):
    """Bits/dim of the mean and of each image to 1e-5; the pixels of samples to a level.

    A pilot's calibration is a ratio of the small errors of a few images: to a thousandth.
    """
    results, wanted = (
        numbers(json.loads((folder / "results.json").read_text())) for folder in (found, expected)
    )
    assert results.keys() == wanted.keys()
    for name, value in wanted.items():
        rel = 1e-3 if name.endswith("calibration") else 1e-4
        assert results[name] == pytest.approx(value, abs=1e-5, rel=rel), name
    names = {path.name for path in expected.glob("*.npz")}
    assert names == {path.name for path in found.glob("*.npz")} and len(names) == 4
    for name in names:
        columns, theirs = (dict(np.load(folder / name)) for folder in (expected, found))
        assert theirs.keys() == columns.keys()
        for column, values in columns.items():
            atol = 1 if column == "samples" else 1e-5
            np.testing.assert_allclose(theirs[column], values, atol=atol, rtol=1e-6)
    assert not [*found.rglob("*.tmp")]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("layout", [(1, 4), (2, 2), (4, 1)])
def test_every_layout_measures_the_same(alone, layout):
    run(alone, f"{layout}", "eval", *layout)
    check_same_numbers(alone / f"{layout}", alone / "alone")


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_with_two_devices_train_the_same(alone, tmp_path):
    """Parameters and moments to 5e-6 after ten steps."""
    folder = run(tmp_path / "run", "alone", "train", 2, 2)
    for found, expected in zip(states(folder), states(alone), strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-6)
    check_same_numbers(folder / "alone", alone / "alone")
    pictures = [np.asarray(Image.open(each / "samples/step_10.png"), int)
                for each in (alone, folder)]  # fmt: skip
    assert np.abs(pictures[0] - pictures[1]).max() <= 16  # a level
