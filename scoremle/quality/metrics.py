"""Sample quality from features of images and logits of classes.

    Fréchet distance    |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))           of means, covariances
    kernel distance     E k(x, x~) + E k(y, y~) - 2 E k(x, y),   k(x, y) = (x.y / d + 1)^3
    class score         exp E KL(p(class | x) || p(class))
    precision, recall   the share of samples within the reference's support, and the other way;
                        a support is the union of balls that reach each point's k-th neighbour

With the published Inception's features and classes they are called FID (Heusel et al., arXiv
1706.08500), KID (Binkowski et al., arXiv 1801.01401), the Inception score (Salimans et al., arXiv
1606.03498) and improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991). With other
features they are other numbers and must not bear those names, which this module hence avoids.

All in float64. The standard error of the Fréchet distance is of first order in the weight of each
image. Those of the kernel distance and the class score are of means over disjoint subsets: the
usual overlapping ones of KID show how much a subset varies, not how wrong the mean may be. Those
of precision and recall leave out one image at a time. The Fréchet distance is biased upwards and
the class score downwards, more with fewer images, which no standard error shows.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from scipy.special import log_softmax, logsumexp

from scoremle.core.arguments import as_reals, check_count, check_examples
from scoremle.errors import UserError

__all__ = ["class_score", "frechet_distance", "kernel_distance", "precision_recall"]

FeatureRows = Float[np.ndarray, "_n d"]

# The subsets and splits of the field.
SUBSET = 1000
FEWEST_SUBSETS = 10
SPLITS = 10
NEIGHBOURS = 3
# Pairs of all with all: more images than these are thinned out.
PRECISION_RECALL_IMAGES = 10_000
ROWS = 1000


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    stderr: float


class PrecisionRecall(NamedTuple):
    """Shares, and of how many images of each set."""

    precision: Estimate
    recall: Estimate
    samples: int
    reference: int


def _rows(*sets: FeatureRows, least: int) -> list[FeatureRows]:
    """Sets of features in float64, all of one size, with so many images at least."""
    found = [as_reals(each, "features") for each in sets]
    shapes = [each.shape for each in found]
    of_one = {shape[1:] for shape in shapes}
    if {*map(len, shapes)} != {2} or len(of_one) > 1 or min(map(len, found)) < least:
        raise UserError(f"features must be [n d] of {least} images or more, not {shapes}")
    for each in found:
        check_examples(each, "features")
    return found


def frechet_distance(a: FeatureRows, b: FeatureRows) -> Estimate:
    """Fréchet distance between Gaussians of the features' means and covariances.

    Biased upwards, by an amount that depends on the numbers of images: compare equal ones. The
    standard error is of both sets, to first order, and has no part of that bias.

    Args:
        a: [n d] features.
        b: [m d] features.

    Raises UserError for fewer than two images, and for features of two sizes.
    """
    a, b = _rows(a, b, least=2)
    difference = a.mean(axis=0) - b.mean(axis=0)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    cov_a, cov_b = (x.T @ x / (len(x) - 1) for x in (a, b))
    # S S' has the eigenvalues of S^(1/2) S' S^(1/2), which is symmetric: they are real, and no
    # square root of a matrix that isn't symmetric is taken.
    values, vectors = np.linalg.eigh(cov_a)
    scales = _roots(values)
    root, inverse = ((vectors * each) @ vectors.T for each in (scales, _inverses(scales)))
    values, vectors = np.linalg.eigh(root @ cov_b @ root)
    cross = _roots(values)
    value = difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2 * cross.sum()
    of_a = 2 * a @ difference + _squares(a) - _squares(a @ (inverse @ vectors), cross)
    of_b = -2 * b @ difference + _squares(b) - _squares(b @ (root @ vectors), _inverses(cross))
    variance = sum(float(x.var(ddof=1)) / len(x) for x in (of_a, of_b))
    return Estimate(float(value), math.sqrt(variance))


def _roots(eigenvalues: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """Square roots of those that are more than rounding: a root of rounding would be much."""
    least = len(eigenvalues) * np.finfo(float).eps * eigenvalues.max(initial=0)
    return np.sqrt(np.where(eigenvalues > least, eigenvalues, 0))


def _inverses(roots: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """Inverses of those that are not 0."""
    return np.divide(1, roots, out=np.zeros_like(roots), where=roots > 0)


def _squares(x: FeatureRows, weights: ArrayLike = 1.0) -> Float[np.ndarray, " n"]:
    """The weighted sum of the squares of each row."""
    return (x * x * weights).sum(axis=1)


def kernel_distance(a: FeatureRows, b: FeatureRows, *, subset: int = SUBSET) -> Estimate:
    """The mean of the unbiased squared MMD over disjoint subsets; it may be negative.

    A subset has ``subset`` images of each set, or fewer if that would make less than ten subsets.

    Args:
        a: [n d] features.
        b: [m d] features.
        subset: images of each set in a subset, two or more.

    Raises UserError for fewer than four images, features of two sizes, and a smaller subset.
    """
    check_count("subset", subset, 2)
    a, b = _rows(a, b, least=4)
    fewer = min(len(a), len(b))
    subset = max(2, min(subset, fewer // FEWEST_SUBSETS))
    count = fewer // subset
    subsets = (_subsets(x, subset, count, seed) for seed, x in enumerate((a, b)))
    return _mean([squared_mmd(x, y) for x, y in zip(*subsets, strict=True)])


def _subsets(x: FeatureRows, size: int, count: int, seed: int = 0) -> Iterator[FeatureRows]:
    """Disjoint subsets at random: files may be in order of class, or in that of the other set."""
    order = np.random.RandomState(seed).permutation(len(x))  # the same with every numpy
    return (x[order[i * size : (i + 1) * size]] for i in range(count))


def squared_mmd(x: FeatureRows, y: FeatureRows) -> float:
    """The unbiased squared maximum mean discrepancy under the cubic kernel (x.y / d + 1)^3."""

    def kernel(x: FeatureRows, y: FeatureRows) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: FeatureRows) -> float:
        k = kernel(x, x)
        return (k.sum() - np.trace(k)) / (len(x) * (len(x) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def class_score(logits: Float[np.ndarray, "n classes"], *, splits: int = SPLITS) -> Estimate:
    """The mean over ``splits`` disjoint parts, each with its own p(class), as is usual.

    Args:
        logits: [n classes].
        splits: number of parts, two or more: their spread is the error.

    Raises UserError for fewer than two parts, and for fewer images than parts.
    """
    check_count("splits", splits, 2)
    (rows,) = _rows(logits, least=splits)
    log_p = log_softmax(rows, axis=1)
    scores = []
    for part in np.array_split(log_p, splits):
        of_part = logsumexp(part, axis=0) - np.log(len(part))
        divergence = (np.exp(part) * (part - of_part)).sum(axis=1)
        scores.append(np.exp(divergence.mean()))
    return _mean(scores)


def _mean(values: list[float]) -> Estimate:
    n = len(values)
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(n)))


def precision_recall(
    samples: FeatureRows, reference: FeatureRows, *, neighbours: int = NEIGHBOURS
) -> PrecisionRecall:
    """Precision and recall of at most 10,000 random images of each set: all pairs are compared.

    Args:
        samples: [n d] features.
        reference: [m d] features.
        neighbours: the place of the neighbour whose distance is a point's radius.

    Raises UserError unless each set has more images than that, which is from 1 to 9,999, and for
    features of two sizes.
    """
    check_count("neighbours", neighbours, 1, PRECISION_RECALL_IMAGES - 1)
    samples, reference = map(_thinned, _rows(samples, reference, least=neighbours + 1))
    centre = reference.mean(axis=0)  # squares of a common offset would take digits
    samples, reference = samples - centre, reference - centre
    return PrecisionRecall(
        _covered(samples, reference, neighbours),
        _covered(reference, samples, neighbours),
        len(samples),
        len(reference),
    )


def _thinned(x: FeatureRows) -> FeatureRows:
    return next(_subsets(x, min(len(x), PRECISION_RECALL_IMAGES), 1))


def _covered(x: FeatureRows, y: FeatureRows, neighbours: int) -> Estimate:
    """The share of ``x`` in the balls about ``y`` that reach its neighbours.

    Its variance is the binomial one of ``x``, by a share that is neither 0 nor 1, and that of the
    jackknife over ``y``, less the part of the latter that the finite number of ``x`` makes.
    """
    nearest, radius, next_radius = _balls(y, neighbours)
    n, m = len(x), len(y)
    hits, changes, flips = 0, np.zeros(m), 0
    for d in _squared_distances(x, y):
        within = d <= radius
        gained, lost = _flips(within, ~within & (d <= next_radius), nearest)
        hits += int(within.any(axis=1).sum())
        changes += np.bincount(gained, minlength=m) - np.bincount(lost, minlength=m)
        flips += len(gained) + len(lost)
    share = (hits + 1) / (n + 2)
    of_y = (m - 1) * float(changes.var() - flips / m) / n**2
    return Estimate(hits / n, math.sqrt(share * (1 - share) / n + max(of_y, 0.0)))


def _balls(y: FeatureRows, neighbours: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest neighbours of each point, the squared distance of the last and of the next one.

    The latter is the radius without one of these neighbours; of so few points that there is no
    next one, it is the same.
    """
    last = min(neighbours + 1, len(y) - 1)
    found = []
    for d in _squared_distances(y, y):
        near = np.argpartition(d, range(last + 1), axis=1)[:, : last + 1]
        reach = np.take_along_axis(d, near[:, [neighbours, last]], axis=1)
        # The nearest to a point is the point itself.
        found.append((near[:, 1 : neighbours + 1], *reach.T))
    nearest, radius, next_radius = (np.concatenate(each) for each in zip(*found, strict=True))
    return nearest, radius, next_radius


def _flips(
    within: Bool[np.ndarray, "rows m"], beside: Bool[np.ndarray, "rows m"], nearest: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each row, the points whose ball or whose place as a neighbour decides if it is covered.

    Without one of the first, one more row is covered; without one of the second, one less.
    ``beside`` marks balls that cover a row once one of their ``nearest`` is left out.
    """
    m, counts = within.shape[1], within.sum(axis=1)
    row, ball = np.nonzero(beside & (counts <= 1)[:, None])
    pairs = np.unique(row[:, None] * m + nearest[ball])
    row, left_out = np.divmod(pairs, m)
    alone = np.where(counts == 1, within.argmax(axis=1), -1)
    covered_again = row[alone[row] == left_out]
    lost = np.setdiff1d(np.flatnonzero(counts == 1), covered_again)
    return left_out[counts[row] == 0], alone[lost]


def _squared_distances(x: FeatureRows, y: FeatureRows) -> Iterator[Float[np.ndarray, "rows n"]]:
    """Squared distances from each of ``x`` to each of ``y``, a thousand rows at a time."""
    squares = np.square(y).sum(axis=1)
    for start in range(0, len(x), ROWS):
        rows = x[start : start + ROWS]
        yield np.square(rows).sum(axis=1)[:, None] + squares - 2 * rows @ y.T
