"""``scoremle score MODEL IMAGES``: the likelihood of each of one's own images, as a table.

IMAGES is a picture, a folder or archive of pictures, or a .npy or .npz of uint8. The table is a
CSV of one line an image, in their order.
"""

import csv
import io
import itertools
import os
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8

from scoremle import data
from scoremle.core.pixels import Pixels
from scoremle.data.archive import Source
from scoremle.data.readers.arrays import read_arrays
from scoremle.data.readers.base import UnusableImage
from scoremle.data.readers.pictures import MAX_PICTURE, Decoder, is_picture
from scoremle.errors import UserError
from scoremle.evaluation.tables import table
from scoremle.experiment.models import load
from scoremle.experiment.scoring import in_words, prepared
from scoremle.files import write_atomically
from scoremle.model import ScoreModel, Scores
from scoremle.terminal import cell, say

__all__ = ["run"]

# Images that are shown of either end of the list.
SHOWN = 3
COLUMNS = ("log_prob", "bpd", "stderr", "probe_stderr", "solver_error")


def run(options: Any) -> dict[str, Any]:
    """Scores the images, writes the table, and prints its mean and its ends; gives the mean."""
    _check_places(options.images, options.out)
    model = load(options.model, options.checkpoint)
    if model.pixels is None or len(model.shape) != 3:
        raise UserError(
            f"{options.model} is no model of integer images: give it a shape (h, w, c) and"
            " pixels, such as scoremle.Pixels(256)"
        )
    names, images = _read(options.images, model, options.fit)
    say(f"scoring {len(images)} images of {options.images}")
    say("looking at a few of them first: is the model what it says, and which nodes do they need")
    model, estimator, notes = prepared(
        model, images, options.estimator, options.label, options.steps
    )
    for note in notes:
        say(note)
    scores = model.score(
        images, estimator=estimator, seed=options.seed, repeats=options.repeats, label="scores"
    )
    _write(options.out, names, scores)
    order = np.argsort(scores.bpd)
    mean, error, stderr = float(scores.bpd.mean()), "", None
    if len(images) > 1:
        stderr = float(scores.bpd.std(ddof=1) / np.sqrt(len(images)))
        error = f" +- {stderr:.4f} (over images)"
    ends = [*order[:SHOWN], *order[max(SHOWN, len(order) - SHOWN) :]]
    rows = [(names[i], f"{scores.log_prob[i]:.1f}", f"{scores.bpd[i]:.4f}") for i in ends]
    say(table(("likeliest, then unlikeliest", "log P, nats", "bits/dim"), rows))
    say(f"mean {mean:.4f}{error} bits/dim; {in_words(estimator)}")
    say(f"written to {options.out}")
    return {
        "unit": "bits/dim",
        "mean": mean,
        "stderr": stderr,
        "mean_solver_error": float(scores.solver_error.mean()),
        "images": len(images),
        "passes": options.repeats,
        "estimator": in_words(estimator),
        "model": options.model,
        "table": str(options.out),
    }


def _check_places(images: Path, out: Path) -> None:
    """Raises UserError for places that can't do, before any work."""
    if not images.exists():
        raise UserError(f"no file or folder {images}")
    folder = next(place for place in out.absolute().parents if place.exists())
    if out.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        what = f"{folder} is none that can be written to" if not out.is_dir() else "it is a folder"
        raise UserError(f"can't write --out={out}: {what}; name a file to write")


def _read(
    path: Path, model: ScoreModel, fit: str
) -> tuple[list[str], UInt8[np.ndarray, "n h w c"]]:
    """Names and pixels of the images, as the model takes them; says what was changed of them."""
    if path.suffix in (".npy", ".npz"):
        return _read_arrays(path, data.Options(fit=fit))
    size, _, channels = model.shape
    decoder = Decoder(data.Options(size=size, channels=channels, fit=fit))
    found = {}
    for name, content in Source(path).files(is_picture, MAX_PICTURE):
        try:
            found[name] = decoder(name, content)
        except UnusableImage as error:
            raise UserError(f"{path}: {name}: {error}") from None
    if not found:
        raise UserError(f"{path} holds no picture (.png, .jpg, .webp or .bmp)")
    for what, count in (+decoder.notes).items():
        say(f"{count} of {len(found)} pictures were {what}")
    pixels, levels = np.stack(list(found.values())), cast(Pixels, model.pixels).levels
    if levels != 256:
        say(f"their 256 grey levels become the model's {levels}")
    return list(found), (pixels.astype(np.uint32) * levels // 256).astype(np.uint8)


def _read_arrays(path: Path, options: data.Options) -> tuple[list[str], np.ndarray]:
    """Images by their numbers; those of several splits one split after the other."""
    chunks = list(read_arrays(path, options).chunks)
    splits = [chunk.split or "" for chunk in chunks for _ in chunk.images]
    counts = Counter(splits)
    if len(counts) > 1:
        words = ", ".join(f"{count} of {split}" for split, count in counts.items())
        say(f"{path} holds several splits, which are scored one after the other: {words}")
    numbers = itertools.chain.from_iterable(map(range, counts.values()))
    pairs = zip(splits, numbers, strict=True)
    names = [f"{split} {i}" if len(counts) > 1 else str(i) for split, i in pairs]
    return names, np.concatenate([chunk.images for chunk in chunks])


def _write(path: Path, names: list[str], scores: Scores) -> None:
    columns = [getattr(scores, name) for name in COLUMNS]
    rows = zip(map(cell, names), *(column.tolist() for column in columns), strict=True)
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("image", *COLUMNS), *rows])
    with write_atomically(path) as temporary:
        temporary.write_bytes(text.getvalue().encode())
