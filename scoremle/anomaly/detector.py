"""A detector of what does not belong: fitted to normal examples, and calibrated on others of them.

Normal examples are split in two by the seed. On the first half a statistic is fitted
(`statistics.py`, `normality.py`). The scores of the second are the references of p-values
(`conformal.py`): so these hold whatever was fitted, and whatever the model is worth.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

import scoremle
from scoremle.anomaly.conformal import (
    LEAST_RATE,
    fewest_references,
    fewest_together,
    p_values,
    suspects,
)
from scoremle.anomaly.normality import Density, Normality, Ranks, as_tuple
from scoremle.anomaly.statistics import FEATURES, STATISTICS, Examples, Numbers, numbers_of
from scoremle.bounded import LONGEST_JSON
from scoremle.core.arguments import (
    as_data,
    as_reals,
    check_choice,
    check_count,
    check_kind,
    check_number,
    check_seed,
    shown,
)
from scoremle.core.outputs import agree, outputs_of
from scoremle.core.pytree import describe
from scoremle.errors import UserError, first_line
from scoremle.files import SEAL, named, read_json, read_sealed, write_sealed
from scoremle.model import ScoreModel
from scoremle.numerics import permutation, random_words
from scoremle.records import Size, check_record
from scoremle.resumable import fingerprint
from scoremle.training.checksums import model_hash

# Chosen by benchmarks/anomaly.py.
DEFAULT = "path"
# Different normal examples, of which half are fitted to.
FEWEST = 40
# Beside the seed, the keys of the split and of ties.
SPLIT, TIES = 1, 2


@dataclass(frozen=True, eq=False)
class Anomalies:
    """Scores of examples and their p-values.

    A larger ``score`` is more unusual. Of examples like the references, at most a share of 0.01
    has a ``p`` of 0.01 or less.

    Raises UserError for p-values outside [0, 1], and another number of them than of scores.

    Example:
        >>> from scoremle.anomaly import Anomalies
        >>> found = Anomalies(np.asarray([9.0, 0.1]), np.asarray([0.01, 0.8]))
        >>> print(found.suspects(0.1))
        [ True False]
    """

    score: Float[np.ndarray, " n"]
    p: Float[np.ndarray, " n"]

    def __post_init__(self) -> None:
        p = as_reals(self.p, "p")
        if p.shape != np.shape(self.score) or not np.all((p >= 0) & (p <= 1)):
            raise UserError("p must be a number from 0 to 1 for each score")

    def __len__(self) -> int:
        return len(self.p)

    @property
    def order(self) -> Int[np.ndarray, " n"]:
        """Numbers of the examples, the most unusual first: by p, and by the score where p ties."""
        return np.lexsort((-self.score, self.p))

    @property
    def adjusted(self) -> Float[np.ndarray, " n"]:
        """The least rate of false discoveries at which each example stands out."""
        return suspects(self.p, 1.0)[0]

    def suspects(self, rate: float = 0.1) -> Bool[np.ndarray, " n"]:
        """Marks the examples that stand out, by the procedure of Benjamini and Hochberg.

        Args:
            rate: the expected share of false ones among those that are marked is at most this.

        Raises UserError for a rate outside (1e-10, 1).
        """
        check_number("rate", rate, LEAST_RATE, 1)
        return suspects(self.p, rate)[1]


@dataclass(frozen=True, repr=False)
class Detector:
    """A statistic fitted to normal examples, and the scores of others as references.

    Args:
        statistic: its name.
        fitted: by which features become a score.
        reference: the scores of normal examples that nothing was fitted to, in ascending order.
        shape: of one example.
        equal: normal examples beyond the first of those that are equal; each counts.
        model: a fingerprint of the model, "" of features alone.
        outputs: of the noise prediction at fixed points: a function may have no parameters.
        facts: where the model is, and what else is to be kept in the file.
        seed: of the split, the statistic, and ties.
        version: of the package.

    Example:
        >>> from scoremle.anomaly import Detector
        >>> normal = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
        >>> detector = Detector.fit(None, normal)  # a density of vectors, without a model
        >>> print(detector)
        Detector(features, 100 references, least p 0.0099)
        >>> print(detector.score(None, np.full((1, 3), 9.0, np.float32)).p)
        [0.00990099]
    """

    statistic: str
    fitted: Normality
    reference: tuple[float, ...]
    shape: tuple[Size, ...]
    equal: int = 0
    model: str = ""
    outputs: tuple[float, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    version: str = scoremle.__version__

    def __repr__(self) -> str:
        n = len(self.reference)
        return f"Detector({self.statistic}, {n} references, least p {1 / (n + 1):.2g})"

    @classmethod
    def fit(
        cls,
        model: ScoreModel | None,
        normal: Any,
        *,
        statistic: str = "",
        seed: int = 0,
        facts: Mapping[str, str] | None = None,
        label: str = "",
    ) -> "Detector":
        """Fits a statistic to half of the normal examples; the others become references.

        Args:
            model: under which the statistic is; None: a density of the vectors themselves.
            normal: integer images or reals as the model takes them, or vectors [n d].
            statistic: its name; "": the default.
            seed: of the split, the statistic, and ties.
            facts: where the ``model`` is, and what else is to be kept in the file.
            label: under which progress is shown, if there is one.

        Raises UserError for what is not a model, another statistic, data that the model does not
        take, fewer than 40 different examples, and without scikit-learn.
        """
        check_seed(seed)
        check_kind("model", model, ScoreModel | None, 'scoremle.load("digits")')
        default, choices = (DEFAULT, tuple(STATISTICS)) if model else (FEATURES, (FEATURES,))
        name = statistic or default
        check_choice("statistic", name, choices)
        data = _checked(model, normal, "normal")
        numbers, first, inverse = np.unique(
            numbers_of(data), return_index=True, return_inverse=True
        )
        if len(first) < FEWEST:
            raise UserError(
                f"normal must have {FEWEST} different examples or more, not {len(first)}: half are"
                " fitted to, and the others give p-values in steps of 1 / (n + 1)"
            )
        # Equal examples count each, since they come again among new ones: without them the ranks
        # of new ones would not be equally likely.
        order = np.sort(inverse)[permutation(len(data), seed, SPLIT)]
        features = _features(model, name, data[first], numbers, seed, label)[order]
        half = len(data) // 2
        fitted = STATISTICS[name].fit(features[:half]) if model else Density.fit(features[:half])
        reference = tuple(np.sort(fitted(features[half:])).tolist())
        shape, equal = tuple(map(Size, data.shape[1:])), len(data) - len(first)
        kept = _identity(model), outputs_of(model), dict(facts or {}), seed
        return cls(name, fitted, reference, shape, equal, *kept)

    def score(self, model: ScoreModel | None, data: Any, *, label: str = "") -> Anomalies:
        """Scores of examples, and their p-values.

        Args:
            model: the one that the detector was fitted with.
            data: as those of ``fit``.
            label: under which progress is shown, if there is one.

        Raises UserError for another model or version, and data of another shape or type.
        """
        check_kind("model", model, ScoreModel | None, 'scoremle.load("digits")')
        if self.model != _identity(model) or not agree(outputs_of(model), self.outputs):
            place, number = self.facts.get("model"), self.facts.get("checkpoint")
            at = f" at checkpoint {number}" if number else " or another checkpoint of it"
            known = f"that model, {place}{at}" if place else "that model"
            raise UserError(
                "this is not the model that the detector was fitted with, and its p-values do not"
                f" hold for another: fit it anew, or take {known}"
            )
        if model is not None and self.version != scoremle.__version__:
            raise UserError(
                f"the detector is of scoremle {self.version}, whose statistics may differ from"
                " those of this version: fit it anew"
            )
        data = _checked(model, data, "data")
        if data.shape[1:] != self.shape:
            raise UserError(f"data must be of shape {self.shape} each, not {data.shape[1:]}")
        if not len(data):
            return Anomalies(np.zeros(0), np.zeros(0))
        numbers = numbers_of(data)
        features = _features(model, self.statistic, data, numbers, self.seed, label)
        scores = self.fitted(features)
        # A word of each example by its content, so that p depends on that alone.
        words = [random_words(1, self.seed, TIES, int(number))[0] for number in numbers]
        return Anomalies(scores, p_values(scores, np.asarray(self.reference), np.asarray(words)))

    def limits(self, examples: int, rate: float) -> str:
        """A line on the limits of few references; "" if they can list one suspect.

        Args:
            examples: how many are scored.
            rate: of false discoveries.

        Raises UserError for a rate outside (1e-10, 1).
        """
        check_number("rate", rate, LEAST_RATE, 1)
        n = len(self.reference)
        together = fewest_together(n, examples, rate)
        if together <= 1:
            return ""
        what = f"only {together} or more together" if together <= examples else "nor all of them"
        return (
            f"{n} references can't list one suspect among {examples} at a rate of {rate:g},"
            f" {what}: for one it takes {fewest_references(examples, rate)}"
        )

    def write(self, path: str | Path) -> None:
        """Writes the detector as JSON, with a seal.

        Args:
            path: of the file.

        Raises UserError for one that is too large to be read again: of features of more than
        about 500 dimensions.
        """
        content = asdict(self)
        if len(json.dumps(content, indent=2)) > LONGEST_JSON // 2:
            raise UserError(
                f"{path}: the detector has too many numbers to be kept; give it features of fewer"
                " dimensions, or fewer normal examples"
            )
        write_sealed(path, content)

    @classmethod
    def read(cls, path: str | Path) -> "Detector":
        """Reads what ``write`` wrote.

        Args:
            path: of the file.

        Raises UserError for what is not a detector, and for one that is not as it was written.
        """
        place = named(path)
        try:
            sealed = read_json(place).get(SEAL) is not None
        except UserError as error:
            raise UserError(f"{error}; scoremle anomaly fit writes a detector") from None
        if not sealed:
            raise UserError(f"{path} is not a detector: scoremle anomaly fit writes one")
        content = read_sealed(place, "fit it anew")
        check_record(content, cls, path)
        check_choice(f"{path}: statistic", content["statistic"], (*STATISTICS, FEATURES))
        check_count(f"{path}: seed", content["seed"], 0)
        kind = Ranks if "slopes" in content["fitted"] else Density
        try:
            fitted = {name: as_tuple(value) for name, value in content["fitted"].items()}
            content["fitted"] = kind(**fitted)
        except (UserError, ValueError) as error:
            raise UserError(f"{path}: {first_line(error)}; fit it anew") from None
        reference = content["reference"]
        if not reference or reference != sorted(reference):
            raise UserError(f"{path}: its references are not in ascending order; fit it anew")
        for name in ("reference", "shape", "outputs"):
            content[name] = tuple(content[name])
        return cls(**content)


def _identity(model: ScoreModel | None) -> str:
    """A fingerprint of all of a model that a statistic depends on; "" of none."""
    if model is None:
        return ""
    return fingerprint({
        "model": model_hash((model.noise, model.bijector, model.coder)),
        "sde": model.sde.describe(), "eps": model.eps, "shape": list(model.shape),
        "pixels": describe(model.pixels), "solver": describe(model.solver),
        "divergence": describe(model.divergence), "decoder": describe(model.decoder_scale),
        "origin": describe(model.origin.of_integers),
    })  # fmt: skip


def _checked(model: ScoreModel | None, data: Any, name: str) -> np.ndarray:
    if model is not None and model.pixels is not None:
        return model.pixels.checked(data, model.shape)
    as_data(data, name=name)
    found = np.asarray(data, np.float64)
    if model is None and found.ndim != 2:
        raise UserError(f"{name} must be vectors [n d], not {shown(found)}")
    if model is not None and found.shape[1:] != model.shape:
        raise UserError(f"{name} must have shape (n, {', '.join(map(str, model.shape))})")
    return found


def _features(
    model: ScoreModel | None, name: str, data: np.ndarray, numbers: Numbers, seed: int, label: str
) -> Float[np.ndarray, "n k"]:
    if model is None:
        return data
    return STATISTICS[name].features(Examples(model, data, numbers, seed, label))
