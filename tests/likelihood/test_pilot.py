"""The pilot takes the fewest steps whose error is what it says and small beside the probes'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from helpers.oracles import SDES, Gaussian, RoughGaussian

from scoremle.core.condition import conditioned
from scoremle.core.divergence import Exact, Hutchinson
from scoremle.likelihood.levels import StepLevels
from scoremle.likelihood.ode import ode_log_likelihood
from scoremle.likelihood.pilot import (
    LIMIT,
    STEPS,
    Pilot,
    Solved,
    _calibration,
    choose_within,
)
from scoremle.likelihood.record import HIDDEN
from scoremle.solvers.multistep import Multistep

DIMS = 8


def setting(divergence, data=Gaussian.random(6, DIMS), **options):  # noqa: B008
    sde = SDES["vp"]
    x = data.draw(7, 8).astype(np.float32)
    noise, key = data.noise(sde), jax.random.key(1)
    options = {"eps": 1e-5, "divergence": divergence} | options
    return data, sde, noise, x, Pilot.of_reals(noise, sde, jnp.asarray(x), key, **options)


@pytest.mark.long
def test_the_measured_error_is_the_true_one():
    data, sde, noise, x, pilot = setting(Exact())
    choice = pilot.fewest()
    assert choice.met and choice.solver_error <= LIMIT and choice.probe_stderr == 0
    result = ode_log_likelihood(
        noise, sde, jnp.asarray(x), jax.random.key(0), eps=1e-5, divergence=Exact(),
        solver=Multistep(choice.solver.steps),
    )  # fmt: skip
    exact = data.log_model(sde, x.astype(np.float64), 1e-5)
    error = -(result.log_prob - exact) / (DIMS * np.log(2))  # in bits/dim: estimate minus truth
    assert abs(error.mean()) > 1e-4
    size = np.sqrt(np.mean(error**2))
    np.testing.assert_allclose(size, choice.solver_error, rtol=0.1, atol=1e-5)
    np.testing.assert_allclose(error.mean(), choice.solver_bias, rtol=0.1, atol=1e-5)
    spread = np.var(pilot.bpd(choice.solver.steps) - pilot._truth, ddof=1)
    stderr = np.sqrt((spread + np.mean(pilot._doubt**2)) / 8)
    np.testing.assert_allclose(choice.solver_bias_stderr, stderr, rtol=1e-6)
    pilot._truth = pilot._truth + 1  # the bias has a sign
    below = pilot.measure(choice.solver.steps).solver_bias
    np.testing.assert_allclose(below, choice.solver_bias - 1, rtol=1e-6)


@pytest.mark.parametrize(("size", "believed"), [(0.0, 128), (0.1, 256)])
def test_more_steps_are_taken_for_the_truth_where_half_of_them_disagree(size, believed):
    base = Gaussian.random(6, DIMS)
    data = RoughGaussian(np.zeros(DIMS), base.w, base.V, size)
    _, sde, _, x, pilot = setting(Exact(), data, finest=None)
    choice = pilot.fewest()
    truth = -data.log_model(sde, x.astype(np.float64), 1e-5) / (DIMS * np.log(2))

    def of(steps):
        return np.sqrt(np.mean((pilot.bpd(steps) - truth) ** 2))

    doubt = pilot.bpd(believed) - pilot.bpd(believed // 2)
    error = np.hypot(pilot.bpd(choice.solver.steps) - pilot.bpd(believed), doubt)
    assert choice.solver_error == np.sqrt(np.mean(error**2))
    assert of(choice.solver.steps) <= 1.2 * choice.solver_error
    assert believed == 256 or choice.solver_error < 1.2 * of(choice.solver.steps)


def test_the_error_of_the_most_steps_is_that_from_the_solution_by_twice_as_many():
    base = Gaussian.random(6, DIMS)
    data, sde = RoughGaussian(np.zeros(DIMS), base.w, base.V, 0.1), SDES["vp"]
    x, noise = data.draw(7, 8).astype(np.float32), data.noise(sde)
    choice = choose_within(noise, sde, jnp.asarray(x), tolerance=1e-6, eps=1e-5)
    assert choice.solver.steps == STEPS[-1] and not choice.met
    assert "more than was aimed at" in str(choice)
    result = ode_log_likelihood(
        noise, sde, jnp.asarray(x), jax.random.key(0), eps=1e-5, divergence=Exact(),
        solver=Multistep(STEPS[-1]),
    )  # fmt: skip
    bias = np.mean(data.log_model(sde, x.astype(np.float64), 1e-5) - result.log_prob)
    assert abs(choice.solver_bias - bias) < 3 * choice.solver_bias_stderr
    assert abs(choice.solver_bias) > 1e-3  # from its own solution there is none


def test_a_pilot_takes_the_conditions_of_its_own_rows():
    """As the argument, or within the noise prediction."""
    sde, means = SDES["vp"], np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)

    def noise(x, t, mean):
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        return sigma * (x - alpha * mean) / (0.3 * alpha**2 + sigma**2)

    how = {"tolerance": 0.1, "eps": 1e-3}
    apart = choose_within(noise, sde, jnp.asarray(means), **how, condition=means)
    within = choose_within(conditioned(noise, means), sde, jnp.asarray(means), **how)
    assert within == apart


@pytest.mark.long
def test_the_solver_stays_below_a_share_of_the_probes():
    choice = setting(Hutchinson())[-1].fewest()
    assert choice.solver.steps in STEPS and choice.met
    assert "more than was aimed at" not in str(choice)
    assert [steps for steps, _ in choice.tried] == [n for n in STEPS if n <= choice.solver.steps]
    assert choice.tried[-1] == (choice.solver.steps, choice.solver_error)
    assert choice.solver_error <= min(LIMIT, HIDDEN * choice.probe_stderr)
    more = setting(Hutchinson(16))[-1].fewest()
    assert more.probe_stderr < 0.5 * choice.probe_stderr


@pytest.mark.parametrize(
    ("first", "data", "probes"),
    [
        ("share", Gaussian.random(6, DIMS, 0.2), 1),
        pytest.param("limit", Gaussian.random(6, DIMS), 576, marks=pytest.mark.long),
    ],
)
def test_the_fewest_steps_that_meet_both_aims(first, data, probes):
    pilot = setting(Hutchinson(probes), data)[-1]
    choice = pilot.fewest()
    tried = [pilot.measure(steps) for steps in STEPS[: STEPS.index(choice.solver.steps) + 1]]
    met = {
        "share": [c.solver_error <= HIDDEN * c.probe_stderr for c in tried],
        "limit": [c.solver_error <= LIMIT for c in tried],
    }
    assert met[first][0]  # by this aim alone, the very first would do
    both = np.logical_and(met["share"], met["limit"])
    assert both[-1] and not both[:-1].any() and len(both) > 1


def test_calibration_by_hand():
    """Student's t with a degree of freedom for each image, from a table: 0.975 lie below it."""
    for images, deviations in ((4, 2.776), (8, 2.306)):
        stated = np.array([3.0, 5.0] * (images // 2))  # of root mean square sqrt(17)
        error = np.hypot(stated, np.sqrt(17)) * np.array([1.0, -7.0] * (images // 2))
        factor, typical = _calibration(error, stated)
        assert typical == pytest.approx(np.sqrt(17))
        assert factor == pytest.approx(5 * deviations, rel=1e-3)
    assert _calibration(np.full(3, 9.0), np.ones(3)) == (1, 0)
    # No error at all is measured where all numbers of steps agree to the last digit.
    factor, typical = _calibration(np.zeros(8), np.ones(8))
    assert Multistep(24, factor, typical).calibration > 0


def test_an_image_without_an_error_of_the_solver_has_the_typical_error():
    """Its neighbours' ratios are not what it is multiplied by."""
    error, stated = np.full(8, 2.0), np.array([1.0] * 7 + [1e-6])
    factor, typical = _calibration(error, stated)
    assert 1.5 * 2 < factor * np.hypot(1e-6, typical) < 4 * 2


@some(
    "divergence, steps",
    [(divergence, steps) for divergence in (Exact(), Hutchinson(2)) for steps in (12, 32)],
    quick=[(Exact(), 32)],
)
def test_a_calibrated_error_covers_that_of_other_images_and_is_no_wider_than_need_be(
    divergence, steps
):
    data, sde, noise, _, pilot = setting(divergence)
    choice = pilot.measure(steps)
    assert choice.solver.steps == steps
    x = data.draw(8, 200).astype(np.float32)
    truth = data.log_model(sde, x.astype(np.float64), 1e-5)

    def run(divergence, solver):
        return jax.jit(
            lambda x: ode_log_likelihood(
                noise, sde, x, jax.random.key(0), eps=1e-5, divergence=divergence, solver=solver
            )
        )(jnp.asarray(x))

    # The error is the exact trace's, whatever probes the image has.
    error = np.abs(run(Exact(), Multistep(steps)).log_prob - truth)
    stated = np.asarray(run(divergence, choice.solver).solver_error)
    raw = np.asarray(run(divergence, Multistep(steps)).solver_error)
    calibration, typical = choice.solver.calibration, choice.solver.typical
    together = calibration * np.hypot(raw, typical)
    together = np.maximum(together, raw - 3 * typical)  # one that is unlike the pilot's
    np.testing.assert_allclose(stated, together, rtol=1e-3)  # rounding is beside it
    # One pilot of a hundred is unlucky: each eight of the images serve as one.
    covered, width = [], []
    for eight in np.split(np.arange(200), 25):
        factor, typical = _calibration(error[eight], raw[eight])
        told = factor * np.hypot(raw, typical)
        covered.append(np.mean(error <= told))
        width.append(np.median(told / error))
    assert np.mean(covered) > 0.97 and np.median(width) < 4
    assert np.median(stated / error) < 4


def test_too_few_images_calibrate_nothing():
    _, sde, noise, x, _ = setting(Exact())
    few = jnp.asarray(x[:3]), jax.random.key(1)
    few = Pilot.of_reals(noise, sde, *few, eps=1e-5, divergence=Exact())
    assert few.measure(16).solver == Multistep(16)


def test_levels_for_a_mean_begin_with_what_an_image_needs():
    _, sde, noise, x, pilot = setting(Exact())
    options = {"images": 50_000, "passes": 1, "tolerance": 5e-4}
    choice = pilot.for_mean(**options)
    assert [steps for steps, _ in choice.tried] == [*STEPS, 256]
    assert choice.levels is not None and choice.levels.steps[0] == choice.solver.steps
    assert choice.solver.steps >= pilot.fewest().solver.steps
    assert choice.levels.bias <= 2.5e-4
    told = f"corrected to {choice.levels.steps[-1]} steps"
    assert (told in str(choice)) == (len(choice.levels.steps) > 1)
    assert pilot.for_mean(**options | {"images": 1}).levels is None

    def failing(x, t):
        return jnp.where(x[:1] == x, jnp.nan, noise(x, t))

    of = jnp.asarray(x), jax.random.key(1)
    failed = Pilot.of_reals(failing, sde, *of, eps=1e-5, divergence=Exact())
    assert failed.for_mean(**options).levels is None


# By numbers that are made up

SIGNS = np.array([1.0, -1.0, 1.0, -1.0])


def made(errors, probe=0.0, bits=2.0, **options):
    """A pilot whose bits/dim by so many steps are off by so much, with either sign; else hardly.

    It states these errors, and by 32 steps ``probe`` for that of its probes.
    """

    def solve(room, steps, *, held):
        error = errors.get(steps, 1e-7 / steps)
        each = np.full(4, probe * np.sqrt(32 / steps))
        return Solved(3 + error * SIGNS, np.full(4, abs(error)), each)

    divergence = Hutchinson(4) if probe else Exact()
    return Pilot(solve, divergence, bits=bits, **options)


@pytest.mark.parametrize(
    ("errors", "probe", "steps", "met"),
    [
        ({12: 0.00499}, 0, 12, True), ({12: 0.00501}, 0, 16, True), ({}, 0, 12, True),
        (dict.fromkeys(STEPS, 0.006), 0, 128, False),  # twice the doubt: each has sqrt(2) of it
        # A share of what the probes leave at 12 steps.
        ({12: 0.99 * HIDDEN * 1e-3 * np.sqrt(32 / 12)}, 1e-3, 12, True),
        ({12: 1.01 * HIDDEN * 1e-3 * np.sqrt(32 / 12)}, 1e-3, 16, True),
    ],
)  # fmt: skip
def test_the_fewest_steps_are_at_the_limit(errors, probe, steps, met):
    choice = made(errors, probe).fewest()
    assert (choice.solver.steps, choice.met, choice.examples) == (steps, met, 4)
    assert [n for n, _ in choice.tried] == [n for n in STEPS if n <= steps]
    doubt = np.sqrt(2) if not met else 1
    assert choice.solver_error == pytest.approx(doubt * errors.get(steps, 0.0), abs=1e-8)
    assert choice.probe_stderr == pytest.approx(probe * np.sqrt(32 / steps))


@pytest.mark.parametrize(("doubt", "believed"), [(0.0019, 128), (0.0021, 256)])
def test_half_of_an_error_may_be_doubt(doubt, believed):
    pilot = made({12: 0.004, 64: doubt}, finest=None)
    assert pilot.fewest().solver.steps == 12 and pilot._believed == believed


@pytest.mark.parametrize(
    ("tolerance", "steps", "met"), [(0.1001, 12, True), (0.0999, 16, True), (1e-9, 128, False)]
)
def test_the_solver_takes_half_of_a_tolerance(tolerance, steps, met):
    """Of 2 nats in a bit/dim, and 2.776 deviations of Student's t: as it is stated."""
    choice = made({12: 0.05 / 2 / 2.77645}).within(tolerance, dims=65)
    assert (choice.solver.steps, choice.met, choice.unit) == (steps, met, "nats")
    if steps == 12:
        assert choice.solver_error == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize(
    ("probe", "dims", "divergence"),
    [
        (1e-3, 64, Exact()), (1e-3, 65, Hutchinson(2)), (0.0, 65, Hutchinson(2)),
        (0.1, 65, Hutchinson(57)), (0.2, 65, Exact()),
    ],
)  # fmt: skip
def test_as_many_probes_as_a_tolerance_needs_or_the_exact_trace(probe, dims, divergence):
    """Of one probe 2 * 0.1 * sqrt(32 / 12) * 2 nats, of which sqrt(3) / 2 * 0.1 may be left."""
    choice = made({}, probe).within(0.1, dims)
    assert choice.divergence == divergence and choice.solver.steps == 12
    of_one = 4 * probe * np.sqrt(32 / 12)
    left = 0 if divergence == Exact() else of_one / np.sqrt(divergence.probes)
    assert choice.probe_stderr == pytest.approx(left)


@pytest.mark.parametrize(("images", "levels"), [(1, False), (2, True)])
def test_a_mean_of_two_images_has_levels(images, levels):
    choice = made({12: 0.004, 16: 0.001}).for_mean(images, 1, 1e-3)
    assert (choice.levels is not None) == levels


def test_levels_go_by_a_quarter_of_the_probes_noise_where_that_is_more(monkeypatch):
    called = []

    def choose(values, **options):
        called.append((sorted(values), options))
        return StepLevels((16, 32), (0.0,), 0.0)

    monkeypatch.setattr("scoremle.likelihood.pilot.choose_levels", choose)
    for tolerance in (1e-6, 1.0):
        choice = made({}, 0.01).for_mean(50, 2, tolerance)
        assert (choice.solver.steps, choice.levels.steps) == (16, (16, 32))
        steps, options = called.pop()
        assert steps == [*STEPS, 256]
        noise = 0.25 * 0.01 * np.sqrt(32 / 12) / 10
        wanted = {"coarsest": 12, "images": 50, "passes": 2, "tolerance": max(tolerance, noise)}
        assert options == pytest.approx(wanted)


def test_a_choice_is_a_record_of_plain_values():
    choice = made({12: 0.004}).fewest()
    found = choice.to_json()
    (tried,) = found.pop("tried")
    assert tried == pytest.approx([12, 0.004], rel=1e-4) and found.pop("levels") is None
    assert found == pytest.approx({
        "nodes": 12, "solver_error": 0.004, "solver_bias": 0.0,
        "solver_bias_stderr": 0.004 / np.sqrt(3), "probe_stderr": 0.0,
        "calibration": 2.7764 / np.sqrt(2), "typical": 0.008, "images": 4, "met": True,
    }, rel=1e-4, abs=1e-7)  # fmt: skip
