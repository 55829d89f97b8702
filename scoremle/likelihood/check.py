"""A check: does a model predict the noise in a few examples as it is declared to?

A network that is fed or read in another way than it was trained predicts the noise badly, and its
likelihoods are wrong without a sign. So it is tried in other ways: with another meaning of its
output, another time input, or data of another range. The way is named that gives it the most
skill (``skill.py``), where that is certainly more than in the declared way. A network that has
little skill in any way was trained too little to be checked.

Where its error is larger by d than that of a Gaussian of the data, the bound loses d/2 nats per
dimension and unit of log-SNR: the Gaussian is a weak model, and a network that is worse was not
trained there, or not for long.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scoremle.core.bijectors import Affine, Bijector, in_all_digits
from scoremle.core.condition import Conditioned
from scoremle.core.pixels import Pixels
from scoremle.core.prediction import (
    BETWEEN_REMEDY,
    TIME_INPUTS,
    NetworkNoise,
    RangedNoise,
    TimeInput,
    noise_fn,
    time_input_of,
)
from scoremle.core.pytree import frozen_pytree
from scoremle.core.schedules import Discrete
from scoremle.core.sde import SDE
from scoremle.core.times import log_snr_range, times_at
from scoremle.errors import UserError
from scoremle.likelihood.skill import Errors, Node, certain, errors_of, without_one
from scoremle.numerics import output_of, varies
from scoremle.types import Data, IntImages, NoiseFn, Times

__all__ = ["check_declaration", "fewest"]

# The log-SNRs. Numbers that are measured at each, and the least and the most examples that have
# them; and numbers for the Gaussian, and the least examples.
NODES, NUMBERS, EXAMPLES, OTHER_NUMBERS, OTHERS = 12, 2048, (8, 256), 2**20, 256
# Fewer examples, or fewer numbers in all of them, show nothing.
FEWEST, FEWEST_NUMBERS = 4, 128
# With less skill a network was trained too little. By how much that of another reading must be
# certainly larger, and the logarithm of the error under another grid smaller.
YOUNG, SKILL, GRID = 0.2, 0.01, 0.02
# What networks predict, by the kernel.
OF_VP = ("eps", "score", "x_0", "v", "u", "edm")
LIKELY = {
    "vp": OF_VP, "subvp": OF_VP, "ve": ("eps", "score", "x_0", "edm"),
    "straight": ("eps", "x_0", "v", "u", "-u"),
}  # fmt: skip
# Ranges of grey levels; two whose ends differ by less than this share are near each other.
RANGES, NEAR = ((-1.0, 1.0), (0.0, 1.0), (-0.5, 0.5)), 0.1
# A network sees the grid of grey levels at noises from one step of the grid down to the share
# FINEST of a step, if its error there is below SEES (1 is the error without a prediction).
FINEST, SEES = 1 / 8, 0.95

# What data are scaled by; None: reals as they are.
Scaling = Pixels | Bijector | None


@dataclass(frozen=True)
class Interpretation:
    """A reading of a network: a way to feed it, and a meaning of its output."""

    prediction: str
    time_input: str | TimeInput
    scaling: Scaling

    def changes(self, other: "Interpretation") -> int:
        """Number of fields in which two readings differ."""
        mine, others = vars(self).values(), vars(other).values()
        return sum(a != b for a, b in zip(mine, others, strict=True))


def fewest(dims: int) -> int:
    """The number of examples, of so many dimensions each, that a check needs.

    Args:
        dims: of one example.
    """
    return max(FEWEST, -(-FEWEST_NUMBERS // dims))


def check_declaration(
    noise: NoiseFn,
    sde: SDE,
    data: Data | IntImages,
    *,
    eps: float,
    scaling: Scaling = None,
    condition: Any = None,
) -> list[str]:
    """Says what is likely wrong with a declaration: a line each, and none if all is well.

    The network is evaluated on a hundred images, and on a hundred or two more where its labels
    are steps or the grid of grey levels can be seen; on up to two thousand where something is
    wrong, and on as many vectors. Other time inputs are tried only for a network that was given to
    ``noise_fn``.

    Args:
        noise: eps(x, t), or eps(x, t, condition).
        sde: the noise at each time.
        data: of the kind that the network was trained on; a few of them are used.
        eps: the smallest time.
        scaling: pixels of integers, or a bijector of reals; None: reals that the network sees as
            they are.
        condition: what the noise prediction takes, a row for each example.

    Raises UserError for fewer than ``fewest`` examples, for a network whose arguments or output
    are not those of a noise prediction, and for a schedule that has a log-SNR for each dimension.
    """
    dims = math.prod(data.shape[1:])
    if len(data) < fewest(dims):
        raise UserError(f"a check needs {fewest(dims)} examples or more, not {len(data)}")
    trial = _Trial(noise, sde, data, eps, scaling, condition)
    best, errors, hidden = trial.best()
    if certain(-errors.skill) > -YOUNG:
        skill = max(0.0, float(errors.skill.mean()))
        return [
            f"trained too little: it has {skill:.0%} of the skill of a Gaussian of the data; train"
            " longer, or look for more than one mistake"
        ]
    lines = [*trial.differences(best), *trial.regions(errors), *hidden]
    if trial.cuts_steps(best, errors):
        lines.append(f"its output changes from step to step alone: {BETWEEN_REMEDY}")
    return lines


class _Trial:
    """A network, and the log-SNRs, noise and examples that all its readings have in common."""

    def __init__(
        self, noise: NoiseFn, sde: SDE, data: Data | IntImages, eps: float, scaling: Scaling,
        condition: Any,
    ) -> None:  # fmt: skip
        dims, (least, most) = math.prod(data.shape[1:]), EXAMPLES
        count = min(len(data) // 2, most, max(least, -(-NUMBERS // dims)))
        if condition is not None:
            noise = Conditioned(noise, jax.tree.map(lambda row: row[:count], condition))
        self.sde, self.eps, self.dims = sde, eps, dims
        self.noise, self.known = _record_of(noise, sde)
        self.declared = Interpretation(self.noise.prediction, self.noise.time_input, scaling)
        self.likely = dict.fromkeys((self.declared.prediction, *LIKELY[sde.kernel]))
        self.measured = np.asarray(data[:count])
        self.others: Any = np.asarray(data[count : count + max(OTHERS, OTHER_NUMBERS // dims)])
        low, high = log_snr_range(sde, eps)
        self.log_snr = np.linspace(float(low), float(high), NODES)

    def times(self, log_snr: Float[np.ndarray, " k"]) -> Times:
        return times_at(self.sde, self.eps, jnp.asarray(log_snr))

    def labels(self, time_input: str | TimeInput, t: Times) -> Times:
        """The labels that the network gets at these times."""
        return time_input_of(time_input)(self.sde, t)

    def best(self) -> tuple[Interpretation, Errors, list[str]]:
        """The reading that the network was trained for, as it seems, its errors, and a line if it
        does not show its grid of grey levels."""
        declared, images = self.declared, isinstance(self.declared.scaling, Pixels)
        found = self.as_fed(declared)
        best = _most_skilled(found, declared)
        if not images or best != declared or found[declared].worse.any():
            for way in (declared, *self.other_ways()):
                found |= self.as_fed(replace(way, prediction="eps"))
                if "edm" in self.likely:
                    found |= self.as_fed(replace(way, prediction="edm"))
            best = _most_skilled(found, declared)
        reading, hidden = self.on_grid(best)
        return reading, found.get(reading, found[best]), hidden

    def as_fed(
        self, way: Interpretation, log_snr: Float[np.ndarray, " k"] | None = None
    ) -> dict[Interpretation, Errors]:
        """Measures all meanings of the output of a network that is fed so: "edm" scales x, too."""
        scaled = way.prediction == "edm"
        t = self.times(self.log_snr if log_snr is None else log_snr)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        scale = jnp.hypot(sigma, self.noise.sigma_data * alpha) if scaled else jnp.ones_like(alpha)
        measured, others = (_scaled(x, way.scaling) for x in (self.measured, self.others))
        nodes = Node(alpha, sigma, self.labels(way.time_input, t), scale)
        found = errors_of(self.noise.network, measured, others, nodes, self.noise.sigma_data)
        return {
            replace(way, prediction=name): found[name]
            for name in self.likely
            if (name == "edm") == scaled
        }

    def other_ways(self) -> Iterator[Interpretation]:
        """Yields readings of the network with one thing changed."""
        old, has_steps = self.declared, isinstance(self.sde.schedule, Discrete)
        # Steps first: 999 t is so near them that it may be as good.
        for name in dict.fromkeys(("step", *TIME_INPUTS)) if self.known else ():
            if name != old.time_input and (name != "step" or has_steps):
                yield replace(old, time_input=name)
        if isinstance(old.scaling, Pixels):
            spread = (old.scaling.low, old.scaling.high) in RANGES
            kinds: list[Callable[..., Pixels]] = [Pixels.of_points, Pixels]
            for kind, ends in product(kinds[::-1] if spread else kinds, RANGES):
                if (pixels := kind(old.scaling.levels, *ends)) != old.scaling:
                    yield replace(old, scaling=pixels)
        elif old.scaling is not None:
            yield replace(old, scaling=None)
        elif varies(self.others).all():
            yield replace(old, scaling=Affine.standardizing(self.others))

    def on_grid(self, reading: Interpretation) -> tuple[Interpretation, list[str]]:
        """The reading, on that of two near grids which the network sees, or on the declared one;
        and a line if it sees neither."""
        pixels, declared = reading.scaling, self.declared.scaling
        if not isinstance(pixels, Pixels) or not isinstance(declared, Pixels):
            return reading, []
        pixels = declared if _are_near(declared, pixels) else pixels
        reading = replace(reading, scaling=pixels)
        # Where the noise is as large as a step from level to level.
        least, most = -2 * pixels.log_det_per_dim, self.log_snr[-1]
        if least >= most:
            noise = math.exp(-most / 2)
            return reading, _hidden(pixels, f"the smallest noise, {noise:.2g}, hides")
        log_snr = np.linspace(least, min(most, least - 2 * math.log(FINEST)), NODES)

        def errors(reading: Interpretation) -> Float[np.ndarray, "k b"]:
            return self.as_fed(reading, log_snr)[reading].own

        own, hidden = errors(reading), []
        for near in _grids(pixels.levels):
            if near == pixels or not _are_near(near, pixels):
                continue
            error = errors(other := replace(reading, scaling=near))
            sees = np.minimum(own, error).mean(axis=1) < SEES
            gain = np.log(without_one(own[sees]) / without_one(error[sees])).sum(axis=0)
            if certain(gain) > GRID * sees.sum():
                return other, []
            if not certain(-gain) > GRID * sees.sum():
                why = "the network, trained too little or on bins, does not show"
                hidden = _hidden(pixels, why)
        return reading, hidden

    def cuts_steps(self, reading: Interpretation, errors: Errors) -> bool:
        """Whether the output is the same between two steps, and another at other steps."""
        if not isinstance(self.sde.schedule, Discrete):
            return False

        def moved(sde: SDE, t: Times) -> Times:
            return self.labels(reading.time_input, _within_steps(sde, t))

        way = replace(reading, time_input=moved)
        same = errors.own == self.as_fed(way)[way].own
        return bool(same[::2].all() and not same[1::2].any())

    def differences(self, reading: Interpretation) -> Iterator[str]:
        """Lines that say what to declare instead."""
        new, old = reading, self.declared
        if new.prediction != old.prediction:
            ends = {"u": " (from_velocity: data_at=0)", "-u": " (from_velocity: data_at=1)"}
            yield (
                f"the declared prediction is {old.prediction}, but the output looks like"
                f" {new.prediction}: say"
                f" prediction={new.prediction!r}{ends.get(new.prediction, '')}"
            )
        if new.time_input != old.time_input:
            t = self.times(self.log_snr)
            like, declared = (_ends(self.labels(way.time_input, t)) for way in (new, old))
            yield (
                f"labels look like {like}; declared are {declared}: say"
                f" time_input={new.time_input!r}"
            )
        if new.scaling == old.scaling:
            return
        if isinstance(new.scaling, Pixels) and isinstance(old.scaling, Pixels):
            like, declared = (_ends(pixels.points) for pixels in (new.scaling, old.scaling))
            yield (
                f"grey levels look like {like}; declared are {declared}: say"
                f" pixels={_grids(new.scaling.levels)[new.scaling]}"
            )
        elif new.scaling is None:
            yield "looks trained on the data as they are: give no bijector"
        else:
            yield (
                "looks trained on data of mean 0 and deviation 1: say"
                " bijector=Affine.standardizing(data)"
            )

    def regions(self, errors: Errors) -> Iterator[str]:
        """Lines that say at which log-SNRs a Gaussian is better, and what that costs."""
        images = isinstance(self.declared.scaling, Pixels)
        per, unit = (1 / math.log(2), "bits/dim") if images else (self.dims, "nats")
        excess = np.maximum((errors.own - errors.gaussian).mean(axis=1), 0)
        middles = (self.log_snr[1:] + self.log_snr[:-1]) / 2
        (turns,) = np.diff(errors.worse, prepend=False, append=False).nonzero()
        for first, stop in turns.reshape(-1, 2).tolist():
            low, high = first and middles[first - 1], middles[min(stop, NODES - 1) - 1]
            cost = per * excess[first:stop].sum() / 2 * (self.log_snr[1] - self.log_snr[0])
            words = (
                f"worse than a Gaussian of the data, which costs {cost:.2g} {unit}: train longer"
            )
            if first and stop < NODES:
                yield f"from log-SNR {low:.1f} to {high:.1f} {words}"
            elif first:
                start = float(self.sde.time_of_log_snr(jnp.asarray(low)))
                yield (
                    f"above log-SNR {low:.1f} {words}, or start at eps={start:.3g} if it was not"
                    " trained there"
                )
            else:
                yield f"{f'below log-SNR {high:.1f}' if stop < NODES else 'everywhere'} {words}"


@frozen_pytree
class _FirstHalf:
    """A network without the variance of its steps, which are the second half of its channels."""

    network: Callable[..., Data]

    def __call__(self, x: Data, *others: Any) -> Data:
        return output_of(self.network, x, *others, channels=2)[..., : x.shape[-1]]


def _record_of(noise: NoiseFn, sde: SDE) -> tuple[NetworkNoise, bool]:
    """A network with its declaration, and whether it is known apart from its noise prediction."""
    if isinstance(noise, Conditioned):
        inner, known = _record_of(noise.noise, sde)
        return replace(inner, network=Conditioned(inner.network, noise.condition)), known
    if isinstance(noise, RangedNoise):
        return replace(noise.noise, network=_FirstHalf(noise.network)), True
    if isinstance(noise, NetworkNoise):
        return noise, True
    return noise_fn(noise, sde, time_input="time"), False


def _within_steps(sde: SDE, t: Times) -> Times:
    """Times that are moved within half of their step; every second one into another step."""
    schedule = cast(Discrete, sde.schedule)
    label = schedule.label(t)
    half = jnp.floor(2 * label) / 2
    within = half + (label - half + 0.25) % 0.5
    another = jnp.where(label < 1, label + 1, label - 1)
    return (jnp.where(jnp.arange(len(label)) % 2 == 0, within, another) + 1) / schedule.steps


def _most_skilled(found: dict[Interpretation, Errors], declared: Interpretation) -> Interpretation:
    """The reading with the fewest changes, of those that no other certainly exceeds."""
    skill = {reading: errors.skill for reading, errors in found.items()}
    most = max(skill.values(), key=np.mean)
    level = [reading for reading, own in skill.items() if not certain(most - own) > SKILL]
    return min(level, key=lambda r: (r.changes(declared), -round(float(skill[r].mean()), 2)))


def _grids(levels: int) -> dict[Pixels, str]:
    """Likely grids, and the words for each: spread over a range, or points from end to end."""
    of_ranges: dict[Pixels, str] = {}
    for a, b in RANGES:
        of_ranges[Pixels(levels, a, b)] = f"Pixels({levels}, {a:g}, {b:g})"
        of_ranges[Pixels.of_points(levels, a, b)] = f"Pixels.of_points({levels}, {a:g}, {b:g})"
    return of_ranges


def _are_near(a: Pixels, b: Pixels) -> bool:
    """Whether ends differ by little, or are those of bins and of points of one range."""
    for ends in RANGES:
        if {a, b} == {Pixels(a.levels, *ends), Pixels.of_points(a.levels, *ends)}:
            return True
    return abs(a.low - b.low) + abs(a.high - b.high) < NEAR * (a.high - a.low)


def _hidden(pixels: Pixels, why: str) -> list[str]:
    """A line for a range whose ends may be points, which can't be seen; none for others."""
    if (pixels.low, pixels.high) not in RANGES:
        return []
    points = Pixels.of_points(pixels.levels, pixels.low, pixels.high)
    return [
        f"{why} the grid of grey levels: if they are {_ends(points.points)}, say"
        f" pixels={_grids(pixels.levels)[points]}"
    ]


def _scaled(x: np.ndarray, scaling: Scaling) -> Data:
    """Data as the network sees them."""
    if isinstance(scaling, Pixels):
        return jnp.asarray(scaling.points, float)[x]
    return jnp.asarray(x if scaling is None else in_all_digits(scaling, x), float)


def _ends(values: Any) -> str:
    """The least and the greatest, in words."""
    return f"{np.min(values):.4g}..{np.max(values):.4g}"
