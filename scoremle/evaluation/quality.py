"""The quality of samples as results.json has it, and its tables."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, NotRequired, TypedDict

from scoremle.evaluation.result import TrainingProgress, at_step
from scoremle.evaluation.tables import decimals, table, wrapped
from scoremle.records import Count, Error

__all__ = ["MEASURES", "Quality", "measured_with", "measures_in_cells", "quality_table"]

MEASURES = ("measure", "value", "std. error", "samples", "reference images")
# The columns that a narrow screen leaves out first.
SPARE = ("reference images", "samples")


class Measure(TypedDict):
    """A measure, and of how many images; an earlier version has no error of some."""

    value: float
    stderr: Error | None
    samples: Count
    reference_images: Count


class ReferenceFacts(TypedDict):
    """Facts of the images that samples were compared with."""

    path: str
    origin: Any
    dataset: NotRequired[str]
    split: NotRequired[str]


class Quality(TypedDict):
    """The quality of the samples of a checkpoint.

    Args:
        measures: by their names.
        features: the network of the features, in words.
        reference: the images that samples were compared with.
        checkpoint: its number.
        step: of the training.
        training: its progress.
    """

    measures: dict[str, Measure]
    features: str
    reference: ReferenceFacts
    checkpoint: Count
    step: Count
    training: NotRequired[TrainingProgress]


def quality_table(results: Mapping[str, Quality]) -> str:
    """One line for each measure of sample quality, and under them what they are measured with.

    Args:
        results: entries of results.json, by name.
    """
    rows = [(name, *cells) for name, r in results.items() for cells in measures_in_cells(r)]
    what = dict.fromkeys(map(measured_with, results.values()))
    lines = table(("result", *MEASURES), rows, spare=SPARE)
    return "\n".join([lines, *chain.from_iterable(map(wrapped, what))])


def measures_in_cells(quality: Quality) -> Iterator[tuple[str, ...]]:
    """The cells of each measure, with as many decimals as its error warrants.

    Args:
        quality: of samples.
    """
    for name, each in quality["measures"].items():
        value, stderr = f"{each['value']:.5g}", ""
        if each["stderr"] is not None:
            places = decimals(each["stderr"])
            value, stderr = (f"{each[key]:.{places}f}" for key in ("value", "stderr"))
        yield name, value, stderr, str(each["samples"]), str(each["reference_images"] or "")


def measured_with(quality: Quality) -> str:
    """The features and the reference, in words, and the step of the training.

    Args:
        quality: of samples.
    """
    reference = quality["reference"]
    what = f"origin {reference['origin']}"
    if "dataset" in reference:
        what = f"{reference.get('split', 'all')} images of {reference['dataset']}"
    return (
        f"features: {quality['features']}; reference: {reference['path']}, {what};"
        f" {at_step(quality['step'], quality.get('training'))}"
    )
