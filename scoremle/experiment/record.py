"""Which fields make another experiment, and what a checkpoint says of its own in its notes."""

from collections.abc import Callable, Mapping
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

from scoremle.experiment.build import FLOW_FIELDS
from scoremle.records import Levels

__all__ = [
    "CONFIG", "DATA", "OF_DATA", "OF_THE_LEVELS", "PLACES", "THE_FLOW", "DataFacts", "Recorded",
    "data_facts", "flat", "flow_record", "of_the_flow", "of_the_network", "of_training",
    "training_record",
]  # fmt: skip

# Fields in which a run may differ from the one that it goes on with. Everything else would make it
# another experiment, or (below) another network.
FREE = {
    "training.n_iters", "training.log_freq", "training.eval_freq", "training.snapshot_freq",
    "training.snapshot_freq_for_preemption", "training.snapshot_sampling", "data.path",
    "data.on_device", "training.on_nan", "training.rollbacks", "logging",
}  # fmt: skip
FREE_SECTIONS = {"eval", "sampling", "deq", "devices"}
# Fields that name places of a machine.
PLACES = {"data.path", "eval.inception", "eval.stats"}
THE_FLOW = {f"deq.{name}" for name in FLOW_FIELDS}
# What the training of a flow dequantizer depends on besides the network, and its own sections.
OF_THE_FLOW = {"training.batch_size", "training.smallest_time", "training.stratified", "seed"}
FLOW_SECTIONS = {"deq", "optim"}
OF_THE_NETWORK = {
    "training.sde", "data.dataset", "data.image_size", "data.num_channels", "data.centered",
}  # fmt: skip
NOT_OF_THE_NETWORK = {
    "model.dropout", "model.ema_rate", "model.dtype", "model.remat", "model.num_scales",
}  # fmt: skip

# Facts of the data that training depends on; those that a model does.
OF_DATA = ("levels", "data_version", "train_sha256")
OF_THE_LEVELS = ("levels",)
# Names in the notes of a checkpoint.
CONFIG, DATA = "config", "data"


class DataFacts(TypedDict):
    """Facts of a data set in data.json that are read anywhere."""

    levels: Levels
    name: NotRequired[str]
    data_version: NotRequired[str]
    train_sha256: NotRequired[str]


@runtime_checkable
class Recorded(Protocol):
    """What a record is of: the config and the data of an experiment."""

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def data(self) -> Any: ...


def training_record(experiment: Recorded) -> dict[str, Any]:
    """What a checkpoint of a score model says of its experiment, for its notes."""
    return _record(experiment, of_training, OF_DATA)


def flow_record(experiment: Recorded) -> dict[str, Any]:
    """What a checkpoint of a flow dequantizer says of its experiment."""
    return _record(experiment, of_the_flow, OF_THE_LEVELS)


def _record(
    experiment: Recorded, matters: Callable[[str], bool], of_data: tuple[str, ...]
) -> dict[str, Any]:
    fields, facts = flat(experiment.config), data_facts(experiment)
    return {
        CONFIG: {name: value for name, value in fields.items() if matters(name)},
        DATA: {name: facts[name] for name in of_data if name in facts},
    }


def data_facts(experiment: Recorded) -> dict[str, Any]:
    data = experiment.data
    return {"name": data.name, "levels": data.levels, **data.facts}


def of_the_network(name: str) -> bool:
    of_model = name.startswith("model.") and name not in NOT_OF_THE_NETWORK
    return name in OF_THE_NETWORK or of_model


def of_training(name: str) -> bool:
    return name not in FREE and name.split(".")[0] not in FREE_SECTIONS


def of_the_flow(name: str) -> bool:
    own = name.split(".")[0] in FLOW_SECTIONS and name != "deq.n_iters"
    return own or name in OF_THE_FLOW or of_the_network(name)


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config by their dotted names."""
    fields: dict[str, Any] = {}
    for section, value in config.items():
        if isinstance(value, dict):
            fields |= {f"{section}.{name}": each for name, each in value.items()}
        else:
            fields[section] = value
    return fields
