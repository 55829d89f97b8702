"""Flags of the commands that run an experiment: ``train``, ``train-deq``, ``eval``, ``--mode=``.

``--config`` names a config of the package or a Python file with ``get_config()``; a working
directory that was begun knows its own. ``--config.<field>=VALUE`` sets one of its fields, by a
typed flag that ml_collections defines for it. Nothing of JAX is imported: mistakes come at once.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from scoremle.errors import UserError, nearest
from scoremle.experiment import defaults
from scoremle.experiment.config import (
    RECORD,
    Resolve,
    check_tuple,
    load_config,
    nearest_field,
    recorded_config,
)
from scoremle.experiment.configs import NAMED

__all__ = ["MODES", "Settings", "fields_of", "named_config", "parse", "split"]

MODES = ("train", "eval", "train_deq")
# What the words after a command stand for, and a command to copy.
WORDS = {
    "train": ("config", "workdir"), "eval": ("workdir",), "train_deq": ("workdir",),
    "plan": ("config",),
}  # fmt: skip
EXAMPLES = {
    "": "scoremle --config=digits --workdir=runs/digits --mode=train",
    "train": "scoremle train digits runs/digits",
    "eval": "scoremle eval runs/digits",
    "train_deq": "scoremle train-deq runs/digits",
    "plan": "scoremle plan digits",
}
FLOW_FOLDER = "flowpp_dequantizer"
TEXTS = {"workdir": None, "eval_folder": "eval", "deq_folder": FLOW_FOLDER, "coordinator": ""}
SWITCHES = ("print_config", "json", "distributed")
NUMBERS = ("processes", "process")
FLAGS = ("config", "mode", *TEXTS, *SWITCHES, *NUMBERS, "help", "version")
NAMES = [f"--{name}" for name in FLAGS]

OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")
ILLEGAL_FIELD = re.compile(r"flag --config\.([\w.]+)=(.*?): ", re.DOTALL)
DASHED = re.compile(r"--[a-z]+(-[a-z]+)+(=|$)")


@dataclass(frozen=True)
class Settings:
    """What one command line asks for; every field of the config is resolved.

    With ``distributed`` this process is one of several of a run; what is not said of these, the
    cluster says.
    """

    config: ConfigDict
    mode: str
    workdir: str
    eval_folder: str
    deq_folder: str
    print_config: bool
    json: bool
    distributed: bool
    coordinator: str
    processes: int | None
    process: int | None


def parse(argv: Sequence[str], mode: str = "") -> Settings:
    """Read the flags of a mode and its words; without a mode, ``--mode`` is one of the flags.

    Raises UserError for any mistake in them.
    """
    arguments = _as_flags([_underscored(argument) for argument in argv], mode)
    place, rest = split("config", arguments)
    config, resolve = named_config(place) if place is not None else _recorded(rest, mode)
    _check_overrides(rest, config)
    values = _parse_flags(_last_tuples(rest, config), config, mode)
    _check_tuples(config)
    for name in () if values.print_config or mode == "plan" else ("workdir", "mode"):
        if not values[name].value:
            raise _missing(name, mode)
    if values.json and values.mode not in ("eval", "plan") and not values.print_config:
        raise UserError("--json is for eval, and for --print-config")
    resolve(config)
    others: dict[str, Any] = {name: values[name].value or "" for name in ("mode", *TEXTS)}
    others |= {name: values[name].value for name in (*SWITCHES, *NUMBERS)}
    said = [others["coordinator"], *(str(others[name] or "") for name in NUMBERS)]
    return Settings(config, **{**others, "distributed": others["distributed"] or any(said)})


def split(flag: str, argv: Iterable[str]) -> tuple[str | None, list[str]]:
    """The value of a flag with a text (of the last, if repeated) and the other arguments."""
    found, rest = None, []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name not in (f"--{flag}", f"-{flag}"):
            rest.append(argument)
        elif equals:
            found = value
        else:
            found = next(arguments, None)
    return found, rest


def _underscored(argument: str) -> str:
    """--eval-folder as --eval_folder: either is understood."""
    if not DASHED.match(argument):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


# Words -------------------------------------------------------------------------------------------


def _as_flags(argv: list[str], mode: str) -> list[str]:
    """The words of a command as the flags that they stand for, before its other flags."""
    if not mode:
        return argv
    words, rest = _split_words(argv)
    names = WORDS[mode]
    alone = len(words) == 1 and split("workdir", rest)[0] is None
    if mode in ("train", "plan") and alone and (Path(words[0]) / RECORD).is_file():
        names = ("workdir",)  # it knows its config
    if len(words) > len(names):
        raise _unexpected(words[len(names)])
    return [*(f"--{name}={word}" for name, word in zip(names, words, strict=False)), *rest]


def _split_words(argv: list[str]) -> tuple[list[str], list[str]]:
    """The words that are no values of flags, and the rest."""
    fields = fields_of(defaults.get_config())
    alone = {f"config.{name}" for name, (kind, _) in fields.items() if kind is bool} | {*SWITCHES}
    words: list[str] = []
    rest: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        name = argument.lstrip("-")
        (words if name == argument else rest).append(argument)
        if name != argument and "=" not in name and name.removeprefix("no") not in alone:
            rest += islice(arguments, 1)
    return words, rest


def _unexpected(word: str) -> UserError:
    return UserError(f"unexpected argument {word!r}; flags are written --name=value")


def _missing(name: str, mode: str) -> UserError:
    word = name.upper() if name in WORDS.get(mode, ()) else f"--{name}"
    return UserError(f"missing {word}, such as in: {EXAMPLES[mode]}")


# Fields ------------------------------------------------------------------------------------------


def fields_of(config: ConfigDict, prefix: str = "") -> dict[str, tuple[type, Any]]:
    """Type and value of every field, by its dotted name."""
    found: dict[str, tuple[type, Any]] = {}
    for name in config:
        if isinstance(config[name], ConfigDict):
            found |= fields_of(config[name], f"{prefix}{name}.")
        else:
            found[prefix + name] = (config.get_type(name), config[name])
    return found


def named_config(place: str) -> tuple[ConfigDict, Resolve]:
    """As ``load_config``. Raises UserError too if the file's config lacks a field."""
    config, resolve = load_config(place)
    known = fields_of(config)
    missing = [name for name in fields_of(defaults.get_config()) if name not in known]
    if missing:
        raise UserError(
            f"config file {place} lacks the field {missing[0]};"
            " start from scoremle.experiment.defaults.get_config()"
        )
    return config, resolve


def _recorded(argv: list[str], mode: str) -> tuple[ConfigDict, Resolve]:
    """The config that the working directory was begun with; its flow dequantizer knows its own."""
    (workdir, _), (folder, _) = split("workdir", argv), split("deq_folder", argv)
    if not workdir:
        raise _missing(WORDS[mode][0] if mode else "config", mode)
    if mode in ("eval", "train_deq") and not Path(workdir).exists():
        hint = f"; first: scoremle train {workdir} runs/{workdir}" if workdir in NAMED else ""
        raise UserError(f"there is no folder {workdir}{hint}")
    if not (Path(workdir) / RECORD).is_file():
        raise UserError(
            f"{workdir} has no {RECORD}, which a training and scoremle import write: name the"
            " config, such as --config=digits"
        )
    config, flow = recorded_config(Path(workdir)), Path(workdir) / (folder or FLOW_FOLDER)
    if (flow / RECORD).is_file():
        of_flow = recorded_config(flow)
        if "train_deq" in (mode, split("mode", argv)[0]):
            config = of_flow
        config.deq.update(of_flow.deq)
    # What follows other fields follows them again, so that flags mean what they always mean.
    defaults.unresolve(config)
    return config, defaults.resolve


def _check_overrides(argv: list[str], config: ConfigDict) -> None:
    known = fields_of(config)
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
    return f"unknown field {name}{nearest_field(name, known)}"


def _check_tuples(config: ConfigDict) -> None:
    """Flags of tuples take elements of any type; here they get that of the default's."""
    fields = fields_of(config)
    for name, (kind, value) in fields_of(defaults.get_config()).items():
        if kind is tuple:
            element = type(value[0])
            given = fields[name][1]
            if not all(type(item) is element for item in given):
                raise UserError(f"{name} must be a tuple of {element.__name__}, got {given}")


# Flags -------------------------------------------------------------------------------------------


def _last_tuples(argv: list[str], config: ConfigDict) -> list[str]:
    """The arguments, of those that set one tuple only the last: absl would join their values."""
    fields = fields_of(config)
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


def _parse_flags(argv: list[str], config: ConfigDict, mode: str) -> flags.FlagValues:
    """Set the fields of the config, in place, and give the other flags."""
    values = flags.FlagValues()
    # A flag anywhere is a flag, also after a stray word, which is then what the message names.
    values.set_gnu_getopt(True)
    for name, text in TEXTS.items():
        flags.DEFINE_string(name, text, "", flag_values=values)
    for name in SWITCHES:
        flags.DEFINE_boolean(name, False, "", flag_values=values)
    for name in NUMBERS:
        flags.DEFINE_integer(name, None, "", lower_bound=0, flag_values=values)
    if not mode:
        flags.DEFINE_enum("mode", None, MODES, "", flag_values=values)
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        stray = values(["scoremle", *argv])[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(_unknown_flag(error.flagname, fields_of(config))) from error
    except flags.Error as error:
        raise UserError(_flag_error(str(error), config)) from error
    if stray:
        raise _unexpected(stray[0])
    if mode:
        flags.DEFINE_string("mode", mode, "", flag_values=values)
    return values


def _unknown_flag(name: str, fields: Iterable[str]) -> str:
    meant = [f"--config.{field}" for field in fields if f".{field}".endswith(f".{name}")]
    near = " or ".join(meant) or nearest(f"--{name}", NAMES)
    return f"unknown flag --{name}" + (f"; did you mean {near}?" if near else "")


def _flag_error(text: str, config: ConfigDict) -> str:
    match = ILLEGAL_FIELD.match(text)
    if not match:
        return text.splitlines()[0]
    kind = fields_of(config)[match[1]][0].__name__
    return f'{match[1]} must be {kind}, got "{match[2]}"'
