"""A training goes on while it saves; what it says is saved is on disk, and no error is lost."""

import signal
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import resume_worker as worker
from helpers.resume_worker import Late

from scoremle.errors import UserError
from scoremle.training.checkpoints import Checkpoints
from scoremle.training.saving import Saving, bytes_of_copy
from scoremle.training.step import init_state

# Saves after 9, 15, 21 and 24 steps.
END = 24
SCHEDULE = replace(worker.SCHEDULE, n_iters=END, snapshot_freq=100)


def train(folder, store, **more):
    more = {"batch": store.batch, "schedule": SCHEDULE} | more
    return worker.train(folder, preemption=store, **more)


def restored(store):
    template = jax.eval_shape(lambda: init_state(worker.init_params(), worker.optimizer()))
    return [jax.tree.leaves(store.restore(template, n).tree) for n in store.numbers()]


def test_it_goes_on_while_it_saves_what_was(tmp_path):
    """To within the call after which the next is saved."""
    late, at_once = Late(tmp_path / "late", END, 5), Late(tmp_path / "at_once", END)
    for store in (late, at_once):
        assert train(store.folder.parent, store)[1]
        assert store.numbers() == [9, 15, 21, 24]
    for one, other in zip(restored(late), restored(at_once), strict=True):
        assert all(map(np.array_equal, one, other))


@pytest.mark.parametrize("number", [9, 24])
def test_an_error_comes_out_where_the_next_is_saved_or_at_the_end(number, tmp_path, caplog):
    store = Late(tmp_path, END, 2, fails=[number])
    with pytest.raises(UserError, match=f"can't write {number}"):
        train(tmp_path, store)
    assert store.asked == min(number + 6, END)
    assert store.numbers() == [n for n in (9, 15, 21) if n < number]
    assert not caplog.records  # once is enough


def test_what_fails_is_followed_by_no_other(tmp_path):
    """A snapshot is not left out for good by a checkpoint beyond it."""
    store = Late(tmp_path, END)

    class Full(Checkpoints):
        def save(self, number, tree, meta):
            raise UserError("no space")

    with Saving() as saves:
        copy = saves.copy({"a": np.ones(2)})
        saves.save(Full(tmp_path, keep=None), 1, copy, {})
        saves.save(store, 0, copy, {})
        with pytest.raises(UserError, match="no space"):
            saves.wait()
        assert store.numbers() == []
        saves.save(store, 0, copy, {})
    assert store.numbers() == [0]
    with pytest.raises(UserError, match="no space"), Saving() as saves:
        saves.save(Full(tmp_path, keep=None), 1, copy, {})


@pytest.mark.parametrize("fails", [[], [15]])
def test_another_error_waits_and_hides_none(fails, tmp_path, caplog):
    store = Late(tmp_path, END, 2, fails)

    def batch(step):
        if step == 18:
            raise RuntimeError("images")
        return store.batch(step)

    with pytest.raises(RuntimeError, match="images"):
        train(tmp_path, store, batch=batch)
    assert store.numbers() == [9] + [15] * (not fails)
    assert caplog.messages == ["can't write 15"] * len(fails)


def test_training_goes_back_to_what_was_under_way(tmp_path, monkeypatch, capsys):
    """A number that is not finite is seen three steps later."""
    sound, store, again = worker.loss, Late(tmp_path, END, 5), Late(tmp_path / "again", END, 5)

    def loss(params, images, key):
        value, more = sound(params, images, key)
        return jnp.where((images == 255).all(), jnp.nan, value), more

    def poisoned(store):
        return lambda step: np.where(step == 17, np.uint8(255), store.batch(step))

    monkeypatch.setattr(worker, "loss", loss)
    batches = (poisoned(store), store.batch)
    assert train(tmp_path, store, batches=lambda k: batches[k], limit=1)[1]
    assert f"loss is nan at step 17: back to step 15, {store.path(15)}" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"checkpoint is {again.path(15)}"):
        train(tmp_path / "again", again, batch=poisoned(again))
    assert again.numbers() == [9, 15]


def test_a_signal_waits_until_it_is_on_disk(tmp_path, capsys):
    class Slow(Late):
        def save(self, number, tree, meta):
            time.sleep(0.3)
            super().save(number, tree, meta)

    def batch(step):
        if step == 10:
            signal.raise_signal(signal.SIGTERM)
        return store.batch(step)

    store = Slow(tmp_path, END)
    assert not train(tmp_path, store, batch=batch)[1]
    assert store.numbers() == [9, 12]
    assert f"saved step 12 to {store.path(12)}; run the same command" in capsys.readouterr().out


def test_a_copy_takes_the_memory_of_a_cpu_alone(monkeypatch):
    state = {"a": jnp.zeros((3, 5)), "b": jnp.zeros(7, jnp.float16), "c": jnp.zeros((), int)}
    assert bytes_of_copy(state) == 60 + 14 + 4
    monkeypatch.setattr("jax.local_device_count", lambda: 4)
    assert bytes_of_copy(state) == 15 + 3 + 1
    monkeypatch.setattr("scoremle.training.saving.part_axis", lambda leaf: 0)
    monkeypatch.setattr("jax.device_count", lambda: 2)
    assert bytes_of_copy(state) == 30 + 7 + 2
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    assert bytes_of_copy(state) == 0
