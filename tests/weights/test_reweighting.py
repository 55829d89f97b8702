"""Importance weights: integrals that are known, over many seeds; the shape of their tail."""

import numpy as np
import pytest
from helpers.oracles import Mixture
from scipy import stats

from scoremle import UserError
from scoremle.sampling.samples import Samples
from scoremle.weights import reweigh
from scoremle.weights.pareto import largest_trusted, pareto_k

SEEDS, N = 200, 2000
LOG_Z = 3.7


def samples(x, log_q, variance=0.0, solver_error=0.0):
    rows = np.ones(len(x))
    return Samples(
        x=x, log_prob=log_q, solver_error=solver_error * rows,
        probe_stderr=np.sqrt(variance) * rows, latent=x, evaluations=rows.astype(int),
    )  # fmt: skip


class Student:
    """A proposal with heavy tails, that reaches all targets here."""

    def __init__(self, spread, middle=0.0):
        self.of = stats.multivariate_t([0.0, middle], np.diag(np.square(spread)), df=3)

    def __call__(self, rng, variance=0.0):
        x = self.of.rvs(N, random_state=rng)
        noise = np.sqrt(variance) * rng.normal(size=N)
        return samples(x, self.of.logpdf(x) + noise, variance)


def banana(x):
    """N(0, 1) in the first dimension, and N(x^2 / 2, 0.5^2) in the second."""
    return stats.norm.logpdf(x[:, 0]) + stats.norm.logpdf(x[:, 1], x[:, 0] ** 2 / 2, 0.5)


# The log-density, the mean over it of x, a proposal, and the probes' variance of its log q.
ORACLES = {
    "mixture": (Mixture.in_plane().log_data_density, [-0.05, 0.105], Student([0.9, 0.8]), 0.0),
    "banana": (banana, [0.0, 0.5], Student([1.5, 2.0], 0.8), 0.0),
    "known variance": (Mixture.in_plane().log_data_density, [-0.05, 0.105], Student([1, 1]), 0.25),
}


@pytest.mark.parametrize("name", ORACLES)
def test_log_z_and_expectations_are_right_and_so_are_their_errors(name):
    log_density, mean, proposal, variance = ORACLES[name]
    off, covered = [], []
    for seed in range(SEEDS):
        drawn = proposal(np.random.default_rng(seed), variance)
        found = reweigh(drawn, lambda x: log_density(x) + LOG_Z)
        expected = found.expectation(drawn.x)
        off.append(found.log_z - LOG_Z)
        gaps = np.append(expected.mean - mean, off[-1])
        covered.append(np.abs(gaps) < 2 * np.append(expected.stderr, found.stderr))
    assert abs(np.mean(off)) < 0.005
    share = np.mean(covered, axis=0)
    assert (share > 0.9).all() and (share < 0.98).all(), share


@pytest.mark.filterwarnings("ignore:Pareto k")
def test_the_bias_of_the_logarithm_is_corrected_and_stated():
    """Over seeds, less the mean weight, whose expectation is 1."""
    rng = np.random.default_rng(0)
    off, bias = [], []
    for _ in range(400):
        log_weights = 0.6 * rng.normal(size=40) - 0.18
        found = reweigh(samples(log_weights[:, None], 0 * log_weights), lambda x: x[:, 0])
        off.append(found.log_z - np.mean(np.exp(log_weights)) + 1)
        bias.append(found.bias)
    error = np.std(off) / np.sqrt(len(off))
    assert abs(np.mean(off)) < 3 * error < 0.3 * abs(np.mean(bias))


@pytest.mark.parametrize("spread", [0.0, 1e-9])
def test_a_constant_has_no_error_under_weights_that_are_nearly_equal(spread):
    """Squares of nearly nothing, one subtracted from another, would be below zero."""
    x = np.random.default_rng(0).normal(size=(1000, 1))
    found = reweigh(samples(x, 0 * x[:, 0]), lambda x: spread * x[:, 0])
    for i in range(50):
        mean, stderr, _ = found.expectation(np.full(1000, 0.1 + i))
        np.testing.assert_allclose(mean, 0.1 + i, rtol=1e-12)
        assert 0 <= stderr < 1e-12


@pytest.mark.filterwarnings("ignore:Pareto k")
def test_the_bias_of_an_expectation_is_subtracted():
    """Over seeds, less the mean of w (f - E[f]), whose expectation is 0."""
    rng = np.random.default_rng(0)
    off, bias = [], []
    for _ in range(400):
        x = rng.normal(size=100)
        found = reweigh(samples(x[:, None], -(x**2) / 2), lambda x: -((x[:, 0] - 1) ** 2) / 2)
        nothing = np.mean(np.exp(x - 0.5) * (x - 1))
        off.append(found.expectation(x).mean - 1 - nothing)
        bias.append(found.weights @ x - 1 - nothing)
    error = np.std(off) / np.sqrt(len(off))
    assert abs(np.mean(off)) < 3 * error < 0.5 * abs(np.mean(bias))


@pytest.mark.filterwarnings("ignore:Pareto k")
def test_of_one_sample_with_all_of_the_weight_nothing_is_known():
    found = reweigh(samples(np.arange(3.0)[:, None], np.zeros(3)), lambda x: 900 * x[:, 0])
    assert np.isnan(found.expectation(np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]))[:2]).all()


def test_the_solvers_error_is_a_mean_of_absolute_values():
    rng = np.random.default_rng(0)
    x, sign = rng.normal(size=(400, 1)), rng.choice([-1, 1], 400)
    log_q = stats.norm.logpdf(x[:, 0])

    def of(error):
        return reweigh(samples(x, log_q + error, solver_error=0.01), lambda x: -(x[:, 0] ** 2) / 2)

    exact, same, worst = of(0), of(0.01), of(0.01 * sign)
    assert exact.solver_error == pytest.approx(0.01)
    assert exact.log_z - same.log_z == pytest.approx(0.01)
    assert abs(exact.log_z - worst.log_z) < 0.01
    values = np.stack([x[:, 0], sign], axis=1)
    means = exact.expectation(values), worst.expectation(values)
    moved = np.abs(means[0].mean - means[1].mean)
    assert (moved < 1.01 * means[0].solver_error).all()
    assert moved[1] > 0.9 * means[0].solver_error[1]


def test_a_target_of_zero_is_a_weight_of_zero():
    x = np.linspace(-1, 1, 400)[:, None]
    found = reweigh(samples(x, np.zeros(400)), lambda x: np.where(x[:, 0] > 0, 0, -np.inf))
    assert found.zeros == 200 and found.ess == pytest.approx(200) and "at 200" in repr(found)
    assert found.log_z == pytest.approx(np.log(0.5) + found.stderr**2 / 2, abs=1e-5)
    half = found.expectation(np.where(x[:, 0] > 0, x[:, 0], np.nan))
    assert half.mean == pytest.approx(0.5, abs=1e-2)
    with pytest.raises(UserError, match="not finite"):
        found.expectation(np.where(x[:, 0] < 0, x[:, 0], np.nan))
    with pytest.raises(UserError, match="400"):
        found.expectation(x[1:])


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (lambda x: np.where(x[:, 0] == 3, np.nan, 0.0), "nan for sample"),
        (lambda x: np.where(x[:, 0] == 3, np.inf, 0.0), "inf for sample"),
        (lambda x: np.full(len(x), -np.inf), "does not reach"),
        (lambda x: x, "30 numbers"),
    ],
)
def test_a_target_that_is_none_is_refused(target, words):
    with pytest.raises(UserError, match=words):
        reweigh(samples(np.arange(30.0)[:, None], np.zeros(30)), target)


def test_a_target_may_write_into_what_it_is_given():
    drawn = samples(np.arange(30.0)[:, None], np.zeros(30))
    before = drawn.x.copy()
    reweigh(drawn, lambda x: 0 * np.subtract(x, 3, out=x)[:, 0])
    np.testing.assert_array_equal(drawn.x, before)


@pytest.mark.parametrize("bad", [np.ones(30) + 1j, ["a"] * 30, [None] * 30, "ab"])
def test_values_that_are_no_reals_are_refused(bad, unchecked):
    found = reweigh(samples(np.zeros((30, 1)), np.zeros(30)), lambda x: x[:, 0])
    with pytest.raises(UserError, match="values") as error:
        found.expectation(bad)
    assert "\n" not in str(error.value)


def test_probes_whose_variance_is_not_known_are_refused():
    with pytest.raises(UserError, match="variance"):
        reweigh(samples(np.zeros((30, 1)), np.zeros(30), np.nan), lambda x: x[:, 0])
    with pytest.raises(UserError, match="variance"):
        reweigh(samples(np.zeros((30, 1)), np.zeros(30), np.inf), lambda x: x[:, 0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_whose_log_p_is_not_finite_are_refused(value):
    with pytest.raises(UserError, match="row 3"):
        reweigh(samples(np.zeros((30, 1)), np.eye(30)[3] * np.where(np.eye(30)[3], value, 0)),
                lambda x: x[:, 0])  # fmt: skip


# By arviz-stats 0.8.0: of the quantiles of a Pareto distribution, and of normal log weights.
SHAPES = [
    (1000, 0.3, 0.3234196135111028, 0.10411603898619494),
    (1000, 0.9, 0.84321863173557, 0.33360826520461784),
    (333, 1.4, 1.2016119164978227, 0.5201484050353167),
    (5000, 0.6, 0.5923800493672282, -0.017456803287288644),
]


def quantiles(n):
    return np.random.default_rng(n).permutation((np.arange(n) + 0.5) / n)


@pytest.mark.parametrize(("n", "scale", "of_pareto", "of_normal"), SHAPES)
def test_the_shape_of_a_tail_is_that_of_arviz(n, scale, of_pareto, of_normal):
    assert pareto_k(-scale * np.log1p(-quantiles(n))) == pytest.approx(of_pareto, abs=1e-9)
    normal = scale * np.random.default_rng(0).standard_normal(n)
    assert pareto_k(normal) == pytest.approx(of_normal, abs=1e-9)


def test_a_heavy_tail_is_a_warning_and_equal_weights_are_none():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 2))
    narrow = samples(x, stats.norm.logpdf(x).sum(axis=1))
    with pytest.warns(UserWarning, match="Pareto k"):
        reweigh(narrow, lambda x: stats.norm.logpdf(x, scale=4).sum(axis=1))
    found = reweigh(narrow, lambda x: stats.norm.logpdf(x).sum(axis=1) + 2)
    assert found.pareto_k == -np.inf and found.stderr == 0 and found.log_z == pytest.approx(2)
    with pytest.warns(UserWarning, match="Pareto k"):
        reweigh(samples(x[:4], np.zeros(4)), lambda x: x[:, 0])
    with pytest.warns(UserWarning, match="above 0.5"):
        even = samples(quantiles(5000)[:, None], np.zeros(5000))
        reweigh(even, lambda x: -0.6 * np.log1p(-x[:, 0]))
    assert pareto_k(np.append(np.full(400, -5000.0), [-710, -300, -200, -100, 0])) > 1
    assert largest_trusted(100) == pytest.approx(0.5) and largest_trusted(10**6) == 0.7


@pytest.mark.parametrize(("n", "known"), [(24, False), (25, True), (26, True)])
def test_five_weights_beyond_the_cutoff_have_a_shape(n, known):
    assert (pareto_k(np.arange(n) / 10) < np.inf) == known
    few = np.zeros(100)  # of which so many lie beyond
    few[: 3 + 2 * known] = np.arange(3 + 2 * known) + 1.0
    assert (pareto_k(few) < np.inf) == known


@pytest.mark.parametrize(
    ("larger", "by", "k"),
    [(0, 0.01, -np.inf), (60, 0.01, -5.1), *((m, 0.01, -np.inf) for m in range(1, 5)),
     (4, 0.69, -np.inf), (4, 0.7, np.inf), (1, 5.0, np.inf)],
)  # fmt: skip
def test_a_tail_that_ends_at_once_is_no_heavy_one(larger, by, k):
    """Takes weights that are equal, but for a few that are a little larger."""
    log_weights = np.where(np.arange(1000) < larger, by, 0)
    assert pareto_k(log_weights) == pytest.approx(k, abs=0.05)


@pytest.mark.parametrize("larger", [99, 100, 110, 120, 121])
def test_weights_of_two_values_have_a_shape(larger):
    """A theta of the grid is 0 where 100 to 120 weights are the larger ones."""
    weights = np.repeat([1, 1e6], [4000 - larger, larger])
    assert -6 < pareto_k(np.log(weights)) < -5


def test_two_samples_are_weighed_and_one_is_not():
    two = samples(np.array([[0.0], [1.0]]), np.zeros(2))
    with pytest.warns(UserWarning, match="Pareto k"):
        found = reweigh(two, lambda x: np.log(1 + x[:, 0]))  # weights 1/3 and 2/3
    np.testing.assert_allclose(found.weights, [1 / 3, 2 / 3])
    assert found.ess == pytest.approx(9 / 5)
    spread = 5 / 9 - 1 / 2
    assert (found.bias, found.stderr) == pytest.approx((-spread / 2, np.sqrt(2 * spread)))
    assert found.log_z == pytest.approx(np.log(1.5) + spread / 2)
    mean, stderr, _ = found.expectation(np.array([0.0, 3.0]))
    assert (mean, stderr) == pytest.approx((2 + 1 / 2, 3 / 2))  # without one: 3, or 0
    assert "effective sample size 2, Pareto k inf)" in repr(found)
    with pytest.raises(UserError, match="two or more"):
        reweigh(samples(np.zeros((1, 1)), np.zeros(1)), lambda x: x[:, 0])


def test_the_error_of_an_expectation_is_the_jackknifes_where_some_weights_are_0():
    """By hand: each sample left out in turn, those that the target does not reach, too."""
    x = np.random.default_rng(3).normal(size=(40, 1))
    target = np.where(x[:, 0] > 0.3, -x[:, 0], -np.inf)
    found = reweigh(samples(x, np.zeros(40)), lambda x: target)
    weights, values = np.exp(target), x[:, 0]
    left = [np.average(np.delete(values, i), weights=np.delete(weights, i)) for i in range(40)]
    mean, stderr, _ = found.expectation(values)
    whole = np.average(values, weights=weights)
    assert mean == pytest.approx(40 * whole - 39 * np.mean(left), rel=1e-9)
    spread = np.sum((left - np.mean(left)) ** 2)
    assert stderr == pytest.approx(np.sqrt(39 / 40 * spread), rel=1e-9)
