"""A network trained in bfloat16 is measured in float32, and is as good as one trained so."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.tiny_runs import evaluate

from scoremle.experiment.build import build
from scoremle.experiment.config import published_config
from scoremle.experiment.run_eval import cost_of_precision
from scoremle.nn.applied import matmul_precision
from scoremle.training.program import make_program

FIELDS = {
    "model.nf": 4, "model.ch_mult": (1,), "model.attn_resolutions": (8,), "model.ema_rate": 0.9,
    "training.batch_size": 32, "optim.lr": 1e-2, "optim.warmup": 20,
}  # fmt: skip
STEPS = 100
DTYPES = ("float32", "bfloat16")


@cache
def digits(trained_in, measured_in="float32"):
    dtypes = {"model.dtype": trained_in, "eval.dtype": measured_in}
    return build(published_config("digits", FIELDS | dtypes))


@cache
def trained(dtype):
    training = digits(dtype).training
    program = make_program(training.objective.loss, training.optimizer, training.ema_rate)
    state = training.init_state()
    for step in range(STEPS):
        state, _ = program(state, training.data.batch(step)[None])
    return state


def program_of(experiment):
    """The text of the noise prediction's program, as it is evaluated."""
    params = experiment.training.template.params
    x, t = jnp.zeros((2, 8, 8, 1)), jnp.full(2, 0.5)
    noise = jax.jit(lambda params: experiment.model.noise(params)(x, t))
    return noise.lower(params).as_text()


def test_what_must_keep_its_digits_is_float32():
    training = digits("bfloat16").training
    program = make_program(training.objective.loss, training.optimizer, training.ema_rate)
    state, _ = program.lower(training.template, training.data.batch(0)).out_info
    moments = optax.tree.get(state.opt_state, "mu"), optax.tree.get(state.opt_state, "nu")
    leaves = jax.tree.leaves((state.params, state.ema, moments))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def test_a_network_trained_in_bfloat16_is_measured_in_float32():
    half, whole = digits("bfloat16"), digits("float32")
    assert half.model == whole.model and half.model.precision == "float32"
    assert "bf16" not in program_of(half)
    x = jnp.asarray(half.data.test[:4])
    params, key = half.training.template.params, jax.random.key(0)
    assert "bf16" in jax.jit(half.training.objective.loss).lower(params, x, key).as_text()


def test_another_precision_is_used_and_stated():
    asked = digits("float32", "bfloat16")
    assert asked.model.precision == "bfloat16" and "bf16" in program_of(asked)
    assert asked.training.template == digits("float32").training.template


def test_products_are_of_the_highest_precision_by_default():
    model = digits("float32")
    found = program_of(model)
    products = found.count("convolution(") + found.count("dot_general ")
    assert products > 10 and found.count("HIGHEST") == 2 * products  # of either factor
    with jax.default_matmul_precision("tensorfloat32"):
        assert "HIGHEST" not in program_of(model)
        assert model.model.precision == "float32, matrix products tensorfloat32"


def test_the_cost_of_less_precision_is_measured_on_a_few_images(tmp_path):
    """By a model that is off by a tenth of the image, and one in full that is not."""
    experiment = digits("float32")
    model = experiment.model.model(experiment.training.init_state().ema)
    full, images, asked = replace(model, eps=2 * model.eps), np.arange(16), []

    def score(by, parts, label):
        asked.append((by is full, matmul_precision(), label, parts))
        return SimpleNamespace(values={"bpd": 2.0 + images[None] / 10 * (by is model)})

    with jax.default_matmul_precision("bfloat16"):
        found = cost_of_precision(score, model, full, tmp_path)
    spread = np.std(np.arange(16) / 10, ddof=1) / 4
    wanted = {"mean": 0.75, "stderr": spread, "largest": 1.5, "images": 16}
    assert found == pytest.approx(wanted)
    assert [each[:2] for each in asked] == [(False, "bfloat16"), (True, "highest")]
    assert asked[0][2:] != asked[1][2:]
    assert all(parts == tmp_path / label for _, _, label, parts in asked)


@pytest.mark.slow
@pytest.mark.long
def test_an_evaluation_in_bfloat16_says_what_that_costs(tiny, capfd):
    half, whole = (
        evaluate(tiny, dtype, eval__dtype=dtype, eval__num_images=12)[1]["exact_test_ckpt_2"]
        for dtype in ("bfloat16", "float32")
    )
    cost, gap = half["precision_cost"], half["mean"] - whole["mean"]
    assert cost["images"] == 12 and "precision_cost" not in whole
    assert 0 < abs(cost["mean"]) <= abs(cost["largest"]) < 0.1
    assert abs(gap - cost["mean"]) < 0.02  # of other noise
    told = " ".join(capfd.readouterr().out.split())
    assert told.count("in bfloat16 bits/dim of 12 images are off from those in float32") == 1


@pytest.mark.long
def test_bits_of_both_trainings_are_within_their_error():
    """Of the same images, noise and times, measured in float32; both have learned something."""
    experiment = digits("float32")
    x, key = jnp.asarray(experiment.data.test[:120]), jax.random.key(0)
    measure = jax.jit(experiment.training.objective.measure)
    whole, half = (measure(trained(dtype).ema, x, key) for dtype in DTYPES)
    assert abs(whole["bpd"] - half["bpd"]) < whole["bpd_stderr"]
    assert max(whole["bpd"], half["bpd"]) < 3.9 < np.log2(17)
    leaves = zip(*(jax.tree.leaves(trained(dtype).ema) for dtype in DTYPES), strict=True)
    assert any(np.any(a != b) for a, b in leaves)
