"""Every kernel and every schedule against closed forms; derivatives in a schedule's numbers."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.marks import some
from helpers.oracles import Gaussian, Mixture, log_normal, schedule64
from helpers.schedules import SCHEDULES, Curved
from helpers.steps import make_step
from jax.tree_util import Partial
from jaxtyping import Array, Float
from scipy import stats

from scoremle.core.divergence import Exact, Hutchinson
from scoremle.core.loss import denoising_loss
from scoremle.core.prediction import noise_fn
from scoremle.core.pytree import pytree
from scoremle.core.schedules import LinearLogSNR, PerDimension
from scoremle.core.sde import SDE, VP
from scoremle.core.times import UniformLogSNR, UniformTime
from scoremle.likelihood.decoders import Entropy
from scoremle.likelihood.elbo import elbo
from scoremle.likelihood.ode import ode_log_likelihood
from scoremle.model import ScoreModel
from scoremle.sampling.ode import euler_sample, ode_sample
from scoremle.solvers.multistep import Multistep
from scoremle.training.checkpoints import Checkpoints
from scoremle.training.step import init_state

KEY = jax.random.key(0)
# Each kernel and each schedule.
PAIRS = [
    ("vp", "beta_vp"),
    ("subvp", "beta_subvp"),
    ("straight", "beta_straight"),
    ("ve", "geometric"),
    ("straight", "linear_sigma"),
    ("ve", "karras"),
    ("straight", "log_snr"),
    ("subvp", "cosine"),
    ("vp", "discrete"),
    ("vp", "learned"),
]
QUICK = [("subvp", "cosine"), ("vp", "learned")]
every_pair = some("kernel, name", PAIRS, quick=QUICK)


def pair(kernel, name):
    """The SDE, whose prior has the scale of the noise at t = 1, and its smallest time."""
    schedule = SCHEDULES[name]
    sigma = float(SDE(kernel, schedule, 1.0).sigma(jnp.ones(())))
    return SDE(kernel, schedule, sigma), getattr(schedule, "eps", 1e-3)


def as64(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


# --- closed forms -----------------------------------------------------------------------------


@every_pair
def test_exact_likelihoods_and_samples(kernel, name, x64):
    """The ODE from the data to the prior and back."""
    sde, eps = pair(kernel, name)
    options, data = {"eps": eps, "solver": Multistep(256)}, Mixture.on_line()
    x, noise = jnp.asarray(data.draw(1, 12)), data.noise(sde)

    @jax.jit
    def run(x):
        found = ode_log_likelihood(noise, sde, x, KEY, divergence=Exact(), **options)
        return found, ode_sample(noise, sde, found.latent, **options)

    found, back = run(x)
    exact, latent = (f(sde, np.asarray(x), eps) for f in (data.log_model, data.flow))
    np.testing.assert_allclose(found.log_prob, exact, rtol=0, atol=2e-4)
    np.testing.assert_allclose(found.latent, latent, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(back, x, atol=2e-4)


def check_bound(found, exact, copies):
    """Of ``copies`` examples that are alike: their mean is as near as it says."""
    error = np.asarray(found.log_prob - exact).reshape(copies, -1).mean(axis=0)
    stderr = np.sqrt(np.square(found.stderr).reshape(copies, -1).mean(axis=0) / copies)
    np.testing.assert_array_less(np.abs(error), 4.5 * stderr + 1e-4)
    assert (stderr < 0.1).all()


@some("kernel, name", PAIRS, quick=[("vp", "learned")])
def test_bounds(kernel, name):
    sde, eps = pair(kernel, name)
    data, copies = Gaussian.random(0, 3), 100
    x = np.tile(data.draw(1, 6), (copies, 1))
    found = jax.jit(
        lambda x: elbo(
            data.noise(sde), sde, x, KEY,
            eps=eps, times=UniformLogSNR(sde, eps, stratified=True), draws=1000,
        )
    )(jnp.asarray(x, jnp.float32))  # fmt: skip
    exact = data.bound(sde, x, eps)
    np.testing.assert_allclose(found.prior, exact["prior"], rtol=1e-4, atol=1e-5)
    check_bound(found, exact["log_prob"], copies)


@every_pair
def test_samples_of_the_reverse_sde(kernel, name):
    sde, eps = pair(kernel, name)
    data, n = Mixture.on_line(), 4000
    draw = jax.jit(
        lambda key: euler_sample(
            data.noise(sde), sde, key, (n, 1), eps=eps, steps=400, denoise=False
        )
    )
    x = np.asarray(draw(jax.random.key(4)), np.float64)
    alpha, sigma = schedule64(sde, eps)
    widths = np.sqrt(alpha**2 * data.stds**2 + sigma**2)
    cdf = (data.weights * stats.norm.cdf((x - alpha * data.means.T) / widths)).sum(1)
    assert stats.kstest(cdf, "uniform").statistic < 0.035


# --- derivatives in the schedule's numbers ----------------------------------------------------


def misfit(x, t):
    """A noise prediction of no density that depends on t: its likelihood depends on the path."""
    mix = jnp.asarray([[0.9, 0.3], [-0.2, 0.7]], x.dtype)
    return x @ mix * (0.4 + 0.5 * t[:, None]) + 0.3 * jnp.sin(2 * x) * jnp.cos(3 * t[:, None])


def likelihood(sde, x):
    noise = noise_fn(misfit, sde, time_input="time")
    found = ode_log_likelihood(
        noise, sde, x, KEY, eps=1e-3, divergence=Exact(), solver=Multistep(24)
    )
    return jnp.sum(found.log_prob * jnp.arange(1.0, 1 + len(x)))


def bound(sde, x):
    noise = noise_fn(misfit, sde, time_input="time", prediction="v")
    times = UniformLogSNR(sde, 1e-3, stratified=True)
    found = elbo(noise, sde, x, KEY, eps=1e-3, times=times, draws=16)
    return jnp.sum(found.log_prob * jnp.arange(1.0, 1 + len(x)))


@pytest.mark.slow
@some("function", [likelihood, bound], quick=[likelihood])
@some("name", ["vp", "cosine", "learned"], quick=["learned"])
def test_derivatives_in_the_schedule(name, function, x64):
    """Forward and in reverse, against differences: the bisection's derivative is in them."""
    sde = VP() if name == "vp" else SDE("vp", SCHEDULES[name], 1.0)
    sde, x = as64(sde), jnp.asarray(Gaussian.random(2, 2).draw(0, 3))
    rng = np.random.default_rng(3)
    direction = jax.tree.map(lambda a: a * jnp.asarray(rng.uniform(0.3, 1, a.shape)), sde)
    value = jax.jit(function)

    def moved(h):
        return value(jax.tree.map(lambda a, d: a + h * d, sde, direction), x)

    h = 1e-4
    slope = (8 * (moved(h) - moved(-h)) - moved(2 * h) + moved(-2 * h)) / (12 * h)
    forward = jax.jit(lambda sde, d: jax.jvp(lambda s: function(s, x), (sde,), (d,))[1])
    np.testing.assert_allclose(forward(sde, direction), slope, rtol=1e-6)
    gradient = jax.jit(jax.grad(function))(sde, x)
    dots = jax.tree.map(lambda a, d: jnp.sum(a * d), gradient, direction)
    np.testing.assert_allclose(sum(jax.tree.leaves(dots)), slope, rtol=1e-6)


# --- a learned schedule -----------------------------------------------------------------------

DATA = Gaussian.random(5, 2)


def apply(params, x, label):
    h = jnp.concatenate([x, label[:, None] / 10], axis=1)
    return jnp.tanh(h @ params["in"]) @ params["out"]


def built(params):
    """From one tree of parameters the SDE, and the noise prediction on it."""
    sde = SDE("vp", params["schedule"], 1.0)
    return sde, noise_fn(Partial(apply, params["network"]), sde, prediction="v")


def parameters():
    rng = np.random.default_rng(6)
    network = {"in": rng.normal(size=(3, 8)) / 2, "out": rng.normal(size=(8, 2)) / 4}
    tree = {"network": network, "schedule": SCHEDULES["learned"]}
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


@pytest.mark.long
def test_a_learned_schedule_trains_and_is_saved(tmp_path):
    """One tree of parameters, whose schedule moves with the rest; the bound falls."""

    def loss(params, x, key):
        sde, noise = built(params)
        found = elbo(
            noise, sde, x.reshape(-1, 2), key,
            eps=1e-3, times=UniformLogSNR(sde, 1e-3, stratified=True), draws=4,
        )  # fmt: skip
        return -jnp.mean(found.log_prob)

    x = jnp.asarray(DATA.draw(0, 64), jnp.float32)
    optimizer = optax.adam(2e-2)
    state = init_state(parameters(), optimizer)
    step = make_step(loss, optimizer, 0.9)
    losses = []
    for _ in range(6):
        state, metrics = step(state, jnp.broadcast_to(x[:, None, None], (10, len(x), 1, 1, 2)))
        losses.append(float(np.mean(metrics["loss"])))
    assert losses[-1] < losses[0] - 0.1
    before, after = parameters()["schedule"], state.params["schedule"]
    assert all(
        np.abs(np.subtract(a, b)).max() > 1e-2
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True)
    )
    assert after.describe() != before.describe()

    checkpoints = Checkpoints(tmp_path, keep=None)
    checkpoints.save(1, state, {"schedule": after.describe()})
    template = jax.eval_shape(lambda: init_state(parameters(), optimizer))
    found = checkpoints.restore(template)
    assert jax.tree.structure(found.tree) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, found.tree, state)
    assert found.tree.params["schedule"].describe() == found.meta["schedule"]

    # What it learned is a model like any other, to which jit compiles once.
    traced = []

    @jax.jit
    def measure(params):
        traced.append(params)
        sde, noise = built(params)
        return ode_log_likelihood(noise, sde, x, KEY, eps=1e-3, divergence=Exact()).log_prob

    trained, untrained = (jnp.mean(measure(p)) for p in (found.tree.params, parameters()))
    assert len(traced) == 1 and trained > untrained
    # Below the entropy, on data that were not drawn anew: no model is better on average.
    truth = np.mean(DATA.log_density(VP(), np.asarray(x, np.float64), 0.0))
    assert trained < truth + 0.2


@pytest.mark.long
def test_the_paper_s_importance_loss_takes_a_learned_schedule():
    """Its mean depends on the ends of the log-SNR alone, and so do the means of its gradients."""
    x = jnp.asarray(DATA.draw(0, 4096), jnp.float32)

    def loss(schedule, key):
        sde = SDE("vp", schedule, 1.0)
        times = UniformLogSNR(sde, 1e-3, stratified=True)
        noise = DATA.noise(SDE("vp", LinearLogSNR(-4.0, 10.0), 1.0))

        def of_log_snr(x, t):  # the same function of the log-SNR whatever the schedule
            return noise(x, (10.0 - sde.log_snr(t)) / 14.0)

        return jnp.mean(
            denoising_loss(of_log_snr, sde, x, key, times=times, weighting="likelihood")
        )

    schedule = parameters()["schedule"]
    keys = jax.random.split(KEY, 24)
    gradients = jax.lax.map(lambda key: jax.grad(loss)(schedule, key), keys)
    ends = jax.grad(lambda s: s.log_snr(jnp.float32(1e-3)))(schedule)
    lows = jax.grad(lambda s: s.log_snr(jnp.float32(1.0)))(schedule)
    # d loss = a d lambda_eps - b d lambda_1, whichever parameter moves the ends.
    columns = np.stack(
        [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(g)]) for g in (ends, lows)], 1
    )
    means = np.concatenate([np.mean(g, 0).ravel() for g in jax.tree.leaves(gradients)])
    errors = np.concatenate(
        [(np.std(g, 0) / np.sqrt(len(keys))).ravel() for g in jax.tree.leaves(gradients)]
    )
    rest = means - columns @ np.linalg.lstsq(columns, means)[0]
    np.testing.assert_array_less(np.abs(rest), 5 * errors + 1e-4)
    assert np.abs(means).max() > 20 * errors.max()


# --- one log-SNR for each dimension -----------------------------------------------------------

FALL, CURVATURE = np.array([9.0, 14.0, 11.0]), np.array([0.6, -0.5, 0.2])
SPREAD = Gaussian.of([0.3, -0.2, 0.5], [0.5, 0.1, 0.9])  # independent dimensions


def of_dimensions(data, sde):
    """The exact noise prediction of a Gaussian where dimensions have their own alpha and sigma."""

    def eps(x, t):
        lam = sde.log_snr(t)
        alpha, sigma = jnp.sqrt(jax.nn.sigmoid(lam)), jnp.sqrt(jax.nn.sigmoid(-lam))
        alpha, sigma = (jnp.broadcast_to(c, x.shape) for c in (alpha, sigma))
        covariance = alpha[:, :, None] * jnp.asarray(data.covariance) * alpha[:, None, :]
        covariance = covariance + jax.vmap(jnp.diag)(jnp.square(sigma))
        return sigma * jnp.linalg.solve(covariance, (x - alpha * data.mu)[..., None])[..., 0]

    return eps


def normal_at(data, sde, x, t):
    """log p_t(x) of Gaussian data."""
    lam = np.broadcast_to(np.asarray(sde.log_snr(jnp.full(len(x), t))), x.shape)
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-lam))), np.sqrt(1 / (1 + np.exp(lam)))
    found = []
    for row, a, s in zip(x, alpha, sigma, strict=True):
        w, v = np.linalg.eigh(a[:, None] * data.covariance * a + np.diag(s**2))
        found.append(log_normal((row - a * data.mu) @ v, w))
    return np.array(found)


@pytest.mark.long
def test_likelihood_by_dimension(x64):
    """With codes of images; dimensions that depend on one another, and the prior reached."""
    data, code = Gaussian.random(7, 3), jnp.asarray([1.0, -1.0, 0.5, 0.0])
    sde = SDE("vp", Curved(8.0, jnp.asarray([30.0, 34.0, 32.0]), jnp.asarray(CURVATURE)), 1.0)
    coded = sde.at(code)
    x = data.draw(0, 4)
    options = {"eps": 1e-3, "solver": Multistep(512)}
    noise = of_dimensions(data, coded)
    found = jax.jit(
        lambda x: ode_log_likelihood(noise, coded, x, KEY, divergence=Exact(), **options)
    )(jnp.asarray(x))
    np.testing.assert_allclose(found.log_prob, normal_at(data, coded, x, 1e-3), atol=1e-4)
    back = ode_sample(noise, coded, found.latent, **options)
    np.testing.assert_allclose(back, x, atol=1e-4)
    # Random probes estimate the same, with their error.
    solve = jax.jit(
        lambda key: ode_log_likelihood(
            noise, coded, jnp.asarray(x), key, divergence=Hutchinson(), **options
        ).log_prob
    )
    drawn = np.stack([solve(key) for key in jax.random.split(KEY, 24)])
    error = np.abs(drawn.mean(axis=0) - found.log_prob)
    assert (error < 5 * drawn.std(axis=0) / np.sqrt(24)).all() and drawn.std() > 1e-3


@pytest.mark.long
def test_likelihood_and_bound_by_independent_dimension(x64):
    """Each dimension alone is a closed form, the prior's mismatch in it."""
    sde = SDE("vp", Curved(8.0, jnp.asarray(FALL), jnp.asarray(CURVATURE)), 1.0)
    x, eps = SPREAD.draw(0, 5), 1e-3
    exact, bounds = np.zeros(5), np.zeros(5)
    for i in range(3):
        data = Gaussian.of([SPREAD.mu[i]], [SPREAD.w[i]])
        lam = [8 - FALL[i] * (t + CURVATURE[i] * t * (1 - t)) for t in (eps, 1.0)]
        # The ends are all that these closed forms depend on.
        rate = (lam[0] - lam[1]) / (1 - eps)
        line = SDE("vp", LinearLogSNR(lam[1], lam[0] + rate * eps), 1.0)
        exact += data.log_model(line, x[:, i : i + 1], eps)
        bounds += data.bound(line, x[:, i : i + 1], eps)["log_prob"]
    noise, copies = of_dimensions(SPREAD, sde), 40
    found = jax.jit(
        lambda x: ode_log_likelihood(
            noise, sde, x, KEY, eps=eps, divergence=Exact(), solver=Multistep(256)
        )
    )(jnp.asarray(x))
    np.testing.assert_allclose(found.log_prob, exact, atol=1e-4)
    bound = jax.jit(
        lambda x: elbo(
            noise, sde, x, KEY, eps=eps, times=UniformTime(eps, stratified=True), draws=1000
        )
    )(jnp.tile(jnp.asarray(x), (copies, 1)))
    assert bound.profile is None
    check_bound(bound, np.tile(bounds, copies), copies)


def test_a_schedule_of_colours_counts_for_all_pixels():
    """It is the same numbers as a schedule of each pixel's colours, in all that sums over them."""
    fall, shape = np.array([[[16.0, 18.0, 20.0]]], np.float32), (2, 2, 3)
    x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, *shape)

    def numbers(fall):
        sde = SDE("straight", Curved(8.0, jnp.asarray(fall), jnp.asarray(0.2)), 1.0)
        model = ScoreModel(lambda x, t: sde.sigma(t) * x, sde, eps=1e-3, shape=shape)
        t = jnp.full(2, 1e-3)
        return (
            model.log_prob(x, KEY, solver=Multistep(8)).log_prob,
            model.elbo(x, KEY, draws=4).log_prob,
            Entropy().known(sde, jnp.asarray(x), None, t),
        )

    whole = np.broadcast_to(fall, shape)
    np.testing.assert_allclose(numbers(fall), numbers(whole), rtol=1e-5)


def test_the_path_between_the_ends_does_not_matter_to_an_exact_prediction(x64):
    """Dimensions that depend on one another, all with the same ends of their log-SNR."""
    data, eps = Gaussian.random(8, 3), 1e-6
    curved = SDE("vp", Curved(8.0, jnp.full(3, 13.0), jnp.asarray(CURVATURE)), 1.0)
    plain = SDE("vp", LinearLogSNR(-5.0, 8.0), 1.0)
    copies = 40
    x = np.tile(data.draw(1, 4), (copies, 1))
    bound = jax.jit(
        lambda x: elbo(
            of_dimensions(data, curved), curved, x, KEY,
            eps=eps, times=UniformTime(eps, stratified=True), draws=1000,
        )
    )(jnp.asarray(x))  # fmt: skip
    check_bound(bound, data.bound(plain, x, eps)["log_prob"], copies)



@pytree
@dataclass(frozen=True)
class Betas(PerDimension):
    """Those of VP, with a slope for each dimension: the weight of a time grows as 1/t."""

    slopes: Float[Array, " d"]

    def log_snr(self, t):
        t = t[..., None]
        return -jnp.log(jnp.expm1(self.slopes * t**2 + 0.1 * t))


@pytest.mark.long
def test_the_error_of_a_bound_by_dimension_covers():
    """Data N(0, I), whose marginals are those of the prior at all times."""
    sde = SDE("vp", Betas(jnp.asarray([8.0, 10.0, 12.0])), 1.0)
    model = ScoreModel(lambda x, t: sde.sigma(t) * x, sde, eps=1e-5, shape=(3,))
    x = np.array([1.0, -1.0, 0.5], np.float32)
    found = model.elbo(np.tile(x, (200, 1)), KEY)
    error = np.abs(found.log_prob - stats.norm.logpdf(x).sum())
    assert np.median(found.stderr) < 1 and (error < 2 * found.stderr).mean() > 0.9
