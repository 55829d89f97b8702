"""Measurements of images of one's own, by the names of the command line.

An estimator is one of

    ode      the probability-flow ODE
    bound    the variational bound in continuous time
    steps    the bound of a chain of steps: of the model's own, the number that its authors report
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Integer

from scoremle.core.keys import key_of
from scoremle.errors import UserError, as_flag, no_chain
from scoremle.experiment.labels import ALL, check_label, measured_under, under
from scoremle.experiment.measurement import Measurement
from scoremle.likelihood.check import fewest
from scoremle.likelihood.decoders import InformedDecoder
from scoremle.likelihood.informed import decoder_worth, scale_of_others
from scoremle.likelihood.pilot import PILOT_IMAGES
from scoremle.likelihood.scales import LearnedScale, ScaleOfOthers
from scoremle.likelihood.score_images import choose_for_images
from scoremle.likelihood.steps import has_last_step
from scoremle.model import ScoreModel

if TYPE_CHECKING:
    from scoremle.weights.flows import FlowModel

__all__ = ["SOLVER_TOLERANCE", "prepared"]

# Bits/dim that the solver may add to the standard error of a mean, as in an evaluation.
SOLVER_TOLERANCE = 5e-4

Images = Integer[np.ndarray, "n h w c"]


def prepared(
    model: "ScoreModel | FlowModel",
    images: Images,
    estimator: str = "ode",
    label: str = "",
    steps: int | None = None,
    passes: int = 1,
    correct: bool = False,
) -> Measurement:
    """Prepares the measurement of these images in so many passes, by the name of the estimator.

    A few images decide whether the model agrees with its declaration, how many steps the ODE
    needs, for an image and for the mean, and the scale of a decoder: of each image by others,
    unless the model has one. With label "all" the declaration is not checked, since the images
    have different labels; the number of steps and the scale are chosen with the first label. A
    flow needs nothing: its log-determinant is exact. ``steps``: how many a chain has; None: all of
    the model's own. To ``correct`` the mean, the pilot chooses levels, too. Raises UserError for
    what does not fit.

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
    chain = None
    if estimator == "steps":
        chain = model.origin.chain if steps is None else model.chain(steps)
        if chain is None:
            raise no_chain(as_flag)
    one = under(model, label)
    notes, choice = list[str](), None
    doubts = () if label == ALL else _doubts(one, images)
    if estimator == "ode" and model.origin.pilot:
        # A mean of probabilities, over all labels, is not corrected.
        mean_over = len(images) if correct and label != ALL else 1
        choice = choose_for_images(
            one, images, mean_over=mean_over, passes=passes, tolerance=SOLVER_TOLERANCE
        )
        model = replace(model, solver=choice.solver)
        notes.append(str(choice))
    if one.decoder and not chain:
        model = replace(model, decoder_scale=_scale(one, images))
        notes.append(worth_of(under(model, label), images))
    found = chain or model.default_estimator
    if estimator == "bound":
        found = model.default_bound
    return Measurement(
        *measured_under(model, found, label), model.default_dequantizer, choice, label,
        tuple(notes), doubts,
    )  # fmt: skip


def _of_flow(model: "FlowModel", estimator: str, label: str, correct: bool) -> Measurement:
    from scoremle.weights.flows import ByLogProb

    flag = f"--estimator={estimator}" * (estimator != "ode") or "--label" * bool(label)
    if flag := flag or "--correct" * correct:
        raise UserError(f"{flag} is for models with noise, and this is a flow: leave it out")
    return Measurement(model, ByLogProb())


def _scale(model: ScoreModel, images: Images) -> Any:
    """The scale of its decoder: its own, or one that no image has from itself."""
    decoder = cast(InformedDecoder, model.decoder)
    if model.decoder_scale is not None or isinstance(decoder.scale, LearnedScale):
        return model.decoder_scale
    return scale_of_others(model, images, key_of(0))


def worth_of(model: ScoreModel, images: Images) -> str:
    """Words on the cost of a model's decoder on a few images, and the origin of its scale."""
    few, key = images[:PILOT_IMAGES], key_of(0)
    decoder = cast(InformedDecoder, model.decoder)
    informed, flat = decoder_worth(model, decoder, few, key)
    return (
        "its noise at the smallest time is wider than half a grey level: from there to the"
        f" integers the informed decoder takes {informed:.2f} bits/dim, and a flat one would take"
        f" {flat:.2f}{_origin(model, decoder)}"
    )


def _origin(model: ScoreModel, decoder: InformedDecoder) -> str:
    """Words on the origin of a decoder's scale; "" for the common one."""
    if isinstance(decoder.scale, LearnedScale):
        return "; its scale is the network's own, for each pixel"
    words = "; no image has a scale that was fitted to it"
    words *= isinstance(decoder.scale, ScaleOfOthers)
    if hasattr(model.noise, "both") and not has_last_step(model.sde, model.eps):
        words += (
            "; the network predicts variances, but of no step from the smallest time to the"
            " integers, so the scale is not its own"
        )
    return words


def _doubts(model: ScoreModel, images: Images) -> tuple[str, ...]:
    """Likely mistakes in the model's declaration, if there are enough images to test it.

    A model that was trained here agrees with its config. One with codes has no declaration
    without them.
    """
    if model.origin.step is not None or model.coder or len(images) < fewest(model.dims):
        return ()
    of_kind = "check, if these images are like those of its training"
    return tuple(f"{of_kind}: {line}" for line in model.check(images))
