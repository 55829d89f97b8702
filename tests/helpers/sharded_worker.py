"""Trains on several devices: ``sharded_worker.py FOLDER STEPS [PORT PROCESSES I]``.

Goes on from what lies in FOLDER, and leaves there its state and what a test asks of it. What is
trained has large arrays and takes no time.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from helpers import resume_worker as small
from scoremle import devices, processes
from scoremle.data import ImageSet
from scoremle.experiment.training import FlowObjective, Training
from scoremle.files import is_writer
from scoremle.numerics import not_finite
from scoremle.training import loop
from scoremle.training.checkpoints import Checkpoints
from scoremle.training.program import make_program
from scoremle.training.step import init_state
from scoremle.training.writers import JsonLines

WIDTH = 2048


def init():
    keys = jax.random.split(jax.random.key(3))
    shapes = {"in": (4, WIDTH), "out": (WIDTH, 4)}
    params = {name: jax.random.normal(key, shapes[name]) / 8
              for name, key in zip(shapes, keys, strict=True)}  # fmt: skip
    return init_state({**params, "bias": jnp.zeros(WIDTH)}, small.optimizer())


def loss(params, images, key):
    """Under dropout, whose mask is as large as the batch."""
    x = images.reshape(len(images), -1) / 255.0
    key_noise, key_dropout = jax.random.split(key)
    noise = jax.random.normal(key_noise, x.shape)
    hidden = jnp.tanh((x + noise) @ params["in"] + params["bias"])
    hidden = hidden * jax.random.bernoulli(key_dropout, 0.8, hidden.shape)
    return jnp.mean((hidden @ params["out"] - noise) ** 2), {"kept": jnp.mean(hidden != 0)}


def with_nan(state):
    """As its last number, which the last process has."""
    params = {**state.params, "out": state.params["out"].at[-1, -1].set(jnp.nan)}
    return state._replace(params=params)


def train(folder, steps, sharded, accumulate=1, backend="cpu"):
    state = init()
    places = devices.shardings(state, sharded=sharded)
    late = small.Late(folder, steps, 6)  # it trains while it saves
    # What a GPU does, one scan, runs on a CPU as well.
    with mock.patch.object(jax, "default_backend", lambda: backend):
        program = make_program(
            loss, small.optimizer(), 0.9, seed=5, accumulate=accumulate, places=places
        )
        training = loop.Loop(
            program,
            lambda _: late.batch,
            loop.Intervals(steps, 5, 5, 5, 10, 10),
            snapshots=Checkpoints(folder / "checkpoints", keep=None),
            preemption=late,
            writers=[JsonLines(folder / "metrics.jsonl")] * is_writer(),
            on_eval=lambda state, step: {},
            on_snapshot=lambda state, step: None,
            note={},
        )
        return training.run(state, places)


def first_state(sharded):
    """As an experiment makes it, of a seed and the first images.

    Its sums are of whole numbers, which no order of them rounds.
    """

    def params(key, images):
        x = images.reshape(len(images), -1).astype(float)
        weights = jnp.round(8 * jax.random.normal(key, (4, WIDTH)))
        return {"in": weights, "bias": (x @ weights).max(axis=0)}

    images = np.concatenate([small.batch(i) for i in range(8)])
    config = SimpleNamespace(seed=5, devices=SimpleNamespace(fsdp=sharded))
    objective = mock.Mock(FlowObjective, init=params, memory=())
    objective.initialiser = objective
    return Training(
        config, ImageSet(images, images), objective, small.optimizer(), 0.9, small.SCHEDULE
    ).init_state()


def numbers(tree):
    return np.concatenate([np.ravel(a) for a in jax.tree.leaves(devices.to_numpy(tree))])


def bytes_here(state):
    """Of the first device of this process."""
    return sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(state))


def work(folder, steps, sharded):
    """Trains, at first also with each batch in two parts, as a CPU and as a GPU does it."""
    state = train(folder, steps, sharded)
    backends = ("cpu", "gpu") if steps == 20 else ()
    in_parts = [train(folder / each, steps, sharded, 2, each) for each in backends]
    first = first_state(sharded)
    found = {
        "bytes": bytes_here(state), "state": numbers([state, *in_parts]),
        "first_bytes": bytes_here(first), "first": numbers(first),
    }  # fmt: skip
    named = not_finite(devices.put(with_nan(init()), devices.shardings(state, sharded=sharded)))
    if is_writer():
        np.savez(folder / f"{steps}.npz", not_finite=named, **found)


if __name__ == "__main__":
    place, steps, *where = sys.argv[1:]
    if where:
        processes.join(f"127.0.0.1:{where[0]}", *map(int, where[1:]))
    work(Path(place), int(steps), sharded=True)
