"""A model by what a user has: a folder, a file, or a function; by its content, not its name."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scoremle.core.arguments import check_count, check_kind
from scoremle.core.pixels import Pixels
from scoremle.devices import check_devices, placed
from scoremle.errors import UserError, no_model
from scoremle.experiment import exported
from scoremle.experiment.build import Experiment, build
from scoremle.experiment.networks import Params
from scoremle.experiment.own_code import called, is_own
from scoremle.experiment.shipped import FOLDER, NAMES, WEIGHTS
from scoremle.experiment.workdir import Workdir
from scoremle.model import ScoreModel
from scoremle.numerics import check_finite
from scoremle.zoo.families import FAMILIES, HUB, OTHER_FAMILIES, family_of

if TYPE_CHECKING:
    from scoremle.weights.flows import FlowModel

__all__ = [
    "checkpoint_of", "is_model_alone", "is_published", "load", "load_to_score", "of_images",
    "place_in",
]  # fmt: skip


def load(place: str | Path, checkpoint: int | None = None) -> ScoreModel:
    """The model at a place.

    Args:
        place: a working directory, which ``scoremle import`` makes of published checkpoints; a
            ``.safetensors`` of ``scoremle export``; a folder of diffusers; a ``.pt`` of improved-
            or guided-diffusion with its flags beside it; a ``.safetensors`` of EDM with its
            fields beside it; a training state of VDM, i-DODE or MuLAN;
            ``hf:OWNER/NAME[@REVISION]``; ``FILE.py:function``, a function that returns a
            ScoreModel; or the name of a model that the package ships. An existing path comes
            first.
        checkpoint: its number in a working directory; None: the newest.

    Raises UserError for anything else, for what can't be read, and for parameters that are
    not finite.

    Example:
        >>> model = scoremle.load("digits")
        >>> model.shape, model.pixels.levels
        ((8, 8, 1), 17)
    """
    model = load_to_score(place, checkpoint)
    if not isinstance(model, ScoreModel):
        raise UserError(f"{place} is a flow, which scoremle score takes: this needs a ScoreModel")
    return model


def load_to_score(place: str | Path, checkpoint: int | None = None) -> "ScoreModel | FlowModel":
    """The model at a place, or the flow that a function there returns.

    Args:
        place, checkpoint: as ``load`` takes them.

    Raises UserError as ``load``.
    """
    check_devices()
    check_kind("place", place, str | Path, "'digits'")
    if checkpoint is not None:
        check_count("checkpoint", checkpoint, least=0)
    if checkpoint is not None and is_model_alone(str(place)):
        raise UserError(
            f"{place} is one model, not a working directory of several checkpoints: leave the"
            f" number {checkpoint} out"
        )
    model = _loaded(place, checkpoint)
    if isinstance(model, ScoreModel):
        check_finite(model.noise, place)
    return model


def _loaded(place: str | Path, checkpoint: int | None) -> "ScoreModel | FlowModel":
    path = Path(place)
    if not (place and path.exists()):  # an empty name is not the current folder
        if is_own(str(place)):
            return _own(str(place))
        if str(place).startswith(HUB):
            from scoremle.zoo import hub  # with a network of diffusers

            return load(hub.download(str(place)))
        if str(place) in NAMES:
            return _exported(FOLDER / place / WEIGHTS)
        raise no_model(place, NAMES)
    if exported.is_export(path):
        return _exported(path)
    if family := family_of(path):
        return FAMILIES[family].load(path)
    if path.is_file() and path.suffix == ".py":
        raise UserError(
            f"{path} is Python, not a model of a known family: name its function that returns one,"
            f" {path}:NAME"
        )
    if path.is_file() or not (Workdir(path).begun or Workdir(path).config_path.exists()):
        if str(place) in NAMES:
            raise UserError(
                f"{path.absolute()} hides the model {path} that ships, and is not a model: rename"
                " it, or run this in another folder"
            )
        what = "not a working directory, and " if path.is_dir() else ""
        raise UserError(
            f"{path} is {what}not a model of a known family: {OTHER_FAMILIES}; scoremle import"
            " takes checkpoints of score_flow and score_sde"
        )
    return _of_workdir(Workdir(path), checkpoint)


def _exported(path: Path) -> ScoreModel:
    config, data, arrays, step = exported.load_export(path)
    experiment = build(config, levels=data["levels"])
    params = exported.as_tree(arrays, experiment.training.template.ema, path)
    return _trained(experiment, placed(params), step)


def _of_workdir(workdir: Workdir, checkpoint: int | None) -> ScoreModel:
    """The model of this checkpoint, or the newest: the averaged parameters.

    One that was imported is as it was published.
    """
    if workdir.imported:
        return workdir.restore(None, checkpoint).tree.ema
    # The number of levels replaces the data set, which need not be here.
    experiment = build(workdir.config(), levels=workdir.levels())
    state, meta, number = workdir.restore(experiment.training.template, checkpoint)
    return _trained(experiment, state.ema, int(meta["step"]), number)


def _trained(
    experiment: Experiment, params: Params, step: int, checkpoint: int | None = None
) -> ScoreModel:
    """The model of these parameters of an experiment."""
    model, dataset, pilot = experiment.model_of(params), experiment.data.name, experiment.pilot
    origin = replace(
        model.origin, dataset=dataset, step=step, checkpoint=checkpoint, pilot=pilot
    )
    return replace(model, solver=experiment.by_ode.solver, origin=origin)


def _own(place: str) -> "ScoreModel | FlowModel":
    """The model or flow that a function of the user's own returns.

    Raises UserError as ``called``, and if it returns something else.
    """
    model = called(place)
    if not isinstance(model, ScoreModel):
        from scoremle.weights.flows import FlowModel

        if not isinstance(model, FlowModel):
            raise UserError(f"{place} must return a ScoreModel, not a {type(model).__name__}")
    return model


def is_published(place: str) -> bool:
    """Whether this names a model of a published family.

    Args:
        place: as ``load`` takes it.
    """
    path = Path(place)
    if not path.exists():
        return place.startswith(HUB)
    return not exported.is_export(path) and family_of(path) is not None


def is_model_alone(place: str) -> bool:
    """Whether this names a model that is not a working directory.

    Args:
        place: as ``load`` takes it.
    """
    if Path(place).exists():
        return exported.is_export(Path(place)) or is_published(place)
    return is_own(place) or place in NAMES or is_published(place)


def checkpoint_of(place: str, asked: int | None, recorded: int | None) -> int | None:
    """The number of the checkpoint to load: the one asked for, or else the one of a record.

    Args:
        place: of the model, as ``load`` takes it.
        asked: None: the user named none.
        recorded: where the place was a working directory; it may be an export of that now.
    """
    return recorded if asked is None and not is_model_alone(place) else asked


def place_in(file: Path, place: str, given: str, flag: str = "--model") -> str:
    """The place that the user gives, or else the one that a file names, which may be a stranger's.

    Args:
        file: that names it.
        place: the one in the file.
        given: the user's; "": none.
        flag: that gives it.

    Raises UserError for code and downloads that the file alone names, and where nothing is.
    """
    if given:
        return given
    if not place:
        raise UserError(f"{file} does not name the place of its model: give {flag}=MODEL")
    if is_own(place) or place.startswith(HUB):
        raise UserError(
            f"{file} was made with {place!r}, which is code or a download: allow it by"
            f" {flag}={shlex.quote(place)}"
        )
    if not (Path(place).exists() or place in NAMES):
        raise UserError(
            f"{file} was made with {place!r}, which is not there: {flag}= names its new path"
        )
    return place


def of_images(model: "ScoreModel | FlowModel", place: str) -> tuple[Pixels, tuple[int, int, int]]:
    """The pixels of the model at a place, and the shape of its images.

    Args:
        model: any.
        place: its name, for the error.

    Raises UserError for a model of anything but integer images.
    """
    if model.pixels is None or len(model.shape) != 3:
        raise UserError(
            f"{place} is not a model of integer images: give it a shape (h, w, c) and pixels, such"
            " as scoremle.Pixels(256)"
        )
    height, width, channels = model.shape
    if channels not in (1, 3):
        raise UserError(
            f"{place} is a model of images of {channels} channels, and those of pictures and of"
            " arrays in files are 1 or 3: from Python, model.score(images) takes others"
        )
    return model.pixels, (height, width, channels)
