"""A page of images in the order of their p-values, the least first."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from scoremle.anomaly import Anomalies
from scoremle.evaluation.pictures import as_png
from scoremle.report.page import Card, Page, Picture

__all__ = ["write_anomalies"]

MEANING = (
    "A p-value is (1 + k) / (1 + n). Here n is the number of normal images that the detector keeps"
    " as references, and k is the number of those that are more unusual than this image by the"
    " detector's statistic, with ties broken at random. A small p-value says that the image is"
    " unlike the normal ones in what that statistic sees. A large one is not proof that the image"
    " belongs."
)
SIDE = 64


def write_anomalies(
    path: Path,
    title: str,
    names: Sequence[str],
    images: Sequence[Integer[np.ndarray, "h w c"]],
    found: Anomalies,
    *,
    levels: int,
    rate: float,
    references: int,
    facts: Sequence[str],
    left_out: Sequence[tuple[str, str]] = (),
) -> None:
    """Writes the page.

    Args:
        path: of the file.
        title: of the page.
        names: of the images.
        images: that were scored.
        found: of these.
        levels: grey levels of the images.
        rate: of false discoveries, at which suspects are listed.
        references: of the detector, which give p its digits.
        facts: lines about the detector.
        left_out: names of files that were not scored, and the reasons.
    """
    page = Page(title, "The most unusual first.")
    page.section("What the numbers say", *facts, MEANING)
    listed, cards, digits = found.suspects(rate), [], 1 + len(str(references))
    for i in found.order:
        words = f"p {found.p[i]:.{digits}f}" + "; suspect" * bool(listed[i])
        picture = Picture(as_png(images[i], levels, SIDE), words, f"{names[i]}: {words}")
        p = float(found.p[i])
        cards.append(Card(picture, names[i], p, p, p, marked=bool(listed[i])))
    page.section("Images")
    scale = "Below each image is a scale from 0 to 1. The upright line is p."
    page.gallery(cards, scale, "are suspects")
    page.left_out(left_out, len(left_out) + len(names))
    page.write(path)
