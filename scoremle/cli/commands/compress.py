"""Compresses images without loss by a model, in about the bits of its variational bound.

    scoremle compress digits images.npz -o images.bits
    scoremle compress runs/photos pictures/ -o photos.bits --steps=1000

Each block of images is decoded again before the file is written. Only the same model decodes it.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import scoremle
from scoremle.cli import checks
from scoremle.cli.parser import MODEL, Parser
from scoremle.errors import UserError, in_short
from scoremle.evaluation.tables import wrapped
from scoremle.terminal import counted, say

if TYPE_CHECKING:
    import numpy as np

    from scoremle.coding.rates import Rates

NEEDS = "scoremle.experiment.models"


def arguments(parser: Parser) -> None:
    add = parser.add
    add("model", MODEL)
    add("images", "a picture, a folder or archive of pictures of the model's size, or a .npy or"
        " .npz of grey values", type=Path)  # fmt: skip
    add("-o --out", "the file to write", type=Path, required=True, metavar="FILE")
    add("--steps", "steps of the chain: more take fewer bits, and more time in proportion (100)",
        type=checks.at_least(2), default=100)  # fmt: skip
    add("--force", "overwrite a file that exists", action="store_true")
    add("--checkpoint", "number of the checkpoint; unset: the newest", type=int)
    add("--json", "the rates as JSON, on stdout", action="store_true")


def check(options: Any) -> None:
    checks.exists(options.images)
    checks.different((options.model, options.images), options.out)
    checks.writable("--out=", options.out, force=options.force)
    checks.model(options)


def run(options: Any) -> dict[str, Any]:
    """Writes the file, and prints its rates beside those that the model states."""
    from scoremle.coding.images import compress_images
    from scoremle.experiment import models

    model = scoremle.load(options.model, options.checkpoint)
    pixels, shape = models.of_images(model, options.model)
    pictures, images = _lossless(options, shape, pixels.levels)
    names = [Path(name).stem for name in pictures]
    rates = compress_images(
        model, images, options.out, place=options.model, names=names, steps=options.steps
    )
    _say(rates, math.log2(pixels.levels), pictures, names)
    say(f"{counted(len(images), 'image')}: {options.out}")
    _keep(rates, Path(options.model))
    return {"model": options.model, **asdict(rates)}


def _lossless(
    options: Any, shape: tuple[int, int, int], levels: int
) -> tuple[list[str], np.ndarray]:
    """The names of pictures, and all images.

    Raises UserError if the file would not give back what there was.
    """
    from scoremle.data.readers.decoding import EXACT, is_picture
    from scoremle.experiment import own_images

    reports, images = own_images.read_images(
        options.images, shape, levels, remedy="remove such files, or repair them",
        written=[options.out],
    )  # fmt: skip
    pictures = [report.name for report in reports if is_picture(report.name)]
    if levels != 256 and pictures:
        raise UserError(
            f"{options.images}: pictures have 256 grey levels, and the model {levels}: to"
            " compress without loss, give a .npz of the model's grey values"
        )
    losses = [f"{report.name} is {change}" for report in reports
              for change in report.changes if change not in EXACT]  # fmt: skip
    if losses:
        raise UserError(
            f"{options.images}: {in_short(losses, 1)}, which loses something: remove such pictures"
        )
    return pictures, images


def _say(rates: Rates, of_pixels: float, pictures: list[str], names: list[str]) -> None:
    """Prints the rates, and what of the pictures was not kept."""
    from scoremle.coding.file import are_names

    say(*wrapped(
        f"{rates.line}; the draws that were coded have {rates.drawn:.3f}",
        f"the file: {rates.size} bytes, {rates.gross:.3f} bits/dim with the random bits that the"
        " first image is drawn from",
    ))  # fmt: skip
    if rates.gross > of_pixels:
        say(*wrapped(
            f"that is more than the {of_pixels:.3f} bits/dim of the pixels as they are: take more"
            " images, more steps, or a model of such images"
        ))  # fmt: skip
    if are_names(names, rates.images) and any("/" in name for name in pictures):
        say("the names of pictures are kept, and those of their folders are not")
    if rates.plain:
        say(f"{rates.plain:.1%} of the images did not come back as they were: stored plainly")


def _keep(rates: Rates, place: Path) -> None:
    """Writes the rates where a report of the model's training finds them."""
    from scoremle.coding.rates import RATES_FILE
    from scoremle.experiment import workdir

    if place.is_dir() and workdir.Workdir(place).begun:
        try:
            scoremle.files.write_json(place / RATES_FILE, asdict(rates))
        except UserError as error:  # a folder that others own
            say(f"its report will not have these rates: {error}")
