"""The control variate of an evaluation: fitted once, kept, and fitted anew from a damaged file."""

import jax
import numpy as np
import pytest

import scoremle
from scoremle.core.pixels import Pixels
from scoremle.experiment.control_variate import ControlRun
from scoremle.files import read_npz, write_npz

MODEL = scoremle.ScoreModel(lambda x, t: 0 * x, scoremle.VP(), 1e-3, (8, 8, 1), Pixels(17))


def other_numbers(arrays):
    return arrays | {"mean": arrays["mean"] + 1}


def another_name(arrays):
    return {name.replace("mean", "maen"): array for name, array in arrays.items()}


@pytest.mark.parametrize("change", [other_numbers, another_name])
def test_a_file_that_is_not_as_it_was_written_is_not_used(change, tmp_path):
    run = ControlRun(MODEL, "denoising", scoremle.data.load("digits"), 0)
    fitted = run.kept(tmp_path, {})
    (path,) = tmp_path.glob("control_*.npz")
    content = path.read_bytes()
    write_npz(path, change(read_npz(path)))
    again = run.kept(tmp_path, {})
    assert path.read_bytes() == content
    for one, other in zip(*map(jax.tree.leaves, (fitted, again)), strict=True):
        np.testing.assert_array_equal(one, other)
    path.write_bytes(content)
    time = path.stat().st_mtime_ns
    run.kept(tmp_path, {})
    assert path.stat().st_mtime_ns == time
