"""The command line: flags, ``--help``, one clear line for each mistake, modes and commands.

``--config`` names a config of the package or a Python file with ``get_config()``;
``--config.<field>=VALUE`` sets one of its fields, by a typed flag that ml_collections defines for
it. Everything heavy is imported after the flags are read: ``--help`` and messages about flags come
at once.
"""

import difflib
import importlib
import logging
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

import scoremle
from scoremle.cli.commands import COMMANDS
from scoremle.errors import UserError
from scoremle.experiment import defaults
from scoremle.experiment.config import NAMED, check_tuple, load_config
from scoremle.terminal import Formatter, printable

__all__ = ["Settings", "main", "parse"]

FLAGS = ("--config", "--workdir", "--mode", "--eval_folder", "--deq_folder", "--help", "--version")
MODES = ("train", "eval", "train_deq")
USAGE = """\
usage: scoremle --config=CONFIG --workdir=DIR --mode=MODE [--config.FIELD=VALUE ...]

  --config=CONFIG     a config by its name, such as digits, or a Python file with get_config()
  --workdir=DIR       folder of the checkpoints and results
  --mode=MODE         train, eval or train_deq
  --eval_folder=NAME  folder in the workdir for what eval writes (default: eval)
  --deq_folder=NAME   folder in the workdir for the flow dequantizer that train_deq trains
                      (default: flowpp_dequantizer)
  --config.FIELD=VALUE sets a field of the config; booleans also as --config.F and --noconfig.F
  --help              this text, with the values of CONFIG if it is given
  --version           the version
"""

# What XLA says where memory does not suffice, and what a user can do then.
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
LESS_MEMORY = (
    "lower training.batch_size or eval.batch_size, data.image_size, eval.probes or model.nf"
)

# One line of experiment/defaults.py: config.<field> = <value>  # <meaning>
FIELD_LINE = re.compile(r"^    config\.([\w.]+) = .*?  # (.*)$", re.MULTILINE)
OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")
ILLEGAL_FIELD = re.compile(r"flag --config\.([\w.]+)=(.*?): ", re.DOTALL)


@dataclass(frozen=True)
class Settings:
    """What one command line asks for; every field of the config is resolved."""

    config: ConfigDict
    workdir: str
    mode: str
    eval_folder: str
    deq_folder: str


def main(argv: list[str] | None = None) -> int:
    """Run the command line (without the program's name); gives the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        with _warnings():
            return _run(arguments)
    except SystemExit as end:  # argparse, after it printed a command's help
        return int(end.code or 0)
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except UserError as error:
        return _mistake(str(error))
    except OSError as error:  # no permission, no space, no folder
        what = error.strerror or str(error)
        return _mistake(what if error.filename is None else f"{error.filename}: {what}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and OUT_OF_MEMORY not in str(error):
            raise
        words = ": ".join(filter(None, ["out of memory", str(error).strip()]))
        return _mistake(f"{words}; {LESS_MEMORY}")
    except KeyboardInterrupt as interrupt:
        print("; ".join(["scoremle: interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return 130


def _mistake(text: str) -> int:
    print(f"scoremle: error: {' '.join(printable(text).splitlines())}", file=sys.stderr)
    return 2


def _run(arguments: list[str]) -> int:
    if not arguments:
        print(_usage(), end="", file=sys.stderr)
        return 2
    if arguments[0] in COMMANDS:
        importlib.import_module(COMMANDS[arguments[0]][0]).main(arguments[1:])
    elif {"--help", "-help", "-h"} & set(arguments):
        print(_help(arguments))
    elif "--version" in arguments:
        print(f"scoremle {scoremle.__version__}")
    elif not arguments[0].startswith("-"):
        raise UserError(_unknown_command(arguments[0]))
    else:
        _run_mode(parse(arguments))
    return 0


def _run_mode(settings: Settings) -> None:
    from scoremle.experiment import run

    try:
        run.run(
            settings.mode, settings.config, settings.workdir, settings.eval_folder,
            settings.deq_folder,
        )  # fmt: skip
    except KeyboardInterrupt:
        if settings.mode != "eval":
            raise
        raise KeyboardInterrupt("the same command goes on where it was") from None


def _unknown_command(word: str) -> str:
    if word in MODES:
        return f"unknown command {word!r}; did you mean --mode={word}?"
    hint = _nearest(word, COMMANDS) or f"; there are: {', '.join(COMMANDS)}"
    return f"unknown command {word!r}{hint}"


@contextmanager
def _warnings() -> Iterator[None]:
    """Warnings of this package on stderr as lines like those of errors."""
    logger, handler = logging.getLogger("scoremle"), logging.StreamHandler()
    handler.setFormatter(Formatter("scoremle: warning: %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


def parse(argv: list[str]) -> Settings:
    """Read the flags (without the program's name). Raises UserError for any mistake in them."""
    place, rest = _split_config(argv)
    if place is None:
        raise UserError("missing --config, such as --config=digits")
    config, resolve = load_config(place)
    _check_names(rest, config, place)
    values = _parse_flags(_last_tuples(rest, config), config)
    _check_tuples(config)
    for name in ("workdir", "mode"):
        if not values[name].value:
            raise UserError(f"missing --{name}")
    resolve(config)
    return Settings(
        config, values.workdir, values.mode, values.eval_folder, values.deq_folder
    )


def _split_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """The value of --config (of the last, if repeated) and the other arguments."""
    place, rest = None, []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name not in ("--config", "-config"):
            rest.append(argument)
        elif equals:
            place = value
        else:
            place = next(arguments, None)
    return place, rest


# Fields ------------------------------------------------------------------------------------------


def _fields(config: ConfigDict, prefix: str = "") -> dict[str, tuple[type, Any]]:
    """Type and value of every field, by its dotted name."""
    found: dict[str, tuple[type, Any]] = {}
    for name in config:
        if isinstance(config[name], ConfigDict):
            found |= _fields(config[name], f"{prefix}{name}.")
        else:
            found[prefix + name] = (config.get_type(name), config[name])
    return found


def _check_names(argv: list[str], config: ConfigDict, place: str) -> None:
    known = _fields(config)
    missing = [name for name in _fields(defaults.get_config()) if name not in known]
    if missing:
        raise UserError(
            f"config file {place} lacks the field {missing[0]};"
            " start from scoremle.experiment.defaults.get_config()"
        )
    for argument in argv:
        match = OVERRIDE.match(argument)
        if match and match[1] not in known:
            raise UserError(_unknown_field(match[1], known))
        if match and known[match[1]][0] is tuple:
            check_tuple(match[1], argument.partition("=")[2])


def _unknown_field(name: str, known: Iterable[str]) -> str:
    inside = [field for field in known if field.startswith(f"{name}.")]
    if inside:
        return f"{name} is a group of fields; set one of them, such as {inside[0]}"
    return f"unknown field {name}{_nearest(name, known)}"


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _check_tuples(config: ConfigDict) -> None:
    """Flags of tuples take elements of any type; here they get that of the default's."""
    fields = _fields(config)
    for name, (kind, value) in _fields(defaults.get_config()).items():
        if kind is tuple:
            element = type(value[0])
            given = fields[name][1]
            if not all(type(item) is element for item in given):
                raise UserError(f"{name} must be a tuple of {element.__name__}, got {given}")


# Flags -------------------------------------------------------------------------------------------


def _last_tuples(argv: list[str], config: ConfigDict) -> list[str]:
    """The arguments, of those that set one tuple only the last: absl would join their values."""
    fields = _fields(config)
    kept: dict[str | int, list[str]] = {}
    arguments = enumerate(argv)
    for place, argument in arguments:
        match = OVERRIDE.match(argument)
        name = match[1] if match and fields[match[1]][0] is tuple else place
        kept.pop(name, None)
        kept[name] = [argument]
        if name != place and "=" not in argument:
            kept[name] += [value for _, value in islice(arguments, 1)]
    return [argument for group in kept.values() for argument in group]


def _parse_flags(argv: list[str], config: ConfigDict) -> flags.FlagValues:
    """Set the fields of the config, in place, and give the other flags."""
    values = flags.FlagValues()
    # A flag anywhere is a flag, also after a stray word, which is then what the message names.
    values.set_gnu_getopt(True)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_enum("mode", None, MODES, "", flag_values=values)
    flags.DEFINE_string("eval_folder", "eval", "", flag_values=values)
    flags.DEFINE_string("deq_folder", "flowpp_dequantizer", "", flag_values=values)
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        stray = values(["scoremle", *argv])[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(_unknown_flag(error.flagname, _fields(config))) from error
    except flags.Error as error:
        raise UserError(_flag_error(str(error), config)) from error
    if stray:
        raise UserError(f"unexpected argument {stray[0]!r}; flags are written --name=value")
    return values


def _unknown_flag(name: str, fields: Iterable[str]) -> str:
    meant = [f"--config.{field}" for field in fields if f".{field}".endswith(f".{name}")]
    hint = f"; did you mean {' or '.join(meant)}?" if meant else _nearest(f"--{name}", FLAGS)
    return f"unknown flag --{name}{hint}"


def _flag_error(text: str, config: ConfigDict) -> str:
    match = ILLEGAL_FIELD.match(text)
    if not match:
        return text.splitlines()[0]
    kind = _fields(config)[match[1]][0].__name__
    return f'{match[1]} must be {kind}, got "{match[2]}"'


# Help --------------------------------------------------------------------------------------------


def _help(argv: list[str]) -> str:
    place, _ = _split_config(argv)
    config = load_config(place)[0] if place else defaults.get_config()
    place = place or "experiment/defaults.py"
    _check_names([], config, place)
    names = textwrap.fill(f"configs: {', '.join(NAMED)}", 99, subsequent_indent="  ")
    return f"{_usage()}\n{names}\n\nfields of {place}:\n\n{_field_table(config)}"


def _usage() -> str:
    commands = "".join(f"  scoremle {name:20}{what}\n" for name, (_, what) in COMMANDS.items())
    return USAGE + commands


def _field_table(config: ConfigDict) -> str:
    """Name, type, value and meaning of each field, the meaning from experiment/defaults.py."""
    meanings = dict(FIELD_LINE.findall(Path(defaults.__file__).read_text(encoding="utf-8")))
    rows = [("field", "type", "default", "meaning")]
    fields = _fields(config)
    # In the order of experiment/defaults.py, which is by importance; a config iterates by name.
    for name in dict.fromkeys([*meanings, *fields]):
        kind, value = fields[name]
        shown = "unset" if value is None else repr(value)
        rows.append((name, kind.__name__, shown, meanings.get(name, "")))
    names, kinds, values = (max(len(row[column]) for row in rows) for column in range(3))
    return "\n".join(f"{a:{names}}  {b:{kinds}}  {c:{values}}  {d}" for a, b, c, d in rows)
