"""Images to a file and back, by a model."""

import logging
import math
from dataclasses import replace
from pathlib import Path

import jax
import jaxlib
import numpy as np
from jaxtyping import Integer

from scoremle.coding import file
from scoremle.coding.codec import compress, decompress
from scoremle.coding.layers import LatentLayers
from scoremle.coding.rates import Rates
from scoremle.core.arguments import check_count
from scoremle.errors import UserError
from scoremle.likelihood.image_model import pixels_of
from scoremle.likelihood.mean import standard_error
from scoremle.likelihood.score_images import score_images
from scoremle.model import ScoreModel
from scoremle.records import Count, Size
from scoremle.solvers.multistep import Multistep
from scoremle.training.checksums import tree_hash

__all__ = ["compress_images", "decompress_images"]

logger = logging.getLogger(__name__)

# Steps of a chain, unless another number is given, and images at once.
STEPS, LANES = 100, 64
# Steps that are drawn for each image where the bound is stated.
DRAWS = 16

Images = Integer[np.ndarray, "n *d"]


def compress_images(
    model: ScoreModel,
    images: Images,
    path: str | Path,
    *,
    place: str = "",
    names: list[str] | None = None,
    steps: int = STEPS,
) -> Rates:
    """Writes images to a file by the chain of a model, and states what they take.

    Args:
        model: a model of integer images.
        images: grey values of the model's pixels, all of one shape.
        path: of the file.
        place: where the model is, for the file's record.
        names: of the images, without endings, for the folder that they are decoded to. Where two
            are the same, one is not a file name, or not each image has one, numbers take their
            place, and a warning says so.
        steps: of the chain. More steps take fewer bits, and as many times longer.

    Raises UserError for images that the model can't take, a chain that it does not have, and
    where no image comes back as it was.
    """
    images = pixels_of(model).checked(images, model.shape)
    check_count("steps", steps, 2, file.MOST_STEPS)
    chain = model.chain(steps)
    layers = LatentLayers(model, chain, min(LANES, len(images)))
    coded, nats = compress(layers, images)
    exact = ~np.isnan(nats)
    if not exact.any():
        raise UserError(
            "no image comes back as it was: the network's numbers are not finite, or change from"
            " one call to the next; look at the model"
        )
    if names and not (file.are_names(names, len(images)) and file.are_short(names)):
        logger.warning(
            "names are not kept, since two are the same, one is too long or no file's, not each"
            " image has one, or they are too many: the images come back by number, in their order"
        )
        names = []
    checkpoint = model.origin.checkpoint
    record: file.CodedRecord = {
        "place": place, "model": _model_hash(model), "program": _program(), "steps": Size(steps),
        "lanes": Size(layers.lanes), "shape": [*map(Size, model.shape)],
        "names": names or [], "checkpoint": None if checkpoint is None else Count(checkpoint),
    }  # fmt: skip
    # Before the file is written: a command that is stopped has no file, and can be repeated.
    scored = score_images(model, replace(chain, draws=min(DRAWS, steps)), images, seed=0)
    size = file.write_coded(path, record, coded)
    stated = scored.values["bpd"][0]
    drawn = nats / (model.dims * math.log(2))
    count = int(exact.sum())
    difference = (drawn - stated)[exact]
    return Rates(
        images=len(images),
        steps=steps,
        net=(32 * len(coded.words) - coded.initial) / (model.dims * count),
        gross=8 * size / images.size,
        drawn=float(drawn[exact].mean()),
        stated=float(stated[exact].mean()),
        stderr=standard_error(difference.var(ddof=1), count) if count > 1 else None,
        plain=1 - float(exact.mean()),
        size=size,
        checkpoint=checkpoint,
    )


def decompress_images(model: ScoreModel, path: str | Path) -> tuple[Images, list[str]]:
    """Reads what `compress_images` wrote; returns the images, and their names if they have any.

    Args:
        model: the one that they were compressed by.
        path: of the file.

    Raises UserError for another model than theirs, and for a block that comes back otherwise.
    """
    record, coded = file.read_coded(path)
    if record["model"] != _model_hash(model) or tuple(record["shape"]) != model.shape:
        number, place = record.get("checkpoint"), record["place"]
        at = " or another checkpoint of it" if number is None else f" at checkpoint {number}"
        known = f": {place}{at}" if place else ""
        raise UserError(f"{path} was compressed by another model{known}")
    chain = model.chain(record["steps"])
    try:
        layers = LatentLayers(model, chain, record["lanes"])
        return decompress(layers, coded), record["names"]
    except UserError as error:
        here, there = _program(), record["program"]
        where = "" if here == there else f"; it was compressed by {there}, and here is {here}"
        others = "the model's functions or its range of pixels are others"
        raise UserError(f"{path}: {error}, or {others}{where}") from None


def _model_hash(model: ScoreModel) -> str:
    """A hash of what a chain is made of: not of what the ODE alone takes, as a pilot found it."""
    return tree_hash(replace(model, solver=Multistep(), decoder_scale=None))


def _program() -> str:
    """Names what the rounding of a network depends on, beside its parameters."""
    device = jax.devices()[0]
    return f"jaxlib {jaxlib.__version__} on {device.device_kind}"
