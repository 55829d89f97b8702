"""Facts of a working directory for a report, read from its files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from scoremle import data
from scoremle.coding.rates import RATES_FILE, Rates
from scoremle.errors import UserError, in_a_line
from scoremle.evaluation.quality import Quality
from scoremle.evaluation.result import Result
from scoremle.evaluation.statistics import Difference, paired_difference
from scoremle.experiment import build, config
from scoremle.experiment.configs import NAMED_CONFIGS
from scoremle.experiment.folders import LOG_FILE, SAMPLES_FOLDER
from scoremle.experiment.results import RESULTS, measured, of_newest, read_results
from scoremle.experiment.rules import check_config
from scoremle.experiment.workdir import Workdir
from scoremle.files import read_json
from scoremle.records import check_record
from scoremle.resumable import content_hash
from scoremle.terminal import counted
from scoremle.training.writers import LoggedRow, read_log

# What two evaluations must have in common for a comparison image by image.
ALIKE = ("kind", "data_hash", "seed")

# Name of a grid of samples of a checkpoint.
SAMPLES = re.compile(r"samples_ckpt_(\d+)\.png", re.ASCII)


def paired(first: Result, second: Result) -> Difference | None:
    """The difference of the means, image by image, each corrected for its solver.

    None where the images or their noise are not the same.
    """
    a, b = first.corrected_values, second.corrected_values
    alike = all(getattr(first, name) == getattr(second, name) for name in ALIKE)
    if not alike or a is None or b is None or len(a) != len(b) or len(a) < 2:
        return None
    return paired_difference(a, b)


def why_not_paired(first: Result | None, second: Result | None) -> str:
    """The reason why there is no comparison image by image, in words."""
    if not (first and second):
        return "one of the two has no likelihood: evaluate it"
    if first.values is None or second.values is None:
        return "the values of images of one of the two are gone: evaluate it again"
    if first.images != second.images:
        return f"it has {counted(second.images, 'image')}, and the first {first.images:,}"
    if first.images < 2:
        return "one image has no spread"
    return "the two are not of the same images with the same noise"


@dataclass(frozen=True)
class Subject:
    """A working directory, in whose ``eval_folder`` the results are."""

    workdir: Workdir
    eval_folder: str

    @cached_property
    def config(self) -> ConfigDict:
        """The resolved config. Raises UserError where there is none, or none that can be."""
        found = self.workdir.config()
        try:
            check_config(found)
        except UserError as error:
            raise UserError(f"{self.workdir.config_path}: {error}") from None
        return found

    @property
    def coded(self) -> Rates | None:
        """The rates of images that were compressed by its checkpoint; None if none were."""
        path = self.workdir.inside(RATES_FILE)
        if not path.exists():
            return None
        record = read_json(path)
        check_record(record, Rates, path)
        known = {field.name: record[field.name] for field in fields(Rates) if field.name in record}
        rates = Rates(**known)
        # Of an imported model, which is one checkpoint, the file has no number.
        numbers = [None] if self.workdir.imported else [each.checkpoint for each in self.results]
        return rates if rates.checkpoint in numbers else None

    @cached_property
    def log(self) -> list[LoggedRow]:
        """The rows of the training's log; none where there was no training.

        Raises UserError for a line that is not a row of numbers.
        """
        path = self.workdir.inside(LOG_FILE)
        return read_log(path) if path.exists() else []

    @cached_property
    def results(self) -> list[Result]:
        """Results of the newest checkpoint that was evaluated, in the order of their making.

        Those on another data set are left out, unless there are no others. Raises UserError for
        one that lacks what the page shows.
        """
        found = measured(self.workdir.folder, self.eval_folder)
        found = [r for r in found if self.workdir.has_measured(r.to_json())] or found
        return of_newest(found)

    @property
    def in_bits(self) -> list[Result]:
        """The results in bits/dim."""
        return [result for result in self.results if result.is_bpd]

    @property
    def main_result(self) -> Result | None:
        """The main result: the first likelihood, or else the first bits/dim."""
        found = self.in_bits
        return next((r for r in found if not r.is_bound), found[0] if found else None)

    @property
    def quality(self) -> Quality | None:
        """The quality of samples of the evaluated checkpoint; without results, of the newest."""
        path = self.workdir.inside(self.eval_folder, RESULTS)
        found = {}
        for name, facts in read_results(path).items():
            if isinstance(facts, dict) and facts.get("kind") == "quality":
                check_record(facts, Quality, f"{path}: {name}")
                found[facts["checkpoint"]] = cast(Quality, facts)
        number = self.results[0].checkpoint if self.results else max(found, default=None)
        return found.get(number)

    @property
    def checks(self) -> list[Mapping[str, Any]]:
        """Verdicts on what must hold between the estimators of the main result's images."""
        main = self.main_result
        name = f"checks{main.name.removeprefix(main.kind)}" if main else ""
        found = read_results(self.workdir.inside(self.eval_folder, RESULTS)).get(name)
        return found if isinstance(found, list) else []

    @cached_property
    def data(self) -> data.ImageSet | str:
        """The images, or in a line why they can't be had here."""
        try:
            return build.images_of(self.config)
        except UserError as error:
            return str(error)

    def images(self, result: Result) -> UInt8[np.ndarray, "n h w c"] | str:
        """Images that a result is about, or in a line the reason why they are not here."""
        if isinstance(self.data, str):
            return self.data
        split = self.data.train if result.split == "train" else self.data.test
        images = split[: result.images]
        if len(images) < result.images or result.data_hash not in ("", content_hash(images)):
            return f"the data set that is here has others ({self.config.data.path or 'no path'})"
        return images

    def sample_pictures(self) -> list[tuple[int, Path]]:
        """Steps and grids of samples that the training left, in order."""
        named = [(path.stem.removeprefix("step_"), self.workdir.inside(SAMPLES_FOLDER, path.name))
                 for path in self.workdir.inside(SAMPLES_FOLDER).glob("step_*.png")]  # fmt: skip
        return sorted((int(step), path) for step, path in named if step.isdecimal())

    def final_samples(self) -> Path | None:
        """The grid of samples of the evaluated checkpoint; without results, the newest."""
        names = (path.name for path in self.workdir.inside(self.eval_folder).glob("samples_*.png"))
        known = {int(match[1]): match[0] for match in map(SAMPLES.fullmatch, names) if match}
        number = self.results[0].checkpoint if self.results else max(known, default=None)
        return self.workdir.inside(self.eval_folder, known[number]) if number in known else None

    def nearest_config(self) -> tuple[str, dict[str, tuple[Any, Any]]]:
        """The package's config that differs least, and the fields that differ: its value, ours."""
        ours = config.flat(self.config).items()

        def differences(name: str) -> dict[str, tuple[Any, Any]]:
            theirs = config.flat(config.published_config(name, {}))
            return {n: (theirs.get(n), v) for n, v in ours if theirs.get(n) != v}

        found = {name: differences(name) for name in NAMED_CONFIGS}
        nearest = min(found, key=lambda name: len(found[name]))
        return nearest, found[nearest]


def names_of(subjects: Sequence[Subject]) -> list[str]:
    """The shortest end of each one's path that no other has, in a line."""
    paths = [subject.workdir.folder.resolve() for subject in subjects]

    def name(path: Path) -> str:
        ends = (path.parts[-n:] for n in range(1, len(path.parts)))
        others = [other.parts for other in paths if other != path]
        alone = (end for end in ends if all(other[-len(end) :] != end for other in others))
        return in_a_line(str(Path(*next(alone, path.parts))))

    return list(map(name, paths))
