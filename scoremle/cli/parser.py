"""Parsers of arguments.

Nothing of JAX or NumPy is imported: help, and mistakes in arguments, come at once.
"""

import argparse
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from scoremle.errors import UserError, nearest

MODEL = (
    "digits (it ships with the package), a working directory, a folder of diffusers,"
    " hf:OWNER/NAME, a .pt of improved- or guided-diffusion, a .safetensors of scoremle export"
    " or of EDM, a training state of VDM, i-DODE or MuLAN, or FILE.py:function"
)
UNDERSCORED = re.compile(r"^--[a-z]+(_[a-z]+)+(?==|$)")
# A folder of a user behind a flag, which no shell finds there.
HOME = re.compile(r"^(--[\w.-]+=)(~[^/]*)")


def _place(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty name is not a place")
    return Path(text)


class Parser(argparse.ArgumentParser):
    """argparse, but mistakes are lines like all others, and help begins with examples.

    ``--eval_folder`` means ``--eval-folder``, and ``--out=~/x`` a place in the user's folder.
    Words and flags may come in any order. ``switches`` are flags that mean ``true`` where they
    have no value.

    Args:
        text: a docstring: a paragraph that says what the command does, and one of examples.
        **settings: those of argparse.
    """

    # Does the work. What it returns is printed with ``--json``.
    run: Callable[[Any], Any]
    # Raises UserError for what the arguments name and can't be used.
    check: Callable[[Any], None] | None = None
    # A module that ``run`` imports and that takes seconds. It is imported before.
    needs = ""

    def __init__(self, *, text: str | None = "", **settings: Any) -> None:
        super().__init__(**settings)
        self.switches = set[str]()
        self._below = dict[str, Parser]()
        self.describe(text)

    def describe(self, text: str | None) -> None:
        """Takes the description and the examples from the first two paragraphs of a docstring."""
        self.description, _, rest = (text or "").partition("\n\n")
        examples, _, _ = rest.partition("\n\n")
        self.examples = [line.strip() for line in examples.splitlines() if line.strip()]

    def add(self, names: str, help: str, *, group: Any = None, **settings: Any) -> None:
        """Adds an argument by its names, with a line about it, to a group if there is one.

        A path may not be empty, as of an unset variable: it would be the current folder.
        """
        if settings.get("type") is Path:
            settings["type"] = _place
        (group or self).add_argument(*names.split(), help=help, **settings)

    def add_commands(
        self, runs: Mapping[str, Callable[[Any], Any]]
    ) -> Iterator[tuple[str, Callable[..., None]]]:
        """Adds commands of this one; yields the name of each, and what adds its arguments.

        Args:
            runs: what they run, by their names. Its docstring is their help.
        """
        commands = self.add_subparsers(
            dest="what", metavar="COMMAND", required=True, parser_class=Parser
        )
        for name, run in runs.items():
            first, _, _ = (run.__doc__ or "").partition("\n")
            self._below[name] = commands.add_parser(name, text=run.__doc__, help=first)
            yield name, self._below[name].add

    def checked(self, arguments: Sequence[str]) -> Any:
        """The options that arguments mean. Raises UserError for a mistake in them."""
        options = self.parse_args(arguments)
        if self.check:
            self.check(options)
        return options

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses arguments, without ``check``. Raises UserError for an unknown one."""
        end = args.index("--") if "--" in args else len(args)
        flags, names = args[:end], args[end + 1 :]
        names = [f"./{name}" if name.startswith("-") else name for name in names]
        given = [UNDERSCORED.sub(lambda flag: flag[0].replace("_", "-"), text) for text in flags]
        given = [HOME.sub(lambda of: of[1] + os.path.expanduser(of[2]), text) for text in given]
        given = [f"{text}=true" if text in self.switches else text for text in given]
        parse = self.parse_known_args if self._subparsers else self.parse_known_intermixed_args
        options, rest = parse([*given, *names], namespace)
        if rest and rest[0].startswith("./-"):
            raise UserError(f"{rest[0][2:]} is not a flag after --: name it before")
        if rest:
            meant = self._below[options.what] if self._below else self
            raise UserError(meant.unknown(rest[0]))
        return options

    def unknown(self, argument: str) -> str:
        """The message for an argument that the command does not have."""
        if not argument.startswith("-"):
            places = [] if self._subparsers else self._get_positional_actions()
            names = " and ".join(str(each.metavar or each.dest) for each in places)
            takes = f": {self.prog} takes {names}" * bool(names)
            return f"unexpected argument {argument!r}{takes}; flags are written --name=value"
        flag, known = argument.partition("=")[0], list(self._option_string_actions)
        fields = [name for name in known if name.endswith(f".{flag.lstrip('-')}")]
        spelled = {name.lstrip("-"): name for name in known}
        near = " or ".join(fields) or spelled.get(nearest(flag.lstrip("-"), spelled))
        hint = f"did you mean {near}?" if near else f"see {self.prog} --help"
        return f"unknown flag {flag}; {hint}"

    def format_help(self) -> str:
        examples = "".join(f"  {example}\n" for example in self.examples)
        return "\n".join(filter(None, [examples, super().format_help()]))

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message} (see {self.prog} --help)")


# The names in data/readers/fits.py, whose import brings NumPy.
FITS = ("crop", "resize", "pad")


def add_shared(add: Callable[..., None], unset: str = "the newest") -> None:
    """Adds the arguments of all commands that measure one's own images by a model.

    Args:
        add: adds one.
        unset: which checkpoint is taken where none is named.
    """
    add("--fit", "bring pictures of other sizes to the model's: crop the centre, resize the"
        " largest centred part, or pad all of it with black",
        choices=FITS, default="")  # fmt: skip
    add("--skip-bad", "leave out files that can't be used; each is named with its reason, and the"
        " exit code is 3", action="store_true")  # fmt: skip
    add("--checkpoint", f"number of the checkpoint; unset: {unset}", type=int)
    add("--force", "overwrite files that exist", action="store_true")
    add("--json", "the summary as JSON, on stdout", action="store_true")
