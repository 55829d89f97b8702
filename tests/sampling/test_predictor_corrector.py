"""Predictor-corrector samplers: the original's numbers, and the right distributions."""

import re
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden_networks import golden_noise
from helpers.marks import some
from helpers.oracles import (
    SDES,
    Gaussian,
    Mixture,
    drift_and_diffusion64,
    prior_std,
    schedule64,
)
from scipy import stats

from scoremle.core.keys import example_keys, split
from scoremle.core.schedules import Cosine, LinearBeta
from scoremle.core.sde import SDE, VP
from scoremle.errors import UserError
from scoremle.model import ScoreModel
from scoremle.numerics import expand
from scoremle.sampling.predictor_corrector import (
    PredictorCorrector,
    ald,
    ancestral_sampling,
    euler_maruyama,
    langevin,
    pc_sample,
    reverse_diffusion,
)

every_sde = pytest.mark.parametrize("name", SDES)
long = partial(pytest.param, marks=pytest.mark.long)
PREDICTORS = {
    f.__name__: f for f in (euler_maruyama, reverse_diffusion, ancestral_sampling)
} | {"none": None}
CORRECTORS = {f.__name__: f for f in (langevin, ald)} | {"none": None}


# The original's numbers


@cache
def network(net):
    """The golden network's noise prediction, compiled once for two images."""
    noise = golden_noise(net, SDES["ve" if net == "ncsnpp_ve" else "vp"])
    return jax.jit(noise)


def noise_of(name):
    """VP and sub-VP have the same network and the same labels."""
    return network("ncsnpp_ve" if name == "ve" else "ddpmpp")


def close(value, expected, tolerance):
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * np.abs(expected).max())


LANGEVIN = ("langevin_snr0.16_steps1", "langevin_snr0.07_steps2")
STEPS = [
    (name, rule)
    for name, predictors, correctors in (
        ("vp", PREDICTORS, (*LANGEVIN, "ald_snr0.16_steps1")),
        ("subvp", ("euler_maruyama", "reverse_diffusion"), ()),
        ("ve", PREDICTORS, LANGEVIN),
    )
    for rule in (*predictors, *correctors)
    if rule != "none"
]


@pytest.mark.parametrize("i", [0, 1])
@pytest.mark.parametrize(("name", "rule"), STEPS)
def test_single_steps_are_those_of_the_original(name, rule, i, golden):
    numbers, sde, noise = golden("samplers"), SDES[name], noise_of(name)
    prefix, tolerance = ("ve/", 2e-4) if name == "ve" else ("", 2e-5)
    t = jnp.asarray(numbers["t"][i])
    x, z = (jnp.asarray(numbers[prefix + key]) for key in ("x", "noise"))
    if name == "ve":
        x = x * expand(sde.sigma(t), x)

    def check(value, key):
        close(value, numbers[f"{name}/{key}"][i], tolerance)

    if rule in PREDICTORS:
        method = PredictorCorrector(predictor=PREDICTORS[rule])
        mean, std = method.predict(noise, sde, x, t, method.published)
        check(mean, f"{rule}/x_mean")
        check(mean + expand(std, x) * z, f"{rule}/x")
        if rule != "ancestral_sampling":
            flow = replace(method, probability_flow=True)
            mean, std = flow.predict(noise, sde, x, t, flow.published)
            check(mean, f"{rule}_pf/x_mean")
            assert not std.any()
    else:
        corrector, snr, steps = re.fullmatch(r"(\w+)_snr([\d.]+)_steps(\d)", rule).groups()
        method = PredictorCorrector(corrector=CORRECTORS[corrector], snr=float(snr))
        for _ in range(int(steps)):
            x = method.correct(noise, sde, x, t, z)
        check(x, f"{rule}/x")


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("vp", reverse_diffusion), ("vp", ancestral_sampling), ("vp", langevin),
        ("ve", reverse_diffusion), ("ve", ancestral_sampling),
    ],
)  # fmt: skip
def test_between_two_times_of_the_grid_a_step_is_that_of_the_lower(name, rule):
    """Rules of chains have beta and sigma at k / (N - 1) alone. The score here is -x."""
    sde, t, x = SDES[name], jnp.asarray([12.1, 12.9, 13.1]) / 29, jnp.ones((3, 2))

    def noise(x, t):
        return expand(sde.sigma(t), x) * x

    @jax.jit
    def move(x, t):
        if rule is langevin:
            return PredictorCorrector(30, corrector=rule).correct(noise, sde, x, t, x)
        method = PredictorCorrector(30, rule)
        mean, std = method.predict(noise, sde, x, t, method.published)
        return mean + expand(std, x)

    moved = np.asarray(move(x, t))
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-6)
    assert abs(moved[2] - moved[1]).min() > 1e-4


@some(
    "chain",
    [
        "vp/pc_euler_maruyama_none",
        "vp/pc_euler_maruyama_none_denoise",
        "vp/pc_reverse_diffusion_langevin_denoise",
        "vp/pc_ancestral_sampling_none_denoise",
        "subvp/pc_euler_maruyama_none_denoise",
        "subvp/pc_reverse_diffusion_none_denoise",
        "ve/pc_euler_maruyama_none_denoise",
        "ve/pc_reverse_diffusion_langevin_denoise",
        "ve/pc_ancestral_sampling_none_denoise",
    ],
    quick=["ve/pc_ancestral_sampling_none_denoise"],
)
def test_chains_are_those_of_the_original(chain, golden, monkeypatch):
    """Thirty steps in which every normal draw is the same array."""
    numbers = golden("samplers")
    name, rest = chain.split("/pc_")
    denoise = rest.endswith("_denoise")
    predictor, corrector = rest.removesuffix("_denoise").rsplit("_", 1)
    method = PredictorCorrector(
        30, PREDICTORS[predictor], CORRECTORS[corrector], denoise=denoise
    )
    z = jnp.asarray(numbers["ve/z" if name == "ve" else "z"])
    for place in ("scoremle.core.keys.per_example", "scoremle.core.sde.per_example"):
        monkeypatch.setattr(place, lambda *_: z)
    eps = 1e-2 if name == "subvp" else 1e-3
    draw = jax.jit(
        lambda key: pc_sample(noise_of(name), SDES[name], key, z.shape, eps=eps, method=method)
    )
    x = draw(jax.random.key(0))
    if name != "ve":
        x = (x + 1) / 2
    expected = numbers[f"{chain}/x"]
    close(x, expected, 5e-3 if name == "ve" else 1e-3)


# Right distributions

DATA = Gaussian.random(20, 2)
# Every pair of a predictor and an SDE for which it is defined.
DEFINED = [
    (predictor, name)
    for predictor in (euler_maruyama, reverse_diffusion, ancestral_sampling)
    for name in SDES
    if predictor is not ancestral_sampling or name in ("vp", "ve")
]


# Of chains, here; all have arrays of the size of the longest, and so the same small programs.
MOST = 1600


@jax.enable_x64(True)
def gaussian_moments(method, sde, eps):
    """Mean and covariance after the chain, exactly: with Gaussian data every step is affine."""
    noise, dims = DATA.noise(sde), DATA.dims
    points = np.vstack([np.zeros(dims), np.eye(dims)])
    x = jnp.asarray(np.tile(points, (MOST, 1)))
    times, step = method.grid(eps)
    t = jnp.asarray(np.repeat(np.resize(times, MOST), dims + 1))

    def affine(y):
        y = np.asarray(y).reshape(MOST, dims + 1, dims)
        return np.swapaxes(y[:, 1:] - y[:, :1], 1, 2), y[:, 0]

    shifted, std = method.predict(noise, sde, x, t, step)
    corrected = method.correct(noise, sde, x, t, jnp.zeros_like(x))
    spread = method.correct(noise, sde, x, t, jnp.ones_like(x)) - corrected
    rounds = [(*affine(shifted), np.asarray(std).reshape(MOST, -1)[:, 0])]
    if method.corrector is not None:
        spread = np.asarray(spread).reshape(MOST, -1)[:, 0]
        rounds = [(*affine(corrected), spread)] * method.corrector_steps + rounds
    mean, covariance = np.zeros(dims), prior_std(sde) ** 2 * np.eye(dims)
    for i in range(method.steps):
        for matrix, shift, std in rounds:
            mean = matrix[i] @ mean + shift[i]
            without = matrix[i] @ covariance @ matrix[i].T
            covariance = without + std[i] ** 2 * np.eye(dims)
    return mean, without if method.denoise else covariance


def truth(sde, t):
    alpha, sigma = schedule64(sde, t)
    return alpha * DATA.mu, alpha**2 * DATA.covariance + sigma**2 * np.eye(DATA.dims)


@pytest.mark.parametrize("flow", [False, True])
@some("predictor, name", DEFINED, quick=[pair for pair in DEFINED if pair[1] in ("vp", "ve")])
def test_the_error_is_of_first_order(predictor, name, flow, x64):
    if flow and predictor is ancestral_sampling:
        return
    sde, eps, errors = SDES[name], 1e-5, []
    for steps in (400, 800, 1600):
        method = PredictorCorrector(steps, predictor, probability_flow=flow, denoise=False)
        mean, covariance = gaussian_moments(method, sde, eps)
        # The flow keeps the prior's error: alpha_1 of the data's mean.
        np.testing.assert_allclose(mean, truth(sde, eps)[0], atol=4e-3)
        errors.append(np.abs(covariance - truth(sde, eps)[1]).max())
    assert errors[-1] < 0.03
    # (Ancestral sampling of VP is nearer than the order says.)
    assert errors[-1] < 1e-4 or np.all(np.divide(errors[:-1], errors[1:]) > 1.8), errors


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_the_error_of_the_flow_does_not_depend_on_where_its_steps_fall(name, x64):
    """Times of the rule are those of the steps, whatever the smallest time."""
    errors = [
        covariance_error(
            PredictorCorrector(steps, reverse_diffusion, probability_flow=True), SDES[name], 1e-2
        )
        for steps in (197, 199)
    ]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


def test_where_no_chain_was_published_the_rule_is_eulers(x64):
    """It has no root of 1 - beta, so any number of steps will do."""
    sde = SDE("vp", Cosine(), 1.0)
    x, y = (
        pc_sample(DATA.noise(sde), sde, jax.random.key(0), (3, 2), eps=1e-3,
                  method=PredictorCorrector(50, predictor))
        for predictor in (reverse_diffusion, euler_maruyama)
    )  # fmt: skip
    np.testing.assert_allclose(x, y, rtol=1e-9)


def covariance_error(method, sde, eps):
    return np.abs(gaussian_moments(method, sde, eps)[1] - truth(sde, eps)[1]).max()


@every_sde
def test_with_langevin_steps_the_error_falls_too(name, x64):
    few, many = (
        covariance_error(PredictorCorrector(steps, reverse_diffusion, ald), SDES[name], 1e-5)
        for steps in (400, 1600)
    )
    assert many < 3e-3 and many < 0.6 * few


def test_langevin_steps_repair_a_coarse_predictor(x64):
    """The flow of VE in 200 steps is far off."""
    method = PredictorCorrector(200, euler_maruyama, ald, corrector_steps=5, probability_flow=True)
    assert covariance_error(replace(method, corrector=None), SDES["ve"], 1e-3) > 0.1
    assert covariance_error(method, SDES["ve"], 1e-3) < 5e-3


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("vp", PredictorCorrector(50, reverse_diffusion, ald, corrector_steps=2)),
        long("subvp", PredictorCorrector(50, euler_maruyama, denoise=False)),
        long("ve", PredictorCorrector(50, ancestral_sampling)),
        long("ve_linear", PredictorCorrector(50, euler_maruyama, ald, probability_flow=True)),
    ],
)
def test_samples_have_the_moments_of_the_chain(name, method):
    """Of these few steps, that is: within the error of the mean of so many samples."""
    sde, n = SDES[name], 20_000
    expected, covariance = gaussian_moments(method, sde, 1e-3)
    draw = jax.jit(
        lambda key: pc_sample(DATA.noise(sde), sde, key, (n, 2), eps=1e-3, method=method)
    )
    x = draw(jax.random.key(3))
    assert x.dtype == jnp.float32
    x = np.asarray(x, np.float64)
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(x.mean(0) / scale, expected / scale, atol=5 / n**0.5)
    found = np.cov(x.T) / np.outer(scale, scale)
    np.testing.assert_allclose(found, covariance / np.outer(scale, scale), atol=7 / n**0.5)


MIXTURE = Mixture.on_line()


def distance(x, sde, t):
    """Greatest difference between the distribution function of samples and that of p_t."""
    alpha, sigma = schedule64(sde, t)
    widths = np.sqrt(alpha**2 * MIXTURE.stds**2 + sigma**2)
    parts = stats.norm.cdf((np.asarray(x, np.float64) - alpha * MIXTURE.means.T) / widths)
    return stats.kstest((MIXTURE.weights * parts).sum(1), "uniform").statistic


@some("name", SDES, quick=[])
def test_distribution_on_the_line(name):
    """Langevin steps included, for all four SDEs."""
    sde, n, eps = SDES[name], 4000, 1e-2 if name == "ve_linear" else 1e-3
    method = PredictorCorrector(800, reverse_diffusion, langevin, denoise=False)
    draw = jax.jit(
        lambda key: pc_sample(MIXTURE.noise(sde), sde, key, (n, 1), eps=eps, method=method)
    )
    assert distance(draw(jax.random.key(4)), sde, eps) < 0.04


@pytest.mark.parametrize("corrector", [langevin, ald])
@some("name", SDES, quick=["vp"])
def test_correctors_keep_the_distribution(name, corrector):
    """And lead to it: from samples that are all shifted."""
    sde, n = SDES[name], 4000
    time = float(sde.time_of_log_snr(jnp.float32(1.0)))
    method = PredictorCorrector(1000, None, corrector, snr=0.1)
    alpha, sigma = schedule64(sde, time)
    x = alpha * MIXTURE.draw(5, n) + sigma * np.random.default_rng(6).normal(size=(n, 1))
    t = jnp.full(n, time)

    @jax.jit
    def walk(x):
        def step(i, x):
            z = jax.random.normal(jax.random.fold_in(jax.random.key(7), i), x.shape)
            return method.correct(MIXTURE.noise(sde), sde, x, t, z)

        return jax.lax.fori_loop(0, 400, step, x)

    start = jnp.asarray(x + 0.5 * x.std(), jnp.float32)
    assert distance(start, sde, time) > 0.1
    assert distance(walk(start), sde, time) < 0.04


# Counting, and what can't be had


@pytest.mark.parametrize("predictor", [euler_maruyama, None])
@pytest.mark.parametrize("corrector", [langevin, None])
def test_evaluations_are_counted(predictor, corrector):
    calls, sde = [], SDES["ve"]

    def noise(x, t):
        jax.debug.callback(calls.append, t)  # when it is evaluated, not when it is compiled
        return DATA.noise(sde)(x, t)

    method = PredictorCorrector(2, predictor, corrector, corrector_steps=3, denoise=False)

    @jax.jit
    def sample_and_prior(key):
        drawn = sde.prior_sample(split(example_keys(key, 3))[0], (3, 2))
        return pc_sample(noise, sde, key, (3, 2), eps=1e-3, method=method), drawn

    x, drawn = sample_and_prior(jax.random.key(0))
    jax.effects_barrier()
    assert x.shape == (3, 2)
    assert len(calls) == method.evaluations
    assert np.array_equal(x, drawn) == (predictor is corrector is None)


def test_other_sdes_take_eulers_forward_step():
    """A chain belongs to the SDE that it was published with, not to its kernel."""
    sde = SDE("vp", LinearBeta(), 1.0)
    t, x, score = jnp.asarray([0.4]), jnp.ones((1, 2)), jnp.full((1, 2), 0.3)
    step = PredictorCorrector(100).published
    reverse = jax.jit(partial(reverse_diffusion, step=step))
    mean, std = reverse(sde, x, score, t)
    f, g2 = drift_and_diffusion64(SDES["vp"], 0.4)
    np.testing.assert_allclose(mean, x - (f * x - g2 * score) / 100, rtol=1e-5)
    np.testing.assert_allclose(std, np.sqrt(g2 / 100), rtol=1e-5)
    ddpm = reverse(SDES["vp"], x, score, t)
    assert np.abs(ddpm[1] - std) > 1e-4
    with pytest.raises(UserError, match="not for SDE"):
        PredictorCorrector(100, ancestral_sampling).check(sde)


@pytest.mark.parametrize(
    ("name", "method", "words"),
    [
        ("subvp", PredictorCorrector(100, ancestral_sampling), "not for SubVP"),
        ("ve_linear", PredictorCorrector(100, ancestral_sampling), "not for LinearVE"),
        ("vp", PredictorCorrector(100, ancestral_sampling, probability_flow=True), "flow"),
        ("vp", PredictorCorrector(20, reverse_diffusion), "too few"),
        ("subvp", PredictorCorrector(15, euler_maruyama, langevin), "beta_max = 20"),
        ("falling", PredictorCorrector(15, reverse_diffusion), "beta_max = 20"),
        ("falling", PredictorCorrector(15, corrector=ald), "beta_max = 20"),
    ],
)
def test_what_is_not_defined_is_refused(name, method, words):
    """Betas may be the largest at t = 0."""
    sde, key = (SDES | {"falling": VP(20.0, 0.1)})[name], jax.random.key(0)
    with pytest.raises(UserError, match=words):
        pc_sample(DATA.noise(sde), sde, key, (2, 2), eps=0.1, method=method)


@pytest.mark.parametrize(
    ("sde", "options"),
    [
        ("vp", {"predictor": reverse_diffusion}),
        ("vp", {"corrector": langevin}),
        ("subvp", {"predictor": ancestral_sampling}),
        ("vp", {"predictor": ancestral_sampling, "probability_flow": True}),
    ],
)
def test_a_model_refuses_what_the_sampler_does(sde, options):
    """Numbers of the SDE are data of the program that samples."""
    model = ScoreModel(lambda x, t: x, SDES[sde], 1e-2, (2,))
    method, words = PredictorCorrector(steps=10, **options), set()
    sampler = partial(pc_sample, method=method)
    for draw in (
        lambda: sampler(model.noise, model.sde, jax.random.key(0), (4, 2), eps=1e-2),
        lambda: model.sample(4, jax.random.key(0), sampler=partial(sampler)),
    ):
        with pytest.raises(UserError) as found:
            draw()
        words.add(str(found.value))
    assert len(words) == 1


def test_samples_that_langevin_mixes_are_not_copies_of_the_last():
    """The last batch has the samples that follow: of more samples, the first are the same."""
    sde = SDES["ve"]
    model = ScoreModel(lambda x, t: expand(sde.sigma(t), x) * x, sde, 1e-3, (2,))
    method = PredictorCorrector(5, reverse_diffusion, langevin)
    draw = partial(model.sample, sampler=partial(pc_sample, method=method), batch_size=8)
    few, many = (np.asarray(draw(n, jax.random.key(0))) for n in (9, 16))
    np.testing.assert_array_equal(few, many[:9])


def test_a_sample_that_fills_a_batch_up_may_be_any():
    """Only those that are wanted must be of finite numbers."""
    model = ScoreModel(lambda x, t: x, SDES["ve"], 1e-3, (1,))

    def below(limit):
        def sampler(noise, sde, key, shape, *, eps):
            x = jax.vmap(lambda k: jax.random.normal(k, shape[1:]))(key)
            return jnp.where(x > limit, jnp.nan, x)

        return partial(model.sample, key=jax.random.key(0), sampler=sampler)

    x = below(np.inf)(50)[:, 0]
    largest = 3 + int(x[3:].argmax())
    draw = below(x[largest] - 1e-3)
    np.testing.assert_array_equal(draw(largest, batch_size=largest - 1)[:, 0], x[:largest])
    with pytest.raises(UserError, match=f"sample {largest} "):
        draw(largest + 1, batch_size=largest - 1)
