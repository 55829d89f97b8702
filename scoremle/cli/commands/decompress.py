"""Decodes the images that scoremle compress wrote, by the same model.

    scoremle decompress images.bits -o images.npy
    scoremle decompress photos.bits --model=runs/photos -o folder

A block that comes back otherwise than it was is an error: never wrong pixels.
"""

from pathlib import Path
from typing import Any

import scoremle
from scoremle.cli import checks
from scoremle.cli.parser import Parser
from scoremle.errors import UserError
from scoremle.terminal import counted, say

NEEDS = "scoremle.experiment.models"
ARRAYS = (".npy", ".npz")


def arguments(parser: Parser) -> None:
    add = parser.add
    add("file", "file that scoremle compress wrote", type=Path)
    add("-o --out", "a folder for pictures as PNG, or an array (.npy, .npz)", type=Path,
        required=True, metavar="PLACE")  # fmt: skip
    add("--model", "place of the model; unset: the place that FILE names", default="")
    add("--force", "overwrite an array that exists", action="store_true")
    add("--checkpoint", "number of the checkpoint; unset: that in FILE, or else the newest",
        type=int)  # fmt: skip


def check(options: Any) -> None:
    checks.exists(options.file)
    if options.out.suffix.lower() not in ARRAYS and options.out.exists():
        raise UserError(f"--out={options.out} is there already: name a folder that is not")
    checks.different((options.file,), options.out)
    checks.writable("--out=", options.out, force=options.force)


def run(options: Any) -> None:
    """Decodes the images, and writes them."""
    from scoremle.coding.file import read_coded
    from scoremle.coding.images import decompress_images
    from scoremle.data.prepared import made_whole
    from scoremle.evaluation.pictures import as_png
    from scoremle.experiment import models

    record, _ = read_coded(options.file)
    place = models.place_in(options.file, record["place"], options.model)
    number = models.checkpoint_of(place, options.checkpoint, record.get("checkpoint"))
    model, as_array = scoremle.load(place, number), options.out.suffix.lower() in ARRAYS
    levels = models.of_images(model, place)[0].levels
    if levels != 256 and not as_array:
        raise UserError(
            f"--out={options.out}: pictures have 256 grey levels, and the model {levels}: name a"
            " .npz"
        )
    images, names = decompress_images(model, options.file)
    check(options)  # another process may have written there
    if as_array:
        scoremle.files.write_array(options.out, "images", images, levels)
    else:
        with made_whole(options.out) as folder, scoremle.files.writing(options.out):
            for i, image in enumerate(images):
                (folder / f"{names[i] if names else i}.png").write_bytes(as_png(image, 256))
    say(f"{counted(len(images), 'image')}: {options.out}")
