"""A page of scores: the images in the order of their bits/dim, each with its error."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Float

from scoremle.evaluation.pictures import as_png
from scoremle.experiment.score_table import ScoreRow, in_digits
from scoremle.likelihood.profile import Profile
from scoremle.report.page import Card, Page, Picture, Strip

__all__ = ["write_page"]

# What the numbers say, and what they do not.
MEANING = (
    "Few bits/dim: the model finds the image likely. Many: unlikely. Neither shows whether the"
    " image is like the training data. Simple pictures are likely whatever they show: a"
    " black one can be as likely as a typical image, or likelier. So compare with what PNG takes,"
    " and look at both ends.",
    "The rank is the share of the model's own test images with less bits/dim. Near 0 and near 1"
    " are suspicious alike.",
)
OF_PROFILES = (
    "Under an image are two small pictures. Left: its bits at each noise level, from much noise"
    " (left) to none (right). A bar up means more bits than the median of these images, a bar down"
    " fewer. The unit is half of the range between the quartiles, and bars end at three units."
    " Right: where in the image its bits lie. White means many."
)
OF_ERRORS = (
    " The number after ± is its standard error. The bar is twice that on each side, which covers"
    " the truth of about 95 % of images."
)
# Bars of profiles end here, in their units.
LONGEST_BAR = 3.0
# The longer side of a picture on the page, in pixels.
SIDE = 64
# A bar is this many errors long on each side: about 95 %.
ERRORS = 2.0


def write_page(
    path: Path, title: str, model: str, rows: Sequence[ScoreRow], verdict: str,
    facts: Sequence[str], *, levels: int, reference: int,
) -> None:  # fmt: skip
    """Writes the page; files without a score are listed with their reasons.

    Args:
        path: of the file.
        title: of the page.
        model: its name.
        rows: a row for each image.
        verdict: what stands out.
        facts: lines about the mean, the first with its value.
        levels: of grey.
        reference: number of test images that ranks are among.
    """
    scored = sorted((row for row in rows if not row.reason), key=lambda row: row.bpd)
    page = Page(title, f"By the model {model}, likeliest first.")
    mean, *rest = facts
    page.section("What the numbers say", verdict, mean, *(MEANING if reference else MEANING[:1]))
    low, high = _ends(scored)
    profiles = [row.profile for row in scored if row.profile]
    page.section("Images", OF_PROFILES * bool(profiles))
    cards = [_card(row, levels, reference, low, high) for row in scored]
    if profiles:
        pairs = zip(cards, strips_of(profiles), strict=True)
        cards = [replace(card, strip=strip) for card, strip in pairs]
    has_error = any(math.isfinite(row.error) for row in scored)
    page.gallery(
        cards,
        f"Below each image is a scale from {low:.2f} to {high:.2f} bits/dim. The upright line is"
        " the value." + OF_ERRORS * has_error,
        "stand out",
    )
    page.left_out([(row.file, row.reason) for row in rows if row.reason], len(rows))
    page.section("How the mean was found, and what it cost", *rest)
    page.write(path)


def strips_of(profiles: Sequence[Profile]) -> list[Strip]:
    """A strip for each image: its bits by noise beside the median of all, and by place."""
    bits = np.concatenate([profile.bits for profile in profiles])
    where = np.concatenate([profile.where for profile in profiles]).mean(axis=-1, keepdims=True)
    low, median, high = np.quantile(bits, [0.25, 0.5, 0.75], axis=0)
    unit, most = (high - low) / 2, np.quantile(where, 0.99) or 1.0
    bars = np.divide(bits - median, unit, out=np.zeros_like(bits), where=unit > 0) / LONGEST_BAR
    grey = (np.clip(where / most, 0, 1) * 255).astype(np.uint8)
    pictures = [Picture(as_png(image, 256), "", "where the bits lie") for image in grey]
    return [
        Strip(np.clip(row, -1, 1).tolist(), _in_words(row), picture)
        for row, picture in zip(bars, pictures, strict=True)
    ]


def _in_words(bars: Float[np.ndarray, " bins"]) -> str:
    shown = " ".join(f"{LONGEST_BAR * bar:+.1f}" for bar in bars)
    return f"bits beside the median, from much noise to none: {shown}"


def _errors(row: ScoreRow) -> float:
    return ERRORS * row.error if math.isfinite(row.error) else 0.0


def _ends(rows: Sequence[ScoreRow]) -> tuple[float, float]:
    """The ends of the bars."""
    low = min(row.bpd - _errors(row) for row in rows)
    high = max(row.bpd + _errors(row) for row in rows)
    return low, max(high, low + 1e-6)


def _card(row: ScoreRow, levels: int, reference: int, low: float, high: float) -> Card:
    image, name = cast(np.ndarray, row.image), row.file
    numbers = in_digits(row, image.size, reference)
    error = f" ± {numbers['error']}" * math.isfinite(row.error)
    text = f"{numbers['bpd']}{error} bits/dim"
    of_png = [f"as PNG {row.png_bpd:.2f} bits/dim"] * math.isfinite(row.png_bpd)
    facts = [*of_png, *row.changes]
    marked = bool(reference) and row.rank in (0.0, 1.0)
    if reference:
        facts = [f"rank {numbers['rank']}{', stands out' * marked}", *facts]
    ends = (row.bpd - _errors(row), row.bpd, row.bpd + _errors(row))
    low_end, value, high_end = ((value - low) / (high - low) for value in ends)
    picture = Picture(as_png(image, levels, SIDE), "; ".join([text, *facts]), f"{name}: {text}")
    return Card(picture, name, low_end, value, high_end, marked=marked)
