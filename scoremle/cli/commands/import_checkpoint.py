"""Describes a published model, and makes a workdir of it.

    scoremle import cifar10_deep_vp_likelihood_iw_flip
    scoremle import ddpm-cifar10-32/ runs/ddpm --dataset=cifar10

The files of a model of diffusers, improved- or guided-diffusion or EDM are copied, and sealed. No
config could train such a model on, so the working directory holds what it is; its config says how
it is evaluated, and on what.

Of score_flow and score_sde a checkpoint is written that training can go on from. The architecture
comes from the arrays, step and rates from the file; SDE, objective and data set from the name of
the folder. What is in no file (dropout, activations, the size of the images) is that of the
published config. A file that ``scoremle export`` wrote has all of it beside it, in PATH.json.
"""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

import scoremle
from scoremle.cli import checks
from scoremle.cli.commands.data import data_named
from scoremle.cli.commands.sample import SMALLEST_TIME
from scoremle.cli.parser import Parser
from scoremle.cli.signals import going_on
from scoremle.errors import UserError
from scoremle.experiment import defaults
from scoremle.experiment.config import CONFIG_RECORD, flat, published_config
from scoremle.experiment.folders import FLOW_FOLDER, SNAPSHOTS
from scoremle.experiment.own_code import is_own
from scoremle.terminal import say

if TYPE_CHECKING:
    from scoremle.experiment.build import Experiment
    from scoremle.experiment.workdir import Workdir
    from scoremle.published import Published

NEEDS = "scoremle.experiment.models"
PUBLISHED = "cifar10_deep_vp_likelihood_iw_flip"
IMAGE_SIZE, LEVELS = 32, 256
IMPORTING = "importing a model into it"


def arguments(parser: Parser) -> None:
    add = parser.add
    add("path", "a folder or file of score_flow or score_sde, or a model of another family that"
        " scoremle score takes", type=Path)  # fmt: skip
    add("workdir", "folder to write; unset: runs/NAME", type=Path, nargs="?")
    add("-o --out", "the same as WORKDIR", type=Path, metavar="FOLDER")
    add("--dataset", "of a model of another family: the data that scoremle eval measures, a name"
        " or the path of your own images", default="")  # fmt: skip
    add("--name", f"name of the folder when it was published, such as {PUBLISHED}")


def check(options: Any) -> None:
    if is_own(str(options.path)) or options.path.suffix == ".py":
        raise UserError(
            f"{options.path} is code: scoremle score and sample take FILE.py:function as it is"
        )
    if not str(options.path).startswith("hf:"):
        checks.exists(options.path)
    if options.workdir and options.out:
        raise UserError("--out is another way to say WORKDIR: give one of the two")


def run(options: Any) -> None:
    """Reports on the files there, and makes a working directory of them."""
    from scoremle.experiment import exported
    from scoremle.experiment.workdir import Workdir
    from scoremle.zoo.families import family_of

    path = options.path
    if exported.is_export(path):
        raise UserError(
            f"{path} has the averaged parameters alone, and scoremle score takes it as it"
            " is; for a working directory export the whole state: scoremle export WORKDIR"
            " checkpoint_1"
        )
    workdir = Workdir(options.workdir or options.out or Path("runs") / (options.name or path.name))
    if not path.exists():
        from scoremle.zoo import hub  # with a network of diffusers

        path = hub.download(str(path))
    with going_on(f"the same command goes on, unless {workdir.folder} is complete"):
        if family := family_of(path):
            _import_model(path, family, workdir, options.dataset)
        elif options.dataset:
            raise UserError("--dataset is for other families: here the folder's name gives it")
        else:
            _import_checkpoint(path, options.name, workdir)


# Models of other families ------------------------------------------------------------------------


def _import_model(path: Path, family: str, workdir: "Workdir", dataset: str) -> None:
    """Makes the working directory. ``dataset``: a name or a path; "" if it is not known."""
    import jax

    from scoremle.experiment.imported import Imported
    from scoremle.files import write_sealed
    from scoremle.likelihood.image_model import pixels_of
    from scoremle.zoo.families import FAMILIES

    data = data_named(dataset) if dataset else None
    model = scoremle.load(path)
    # No command has another condition than a class, or the code of an image.
    if not model.origin.classes and model.coder is None:
        inputs = (jax.ShapeDtypeStruct((1, *of), "float32") for of in (model.shape, ()))
        jax.eval_shape(model.noise, *inputs)
    config, imported = _config_of(model, data), Imported(workdir.folder)
    with workdir.locked(IMPORTING):
        # Without the config, which comes last, the others can be made anew.
        workdir.check_vacant(but=imported.names)
        imported.write(family, path)
        facts = {"name": config.data.dataset, "levels": pixels_of(model).levels}
        write_sealed(workdir.data_path, facts)
        write_sealed(workdir.config_path, config.to_dict())
    say(f"{path}", f"  family      {FAMILIES[family].title}", f"  model       {model}")
    if not (model.sde.schedule.per_dimension or model.sde.schedule.per_example):
        low, high = (float(model.sde.log_snr(t)) for t in (1.0, model.eps))
        say(f"  log-SNR     {high:.2f} to {low:.2f}")
    say(f"  bits/dim    {model.default_estimator.title}", f"  written to  {workdir.folder}")
    own, label = ["eval", str(workdir.folder)], ["--config.eval.label=all"]
    if not config.data.dataset:
        own, label = ["score", str(workdir.folder), "IMAGES"], ["--label=all"]
    own += label if model.origin.classes else []
    say(f"next: scoremle {shlex.join(own)}")


def _config_of(
    model: "scoremle.ScoreModel", data: tuple["scoremle.data.Dataset", str] | None
) -> ConfigDict:
    """The config of its evaluation. Raises UserError for images that are not square.

    ``data``: a data set and its path; None if they are not known.
    """
    from scoremle.experiment.networks import IMPORTED

    height, width, channels = model.shape
    if height != width:
        raise UserError(f"a working directory is of square images, not of {height}x{width}")
    config = defaults.get_config()
    config.data.dataset = ""
    if data:
        dataset, path = data
        config.data.dataset, config.data.path = dataset.name, path and str(Path(path).absolute())
    config.data.image_size, config.data.num_channels = height, channels
    config.data.random_flip = False
    config.data.uniform_dequantization = True  # levels are in the middle of their bins
    config.model.name = IMPORTED
    config.training.smallest_time = model.eps
    config.sampling.smallest_time = max(model.eps, SMALLEST_TIME)
    noise = "truncated_normal" if model.origin.middles else "uniform"
    config.eval.dequantization = "informed" if model.decoder else noise
    defaults.resolve(config)
    return config


# Checkpoints of score_flow and score_sde ---------------------------------------------------------


def _import_checkpoint(path: Path, name: str | None, workdir: "Workdir") -> None:
    """Converts a checkpoint and its flow dequantizers."""
    from scoremle.experiment import exported
    from scoremle.experiment.record import record_of
    from scoremle.published import PublishedCheckpoints, checkpoint_files
    from scoremle.training.saving import Saving
    from scoremle.training.step import init_state

    number, file = _newest(path)
    found, network = _read(file, "network")
    if record := None if name else exported.read_record(file):
        by, experiment = exported.record_path(file).name, _recorded(*record)
    else:
        by, experiment = "the folder's name", _named(path, name, file, found, network)
    _report(experiment, by)

    def to_save(store: Any, number: int, file: Path, found: Any, template: Any) -> list[Any]:
        note = {"dataset": experiment.data.name, "seed": experiment.seed, "rng": found.rng}
        state = scoremle.published.train_state(found, template, file)
        return [store, number, state, {**note, "step": found.step}]

    score = to_save(workdir.snapshots, number, file, found, experiment.training.template)
    score[-1] = record_of(experiment, "training") | score[-1]
    store, flows = PublishedCheckpoints(workdir.folder / FLOW_FOLDER / SNAPSHOTS, keep=None), []
    for count, flow in sorted(checkpoint_files(path / FLOW_FOLDER / SNAPSHOTS).items()):
        of_flow, _ = _read(flow, "dequantizer")
        template = init_state(of_flow.params, experiment.training.optimizer)
        flows.append(to_save(store, count, flow, of_flow, template))
    with workdir.locked(IMPORTING), Saving() as saves:  # in a thread, which no signal interrupts
        # With the same records an import was stopped here, before its last checkpoint.
        stopped = workdir.config_path.exists() and not workdir.begun
        workdir.check_vacant(experiment, but=[FLOW_FOLDER, SNAPSHOTS] if stopped else [])
        workdir.describe(experiment)
        # The score model comes last: without it, the others can be made anew.
        for checkpoint in (*flows, score):
            saves.save(*checkpoint)
    for store, number, *_ in (score, *flows):
        say(f"  written to  {store.path(number)}")
    say(f"next: scoremle {shlex.join(['eval', str(workdir.folder)])}")


def _newest(path: Path) -> tuple[int, Path]:
    from scoremle.zoo.families import OTHER_FAMILIES

    if path.is_file():
        number = path.name.removeprefix("checkpoint_").removesuffix(".pth")
        return int(number) if number.isdecimal() else 0, path
    for folder in (path / SNAPSHOTS, path):
        if files := scoremle.published.checkpoint_files(folder):
            return max(files.items())
    if (path / CONFIG_RECORD).exists():
        raise UserError(
            f"{path} is a working directory already: scoremle score, eval and sample take it as it"
            " is"
        )
    raise UserError(
        f"{path} holds no checkpoint_N or checkpoint_N.pth of score_flow or score_sde, and no"
        f" model of another family: {OTHER_FAMILIES}"
    )


def _read(file: Path, what: str) -> tuple["Published", dict[str, Any]]:
    """Reads a checkpoint of a network or a dequantizer, and says and returns its fields, too."""
    import jax

    from scoremle.training.checkpoints import Damaged
    from scoremle.zoo.families import OTHER_FAMILIES

    try:
        found = scoremle.published.read(file)
    except UserError as error:
        others = f"nor is it a model of another family: {OTHER_FAMILIES}"
        raise UserError(f"{error}; {others}") from None
    scoremle.numerics.check_finite({"params": found.params, "ema": found.ema}, file)
    published = scoremle.published
    describe = published.architecture if what == "network" else published.flow_architecture
    try:
        fields = describe(found.params)
    except Damaged as error:
        raise UserError(f"{file}: {error}") from None
    arrays = jax.tree.leaves(found.params)
    say(f"{file}", f"  step        {found.step:,}")
    say(f"  parameters  {sum(array.size for array in arrays):,} in {len(arrays)} arrays")
    say(f"  {what:11} " + ", ".join(f"{name} {value}" for name, value in fields.items()))
    return found, fields


def _recorded(config: ConfigDict, facts: dict[str, Any]) -> "Experiment":
    """The experiment that an exported file is of."""
    from scoremle.experiment.build import build

    rest = dict(facts)
    experiment = build(config, levels=rest.pop("levels"))
    name = rest.pop("name", experiment.data.name)
    return replace(experiment, data=replace(experiment.data, name=name, facts=rest))


def _named(
    path: Path, name: str | None, file: Path, found: "Published", network: dict[str, Any]
) -> "Experiment":
    """The experiment by the name of a published folder: the nearest published config."""
    from scoremle.experiment.build import build
    from scoremle.published import ATTENTION, origin

    known = origin(Path(name) if name else file.resolve())
    if known is None:
        raise UserError(
            f"the name of {path} does not say its SDE and data set: pass the name that the folder"
            f" had when it was published, such as --name={PUBLISHED}"
        )
    channels = published_config(known.config, {}).data.num_channels
    if network["num_channels"] != channels:
        raise UserError(
            f"{file} has num_channels {network['num_channels']}, and {known.dataset} has"
            f" {channels}: it is not the model of that name"
        )
    elsewhere = (ATTENTION, "num_channels")  # the number of channels is the named data set's
    fields = {
        **flat(known.sections),
        **{f"model.{field}": value for field, value in network.items() if field not in elsewhere},
        "model.attn_resolutions": tuple(IMAGE_SIZE >> level for level in network[ATTENTION]),
        "model.ema_rate": found.ema_rate,
        "optim.lr": found.lr,
    }
    return build(published_config(known.config, fields), levels=LEVELS)


def _report(experiment: "Experiment", by: str) -> None:
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
