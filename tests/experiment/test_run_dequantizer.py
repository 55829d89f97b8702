"""From end to end: a flow dequantizer trained, resumed and evaluated with, and the other ways."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.oracles import SDES, schedule64
from helpers.reported import result
from helpers.tiny_runs import PROTOCOL, evaluate, mistake, npz, run

import scoremle
from scoremle.evaluation.result import Result
from scoremle.experiment import run_eval
from scoremle.experiment.workdir import chosen_checkpoints
from scoremle.files import read_sealed, write_sealed
from scoremle.likelihood.images import ByOde
from scoremle.likelihood.record import Likelihood
from scoremle.training.checkpoints import Checkpoints

FLOW = {
    "deq__filters": 4, "deq__components": 2, "deq__blocks": 1, "deq__couplings": 1,
    "deq__heads": 2, "deq__n_iters": 20,
}  # fmt: skip
FEW = {"eval__num_images": 60, "eval__batch_size": 60}
FOLDER = "flowpp_dequantizer"


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """The tiny model, with a flow dequantizer for its first checkpoint."""
    workdir = tmp_path_factory.mktemp("flow") / "workdir"
    shutil.copytree(tiny.workdir, workdir)
    assert run("train_deq", workdir, eval__ckpt_id=1, **FLOW) == 0
    return tiny._replace(workdir=workdir)


def hash_of(workdir, name):
    return json.loads((workdir / FOLDER / name / "record/metadata").read_text())["tree_hash"]


@pytest.mark.slow
def test_it_leaves_what_a_training_leaves(trained):
    place = trained.workdir / FOLDER
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    # The loss in nats and in bits/dim are one number, up to the constant of 17 levels on [-1, 1].
    for row in rows:
        bpd = row["loss"] / (64 * np.log(2)) + np.log2(17 / 2)
        assert row["bpd"] == pytest.approx(bpd, abs=1e-3)
    assert "eval_bpd" in rows[1]
    store = Checkpoints(place / "checkpoints", keep=None)
    assert store.numbers() == [1, 2]
    meta, of = store.meta(2), json.loads((place / "score_model.json").read_text())
    assert (meta["step"], meta["score_checkpoint"], of["score_step"]) == (20, 1, 10)
    assert of["score_hash"] == meta["score_hash"]


@pytest.mark.long
def test_it_goes_on_and_ends_with_the_same_parameters(trained, tmp_path, capsys):
    workdir = tmp_path / "workdir"
    shutil.copytree(trained.workdir, workdir)
    for newest in ("checkpoints/checkpoint_2", "checkpoints-meta/checkpoint_20"):
        shutil.rmtree(workdir / FOLDER / newest)
    assert run("train_deq", workdir, eval__ckpt_id=1, **FLOW) == 0
    assert "resuming from step 10" in capsys.readouterr().out
    name = "checkpoints/checkpoint_2"
    assert hash_of(workdir, name) == hash_of(trained.workdir, name)


def test_it_does_not_go_on_for_another_score_model_or_another_flow(trained, capfd):
    # Unset, the newest checkpoint is meant; and the flow was begun for the first.
    line = mistake(capfd, "train_deq", trained.workdir, **FLOW)
    assert "for checkpoint 1" in line and "set --config.eval.ckpt_id=1" in line
    of = trained.workdir / FOLDER / "score_model.json"
    note = read_sealed(of, "")
    write_sealed(of, note | {"score_hash": "of the one before"})
    line = mistake(capfd, "train_deq", trained.workdir, eval__ckpt_id=1, **FLOW)
    assert "name another --deq-folder" in line and "ckpt_id" not in line
    write_sealed(of, note)
    other = FLOW | {"deq__filters": 8}
    line = mistake(capfd, "train_deq", trained.workdir, eval__ckpt_id=1, **other)
    assert "deq.filters was" in line


@pytest.mark.long
def test_evaluation_with_the_newest_flow_or_another(trained):
    _, results = evaluate(trained, "flow", eval__dequantizer=True, **FLOW, **FEW)
    result = results["exact_variational_test_ckpt_2"]
    facts = PROTOCOL | {
        "dequantizer": "variational", "dequantizer_checkpoint": 2, "dequantizer_step": 20,
        "full_pass": False, "images": 60, "passes": 1, "deq_folder": FOLDER,
    }  # fmt: skip
    assert {name: result[name] for name in facts} == facts
    asked = {"eval__dequantization": "Variational", "eval__deq_ckpt": 1}
    _, results = evaluate(trained, "flow", **asked, **FLOW, **FEW)
    other = results["exact_variational_test_ckpt_2"]
    assert (other["dequantizer_checkpoint"], other["dequantizer_step"]) == (1, 10)
    assert other["dequantizer_ema_hash"] != result["dequantizer_ema_hash"]
    assert other["mean"] != result["mean"]


def test_a_flow_of_another_kind_is_named(trained, capfd):
    other = FLOW | {"deq__heads": 1}  # which no shape of a parameter tells
    line = mistake(capfd, "eval", trained.workdir, eval__dequantizer=True, **other)
    assert "deq.heads was" in line


@pytest.mark.long
def test_several_samples_make_a_tighter_bound(tiny, capfd):
    few = FEW | {"eval__probes": 2}
    _, one = evaluate(tiny, "several", **few)
    folder, several = evaluate(tiny, "several", eval__importance_samples=4, **few)
    result = several["exact_k4_test_ckpt_2"]
    assert (result["importance_samples"], result["dequantizer"]) == (4, "uniform")
    assert "importance-weighted bound by the ODE, 4 draws" in result["estimator"]
    values = npz(folder / "exact_k4_test_ckpt_2.npz")
    assert ((values["effective_draws"] >= 1) & (values["effective_draws"] <= 4.001)).all()
    assert (values["nfe"] == 4 * one["exact_test_ckpt_2"]["mean_nfe"]).all()
    assert (values["probe_bias"] < 1e-6).all()
    gain = npz(folder / "exact_test_ckpt_2.npz")["bpd"] - values["bpd"]
    assert gain.mean() > 2 * gain.std() / np.sqrt(gain.size)


def test_optimism_is_warned_of_where_it_is_seen(caplog):
    def warn(bias, stderr):
        facts = result("exact_k10", np.ones((1, 40)), mean_probe_bias=bias, stderr=stderr)
        run_eval._warn_of_optimism(Result.read("x", facts, Path()))

    for bias, stderr in ((0.004, 0.1), (0.0009, 0.005), (0.0, None)):
        warn(-bias, stderr)
    assert not caplog.records
    for bias, stderr in ((0.006, 0.1), (0.0011, 0.005)):
        with caplog.at_level(logging.WARNING):
            warn(-bias, stderr)
        assert f"too low by about {bias:.4f} bits/dim" in caplog.records[-1].getMessage()
    warn(None, 0.1)
    assert "one random probe" in caplog.records[-1].getMessage()


@pytest.mark.long
def test_truncated_normal_and_the_discrete_decoder(tiny):
    _, results = evaluate(tiny, "others", eval__dequantization="truncated_normal", **FEW)
    normal = results["exact_truncated_normal_test_ckpt_2"]
    bound = {"eval__bound": True, "eval__bound_draws": 16, "eval__dequantization": "none"}
    folder, results = evaluate(tiny, "others", **bound, **FEW)
    discrete = results["bound_none_test_ckpt_2"]
    # Half of one of 17 levels on [-1, 1] is three standard deviations of the noise there.
    alpha, sigma = schedule64(SDES["vp"], normal["start"])
    assert 1 / 17 / (sigma / alpha) == pytest.approx(3, rel=1e-3)
    assert discrete["start"] == normal["start"] and discrete["dequantizer"] == "none"
    values = npz(folder / "bound_none_test_ckpt_2.npz")
    total = values["prior"] + values["diffusion"] + values["reconstruction"]
    np.testing.assert_allclose(values["bpd"], total, rtol=1e-4)


def test_the_density_of_scaled_data(tiny, monkeypatch, unchecked):
    """log p of y = z / alpha at a time is that of z there, and the volume of the scaling."""

    def standard_normal(noise, sde, x, key, *, eps, divergence, solver):
        asked.append(eps)
        zeros = jnp.zeros(len(x))
        log_prob = -jnp.sum(jnp.square(x), axis=(1, 2, 3)) / 2
        return x, Likelihood(log_prob, x, zeros, zeros, zeros[None], zeros, zeros == 0)

    asked = []
    monkeypatch.setattr("scoremle.likelihood.images.along_flow", standard_normal)
    model, x = scoremle.load(tiny.workdir), np.full((2, 8, 8, 1), 12, np.uint8)
    y = np.asarray(model.pixels.encode(x, 0.75))
    for start in (None, 0.3):
        keys = jax.random.split(jax.random.key(0), 2)
        found = ByOde()(model, SameNoise(start), x, keys)["bpd"]
        alpha, _ = schedule64(SDES["vp"], start or 1e-5)
        log_prob = -np.square(alpha * y).sum(axis=(1, 2, 3)) / 2 + 64 * np.log(alpha)
        expected = scoremle.bits_per_dim(log_prob, model.pixels, 64)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert asked == [1e-5, 0.3]


@dataclasses.dataclass(frozen=True)
class SameNoise:
    """A dequantizer whose noise is 0.75."""

    start: float | None

    def __call__(self, keys, x):
        return jnp.full(x.shape, 0.75), jnp.zeros(len(x))


# Waiting


def test_waiting_gives_each_checkpoint_when_it_is_there(tmp_path, monkeypatch, capsys):
    store = Checkpoints(tmp_path, keep=None)
    store.path(1).mkdir()
    coming = [2, 4, 3]
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        store.path(coming.pop(0)).mkdir()

    monkeypatch.setattr("scoremle.experiment.workdir.time.sleep", sleep)
    chosen = iter(chosen_checkpoints(store, 1, 4, wait=True))
    assert next(chosen) == 1 and slept == []
    assert [*chosen] == [2, 3, 4]
    assert len(slept) == 3
    assert capsys.readouterr().out == f"waiting for {store.path(2)}\nwaiting for {store.path(3)}\n"


def test_without_waiting_what_is_not_there_is_left_out(tmp_path):
    store = Checkpoints(tmp_path, keep=None)
    for number in (1, 3):
        store.path(number).mkdir()
    assert [*chosen_checkpoints(store, 1, 4)] == [1, 3]
