"""A small training in a process of its own, to be killed: FOLDER [PAUSE [N]] are its words.

PAUSE seconds a step make it slow enough to be killed on the way. The checkpoint of step N is
written and never gets its name.
"""

import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from helpers.steps import make_step
from scoremle.errors import Stopped, UserError
from scoremle.training.checkpoints import Checkpoints
from scoremle.training.checksums import tree_hash
from scoremle.training.loop import Intervals, Loop
from scoremle.training.step import init_state, make_optimizer
from scoremle.training.writers import Console, JsonLines

# Nothing divides anything: calls of 3 steps, a last one of 2.
SCHEDULE = Intervals(
    n_iters=80,
    n_jitted_steps=3,
    log_freq=10,
    eval_freq=25,
    snapshot_freq=20,
    snapshot_freq_for_preemption=7,
)


def batch(step: int) -> np.ndarray:
    return np.random.default_rng([1, step]).integers(0, 256, (4, 2, 2, 1), dtype=np.uint8)


def init_params():
    keys = jax.random.split(jax.random.key(3))
    return {"in": jax.random.normal(keys[0], (4, 16)), "out": jax.random.normal(keys[1], (16, 4))}


def loss(params, images, key):
    x = images.reshape(len(images), -1) / 255.0
    noise = jax.random.normal(key, x.shape)
    out = jnp.tanh((x + noise) @ params["in"]) @ params["out"]
    each = jnp.mean((out - noise) ** 2, axis=-1)
    return each.mean(), {"loss_std": each.std()}


def optimizer():
    return make_optimizer(lr=1e-2, beta1=0.9, eps=1e-8, warmup=5, grad_clip=1.0)


class Stuck(Checkpoints):
    """Comes to no end with the checkpoint of this number."""

    def __init__(self, folder, number):
        super().__init__(folder, keep=2)
        self.number = number

    def _put(self, new, place):
        if place.name == f"checkpoint_{self.number}":
            threading.Event().wait()
        super()._put(new, place)


class Late(Checkpoints):
    """Saves when images of so many more steps were asked for, up to the end, or fails then."""

    def __init__(self, folder, end, steps=0, fails=()):
        super().__init__(folder / "checkpoints-meta", keep=None)
        self.end, self.steps, self.fails = end, steps, fails
        self.asked, self.moved = 0, threading.Condition()

    def batch(self, step):
        with self.moved:
            self.asked = step + 1
            self.moved.notify()
        return batch(step)

    def save(self, number, tree, meta):
        wanted = min(number + self.steps, self.end)
        with self.moved:
            assert self.moved.wait_for(lambda: self.asked >= wanted, timeout=60), "it waits"
        if number in self.fails:
            raise UserError(f"can't write {number}")
        super().save(number, tree, meta)


def train(
    folder, pause=0.0, schedule=SCHEDULE, batch=batch, on_eval=None, batches=None, **more
):
    store = Checkpoints(folder / "checkpoints-meta", keep=2)

    def slow_batch(step: int) -> np.ndarray:
        time.sleep(pause)
        return batch(step)

    training = Loop(
        make_step(loss, optimizer(), 0.9, seed=5),
        batches or (lambda _: slow_batch),
        schedule,
        snapshots=Checkpoints(folder / "checkpoints", keep=None),
        preemption=more.pop("preemption", store),
        writers=[JsonLines(folder / "metrics.jsonl"), Console(schedule.n_iters)],
        on_eval=on_eval or (lambda state, step: {"bpd": 3.0, "bpd_stderr": 0.01}),
        on_snapshot=lambda state, step: None,
        note={"config": {"name": "worker"}},
        **more,
    )
    try:
        return training.run(init_state(init_params(), optimizer())), True
    except Stopped:
        return training.state, False


if __name__ == "__main__":
    folder, pause, number = *sys.argv[1:], *("0", "")[len(sys.argv) - 2 :]
    store = Stuck(Path(folder) / "checkpoints-meta", number)
    state, finished = train(Path(folder), float(pause), preemption=store)
    print(f"finished={finished} hash={tree_hash(state)}")
