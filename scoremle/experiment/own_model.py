"""A model by ``FILE.py:function``: a user's own function, which returns a ScoreModel."""

import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scoremle.errors import UserError
from scoremle.model import ScoreModel

__all__ = ["is_own", "own_model"]


def is_own(place: str) -> bool:
    """Does this name a function of a file?"""
    return ".py:" in place


def own_model(place: str) -> ScoreModel:
    """What the function returns. The file is Python, and is run.

    Raises UserError if there is no such file or function, for a mistake in it, and if it returns
    something else.
    """
    name, _, function = place.rpartition(":")
    path = Path(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"no file {path} (looked for {path.absolute()})")
    module = importlib.util.module_from_spec(spec)
    try:
        with _own_imports_of(path):
            spec.loader.exec_module(module)
            if not hasattr(module, function):
                raise UserError(f"{path} has no function {function}")
            model = getattr(module, function)()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # an exit of the file is none of the program
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename) == path.absolute()]
        where = f", line {lines[-1]}" if lines else ""
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{path}{where}: {text}") from error
    if not isinstance(model, ScoreModel):
        raise UserError(f"{place} must return a ScoreModel, not a {type(model).__name__}")
    return model


@contextmanager
def _own_imports_of(path: Path) -> Iterator[None]:
    """While a file runs, its folder is on the path.

    What it imports from there is forgotten afterwards: beside another file a module of the same
    name may be another one.
    """
    folder, before = path.absolute().parent, set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            top = name.partition(".")[0]
            file = Path(getattr(sys.modules[name], "__file__", None) or "")
            own = file == folder / f"{top}.py" or file.is_relative_to(folder / top)
            if own and top not in before:
                del sys.modules[name]
