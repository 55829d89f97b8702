"""A mean as exact as many steps give it, at the cost of few: several levels of the solver.

    mean at n_k steps = mean over all N images of c + sum_l mean over m_l of them of d_l,

    d_l = value at n_l steps - value at n_(l-1),      c = value at n_0

(Giles, *Multilevel Monte Carlo path simulation*, 2008.) Both values of a difference have the same
dequantization noise and the same held probes: what is left of it is the solver's, and little. The
images of all differences are the first of one random order. Image i contributes

    d_l's mean + sqrt(N (N - 1) / (m_l (m_l - 1))) (d_l,i - d_l's mean)

for d_l, and where d_l was not measured the mean alone. The mean of these numbers over all images
is that of d_l, and their variance over N is V(d_l)/m_l. With c_i, they give the error of the mean,
and that of its difference from another model's, image by image.

The least cost at which sum V(d_l)/m_l is tolerance^2 has m_l proportional to sqrt(V(d_l) / cost of
d_l), N >= m_1 >= m_2 ... What is left is the error of the finest level itself, which no spread
shows: it is bounded by the change that the last halving of its steps made.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from jaxtyping import Float, Integer

# Fewer do not show the spread of differences whose tails are heavy.
FEWEST_DIFFERENCES = 64
# The error of the finest level may be a share of the tolerance, BIAS_SHARE. It is bounded by the
# mean change and CERTAIN times the standard error of that.
CERTAIN, BIAS_SHARE = 2.0, 0.5
# Levels between the coarsest and the finest.
MOST_BETWEEN = 2

Values = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class StepLevels:
    """Numbers of steps that rise, and what a pilot measured of their differences, in bits/dim.

    ``variances`` are those of the difference at each but the first. ``bias`` bounds the error of a
    mean at the last: what half its steps change, in the mean over the pilot's images, and twice
    the standard error of that.

    Args:
        steps: numbers of steps, rising.
        variances: of the differences between neighbours, (bits/dim)^2.
        bias: in bits/dim.
    """

    steps: tuple[int, ...]
    variances: tuple[float, ...]
    bias: float

    def sizes(self, images: int, tolerance: float) -> tuple[int, ...]:
        """Numbers of images for the differences, for a standard error of ``tolerance`` together.

        At the least cost; never fewer than 64, nor more than there are.

        Args:
            images: how many there are.
            tolerance: in bits/dim.
        """
        v, c = np.array(self.variances), np.array(self._costs)
        wanted = np.sqrt(v / c) * np.sqrt(v * c).sum() / tolerance**2
        taken = np.clip(np.ceil(wanted), FEWEST_DIFFERENCES, None).clip(max=images)
        # None more than a coarser one: the images of a difference are among those before.
        return tuple(np.maximum.accumulate(taken[::-1])[::-1].astype(int).tolist())

    def cost(self, images: int, passes: int, tolerance: float) -> int:
        """Network evaluations, of all images in each pass and of the differences.

        Args:
            images: how many there are.
            passes: over each image.
            tolerance: in bits/dim.
        """
        sizes = self.sizes(images, tolerance)
        differences = sum(m * c for m, c in zip(sizes, self._costs, strict=True))
        return images * passes * (self.steps[0] + 1) + differences

    @property
    def _costs(self) -> list[int]:
        """Network evaluations of each difference for one image, and of the last halving."""
        costs = [coarse + fine + 2 for coarse, fine in pairwise(self.steps)]
        if costs and self.steps[-2] != self.steps[-1] // 2:
            costs[-1] += self.steps[-1] // 2 + 1
        return costs


def choose_levels(
    pilot: Mapping[int, Values], *, coarsest: int, images: int, passes: int, tolerance: float
) -> StepLevels:
    """The levels of least cost for a mean over so many ``images``, by a few of others.

    Args:
        pilot: bits/dim of the same few images by numbers of steps, all with the same noise.
        coarsest: as many steps as a single image needs.
        images: of which the mean is wanted.
        passes: over them, at the coarsest level.
        tolerance: bits/dim, what the solver may add to the standard error of the mean. The finest
            level is the first at or above ``coarsest`` whose own error is at most half of it, if
            there is one.
    """
    halved = [n for n in sorted(pilot) if n // 2 in pilot and n % 2 == 0 and n >= coarsest]
    finest = next((n for n in halved if _bias(pilot, n) <= BIAS_SHARE * tolerance), halved[-1])
    return min(
        (_levels(pilot, steps) for steps in _chains(sorted(pilot), coarsest, finest)),
        key=lambda levels: levels.cost(images, passes, tolerance),
    )


def _chains(steps: Sequence[int], coarsest: int, finest: int) -> Iterator[tuple[int, ...]]:
    """Yields rising numbers of steps, from one of at least ``coarsest`` up to ``finest``."""
    below = [n for n in steps if coarsest <= n < finest]
    yield (finest,)
    for count in range(1, MOST_BETWEEN + 2):
        yield from ((*chosen, finest) for chosen in combinations(below, count))


def _levels(pilot: Mapping[int, Values], steps: tuple[int, ...]) -> StepLevels:
    variances = tuple(
        float(np.var(pilot[fine] - pilot[coarse], ddof=1)) for coarse, fine in pairwise(steps)
    )
    return StepLevels(steps, variances, _bias(pilot, steps[-1]))


def _bias(pilot: Mapping[int, Values], steps: int) -> float:
    return bias_bound(pilot[steps] - pilot[steps // 2])


def bias_bound(change: Values) -> float:
    """A bound on the error of a mean, by what the last halving of the steps changed of images.

    For a method that converges, one halving changes more than all that would follow.
    """
    stderr = float(np.std(change, ddof=1)) / math.sqrt(len(change))
    return abs(float(change.mean())) + CERTAIN * stderr


def contributions(
    differences: Sequence[Float[np.ndarray, " _m"]], order: Integer[np.ndarray, " n"]
) -> Values:
    """Contribution of each image to the sum of the means of differences.

    Their mean is that sum, and the standard error of their mean is that of the sum.

    Args:
        differences: each of two or more of the first images in the order.
        order: of all images.
    """
    n, found = len(order), np.zeros(len(order))
    for each in differences:
        m, mean = len(each), each.mean(dtype=np.float64)
        found += mean
        found[order[:m]] += math.sqrt(n * (n - 1) / (m * (m - 1))) * (each - mean)
    return found
