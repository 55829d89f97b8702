"""The training step is the published one; the loop survives everything, bit for bit."""

import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import resume_worker as worker
from helpers.marks import some
from helpers.places import ROOT
from helpers.steps import make_step

from scoremle import devices
from scoremle.errors import Stopped, UserError
from scoremle.training import loop, writers
from scoremle.training.checkpoints import Checkpoints
from scoremle.training.checksums import tree_hash
from scoremle.training.fit import fit
from scoremle.training.program import make_program
from scoremle.training.step import init_state, make_optimizer


def test_optimizer_is_the_published_one(golden):
    g = golden("optimizer")
    optimizer = make_optimizer(
        lr=float(g["lr"]),
        beta1=float(g["beta1"]),
        eps=float(g["eps"]),
        warmup=int(g["warmup"]),
        grad_clip=float(g["grad_clip"]),
    )
    grads = {name: jnp.asarray(g[f"grads/{name}"]) for name in "ab"}

    def loss(params, images, key):
        """Its gradient is the given one, whatever the parameters."""
        i = images.ravel()[0]
        return sum(jnp.vdot(grads[name][i], params[name]) for name in "ab"), {}

    state = init_state({name: jnp.asarray(g[f"params/{name}"]) for name in "ab"}, optimizer)
    step = make_step(loss, optimizer, float(g["ema_rate"]), seed=0)
    for i in range(len(g["grads/a"])):
        state, out = step(state, np.full((1, 1, 1, 1, 1), i, np.uint8))
        adam = optax.tree.get(state.opt_state, "mu"), optax.tree.get(state.opt_state, "nu")
        found = dict(
            zip(["params", "ema", "grad_ema", "grad_sq_ema"], [*state[1:3], *adam], strict=True)
        )
        for what, tree in found.items():
            for name in "ab":
                expected = g[f"{what}_after/{name}"][i]
                np.testing.assert_allclose(tree[name], expected, rtol=1e-6, atol=1e-7)
        norm = np.sqrt(sum((g[f"grads/{name}"][i].astype(float) ** 2).sum() for name in "ab"))
        np.testing.assert_allclose(out["grad_norm"], [norm], rtol=1e-6)


@pytest.mark.parametrize(("warmup", "rates"), [(0, [1, 1, 1]), (2, [0, 0.5, 1, 1])])
def test_warmup(warmup, rates):
    optimizer = make_optimizer(lr=0.1, beta1=0.9, eps=1e-30, warmup=warmup, grad_clip=-1.0)
    params = jnp.zeros(1)
    state = optimizer.init(params)
    for rate in rates:
        updates, state = optimizer.update(jnp.full(1, 5.0), state, params)
        np.testing.assert_allclose(updates, -0.1 * rate, rtol=1e-4)


def test_weight_decay_is_decoupled():
    optimizer = make_optimizer(
        lr=0.1, beta1=0.9, eps=1e-8, warmup=0, grad_clip=1.0, weight_decay=0.01
    )
    params = jnp.full(1, 2.0)
    updates, _ = optimizer.update(jnp.zeros(1), optimizer.init(params), params)
    np.testing.assert_allclose(updates, -0.1 * 0.01 * 2, rtol=1e-6)


def test_no_bias_decays_whatever_its_name():
    """Those of NIN are b, and those of Flow++ end so; the b of a schedule is none."""
    optimizer = make_optimizer(
        lr=1.0, beta1=0.9, eps=1e-8, warmup=0, grad_clip=1.0, weight_decay=0.5,
        decay_biases=False,
    )  # fmt: skip
    names = "kernel", "W", "scale", "bias", "b", "c1_b", "norm0_b"
    params = {"layer": dict.fromkeys(names, jnp.ones(2)), "gamma": {"b": jnp.ones(1)}}
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    decaying = {name for name, each in updates["layer"].items() if each.any()}
    assert decaying == {"kernel", "W", "scale"} and updates["gamma"]["b"].any()


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_fused_steps_are_single_steps(backend, monkeypatch):
    # A CPU makes a call for each step; what other devices do, one scan, runs here as well.
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    optimizer = worker.optimizer()
    step = make_step(worker.loss, optimizer, 0.9, seed=5)
    images = np.stack([worker.batch(i) for i in range(6)])
    fused, together = step(init_state(worker.init_params(), optimizer), images)
    state, apart = init_state(worker.init_params(), optimizer), []
    for i in range(6):
        state, out = step(state, images[i : i + 1])
        apart.append(out)
    assert int(fused.step) == int(state.step) == 6
    for a, b in zip(jax.tree.leaves(fused), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    for name in ("loss", "grad_norm", "loss_std"):
        assert together[name].shape == (6,)
        np.testing.assert_allclose(together[name], [m[name][0] for m in apart], rtol=2e-5)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_batch_in_parts_is_the_batch(backend, monkeypatch):
    """The same gradient, update and loss, where the loss is no matter of chance."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)

    def loss(params, images, key):
        x = images.reshape(len(images), -1) / 16
        return jnp.mean(jnp.sum((x @ params["in"][: x.shape[1]] - 1) ** 2, axis=1)), {}

    optimizer, images = worker.optimizer(), np.stack([worker.batch(i) for i in range(3)])
    dims = int(np.prod(images.shape[2:]))
    params = {"in": jnp.linspace(-1, 1, dims * 5).reshape(dims, 5)}
    whole, parts = (
        make_program(loss, optimizer, 0.9, seed=5, accumulate=n)(
            init_state(jax.tree.map(jnp.copy, params), optimizer), images
        )
        for n in (1, 2)
    )
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_each_part_of_a_batch_has_a_key_and_images_of_its_own():
    def loss(params, images, key):
        draw = jax.random.normal(key)
        seen = jnp.sum(10.0 ** images.ravel())
        return draw * params, {"draw": draw, "seen": seen}

    optimizer = optax.sgd(1.0)
    images = np.arange(4, dtype=np.uint8).reshape(1, 4, 1, 1, 1)
    program = make_program(loss, optimizer, 0.9, seed=5, accumulate=2)
    state, row = program(init_state(jnp.zeros(()), optimizer), images)
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 0), j) for j in range(2)]
    draw = np.mean([float(jax.random.normal(key)) for key in keys])
    assert float(row["draw"][0]) == pytest.approx(draw, rel=1e-6)
    assert float(state.params) == pytest.approx(-draw, rel=1e-6)  # the mean gradient
    assert float(row["seen"][0]) == pytest.approx((101 + 1010) / 2)  # images 0 and 2, 1 and 3


def test_a_step_is_compiled_once_for_all_that_are_to_come(caplog):
    def loss(params, images, key):
        return jnp.sum(params["a"] * jnp.mean(images)), {}

    optimizer, images = worker.optimizer(), np.ones((2, 4, 1, 1, 1), np.uint8)
    state = devices.replicate(init_state({"a": jnp.ones(3)}, optimizer))
    program = make_program(loss, optimizer, 0.9)
    jax.config.update("jax_log_compiles", True)
    try:
        state, row = program(state, images)
        program(state, images)
    finally:
        jax.config.update("jax_log_compiles", False)
    assert caplog.text.count("Finished XLA compilation of jit(step)") == 1
    np.testing.assert_allclose(row["loss"][0], 3)


def test_each_step_has_a_key_of_its_own_and_the_memory_of_those_before():
    def loss(params, images, key, before):
        return 0.0 * params, {"draw": jax.random.normal(key), "memory": before + 1}

    optimizer = worker.optimizer()
    step = make_step(loss, optimizer, 0.9, seed=5)
    state = init_state(jnp.zeros(()), optimizer, jnp.zeros(()))
    state, first = step(state, np.zeros((2, 1, 1, 1, 1), np.uint8))
    state, then = step(state, np.zeros((1, 1, 1, 1), np.uint8))
    assert float(state.memory) == 3 and {*first} == {*then} == {"loss", "grad_norm", "draw"}
    keys = [jax.random.fold_in(jax.random.key(5), i) for i in range(3)]
    expected = [float(jax.random.normal(key)) for key in keys]
    assert [*first["draw"].tolist(), float(then["draw"])] == pytest.approx(expected, rel=1e-6)
    assert len(set(expected)) == 3


def test_one_batch_is_one_step():
    optimizer = worker.optimizer()
    step = make_step(worker.loss, optimizer, 0.9, seed=5)
    state, row = step(init_state(worker.init_params(), optimizer), worker.batch(0))
    again, rows = step(init_state(worker.init_params(), optimizer), worker.batch(0)[None])
    assert int(state.step) == 1 and tree_hash(state) == tree_hash(again)
    assert {name: (value.shape, float(value)) for name, value in row.items()} == {
        name: ((), float(value[0])) for name, value in rows.items()
    }


def test_a_step_is_compiled_once(caplog):
    optimizer = worker.optimizer()
    step = make_step(worker.loss, optimizer, 0.9, seed=5)
    state = init_state(worker.init_params(), optimizer)
    with jax.log_compiles():
        for number in range(3):
            state, _ = step(state, worker.batch(number))
    compiled = [each for each in caplog.messages if each.startswith("Compiling jit(step)")]
    assert len(compiled) == 1


def test_a_loss_may_log_nothing():
    optimizer = worker.optimizer()

    def alone(*arguments):
        return worker.loss(*arguments)[0]

    ends = []
    for loss in (alone, worker.loss):
        step = make_step(loss, optimizer, 0.9, seed=5)
        state, row = step(init_state(worker.init_params(), optimizer), worker.batch(0))
        ends.append((tree_hash(state), float(row["loss"])))
    assert ends[0][0] == ends[1][0]
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-6)
    assert {"loss", "grad_norm"} == set(
        make_step(alone, optimizer, 0.9)(state, worker.batch(1))[1]
    )


def fitted(steps, folder=None, batch=lambda i: worker.batch(i), **more):
    """The average of parameters after so many steps; nothing divides anything."""
    how = {"optimizer": worker.optimizer(), "ema_rate": 0.9, "seed": 5, "every": 4, **more}
    return fit(worker.loss, worker.init_params(), batch, steps=steps, folder=folder, **how)


def test_a_network_of_ones_own_is_trained_by_the_same_steps(tmp_path, capsys):
    step = make_step(worker.loss, worker.optimizer(), 0.9, seed=5)
    state = template()
    for i in range(10):
        state, _ = step(state, worker.batch(i))
    expected = tree_hash(state.ema)
    assert tree_hash(fitted(10)) == expected
    assert capsys.readouterr().out.splitlines()[-1].startswith("step 10/10  loss ")

    def killed(i):
        if i == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return worker.batch(i)

    with pytest.raises(Stopped):
        fitted(10, tmp_path, killed)
    asked = []
    ended = fitted(10, tmp_path, lambda i: asked.append(i) or worker.batch(i))
    assert tree_hash(ended) == expected
    assert asked == [7, 8, 9]
    assert tree_hash(fitted(10, tmp_path)) == expected
    for words, call in {
        "seed 5, not 6": lambda: fitted(10, tmp_path, seed=6),
        r"ema_rate 0\.9, not 0\.8": lambda: fitted(10, tmp_path, ema_rate=0.8),
        "step 10, not 9": lambda: fitted(9, tmp_path),
    }.items():
        with pytest.raises(UserError, match=words):
            call()
    (tmp_path / "checkpoint_10" / "record" / "metadata").write_text("{")
    assert tree_hash(fitted(10, tmp_path)) == expected
    with pytest.raises(UserError, match="loss is nan"):
        fitted(3, batch=lambda i: np.full((4, 2, 2, 1), np.nan))
    for batch in (np.ones(()), np.ones((0,)), {"a": np.ones(0), "b": np.ones(())}):
        with pytest.raises(UserError, match="axis of examples"):
            fitted(3, batch=lambda i, batch=batch: batch)
    with pytest.raises(UserError, match="ema_rate"):
        fitted(3, ema_rate=1.5)
    with pytest.raises(UserError, match=r"\(3,\)"):
        fit(lambda p, x, key: x - p, jnp.zeros(3), lambda i: np.ones(3), steps=1,
            optimizer=optax.sgd(0.1))  # fmt: skip


def test_an_optimizer_without_a_state_goes_on(tmp_path):
    downhill = optax.GradientTransformation(
        lambda params: (), lambda g, state, params=None: (jax.tree.map(lambda x: -x / 9, g), state)
    )
    fitted(3, tmp_path, optimizer=downhill)
    found, whole = fitted(6, tmp_path, optimizer=downhill), fitted(6, optimizer=downhill)
    assert tree_hash(found) == tree_hash(whole)


def test_an_optimizer_gets_the_loss():
    """Uphill the loss is never better, so that each step is half as long as the one before."""
    uphill = optax.chain(optax.scale(1.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=1))
    found = fit(
        lambda p, x, key: p * jnp.mean(x), jnp.zeros(()), lambda i: np.ones(3),
        steps=7, optimizer=uphill, ema_rate=1e-9,
    )  # fmt: skip
    by_hand, state = jnp.zeros(()), uphill.init(jnp.zeros(()))
    for _ in range(7):
        update, state = uphill.update(jnp.ones(()), state, by_hand, value=by_hand)
        by_hand += update
    assert 1 < float(by_hand) < 4 and float(found) == pytest.approx(float(by_hand), rel=1e-6)


def test_the_parameters_that_a_training_begins_with_stay():
    first = {"mean": jnp.zeros(3)}
    for _ in range(2):
        found = fit(
            lambda p, x, key: jnp.mean(jnp.square(p["mean"] - x)), first, lambda i: np.ones(3),
            steps=2, optimizer=optax.sgd(0.1), ema_rate=0.5,
        )  # fmt: skip
        assert not first["mean"].any() and (found["mean"] > 0).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_average_of_parameters_of_16_bits_moves_as_of_32(dtype):
    """The first step takes the parameter from 0 to 1, where it stays."""
    found = fit(
        lambda p, x, key: -p * jnp.mean(x), jnp.zeros((), dtype),
        lambda i: np.full(3, i == 0, np.float32), steps=1000, optimizer=optax.sgd(1.0),
    )  # fmt: skip
    assert found.dtype == dtype and float(found) == pytest.approx(1 - 0.999**1000, rel=4e-3)


def test_the_average_of_many_steps_does_not_shrink():
    """Of parameters that move to and fro; in double precision beside it."""
    steps, rate, first = 3000, 0.9999, np.linspace(0.5, 2, 501, dtype=np.float32)
    moves = np.random.default_rng(0).normal(0, 0.1, steps + 1).astype(np.float32)
    found = fit(
        lambda p, x, key: jnp.sum(p) * jnp.mean(x), jnp.asarray(first),
        lambda i: np.full(1, moves[i] - moves[i + 1]), steps=steps, optimizer=optax.sgd(1.0),
        ema_rate=rate,
    )  # fmt: skip
    average, params = first.astype(float), first
    for move in np.diff(moves):
        params = params + move
        average += (1 - rate) * (params - average)
    assert np.mean(found / average - 1) == pytest.approx(0, abs=2e-6)


def test_lines_and_checkpoints_come_after_so_many_steps(tmp_path, monkeypatch):
    called = []

    class Called(Exception):
        pass

    def looped(*arguments, **options):
        called.append((*arguments, options))
        raise Called

    monkeypatch.setattr(importlib.import_module("scoremle.training.fit"), "Loop", looped)
    for folder in (tmp_path, None):
        with pytest.raises(Called):
            fit(worker.loss, 0.0, lambda i: np.full(1, i), steps=50, every=7, folder=folder,
                optimizer=optax.sgd(0.1), ema_rate=0.5, seed=3)  # fmt: skip
        *_, batches, schedule, options = called.pop()
        assert schedule == loop.Intervals(50, 1, 7, 50, 7, 7) and batches(1)(9) == [9]
        assert options["note"] == {"seed": 3, "ema_rate": 0.5}
        (writer,), store = options["writers"], options["preemption"]
        assert isinstance(writer, writers.Console)
        assert (store and (store.folder, store.keep)) == (folder and (tmp_path, 2))


def test_schedule():
    s = replace(worker.SCHEDULE, n_iters=11, n_jitted_steps=4, log_freq=6, eval_freq=100)
    assert [s.group(i) for i in (0, 4, 8)] == [range(0, 4), range(4, 8), range(8, 11)]
    assert s.group(5) == range(5, 8)  # from an end that was not a boundary, back to the boundaries
    assert s.due(range(0, 4)) == set()
    assert s.due(range(4, 8)) == {"log", "preemption"}
    assert s.due(range(8, 11)) == {"log", "eval", "snapshot", "preemption"}
    with pytest.raises(UserError, match=r"training\.log_freq"):
        replace(s, log_freq=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        state, finished = worker.train(folder)
    assert finished
    return folder, out.getvalue(), tree_hash(state)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


SIX = replace(worker.SCHEDULE, n_iters=6, eval_freq=3)


def template():
    return init_state(worker.init_params(), worker.optimizer())


def test_a_whole_run(whole):
    folder, out, digest = whole
    snapshots = Checkpoints(folder / "checkpoints", keep=None)
    assert snapshots.numbers() == [1, 2, 3, 4]
    assert [snapshots.meta(n)["step"] for n in (1, 2, 3, 4)] == [21, 42, 60, 80]
    assert snapshots.meta(4)["config"] == {"name": "worker"}
    assert tree_hash(snapshots.restore(template()).tree) == digest
    assert Checkpoints(folder / "checkpoints-meta", keep=2).numbers() == [78, 80]
    steps = [row["step"] for row in rows(folder)]
    assert steps == sorted(set(steps)) and {12, 21, 30, 42, 51, 60, 72, 80} <= set(steps)
    assert [row["step"] for row in rows(folder) if "eval_bpd" in row] == [27, 51, 75, 80]
    assert {"loss", "grad_norm", "loss_std"} < set(rows(folder)[0])
    last = out.splitlines()[-1]
    assert last.startswith("step 80/80  loss ") and "  bpd 3.000 +- 0.010  " in last
    assert " steps/s  elapsed " in last


def test_a_finished_run_stays_as_it_is(whole):
    folder, _, digest = whole
    before = (folder / "metrics.jsonl").read_text()
    state, finished = worker.train(folder)
    assert finished and tree_hash(state) == digest
    assert (folder / "metrics.jsonl").read_text() == before


def start(folder: Path, *words: float) -> subprocess.Popen:
    command = [sys.executable, "-m", worker.__name__, str(folder), *map(str, words)]
    tests = Path(worker.__file__).parents[1]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tests)


def wait_for(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert time.monotonic() < deadline, "the worker does not get on"
        time.sleep(0.002)


def wait_for_steps(folder: Path, steps: int) -> None:
    """Until the process has saved this many steps."""
    store = Checkpoints(folder / "checkpoints-meta", keep=2)
    wait_for(lambda: (store.latest() or 0) >= steps)


@pytest.mark.long
def test_killed_at_any_moment_it_ends_with_the_same_bits(whole, tmp_path):
    folder, _, digest = whole
    rng = np.random.default_rng()
    for steps in (7, 28):
        process = start(tmp_path, 0.02)
        wait_for_steps(tmp_path, steps)
        time.sleep(rng.uniform(0, 0.25))
        process.kill()
        process.communicate()
    process = start(tmp_path, 0, 57)
    wait_for((tmp_path / "checkpoints-meta" / "checkpoint_57.new").is_dir)
    # It went on meanwhile.
    wait_for(lambda: '"step": 60' in (tmp_path / "metrics.jsonl").read_text())
    process.kill()
    process.communicate()
    process = start(tmp_path)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert f"finished=True hash={digest}" in out
    assert "resuming from step" in out
    assert rows(tmp_path) == rows(folder)
    for number in (1, 2, 3, 4):
        a, b = (Checkpoints(f / "checkpoints", keep=None) for f in (folder, tmp_path))
        assert tree_hash(a.restore(template(), number)) == tree_hash(b.restore(template(), number))


@pytest.mark.slow
def test_sigterm_saves_and_says_so(whole, tmp_path):
    process = start(tmp_path, 0.05)
    wait_for_steps(tmp_path, 7)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    store = Checkpoints(tmp_path / "checkpoints-meta", keep=2)
    saved = f"saved step {store.latest()} to {store.path(store.latest())}; run the same command"
    assert saved in out and "finished=False" in out
    usual = signal.getsignal(signal.SIGTERM)
    state, finished = worker.train(tmp_path)
    assert finished and tree_hash(state) == whole[2]
    assert signal.getsignal(signal.SIGTERM) is usual


def test_ctrl_c_within_a_callback_saves_what_was_checked(tmp_path):
    """A second one has its usual effect at once."""
    before = signal.getsignal(signal.SIGINT)

    def interrupt(state, step):
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is before
        return {"loss": 1.0}

    _, finished = worker.train(tmp_path, on_eval=interrupt)
    assert not finished
    assert Checkpoints(tmp_path / "checkpoints-meta", keep=2).latest() == 30
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_is_ignored_stays_so(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def interrupt(state, step):
        signal.raise_signal(signal.SIGINT)
        return {}

    try:
        schedule = replace(SIX, n_iters=9)
        _, finished = worker.train(tmp_path, schedule=schedule, on_eval=interrupt)
        assert finished and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_beside_the_main_one_trains_without_signals(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        state, finished = pool.submit(worker.train, tmp_path, schedule=SIX).result()
    assert finished and int(state.step) == 6


def test_what_is_stopped_and_keeps_nothing_promises_nothing(tmp_path, capsys):
    def batch(step):
        if step == 1:
            signal.raise_signal(signal.SIGTERM)
        return worker.batch(step)

    _, finished = worker.train(tmp_path, schedule=SIX, batch=batch, preemption=None)
    assert not finished and "saved" not in capsys.readouterr().out


def test_numbers_that_were_not_written_are_whole(tmp_path):
    worker.train(tmp_path, schedule=SIX)
    store = Checkpoints(tmp_path / "checkpoints-meta", keep=2)
    state, meta, number = store.restore(template())
    kept = {"loss": [1.0], "grad_norm": []}
    store.save(number, state, meta | {loop.UNWRITTEN: kept})
    with pytest.raises(UserError, match=f"checkpoint_6: {loop.UNWRITTEN}"):
        worker.train(tmp_path, schedule=replace(SIX, n_iters=8))


def test_a_batch_divides_over_all_devices(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    with pytest.raises(UserError, match=r"batch_size=4 .*3 devices"):
        loop._stack(worker.batch, range(2))


def test_a_damaged_newest_checkpoint_costs_some_steps_and_nothing_else(whole, tmp_path, caplog):
    worker.train(tmp_path, schedule=replace(worker.SCHEDULE, n_iters=45))
    store = Checkpoints(tmp_path / "checkpoints-meta", keep=2)
    assert store.numbers() == [42, 45]
    (store.path(45) / "record" / "metadata").write_text("{")
    state, _ = worker.train(tmp_path)
    assert "checkpoint_45 is damaged" in caplog.text
    assert tree_hash(state) == whole[2]


# Within a call, at its first step, and where something is due at the boundary anyway.
@some("stops", [(16,), (0, 31, 38, 65), (20,), (6, 41)], quick=[(0, 31, 38, 65), (20,)])
def test_the_log_of_a_stopped_run_is_that_of_an_uninterrupted_one(whole, stops, tmp_path, capsys):
    left = set(stops)

    def batch(step):
        if step in left:
            left.remove(step)
            signal.raise_signal(signal.SIGTERM)
        return worker.batch(step)

    finished = False
    for _ in range(len(stops) + 1):
        state, finished = worker.train(tmp_path, batch=batch)
    assert finished and not left and tree_hash(state) == whole[2]
    assert capsys.readouterr().out.count("; run the same command to resume") == len(stops)
    assert rows(tmp_path) == rows(whole[0])


def test_what_a_stopped_run_had_not_written_is_written_at_an_end_moved_back(tmp_path):
    def batch(step):
        if step == 16:
            signal.raise_signal(signal.SIGTERM)
        return worker.batch(step)

    worker.train(tmp_path, batch=batch)
    before = rows(tmp_path)[-1]["step"]
    worker.train(tmp_path, schedule=replace(worker.SCHEDULE, n_iters=18))
    assert (before, rows(tmp_path)[-1]["step"]) == (15, 18)


def test_a_row_has_the_means_and_the_largest(tmp_path):
    worker.train(tmp_path, schedule=replace(worker.SCHEDULE, n_iters=6, log_freq=6))
    step = make_step(worker.loss, worker.optimizer(), 0.9, seed=5)
    _, out = step(template(), np.stack([worker.batch(i) for i in range(6)]))
    (row,) = rows(tmp_path)
    for name in ("loss", "grad_norm", "loss_std"):
        assert row[name] == pytest.approx(float(np.mean(out[name])), rel=1e-6)
    for name in ("loss", "grad_norm"):
        assert row[f"{name}_max"] == pytest.approx(float(np.max(out[name])), rel=1e-6)


def test_an_end_moved_back_still_gets_its_snapshot(tmp_path):
    def interrupt(state, step):
        signal.raise_signal(signal.SIGINT)
        return {}

    worker.train(tmp_path, on_eval=interrupt)
    _, finished = worker.train(tmp_path, schedule=replace(worker.SCHEDULE, n_iters=30))
    assert finished
    assert Checkpoints(tmp_path / "checkpoints", keep=None).meta(1)["step"] == 30


def poisoned_loss(params, images, key, sound=worker.loss):
    """Infinite at the step whose images are all 255."""
    value, more = sound(params, images, key)
    return jnp.where((images == 255).all(), jnp.inf, value), more


def loss_with_a_cliff(params, images, key, sound=worker.loss):
    """Finite, but its gradient is infinite at the step whose images are all 255."""
    value, more = sound(params, images, key)

    def root(p):
        return jnp.sqrt(p - jax.lax.stop_gradient(p))

    cliff = jax.lax.cond((images == 255).all(), root, jnp.zeros_like, params["in"][0, 0])
    return value + cliff, more


POISONED = {"loss": poisoned_loss, "grad_norm": loss_with_a_cliff}


# A gradient at the last step before it is looked at, and before that: then the next loss is not
# finite either, and the gradient is what is named.
@pytest.mark.parametrize(
    ("bad_step", "what"),
    [(4, "loss"), (38, "loss"), (8, "grad_norm"), (41, "grad_norm"), (4, "grad_norm"),
     (38, "grad_norm")],
)  # fmt: skip
def test_a_loss_or_a_gradient_that_is_not_finite(tmp_path, monkeypatch, bad_step, what):
    monkeypatch.setattr(worker, "loss", POISONED[what])
    original = worker.batch

    def batch(step):
        return np.full_like(original(step), 255) if step == bad_step else original(step)

    with pytest.raises(UserError, match=f"{what} is inf") as error:
        worker.train(tmp_path, batch=batch)
    message = str(error.value)
    for advice in ("learning rate", "warm-up", "smallest time"):
        assert advice in message
    store = Checkpoints(tmp_path / "checkpoints-meta", keep=2)
    if bad_step < 10:
        assert "no checkpoint yet" in message and store.numbers() == []
    else:
        assert f"checkpoint is {store.path(36)}" in message
        assert store.latest() == 36
        assert max(row["step"] for row in rows(tmp_path)) == 36


def save_with_nan(store, number, state):
    """A checkpoint of another program, say: its sum is right and a number in it is not."""
    params = {**state.params, "out": state.params["out"].at[0, 0].set(jnp.nan)}
    store.save(number, state._replace(params=params, step=jnp.int32(number)), {"step": number})


def test_a_checkpoint_with_nan_is_never_gone_on_from(whole, tmp_path, caplog):
    worker.train(tmp_path, schedule=replace(worker.SCHEDULE, n_iters=45))
    store = Checkpoints(tmp_path / "checkpoints-meta", keep=2)
    save_with_nan(store, 48, store.restore(template()).tree)
    state, _ = worker.train(tmp_path)
    assert "checkpoint_48 has" in caplog.text
    assert tree_hash(state) == whole[2]

    other = Checkpoints(tmp_path / "other" / "checkpoints-meta", keep=2)
    save_with_nan(other, 9, template())
    with pytest.raises(UserError, match="checkpoint_9 has"):
        worker.train(tmp_path / "other")


def test_parameters_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    """Where losses and gradients are: an update that overflows, in the last step before it."""
    make = worker.make_step

    def broken(*arguments, **options):
        step = make(*arguments, **options)

        def wrapped(state, batches):
            state, metrics = step(state, batches)
            if int(state.step) == 42:
                state = state._replace(ema=jax.tree.map(lambda e: e * jnp.inf, state.ema))
            return state, metrics

        return wrapped

    monkeypatch.setattr(worker, "make_step", broken)
    with pytest.raises(UserError, match="ema/in"):
        worker.train(tmp_path)
    assert Checkpoints(tmp_path / "checkpoints-meta", keep=2).latest() == 36
    assert Checkpoints(tmp_path / "checkpoints", keep=None).latest() == 1


class Reordered:
    """Batches whose step 38 is poisoned in the first so many orders."""

    def __init__(self, poisoned):
        self.poisoned = poisoned

    def __call__(self, times):
        def batch(step):
            images = worker.batch(step + 1000 * times)
            bad = step == 38 and times < self.poisoned
            return np.full_like(images, 255) if bad else images

        return batch


def test_rolling_back_to_the_last_good_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(worker, "loss", poisoned_loss)
    order = Reordered(2)
    state, finished = worker.train(tmp_path, batches=order, limit=3)
    assert finished
    told = [line for line in capsys.readouterr().out.splitlines() if "back to step" in line]
    place = tmp_path / "checkpoints-meta" / "checkpoint_36"
    assert told == [
        f"loss is inf at step 38: back to step 36, {place}, with another order of the images"
        f" ({k} of at most 3 times)" for k in (1, 2)
    ]  # fmt: skip
    steps = [row["step"] for row in rows(tmp_path)]
    assert steps == sorted(set(steps)) and steps[-1] == 80
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path))

    # Images of the first order up to 36, then those of the third; also by a run that is stopped.
    second = tmp_path / "second"

    def stopping(times):
        def batch(step):
            if (times, step) == (2, 50):
                signal.raise_signal(signal.SIGTERM)
            return order(times)(step)

        return batch

    _, finished = worker.train(second, batches=stopping, limit=3)
    assert not finished
    again, finished = worker.train(second, batches=order)
    assert finished and tree_hash(again) == tree_hash(state)
    assert rows(second) == rows(tmp_path)


def test_rolling_back_ends(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(worker, "loss", poisoned_loss)
    order = Reordered(9)
    with pytest.raises(UserError, match="loss is inf"):
        worker.train(tmp_path, batches=order, limit=2)
    assert capsys.readouterr().out.count("back to step 36") == 2


def test_a_loss_that_leaps_gets_a_warning(caplog):
    watch = loop._Watch()
    for step, loss in enumerate([1.0, 0.9, 1.1, 8.0, 0.9, 11.0, 12.0, 1.0, -5.0, 30.0]):
        watch(step, loss)
    told = [record.getMessage().split(":")[0] for record in caplog.records]
    assert told == [
        "loss 11 up to step 5 is more than 10 times what it was (1)",
        "loss 30 up to step 9 is more than 10 times what it was (1)",
    ]
    caplog.clear()
    watch = loop._Watch()
    for step, loss in enumerate([-3.0, -2.9, 5.0, -40.0]):  # a log-density below zero
        watch(step, loss)
    assert not caplog.records


@pytest.mark.parametrize(
    ("before", "loss", "high"),
    [
        ([2.0], 20.0, False), ([2.0], 20.1, True), ([], 1e9, False), ([0.0], 1.0, False),
        ([1.0] * 6 + [2.0] * 5, 19.0, True),  # of the last ten the median is 1.5
        ([1.0] + [2.0] * 10, 19.0, False), ([1.0, 3.0], 20.0, False), ([1.0, 3.0], 20.1, True),
    ],
)  # fmt: skip
def test_ten_times_the_median_of_ten_rows_is_no_leap(before, loss, high, caplog):
    watch = loop._Watch()
    for step, each in enumerate([*before, loss]):
        watch(step, each)
    assert len(caplog.records) == high


@pytest.mark.parametrize("field", [each.name for each in fields(loop.Intervals)])
def test_an_interval_is_one_step_or_more(field):
    of = dict.fromkeys((each.name for each in fields(loop.Intervals)), 1)
    assert loop.Intervals(**of).due(range(0, 1)) == {"log", "eval", "snapshot", "preemption"}
    with pytest.raises(UserError, match=rf"training\.{field} must"):
        loop.Intervals(**of | {field: 0})


def test_rows_of_a_killed_run_are_not_repeated(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 1}\n{"step": 20, "loss": 2}\n{"step": 30, "lo')
    writer = writers.JsonLines(path)
    writer.rewind(15)
    writer.write(18, {"loss": 3.0, "eval_bpd": float("nan")})
    assert rows(tmp_path) == [{"step": 10, "loss": 1}, {"step": 18, "loss": 3.0, "eval_bpd": None}]


def test_lines_say_what_is_done_and_when_bits_were_measured(capsys):
    lines = writers.Console(10, uniform=4.0)
    lines.rewind(0)
    lines.at(1)
    early, later = {"eval_bpd": 9.0}, {"eval_bpd": 2.5, "eval_bpd_stderr": 0.1}
    for step, row in ((2, early), (4, later), (6, {})):
        lines.write(step, {"loss": 1.0, **row})
        lines.at(step, "measuring")
    first, measuring, second, third = capsys.readouterr().out.splitlines()
    assert measuring == "measuring"
    assert "  bpd 9.000 (too early: above uniform)" in first
    # The first measurement compiles: no speed is told from a time with it.
    assert "  bpd 2.500 +- 0.100  elapsed" in second
    assert "  bpd 2.500 +- 0.100  (step 4)  " in third


@pytest.mark.slow
def test_several_devices_share_the_batch(whole):
    """Four devices: the numbers of one, and a batch that does not divide is refused."""
    code = """
import sys, tempfile, pathlib, numpy as np
from helpers import resume_worker as worker
from scoremle.errors import UserError
state, _ = worker.train(pathlib.Path(tempfile.mkdtemp()))
np.save(sys.argv[1], np.asarray(state.params["in"]))
try:
    worker.train(pathlib.Path(tempfile.mkdtemp()), batch=lambda step: worker.batch(step)[:3])
except UserError as error:
    print(error)
"""
    file = whole[0] / "in.npy"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        env={**environment, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        capture_output=True,
        text=True,
    )
    assert "batch_size=3" in done.stdout, done.stderr
    store = Checkpoints(whole[0] / "checkpoints", keep=None)
    one = store.restore(template()).tree.params["in"]
    np.testing.assert_allclose(np.load(file), one, rtol=1e-3, atol=1e-4)


def squares(p, x, key):
    return jnp.mean(jnp.square(p - x))


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("loss", {"loss": None}),
        ("loss", {"loss": lambda p, x, key: None}),
        ("loss", {"loss": lambda p, x, key: jnp.sum(x).astype(int)}),
        ("batch must", {"batch": np.ones(3)}),
        (r"batch\(i\)", {"batch": lambda i: None}),
        (r"batch\(i\)", {"batch": lambda i: 1.0}),
        (r"batch\(i\)", {"batch": lambda i: (np.ones(3), np.ones(2))}),
        ("optimizer", {"optimizer": optax.adam}),
        ("optimizer", {"optimizer": None}),
        ("value_fn", {"optimizer": optax.lbfgs()}),
        ("params", {"params": np.arange(3)}),
        ("params", {"params": {}}),
        ("folder", {"folder": 3}),
        ("folder", {"folder": ""}),
    ],
)
def test_arguments_of_a_training_are_checked(words, changed, tmp_path, monkeypatch, unchecked):
    monkeypatch.chdir(tmp_path)
    given = {"loss": squares, "params": jnp.zeros(()), "batch": lambda i: np.ones(3), "steps": 2}
    with pytest.raises(UserError, match=words):
        fit(**(given | {"optimizer": optax.sgd(0.1)} | changed))
    assert not [*tmp_path.iterdir()]
