"""A working directory, and whether it belongs to an experiment.

config.json        the resolved config
data.json          name and number of levels of the data set
metrics.jsonl      a row of numbers for every logged step
samples/           a grid of samples for every snapshot
checkpoints/       snapshots, for evaluation
checkpoints-meta/  where training goes on after pre-emption
<deq_folder>/      all of this of a flow dequantizer; score_model.json says for which checkpoint
<eval_folder>/     results.json, per-image values, pictures
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from scoremle.checkpoint import Checkpoints
from scoremle.errors import UserError
from scoremle.experiment import FLOW_FIELDS, Experiment
from scoremle.files import read_json, write_json

__all__ = ["Workdir"]

# Fields in which a run may differ from the one that it goes on with. Everything else would make it
# another experiment, or (below) another network.
FREE = {
    "training.n_iters", "training.log_freq", "training.eval_freq", "training.snapshot_freq",
    "training.snapshot_freq_for_preemption", "training.snapshot_sampling", "data.path",
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
    def snapshots(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints", keep=None)

    @property
    def preemption(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints-meta", keep=PREEMPTION_KEEP)

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
            )
        return ConfigDict(_with_tuples(read_json(self.config_path)))

    def levels(self) -> int:
        """Grey levels of the images that the experiment is about."""
        return int(read_json(self.data_path)["levels"])

    def describe(self, experiment: Experiment) -> None:
        """Writes what the experiment is."""
        write_json(self.config_path, dict(experiment.config))
        facts = {"name": experiment.data.name, "levels": experiment.data.levels}
        write_json(self.data_path, facts)

    def check_training(self, experiment: Experiment) -> None:
        """Raises UserError if training would go on from another experiment."""
        self._check(
            experiment,
            lambda name: name not in FREE and name.split(".")[0] not in FREE_SECTIONS,
        )

    def check_evaluation(self, experiment: Experiment) -> None:
        """Raises UserError if the checkpoints are not of the experiment's network and data."""
        self._check(experiment, _of_the_network)

    def check_flow(self, experiment: Experiment) -> None:
        """Raises UserError if training would go on from another flow dequantizer."""
        self._check(experiment, lambda name: _of_the_flow(name) or _of_the_network(name))

    def check_flow_evaluation(self, experiment: Experiment) -> None:
        """Raises UserError if the checkpoints are not of the experiment's flow."""
        self._check(experiment, lambda name: name in THE_FLOW)

    def _check(self, experiment: Experiment, matters: Callable[[str], bool]) -> None:
        # What was begun without a checkpoint left nothing that could be mixed up.
        if not self.begun or not self.config_path.exists():
            return
        old, new = dict(_flat(read_json(self.config_path))), dict(_flat(experiment.config))
        different = sorted(name for name in new if matters(name) and old.get(name) != new[name])
        if different:
            raise UserError(
                f"{self.folder} holds another experiment: {_differences(different, old, new)}; "
                "use another --workdir, or the config it was begun with"
            )


def _of_the_network(name: str) -> bool:
    of_model = name.startswith("model.") and name not in NOT_OF_THE_NETWORK
    return name in OF_THE_NETWORK or of_model


def _of_the_flow(name: str) -> bool:
    own = name.split(".")[0] in FLOW_SECTIONS and name != "deq.n_iters"
    return own or name in OF_THE_FLOW


def _differences(names: list[str], old: dict[str, Any], new: dict[str, Any]) -> str:
    shown = names[:DIFFERENCES_SHOWN]
    text = ", ".join(f"{name} was {old.get(name)!r} and is now {new[name]!r}" for name in shown)
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
