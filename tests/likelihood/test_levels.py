"""A mean by levels of the solver: unbiased, with the error that is stated, at the least cost."""

from itertools import product

import numpy as np
import pytest
from helpers.marks import some

from scoremle.evaluation.statistics import paired_difference
from scoremle.likelihood.levels import (
    FEWEST_DIFFERENCES,
    StepLevels,
    bias_bound,
    choose_levels,
    contributions,
)
from scoremle.likelihood.mean import Mean

RNG = np.random.default_rng


def population(rng, n):
    """Values and two differences of ``n`` images, correlated with each other."""
    a, b, c = rng.normal(size=(3, n))
    return 3 + a, 0.3 + 0.4 * b - 0.3 * a, -0.1 + 0.2 * c + 0.1 * b


def corrected(values, order, differences):
    mean, sizes = Mean.of({"bpd": values[None]}, "bpd"), [*map(len, differences)]
    of_images = contributions(differences, order)
    return mean.corrected(values, of_images, range(len(sizes) + 1), sizes, 0.0)


def nested(values, first, second, order, m1, m2):
    return corrected(values, order, [first[order[:m1]], second[order[:m2]]])


def test_by_hand():
    values, order = np.array([1.0, 2.0, 6.0]), np.array([2, 0, 1])
    found = corrected(values, order, [np.array([0.5, 0.1])])
    assert found.mean == pytest.approx(3.3) and found.correction == pytest.approx(0.3)
    # V(c) = 7, V(d) = 0.08. The first two in the order contribute 0.3 +- sqrt(3) 0.2.
    assert found.errors.solver == pytest.approx(np.sqrt(0.08 / 2))
    of_images = np.array([1 + 0.3 - np.sqrt(3) * 0.2, 2 + 0.3, 6 + 0.3 + np.sqrt(3) * 0.2])
    assert found.stderr == pytest.approx(np.sqrt(of_images.var(ddof=1) / 3))
    alone = corrected(values, order, [])
    assert alone.mean == 3 and alone.errors.solver == 0
    assert alone.stderr == pytest.approx(np.sqrt(7 / 3))


@some("m1, m2", [(60, 20), (200, 60), (200, 200)], quick=[(60, 20)])
def test_brute_force(m1, m2):
    """Over 4,000 sets of 200 images, mean and spread are those that are stated; and over 4,000
    orders of one set, the spread is at most that of the differences."""
    rng, n, trials = RNG(0), 200, 4000
    found = [nested(*population(rng, n), rng.permutation(n), m1, m2) for _ in range(trials)]
    means, stated = (np.array([getattr(f, k) for f in found]) for k in ("mean", "stderr"))
    spread = means.std()
    assert abs(means.mean() - 3.2) < 4 * spread / np.sqrt(trials)
    # Without the covariances it would be off by a tenth and more.
    assert np.sqrt(np.mean(stated**2)) == pytest.approx(spread, rel=0.04)
    inside = np.abs(means - 3.2) < 1.96 * stated
    assert 0.93 < inside.mean() < 0.97
    one = population(rng, n)
    found = [nested(*one, rng.permutation(n), m1, m2) for _ in range(trials)]
    of_set = np.array([f.mean for f in found])
    truth = sum(column.mean() for column in one)
    assert abs(of_set.mean() - truth) < 4 * of_set.std() / np.sqrt(trials) + 1e-12
    stated = np.sqrt(np.mean([f.errors.solver**2 for f in found]))
    assert of_set.std() <= 1.03 * stated
    if m1 < 100:  # few of the images: then it is that spread, but for their share
        assert of_set.std() > 0.8 * stated


@pytest.mark.parametrize("sizes", [((60, 20), (60, 20)), ((60, 20), (130, 70))])
def test_the_error_of_a_difference_of_corrected_means(sizes):
    """Two models that solve alike: over 2,000 sets of 200 images, the error is the spread, which
    independent errors of the two corrections would exceed by far."""
    rng, n, trials = RNG(0), 200, 2000
    found, apart = [], []
    for _ in range(trials):
        order, (values, *differences) = rng.permutation(n), population(rng, n)
        others = [0.01 * rng.normal(size=n) + each for each in (values + 0.1, *differences)]
        both = [
            (of_model[0], contributions(
                [d[order[:m]] for d, m in zip(of_model[1:], sizes[i], strict=True)], order
            ))
            for i, of_model in enumerate([(values, *differences), others])
        ]  # fmt: skip
        found.append(paired_difference(*map(sum, both)))
        errors = [c.std(ddof=1) / np.sqrt(n) for _, c in both]
        apart.append(np.hypot(*errors))
    means, stated = (np.array([getattr(f, k) for f in found]) for k in ("mean", "stderr"))
    assert abs(means.mean() - 0.1) < 4 * means.std() / np.sqrt(trials)
    assert np.sqrt(np.mean(stated**2)) == pytest.approx(means.std(), rel=0.05)
    assert np.mean(apart) > (10 if sizes[0] == sizes[1] else 1.3) * means.std()


def test_sizes_are_of_least_cost():
    """No numbers of images within the tolerance cost a hundredth less."""
    levels = StepLevels((8, 32, 128), (4e-4, 1e-4), 0.0)
    tolerance, costs = 1e-3, np.array([42, 162 + 65])  # the last with 64 steps, too
    sizes = levels.sizes(10_000, tolerance)
    assert sum(v / m for v, m in zip(levels.variances, sizes, strict=True)) <= tolerance**2
    cost = np.dot(costs, sizes)
    assert levels.cost(10_000, 5, tolerance) == 10_000 * 5 * 9 + cost
    for m1, m2 in product(range(400, 1800, 11), range(120, 400, 3)):
        if 4e-4 / m1 + 1e-4 / m2 <= tolerance**2:
            assert np.dot(costs, (m1, m2)) > 0.99 * cost


def test_sizes_are_neither_few_nor_more_than_there_are():
    levels = StepLevels((8, 32, 128), (1.0, 1e-12), 0.0)
    assert levels.sizes(500, 1e-3) == (500, FEWEST_DIFFERENCES)
    assert levels.sizes(10, 1e-3) == (10, 10)
    rising = StepLevels((8, 32, 128), (1e-12, 1e-3), 0.0)
    first, second = rising.sizes(10_000, 1e-3)
    assert first == second > FEWEST_DIFFERENCES
    assert StepLevels((8,), (), 0.0).sizes(500, 1e-3) == ()


def pilot(order, size=1.0, images=8):
    """Values whose error falls with the steps as their power ``order``."""
    error = size * (1 + 0.3 * RNG(0).normal(size=images))
    return {n: 2 + error * n**-order for n in (12, 16, 24, 32, 48, 64, 96, 128, 256)}


def test_levels_are_those_of_least_cost():
    """Of many images few steps and some differences; of few images more steps and no difference
    that is not needed; where the field is rough, more levels than two."""
    options = {"coarsest": 12, "passes": 1, "tolerance": 5e-4}
    many = choose_levels(pilot(2.0), images=50_000, **options)
    assert len(many.steps) > 1 and many.steps[0] == 12
    assert many.cost(50_000, 1, 5e-4) < 0.6 * 50_000 * (many.steps[-1] + 1)
    few = choose_levels(pilot(2.0), images=70, **options)
    assert few.steps == (many.steps[-1],)
    rough = choose_levels(pilot(1.0), images=50_000, **options)
    assert len(rough.steps) > 2
    two = choose_levels(pilot(1.0), images=50_000, **options | {"tolerance": 2e-2})
    assert two.steps[-1] < rough.steps[-1]


def test_the_finest_level_is_as_fine_as_its_halving_says():
    values = pilot(2.0)
    levels = choose_levels(values, coarsest=12, images=10_000, passes=5, tolerance=5e-4)
    finest, truth = levels.steps[-1], 2.0
    change = values[finest] - values[finest // 2]
    stderr = change.std(ddof=1) / np.sqrt(8)
    assert levels.bias == pytest.approx(abs(change.mean()) + 2 * stderr)
    assert abs(values[finest].mean() - truth) <= levels.bias <= 2.5e-4
    missed = choose_levels(values, coarsest=12, images=10_000, passes=5, tolerance=1e-9)
    assert missed.steps[-1] == 256 and missed.bias > 1e-9


def test_a_halving_by_hand():
    change = np.array([0.1, 0.3, 0.2, 0.2])
    assert bias_bound(change) == bias_bound(-change)
    assert bias_bound(change) == pytest.approx(0.2 + 2 * np.sqrt(0.02 / 3) / 2)
    # A last difference that is a halving costs no more for it.
    assert StepLevels((8, 16), (1.0,), 0.0).cost(0, 1, 1.0) == 0
    assert StepLevels((8, 16), (1.0,), 0.0).cost(64, 1, 1.0) == 64 * (9 + 26)


def test_no_fewer_steps_than_an_image_needs():
    levels = choose_levels(pilot(2.0), coarsest=48, images=50_000, passes=5, tolerance=5e-4)
    assert levels.steps[0] >= 48
