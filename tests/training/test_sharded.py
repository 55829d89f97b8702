"""A state split over devices (``devices.fsdp``) is the same state, in less memory on each."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers import on_processes, sharded_worker

from scoremle.devices import SMALL, bytes_of_each, split_axis
from scoremle.errors import UserError
from scoremle.training.checkpoints import Checkpoints


def trained(folder, steps, **layout):
    """Split over the devices of processes, if some are named; whole, in this one, if none is."""
    if layout:
        on_processes.run("sharded_worker", folder, steps, **layout)
    else:
        sharded_worker.work(folder, steps, sharded=False)
    return np.load(folder / f"{steps}.npz")


@pytest.mark.long
def test_a_sharded_training_is_the_whole_one_and_goes_on_with_other_devices(tmp_path, caplog):
    """To 1e-6 of a number: the order of sums differs."""
    split, one = tmp_path / "split", tmp_path / "one"
    state = jax.eval_shape(sharded_worker.init)
    whole = bytes_of_each(state, 1)
    (split / "checkpoints/checkpoint_1.new").mkdir(parents=True)  # a save that was killed
    found = trained(split, 20, processes=2, devices=2)
    check_both_wrote(Checkpoints(split / "checkpoints", keep=None), state, tmp_path)
    assert not caplog.records
    assert found["bytes"] == bytes_of_each(state, 4)
    assert whole / 4 < found["bytes"] < whole / 2.9  # the bias stays whole
    assert str(found["not_finite"]) == "params/out"
    expected = trained(one, 20)
    assert expected["bytes"] == whole
    np.testing.assert_allclose(found["state"], expected["state"], atol=1e-6)
    np.testing.assert_array_equal(found["first"], expected["first"])
    assert found["first_bytes"] < expected["first_bytes"] / 2.4

    trained(split, 30)
    found = trained(split, 40, devices=4)
    expected = trained(one, 40)
    np.testing.assert_allclose(found["state"], expected["state"], atol=1e-6)
    rows = [
        [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (split, one)
    ]
    assert [row["step"] for row in rows[0]] == list(range(5, 41, 5))
    for name in ("loss", "kept", "grad_norm"):
        values, wanted = ([row[name] for row in each] for each in rows)
        np.testing.assert_allclose(values, wanted, rtol=1e-5)


def check_both_wrote(store, template, folder):
    """Each process its parts; parts that are not those of the record's hashes are noticed."""
    path = store.path(2)
    sizes = [sum(file.stat().st_size for file in (path / f"state/ocdbt.process_{i}").rglob("*"))
             for i in range(2)]  # fmt: skip
    assert 0.7 < sizes[1] / sizes[0] < 1  # the bias is in the first
    store.verify(2)
    shutil.copytree(path, damaged := folder / "damaged/checkpoint_2")
    shutil.rmtree(damaged / "parts")
    shutil.copytree(store.path(1) / "parts", damaged / "parts")
    damaged = Checkpoints(damaged.parent, keep=None)
    for read in (damaged.verify, lambda number: damaged.restore(template, number)):
        with pytest.raises(UserError, match="of a part"):
            read(2)
    shutil.rmtree(damaged.path(2) / "parts")
    with pytest.raises(UserError, match="is damaged"):
        damaged.verify(2)


@pytest.mark.parametrize(
    ("shape", "count", "axis"),
    [
        ((3, 3, 64, 128), 4, 3),
        ((3, 3, 128, 64), 8, 2),
        ((3, 3, 64, 65), 8, 2),
        ((65, 65), 4, None),
        ((SMALL - 1,), 1, None),
        ((SMALL,), 2, 0),
        ((), 2, None),
    ],
)
def test_the_axis_that_is_split(shape, count, axis):
    assert split_axis(shape, count) == axis
