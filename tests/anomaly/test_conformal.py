"""p-values by their laws, the rate of false discoveries simulated, and numbers of nonconform."""

import numpy as np
import pytest
from scipy.stats import betabinom, chisquare

from scoremle.anomaly.conformal import fewest_references, fewest_together, p_values, suspects
from scoremle.anomaly.normality import Ranks

RNG = np.random.default_rng(0)
N = 19


def words(size):
    return RNG.integers(0, 2**64, size, np.uint64)


def normal(size):
    return RNG.normal(size=size)


def whole(size):  # of many ties
    return RNG.integers(0, 3, size).astype(float)


@pytest.mark.parametrize("draw", [normal, whole])
def test_each_p_value_is_equally_likely(draw):
    """One example for each of 2,000 fresh reference sets."""
    p = [p_values(draw(1), np.sort(draw(N)), words(1))[0] for _ in range(2000)]
    counts = np.bincount(np.round(np.asarray(p) * (N + 1)).astype(int), minlength=N + 2)
    assert counts[0] == 0
    assert chisquare(counts[1:]).pvalue > 1e-3


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_what_rounding_changes_is_equal(scale):
    reference = scale * np.sort(np.concatenate([np.ones(10), np.arange(2.0, 11)]))
    for moved in (1 - 1e-6, 1, 1 + 1e-6):
        p = p_values(np.full(99, scale * moved), reference, words(99))
        assert {*np.round(20 * p).astype(int)} == {*range(10, 21)}
    ranks = Ranks((0.0,), tuple(reference - reference.mean()))
    same = [ranks(scale * each[:, None] - reference.mean())[0] for each in
            (np.ones(1), np.ones(1) + 1e-6, np.ones(1) - 1e-6)]  # fmt: skip
    assert same[0] < 0.5 and np.ptp(same) < 1e-5


def test_one_odd_reference_makes_no_others_equal():
    reference = np.sort(np.append(normal(98), 1e7))
    p = p_values(np.array([20.0, 0.0, 1e8]), reference, words(3))
    assert p[0] == 2 / 100 and 0.3 < p[1] < 0.7 and p[2] == 1 / 100


def test_by_one_reference_set_small_p_values_are_beta_binomial():
    """So many of 40 examples have p <= k / (n + 1)."""
    k, m, sets = 3, 40, 3000
    counts = [
        int(np.sum(p_values(normal(m), np.sort(normal(N)), words(m)) <= k / (N + 1) + 1e-12))
        for _ in range(sets)
    ]
    law = betabinom(m, k, N + 1 - k)
    groups = [range(4), range(4, 7), range(7, 10), range(10, 15), range(15, m + 1)]
    found = [sum(counts.count(c) for c in group) for group in groups]
    expected = [sets * sum(law.pmf(c) for c in group) for group in groups]
    assert chisquare(found, expected).pvalue > 1e-3


def test_the_rate_of_false_discoveries_is_as_stated():
    """Ten of 100 examples do not belong; of 90 that do, 0.9 times the rate is listed at most."""
    rate, false, found = 0.2, [], []
    for _ in range(1500):
        scores = np.concatenate([normal(90), 4 + normal(10)])
        listed = suspects(p_values(scores, np.sort(normal(199)), words(100)), rate)[1]
        false.append(listed[:90].sum() / max(listed.sum(), 1))
        found.append(listed[90:].mean())
    error = np.std(false) / len(false) ** 0.5
    assert abs(np.mean(false) - 0.9 * rate) < 4 * error + 0.01
    assert np.mean(found) > 0.8


def stand_out(together, references, examples, rate):
    p = np.ones(examples)
    p[:together] = 1 / (references + 1)
    return suspects(p, rate)[1].any()


@pytest.mark.parametrize(("examples", "rate"), [(100, 0.1), (7, 0.05), (1000, 0.1), (3, 0.3)])
def test_so_many_suffice_and_one_less_does_not(examples, rate):
    n = fewest_references(examples, rate)
    assert stand_out(1, n, examples, rate) and not stand_out(1, n - 1, examples, rate)
    for references in (n // 2, n // 3):
        k = fewest_together(references, examples, rate)
        assert k > examples or stand_out(k, references, examples, rate)
        assert not stand_out(k - 1, references, examples, rate)


def test_without_broken_ties_p_values_are_those_of_nonconform(golden):
    found = golden("anomaly")
    for name in ("apart", "tied"):
        p = p_values(found[f"scores_{name}"], np.sort(found[f"reference_{name}"]), None)
        np.testing.assert_allclose(p, found[f"p_{name}"], rtol=0, atol=1e-12)
        adjusted, listed = suspects(p, 0.1)
        np.testing.assert_allclose(adjusted, found[f"adjusted_{name}"], rtol=0, atol=1e-12)
        assert 0 < listed.sum() < len(listed)
