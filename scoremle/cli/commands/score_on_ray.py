"""``scoremle score MODEL IMAGES --engine=ray``: more images than one machine can hold.

The table is a folder of Parquet files, which workers write as they go.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
from jaxtyping import Integer

from scoremle.cli.score_words import mean_in_words
from scoremle.data.archive import stamp
from scoremle.data.pieces import ImageKind, Piece, piece_images, pieces_of
from scoremle.errors import UserError
from scoremle.evaluation import tables
from scoremle.experiment.labels import ALL
from scoremle.experiment.measurement import Measurement
from scoremle.experiment.models import load, of_images
from scoremle.experiment.on_ray import Table, ray_data, score_on_ray
from scoremle.experiment.own_measurement import prepared
from scoremle.experiment.reference import reference_of
from scoremle.experiment.scorer import Scorer
from scoremle.likelihood.mean import Mean
from scoremle.model import BATCH_SIZE, ScoreModel
from scoremle.terminal import say

# Images that are looked at before the others.
FIRST = 256


def run(options: Any) -> dict[str, Any]:
    """Scores the images into the folder ``--out``; returns their mean."""
    ray_data()  # an error before any work if it is missing
    model = load(options.model, options.checkpoint)
    pixels, shape = of_images(model, options.model)
    kind, pieces = ImageKind(shape, pixels.levels), pieces_of(options.images)
    say("testing on a few images what the model declares, and how many steps they need")
    reference = reference_of(options.model, model, options.estimator, options.label)
    found = prepared(
        reference.as_measured(model), _first(pieces, kind, options), options.estimator,
        options.label, options.steps, options.passes,
    )  # fmt: skip
    say(*tables.wrapped(*found.doubts, *found.notes))
    table = Table(options.out)
    table.begin({
        **found.identity(options.model, options.seed),
        "fit": options.fit, "label": options.label, "repeats": options.passes,
        "images": stamp(options.images.absolute()),  # a value is found by the place of its image
    })  # fmt: skip
    model_of_worker = partial(
        _model, options.model, options.checkpoint, found.model.solver, found.model.decoder_scale,
        "" if options.label == ALL else options.label,
    )  # fmt: skip
    scorer = partial(
        Scorer, model_of_worker,
        estimator=found.estimator, passes=options.passes, seed=options.seed,
    )  # fmt: skip
    score_on_ray(
        scorer, pieces, (kind, options.fit), table,
        address=options.address, workers=options.workers, batch_size=BATCH_SIZE,
    )  # fmt: skip
    return _summary(table, found, options)


def _first(
    pieces: Sequence[Piece], kind: ImageKind, options: Any
) -> Integer[np.ndarray, "n h w c"]:
    images = chain.from_iterable(piece_images(piece, kind, options.fit) for piece in pieces)
    seen = [report for _, report in islice(images, FIRST)]
    good = [report.pixels for report in seen if report.pixels is not None]
    if not good:
        raise UserError(
            f"none of the first {len(seen)} images can be scored; {seen[0].name}: {seen[0].reason}"
        )
    return np.stack(good)


def _model(
    place: str, checkpoint: int | None, solver: Any, decoder_scale: Any, label: str
) -> ScoreModel:
    """The model of a worker, with what the pilot chose."""
    model = replace(load(place, checkpoint), solver=solver, decoder_scale=decoder_scale)
    return model.condition_on(np.array([int(label)])) if label else model


def _summary(table: Table, found: Measurement, options: Any) -> dict[str, Any]:
    bpd, reasons = table.column("bpd"), table.column("reason")
    bad, mean = np.flatnonzero(reasons != ""), Mean.of({"bpd": bpd[None, reasons == ""]}, "bpd")
    line = f"{mean_in_words(mean, 'bits/dim')} of {mean.images} images; {found.title}"
    say(*tables.wrapped(line))
    say(f"written to {table.folder}: Parquet files with {', '.join(table.COLUMNS)}")
    if len(bad):
        say(f"{len(bad)} images could not be scored; the first: {reasons[bad[0]]}")
    return {
        "unit": "bits/dim", "mean": mean.mean, "stderr": mean.stderr, "images": mean.images,
        "left_out": len(bad), "estimator": found.title, "model": options.model,
        "table": str(table.folder),
    }  # fmt: skip
