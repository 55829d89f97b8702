"""``scoremle score MODEL IMAGES``: the likelihood of each of one's own images, as a table.

IMAGES is a picture, a folder or archive of pictures, or a .npy or .npz of uint8. The table is a
CSV of one line an image, in their order.
"""

import csv
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
from scoremle.experiment.trained import Trained
from scoremle.files import write_atomically
from scoremle.likelihood.images import ByOde
from scoremle.model import ScoreModel, Scores

__all__ = ["run"]

# Images that are shown of either end of the list.
SHOWN = 3
COLUMNS = ("log_prob", "bpd", "stderr", "probe_stderr", "solver_error")


def run(options: Any) -> dict[str, Any]:
    """Scores the images, writes the table, and prints its mean and its ends; gives the mean."""
    model = load(options.model, options.checkpoint)
    names, images = _read(options.images, model, options.fit)
    print(f"scoring {len(images)} images of {options.images}", flush=True)
    if not isinstance(model, Trained) or model.pilot:
        print("choosing the solver's nodes on a few images", flush=True)
        model, choice = model.calibrated(images)
        print(choice, flush=True)
    scores = model.score(
        images, seed=options.seed, repeats=options.repeats, label="scores"
    )
    _write(options.out, names, scores)
    order = np.argsort(scores.bpd)
    mean, error, stderr = float(scores.bpd.mean()), "", None
    if len(images) > 1:
        stderr = float(scores.bpd.std(ddof=1) / np.sqrt(len(images)))
        error = f" +- {stderr:.4f} (over images)"
    ends = [*order[:SHOWN], *order[max(SHOWN, len(order) - SHOWN) :]]
    rows = [(names[i], f"{scores.log_prob[i]:.1f}", f"{scores.bpd[i]:.4f}") for i in ends]
    print(table(("likeliest, then unlikeliest", "log P, nats", "bits/dim"), rows))
    estimator = model.default_estimator
    noise = ", uniform dequantization" if isinstance(estimator, ByOde) else ""
    print(f"mean {mean:.4f}{error} bits/dim; {estimator.words}{noise}")
    print(f"written to {options.out}")
    return {
        "unit": "bits/dim",
        "mean": mean,
        "stderr": stderr,
        "mean_solver_error": float(scores.solver_error.mean()),
        "images": len(images),
        "passes": options.repeats,
        "estimator": estimator.words,
        "model": options.model,
        "table": str(options.out),
    }


def _read(
    path: Path, model: ScoreModel, fit: str
) -> tuple[list[str], UInt8[np.ndarray, "n h w c"]]:
    """Names and pixels of the images, as the model takes them."""
    if not path.exists():
        raise UserError(f"no file or folder {path}")
    size, _, channels = model.shape
    if path.suffix in (".npy", ".npz"):
        chunks = [chunk.images for chunk in read_arrays(path, data.Options(fit=fit)).chunks]
        images = np.concatenate(chunks)
        return [str(i) for i in range(len(images))], images
    decoder = Decoder(data.Options(size=size, channels=channels, fit=fit))
    found = {}
    for name, content in Source(path).files(is_picture, MAX_PICTURE):
        try:
            found[name] = decoder(name, content)
        except UnusableImage as error:
            raise UserError(f"{path}: {name}: {error}") from None
    if not found:
        raise UserError(f"{path} holds no picture (.png, .jpg, .webp or .bmp)")
    pixels, levels = np.stack(list(found.values())), cast(Pixels, model.pixels).levels
    if levels != 256:
        print(f"their 256 grey levels become the model's {levels}")
    return list(found), (pixels.astype(np.uint32) * levels // 256).astype(np.uint8)


def _write(path: Path, names: list[str], scores: Scores) -> None:
    columns = [getattr(scores, name) for name in COLUMNS]
    with write_atomically(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", *COLUMNS))
        writer.writerows(zip(names, *(column.tolist() for column in columns), strict=True))
