"""Fixed steps: exact for polynomials, of the order of the theory, and honest about noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoremle.solvers.base import Problem
from scoremle.solvers.doubling import Doubling
from scoremle.solvers.multistep import DIFFERENCE, ORDER, Multistep, Planned, stated, step_table


def no_integrals(rate):
    def field(clock, state, draw):
        none = jnp.zeros((0, len(state)))
        return rate(clock, state), none, none

    return field


def solved(solver, problem, start):
    return jax.jit(lambda start: solver.solve(problem, start))(start)


def without_parts(integral_rates):
    return integral_rates, jnp.zeros((*integral_rates.shape, 0))


def test_a_plan_may_be_used_in_both_precisions():
    """JAX fails where an array that was a constant in one is an argument in the other."""

    def run(plan):
        return jax.jit(lambda plan: jnp.sum(plan.node))(plan)

    constant = jax.jit(lambda: jnp.stack(step_table(7, 300)[:1]).sum())
    with jax.enable_x64(True):
        double = constant(), run(step_table(7, 300))
    np.testing.assert_allclose((constant(), run(step_table(7, 300))), double, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_weights_integrate_what_they_interpolate(steps, x64):
    p = step_table(steps)
    assert p.node[0] == 0 and p.node[-1] == pytest.approx(1)
    for power in range(min(steps, DIFFERENCE) + 1):
        assert p.total @ p.node**power == pytest.approx(1 / (power + 1))
    if steps >= ORDER:
        gaps = [p.gap @ p.node**power for power in range(ORDER + 1)]
        np.testing.assert_allclose(gaps[:ORDER], 0, atol=1e-12)
        assert abs(gaps[ORDER]) > 1e-6
    for n in range(DIFFERENCE, steps + 1):
        window = p.node[n::-1][: DIFFERENCE + 1]
        moments = [p.contrast[n] @ window**k for k in range(DIFFERENCE)]
        np.testing.assert_allclose(moments, 0, atol=1e-12)
        assert np.linalg.norm(p.contrast[n]) == pytest.approx(1)


def test_the_order_of_convergence(x64):
    """y' = -y cos(c) + sin(2 c) on [0, 3], and the integral of y^2 beside it."""

    def field(clock, y, draw):
        c = clock[:, None]
        return -y * jnp.cos(c) + jnp.sin(2 * c), *without_parts(jnp.square(y).T)

    def exact(c):
        return 2 * np.sin(c) - 2 + 3 * np.exp(-np.sin(c))

    grid = np.linspace(0, 3, 200_001)
    area = np.trapezoid(exact(grid) ** 2, grid)
    state_errors, integral_errors = [], []
    for steps in (32, 64, 128):
        solution = solved(Multistep(steps), Problem(field, 0.0, 3.0), jnp.ones((1, 1)))
        state_errors.append(abs(float(solution.state[0, 0]) - exact(3.0)))
        integral_errors.append(abs(float(solution.integrals[0, 0]) - area))
    for errors in (state_errors, integral_errors):
        orders = np.log2(np.divide(errors[:-1], errors[1:]))
        assert (orders > 2.7).all(), (errors, orders)
    assert state_errors[-1] < 1e-5


def covered_and_wide(solver, slowest, fastest):
    """How often a solver's stated error covers the true one, and how many times it is larger, of
    sums of waves of so many cycles on the way."""
    batch, waves = 400, 20
    rng = np.random.default_rng(0)
    frequency = 2 * np.pi * rng.uniform(slowest, fastest, (waves, batch))
    phase = rng.uniform(0, 2 * np.pi, (waves, batch))

    def rate(clock, state):
        return jnp.cos(frequency * clock + phase).sum(axis=0)[:, None]

    exact = ((np.sin(frequency + phase) - np.sin(phase)) / frequency).sum(axis=0)
    problem = Problem(no_integrals(rate), 0.0, 1.0, sensitivity=lambda c, u, v: jnp.ones_like(u))
    solution = jax.tree.map(np.asarray, solved(solver, problem, jnp.zeros((batch, 1))))
    error = np.abs(solution.state[:, 0] - exact)
    return np.mean(error <= solution.error), np.median(solution.error / error)


@pytest.mark.parametrize(
    ("slowest", "fastest", "least", "widest"),
    [(0.2, 2, 0.95, 8), (1, 8, 0.95, 40), (20, 80, 0.85, 4), (100, 400, 0.85, 4)],
)
def test_the_stated_error_sees_that_of_smooth_fields_and_of_rough_ones(
    slowest, fastest, least, widest
):
    """24 steps resolve waves of fewer than 12 cycles: the others are noise to them, of whose error
    they state two standard deviations. Waves of eight cycles look much like noise, and leave much
    less."""
    covered, width = covered_and_wide(Multistep(24), slowest, fastest)
    assert covered > least and width < widest, (covered, width)


@pytest.mark.parametrize("steps", [1, 3, 4, 6])
def test_few_steps_state_their_error_or_that_it_is_not_known(steps):
    covered, width = covered_and_wide(Multistep(steps), 0.2, 2)
    assert np.isnan(width) if steps < 4 else covered > 0.9, (covered, width)


def test_two_doublings_state_the_error_that_is_left_of_a_rough_field():
    """64 steps don't resolve waves of more than 32 cycles: a third of the error would not do."""
    solver = Doubling(tolerance=1e-30, fewest=16, most=64)
    covered, width = covered_and_wide(solver, slowest=20, fastest=80)
    assert covered > 0.75 and width < 5, (covered, width)


DIMS = 100
SYMMETRIC = np.random.default_rng(1).normal(size=(DIMS, DIMS)) / np.sqrt(2 * DIMS)
SYMMETRIC = SYMMETRIC + SYMMETRIC.T


@pytest.mark.parametrize(
    ("matrix", "least", "most"),
    [(np.eye(DIMS), 0.95, 3.9), (SYMMETRIC - np.diag(np.diag(SYMMETRIC)), 0.87, 2)],
    ids=["each dimension on itself", "on each other"],
)
def test_what_is_rough_in_state_and_divergence_cancels_in_the_mean(matrix, least, most):
    """Rates that are off by a random share A x at each node, of data N(0, I) in many dimensions:
    log p is off by x'A x - tr A at each, which is 2 tr A^2 in the mean square. That of x'A x alone
    is (tr A)^2 more, fifty times as much where A is the identity; and the squares of single
    dimensions have tr A^2 where its diagonal is zero. The part by Milne's device knows of none."""
    batch, steps = 400, 24
    size = np.random.default_rng(0).normal(size=(steps + 1, batch))

    def field(clock, x, draw):
        node = jnp.argmin(jnp.abs(clock[0] - jnp.asarray(step_table(steps).node, x.dtype)))
        share = 1e-3 * jnp.asarray(size, x.dtype)[node]
        return share[:, None] * x @ matrix, *without_parts(share[None] * np.trace(matrix))

    x = jax.random.normal(jax.random.key(0), (batch, DIMS))
    problem = Problem(field, 0.0, 1.0, sensitivity=lambda c, u, v: -u)
    solution = jax.tree.map(np.asarray, solved(Multistep(steps), problem, x))
    change = 0.5 * (np.sum(np.asarray(x) ** 2, axis=1) - np.sum(solution.state**2, axis=1))
    error = np.abs(change + solution.integrals[0])
    assert np.mean(error <= solution.error) > least, np.mean(error <= solution.error)
    width = np.median(solution.error) / np.sqrt(np.mean(error**2))
    assert width < most, width


def test_backwards_undoes_forwards(x64):
    field = no_integrals(lambda clock, y: jnp.sin(y) * clock[:, None])
    y = jnp.linspace(-2, 2, 5)[:, None]
    there = solved(Multistep(200), Problem(field, 0.0, 1.5), y).state
    back = solved(Multistep(200), Problem(field, 1.5, 0.0), there).state
    np.testing.assert_allclose(back, y, atol=1e-6)


def test_a_plan_with_room_is_the_same_solver():
    field = no_integrals(lambda clock, y: -y)
    y = jnp.ones((2, 3))
    problem = Problem(field, 0.0, 1.0)
    run = jax.jit(lambda solver: solver.solve(problem, y))
    for steps in (3, 7, 20):
        roomy, exact = run(Planned.of(steps, 20)), solved(Multistep(steps), problem, y)
        np.testing.assert_allclose(roomy.state, exact.state, rtol=1e-6)
        np.testing.assert_array_equal(roomy.evaluations, steps + 1)
    assert run._cache_size() == 1


def test_scatter_measures_the_noise_of_the_rates_and_not_their_trend():
    """A known integral whose rates carry noise of standard deviation 0.3 at every node."""
    batch, steps = 2000, 40

    def field(clock, y, draw):
        noise = 0.3 * jax.random.normal(jax.random.fold_in(jax.random.key(0), draw), (1, batch))
        rates = jnp.cos(clock)[None] + noise
        return jnp.zeros_like(y), rates, rates[..., None]

    problem, start = Problem(field, 0.0, 2.0, fresh=True), jnp.zeros((batch, 1))
    solution = jax.tree.map(np.asarray, solved(Multistep(steps), problem, start))
    error = np.asarray(solution.integrals[0]) - np.sin(2.0)
    spread = error.std()
    assert spread == pytest.approx(0.3 * 2 / np.sqrt(steps), rel=0.1)
    assert abs(error.mean()) < 4 * spread / np.sqrt(batch)
    assert np.sqrt(np.mean(solution.scatter)) == pytest.approx(spread, rel=0.07)
    # Nor is that noise the solver's error, but of a few.
    assert np.mean(solution.error > 0.1 * spread) < 0.1
    held = solved(Multistep(steps), Problem(field, 0.0, 2.0), start)
    assert np.isnan(held.scatter).all()
    few = solved(Multistep(2), problem, start)
    assert np.isnan(few.scatter).all()


def test_scatter_of_few_steps_counts_each_node_once():
    """The variance of a weighted sum of independent rates, of which the first have no contrast."""

    def field(clock, y, draw):
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), draw), (1, len(y)))
        return jnp.zeros_like(y), noise, noise[..., None]

    problem = Problem(field, 0.0, 2.0, fresh=True)
    scatter = solved(Multistep(DIFFERENCE + 1), problem, jnp.zeros((20_000, 1))).scatter
    expected = 4 * np.sum(step_table(DIFFERENCE + 1).total ** 2)
    assert np.mean(scatter) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("steps", [2, 12])
def test_several_draws_separate_their_noise_from_what_is_rough_in_all_of_them(steps):
    batch = 2000

    def field(clock, y, draw):
        noise = 0.3 * jax.random.normal(jax.random.fold_in(jax.random.key(0), draw), (2, batch))
        rates = 5 * jnp.cos(40 * clock) + noise
        return jnp.zeros_like(y), rates, rates[..., None]

    problem = Problem(field, 0.0, 2.0, fresh=True)
    solution = solved(Multistep(steps), problem, jnp.zeros((batch, 1)))
    spread = np.asarray(solution.integrals.mean(axis=0)).std()
    assert np.sqrt(np.mean(solution.scatter)) == pytest.approx(spread, rel=0.07)


@pytest.mark.long
def test_an_error_above_three_typical_ones_counts_in_full():
    """By hand: a factor of a tenth, and a typical error of 2, which are not part of its name."""
    solver = Multistep(8, 0.1, 2.0)
    assert repr(solver) == "Multistep(steps=8)"
    found = stated(solver, np.array([0.0, 1.5, 6.0, 8.0, 100.0]))
    np.testing.assert_allclose(found, [0.2, 0.25, 0.1 * np.sqrt(40), 2.0, 94.0], rtol=1e-6)
    alone = np.array([0.0, 3.0])
    np.testing.assert_allclose(stated(Multistep(8), alone), alone)
