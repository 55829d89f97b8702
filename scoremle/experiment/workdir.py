"""A working directory, and whether it belongs to an experiment.

config.json        the resolved config
data.json          name, number of levels and hashes of the data set
metrics.jsonl      a row of numbers for every logged step
samples/           a grid of samples for every snapshot
checkpoints/       snapshots, for evaluation
checkpoints-meta/  where training goes on after pre-emption
<deq_folder>/      all of this of a flow dequantizer; score_model.json says for which checkpoint
<eval_folder>/     results.json, per-image values, pictures

A folder as published has nothing but published files in the folders of checkpoints, and is a
working directory like any other.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from scoremle.errors import UserError
from scoremle.experiment.build import FLOW_FIELDS, Experiment
from scoremle.experiment.config import with_defaults
from scoremle.files import read_json, write_json
from scoremle.published import PublishedCheckpoints, origin
from scoremle.terminal import say
from scoremle.training.step import TrainState

__all__ = ["Workdir"]

logger = logging.getLogger(__name__)

# Fields in which a run may differ from the one that it goes on with. Everything else would make it
# another experiment, or (below) another network.
FREE = {
    "training.n_iters", "training.log_freq", "training.eval_freq", "training.snapshot_freq",
    "training.snapshot_freq_for_preemption", "training.snapshot_sampling", "data.path",
    "data.on_device", "training.on_nan", "training.rollbacks",
}  # fmt: skip
FREE_SECTIONS = {"eval", "sampling", "deq"}
THE_FLOW = {f"deq.{name}" for name in FLOW_FIELDS}
# What the training of a flow dequantizer depends on besides the network, and its own sections.
OF_THE_FLOW = {"training.batch_size", "training.smallest_time", "training.stratified", "seed"}
FLOW_SECTIONS = {"deq", "optim"}
OF_THE_NETWORK = {
    "training.sde", "data.dataset", "data.image_size", "data.num_channels", "data.centered",
}  # fmt: skip
NOT_OF_THE_NETWORK = {"model.dropout", "model.ema_rate", "model.dtype", "model.num_scales"}

PREEMPTION_KEEP = 2
DIFFERENCES_SHOWN = 4


@dataclass(frozen=True)
class Workdir:
    """The folder of an experiment."""

    folder: Path

    def __post_init__(self) -> None:
        for place in (self.folder, *self.folder.parents):
            if place.exists() and not place.is_dir():
                raise UserError(f"--workdir={self.folder}: {place} is a file, not a folder")

    @property
    def snapshots(self) -> PublishedCheckpoints:
        return PublishedCheckpoints(self.folder / "checkpoints", keep=None)

    @property
    def preemption(self) -> PublishedCheckpoints:
        return PublishedCheckpoints(self.folder / "checkpoints-meta", keep=PREEMPTION_KEEP)

    @property
    def begun(self) -> bool:
        """Is there a checkpoint?"""
        return bool(self.snapshots.numbers() or self.preemption.numbers())

    @property
    def config_path(self) -> Path:
        return self.folder / "config.json"

    @property
    def data_path(self) -> Path:
        return self.folder / "data.json"

    def config(self) -> ConfigDict:
        """The config that the experiment was begun with."""
        if not self.config_path.exists():
            raise UserError(
                f"{self.folder} is no working directory of a training: it has no config.json"
                f"{self._hint()}"
            )
        return with_defaults(_with_tuples(read_json(self.config_path)))

    def levels(self) -> int:
        """Grey levels of the images that the experiment is about."""
        levels = read_json(self.data_path).get("levels")
        if not isinstance(levels, int):
            raise UserError(f"{self.data_path} doesn't say the number of grey levels (levels)")
        return levels

    def snapshot_state(self, template: TrainState) -> TrainState | None:
        """The newest snapshot, where there is no checkpoint for pre-emption to go on from.

        So it is in a folder as published, and in one that was imported. To be called before
        ``describe``: raises UserError if what is there belongs to another network.
        """
        if self.preemption.numbers():
            if not self.config_path.exists():  # as published: nothing has compared them yet
                self.preemption.restore(template)
            return None
        if not self.snapshots.numbers():
            return None
        state, meta, number = self.snapshots.restore(template)
        say(f"going on from step {meta['step']}, {self.snapshots.path(number)}")
        return state

    def describe(self, experiment: Experiment) -> None:
        """Writes what the experiment is."""
        write_json(self.config_path, dict(experiment.config))
        write_json(self.data_path, _data_facts(experiment))

    def check_training(self, experiment: Experiment) -> None:
        """Raises UserError if training would go on from another experiment."""
        self._check(
            experiment,
            lambda name: name not in FREE and name.split(".")[0] not in FREE_SECTIONS,
            ("levels", "data_version", "train_sha256"),
        )
        for name, value in self._stated().items():
            if (given := _field(experiment, name)) != value:
                logger.warning(
                    "%s was trained with %s=%s, as its name says, and goes on with %s",
                    self.folder, name, value, given,
                )  # fmt: skip

    def check_evaluation(self, experiment: Experiment) -> None:
        """Raises UserError if the checkpoints are not of the experiment's network and data."""
        self._check(experiment, _of_the_network, ("levels", "data_version"))

    def check_flow(self, experiment: Experiment) -> None:
        """Raises UserError if training would go on from another flow dequantizer."""
        self._check(
            experiment, lambda name: _of_the_flow(name) or _of_the_network(name), ("levels",)
        )

    def check_flow_evaluation(self, experiment: Experiment) -> None:
        """Raises UserError if the checkpoints are not of the experiment's flow."""
        self._check(experiment, lambda name: name in THE_FLOW, ())

    def _hint(self) -> str:
        published = self.snapshots.published()
        return f"; scoremle import {self.folder} makes one of it" if published else ""

    def _stated(self) -> dict[str, object]:
        """Fields that the name of a published folder states."""
        published = self.snapshots.published() or self.preemption.published()
        known = origin(self.folder.resolve()) if published else None
        return known.fields if known else {}

    def _check(
        self, experiment: Experiment, matters: Callable[[str], bool], of_data: tuple[str, ...]
    ) -> None:
        stated = {n: value for n, value in self._stated().items() if _of_the_network(n)}
        if flags := [f"{n}={v}" for n, v in stated.items() if _field(experiment, n) != v]:
            raise UserError(
                f"{self.folder} holds a model of {', '.join(flags)}, as its name says, and the "
                f"config says otherwise: set --config.{' --config.'.join(flags)}"
            )
        # What was begun without a checkpoint left nothing that could be mixed up.
        if not self.begun or not self.config_path.exists():
            return
        old, new = dict(_flat(read_json(self.config_path))), dict(_flat(experiment.config))
        # A field that is not in the record is newer than the record.
        different = sorted(n for n in new if matters(n) and n in old and old[n] != new[n])
        if not different and self.data_path.exists():
            old, new = read_json(self.data_path), _data_facts(experiment)
            different = [name for name in of_data if name in old and old[name] != new.get(name)]
        if different:
            raise UserError(
                f"{self.folder} holds another experiment: {_differences(different, old, new)}; "
                "use another --workdir, or the config it was begun with"
            )


def _field(experiment: Experiment, name: str) -> Any:
    section, _, field = name.partition(".")
    value = experiment.config[section][field]
    return value.lower() if isinstance(value, str) else value


def _data_facts(experiment: Experiment) -> dict[str, Any]:
    data = experiment.data
    return {"name": data.name, "levels": data.levels, **data.facts}


def _of_the_network(name: str) -> bool:
    of_model = name.startswith("model.") and name not in NOT_OF_THE_NETWORK
    return name in OF_THE_NETWORK or of_model


def _of_the_flow(name: str) -> bool:
    own = name.split(".")[0] in FLOW_SECTIONS and name != "deq.n_iters"
    return own or name in OF_THE_FLOW


def _differences(names: list[str], old: dict[str, Any], new: dict[str, Any]) -> str:
    shown = names[:DIFFERENCES_SHOWN]
    changes = [(name, old.get(name), new.get(name)) for name in shown]
    text = ", ".join(f"{name} was {was!r} and is now {now!r}" for name, was, now in changes)
    more = len(names) - len(shown)
    return f"{text} and {more} more" if more else text


def _flat(config: Any) -> Iterator[tuple[str, Any]]:
    for section, fields in config.items():
        if isinstance(fields, dict):
            yield from ((f"{section}.{name}", value) for name, value in fields.items())
        else:
            yield section, fields


def _with_tuples(content: Any) -> Any:
    """JSON knows no tuples, and configs no lists."""
    if isinstance(content, dict):
        return {name: _with_tuples(value) for name, value in content.items()}
    return tuple(content) if isinstance(content, list) else content
