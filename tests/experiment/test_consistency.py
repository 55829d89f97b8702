"""What must hold between estimators: relations that hold pass, and those that do not are named."""

import numpy as np
import pytest
from scipy import stats

from scoremle.experiment.consistency import verdicts

RNG = np.random.default_rng(0)
IMAGES = 3 + RNG.normal(size=200)


def judged(**shifts):
    noise = {name: shift + 0.1 * RNG.normal(size=200) for name, shift in shifts.items()}
    return {v.words: v for v in verdicts({name: IMAGES + n for name, n in noise.items()})}


def test_relations_that_hold():
    found = judged(exact=0.0, exact_k10=-0.05, exact_trace=0.0, bound=0.1, bound_sliced=0.1)
    assert set(found) == {"exact_k10 <= exact", "exact_trace == exact", "bound_sliced == bound"}
    assert all(v.holds for v in found.values())


def test_the_differences_are_image_by_image():
    verdict = judged(exact=0.0, exact_k10=0.1)["exact_k10 <= exact"]
    # The images' own spread is 1: only paired does a tenth of it show.
    assert not verdict.holds and 0.08 < verdict.difference < 0.12 and verdict.stderr < 0.02
    assert str(verdict).startswith("FAILS") and "contradict each other" in str(verdict)


def test_equality_fails_on_both_sides():
    assert not judged(bound=0.0, bound_sliced=-0.2)["bound_sliced == bound"].holds
    assert not judged(bound=0.0, bound_sliced=0.2)["bound_sliced == bound"].holds
    assert judged(exact=0.0, exact_variational=-5.0)["exact_variational <= exact"].holds


def test_the_error_of_a_difference_by_hand():
    """The gaps 1 and 3 deviate by sqrt(2), over two images."""
    (verdict,) = verdicts({"exact_trace": np.array([1.0, 3.0]), "exact": np.zeros(2)})
    assert (verdict.difference, verdict.stderr) == (2.0, 1.0)


def test_a_small_difference_has_the_digits_of_its_error():
    gaps = {"exact_trace": np.array([1e-4, 3e-4]), "exact": np.zeros(2)}
    assert "difference +0.00020 ± 0.00010" in str(verdicts(gaps)[0])


FAULT, FLOW = "contradict", "train it longer"


@pytest.mark.parametrize(
    ("first", "second", "both_ways", "meaning"),
    [
        ("exact_k10", "exact", False, FAULT),
        ("exact_variational_k10", "exact_variational", False, FAULT),
        ("exact_variational", "exact", False, FLOW), ("bound_variational", "bound", False, FLOW),
        ("bound_sliced", "bound", True, FAULT), ("exact_trace", "exact", True, FAULT),
    ],
)  # fmt: skip
@pytest.mark.parametrize("images", [2, 8, 500_000])
def test_four_standard_errors_are_no_contradiction(images, first, second, both_ways, meaning):
    """Or, of few images, as many as Student's distribution has with the same probability."""
    gaps = np.resize([-1.0, 1.0], images)
    limit = stats.t(images - 1).ppf(stats.norm.cdf(4)) * stats.sem(gaps)
    assert images < 9 or limit == pytest.approx(4 / np.sqrt(images), rel=1e-4)
    for share, holds in ((0.999, True), (1.001, False), (-0.999, True), (-1.001, not both_ways)):
        (verdict,) = verdicts({first: gaps + share * limit, second: 0 * gaps})
        assert verdict.holds == holds
        assert (meaning in verdict.meaning) == (not holds) == (meaning in str(verdict))
    assert verdicts({first: np.ones(1), second: np.zeros(1)}) == []
    assert verdicts({first: np.ones(2)}) == []
