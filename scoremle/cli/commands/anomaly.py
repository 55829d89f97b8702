"""Finds images that do not belong: fits a detector to normal images, and lists suspects among
others.

    scoremle anomaly fit digits normal/ --fit=resize --out=detector
    scoremle anomaly score detector pictures/ --fit=resize --page=suspects.html
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import scoremle
from scoremle.cli import checks
from scoremle.cli.parser import MODEL, Parser, add_shared
from scoremle.cli.signals import writing_files
from scoremle.errors import UserError, in_short
from scoremle.evaluation.tables import wrapped
from scoremle.terminal import cell, say

if TYPE_CHECKING:
    import numpy as np

    from scoremle.anomaly import Anomalies

NEEDS = "scoremle.anomaly.detector"
# In place of a model: a density of the features themselves.
GAUSSIAN = "gaussian"
# The names in anomaly/statistics.py, whose import brings JAX.
STATISTIC_NAMES = ("likelihood", "typicality", "complexity", "msma", "profile", "scoped", "path")
IMAGES = (
    "a picture, a folder or archive of pictures, or a .npy or .npz of uint8; a .npy of reals [n d]"
    " where there is no encoder, for gaussian and models without pixels"
)
# In a detector, where it is not known which of the normal images the model was trained on.
SEEN_UNKNOWN = "unknown"
# Facts by which an encoder is known to be the same.
OF_ENCODER = ("encoder_sha256", "encoder_outputs")
# Suspects that are named on the screen.
SHOWN = 10


def arguments(parser: Parser) -> None:
    for what, add in parser.add_commands(RUNS):
        if what == "fit":
            add("model", f"{MODEL}; or {GAUSSIAN}, a density that is fitted to vectors")
            add("images", f"normal images, which the model was not trained on: {IMAGES}",
                type=Path)  # fmt: skip
            add("-o --out", "the detector to write", type=Path, required=True,
                metavar="FILE")  # fmt: skip
            add("--statistic", "statistic that measures how unusual an image is (path)",
                choices=STATISTIC_NAMES, default="")  # fmt: skip
            add("--encoder", "FILE.py:function from uint8 images [n h w c] to vectors [n d];"
                " MODEL is a model of these vectors", default="")  # fmt: skip
            add("--size", "height and width of pictures for the encoder", type=checks.at_least(1),
                default=0)  # fmt: skip
            add("--seed", "seed of the split, the statistic and ties (0)", type=checks.seed,
                default=0)  # fmt: skip
        else:
            add("detector", "file that scoremle anomaly fit wrote", type=Path)
            add("images", IMAGES, type=Path)
            add("-o --out", "the table to write (anomalies.csv)", type=Path,
                default=Path("anomalies.csv"), metavar="FILE")  # fmt: skip
            add("--page", "a page of HTML to write: the images in the order of their p-values",
                type=Path, metavar="FILE")  # fmt: skip
            add("--rate", "rate of false discoveries: their expected share of the suspects (0.1)",
                type=checks.fraction, default=0.1)  # fmt: skip
            add("--fail-on-suspects", "exit code 4 if there are suspects", action="store_true")
            add("--model", "path of the model; needed if it was moved, is code or a download",
                default="")  # fmt: skip
            add("--encoder", "FILE.py:function of the detector; allows it to run", default="")
        add_shared(add, unset="the newest" if what == "fit" else "that of the detector")


def check(options: Any) -> None:
    named = ("model", "detector", "page")
    model, detector, page = (getattr(options, name, None) for name in named)
    checks.exists(options.images)
    if getattr(options, "size", 0) and not options.encoder:
        raise UserError("--size is for pictures of an --encoder: a model has a size of its own")
    if detector:
        checks.exists(detector)
    checks.different((model, options.encoder, detector, options.images), options.out, page)
    kind = "" if options.what == "fit" else ".csv"
    checks.writable("--out=", options.out, force=options.force, kind=kind)
    if page:
        checks.writable("--page=", page, force=options.force, kind=".html")


def run(options: Any) -> dict[str, Any]:
    """Fits a detector, or scores by one."""
    return RUNS[options.what](options)


def _fit(options: Any) -> dict[str, Any]:
    """Fits a statistic to half of the normal images, and calibrates p-values on the others.

        scoremle anomaly fit digits normal/ --fit=resize --out=detector
        scoremle anomaly fit gaussian features.npy --out=detector
    """
    from scoremle.experiment.encoders import file_hash

    facts = {"model": options.model}
    if options.encoder:
        facts |= {"encoder": options.encoder, "encoder_sha256": file_hash(options.encoder),
                  "size": str(options.size)}  # fmt: skip
    model, reports, data = _read(options, facts)
    if model is not None and model.origin.checkpoint is not None:
        facts["checkpoint"] = str(model.origin.checkpoint)
    if model is not None and model.pixels is not None:
        facts |= _seen(options.model, data)
    lines = _of_seen(facts)
    say(*wrapped(*lines))
    detector = scoremle.anomaly.Detector.fit(
        model, data, statistic=options.statistic, seed=options.seed, facts=facts, label="normal"
    )
    check(options)  # another process may have written there
    detector.write(options.out)
    n, more = len(detector.reference), list[str]()
    if detector.equal:
        more.append(
            f"{detector.equal} of {len(data)} normal ones are equal to others; each counts, since"
            " as many may come again: leave out copies that were made by accident"
        )
    more.append(
        f"{detector.statistic}, with {n} references: the least p-value is 1/{n + 1}, so that at a"
        f" rate of 0.1 one suspect can stand out among {max(1, (n + 1) // 10)}"
    )
    say(*wrapped(*more, f"written to {options.out}"))
    return {
        "facts": [*lines, *more],
        "statistic": detector.statistic, "references": n, "equal": detector.equal,
        "left_out": sum(report.pixels is None for report in reports), "detector": str(options.out),
    }  # fmt: skip


def _seen(place: str, images: np.ndarray) -> dict[str, str]:
    """A fact of a detector: normal images that its model was trained on; none without any."""
    from scoremle.experiment.seen import seen_in_training

    seen = seen_in_training(place, images)
    if seen is None:
        return {"seen": SEEN_UNKNOWN}
    return {"seen": f"{seen} of {len(images)}"} if seen else {}


def _of_seen(facts: dict[str, str]) -> list[str]:
    """A line on normal images that the model was trained on; none without any."""
    if "seen" not in facts:
        return []
    if facts["seen"] == SEEN_UNKNOWN:
        return [
            "it is not known which images the model was trained on: if normal ones are among them,"
            " the p-values of others are too small"
        ]
    return [
        f"{facts['seen']} normal images were trained on: the p-values of others are too small; fit"
        " to images that the model has not seen"
    ]


def _score(options: Any) -> dict[str, Any]:
    """Lists p-values of images, and those that stand out at a rate of false discoveries.

        scoremle anomaly score detector pictures/ --fit=resize --page=suspects.html
        scoremle anomaly score detector pictures/ --rate=0.05 --fail-on-suspects
    """
    from scoremle.report.anomalies import write_anomalies

    detector = scoremle.anomaly.Detector.read(options.detector)
    facts = _facts(options, detector.facts)
    model, reports, data = _read(options, facts)
    kept = [report for report in reports if report.pixels is not None]
    bad = [(report.name, report.reason) for report in reports if report.pixels is None]
    of_model = model is not None and model.pixels is not None
    if options.page and not (of_model or "encoder" in facts):
        raise UserError("--page is of images, and these are vectors or other reals")
    found = detector.score(model, data, label="scores")
    listed, names = found.suspects(options.rate), [report.name for report in kept]
    lines = [_verdict(names, found, listed, options.rate)]
    lines += filter(None, [detector.limits(len(found), options.rate)])
    lines += _of_seen(facts)
    by = f"By the statistic {detector.statistic}, with {len(detector.reference)} references."
    check(options)  # another process may have written there
    with writing_files(options.out):
        _write(options.out, reports, found, listed)
        if options.page:
            write_anomalies(
                options.page, f"Suspects among {options.images}", names,
                list(data) if of_model else [report.pixels for report in kept], found,
                levels=model.pixels.levels if of_model else 256, rate=options.rate,
                references=len(detector.reference),
                facts=[by, *(f"{line}." for line in lines)], left_out=bad,
            )  # fmt: skip
    written = " and ".join(map(str, filter(None, (options.out, options.page))))
    lines += [f"{len(bad)} of {len(reports)} files have no score: their rows say why"] * bool(bad)
    say(*wrapped(*lines, f"written to {written}"))
    return {
        "facts": lines, "images": len(found), "suspects": int(listed.sum()), "rate": options.rate,
        "statistic": detector.statistic, "references": len(detector.reference),
        "left_out": len(bad), "table": str(options.out),
    }  # fmt: skip


def _facts(options: Any, recorded: dict[str, str]) -> dict[str, str]:
    """The facts of a detector, with the places that the user gives."""
    from scoremle.experiment.models import place_in

    model = options.model or recorded.get("model", "")
    if options.encoder and "encoder" not in recorded:
        raise UserError(f"{options.detector} has no encoder: leave --encoder out")
    facts = recorded | {"model": model}
    if model != GAUSSIAN:
        facts["model"] = place_in(options.detector, model, options.model)
    if "encoder" in facts:
        known = facts.get("size", "").isdecimal() and {*OF_ENCODER} <= {*facts}
        if not known:
            raise UserError(f"{options.detector}: facts of its encoder are missing; fit it anew")
        facts["encoder"] = place_in(
            options.detector, facts["encoder"], options.encoder, "--encoder"
        )
    return facts


RUNS = {"fit": _fit, "score": _score}


def _verdict(names: list[str], found: Anomalies, listed: np.ndarray, rate: float) -> str:
    """A line on how many stand out, and the most unusual of them."""
    count, p = int(listed.sum()), found.p
    stand = "stands" if count == 1 else "stand"
    line = f"{count} of {len(p)} {stand} out at a rate of false discoveries of {rate:g}"
    if not count:
        return f"{line}: the least p-value is {p.min():.3g}"
    suspects = [f"{names[i]} (p {p[i]:.3g})" for i in found.order if listed[i]]
    return f"{line}: {in_short(suspects, SHOWN)}"


def _read(options: Any, facts: dict[str, str]) -> tuple[Any, list[Any], np.ndarray]:
    """The model, a report of each file or vector, and the data as the model takes them."""
    from scoremle.experiment import models, own_images

    model = _model(options, facts)
    arrays = own_images.are_arrays(options.images)
    if arrays and options.skip_bad:
        raise UserError(f"--skip-bad is for pictures, and {options.images} holds arrays")
    written = [*filter(None, (options.out, getattr(options, "page", None)))]
    how = {"fit": options.fit, "skip_bad": options.skip_bad, "written": written}
    if "encoder" in facts:
        return model, *_encoded(options.images, facts, arrays, how)
    if model is None or model.pixels is None:
        if options.fit:
            raise UserError(f"--fit is for images, and {facts['model']} takes reals")
        return model, *_reals(options.images, model)
    pixels, shape = models.of_images(model, facts["model"])
    return model, *own_images.read_images(options.images, shape, pixels.levels, **how)


def _model(options: Any, facts: dict[str, str]) -> Any:
    """The model that the facts name, by its checkpoint; None for the density of vectors."""
    from scoremle.experiment import models

    if facts["model"] == GAUSSIAN:
        if options.checkpoint is not None:
            raise UserError(f"--checkpoint is of a model, and {GAUSSIAN} has none: leave it out")
        return None
    known = facts.get("checkpoint", "")
    number = int(known[:9]) if known.isdecimal() else None  # in a detector of others, any text
    number = models.checkpoint_of(facts["model"], options.checkpoint, number)
    return scoremle.load(facts["model"], number)


def _encoded(
    place: Path, facts: dict[str, str], arrays: bool, how: dict[str, Any]
) -> tuple[list[Any], np.ndarray]:
    """A report of each image, and its vector by the encoder, whose outputs become a fact."""
    from scoremle.bounded import LARGEST_SIDE
    from scoremle.experiment import encoders, own_images

    size = int(facts["size"][:9])
    if size > LARGEST_SIDE:
        raise UserError(f"pictures for an encoder are of {LARGEST_SIDE} pixels a side at most")
    if arrays:
        reports, images = own_images.images_of_arrays(place, None, 256, fit=how["fit"])
    elif not size:
        raise UserError("pictures for an encoder need a size: --size=224, say")
    else:
        reports, images = own_images.read_images(place, (size, size, 3), 256, **how)
    vectors, facts["encoder_outputs"] = encoders.encoded(facts, images)
    return reports, vectors


def _reals(place: Path, model: Any) -> tuple[list[Any], np.ndarray]:
    """A report of each vector, and all of them."""
    from scoremle.cli.commands.score_points import read_points
    from scoremle.data.readers.base import ImageReport

    points = read_points(place, None if model is None else model.shape)
    return [ImageReport(str(i), row) for i, row in enumerate(points)], points


def _write(path: Path, reports: list[Any], found: Any, listed: np.ndarray) -> None:
    """A row for each file, in their order."""
    columns = {"p": found.p, "adjusted": found.adjusted, "score": found.score}
    rows, scored = [], itertools.count()
    for report in reports:
        row, note = {}, f"not scored: {report.reason}"
        if report.pixels is not None:
            i, note = next(scored), "; ".join(report.changes)
            row = {name: f"{column[i]:.6g}" for name, column in columns.items()}
            row["suspect"] = "yes" if listed[i] else "no"
        rows.append({**row, "file": cell(report.name), "note": cell(note)})
    scoremle.files.write_rows(path, ["p", "adjusted", "suspect", "score", "file", "note"], rows)
