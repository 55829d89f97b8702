"""Python files of the user's own, which are run: configs, and functions that return a model.

An error in one of them is a line with its file, its line and its function: while the file runs,
and whenever later a function of it is called, such as a noise prediction that JAX traces.
"""

import importlib.util
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

from scoremle.errors import Stopped, UserError, out_of_memory

__all__ = ["is_own", "mistakes"]

logger = logging.getLogger(__name__)

# Files that were run, by their absolute names, and the names that a user gave.
_known: dict[str, Path] = {}
# What a compiled program makes of an error in a function that it calls.
CALLED = re.compile(r'File "(.+?)", line (\d+), in (\S+)')
# Messages of ml_collections about a field of a config, and ours for them.
OF_FIELDS = (
    (r'.*Did you mean "(\w+)" instead of "(\w+)".*', r"no field \2; did you mean \1?"),
    (
        r"Could not override field '(\w+)'.*\)\. (.*) is of original type <class '(\w+)'> and"
        r" cannot be casted to type <class '(?:\w+\.)*(\w+)'>",
        r"\1 must be \4, not \3 '\2'",
    ),
)
# Remedies of the commonest errors, by their kind or by the module that is not found.
HINTS: dict[str | None, str] = {
    "configs": "write: from scoremle.experiment import defaults as default",
    "TracerArrayConversionError": "use jax.numpy in place of numpy there",
    "TracerBoolConversionError": "use jax.numpy.where in place of if there",
}


def is_own(place: str) -> bool:
    """Whether this names a function of a file: ``FILE.py:function``.

    Args:
        place: of a model, as the user names it.
    """
    return ".py:" in place


def run_file(path: Path) -> ModuleType:
    """The module of a file, which is run; what it raises is for ``mistakes``.

    Raises UserError if there is no such file.
    """
    spec = importlib.util.spec_from_file_location(f"own_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"no file {path} (looked for {path.absolute()})")
    _known[str(path.absolute())] = path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def called(place: str, *arguments: Any) -> Any:
    """The result of a function of a file, as ``calls``."""
    return calls(place, arguments)[0]


def calls(place: str, *each: tuple[Any, ...]) -> list[Any]:
    """The results of calls of ``FILE.py:function``. The file is Python, and is run once.

    Raises UserError if there is no such file or function, and for a mistake in it.
    """
    name, _, function = place.rpartition(":")
    path = Path(name)
    with mistakes(path), imports_from(path.parent):
        module = run_file(path)
        found = getattr(module, function, None)
        if not callable(found):
            raise UserError(f"{path} has no function {function}")
        return [found(*arguments) for arguments in each]


@contextmanager
def mistakes(path: Path | None = None) -> Iterator[None]:
    """In the block an error in a user's file becomes a UserError of one line.

    An exit, too: it is none of the program.

    Args:
        path: of a file, which every error is of; None: the one that the error passed through.
    """
    try:
        yield
    except (UserError, Stopped):
        raise
    except (Exception, SystemExit) as error:
        where = _place(error) or (str(path) if path else "")
        if not where or out_of_memory(error):
            raise
        logger.debug("the error in full:", exc_info=error)
        kind = type(error).__name__
        hint = HINTS.get(error.name if isinstance(error, ModuleNotFoundError) else kind)
        words = "; ".join(filter(None, [_text(error), hint]))
        raise UserError(f"{where}: {words}") from error


def _place(error: BaseException) -> str:
    """The last line of a user's file that an error passed through; "" if it passed none."""
    passed = [
        (frame.f_code.co_filename, line, frame.f_code.co_name)
        for frame, line in walk_tb(error.__traceback__)
    ]
    if isinstance(error, SyntaxError):
        passed.append((error.filename or "", error.lineno or 0, "<module>"))
    for file, line, function in reversed([*passed, *CALLED.findall(str(error))]):
        if file in _known:
            within = "" if function == "<module>" else f", in {function}"
            return f"{_known[file]}, line {line}{within}"
    return ""


def _text(error: BaseException) -> str:
    """Kind and first line of an error, or of the one whose traceback it quotes."""
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    for pattern, words in OF_FIELDS:
        if match := re.fullmatch(pattern, said):
            return match.expand(words)
    lines = said.strip().splitlines()
    if CALLED.search(said):
        return lines[-1]
    return ": ".join([type(error).__name__, *lines[:1]])


@contextmanager
def imports_from(folder: Path) -> Iterator[None]:
    """In the block a folder of the user's is the first on the path.

    What is imported from there is the user's, too. It is forgotten afterwards: in another folder
    a module of the same name may be another one.
    """
    place, before = folder.absolute(), set(sys.modules)
    sys.path.insert(0, str(place))
    try:
        yield
    finally:
        sys.path.remove(str(place))
        for name in set(sys.modules) - before:
            top = name.partition(".")[0]
            file = Path(getattr(sys.modules[name], "__file__", None) or "")
            own = file == place / f"{top}.py" or file.is_relative_to(place / top)
            if own and top not in before:
                _known[str(file)] = folder / file.relative_to(place)
                del sys.modules[name]
