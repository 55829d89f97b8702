"""Predictions and time inputs of networks: round trips on a Gaussian, and one program for all.

The targets are written here from their definitions, in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.oracles import SDES, Gaussian, log_snr64, schedule64
from jax.tree_util import Partial

from scoremle import ScoreModel
from scoremle.core.prediction import PREDICTIONS, TIME_INPUTS, RangedNoise, noise_fn, score_of
from scoremle.core.schedules import Cosine, Discrete, LinearLogSNR
from scoremle.core.sde import SDE, VP

DATA = Gaussian.random(3, 4)
SIGMA_DATA = 0.7
TIMES = np.array([0.01, 0.2, 0.5, 0.9])
every_sde = pytest.mark.parametrize("name", SDES)


def target(prediction, x, eps, alpha, sigma):
    """What the optimal network would give, from the noise prediction ``eps`` at ``x``."""
    x_0 = (x - sigma * eps) / alpha
    if prediction == "edm":
        noise = sigma / alpha  # of y = x / alpha
        skip = SIGMA_DATA**2 / (noise**2 + SIGMA_DATA**2)
        out = noise * SIGMA_DATA / np.sqrt(noise**2 + SIGMA_DATA**2)
        return (x_0 - skip * x / alpha) / out
    return {
        "eps": eps, "score": -eps / sigma, "x_0": x_0, "v": alpha * eps - sigma * x_0,
        "u": eps - x_0, "unit_u": (eps - x_0) / np.sqrt(2), "-u": x_0 - eps,
    }[prediction]  # fmt: skip


@every_sde
@pytest.mark.parametrize("prediction", [*PREDICTIONS, "edm"])
@pytest.mark.parametrize("bits", [32, 64])
def test_round_trips_to_the_noise(prediction, name, bits):
    """A network that gives the target at its input gives the exact noise prediction back."""
    sde = SDES[name]
    with jax.enable_x64(bits == 64):
        t = jnp.asarray(TIMES, f"float{bits}")
        alpha, sigma = (c[:, None] for c in schedule64(sde, np.asarray(t, np.float64)))
        x = alpha * DATA.draw(0, 4) + sigma * np.random.default_rng(1).normal(size=(4, 4))
        scores = (x - alpha * DATA.mu) @ DATA.V / (alpha**2 * DATA.w + sigma**2)
        eps = sigma * scores @ DATA.V.T
        output = target(prediction, x, eps, alpha, sigma)
        shown = x / np.sqrt(sigma**2 + (SIGMA_DATA * alpha) ** 2) if prediction == "edm" else x

        def network(x, label):
            np.testing.assert_allclose(x, shown, rtol=1e-5 if bits == 32 else 1e-12)
            np.testing.assert_allclose(label, log_snr64(sde, t), rtol=1e-4, atol=1e-5)
            return jnp.asarray(output, x.dtype)

        noise = noise_fn(network, sde, prediction=prediction, sigma_data=SIGMA_DATA)
        found = np.asarray(noise(jnp.asarray(x, t.dtype), t))
    assert found.dtype == t.dtype
    # x_0 loses the digits of x / sigma: the rest don't.
    digits = (3e-7 if bits == 32 else 1e-14) * (1 + (prediction == "x_0") / sigma)
    np.testing.assert_array_less(np.abs(found - eps), 10 * digits * (1 + np.abs(eps)))


def test_edms_noise_keeps_its_digits_near_the_data():
    """Where x_0 has lost them: the noise is 1e-4 of the data, and known to 3e-6."""
    sde, t = SDE("ve", Cosine(-10.0, 2 * np.log(1e4)), 1.0), jnp.zeros(1)
    sigma = np.asarray(sde.sigma(t), np.float64)
    x, eps = np.array([[0.8, -0.3, 0.5, 0.1]]), np.array([[1.0, -2.0, 0.5, 0.3]])
    output = target("edm", x, eps, 1.0, sigma)
    noise = noise_fn(
        lambda x, label: jnp.asarray(output, x.dtype), sde, prediction="edm", sigma_data=0.7
    )
    np.testing.assert_allclose(jax.jit(noise)(jnp.asarray(x, jnp.float32), t), eps, rtol=3e-6)


@pytest.mark.parametrize("told", TIME_INPUTS)
def test_the_time_input_of_the_network(told):
    betas = np.linspace(1e-3, 0.2, 50)
    sde = SDE("vp", Discrete.of_betas(betas), 1.0)
    t = (np.array([0.0, 7.0, 20.5, 49.0]) + 1) / 50
    alpha_bar = np.interp(np.array([0, 7, 49]), np.arange(50), np.cumprod(1 - betas))
    expected = {
        "time": t[[0, 1, 3]],
        "time_999": 999 * t[[0, 1, 3]],
        "step": np.array([0, 7, 49]),
        "alpha": np.sqrt(alpha_bar),
        "sigma": np.sqrt(1 - alpha_bar),
        "log_snr": np.log(alpha_bar / (1 - alpha_bar)),
        "mean_log_snr": np.log(alpha_bar / (1 - alpha_bar)),
        "c_noise": np.log(np.sqrt(1 / alpha_bar - 1)) / 4,
    }[told]
    seen = []
    noise = noise_fn(lambda x, label: seen.append(label) or x, sde, time_input=told)
    noise(jnp.zeros((4, 2)), jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(seen[0][jnp.asarray([0, 1, 3])], expected, rtol=1e-4, atol=1e-4)
    if told == "step":
        assert seen[0][2] == pytest.approx(20.5, abs=1e-4)


def test_between_two_whole_steps_outputs_are_mixed():
    """A table that integers alone can index; beyond its ends are its ends."""
    rows = jnp.asarray([0.0, 10.0, 30.0])
    sde = SDE("vp", Discrete(np.array([3.0, 1.0, -2.0])), 1.0)

    def network(x, label, shift):
        assert jnp.issubdtype(label.dtype, jnp.integer)
        return rows[label][:, None] + shift

    noise = noise_fn(network, sde, time_input="step", between="interpolate")
    label = np.array([-0.5, 0.0, 0.9, 1.0, 1.25, 2.0, 2.5])
    shift = np.arange(7, dtype=np.float32)[:, None]
    found = jax.jit(noise)(jnp.zeros((7, 1)), jnp.asarray((label + 1) / 3), shift)
    np.testing.assert_allclose((found - shift)[:, 0], [0, 0, 9, 10, 15, 30, 30], atol=1e-4)


def test_the_time_input_may_be_a_function():
    noise = noise_fn(lambda x, label: x * label[:, None], VP(), time_input=twice)
    found = jax.jit(noise)(jnp.ones((2, 1)), jnp.asarray([0.1, 0.3]))
    np.testing.assert_allclose(found, [[0.2], [0.6]], rtol=1e-6)


def twice(sde, t):
    return 2 * t


@every_sde
def test_noise_and_score_are_views_of_each_other(name):
    sde, t, x = SDES[name], jnp.asarray([0.1, 0.7]), jnp.asarray([[1.0, 2.0], [3.0, -1.0]])
    noise = Gaussian.random(4, 2).noise(sde)
    score = score_of(noise, sde)(x, t)
    sigma = schedule64(sde, np.asarray(t))[1][:, None]
    np.testing.assert_allclose(score, -noise(x, t) / sigma, rtol=1e-5)
    again = noise_fn(score_of(noise, sde), sde, prediction="score", time_input="time")
    np.testing.assert_allclose(again(x, t), noise(x, t), rtol=1e-5)


# --- a tree of parameters ---------------------------------------------------------------------


def apply(params, x, label, condition=None):
    out = x @ params["w"] + params["b"] * label[:, None]
    return out if condition is None else out + condition


def model(seed, **how):
    rng = np.random.default_rng(seed)
    params = {"w": jnp.asarray(rng.normal(size=(3, 3))), "b": jnp.asarray(rng.normal())}
    return params, noise_fn(Partial(apply, params), VP(0.1, 10.0 + seed), **how)


def test_two_models_of_one_architecture_are_one_program():
    traced = []

    @jax.jit
    def run(noise, x, t):
        traced.append(noise)
        return noise(x, t)

    x, t = jnp.ones((2, 3)), jnp.asarray([0.2, 0.6])
    for seed in (0, 1):
        params, noise = model(seed, prediction="v", time_input="time")
        alpha, sigma = noise.sde.alpha(t)[:, None], noise.sde.sigma(t)[:, None]
        expected = alpha * apply(params, x, t) + sigma * x
        np.testing.assert_allclose(run(noise, x, t), expected, rtol=1e-5)
    assert len(traced) == 1
    run(model(0, prediction="u", time_input="time")[1], x, t)
    run(model(0, prediction="v", time_input="log_snr")[1], x, t)
    assert len(traced) == 3


def test_parameters_are_leaves():
    _params, noise = model(0)
    assert len(jax.tree.leaves(noise)) == 5  # w, b, and the SDE's three numbers
    x, t = jnp.ones((2, 3)), jnp.asarray([0.2, 0.6])
    gradient = jax.grad(lambda noise: jnp.sum(noise(x, t)))(noise)
    lam = np.asarray(noise.sde.log_snr(t))
    np.testing.assert_allclose(gradient.network.args[0]["b"], 3 * lam.sum(), rtol=1e-5)
    assert jax.tree.structure(noise) == jax.tree.structure(model(1)[1])


def test_a_model_of_a_learned_range_counts_the_parameters_of_its_network():
    _params, noise = model(0)
    for prediction in (noise, RangedNoise(noise)):
        found = repr(ScoreModel(prediction, noise.sde, 1e-3, (2, 3)))
        assert found.endswith(", 10 parameters)"), found


def test_a_condition_is_passed_on():
    _params, noise = model(0)
    x, t, c = jnp.ones((2, 3)), jnp.asarray([0.2, 0.6]), jnp.asarray([[1.0, 2, 3], [0, 0, 0]])
    np.testing.assert_allclose(noise(x, t, c) - noise(x, t), c, rtol=1e-4, atol=1e-5)


# --- what can't be had ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"prediction": "V"}, "not 'V'"),
        ({"time_input": "gamma"}, "not 'gamma'"),
    ],
)
def test_unknown_choices_are_refused(how, words):
    with pytest.raises(ValueError, match=words):
        noise_fn(lambda x, label: x, VP(), **how)


def test_steps_are_those_of_a_discrete_schedule():
    with pytest.raises(ValueError, match="Discrete schedule"):
        noise_fn(lambda x, label: x, VP(), time_input="step")(jnp.ones((1, 1)), jnp.ones(1))


@pytest.mark.parametrize(("path", "kernel", "prediction"),
                         [("VP", "vp", "v"), ("SP", "straight", "unit_u")])  # fmt: skip
def test_golden_noise_of_velocities(path, kernel, prediction, golden):
    """That of the authors of i-DODE, from the output of their network."""
    arrays = golden("idode")
    with jax.enable_x64(True):
        sde = SDE(kernel, LinearLogSNR(-5.0, 13.3), 1.0)
        t = sde.time_of_log_snr(-jnp.asarray(arrays["gamma"], float))
        output = jnp.asarray(arrays["F_hat"])
        noise = noise_fn(lambda x, label: output, sde, prediction=prediction)
        found = noise(jnp.asarray(arrays["z"], float), t)
    np.testing.assert_allclose(found, arrays[f"{path}/eps_hat"], atol=1e-9)
