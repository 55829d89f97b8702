"""The informed decoder: its probabilities, its bounds by quadrature and enumeration, its worth."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from helpers.oracles import SDES, Gaussian, Mixture, prior_kl
from scipy.special import logsumexp
from scipy.stats import norm

from scoremle import Exact, Hutchinson, Multistep, Pixels, ScoreModel, UserError
from scoremle.core import schedules
from scoremle.core.dequantize import TruncatedNormal, Uniform
from scoremle.core.keys import image_keys
from scoremle.core.pytree import pytree
from scoremle.core.sde import SDE
from scoremle.core.times import UniformTime
from scoremle.likelihood.decoders import DiscreteDecoder, InformedDecoder, decoding_cost
from scoremle.likelihood.elbo import elbo
from scoremle.likelihood.images import ByElbo, ByOde
from scoremle.likelihood.informed import decoder_worth, fitted_scale
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.likelihood.scales import LearnedScale

KEY, BITS = jax.random.key(0), np.log(2)
VP = SDES["vp"]
# A model of four levels that ends where noise hides neighbours from each other: s is 0.6 bins.
LEVELS, NOISE, SCALE = 4, 0.3, 0.2
PIXELS = Pixels(LEVELS)
POINTS = PIXELS.points
EPS = float(VP.time_of_log_snr(jnp.asarray(-2 * np.log(NOISE))))
DECODER = InformedDecoder(POINTS, SCALE)
# And one that the network tells: of each pixel, by all of z.
LEARNED = LearnedScale(2 * np.log(0.1), 2 * np.log(0.4))
MASS = np.array([0.1, 0.5, 0.15, 0.25])
PAIRS = np.outer(MASS, MASS)
PAIRS[np.diag_indices(LEVELS)] += 0.3
PAIRS /= PAIRS.sum()


def one_pixel():
    return Mixture.of(MASS, POINTS[:, None], np.zeros(LEVELS))


def two_pixels():
    """Levels that are more often the same than not."""
    both = np.stack(np.meshgrid(POINTS, POINTS, indexing="ij"), axis=-1).reshape(-1, 2)
    return Mixture.of(PAIRS.ravel(), both, np.zeros(LEVELS**2))


def model_of(data):
    inner = data.noise(VP)

    def noise(x, t):
        return inner(x.reshape(len(x), -1), t).reshape(x.shape)

    ranged = Ranged(jax.tree_util.Partial(noise))
    return ScoreModel(ranged, VP, EPS, (1, data.dims, 1), PIXELS, Multistep(40))


def told(z, xp=np):
    """v of what is given, [n D]."""
    return xp.sin(4 * z + 2 * xp.roll(z, 1, axis=-1))


@pytree
@dataclass(frozen=True)
class Ranged:
    """A noise prediction with a range of variances."""

    noise: Any

    def __call__(self, x, t):
        return self.noise(x, t)

    def both(self, x, t):
        return self.noise(x, t), told(x.reshape(len(x), -1), jnp).reshape(x.shape)


def decoded(data, z, scale):
    """p(k | z) for each pixel and level, [n D levels], in float64."""
    if isinstance(scale, LearnedScale):
        scale = (0.1 * 4.0 ** ((told(z) + 1) / 2))[..., None]
    alpha, sigma = (float(c) for c in (VP.alpha(jnp.asarray(EPS)), VP.sigma(jnp.asarray(EPS))))
    with jax.enable_x64(True):
        eps = np.asarray(data.noise(VP)(jnp.asarray(z), jnp.full(len(z), EPS, jnp.float64)))
    estimate = (z - sigma * eps) / alpha
    edges = np.concatenate([[-np.inf], (POINTS[1:] + POINTS[:-1]) / 2, [np.inf]])
    below, above = ((e - estimate[..., None]) / scale for e in (edges[:-1], edges[1:]))
    right = norm.sf(below) - norm.sf(above)  # of tails far off
    return np.where(below > 0, right, norm.cdf(above) - norm.cdf(below))


# --- the decoder ------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [Pixels(), Pixels(256, -1 - 1 / 255, 1 + 1 / 255), PIXELS])
@pytest.mark.parametrize("scale", [1e-3, 0.1, np.array([0.02, 0.5])])
def test_it_is_the_normal_probability_of_a_bin(pixels, scale):
    """Of both grids: bins as the pixels have them, open at the ends; also far in the tails."""
    rng = np.random.default_rng(0)
    k = np.concatenate([[0, pixels.levels - 1], rng.integers(0, pixels.levels, 30)])
    integers = np.broadcast_to(k[:, None, None, None], (32, 1, 1, 2))
    s = np.exp(-float(VP.log_snr(jnp.asarray(EPS))) / 2)
    error = (scale * rng.normal(size=integers.shape) * 3 / s).astype(np.float32)
    decoder = InformedDecoder(pixels.points, jnp.asarray(scale))
    found = decoder.log_prob(jnp.asarray(error), VP, jnp.asarray(integers), jnp.full(32, EPS))
    u = np.stack([integers, integers + 1]).astype(np.float64)
    low, high = pixels.low + (pixels.high - pixels.low) * u / pixels.levels
    low[integers == 0], high[integers == pixels.levels - 1] = -np.inf, np.inf
    estimate = pixels.points[integers] - s * error
    a, b = (low - estimate) / scale, (high - estimate) / scale
    mass = np.where(a > 0, norm.sf(a) - norm.sf(b), norm.cdf(b) - norm.cdf(a))
    np.testing.assert_allclose(found, np.log(mass).sum(axis=(1, 2, 3)), rtol=2e-4, atol=1e-4)


def test_its_probabilities_add_up_and_have_gradients():
    pixels, decoder = Pixels(), InformedDecoder(Pixels().points, 0.02)
    levels = jnp.arange(256)[:, None]

    @jax.jit
    def log_prob(estimate):  # an error such that each level is asked of the same estimate
        error = (decoder.encode(levels) - estimate) / NOISE
        return decoder.log_prob(error, VP, levels, jnp.full(256, EPS))

    for estimate in (-1.1, 0.0, 0.3, 0.999):
        assert jax.nn.logsumexp(log_prob(estimate)) == pytest.approx(0, abs=1e-4)
    slope = jax.grad(lambda estimate: log_prob(estimate)[::51].sum())(0.3)
    change = (log_prob(0.31) - log_prob(0.29))[::51].sum() / 0.02
    assert slope == pytest.approx(float(change), rel=1e-2)
    np.testing.assert_allclose(pixels.points, pixels.encode(jnp.arange(256), 0.5), atol=1e-7)


# --- in the bound -----------------------------------------------------------------------------


@some("scale", [SCALE, LEARNED], quick=[LEARNED])
def test_the_bound_with_it_is_the_one_by_quadrature(scale):
    """Of one pixel all terms are sums over a grid: each level's bound is unbiased, its error
    honest, and it takes no more evaluations than with the Gaussian."""
    data, copies, draws = one_pixel(), 200, 64
    integers = np.repeat(np.arange(LEVELS), copies)[:, None, None, None].astype(np.uint8)
    estimator = ByElbo(draws, decoder=InformedDecoder(POINTS, scale))
    keys = image_keys(KEY, np.arange(len(integers)))
    found = jax.jit(lambda x, keys: estimator(model_of(data), Uniform(), x, keys))(integers, keys)
    found = {name: np.asarray(value, np.float64) for name, value in found.items()}

    e = np.linspace(-8, 8, 801)
    weights = norm.pdf(e) / norm.pdf(e).sum()
    low, high = (float(VP.log_snr(jnp.asarray(t))) for t in (1.0, EPS))
    lam = np.linspace(low, high, 401)
    gaps = np.concatenate([[0.5], np.ones(399), [0.5]]) * (lam[1] - lam[0])
    s, mix = np.exp(-lam / 2)[:, None, None], np.log(MASS)
    expected = np.zeros((LEVELS, 2))
    for k, point in enumerate(POINTS):
        x = point + s * e[:, None]  # over alpha: [lam e levels]
        logits = mix - (x - POINTS) ** 2 / s**2 / 2
        shares = np.exp(logits - logsumexp(logits, axis=-1, keepdims=True))
        eps = (x[..., 0] - shares @ POINTS) / s[..., 0]
        expected[k, 0] = gaps @ (np.square(eps - e) @ weights) / 2
        z = np.exp(VP.log_alpha(jnp.asarray(EPS))) * (point + NOISE * e[:, None])
        expected[k, 1] = -np.log(decoded(data, np.float64(z), scale)[:, 0, k]) @ weights
    expected /= BITS
    prior = prior_kl(VP, POINTS[:, None]) / BITS
    for name, column in (("diffusion", 0), ("reconstruction", 1)):
        values = found[name].reshape(LEVELS, copies)
        error = values.std(axis=1, ddof=1) / np.sqrt(copies)
        assert (np.abs(values.mean(axis=1) - expected[:, column]) < 4 * error + 1e-3).all(), name
    bpd = found["bpd"].reshape(LEVELS, copies)
    assert abs(MASS @ (bpd.mean(axis=1) - expected.sum(axis=1) - prior)) < 0.03
    stated = np.sqrt(np.mean(found["draw_stderr"] ** 2))
    assert 0.8 < np.sqrt(bpd.var(axis=1, ddof=1).mean()) / stated < 1.25
    assert (found["nfe"] == draws + 4).all()


def test_integers_are_required():
    with pytest.raises(ValueError, match="integers="):
        elbo(
            one_pixel().noise(VP), VP, jnp.zeros((1, 1)), KEY, eps=EPS, draws=4,
            times=UniformTime(EPS), decoder=DECODER,
        )  # fmt: skip


# --- with the ODE -----------------------------------------------------------------------------


def log_probabilities(data, log_density, scale, nodes):
    """log P(k) = log int p_eps(z) p(k | z) dz for all k, by the trapezoidal rule."""
    axis = np.linspace(-4, 4, nodes)
    z = np.stack(np.meshgrid(*[axis] * data.dims, indexing="ij"), axis=-1).reshape(-1, data.dims)
    density = np.exp(log_density(z)) * (axis[1] - axis[0]) ** data.dims
    each = np.moveaxis(decoded(data, z, scale), 1, 0)
    return np.log(np.einsum(("na,n->a", "na,nb,n->ab")[data.dims - 1], *each, density)).ravel()


@pytest.mark.slow
@some("dims, scale", [(1, 0.12), (2, 0.12), (2, LEARNED)], quick=[(1, 0.12)])
def test_the_ode_bound_closes_in_on_the_probability_by_enumeration(dims, scale):
    """With a decoder too sure of itself, so that there is a gap to close."""
    data, copies = (one_pixel(), two_pixels())[dims - 1], 64
    density = (data.log_model, data.log_density)[dims - 1]  # of the ODE; the same, nearly
    exact = log_probabilities(data, lambda z: density(VP, z, EPS), scale, (401, 201)[dims - 1])
    assert np.exp(exact).sum() == pytest.approx(1, abs=1e-3)
    levels = np.stack(np.unravel_index(np.arange(LEVELS**dims), (LEVELS,) * dims), axis=1)
    integers = np.repeat(levels, copies, axis=0)[:, None, :, None].astype(np.uint8)
    gaps, model = {}, model_of(data)
    for samples in (1, 8, 128):
        estimator = ByOde(
            Exact(), Multistep(24), samples, decoder=InformedDecoder(POINTS, scale)
        )
        found = model.score(integers, estimator=estimator).log_prob.reshape(-1, copies)
        gap = exact - found.mean(axis=1)
        error = found.std(axis=1, ddof=1) / np.sqrt(copies)
        assert (gap > -4 * error - 5e-3).all(), (samples, gap, error)  # it is a bound
        gaps[samples] = np.exp(exact) @ gap
    assert gaps[1] > 0.1 and gaps[1] > 5 * gaps[8] > 10 * gaps[128], gaps
    assert abs(gaps[128]) < 0.006, gaps


@pytest.mark.long
def test_the_ode_bound_has_the_columns_of_the_ode():
    x, keys = np.zeros((3, 1, 2, 1), np.uint8), image_keys(KEY, np.arange(3))

    @jax.jit
    def measure(estimator, x):
        return estimator(model_of(two_pixels()), Uniform(), x, keys)

    one = measure(ByOde(Hutchinson(2), Multistep(16), decoder=DECODER), x)
    assert set(one) == {"bpd", "probe_stderr", "solver_error", "nfe",
                        "latent_square", "latent_neighbours"}  # fmt: skip
    assert (one["nfe"] == 18).all()  # 17 of the solver
    many = measure(ByOde(Hutchinson(2), Multistep(16), 4, DECODER), x)
    assert set(many) - set(one) == {"draw_stderr", "probe_bias", "effective_draws"}
    assert (many["nfe"] == 4 * 18).all()


@pytest.mark.long
def test_the_ode_bound_by_the_published_solver():
    model, x = model_of(one_pixel()), np.zeros((3, 1, 1, 1), np.uint8)
    # In one dimension a probe of +-1 is exact.
    held = ByOde(Hutchinson(), PublishedRK45(), decoder=DECODER)
    ours = model.score(x, estimator=ByOde(Exact(), Multistep(64), decoder=DECODER))
    np.testing.assert_allclose(model.score(x, estimator=held).bpd, ours.bpd, atol=5e-3)


# --- its scale, and what it is worth ----------------------------------------------------------


def gaussian_pixels(images):
    """Independent ones on fine levels, of a variance of 0.1; and the model that knows them."""
    data, pixels = Gaussian.of([0.05], [0.1]), Pixels(256)
    noise_of_pixel = data.noise(VP)

    def noise(x, t):
        return noise_of_pixel(x.reshape(-1, 1), jnp.repeat(t, 16)).reshape(x.shape)

    x = pixels.decode(jnp.asarray(data.draw(0, 16 * images)).reshape(-1, 4, 4, 1))
    return ScoreModel(noise, VP, EPS, (4, 4, 1), pixels, Multistep(40)), np.asarray(x)


# The posterior's standard deviation.
SPREAD = np.sqrt(0.1 * NOISE**2 / (0.1 + NOISE**2))


def test_the_fitted_scale_is_the_spread_of_the_estimate():
    model, x = gaussian_pixels(150)
    assert fitted_scale(model, x, KEY) == pytest.approx(SPREAD, rel=0.05)
    with pytest.raises(UserError, match="uint8"):
        fitted_scale(model, x / 255, KEY)


@pytest.mark.long
def test_a_model_that_is_fitted_gains_what_the_scale_of_the_noise_costs():
    """By eight images, on others: log(noise / spread) less what the wider normal forgives."""
    model, x = gaussian_pixels(300)
    fitted = model.fit_decoder(x)
    assert fitted.decoder.scale == pytest.approx(SPREAD, rel=0.15)
    assert model.decoder.scale == pytest.approx(NOISE, rel=1e-5)
    assert replace(model, decoder_scale=9.0).fit_decoder(x).decoder.scale == fitted.decoder.scale
    before, after = (m.score(x[8:]).bpd.mean() for m in (model, fitted))
    expected = (np.log(NOISE / SPREAD) + (SPREAD**2 / NOISE**2 - 1) / 2) / BITS
    assert before - after == pytest.approx(expected, abs=0.02)
    far = ScoreModel(model.noise, VP, EPS, (4, 4, 1), Pixels(2))
    assert far.decoder is None and far.fit_decoder(x // 128) is far


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("levels", [256, 2])
def test_no_images_and_those_of_another_shape_fit_no_decoder(levels):
    """A model with a decoder, and one that has none, refuse the same images."""
    model, x = gaussian_pixels(8)
    model, x = replace(model, pixels=Pixels(levels)), x // (256 // levels)
    for wrong in (x[:0], x[:, :2], np.repeat(x, 3, axis=3), x / 255):
        with pytest.raises(UserError, match="images"):
            model.fit_decoder(wrong)
    fitted, same = model.fit_decoder(x), model.fit_decoder(x[..., 0])  # of one channel
    assert fitted.decoder_scale == same.decoder_scale


@pytest.mark.long
def test_what_each_way_to_the_integers_is_worth_where_a_model_ends_at_9():
    """Images of one grey level in 64 pixels, 8 / 64 bits/dim, and the model that knows it, on
    DDPM's thousand steps. At their end a pixel alone tells its level no better than to 2.4 bits,
    all together tell it."""
    sde = SDE("vp", schedules.Discrete.of_betas(np.linspace(1e-4, 0.02, 1000)), 1.0)
    eps, size, images = 1 / 1000, 64, 12
    assert sde.log_snr(jnp.asarray(eps)) == pytest.approx(9.21, abs=1e-3)
    pixels = Pixels(256, -1 - 1 / 255, 1 + 1 / 255)
    points = pixels.points

    def noise(x, t):
        alpha, sigma = (c[:, None] for c in (sde.alpha(t), sde.sigma(t)))
        mean = x.reshape(len(x), -1).mean(axis=1)[:, None]
        distance = mean - alpha * jnp.asarray(points, x.dtype)
        share = jax.nn.softmax(-size * jnp.square(distance / sigma) / 2, axis=1)
        estimate = share @ jnp.asarray(points, x.dtype)
        return (x - (alpha[:, 0] * estimate)[:, None, None, None]) / sigma[..., None, None]

    levels = np.random.default_rng(0).integers(0, 256, 2 * images)
    x = np.broadcast_to(levels[:, None, None, None], (2 * images, 8, 8, 1)).astype(np.uint8)
    model, others = ScoreModel(noise, sde, eps, (8, 8, 1), pixels, Multistep(32)), x[images:]
    informed = InformedDecoder(points, fitted_scale(model, others, KEY))
    trace = Hutchinson(4), Multistep(32)
    ways = {
        "flat": (ByElbo(128, decoder=DiscreteDecoder(points)), None),
        "uniform": (ByOde(*trace), None),
        "truncated": (ByOde(*trace), TruncatedNormal(sde, eps, pixels)),
        "informed bound": (ByElbo(128, decoder=informed), None),
        "informed ODE bound": (ByOde(*trace, decoder=informed), None),
    }
    found = {}
    for name, (estimator, dequantizer) in ways.items():
        scores = model.score(x[:images], estimator=estimator, dequantizer=dequantizer)
        found[name] = scores.bpd.mean() - 8 / size
    flat = np.asarray(decoding_cost(jnp.asarray(points), sde.log_snr(jnp.asarray(eps))))
    s = np.exp(-9.21024 / 2) / (2 / 255)  # in bins
    uniform = np.log2(s * np.sqrt(2 * np.pi)) + 1 / 24 / s**2 / BITS
    assert uniform == pytest.approx(1.72, abs=0.01)
    assert found["flat"] == pytest.approx(flat[levels[:images]].mean() / BITS, abs=0.05)
    assert found["flat"] == pytest.approx(2.38, abs=0.07)
    assert found["uniform"] == pytest.approx(uniform, abs=0.03)
    assert found["truncated"] == pytest.approx(uniform, abs=0.03)
    for name in ("informed bound", "informed ODE bound"):
        assert found[name] == pytest.approx(0, abs=0.05), found
    worth, of_flat = decoder_worth(model, informed, others, KEY)
    assert worth == pytest.approx(0, abs=0.05)
    assert of_flat == pytest.approx(flat[levels[images:]].mean() / BITS, rel=1e-4)
