"""Scoring of images by the words of the command line: an estimator's name, a class label.

    ode      the probability-flow ODE
    bound    the variational bound in continuous time
    steps    the bound of a chain of steps: of the model's own, the number that its authors report
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np
from jaxtyping import Integer

import scoremle
from scoremle.bounded import MAX_TEXT
from scoremle.core.pytree import describe
from scoremle.errors import UserError, as_flag, no_chain
from scoremle.experiment.labels import ALL, check_label, labelled, measured_under, under
from scoremle.experiment.own_code import is_own
from scoremle.files import named, sha256_of
from scoremle.likelihood.check import fewest
from scoremle.likelihood.decoders import DiscreteDecoder, GaussianDecoder, InformedDecoder
from scoremle.likelihood.image_model import pixels_of
from scoremle.likelihood.images import ByElbo, Estimator, in_words
from scoremle.likelihood.informed import decoder_worth, scale_of_others
from scoremle.likelihood.levels import StepLevels
from scoremle.likelihood.pilot import PILOT_IMAGES
from scoremle.likelihood.scales import LearnedScale, ScaleOfOthers
from scoremle.likelihood.score_images import Scored, choose_for_images, score_images
from scoremle.likelihood.steps import BySteps, has_last_step
from scoremle.model import ScoreModel
from scoremle.resumable import content_hash, fingerprint
from scoremle.training.checksums import tree_hash

if TYPE_CHECKING:
    from scoremle.weights.flows import FlowModel

__all__ = ["Scoring", "prepared"]

ESTIMATORS = ("ode", "bound", "steps")
# Bits/dim that the solver may add to the standard error of a mean, as in an evaluation.
TOLERANCE = 5e-4

Images = Integer[np.ndarray, "n h w c"]


@dataclass(frozen=True)
class Scoring:
    """A model prepared for some images, the estimator, and notes on both.

    ``doubts`` are about the model's declaration. By ``levels`` the mean over images can be
    corrected for its solver. ``label`` is that of the images, where one was asked for.

    Args:
        estimator: with its solver, as chosen for the images.
        notes: lines for the user.
    """

    model: "ScoreModel | FlowModel"
    estimator: Estimator
    notes: list[str]
    doubts: list[str]
    levels: StepLevels | None = None
    label: str = ""

    def score(self, images: Images, **options: Any) -> Scored:
        """``score_images`` of the model by the estimator.

        Args:
            images: [n h w c] integers.
            options: those of ``score_images``.
        """
        dequantizer = self.model.default_dequantizer
        return score_images(self.model, self.estimator, images, dequantizer=dequantizer, **options)

    def corrected(self, scored: Scored) -> Scored:
        """The same with its mean corrected for the solver, as far as there are ``levels``.

        Args:
            scored: values of images.
        """
        return scored.corrected(self.levels, TOLERANCE)

    @property
    def title(self) -> str:
        """Words for the number: estimator, label if any, and dequantization noise."""
        words = labelled(self.estimator.title, self.label)
        coder = isinstance(self.model, ScoreModel) and self.model.coder
        words += f", {coder.title}" if coder else ""
        middles = isinstance(self.model, ScoreModel) and self.model.origin.middles
        noise = "truncated normal" if middles else "uniform"
        return in_words(words, noise * self.estimator.dequantizes)

    def identity(self, place: str, seed: int) -> dict[str, Any]:
        """The facts that a value depends on, besides its image and its pass.

        Args:
            place: of the model, as it was named.
            seed: of everything random.
        """
        model = self.model
        code = named(Path(place.rpartition(":")[0])) if is_own(place) else None
        if isinstance(model, ScoreModel):
            of_model = {"model": tree_hash(model), "sde": model.sde.describe(), "eps": model.eps}
        else:  # whose functions show by their values alone what they are
            of_model = {"log_prob": model.log_prob(np.full((1, *model.shape), 0.5)).tolist()}
        return {
            **of_model,
            "place": place,
            "code": sha256_of(code, MAX_TEXT) if code else "",
            "pixels": describe(model.pixels),
            "estimator": describe(self.estimator),
            "dequantizer": describe(model.default_dequantizer),
            "seed": seed,
            "version": scoremle.__version__,
        }

    def parts(self, above: Path, place: str, images: Images, seed: int) -> Path:
        """The folder of finished parts in ``above``: a name for all that a value depends on.

        Args:
            above: the folder of all parts.
            place: of the model.
            images: [n h w c] integers.
            seed: of all randomness.
        """
        of_images = {"images": content_hash(images), "shape": list(images.shape)}
        return above / fingerprint(self.identity(place, seed) | of_images)


def prepared(
    model: "ScoreModel | FlowModel",
    images: Images,
    estimator: str = "ode",
    label: str = "",
    steps: int | None = None,
    passes: int = 1,
    correct: bool = False,
) -> Scoring:
    """Prepares the scoring of these images in so many passes, by the name of the estimator.

    A few images decide whether the model agrees with its declaration, how many steps the ODE
    needs, for an image and for the mean, and the scale of a decoder: of each image by others,
    unless the model has one. Under all labels there is no one condition to check, and these go by
    the first. A flow needs nothing: its log-determinant is exact. ``steps``: how many a chain has;
    None: all of the model's own. To ``correct`` the mean, the pilot chooses levels, too. Raises
    UserError for what does not fit.

    Args:
        model: one of images.
        images: [n h w c] integers.
        estimator: "ode", "bound" or "steps".
        label: a number, "all", or "" for none.
        steps: of a chain.
        passes: over each image.
        correct: whether the mean over images is to be corrected.
    """
    if not isinstance(model, ScoreModel):
        return _of_flow(model, estimator, label, correct)
    check_label(model, label)
    chain = _chain_of(model, estimator, steps)  # a mistake before any work
    one = under(model, label)
    notes, levels = list[str](), None
    doubts = [] if label == ALL else _doubts(one, images)
    if estimator == "ode" and model.origin.pilot:
        # A mean of probabilities, over all labels, is not corrected.
        mean_over = len(images) if correct and label != ALL else 1
        choice = choose_for_images(
            one, images, mean_over=mean_over, passes=passes, tolerance=TOLERANCE
        )
        model, levels = replace(model, solver=choice.solver), choice.levels
        notes.append(str(choice))
    if one.decoder and not chain:
        model = replace(model, decoder_scale=_scale(one, images))
        notes.append(worth_of(under(model, label), images))
    found = chain or model.default_estimator
    if estimator == "bound":
        middles = model.origin.middles
        flat = DiscreteDecoder(pixels_of(model).points) if middles else GaussianDecoder()
        found = ByElbo(decoder=model.decoder or flat)
    return Scoring(*measured_under(model, found, label), notes, doubts, levels, label)


def _of_flow(model: "FlowModel", estimator: str, label: str, correct: bool) -> Scoring:
    from scoremle.weights.flows import ByLogProb

    flag = f"--estimator={estimator}" * (estimator != "ode") or "--label" * bool(label)
    if flag := flag or "--correct" * correct:
        raise UserError(f"{flag} is for models with noise, and this is a flow: leave it out")
    return Scoring(model, ByLogProb(), [], [])


def _scale(model: ScoreModel, images: Images) -> Any:
    """The scale of its decoder: its own, or one that no image has from itself."""
    decoder = cast(InformedDecoder, model.decoder)
    if model.decoder_scale is not None or isinstance(decoder.scale, LearnedScale):
        return model.decoder_scale
    return scale_of_others(model, images, jax.random.key(0))


def worth_of(model: ScoreModel, images: Images) -> str:
    """Words on the cost of a model's decoder on a few images, and the origin of its scale."""
    few, key = images[:PILOT_IMAGES], jax.random.key(0)
    decoder = cast(InformedDecoder, model.decoder)
    informed, flat = decoder_worth(model, decoder, few, key)
    return (
        f"its last noise hides the levels: from there to the integers the informed decoder takes"
        f" {informed:.2f} bits/dim, and a flat one would take {flat:.2f}{_origin(model, decoder)}"
    )


def _origin(model: ScoreModel, decoder: InformedDecoder) -> str:
    """Words on the origin of a decoder's scale; "" for the common one."""
    if isinstance(decoder.scale, LearnedScale):
        return "; its scale is the network's own, for each pixel"
    words = "; no image has a scale that was fitted to it"
    words *= isinstance(decoder.scale, ScaleOfOthers)
    if hasattr(model.noise, "both") and not has_last_step(model.sde, model.eps):
        words += (
            "; the network tells variances, but of no step from the smallest time to the integers,"
            " so the scale is not its own"
        )
    return words


def _doubts(model: ScoreModel, images: Images) -> list[str]:
    """Likely mistakes in the model's declaration, if there are enough images to test it.

    A model that was trained here agrees with its config. One with codes has no declaration
    without them.
    """
    if model.origin.step is not None or model.coder or len(images) < fewest(model.dims):
        return []
    of_kind = "check, if these images are of the kind that it was trained on"
    return [f"{of_kind}: {line}" for line in model.check(images)]


def _chain_of(model: ScoreModel, estimator: str, steps: int | None) -> BySteps | None:
    """The chain of the estimator "steps"; None for another. Raises UserError if none is known."""
    if estimator != "steps":
        return None
    if steps is not None:
        return model.chain(steps)
    if model.origin.chain is None:
        raise no_chain(as_flag)
    return model.origin.chain
