"""``scoremle import PATH WORKDIR``: says what a published model is, and makes a workdir of it.

Models of diffusers, improved- and guided-diffusion and EDM are copied as they are
(`import_model.py`). Of score_flow and score_sde a checkpoint is written that training can go on
from. The architecture comes from the arrays, step and rates from the file; SDE, objective and
data set from the name of the folder. What nothing says (dropout, activations, the size of the
images) is that of the published config. A file that ``scoremle export`` wrote has all of it beside
it, in PATH.json.
"""

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from scoremle import published
from scoremle.cli.commands.import_model import import_model
from scoremle.cli.parsers import PUBLISHED
from scoremle.errors import UserError
from scoremle.experiment import exported
from scoremle.experiment.build import Experiment, build
from scoremle.experiment.config import published_config
from scoremle.experiment.record import training_record
from scoremle.experiment.workdir import Workdir
from scoremle.numerics import check_finite
from scoremle.published import (
    ATTENTION,
    Origin,
    Published,
    PublishedCheckpoints,
    architecture,
    flow_architecture,
)
from scoremle.published.families import OTHERS
from scoremle.terminal import say
from scoremle.training.checkpoints import Damaged
from scoremle.training.saving import Saving
from scoremle.training.step import TrainState, init_state

__all__ = ["run"]

DEQUANTIZER = "flowpp_dequantizer"
IMAGE_SIZE = 32
LEVELS = 256
# A store, a number in it, the state, and the notes that are saved with it.
Checkpoint = tuple[PublishedCheckpoints, int, TrainState, dict[str, Any]]


def run(options: Any) -> None:
    """Reports what lies there, and makes a working directory of it."""
    if options.workdir and options.out:
        raise UserError("--out is another way to say WORKDIR: give one of the two")
    if exported.is_file(options.path):
        raise UserError(
            f"{options.path} has the averaged parameters alone, and scoremle score takes it as it"
            " is; for a working directory export the whole state: scoremle export WORKDIR"
            " checkpoint_1"
        )
    name = options.name or options.path.name
    place = Workdir(options.workdir or options.out or Path("runs") / name)
    if import_model(options.path, place, options.dataset):
        return
    if options.dataset:
        raise UserError("--dataset is of other families: here the folder's name says the data set")
    _import_checkpoint(options, place)


def _import_checkpoint(options: Any, place: Workdir) -> None:
    """Converts a checkpoint and its flow dequantizers."""
    number, file = _newest(options.path)
    found = _read(file)
    network = _described(file, found, architecture)
    _report(file, found, "network", network)
    if record := None if options.name else exported.read_record(file):
        by, experiment = exported.record_of(file).name, _recorded(*record)
    else:
        by, experiment = "the folder's name", _named(options, file, found, network)
    _tell(experiment, by)
    state = published.train_state(found, experiment.training.template(), file)
    note = _note(found, experiment)
    score = (place.snapshots, number, state, {**training_record(experiment), **note})
    flows = [
        _dequantizer(number, file, place, experiment)
        for number, file in _dequantizers(options.path)
    ]
    for store, number, *_ in [score, *(flows if place.begun else [])]:
        if number in store.numbers():
            raise UserError(f"{store.path(number)} is there already: choose another --out")
    place.describe(experiment)
    with Saving() as saves:  # in a thread, which no signal interrupts
        # The score model comes last: without it, the others can be made anew.
        for checkpoint in (*flows, score):
            saves.save(*checkpoint)
    for store, number, *_ in (score, *flows):
        say(f"  written to  {store.path(number)}")
    say(f"next: scoremle {shlex.join(['eval', str(place.folder)])}")


def _recorded(config: ConfigDict, facts: dict[str, Any]) -> Experiment:
    """The experiment that an exported file is of."""
    experiment = build(config, levels=facts["levels"])
    data = replace(
        experiment.data,
        name=facts.get("name", experiment.data.name),
        facts={name: fact for name, fact in facts.items() if name not in ("name", "levels")},
    )
    return replace(experiment, data=data)


def _named(options: Any, file: Path, found: Published, network: dict[str, Any]) -> Experiment:
    """The experiment that the name of a published folder tells."""
    known = published.origin(Path(options.name) if options.name else file.resolve())
    if known is None:
        raise UserError(
            f"the name of {options.path} does not say its SDE and data set: pass the name that "
            f"the folder had when it was published, such as --name={PUBLISHED}"
        )
    _check_channels(file, known, network["num_channels"])
    return build(_config(known, found, network), levels=LEVELS)


def _read(file: Path) -> Published:
    try:
        found = published.read(file)
    except UserError as error:
        raise UserError(f"{error}; nor is it a model of another family: {OTHERS}") from None
    check_finite({"params": found.params, "ema": found.ema}, file)
    return found


def _newest(path: Path) -> tuple[int, Path]:
    if path.is_file():
        number = path.name.removeprefix("checkpoint_").removesuffix(".pth")
        return int(number) if number.isdecimal() else 0, path
    for folder in (path / "checkpoints", path):
        if there := published.files(folder):
            return max(there.items())
    if Workdir(path).config_path.exists():
        raise UserError(
            f"{path} is a working directory already: scoremle score, eval and sample take it as it"
            " is"
        )
    raise UserError(
        f"{path} holds no checkpoint_N or checkpoint_N.pth of score_flow or score_sde, and no"
        f" model of another family: {OTHERS}"
    )


def _dequantizers(path: Path) -> list[tuple[int, Path]]:
    return sorted(published.files(path / DEQUANTIZER / "checkpoints").items())


def _described(
    file: Path, found: Published, describe: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    try:
        return describe(found.params)
    except Damaged as error:
        raise UserError(f"{file}: {error}") from None


def _check_channels(file: Path, known: Origin, channels: int) -> None:
    named = published_config(known.config, {}).data.num_channels
    if channels != named:
        raise UserError(
            f"{file} has num_channels {channels}, and {known.dataset} has {named}: it is not the"
            " model of that name"
        )


def _config(known: Origin, found: Published, network: dict[str, Any]) -> ConfigDict:
    """The nearest published config, with what the file and the folder's name say."""
    elsewhere = (ATTENTION, "num_channels")  # the number of channels is the named data set's
    fields = {
        **known.fields,
        **{f"model.{name}": value for name, value in network.items() if name not in elsewhere},
        "model.attn_resolutions": tuple(IMAGE_SIZE >> level for level in network[ATTENTION]),
        "model.ema_rate": found.ema_rate,
        "optim.lr": found.lr,
    }
    return published_config(known.config, fields)


def _report(file: Path, found: Published, what: str, fields: dict[str, Any]) -> None:
    arrays = jax.tree.leaves(found.params)
    say(f"{file}")
    say(f"  step        {found.step:,}")
    say(f"  parameters  {sum(array.size for array in arrays):,} in {len(arrays)} arrays")
    say(f"  {what:11} " + ", ".join(f"{name} {value}" for name, value in fields.items()))


def _tell(experiment: Experiment, by: str) -> None:
    stated, training = experiment.config["data"], experiment.config["training"]
    objective = {
        "likelihood weighting": training["likelihood_weighting"],
        "importance sampling": training["importance_weighting"],
        "flips": stated["random_flip"],
    }
    words = ", ".join(f"{name} {'on' if value else 'off'}" for name, value in objective.items())
    height, width, _ = experiment.model.shape
    say(f"  data set    {stated['dataset']}, {height}x{width} (by {by})")
    say(f"  SDE         {training['sde']}, {words} (by {by})")


def _dequantizer(number: int, file: Path, place: Workdir, experiment: Experiment) -> Checkpoint:
    """A flow dequantizer of the score model, to be saved."""
    found = _read(file)
    _report(file, found, "dequantizer", _described(file, found, flow_architecture))
    template = jax.eval_shape(lambda: init_state(found.params, experiment.training.optimizer))
    state = published.train_state(found, template, file)
    store = PublishedCheckpoints(place.folder / DEQUANTIZER / "checkpoints", keep=None)
    return store, number, state, _note(found, experiment)


def _note(found: Published, experiment: Experiment) -> dict[str, Any]:
    names = {"dataset": experiment.data.name, "seed": experiment.seed}
    return {**names, "step": found.step, "rng": found.rng}
