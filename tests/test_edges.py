"""What is wrong for the functions of arrays is refused; what is right keeps its precision."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from helpers.oracles import SDES, Gaussian
from helpers.schedules import Curved

import scoremle
from scoremle.core.dequantize import TruncatedNormal
from scoremle.likelihood.decoders import DiscreteDecoder
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.sampling.ode import euler_sample

SDE, KEY, EPS = SDES["vp"], jax.random.key(0), 1e-3
DATA = Gaussian.random(3, 2, 0.6)
NOISE = DATA.noise(SDE)
TIMES = scoremle.UniformLogSNR(SDE, EPS)
X = DATA.draw(0, 8)

FUNCTIONS = {
    "loss": lambda noise, x: scoremle.denoising_loss(
        noise, SDE, x, KEY, times=TIMES, weighting="likelihood"
    ),
    "exact": lambda noise, x: scoremle.ode_log_likelihood(
        noise, SDE, x, KEY, eps=EPS, solver=scoremle.Multistep(8)
    ).log_prob,
    "bound": lambda noise, x: scoremle.elbo(
        noise, SDE, x, KEY, eps=EPS, times=TIMES, draws=4
    ).log_prob,
    "sliced bound": lambda noise, x: scoremle.elbo(
        noise, SDE, x, KEY, eps=EPS, times=TIMES, draws=4, matching="sliced"
    ).log_prob,
    "latents": lambda noise, x: scoremle.ode_sample(
        noise, SDE, x, eps=EPS, solver=scoremle.Multistep(8)
    ),
}
# Of the exact noise, compiled once for each type of data.
COMPILED = {name: jax.jit(partial(function, NOISE)) for name, function in FUNCTIONS.items()}
every_function = some("name", FUNCTIONS, quick=["exact", "bound", "latents"])


# The noise is about 1/270, and 1/245 in one dimension.
OF_EACH = scoremle.SDE("vp", Curved(11.2, np.asarray([[[15.0], [200.0]]]), 0.0), 1.0)


@pytest.mark.parametrize(
    ("sde", "eps", "hidden"),
    [(SDE, 1e-5, False), (SDE, 1e-3, True), (OF_EACH, 1e-5, False), (OF_EACH, 1e-3, True)],
)
def test_levels_are_decoded_where_the_first_noise_hides_them(sde, eps, hidden):
    """Half a bin is 1/256, and the noise about sqrt(0.1 eps)."""
    model = scoremle.ScoreModel(lambda x, t: x, sde, eps, (1, 2, 1), scoremle.Pixels(256))
    assert (model.decoder is not None) == hidden
    assert ("informed decoder" in model.default_estimator.title) == hidden
    if hidden:  # then no noise is added within bins
        with pytest.raises(scoremle.UserError, match="takes no dequantizer"):
            model.score(np.zeros((1, 1, 2, 1), np.uint8), dequantizer=scoremle.Uniform())


@jax.tree_util.register_static
class NoDensity(scoremle.Uniform):
    """Noise whose log q is minus infinity: bits/dim are, too."""

    def __call__(self, key, x):
        u, log_q = super().__call__(key, x)
        return u, log_q - jnp.inf


def test_a_value_of_minus_infinity_is_refused():
    model = scoremle.ScoreModel(lambda x, t: x, SDE, EPS, (2, 2, 1), scoremle.Pixels(16))
    with pytest.raises(scoremle.UserError, match="of image 0"):
        model.score(np.zeros((1, 2, 2, 1), np.uint8), dequantizer=NoDensity())


@every_function
def test_an_array_of_numpy_is_one_of_jax(name):
    """float64 becomes float32 without a warning, and the values are those of float32."""
    found = jax.jit(partial(FUNCTIONS[name], NOISE, X))()
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, COMPILED[name](X.astype(np.float32)))


@every_function
def test_the_precision_is_that_of_the_data(name, x64):
    of = partial(FUNCTIONS[name], NOISE)
    assert jax.eval_shape(of, X.astype(np.float32)).dtype == jnp.float32
    assert jax.eval_shape(of, X).dtype == jnp.float64


@every_function
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_data_of_16_bits_are_computed_in_float32(name, dtype):
    """The values are those of the same numbers in float32, whatever the network computes in."""
    x = jnp.asarray(X, dtype)
    found = COMPILED[name](x)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, COMPILED[name](np.asarray(x, np.float32)))
    low = partial(FUNCTIONS[name], lambda x, t: NOISE(x, t).astype(dtype))
    assert jax.eval_shape(low, x).dtype == jnp.float32


@every_function
def test_no_examples_give_no_values(name):
    shape = (0, 2) if name == "latents" else (0,)
    assert COMPILED[name](X[:0]).shape == shape


SAMPLERS = {
    "ode": scoremle.ode_sample,
    "ddim": partial(scoremle.ddim_sample, steps=4),
    "dpm": partial(scoremle.dpm_solver_sample, steps=4),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_latents_of_16_bits_and_none(name):
    sample, z = jax.jit(partial(SAMPLERS[name], NOISE, SDE, eps=EPS)), jnp.asarray(X, jnp.bfloat16)
    np.testing.assert_array_equal(sample(z), sample(np.asarray(z, np.float32)))
    assert sample(z[:0]).shape == (0, 2)


DOUBLE = {
    **FUNCTIONS,
    "ddim": lambda noise, z: scoremle.ddim_sample(noise, SDE, z, eps=EPS, steps=4),
    "profile": lambda noise, x: scoremle.ScoreModel(noise, SDE, EPS, (2,)).profile(x, bins=2).bits,
}


@some("name", DOUBLE, quick=["exact", "latents", "ddim"])
def test_a_network_of_more_digits_gives_those_of_the_data(name, x64):
    x, run = X.astype(np.float32), DOUBLE[name]
    if name != "profile":  # which is compiled within
        run = jax.jit(run, static_argnums=0)
    found, expected = (
        run(noise, x) for noise in (lambda x, t: NOISE(x, t).astype(jnp.float64), NOISE)
    )
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("divergence", "solver"),
    [
        (scoremle.Exact(), scoremle.Multistep(8)),
        (scoremle.Hutchinson(2), scoremle.Doubling(most=32)),
    ],
)
def test_an_example_that_failed_has_no_error(divergence, solver):
    """Its neighbours know theirs."""
    def noise(x, t):
        return jnp.where(x > 50, jnp.nan, NOISE(x, t))

    found = scoremle.ode_log_likelihood(
        noise, SDE, X + 100 * (np.arange(8) == 3)[:, None], KEY, eps=EPS,
        divergence=divergence, solver=solver,
    )  # fmt: skip
    others = np.arange(8) != 3
    assert (found.ok == others).all()
    for values in (found.log_prob, found.solver_error, found.probe_stderr):
        np.testing.assert_array_equal(np.isfinite(values), others)
    np.testing.assert_array_equal(np.isfinite(found.probe_deviations).all(axis=0), others)


@pytest.mark.parametrize(
    "estimator",
    [
        scoremle.ByOde(),
        scoremle.ByOde(solver=PublishedRK45()),
        scoremle.ByElbo(draws=4),
        scoremle.ByElbo(draws=4, decoder=DiscreteDecoder(scoremle.Pixels(16).points)),
    ],
    ids=["ode", "published", "bound", "discrete"],
)
def test_estimators_of_no_images(estimator):
    model = scoremle.ScoreModel(lambda x, t: x, SDE, EPS, (2, 2, 1), scoremle.Pixels(16))
    nothing = jnp.zeros((0, 2, 2, 1), jnp.uint8)
    run = partial(estimator, model, scoremle.Uniform())
    run = run if estimator.on_host else jax.jit(run)
    found = run(nothing, jax.random.split(KEY, 0))
    assert {len(values) for values in found.values()} == {0}


def test_a_model_of_no_examples():
    shape, pixels = (2, 2, 1), scoremle.Pixels(16)
    model = scoremle.ScoreModel(lambda x, t: x, SDE, EPS, shape, pixels)
    nothing = jnp.zeros((0, *shape))
    assert model.log_prob(nothing, KEY).log_prob.shape == (0,)
    assert model.elbo(nothing, KEY, draws=4).log_prob.shape == (0,)
    assert model.encode(nothing).shape == model.decode(nothing).shape == (0, *shape)
    assert len(model.score(np.zeros((0, *shape), np.uint8))) == 0
    samples = model.sample(0, KEY)
    assert samples.shape == (0, *shape) and samples.dtype == np.uint8
    with pytest.raises(scoremle.UserError, match="solver's steps"):
        model.calibrated(np.zeros((0, *shape), np.uint8))


@every_function
def test_integers_are_no_data(name, unchecked):
    with pytest.raises(ValueError, match=r"[xz] is uint8"):
        FUNCTIONS[name](NOISE, np.zeros((8, 2), np.uint8))


@every_function
def test_a_prediction_of_another_shape_is_refused(name):
    """It would be broadcast, into values that are finite and wrong."""
    with pytest.raises(scoremle.UserError, match=r"\(8, 1\)"):
        jax.eval_shape(lambda: FUNCTIONS[name](lambda x, t: NOISE(x, t)[:, :1], X))


def test_samples_of_another_shape_are_refused():
    with pytest.raises(scoremle.UserError, match=r"\(8, 1\)"):
        jax.eval_shape(
            lambda: euler_sample(lambda x, t: x[:, :1], SDE, KEY, (8, 2), eps=EPS, steps=2)
        )


@pytest.mark.long
def test_truncated_normal_noise_of_256_levels_needs_no_scale():
    given = TruncatedNormal(SDE, EPS, scoremle.Pixels())
    assert TruncatedNormal(SDE, EPS) == given and given.start == EPS
