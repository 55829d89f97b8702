"""From integer images to numbers: the pilot, the one loop over images, and the mean over them.

Every score of every image goes through here: ``ScoreModel.score`` and ``Scorer``, ``scoremle
score`` (alone, in shares, on Ray) and ``scoremle eval``. The key of an image belongs to its index
and to the pass: a value depends neither on the batch nor on the other images.

The pilot and the scores of few images are one program: the number of steps is data in it.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from scoremle.core.arguments import as_index, check_count, check_part
from scoremle.core.condition import rows_of
from scoremle.core.dequantize import Dequantizer, Uniform
from scoremle.core.divergence import DivergenceEstimator, Hutchinson
from scoremle.core.keys import image_keys, key_of
from scoremle.core.programs import OfModels
from scoremle.core.sde import of_examples
from scoremle.devices import replicate, round_up, split_rows, to_numpy, within_memory
from scoremle.errors import UserError
from scoremle.likelihood.image_model import ImageModel
from scoremle.likelihood.images import ByOde, Estimator, OdeDifference, check_suits, measure
from scoremle.likelihood.levels import StepLevels, bias_bound, contributions
from scoremle.likelihood.mean import CORRECTION, Mean, PassValues
from scoremle.likelihood.pilot import FINEST, NOISE_SHARE, PILOT_IMAGES, Choice, Pilot, Solved
from scoremle.numerics import permutation, power_of_two
from scoremle.resumable import Arrays, resumable_map
from scoremle.solvers.multistep import Multistep, Planned

__all__ = ["DIFFERENCES", "Scored", "choose_for_images", "example_numbers", "score_images"]

# Images in a batch, and values in all of them: a batch is what a kill loses.
BATCH_IMAGES, BATCH_VALUES = 256, 2**18
# On a CPU so many images in all passes are computed by the program of the pilot, a few at once:
# before another one was there, it is done with them.
FEW = 512
# In this the seed of differences differs from that of the values; and the key of their order.
DIFFERENCES = 2**32 - 4
# So does the pilot's seed from that of the values.
PILOT = 2**32 - 5


@dataclass(frozen=True, eq=False)
class Scored:
    """Values of images by an estimator, and their mean.

    ``values`` has columns [passes n], in bits/dim but for those that say otherwise. ``mean`` is
    over the images whose values are finite; None if there are none. ``seconds`` are those of an
    image, without the compilation. ``differences`` measures the difference of two numbers of
    steps on so many of the images of the mean, the first in ``order``, which is random.
    """

    values: PassValues
    mean: Mean | None
    seconds: float
    differences: Callable[[int, int, bool, int], PassValues] = field(repr=False)
    order: Integer[np.ndarray, " m"] = field(repr=False)

    @property
    def column(self) -> str:
        """The column that the mean is of."""
        return _column(self.values)

    @property
    def finite(self) -> Bool[np.ndarray, " n"]:
        """Marks the images whose values are finite in each pass."""
        return _finite(self.values)

    @property
    def corrected_values(self) -> Float[np.ndarray, " n"]:
        """Values of images over the passes, with their contributions to the correction, if any."""
        names = [name for name in (self.column, CORRECTION) if name in self.values]
        return np.sum([self.values[name].mean(axis=0) for name in names], axis=0)

    def corrected(self, levels: StepLevels | None, tolerance: float) -> "Scored":
        """These values with the mean at the finest of these levels of the solver.

        Itself, where there are no levels or fewer than two images. A column has the contribution
        of each image to the correction; that of a value that is not finite is NaN.

        Args:
            levels: by which a pilot chose to correct the mean.
            tolerance: bits/dim that the solver may add to the standard error of the mean; a
                quarter of the noise's standard error, where that is more.

        Raises UserError for a difference that is not finite.
        """
        if levels is None or self.mean is None or self.mean.images < 2:
            return self
        noise = self.mean.noise_stderr or self.mean.columns.get("probe_stderr_of_mean") or 0.0
        sizes = levels.sizes(self.mean.images, max(tolerance, NOISE_SHARE * noise))
        differences, bias = [], levels.bias
        for size, (coarse, fine) in zip(sizes, pairwise(levels.steps), strict=True):
            last = fine == levels.steps[-1]
            found = self.differences(coarse, fine, last, size)
            differences.append(found["bpd"][0])
            bias = bias_bound(found["halving"][0]) if last else bias
        correction = contributions(differences, self.order)
        values = self.values[self.column].mean(axis=0)[self.finite]
        mean = self.mean.corrected(values, correction, levels.steps, sizes, bias)
        column = np.full(self.values[self.column].shape, np.nan)
        column[:, self.finite] = correction
        return replace(self, values={**self.values, CORRECTION: column}, mean=mean)


def score_images(
    model: Any,
    estimator: Estimator,
    images: Integer[np.ndarray, "n h w c"],
    index: Integer[np.ndarray, " n"] | None = None,
    *,
    dequantizer: Dequantizer | None = None,
    condition: Any = None,
    passes: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    parts: Path | None = None,
    share: slice = slice(None),
    label: str = "",
) -> Scored:
    """Bits/dim of images by an estimator, in independent passes, and their mean.

    Finished batches are kept in ``parts``: a second call takes them from there.

    Args:
        model: a pytree, as the estimator takes it; most take an ``ImageModel``.
        estimator: measures bits/dim.
        images: integers, as the model takes them.
        index: the number of each image, to which its randomness belongs; None: its place.
        dequantizer: None: uniform noise.
        condition: what the noise prediction takes, a row for each image or one for all.
        passes: how many, each with fresh noise and probes.
        seed: of all randomness.
        batch_size: how many images at once, or fewer where memory does not suffice, and on a CPU
            where there are few; None: by the size of an image. No value depends on it, but those
            of the published solver.
        devices: that share each batch; None: all.
        parts: a folder whose name identifies all that a value depends on; None: nothing is kept.
        share: of the images: only these are measured, and given back.
        label: under which progress is shown.

    Raises UserError for what is not an estimator or dequantizer, for an estimator that does not
    suit the model and a condition of another number of rows, and the returned ``differences`` for
    one that is not finite.
    """
    dequantizer = dequantizer or Uniform()
    check_part("estimator", estimator, Estimator, "scoremle.ByOde()")
    check_part("dequantizer", dequantizer, Dequantizer, "scoremle.Uniform()")
    check_suits(estimator, model)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    run = partial(
        _measured, dequantizer=dequantizer, devices=devices, batch_size=batch_size, label=label
    )
    rows = rows_of(condition, len(images))
    index = np.arange(len(images)) if index is None else index
    values, seconds = run(
        model, estimator, images, index, rows, passes=passes, seed=seed, parts=parts, share=share
    )
    finite, column = _finite(values), _column(values)
    count = int(finite.sum())
    order = permutation(count, seed, DIFFERENCES)
    of_finite = {name: each[:, finite] for name, each in values.items()}
    mean = Mean.of(of_finite, column) if count else None

    def differences(coarse: int, fine: int, halved: bool, size: int) -> PassValues:
        chosen, words = np.flatnonzero(finite)[order[:size]], f"steps {coarse} to {fine}"
        folder = parts and parts / f"{words}, {'halved' if halved else 'alone'}"
        found, _ = run(
            of_examples(model, chosen), OdeDifference(estimator, coarse, fine, halved),
            images[chosen], np.arange(size),
            jax.tree.map(lambda row: row[chosen], rows), seed=int(seed) ^ DIFFERENCES,
            parts=folder, label=label and f"{label} {words}",
        )  # fmt: skip
        if not _finite(found).all():
            raise UserError(f"{label}, {words}: a difference is not finite")
        return found

    return Scored(values, mean, seconds, differences, order)


def example_numbers(
    index: Sequence[int] | Integer[Array | np.ndarray, " n"] | None, n: int
) -> Integer[np.ndarray, " n"]:
    """The numbers of ``n`` examples: their places, where there is no index.

    Args:
        index: a number for each.
        n: how many there are.

    Raises UserError for another count, and for what are not whole numbers of 64 bits.
    """
    numbers = np.arange(n) if index is None else as_index(index)
    if numbers.shape != (n,):
        raise UserError(f"index must have a number for each of {n} examples")
    return numbers


def choose_for_images(
    model: ImageModel,
    images: Integer[Array | np.ndarray, "n h w c"],
    *,
    condition: Any = None,
    divergence: DivergenceEstimator = Hutchinson(),
    mean_over: int = 1,
    passes: int = 1,
    tolerance: float = 0.0,
    devices: Sequence[jax.Device] | None = None,
    seed: int = 0,
) -> Choice:
    """The solver of likelihoods of such images; of a mean over several, its levels, too.

    Args:
        model: of images.
        images: integers as the model takes them, of which the first eight are used.
        condition: what the noise prediction takes, a row for each image or one for all.
        divergence: how traces are estimated.
        mean_over: of how many images the mean is wanted, each in so many ``passes``.
        passes: over them.
        tolerance: bits/dim that the solver may add to the standard error of that mean.
        devices: that share the work; None: all.
        seed: of probes and dequantization noise.

    Raises UserError for no images.
    """
    if not len(images):
        raise UserError("there are no images to choose the solver's steps on")
    few, model = np.asarray(images[:PILOT_IMAGES]), of_examples(model, slice(PILOT_IMAGES))
    rows = jax.tree.map(lambda row: row[:PILOT_IMAGES], rows_of(condition, len(images)))

    def solve(room: int, steps: int, *, held: bool) -> Solved:
        found, _ = _measured(
            model, ByOde(divergence, Planned.of(steps, room, held=held)), few,
            np.arange(len(few)), rows, dequantizer=Uniform(), devices=devices, batch_size=None,
            seed=int(seed) ^ PILOT,
        )  # fmt: skip
        return Solved(*(found[name][0] for name in Solved._fields))

    pilot = Pilot(
        solve, divergence, bits=few[0].size * math.log(2),
        finest=FINEST if mean_over > 1 else None,  # levels of a mean go so far in any case
    )  # fmt: skip
    return pilot.for_mean(mean_over, passes, tolerance)


def _measured(
    model: Any, estimator: Estimator, images: Integer[np.ndarray, "n h w c"],
    index: Integer[np.ndarray, " n"], rows: Any, *, dequantizer: Dequantizer,
    devices: Sequence[jax.Device] | None, batch_size: int | None, seed: int, passes: int = 1,
    parts: Path | None = None, share: slice = slice(None), label: str = "",
) -> tuple[PassValues, float]:  # fmt: skip
    """Values [passes n] of a share of the images, and the seconds that an image took."""
    n, key = len(images), key_of(seed)
    size = round_up(_size(n, images[0].size, batch_size), devices)
    # Batches of the published solver, which mixes their images, and those that several processes
    # share have a size that is not changed.
    halves = not estimator.on_host and jax.process_count() == 1
    program: Any = measure if estimator.on_host else _compiled_measure
    program = within_memory(program) if halves else program
    by_ode = halves and isinstance(estimator, ByOde)
    few = by_ode and n * passes <= FEW and jax.default_backend() == "cpu"
    at_once = min(size, round_up(PILOT_IMAGES, devices)) if few else size
    model, estimator = _with_steps_as_data((model, estimator))
    model, dequantizer = replicate((model, dequantizer), devices)

    def work(number: int, indices: Int[np.ndarray, " size"]) -> Arrays:
        found = []
        for some in np.split(indices, range(at_once, len(indices), at_once)):
            keys = image_keys(jax.random.fold_in(key, number), index[some])
            batch = images[some], keys, jax.tree.map(itemgetter(some), rows)
            of_batch, began = split_rows(batch, devices), time.monotonic()
            of_some = of_examples(model, some)
            values = to_numpy(program(estimator, of_some, dequantizer, *of_batch))
            pace = np.full(len(some), (time.monotonic() - began) / len(some))
            found.append({"seconds": pace, **values})
        return {name: np.concatenate([each[name] for each in found]) for name in found[0]}

    found = resumable_map(
        work, n, size=size, least=len(devices or jax.devices()) if halves else size,
        passes=passes, folder=parts, label=label, describe=_mean_so_far, share=share,
    )  # fmt: skip
    found = {name: column[:, share].astype(np.float64) for name, column in found.items()}
    # The first batch compiles: the lower median over batches is what an image costs.
    pace = np.quantile(np.unique(found.pop("seconds")), 0.5, method="lower") if found else 0.0
    return found, float(pace)


def _with_steps_as_data(tree: Any) -> Any:
    """An estimator with one program for all numbers of steps of the ODE's solver."""

    def planned(node: Any) -> Any:
        return node.planned(FINEST) if isinstance(node, Multistep) else node

    return jax.tree.map(planned, tree, is_leaf=lambda node: isinstance(node, Multistep))


def _size(n: int, dims: int, most: int | None) -> int:
    """The images of a batch; not every number of images is another program."""
    most = most or 1 << max(1, min(BATCH_IMAGES, BATCH_VALUES // dims)).bit_length() - 1
    return min(most, power_of_two(n))


def _column(values: Any) -> str:
    return "bpd" if "bpd" in values else "loss"


def _finite(values: PassValues) -> Bool[np.ndarray, " n"]:
    return np.asarray(np.isfinite(values[_column(values)]).all(axis=0))


def _mean_so_far(rows: Arrays, done: Bool[np.ndarray, "passes n"]) -> str:
    """The mean over images and its error, from the passes that there are of each."""
    name, known = _column(rows), done.any(axis=0)
    images = rows[name][:, known].mean(axis=0, dtype=np.float64, where=done[:, known])
    error = f" +- {images.std(ddof=1) / np.sqrt(len(images)):.4f}" if len(images) > 1 else ""
    return f"{name} {images.mean():.4f}{error}"


_compiled_measure = OfModels(measure)
