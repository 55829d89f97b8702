"""The command line: which command is meant, and how the program ends.

Everything heavy is imported after the arguments are known to be good: ``--help`` and messages
about mistakes come at once.
"""

import gc
import importlib
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from scoremle.cli.cache import keep_programs
from scoremle.cli.commands import COMMANDS, parser_of
from scoremle.cli.commands.help import config_table, screen
from scoremle.cli.signals import answered
from scoremle.errors import Stopped, UserError, in_a_line, nearest, out_of_memory
from scoremle.experiment.own_code import mistakes
from scoremle.terminal import Formatter, complain, is_stdout, passing, say, say_mistake, unsaid

__all__ = ["main"]

# What a user can do where memory does not suffice, in commands with a config and in others.
LESS_MEMORY = (
    "lower training.batch_size or eval.batch_size, data.image_size, eval.probes or model.nf"
)
LESS_AT_ONCE = "take fewer images or passes, or smaller images"

# New objects from which Python looks for garbage, in place of 700. JAX makes millions while it
# reads a program, and little garbage: looking took a tenth of the time of a short command.
SELDOM = 10_000
DEBUG, HELP = "--debug", ("-h", "-help", "--help")
# How JAX reports a UserError that is raised within a compiled program, as by a PyTorch module.
MISTAKE = f"\n{UserError.__name__}: "


def main(argv: list[str] | None = None) -> int:
    """Runs the command line (without the program's name); gives the exit code.

    0: done; 1: a fault, with a traceback; 2: a user's mistake; 3: done, but files were left out;
    4: suspects were found (``--fail-on-suspects``); 130 and 143: stopped by Ctrl-C and by
    SIGTERM. ``--debug``, anywhere, also prints the libraries' own messages.

    Args:
        argv: the words after the program's name; None: those of this process.
    """
    given = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may have any character
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = [argument for argument in given if argument != DEBUG]
    try:
        with _logged(logging.DEBUG if DEBUG in given else logging.INFO), _warned(), mistakes():
            code = _run(arguments)
            sys.stdout.flush()
            return say_mistake(words) if (words := unsaid()) else code
    except SystemExit as end:  # Stopped; argparse, after it printed a command's help
        if isinstance(end, Stopped) and end.words:
            complain(in_a_line(f"scoremle: stopped; {end.words}"))
        return int(end.code or 0)
    except BrokenPipeError:  # whoever read a command's help has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except UserError as error:
        return say_mistake(str(error))
    except OSError as error:  # no permission, no space, no folder
        what = error.strerror or str(error)
        return say_mistake(what if error.filename is None else f"{error.filename}: {what}")
    except (MemoryError, RuntimeError) as error:
        if MISTAKE in str(error):
            return say_mistake(str(error).rpartition(MISTAKE)[2])
        if not out_of_memory(error):
            raise
        words = ": ".join(filter(None, ["out of memory", str(error).strip()]))
        return say_mistake(f"{words}; {_less_memory(arguments)}")
    except KeyboardInterrupt as interrupt:
        words = "; ".join(["scoremle: interrupted", *map(str, interrupt.args)])
        complain(in_a_line(words))
        return 130


def _less_memory(arguments: list[str]) -> str:
    name = _name_of(arguments)
    return LESS_MEMORY if name in ("", "train", "train-deq", "eval", "plan") else LESS_AT_ONCE


def _run(arguments: list[str]) -> int:
    """Runs a command and returns its exit code.

    ``--json`` prints its result and nothing else. Where a file to write is standard output, what
    is said goes to standard error.
    """
    name = _name_of(arguments)
    if name is None:
        return 0 if arguments else 2
    parser = parser_of(name)
    options = parser.checked(arguments[1:] if name else arguments)
    keep_programs()
    if parser.needs:
        with passing("loading"):
            importlib.import_module(parser.needs)
    gc.set_threshold(SELDOM)
    gc.enable()
    as_json = getattr(options, "json", False)
    places = (getattr(options, name, None) for name in ("out", "page"))
    is_taken = any(is_stdout(Path(place)) for place in places if place)
    if as_json and is_taken:
        raise UserError("--json prints to standard output, too: name a file to write")
    with (
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere if as_json else sys.stderr if is_taken else sys.stdout),
        answered() if parser.needs else nullcontext(),
    ):
        found = parser.run(options)
    if as_json:
        say(*json.dumps(found, indent=2).splitlines())
    if found and found.get("suspects") and getattr(options, "fail_on_suspects", False):
        return 4
    return 3 if found and found.get("left_out") else 0


def _name_of(arguments: list[str]) -> str | None:
    """The command that is meant, "" in the published form; None where all is said."""
    name, others = next(iter(arguments), ""), [word for word in arguments if word not in HELP]
    if name in COMMANDS:
        return name
    if not arguments:
        print(screen(), file=sys.stderr)
    elif len(others) < len(arguments):
        config = parser_of("").parse_args(others).config
        print(config_table(config) if config else screen())
    elif "--version" in arguments:
        print(importlib.import_module("scoremle.cli.commands.env").version())
    elif name.startswith("-"):
        return ""
    else:
        near = nearest(name.replace("_", "-"), COMMANDS)
        hint = f"did you mean {near}?" if near else f"there are: {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}; {hint}")
    return None


@contextmanager
def _logged(least: int) -> Iterator[None]:
    """Prints on stderr what this package logs, from a level on, unless Python set another."""
    logger, handler = logging.getLogger("scoremle"), logging.StreamHandler()
    level = logger.level
    # It prints the traceback of an error that is raised, and said in a line.
    callbacks = logging.getLogger("jax._src.callback")
    callbacks.disabled = least > logging.DEBUG
    handler.setFormatter(Formatter())
    logger.addHandler(handler)
    logger.setLevel(level or least)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = True
        callbacks.disabled = False


@contextmanager
def _warned() -> Iterator[None]:
    """Prints Python's warnings to users as lines, without their places in the code."""
    before = warnings.showwarning

    def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        if category is UserWarning:
            logging.getLogger(__name__).warning("%s", message)
        else:
            before(message, category, *place, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
