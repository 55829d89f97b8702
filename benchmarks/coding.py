"""Bits/dim of compressed images: coded by a model, stated by it, and by codes without a model.

    python benchmarks/coding.py digits --steps 20 100 --plot=coding.png
    python benchmarks/coding.py runs/fashion_mnist images.npz --images=1000

The images are the test images of scikit-learn's digits, or those of an array. Of each number of
steps: what the images take on the stack, with the random bits of the first, and in the file; what
the terms of the bound are for the latents that were drawn, and in the mean (with the standard
error of the difference); seconds for an image, there and back. Other codes take all images as one
picture, side by side, so that no code pays its format for each.

What each part loses, in bits/dim: *few steps* (the stated mean less that of 10,000 steps), *coder*
(net less drawn: quantised means and scales, and whole words), *file* (file less net: the random
bits of the first images, and the record).
"""

import argparse
import contextlib
import io
import json
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from jaxtyping import UInt8
from PIL import Image

import scoremle
from scoremle.coding.images import compress_images, decompress_images
from scoremle.evaluation.figures import ABOVE, COLOURS, LINES, drawn
from scoremle.evaluation.tables import table
from scoremle.model import ScoreModel

Images = UInt8[np.ndarray, "n h w c"]
# A chain of so many steps is a bound in continuous time, nearly. So many of them are drawn.
MANY, DRAWS = 10_000, 64
# Name and options of what Pillow writes without loss.
CODES: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG, optimised": ("PNG", {"optimize": True}),
    "WebP, lossless": ("WebP", {"lossless": True, "quality": 100, "method": 6}),
    "JPEG XL, lossless": ("JXL", {"lossless": True, "effort": 9}),
}


def of_other_codes(images: Images) -> dict[str, float | None]:
    """Bits/dim of one picture of all images; None of a code that is not installed."""
    with contextlib.suppress(ImportError):
        import pillow_jxl  # noqa: F401  (registers JPEG XL)
    n, height, width, channels = images.shape
    columns = math.isqrt(n)
    rows = -(-n // columns)
    whole = np.concatenate([images, np.zeros((rows * columns - n, *images.shape[1:]), np.uint8)])
    grid = whole.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    picture = Image.fromarray(grid.reshape(rows * height, columns * width, channels).squeeze())
    found: dict[str, float | None] = {}
    for name, (kind, options) in CODES.items():
        file = io.BytesIO()
        try:
            picture.save(file, kind, **options)
        except KeyError:  # a kind that Pillow does not have
            found[name] = None
        else:
            found[name] = 8 * len(file.getvalue()) / images.size
    found["zstd, level 22"] = 8 * len(zstandard.compress(images.tobytes(), 22)) / images.size
    return found


def of_the_model(model: ScoreModel, images: Images, steps: int) -> dict[str, float]:
    """Rates and seconds by a chain of so many steps."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.bits"
        start = time.perf_counter()
        rates = compress_images(model, images, path, steps=steps)
        middle = time.perf_counter()
        back, _ = decompress_images(model, path)
        end = time.perf_counter()
    assert np.array_equal(back, images)
    return {
        "steps": steps, "net": rates.net, "gross": rates.gross, "drawn": rates.drawn,
        "stated": rates.stated, "stderr": rates.stderr, "plain": rates.plain,
        "seconds": (middle - start) / len(images), "back": (end - middle) / len(images),
    }  # fmt: skip


def of_many_steps(model: ScoreModel, images: Images) -> tuple[float, float]:
    """Bits/dim of a chain of many steps: the mean over images, and the error by its draws."""
    scores = model.score(images, estimator=replace(model.chain(MANY), draws=DRAWS))
    return float(scores.bpd.mean()), float(np.sqrt((scores.probe_stderr**2).sum()) / len(images))


def draw(axes: Any, rows: list[dict[str, float]], others: Mapping[str, float]) -> None:
    """Draws the net rate, and what is stated, beside the rates of other codes."""
    names = [*(f"{row['steps']:,} steps" for row in rows), *others]
    rates = [*(row["net"] for row in rows), *others.values()]
    colours = [COLOURS[5]] * len(rows) + [LINES] * len(others)
    axes.bar_label(axes.barh(names, rates, color=colours), fmt="%.2f", label_type="center")
    axes.errorbar(
        [row["stated"] for row in rows], range(len(rows)), xerr=[row["stderr"] for row in rows],
        color=COLOURS[1], marker="o", linestyle="none", label="stated by the model",
    )  # fmt: skip
    axes.grid(visible=False)
    axes.invert_yaxis()
    axes.set_xlabel("bits/dim")
    axes.legend(**ABOVE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("array", nargs="?", help="an .npz with images")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--images", type=int, default=297)
    parser.add_argument("--plot", type=Path, help="the picture to write")
    options = parser.parse_args()
    model = scoremle.load(options.model)
    if options.array:
        with np.load(options.array) as archive:
            images = archive["images"]
    else:
        images = scoremle.data.load("digits").test
    images = images[: options.images]
    rows = [of_the_model(model, images, steps) for steps in options.steps]
    many, many_stderr = of_many_steps(model, images)
    header = ("steps", "net", "file", "drawn", "stated", "s.e.", "plain", "s/image", "s back")
    print(f"{len(images)} images of {options.model}, bits/dim")
    print(table(header, [
        (str(int(row["steps"])), *(f"{value:.3f}" for value in list(row.values())[1:]))
        for row in rows
    ]))  # fmt: skip
    print(f"lost, where {MANY:,} steps have {many:.3f} ± {many_stderr:.3f}")
    print(table(("steps", "few steps", "coder", "file"), [
        (str(int(row["steps"])), f"{row['stated'] - many:.3f}",
         f"{row['net'] - row['drawn']:+.4f}", f"{row['gross'] - row['net']:.3f}")
        for row in rows
    ]))  # fmt: skip
    others = of_other_codes(images)
    print(table(("code", "bits/dim"), [
        (name, "not installed" if rate is None else f"{rate:.3f}")
        for name, rate in others.items()
    ]))  # fmt: skip
    print(json.dumps({"rows": rows, "many": many, "others": others}))
    if options.plot:
        there = {name: rate for name, rate in others.items() if rate is not None}
        options.plot.write_bytes(*drawn(partial(draw, rows=rows, others=there), "png"))


if __name__ == "__main__":
    main()
