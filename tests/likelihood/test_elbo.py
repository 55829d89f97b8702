"""The variational bound against its analytic value, its error bar, and the published numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden_networks import golden_noise
from helpers.marks import some
from helpers.oracles import (
    EPS,
    SDES,
    Gaussian,
    Mixture,
    entropy,
    log_normal,
    log_snr64,
    prior_kl,
    reconstruction,
)
from scipy.integrate import quad

import scoremle
from scoremle.core.divergence import FixedProbe
from scoremle.core.loss import denoising_residual
from scoremle.core.pixels import Pixels, bits_per_dim
from scoremle.core.times import UniformLogSNR, UniformTime
from scoremle.errors import UserError
from scoremle.likelihood.decoders import DiscreteDecoder, Entropy, GaussianDecoder
from scoremle.likelihood.elbo import elbo, variance_of_mean

every_sde = some("name", SDES, quick=["vp", "ve"])
KEY = jax.random.key(0)
DATA = Gaussian.random(11, 4, 0.6)


def evaluate(noise, name, x, times, *, eps, key=KEY, **options):
    run = jax.jit(
        lambda x, key: elbo(noise, SDES[name], x, key, eps=eps, times=times, **options)
    )
    result = run(jnp.asarray(x, jnp.float32), key)
    return jax.tree.map(lambda a: np.asarray(a, np.float64), result)


def samplers(name, eps):
    return {
        "log_snr": UniformLogSNR(SDES[name], eps),
        "log_snr_stratified": UniformLogSNR(SDES[name], eps, stratified=True),
        "time": UniformTime(eps),
        "time_stratified": UniformTime(eps, stratified=True),
    }


# --- the oracle itself ------------------------------------------------------------------------


@every_sde
def test_oracle_closed_form_is_the_integral(name):
    sde, eps, x = SDES[name], 1e-3, DATA.draw(0, 2)

    def integrand(lam):  # with alpha = 1, since only the ratio matters
        r = np.exp(lam)
        d = (x - DATA.mu) @ DATA.V
        u = 1 + r * DATA.w
        return 0.5 * (r * d**2 / u**2 + (r * DATA.w / u) ** 2).sum(1)

    low, high = log_snr64(sde, 1.0), log_snr64(sde, eps)
    for i in range(2):
        value = quad(lambda lam, i=i: integrand(lam)[i], low, high, epsabs=1e-10)[0]
        assert DATA.diffusion(sde, x, eps)[i] == pytest.approx(value, rel=1e-8)
        t = 0.3
        assert DATA.residual(sde, x, t)[i] == pytest.approx(
            2 * integrand(log_snr64(sde, t))[i], rel=1e-10
        )


@pytest.mark.parametrize("name", ["vp", "subvp"])
def test_oracle_bound_is_tight_as_eps_vanishes(name):
    """With the exact score the bound is -log p(x), but for the prior's mismatch."""
    x = DATA.draw(1, 5)
    exact = log_normal((x - DATA.mu) @ DATA.V, DATA.w)
    bound = DATA.bound(SDES[name], x, 1e-7)["log_prob"]
    np.testing.assert_allclose(bound, exact, atol=1e-3)


# --- analytic values --------------------------------------------------------------------------


@every_sde
@pytest.mark.parametrize(
    ("matching", "offset"), [("denoising", True), ("denoising", False), ("sliced", True)]
)
def test_gaussian_has_its_analytic_bound(name, matching, offset):
    """Over many images the errors have mean zero and the stated size."""
    eps, images = 5e-3, 300
    x = DATA.draw(2, images)
    analytic = DATA.bound(SDES[name], x, eps, offset=offset)
    result = evaluate(
        DATA.noise(SDES[name]),
        name,
        x,
        samplers(name, eps)["log_snr_stratified"],
        eps=eps,
        draws=64,
        matching=matching,
        decoder=GaussianDecoder() if offset else Entropy(),
    )
    np.testing.assert_allclose(result.prior, analytic["prior"], rtol=1e-3, atol=2e-5)
    total = result.prior + result.diffusion + result.reconstruction
    np.testing.assert_allclose(result.log_prob, -total, rtol=1e-5, atol=1e-4)
    if not offset:
        np.testing.assert_allclose(result.reconstruction, analytic["reconstruction"], rtol=1e-5)
    # (Not of the errors in units of their own stated ones: the two are correlated.)
    error, stated = result.log_prob - analytic["log_prob"], np.sqrt(np.mean(result.stderr**2))
    assert abs(error.mean()) < 4 * stated / np.sqrt(images)
    assert 0.8 < np.sqrt(np.mean(error**2)) / stated < 1.25
    for part in ("diffusion", "reconstruction"):
        error = getattr(result, part) - analytic[part]
        assert abs(error.mean()) < 4 * error.std() / np.sqrt(images) + 1e-5, part


@some("name", ["vp", "ve"], quick=["ve"])
@pytest.mark.parametrize("kind", ["log_snr", "log_snr_stratified", "time", "time_stratified"])
def test_stated_error_is_honest(name, kind):
    """Repeats on one image: unbiased, with the spread that they state. eps keeps the weights of
    uniform times within bounds that the draws can see."""
    eps, copies, draws = 0.05, 400, 64
    one = DATA.draw(3, 1)
    result = evaluate(
        DATA.noise(SDES[name]),
        name,
        np.repeat(one, copies, axis=0),
        samplers(name, eps)[kind],
        eps=eps,
        draws=draws,
    )
    exact = DATA.bound(SDES[name], one, eps)["log_prob"]
    spread = result.log_prob.std()
    assert abs(result.log_prob.mean() - exact[0]) < 4 * spread / np.sqrt(copies) + 1e-4
    stated = np.sqrt(np.mean(result.stderr**2))
    assert 0.8 < spread / stated < 1.25
    inside = np.abs(result.log_prob - exact) < 2 * result.stderr
    assert inside.mean() > 0.85


@some("draws", [20, 100], quick=[20])
def test_stated_error_is_honest_in_many_dimensions(draws):
    """There the trend in time, which grows with D, is most of the error of evenly spaced times."""
    sde, dims, copies = SDES["vp"], 900, 200

    def noise(x, t):
        return (sde.sigma(t) / (0.3 * sde.alpha(t) ** 2 + sde.sigma(t) ** 2))[:, None] * x

    x = np.repeat(0.3**0.5 * np.random.default_rng(0).normal(size=(1, dims)), copies, axis=0)
    times = UniformLogSNR(sde, 1e-3, stratified=True)
    result = evaluate(noise, "vp", x, times, eps=1e-3, draws=draws, decoder=Entropy())
    stated = np.sqrt(np.mean(result.stderr**2))
    # Of few draws it is too large: neighbours differ by the trend as well.
    assert 0.85 < stated / result.log_prob.std() < (1.15 if draws == 100 else 1.5)


def test_few_draws():
    """One draw is unbiased too (training a dequantizer uses it), and knows no error."""
    eps, copies = 0.01, 4000
    one = DATA.draw(3, 1)
    times = UniformLogSNR(SDES["vp"], eps)
    x = np.repeat(one, copies, axis=0)
    result = evaluate(DATA.noise(SDES["vp"]), "vp", x, times, eps=eps, draws=1)
    exact = DATA.bound(SDES["vp"], one, eps)["log_prob"][0]
    assert abs(result.log_prob.mean() - exact) < 4 * result.log_prob.std() / np.sqrt(copies)
    assert np.isnan(result.stderr).all()


def test_examples_are_independent():
    """Two copies of an image get draws of their own, and neighbours do not matter."""
    times = UniformLogSNR(SDES["vp"], 1e-2, stratified=True)
    noise = DATA.noise(SDES["vp"])
    x = np.repeat(DATA.draw(4, 1), 3, axis=0)
    a = evaluate(noise, "vp", x, times, eps=1e-2, draws=16)
    assert len(np.unique(a.diffusion)) == 3
    other = x.copy()
    other[1:] += 7
    b = evaluate(noise, "vp", other, times, eps=1e-2, draws=16)
    np.testing.assert_allclose(a.log_prob[0], b.log_prob[0], rtol=1e-5)
    assert b.log_prob[1] < a.log_prob[1]


@some("name", ["vp", "ve"], quick=["vp"])
def test_mixture_bound_is_above_the_exact_value(name):
    """E -log p_0(x) <= E bound over data: nearly equal for the exact noise only."""
    data, sde, eps, images = Mixture.in_plane(), SDES[name], EPS[name], 300
    x = data.draw(5, images)
    truth = -data.log_data_density(x)
    times = UniformLogSNR(sde, eps, stratified=True)
    exact = data.noise(sde)

    def gaps(noise):  # with the same draws for every noise
        return -evaluate(noise, name, x, times, eps=eps, draws=64).log_prob - truth

    gap = gaps(exact)
    error = gap.std() / np.sqrt(images)
    assert -4 * error < gap.mean() < 4 * error + 0.01
    excess = gaps(lambda x, t: 1.15 * exact(x, t)) - gap
    assert excess.mean() > 5 * excess.std() / np.sqrt(images)


def test_the_variance_of_the_mean_of_four_draws_by_hand():
    draws = jnp.array([[1.0], [2.0], [4.0], [9.0]])
    # Squares about the mean of 4 add up to 38.
    np.testing.assert_allclose(variance_of_mean(draws, stratified=False), 38 / 3 / 4, rtol=1e-6)
    # Gaps within pairs are 1 and 5, and from the first to the last it is 8.
    by_pairs = (1 + 25) / 2 / (2 * 4) + (8 / 4) ** 2 / 12
    np.testing.assert_allclose(variance_of_mean(draws, stratified=True), by_pairs, rtol=1e-6)
    assert np.isnan(variance_of_mean(draws[:1], stratified=False)).all()


# --- golden numbers ---------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["vp", pytest.param("subvp", marks=pytest.mark.long)])
def pieces(request, golden):
    """The terms of bound.npz from the library's parts, on the t, z and probes of the file."""
    name, arrays = request.param, golden("bound")
    sde, dims = SDES[name], 768
    noise = golden_noise("ddpmpp", sde)
    x, z, t = arrays["x"], arrays["z"], arrays[f"{name}/t"]
    k, b = t.shape

    @jax.jit
    def run(x, t, z):
        residual = denoising_residual(noise, sde, x, t, z)
        probe = jnp.tile(arrays["epsilon"], (k, 1, 1, 1))[None]
        x_t = sde.perturb(x, t, z)
        value, div, _ = FixedProbe(probe)(lambda y: noise(y, t), x_t, probe)
        each = residual, (value**2).sum((1, 2, 3)), sde.sigma(t) * div[0]
        eps = jnp.float32(arrays[f"{name}/t_eps"])
        span = sde.log_snr(eps) - sde.log_snr(jnp.float32(1))
        return (*each, sde.likelihood_weight(t), sde.f(t)), span

    flat = np.tile(x, (k, 1, 1, 1)), t.ravel(), z.reshape(-1, *x.shape[1:])
    found, span = run(*flat)
    residual, square, div, rate, f = (np.asarray(a, np.float64).reshape(k, b) for a in found)
    span, drift = float(span), dims * f
    dsm = 2 * residual - (z.astype(np.float64) ** 2).sum((2, 3, 4))
    ssm = square - 2 * div
    return {
        "name": name,
        "span": span,
        "rate": rate,
        "noise": noise,
        "drift_div": drift,
        "dsm_iw": span * (dsm - 2 * drift / rate),
        "ssm_iw": span * (ssm - 2 * drift / rate),
        "dsm_uniform": rate * dsm - 2 * drift,
        "ssm_uniform": rate * ssm - 2 * drift,
    }


# Where t < 0.01002 the reference's kernel is off by 5e-4 (VP) and 1e-3 (sub-VP).
EARLY = 0.01002


@pytest.mark.parametrize("variant", ["dsm_iw", "ssm_iw", "dsm_uniform", "ssm_uniform"])
def test_golden_integrands(pieces, variant, golden):
    arrays, name = golden("bound"), pieces["name"]
    reference, ours = arrays[f"{name}/{variant}/integrand_f64"], pieces[variant]
    late = arrays[f"{name}/t"] > EARLY
    scale = np.abs(reference).max()
    np.testing.assert_allclose(pieces["drift_div"], arrays[f"{name}/drift_div"], rtol=1e-4)
    np.testing.assert_allclose(pieces["span"], arrays[f"{name}/Z"], rtol=1e-5)
    assert np.abs(ours - reference)[late].max() < 2e-5 * scale
    assert (np.abs(ours / reference - 1)[~late] < 3e-3).all()


def test_golden_prior_and_offset_are_ours_in_other_words(pieces, golden):
    arrays, name = golden("bound"), pieces["name"]
    sde, dims, eps = SDES[name], 768, float(arrays[f"{name}/t_eps"])
    x, batch = arrays["x"], len(arrays["x"])

    @jax.jit
    def run(z_prior, z):
        prior = -sde.prior_log_prob(sde.perturb(x, jnp.ones(batch), z_prior))
        t = jnp.full(batch, eps, jnp.float32)
        return prior, denoising_residual(pieces["noise"], sde, x, t, z)

    prior, residual = run(arrays["z_prior"], arrays["z_offset"])
    np.testing.assert_allclose(prior, arrays[f"{name}/neg_prior_logp"], rtol=2e-5)
    residual = np.asarray(residual, np.float64)
    offset = reconstruction(sde, 2 * residual, dims, eps) - entropy(sde, dims, eps)
    reference = arrays[f"{name}/offset_f64"]
    assert np.abs(offset - reference).max() < 2e-3 * np.abs(reference).max() + 0.01


@pytest.mark.parametrize("variant", ["dsm_iw", "ssm_iw", "dsm_uniform", "ssm_uniform"])
def test_golden_bits_per_dim(pieces, variant, golden):
    """(For uniform times the reference leaves out the factor 1 - eps, and so does this sum.)"""
    arrays, name = golden("bound"), pieces["name"]
    nats = arrays[f"{name}/neg_prior_logp"] + pieces[variant].mean(0) / 2
    for key, value in [
        ("bpd_without_offset", nats),
        ("bpd", nats + arrays[f"{name}/offset"]),
    ]:
        bpd = bits_per_dim(jnp.asarray(-value), Pixels(), 768)
        # 1e-5 but for the reference's kernel at small t, where uniform times have large weights.
        rtol = 5e-4 if variant.endswith("uniform") else 3e-5
        np.testing.assert_allclose(bpd, arrays[f"{name}/{variant}/{key}"], rtol=rtol)


def test_golden_network_bound_is_the_published_estimator_in_expectation(pieces, golden):
    """Their estimate with our many draws: the same number, theirs with the deterministic parts
    drawn too. (E over z of their prior term and of -||z||^2 is taken in closed form here.)"""
    arrays, name = golden("bound"), pieces["name"]
    sde, eps = SDES[name], float(arrays[f"{name}/t_eps"])
    x = arrays["x"]
    times = UniformLogSNR(sde, eps, stratified=True)
    result = evaluate(pieces["noise"], name, x, times, eps=eps, draws=16)
    flat = x.reshape(len(x), -1).astype(np.float64)
    np.testing.assert_allclose(result.prior, prior_kl(sde, flat), rtol=1e-3, atol=2e-3)
    # Four independent draws of their integrand scatter around ours (768 of it is E||z||^2).
    dsm = pieces["dsm_iw"] / pieces["span"] + 2 * pieces["drift_div"] / pieces["rate"]
    theirs = pieces["span"] * (dsm + 768) / 2
    error = theirs.std(0, ddof=1) / 2
    assert (np.abs(theirs.mean(0) - result.diffusion) < 6 * np.hypot(error, result.stderr)).all()


def test_times_from_another_eps_make_no_bound():
    x, noise = jnp.asarray(DATA.draw(0, 2), jnp.float32), DATA.noise(SDES["vp"])
    with pytest.raises(UserError, match="begin at eps"):
        elbo(noise, SDES["vp"], x, KEY, eps=1e-5, times=UniformTime(1e-3), draws=4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"integers": [[0, 3]]}, "one is 3"), ({"integers": [[0, -1]]}, "one is -1"),
        ({"integers": [[0.0, 1.0]]}, "whole numbers"), ({"integers": [0, 1]}, "shape of x"),
        ({"decoder": 3}, "decoder must"), ({"control": 3}, "control must"),
    ],
)  # fmt: skip
def test_what_is_no_integer_decoder_or_control_is_refused(given, words, unchecked):
    points, noise = np.asarray([-1.0, 0.0, 1.0]), DATA.noise(SDES["vp"])
    how = {"integers": [[0, 1]], "decoder": DiscreteDecoder(points), **given}
    with pytest.raises(UserError, match=words):
        elbo(noise, SDES["vp"], jnp.zeros((1, 2)), KEY, eps=1e-5, times=UniformTime(1e-5),
             draws=4, **how)  # fmt: skip


@some("draws", [3, 5, 32, 33], quick=[3, 32])
def test_the_error_of_an_odd_number_of_draws_has_the_last_one(draws):
    """Most of the noise is that of the last, where the weight is largest."""
    x = np.repeat([[1.0, -0.5, 0.2, 0.8]], 4000, axis=0)
    sde = SDES["vp"]

    def noise(x, t):
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        exact = sigma * (x - 0.4 * alpha) / (0.3 * alpha**2 + sigma**2)
        return exact + 0.2 * jnp.sin(2 * x)

    times = scoremle.AlphaSquared(sde, 0.01, stratified=True)
    found = evaluate(noise, "vp", x, times, eps=0.01, key=jax.random.key(1), draws=draws)
    stated = np.sqrt(np.mean(np.square(found.stderr)))
    assert 0.95 < stated / np.std(found.log_prob) < 1.2
