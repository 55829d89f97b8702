"""Fields that identify an experiment, and the record of them in a checkpoint's notes."""

from collections.abc import Callable, Mapping
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

from scoremle.experiment.config import flat
from scoremle.records import GreyLevels

__all__ = ["PLACE_FIELDS", "record_of"]

# Fields in which a run may differ from the one that it goes on with. Everything else would make it
# another experiment, or (below) another network.
FREE = {
    "training.n_iters", "training.log_freq", "training.eval_freq", "training.snapshot_freq",
    "training.snapshot_freq_for_preemption", "training.snapshot_sampling", "data.path",
    "data.on_device", "training.on_nan", "training.rollbacks", "logging",
}  # fmt: skip
# Fields that may be set on the way, but not unset: a training is fine-tuned so.
LATER = {"training.second_order"}
# Fields of a flow dequantizer's network, by their names in config.deq.
FLOW_FIELDS = ("variant", "filters", "components", "blocks", "couplings", "heads")
FREE_SECTIONS = {"eval", "sampling", "deq", "devices"}
# Fields that name places of a machine.
PLACE_FIELDS = {"data.path", "eval.inception", "eval.stats"}
THE_FLOW = {f"deq.{name}" for name in FLOW_FIELDS}
# What the training of a flow dequantizer depends on besides the network, and its own sections.
OF_THE_FLOW = {
    "training.batch_size", "training.accumulate", "training.smallest_time", "training.stratified",
    "seed", "data.random_flip", "model.dtype",
}  # fmt: skip
FLOW_SECTIONS = {"deq", "optim"}
OF_THE_NETWORK = {
    "training.sde", "data.dataset", "data.image_size", "data.num_channels", "data.centered",
}  # fmt: skip
NOT_OF_THE_NETWORK = {
    "model.dropout", "model.ema_rate", "model.dtype", "model.remat", "model.num_scales",
}  # fmt: skip

# Names in the notes of a checkpoint.
CONFIG, DATA = "config", "data"


class DataFacts(TypedDict):
    """Facts of a data set in data.json that are read anywhere."""

    levels: GreyLevels
    name: NotRequired[str]
    data_version: NotRequired[str]
    train_sha256: NotRequired[str]


@runtime_checkable
class Recorded(Protocol):
    """Subject of a record: the config and the data of an experiment."""

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def data(self) -> Any: ...


def record_of(experiment: Recorded, what: str) -> dict[str, Any]:
    """The record of an experiment in a checkpoint of its "training", or of its "flow".

    Args:
        experiment: what runs.
        what: "training" or "flow".
    """
    facts, (matters, of_data) = data_facts(experiment), KINDS[what]
    return {
        CONFIG: {name: v for name, v in flat(experiment.config).items() if matters(name)},
        DATA: {name: facts[name] for name in of_data if name in facts},
    }


def data_facts(experiment: Recorded) -> dict[str, Any]:
    data = experiment.data
    return {"name": data.name, "levels": data.levels, **data.facts}


def augmentation(data: Mapping[str, Any]) -> str:
    """Random changes of training images, by the fields of ``data``, in words."""
    words = {"random_flip": "horizontal flip", "augment": "flips and turns that the network sees"}
    return " and ".join(words[name] for name in words if data[name]) or "none"


def of_the_network(name: str) -> bool:
    of_model = name.startswith("model.") and name not in NOT_OF_THE_NETWORK
    return name in OF_THE_NETWORK or of_model


def of_training(name: str) -> bool:
    return name not in FREE and name.split(".")[0] not in FREE_SECTIONS


def disagree(name: str, before: Any, now: Any) -> bool:
    """Whether a field has another value than in a record, and may not have it.

    Args:
        name: of the field.
        before: its value in the record.
        now: its value.
    """
    return before != now and not (name in LATER and now)


def of_the_flow(name: str) -> bool:
    own = name.split(".")[0] in FLOW_SECTIONS and name != "deq.n_iters"
    return own or name in OF_THE_FLOW or of_the_network(name)


# Which fields, and which facts of the data, make another experiment: what can't be gone on with.
KINDS: dict[str, tuple[Callable[[str], bool], tuple[str, ...]]] = {
    "training": (of_training, ("levels", "data_version", "train_sha256")),
    "evaluation": (of_the_network, ("levels", "data_version")),
    "flow": (of_the_flow, ("levels", "data_version", "train_sha256")),
    "evaluation of a flow": (THE_FLOW.__contains__, ()),
}
