"""Parsers of arguments, and checks of these that several commands share.

Nothing of JAX or NumPy is imported: help, and mistakes in arguments, come at once.
"""

import argparse
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from scoremle.errors import UserError, as_flag, nearest, no_chain, no_labels, no_model
from scoremle.experiment.shipped import NAMES, place_of

MODEL = (
    "digits (it ships with the package), a working directory, a folder of diffusers,"
    " hf:OWNER/NAME, a .pt of improved- or guided-diffusion, a .safetensors of scoremle export"
    " or of EDM, or FILE.py:function"
)
UNDERSCORED = re.compile(r"--[a-z]+(_[a-z]+)+(?==|$)")


class Parser(argparse.ArgumentParser):
    """argparse, but mistakes are lines like all others, and help begins with examples.

    ``--eval_folder`` means ``--eval-folder``. Words and flags may come in any order. ``switches``
    are flags that mean ``true`` where they have no value.

    Args:
        text: a docstring: a paragraph that says what the command does, and one of examples.
        run: does the work. What it returns is printed with ``--json``.
        check: raises UserError for what the arguments name and can't be used.
        needs: a module that ``run`` imports and that takes seconds. It is imported before.
        **settings: those of argparse.
    """

    def __init__(
        self,
        *,
        text: str | None = "",
        run: Callable[[Any], Any] = print,
        check: Callable[[Any], None] | None = None,
        needs: str = "",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.run, self.check, self.needs, self.switches = run, check, needs, set[str]()
        self.describe(text)

    def describe(self, text: str | None) -> None:
        """Takes the description and the examples from the first two paragraphs of a docstring."""
        self.description, _, rest = (text or "").partition("\n\n")
        examples, _, _ = rest.partition("\n\n")
        self.examples = [line.strip() for line in examples.splitlines() if line.strip()]

    def add(self, names: str, help: str, *, group: Any = None, **settings: Any) -> None:
        """Adds an argument by its names, with a line about it, to a group if there is one."""
        (group or self).add_argument(*names.split(), help=help, **settings)

    def add_commands(
        self, runs: Mapping[str, Callable[[Any], Any]]
    ) -> Iterator[tuple[str, Callable[..., None]]]:
        """Adds commands of this one; yields the name of each, and what adds its arguments.

        Args:
            runs: what they run, by their names. Its docstring is their help.
        """
        commands = self.add_subparsers(dest="what", required=True, parser_class=Parser)
        for name, run in runs.items():
            first, _, _ = (run.__doc__ or "").partition("\n")
            yield name, commands.add_parser(name, text=run.__doc__, help=first).add

    def checked(self, arguments: Sequence[str]) -> Any:
        """The options that arguments mean. Raises UserError for a mistake in them."""
        options = self.parse_args(arguments)
        if self.check:
            self.check(options)
        return options

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The same, but for what ``check`` looks at."""
        given = [UNDERSCORED.sub(lambda flag: flag[0].replace("_", "-"), text) for text in args]
        given = [f"{text}=true" if text in self.switches else text for text in given]
        parse = self.parse_known_args if self._subparsers else self.parse_known_intermixed_args
        options, rest = parse(given, namespace)
        if rest:
            raise UserError(self.unknown(rest[0]))
        return options

    def unknown(self, argument: str) -> str:
        """The message for an argument that is none of the command's."""
        if not argument.startswith("-"):
            return f"unexpected argument {argument!r}; flags are written --name=value"
        flag, known = argument.partition("=")[0], list(self._option_string_actions)
        fields = [name for name in known if name.endswith(f".{flag.lstrip('-')}")]
        near = " or ".join(fields) or nearest(flag, known)
        return f"unknown flag {flag}" + f"; did you mean {near}?" * bool(near)

    def format_help(self) -> str:
        examples = "".join(f"  {example}\n" for example in self.examples)
        return "\n".join(filter(None, [examples, super().format_help()]))

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message} (see {self.prog} --help)")


def at_least(least: int, below: float = math.inf) -> Callable[[str], int]:
    """The type of an integer that is not below ``least``, but below ``below``."""

    def integer(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is no integer from {least}")
        if int(text) >= below:
            raise argparse.ArgumentTypeError(f"{text} is not below {below}")
        return int(text)

    return integer


def fraction(text: str) -> float:
    """The type of a number between 0 and 1."""
    if not 0 < (value := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


# The type of a seed. JAX takes 32 bits of it: a larger one would be another one.
seed = at_least(0, below=2**32)


# The names in data/readers/fits.py, whose import brings NumPy.
FITS = ("crop", "resize", "pad")


def add_shared(add: Callable[..., None]) -> None:
    """Adds the arguments of all commands that measure one's own images by a model."""
    add("--fit", "bring pictures of other sizes to the model's: crop the centre, resize the"
        " largest centred part, or pad all of it with black",
        choices=FITS, default="")  # fmt: skip
    add("--skip-bad", "go on without files that can't be used: the table has the reasons, and the"
        " exit code is 3", action="store_true")  # fmt: skip
    add("--checkpoint", "its number; unset: the newest", type=int)
    add("--force", "write over --out and --page", action="store_true")
    add("--json", "the summary as JSON, on stdout", action="store_true")


# Places ------------------------------------------------------------------------------------------


def check_exists(place: Path) -> None:
    """Raises UserError if nothing is at a place."""
    if not place.exists():
        raise UserError(f"there is no folder or file {place}")


def check_ending(flag: str, place: Path, *endings: str) -> None:
    """Raises UserError for the name of a file to write that has none of the endings."""
    if place.suffix.lower() not in endings:
        raise UserError(f"{flag}{place}: the name to write must end in {' or '.join(endings)}")


def check_model(options: Any) -> None:
    """Raises UserError for a model that is not there.

    What ``hf:`` and ``FILE.py:function`` name is left to the command. A label, and steps of its
    own, are refused for a model that was trained here: it has none.
    """
    place = place_of(options.model)
    if not (place.exists() or ":" in options.model):
        raise no_model(options.model, NAMES)
    if (place / "config.json").is_file() and not (place / "published.json").exists():
        if getattr(options, "label", ""):
            raise no_labels("--label")
        if getattr(options, "estimator", "") == "steps" and options.steps is None:
            raise no_chain(as_flag)


def check_file(flag: str, place: Path, *, force: bool = True) -> None:
    """Raises UserError where no file can be written, or one is that ``force`` must write over.

    Args:
        flag: how the user named the place; "" for the place alone.
        place: of the file.
        force: write over what is there.
    """
    folder = next(above for above in place.absolute().parents if above.exists())
    what = ""
    if place.is_symlink() and place.is_file():
        what = f"it is a link; name its target, {place.resolve()}"
    elif place.is_dir():
        what = "it is a folder; name a file to write"
    elif not _takes_files(folder):
        what = f"{folder} is none that can be written to; name a file to write"
    if what:
        raise UserError(f"can't write {flag}{place}: {what}")
    if place.exists() and not (force or names_stream(place)):
        raise UserError(f"{place} is there: --force writes over it, or name another file")


def names_stream(place: Path) -> bool:
    """Whether a place is a stream, such as /dev/stdout."""
    if not place.exists():
        return False
    from scoremle.files import is_stream  # imports NumPy, which most mistakes have no need of

    return is_stream(place)


def _takes_files(folder: Path) -> bool:
    """Whether a file can be made in a folder. In some, such as /proc, nobody may."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True
