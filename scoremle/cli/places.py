"""What can be said of the places that a command names, before JAX is imported."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scoremle.errors import UserError, no_chain, no_labels, no_model

__all__ = ["check_export", "check_import", "check_samples", "check_scores", "exist"]


# Models that a name stands for.
SHIPPED = Path(__file__).parents[1] / "experiment" / "shipped"
# Names by which formats go that export does not write.
NOT_WRITTEN = (
    ".pth", ".pt", ".pkl", ".npz", ".npy", ".json", ".onnx", ".h5", ".bin", ".ckpt", ".zip",
)  # fmt: skip


def exist(name: str) -> Callable[[Any], None]:
    """A check that the place, or each of the places, of the argument ``name`` is there.

    What may name a model is left to the command, which knows models.
    """

    def check(options: Any) -> None:
        places = getattr(options, name)
        for place in [places] if isinstance(places, Path) else places:
            is_name = ":" in str(place) or (SHIPPED / place).is_dir()
            if not (place.exists() or is_name):
                raise UserError(f"there is no folder or file {place}")

    return check


def _check_model(place: str) -> None:
    """What ``hf:`` and ``FILE.py:function`` name is left to the command."""
    names = sorted(config.parent.name for config in SHIPPED.glob("*/config.json"))
    if not (Path(place).exists() or ":" in place or place in names):
        raise no_model(place, names)


def _check_has(options: Any) -> None:
    """Raises UserError for a label or steps of a model that was trained here: it has none."""
    place = Path(options.model)
    shipped = not place.exists() and (SHIPPED / place).is_dir()
    folder = SHIPPED / place if shipped else place
    if not (folder / "config.json").is_file() or (folder / "published.json").exists():
        return
    if options.label:
        raise no_labels()
    if getattr(options, "estimator", "") == "steps" and options.steps is None:
        raise no_chain()


def check_import(options: Any) -> None:
    """Raises UserError for files of others that are not there."""
    if not (options.path.exists() or str(options.path).startswith("hf:")):
        raise UserError(f"there is no folder or file {options.path}")


def check_export(options: Any) -> None:
    """Raises UserError for a workdir that is not there, and for a name of another format."""
    exist("workdir")(options)
    path = options.path
    if path.suffix in NOT_WRITTEN:
        raise UserError(
            f"{path}: a {path.suffix} is not written here; name a .safetensors"
            " (the averaged parameters), or a file like checkpoint_1 (the whole training state,"
            " as score_flow saved it)"
        )
    # What it is stands beside it, if not in it.
    record = path.suffix != ".safetensors" and not _is_stream(path)
    beside = [".json"] * record + [".md"] * options.card
    for place in (path, *(path.with_name(f"{path.name}{ending}") for ending in beside)):
        _check_can_write(f"{place}", place)
        _check_not_there(place, options.force)


def check_samples(options: Any) -> None:
    """Raises UserError for a model that is not there, and for a name that can't be written.

    A name must say its format.
    """
    _check_model(options.model)
    if options.out.suffix not in (".png", ".npy", ".npz"):
        raise UserError(f"-o {options.out}: the name to write must end in .png, .npy or .npz")
    _check_can_write(f"-o {options.out}", options.out)
    _check_has(options)


def check_scores(options: Any) -> None:
    """Raises UserError for what is not there, and for a table that can't be written."""
    if not options.images.exists():
        raise UserError(f"no file or folder {options.images}")
    if options.steps is not None and options.estimator != "steps":
        raise UserError(f"--steps is of --estimator=steps, not of {options.estimator}")
    if not options.engine:  # which writes a folder, and goes on in it
        _check_tables(options)
    _check_model(options.model)
    _check_has(options)


def _check_tables(options: Any) -> None:
    for flag, place in (("--out", options.out), ("--page", options.page)):
        if place is None:
            continue
        _check_can_write(f"{flag}={place}", place)
        _check_not_there(place, options.force)
    if not _is_stream(options.out):
        _check_not_there(options.out.with_name(f"{options.out.name}.json"), options.force)


def _check_not_there(place: Path, force: bool) -> None:
    if place.exists() and not (force or _is_stream(place)):
        raise UserError(f"{place} is there: --force writes over it, or name another file")


def _is_stream(place: Path) -> bool:
    if not place.exists():
        return False
    from scoremle.files import is_stream  # imports numpy, which most mistakes have no need of

    return is_stream(place)


def _check_can_write(named: str, place: Path) -> None:
    """Raises UserError, in which the place is ``named`` so, where no file can be written."""
    folder = next(above for above in place.absolute().parents if above.exists())
    if place.is_symlink() and place.is_file():
        raise UserError(f"can't write {named}: it is a link; name its target, {place.resolve()}")
    if place.is_dir() or not _takes_files(folder):
        what = "it is a folder" if place.is_dir() else f"{folder} is none that can be written to"
        raise UserError(f"can't write {named}: {what}; name a file to write")


def _takes_files(folder: Path) -> bool:
    """Can a file be made in it? In some, such as /proc, not even by who may write."""
    if not os.access(folder, os.W_OK):
        return False
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True
