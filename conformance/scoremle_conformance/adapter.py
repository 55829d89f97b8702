"""Adapters: how a library is called for log p, and what it can compute.

An adapter is a class with a few facts and one method, ``log_prob``. What it declares in ``can`` is
checked; what it does not declare is not applicable, and counts neither for nor against it.
"""

import importlib.metadata
import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from scoremle_conformance.fields import Field
from scoremle_conformance.images import Images

__all__ = ["ABILITIES", "Adapter", "Answer", "Ask"]

ABILITIES = {
    "exact": "exact traces",
    "probes": "traces by a random probe, drawn anew for each seed",
    "several probes": "the mean over several probes of each example",
    "noise": "the density at a stated noise, from a path's start to its stop",
    "classes": "a label for each example",
    "batches": "a batch size",
    "steps": "a given number of steps",
    "gradient": "the gradient of log p in x",
    "probe error": "the standard error by its probes",
    "solver error": "an estimate of its solver's error",
    "images": "log P of integer images",
    "several draws": "a bound from several draws of the dequantization noise",
    "dequantizer": "dequantization noise of another density, 6 u (1 - u)",
}


@dataclass(frozen=True)
class Ask:
    """The arguments of one call.

    Args:
        exact: by exact traces; if not, by random probes.
        probes: of each example.
        seed: of all that is random.
        labels: the class of each example.
        batch_size: how many examples at once; None: all.
        steps: how many the solver takes; None: as many as it likes.
        draws: of the dequantization noise of each image.
        dequantizer: its density, "uniform" or "beta".
    """

    exact: bool = True
    probes: int = 1
    seed: int = 0
    labels: np.ndarray | None = None
    batch_size: int | None = None
    steps: int | None = None
    draws: int = 1
    dequantizer: str = "uniform"


@dataclass(frozen=True)
class Answer:
    """log p of each example in nats, and its errors, where they are stated."""

    log_prob: Any
    probe_error: Any = None
    solver_error: Any = None


class Adapter:
    """A library in one of its settings. Subclasses say what follows, and ``log_prob``.

    Args:
        setting: one of ``settings``; None: the first.
    """

    name: ClassVar[str]
    package: ClassVar[str] = ""  # whose version is printed
    settings: ClassVar[dict[str, str]] = {"default": "as it is"}  # name -> what is set
    framework: ClassVar[str] = "numpy"  # of fields: "numpy", "torch" or "jax"
    outputs: ClassVar[tuple[str, ...]] = ("velocity",)  # of networks that it takes
    paths: ClassVar[tuple[str, ...]] = ("straight",)
    can: ClassVar[frozenset[str]] = frozenset({"exact"})  # names of ABILITIES
    probe: str = "rademacher"  # or "gaussian"
    fresh: bool = False  # does it draw a new probe at each of its steps?
    adaptive: bool = False  # does its solver choose its steps?
    order: float | None = None  # of convergence, where steps are given

    def __init__(self, setting: str | None = None) -> None:
        self.setting = next(iter(self.settings)) if setting is None else setting
        if self.setting not in self.settings:
            names = ", ".join(self.settings)
            raise ValueError(f"{self.name} has no setting {setting!r}, but {names}")
        unknown = self.can - set(ABILITIES)
        if unknown:
            raise ValueError(f"{self.name} declares unknown abilities: {', '.join(unknown)}")

    @property
    def version(self) -> str:
        """Of the package, as it is installed."""
        return importlib.metadata.version(self.package) if self.package else ""

    @property
    def networks(self) -> list[tuple[str, str]]:
        """Paths and outputs of networks that it takes; the first is used most."""
        return list(itertools.product(self.paths, self.outputs))

    def log_prob(self, field: Field, x: np.ndarray, ask: Ask) -> Answer:
        """log p of the rows of ``x`` [n D] at the start of the field's path, in nats."""
        raise NotImplementedError(f"{self.name} has no method log_prob")

    def gradient(self, field: Field, x: np.ndarray) -> np.ndarray:
        """The gradient of log p in x, by exact traces: for those that declare "gradient"."""
        raise NotImplementedError(f"{self.name} has no method gradient")

    def log_prob_images(
        self, field: Field, images: np.ndarray, kind: Images, ask: Ask
    ) -> np.ndarray:
        """log P of integers [n h w c] in nats, for those that declare "images"."""
        raise NotImplementedError(f"{self.name} has no method log_prob_images")
