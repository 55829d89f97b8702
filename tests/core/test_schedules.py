"""One battery for every pair of a kernel and a schedule, against formulas in extended precision.

Derivatives of the formulas are differences.
"""

import dataclasses
import json
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from helpers.marks import some
from helpers.schedules import (
    BETAS,
    SCHEDULES,
    Curved,
    Monotone,
    log_alpha_and_sigma,
    log_snr,
    parameters,
)

from scoremle.core.kernels import KERNELS
from scoremle.core.learned_schedules import learned_schedule
from scoremle.core.pytree import pytree
from scoremle.core.schedules import (
    Discrete,
    KarrasSigma,
    LinearLogSNR,
    Schedule,
)
from scoremle.core.sde import SDE, VE, VP, LinearVE, SubVP
from scoremle.core.times import UniformLogSNR

Number = np.longdouble
# Of a difference, relative to its place.
STEP = Number(1e-3)
every_schedule = pytest.mark.parametrize("name", SCHEDULES)
MONOTONE = SCHEDULES["learned"]
every_kernel = pytest.mark.parametrize("kernel", KERNELS)
either_precision = some("bits", [32, 64], quick=[32])


def slope(function, x, h):
    """The derivative by differences, of fourth order."""
    near, far = function(x + h) - function(x - h), function(x + 2 * h) - function(x - 2 * h)
    return (8 * near - far) / (12 * h)


def times(name):
    """From 1e-6 to 0.9, and off the knots of a table."""
    if name == "discrete":
        return (np.arange(len(BETAS) - 1) + 1.4) / len(BETAS)
    return np.concatenate([10.0 ** np.linspace(-6, -1, 21), np.linspace(0.12, 0.9, 19)])


def expected(kernel, schedule):
    """What is known of a pair, each as a function of (parameters, t)."""

    def lam(p, t):
        return log_snr(schedule, p, t)

    def log_alpha(p, t):
        return log_alpha_and_sigma(kernel, lam(p, t))[0]

    def in_t(function):
        return lambda p, t: slope(lambda t: function(p, t), t, t * STEP)

    return {
        "log_snr": lam,
        "log_alpha": log_alpha,
        "sigma": lambda p, t: log_alpha_and_sigma(kernel, lam(p, t))[1],
        "likelihood_weight": lambda p, t: -in_t(lam)(p, t),
        "f": in_t(log_alpha),
    }


# --- values and derivatives -------------------------------------------------------------------


KINDS = ("value", "d/dt", "d/dtheta")


@either_precision
@every_kernel
@every_schedule
def test_pairs_and_their_derivatives(kernel, name, bits):
    """Values, and how they change with t and with the numbers of the schedule."""
    schedule, quantities = SCHEDULES[name], expected(kernel, SCHEDULES[name])
    rng, p = np.random.default_rng(0), parameters(schedule, Number)
    # A direction among the parameters, in proportion to each.
    direction = {k: np.asarray(v * rng.uniform(0.5, 1, v.shape), Number) for k, v in p.items()}
    with jax.enable_x64(bits == 64):
        t = jnp.asarray(times(name), f"float{bits}")
        tangent = jax.tree.unflatten(
            jax.tree.structure(schedule),
            [jnp.asarray(direction[k], f"float{bits}") for k in p],
        )
        whole = jax.tree.map(lambda a: jnp.asarray(a, f"float{bits}"), schedule)

        @jax.jit
        def ours(schedule, t):
            def values(schedule, t):
                sde = SDE(kernel, schedule, 1.0)
                return {key: getattr(sde, key)(t) for key in quantities}

            value, by_t = jax.jvp(lambda t: values(schedule, t), (t,), (jnp.ones_like(t),))
            return value, by_t, jax.jvp(lambda s: values(s, t), (schedule,), (tangent,))[1]

        found = jax.tree.map(lambda a: np.asarray(a), ours(whole, t))
    at = np.asarray(t, Number)
    for key, function in quantities.items():
        assert found[0][key].dtype == t.dtype
        moved = lambda h: function({k: v + h * direction[k] for k, v in p.items()}, at)  # noqa: B023, E731
        wanted = (
            function(p, at),
            slope(lambda t: function(p, t), at, at * STEP),  # noqa: B023
            slope(moved, Number(0), STEP),
        )
        # In t a derivative is measured by value / t, in parameters (moved in proportion) by the
        # value; the log-SNR passes through zero, and changes by about one.
        scale = np.abs(wanted[0]) + (key == "log_snr")
        for kind, value, truth, unit in zip(KINDS, found, wanted, (1, at, 1), strict=True):
            error = np.abs(value[key] - truth) / (np.abs(truth) + scale / unit + 1e-300)
            assert error.max() < (2e-5 if bits == 32 else 1e-7), (key, kind, error.max())


@every_schedule
def test_both_ends(name):
    """Finite at t = 1 in float32, and never NaN at t = 0."""
    schedule = SCHEDULES[name]
    truth = log_snr(schedule, parameters(schedule, Number), np.ones(1, Number))
    np.testing.assert_allclose(schedule.log_snr(jnp.ones(1)), truth, rtol=1e-6)
    for kernel in KERNELS:
        sde = SDE(kernel, schedule, 1.0)
        alpha, sigma = (np.asarray(c(jnp.zeros(1))) for c in (sde.alpha, sde.sigma))
        assert np.isfinite([alpha, sigma]).all() and alpha > 0.9
        assert np.isfinite([sde.f(jnp.zeros(1)), sde.g2(jnp.zeros(1))]).all()


# --- the inverse ------------------------------------------------------------------------------


def bisected(schedule):
    """The same schedule without its closed inverse."""
    kind = type(schedule)
    return pytree(type("Bisected", (kind,), {"time_of_log_snr": Schedule.time_of_log_snr}))(
        *(getattr(schedule, f.name) for f in dataclasses.fields(schedule))
    )


@either_precision
@pytest.mark.parametrize("closed", [True, False])
@every_schedule
def test_the_inverse(name, closed, bits):
    """t at a log-SNR, and how it changes with the log-SNR and with the schedule's numbers."""
    schedule = SCHEDULES[name] if closed else bisected(SCHEDULES[name])
    if closed and "time_of_log_snr" not in type(schedule).__dict__:
        pytest.skip("no closed inverse")
    with jax.enable_x64(bits == 64):
        t = jnp.asarray(times(name), f"float{bits}")
        lam, rate = jax.jit(lambda t: jax.jvp(schedule.log_snr, (t,), (jnp.ones_like(t),)))(t)
        whole = jax.tree.map(lambda a: jnp.asarray(a, t.dtype), schedule)
        direction = jax.tree.map(lambda a: a * jnp.linspace(0.5, 1, a.size).reshape(a.shape),
                                 whole)  # fmt: skip
        moved = jax.jit(lambda s: jax.jvp(lambda s: s.log_snr(t), (s,), (direction,))[1])(whole)

        @jax.jit
        def ours(schedule, lam):
            t, by_lam = jax.jvp(schedule.time_of_log_snr, (lam,), (jnp.ones_like(lam),))
            by_p = jax.jvp(lambda s: s.time_of_log_snr(lam), (schedule,), (direction,))[1]
            return t, by_lam, by_p

        found = [np.asarray(a, np.float64) for a in ours(whole, lam)]
        assert ours(whole, lam)[0].dtype == t.dtype
        digits = np.finfo(t.dtype).eps
    # As near as the digits of lambda allow.
    t, lam, rate, moved = (np.asarray(a, np.float64) for a in (t, lam, rate, moved))
    allowed = 4 * digits * (t + np.maximum(np.abs(lam), 14) / np.abs(rate))
    assert (np.abs(found[0] - t) <= allowed).all()
    rtol = 2e-4 if bits == 32 else 1e-7
    np.testing.assert_allclose(found[1], 1 / rate, rtol=rtol)
    size = np.abs(moved / rate).max()
    np.testing.assert_allclose(found[2], -moved / rate, rtol=rtol, atol=rtol * size)


@either_precision
def test_bisection_finds_every_digit(bits):
    """Of a log-SNR that is t itself, turned round: near 0 too."""

    @pytree
    @dataclass(frozen=True)
    class Identity(Schedule):
        def log_snr(self, t):
            return -t

    with jax.enable_x64(bits == 64):
        t = jnp.asarray(np.geomspace(1e-35, 1, 500), f"float{bits}")
        np.testing.assert_array_equal(Identity().time_of_log_snr(-t), t)
        ends = Identity().time_of_log_snr(jnp.asarray([-2.0, 1.0], t.dtype))
    np.testing.assert_allclose(ends, [1, 0], atol=1e-40)


def test_the_inverse_differentiates_in_reverse_under_vmap_and_twice(x64):
    lam = jnp.asarray([4.0, 0.5, -3.0])
    whole = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), MONOTONE)
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), whole)

    @jax.jit
    def total(schedule):
        return jnp.sum(jnp.sin(jax.vmap(schedule.time_of_log_snr)(lam)))

    @jax.jit
    def slope(schedule):
        return jax.jvp(total, (schedule,), (direction,))[1]

    forward = slope(whole)
    gradient = jax.jit(jax.grad(total))(whole)
    dots = jax.tree.map(lambda a, b: jnp.sum(a * b), gradient, direction)
    assert isinstance(gradient, Monotone)
    np.testing.assert_allclose(sum(jax.tree.leaves(dots)), forward, rtol=1e-12)

    moved = [jax.tree.map(lambda a, b, h=h: a + h * b, whole, direction) for h in (1e-4, -1e-4)]
    np.testing.assert_allclose((total(moved[0]) - total(moved[1])) / 2e-4, forward, rtol=1e-6)
    slopes = [slope(s) for s in moved]
    second = jax.jit(lambda s: jax.jvp(slope, (s,), (direction,))[1])(whole)
    np.testing.assert_allclose((slopes[0] - slopes[1]) / 2e-4, second, rtol=1e-5)


# --- steps ------------------------------------------------------------------------------------


def test_a_table_of_betas_is_ddpms():
    """alpha_bar at the steps, the labels, and where time begins."""
    betas = np.linspace(1e-4, 0.02, 1000)
    schedule = Discrete.of_betas(betas)
    t = (np.arange(1000) + 1) / 1000
    alpha_bar = np.cumprod(1 - betas)
    sde = SDE("vp", schedule, 1.0)
    lam = np.log(alpha_bar / (1 - alpha_bar))

    @jax.jit
    def run(t, between):
        half = schedule.time_of_log_snr(between)
        return sde.alpha(t), schedule.label(t), schedule.label(half)

    alpha, label, halves = run(jnp.asarray(t), jnp.asarray((lam[:-1] + lam[1:]) / 2))
    np.testing.assert_allclose(np.square(alpha), alpha_bar, rtol=1e-5)
    np.testing.assert_allclose(label, np.arange(1000), atol=1e-4)
    assert schedule.eps == 1e-3
    # Equal log-SNR: half way between two of them lies half a step.
    np.testing.assert_allclose(halves, np.arange(999) + 0.5, atol=3e-3)
    assert lam[0] == pytest.approx(9.21, abs=0.01)


def test_zero_terminal_snr_ends_at_a_stated_log_snr():
    betas = np.append(BETAS, 1.0)
    schedule = Discrete.of_betas(betas, log_snr_min=-20.0)
    np.testing.assert_allclose(schedule.log_snr(jnp.ones(1)), [-20.0])
    np.testing.assert_array_equal(schedule.log_snrs[:-1], SCHEDULES["discrete"].log_snrs)
    with pytest.raises(ValueError, match="log_snr_min"):
        Discrete.of_betas(betas)
    # Where it is no less than that of a step before, these stay as they are.
    before = SCHEDULES["discrete"].log_snrs[-1]
    for least in (before, before + 3):
        found = Discrete.of_betas(betas, log_snr_min=least).log_snrs
        np.testing.assert_array_equal(found[:-1], SCHEDULES["discrete"].log_snrs)
        assert found[-1] == before - 1


# --- an SDE is a tree of numbers --------------------------------------------------------------


def test_numbers_are_leaves_and_gradients_are_no_sdes():
    """What is not an SDE may have the structure of one: no constructor checks it."""
    gradient = jax.jit(jax.grad(lambda sde: -jnp.sum(sde.sigma(jnp.ones(3)))))(VE())
    assert isinstance(gradient, VE) and gradient.sigma_max < 0
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, SDE("vp", MONOTONE, 1.0)))
    assert jax.tree.structure(shapes) == jax.tree.structure(SDE("vp", MONOTONE, 1.0))
    assert [leaf.shape for leaf in jax.tree.leaves(shapes)] == [(), (3,), (3,), (3,), ()]
    assert jax.tree.leaves(VP(0.3, 7.0)) == [0.3, 7.0, 1.0]
    assert jax.tree.map(lambda leaf: False, VP()).schedule.beta_max is False


@jax.jit
def there_and_back(sde, t):
    """Times of the log-SNRs at t, and the derivatives of these times."""
    lam = jax.lax.optimization_barrier(sde.log_snr(t))
    return sde.time_of_log_snr(lam), jax.vmap(jax.grad(sde.time_of_log_snr))(lam)


@pytest.mark.parametrize("beta_max", [1e-4, 1e-3, 0.1])
def test_betas_that_fall_end_at_one(beta_max):
    sde = VP(20.0, beta_max)
    times, slopes = there_and_back(sde, jnp.asarray([0.3, 1.0]))
    np.testing.assert_allclose(times, [0.3, 1], atol=2e-3)
    assert times[1] <= 1
    assert np.isfinite(slopes[1])


def test_one_program_serves_sdes_of_other_numbers():
    traced = []

    @jax.jit
    def end(sde):
        traced.append(sde)
        return sde.log_snr(jnp.ones(())), sde.time_of_log_snr(jnp.zeros(())), VP(sde.beta_min, 9.0)

    for beta_max in (10.0, 20.0):
        found, time, made = end(VP(0.1, beta_max))
        np.testing.assert_allclose(found, VP(0.1, beta_max).log_snr(1.0), rtol=1e-6)
        np.testing.assert_allclose(time, VP(0.1, beta_max).time_of_log_snr(0.0), rtol=1e-6)
        assert isinstance(made, VP) and made.beta_max == 9
    assert len(traced) == 1


@pytest.mark.parametrize(
    "sde",
    [VP(), SubVP(), VE(), LinearVE(), *(SDE("straight", s, 1.0) for s in SCHEDULES.values())],
)
def test_a_description_is_the_same_on_any_device_and_in_json(sde):
    record = sde.describe()
    assert json.loads(json.dumps(record)) == record
    assert jax.device_put(sde).describe() == record
    # Another number makes another record, whichever it is.
    leaves, structure = jax.tree.flatten(sde)
    for i, leaf in enumerate(leaves):
        other = [*leaves[:i], np.asarray(leaf) * np.float32(1.001), *leaves[i + 1 :]]
        assert jax.tree.unflatten(structure, other).describe() != record
    assert SDE("ve", sde.schedule, sde.prior_std).describe() != record


class Course(Schedule):
    """A schedule of one's own that is not a dataclass."""

    def __init__(self, first):
        self.first = first

    def log_snr(self, t):
        return self.first - 20 * t


def test_a_schedule_of_one_s_own_is_described_by_its_class_and_what_it_holds():
    first, again, other = (SDE("vp", Course(n), 1.0).describe() for n in (9.0, 9.0, 8.0))
    assert first == again != other
    assert first["schedule"]["type"].endswith("test_schedules.Course")


def test_a_description_says_what_it_is():
    assert VP().describe() == {
        "type": "VP",
        "kernel": "vp",
        "schedule": {"type": "LinearBeta", "beta_min": 0.1, "beta_max": 20.0, "kernel": "vp"},
        "prior_std": 1.0,
    }
    assert repr(VP()) == "VP(beta_min=0.1, beta_max=20.0)"
    assert repr(SubVP(0.2)) == "SubVP(beta_min=0.2, beta_max=20.0)"
    assert repr(VE()) == "VE(sigma_min=0.01, sigma_max=50.0)"
    assert repr(LinearVE()) == "LinearVE(sigma_max=50.0)"
    assert VP() == VP() != VP(0.2) and hash(VP()) == hash(VP())


# --- one log-SNR for each dimension -----------------------------------------------------------


def test_dimensions_have_their_own_log_snr():
    fall = np.float32([[3.0, 5.0], [8.0, 12.0]])
    curvature = np.float32([[0.5, 0.0], [-0.3, 0.8]])
    code, t = np.float32([1.0, 2.0, 0.5]), np.float32([0.1, 0.5, 0.9])
    bend, time = curvature * code[:, None, None], t[:, None, None]
    lam = 8 - fall * (time + bend * time * (1 - time))
    sigma2 = 1 / (1 + np.exp(lam))
    x, z = np.random.default_rng(0).normal(size=(2, 3, 2, 2)).astype(np.float32)
    noisy = np.sqrt(1 - sigma2) * x + np.sqrt(sigma2) * z
    weight = fall * (1 + bend * (1 - 2 * time))

    @jax.jit
    def run(code, t, x, z):
        sde = SDE("vp", Curved(8.0, fall, curvature), 1.0).at(code)
        return sde.log_snr(t), sde.perturb(x, t, z), sde.likelihood_weight(t), sde.g2(t), sde.f(t)

    log_snr, perturbed, rate, g2, f = run(code, t, x, z)
    np.testing.assert_allclose(log_snr, lam, rtol=1e-6)
    np.testing.assert_allclose(perturbed, noisy, rtol=1e-4)
    np.testing.assert_allclose(rate, weight, rtol=1e-5)
    np.testing.assert_allclose(g2, sigma2 * weight, rtol=1e-5)
    np.testing.assert_allclose(f, -sigma2 * weight / 2, rtol=1e-4)


# --- what can't be had ------------------------------------------------------------------------

CURVED = SDE("vp", Curved(8.0, np.ones(2), 0.0), 1.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LinearLogSNR(5.0, -5.0), "log_snr_min"),
        (lambda: KarrasSigma(1.0, 0.5), "sigma_min"),
        (lambda: Discrete(np.ones(1)), "two steps"),
        (lambda: Discrete(np.array([1.0, 1.0])), "must fall"),
        (lambda: Discrete.of_betas(np.array([0.1, 0.0])), "at most 1"),
        (lambda: VP().at(np.zeros(3)), "all images"),
        (lambda: CURVED.time_of_log_snr(0.0), "each dimension"),
        (lambda: UniformLogSNR(CURVED, 1e-3)(jax.random.key(0), 2), "each dimension"),
        (lambda: CURVED.common_log_snr(1e-3), "each dimension"),
    ],
)
def test_what_is_no_schedule_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@some(
    "bits, kind",
    [(32, "scalar"), (64, "scalar"), (32, "nnet"), (64, "nnet")],
    quick=[(32, "scalar"), (64, "scalar"), (32, "nnet")],
)
def test_golden_learned_schedules(kind, bits, golden):
    """VDM's, with their slopes, by parameters that may be negative."""
    arrays, prefix = golden("vdm_loss"), f"schedules/{kind}"
    flat = {
        name.removeprefix(f"{prefix}/params/"): value
        for name, value in arrays.items() if name.startswith(f"{prefix}/params/")
    }  # fmt: skip
    with jax.enable_x64(bits == 64):
        params = jax.tree.map(lambda a: jnp.asarray(a, f"float{bits}"), flat)
        schedule = learned_schedule(unflatten_dict(params, sep="/"))
        t = jnp.asarray(arrays["schedules/t"], f"float{bits}")
        lam, slopes = jax.jit(lambda t: jax.jvp(schedule.log_snr, (t,), (jnp.ones_like(t),)))(t)
    digits = 2e-6 if bits == 32 else 1e-9
    for name, found in (("gamma", -lam), ("dgamma_dt", -slopes)):
        expected = arrays[f"{prefix}/{name}"]
        atol = digits * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=atol, err_msg=name)
