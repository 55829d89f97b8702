"""Flags that name a config and set its fields: ``--config=NAME --config.FIELD=VALUE``.

A config is one of the package, by its name, or a Python file with ``get_config()``. A working
directory that was begun has its own.
"""

import ast
import re
from argparse import SUPPRESS
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from scoremle.cli.parser import Parser
from scoremle.errors import UserError
from scoremle.experiment import defaults
from scoremle.experiment.config import (
    CONFIG_RECORD,
    Resolve,
    check_types,
    fields_of,
    load_config,
    nearest_field,
    recorded_config,
)
from scoremle.experiment.configs import NAMED_CONFIGS
from scoremle.experiment.folders import FLOW_FOLDER

# One line of experiment/defaults.py: config.<field> = <value>  # <meaning>
FIELD_LINE = re.compile(r"^    config\.([\w.]+) = .*?  # (.*)$", re.MULTILINE)
MEANINGS = dict(FIELD_LINE.findall(Path(defaults.__file__).read_text(encoding="utf-8")))
# Fields of config.model that the network vdm does not read: the log-SNR is its time, and it never
# halves the image.
NOT_OF_VDM = {
    "ch_mult", "conditional", "embedding", "embedding_type", "fir", "fir_kernel", "fourier_scale",
    "init_scale", "nonlinearity", "progressive", "progressive_combine", "progressive_input",
    "resamp_with_conv", "resblock_type", "scale_by_sigma", "skip_rescale", "trainable_embedding",
}  # fmt: skip
FLAG = re.compile(r"--(?:no)?config\.([^=]*)")
TRUTH = dict.fromkeys(("true", "t", "1"), True) | dict.fromkeys(("false", "f", "0"), False)
# The value that a text means, where it is not the type's own way to read it.
READ: dict[type, Callable[[str], Any]] = {
    bool: lambda text: TRUTH.get(text.lower()),
    tuple: ast.literal_eval,
}


class ConfigParser(Parser):
    """A parser with a flag for each field of a config. It sets ``options.config`` to the config.

    With ``--print-config`` that is printed, and nothing else is run.
    """

    def add_config(self, mode: str, **words: str) -> None:
        """Adds the flags of a config.

        Args:
            mode: that of the command; "": a flag names it.
            **words: help of the arguments without a flag: ``config``, ``workdir``.
        """
        self.usage = " ".join(
            [self.prog, *map(str.upper, words), "[--config.FIELD=VALUE ...] [FLAGS]"]
        )
        self.allow_abbrev, self.check, self._words = False, self._set_config, words
        self.set_defaults(mode=mode, deq_folder=FLOW_FOLDER)
        for word, what in words.items():
            self.add(word, what, nargs="?", default=SUPPRESS, metavar=word.upper())
        own = "another config than that of the workdir, by name or as a file"
        self.add("--config", SUPPRESS if "config" in words else own)
        self.add("--workdir", SUPPRESS)
        self.add("--config.FIELD", "set a field of the config; scoremle help config lists them",
                 metavar="VALUE", default=SUPPRESS)  # fmt: skip
        self.add("--print-config", "print the config, flags included, and do nothing else",
                 action="store_true")  # fmt: skip
        of_result = "the result, or " * (not mode.startswith("train"))
        self.add("--json", f"print {of_result}that of --print-config, as JSON",
                 action="store_true")  # fmt: skip
        fields = self.add_argument_group()
        self._action_groups.remove(fields)  # help does not list them
        for name, (kind, _) in fields_of(defaults.get_config()).items():
            flag, meaning = f"config.{name}", MEANINGS[name]
            self.add(f"--{flag}", meaning, group=fields, metavar="VALUE", default=SUPPRESS)
            if kind is bool:
                self.switches.add(f"--{flag}")
                self.add(f"--no{flag}", meaning, group=fields, dest=flag, action="store_const",
                         const="false", default=SUPPRESS)  # fmt: skip

    def unknown(self, argument: str) -> str:
        """The message for an argument that the command does not have."""
        match = FLAG.match(argument)
        if match is None:
            return super().unknown(argument)
        inside = [name for name in MEANINGS if name.startswith(f"{match[1]}.")]
        if inside:
            return f"{match[1]} is a group of fields; set one of them, such as {inside[0]}"
        if match[1] in MEANINGS:
            return f"--noconfig. is for fields that are true or false, and {match[1]} is not"
        return f"unknown field {match[1]}{nearest_field(match[1], MEANINGS)}"

    def _set_config(self, options: Any) -> None:
        given = options.config and not options.workdir
        if given and _is_there(Path(options.config) / CONFIG_RECORD):
            options.workdir, options.config = options.config, None  # it has its config
        own = options.config is None
        config, resolve = self._recorded(options) if own else load_config(options.config)
        set_here = set[str]()
        for name, (kind, _) in fields_of(config).items():
            if (text := getattr(options, f"config.{name}", None)) is not None:
                config.update_from_flattened_dict({name: _value(name, kind, text)})
                set_here.add(name.removeprefix("model."))
        check_types(config)
        unread = sorted(set_here & NOT_OF_VDM) if config.model.name.lower() == "vdm" else []
        if unread:
            raise UserError(f"model.{unread[0]} is not of model.name=vdm: leave it out")
        resolve(config)
        options.config = config
        if options.print_config:
            self.run, self.needs = _print, ""
        for needed in ("workdir", "mode"):
            if not (getattr(options, needed) or options.print_config or options.mode == "plan"):
                raise self._missing(needed)

    def _missing(self, name: str) -> UserError:
        word = name.upper() if name in self._words else f"--{name}"
        return UserError(f"missing {word}, such as in: {self.examples[0]}")

    def _recorded(self, options: Any) -> tuple[ConfigDict, Resolve]:
        """The config of the working directory; its flow dequantizer has one of its own."""
        if not options.workdir:
            raise self._missing(next(iter(self._words), "config"))
        workdir = Path(options.workdir)
        if options.mode in ("eval", "train_deq") and not workdir.exists():
            hint = f"; first: scoremle train {workdir} runs/{workdir}"
            hint *= str(workdir) in NAMED_CONFIGS
            raise UserError(f"there is no folder {workdir}{hint}")
        if not _is_there(workdir / CONFIG_RECORD):
            raise UserError(
                f"{workdir} has no {CONFIG_RECORD}, which a training and scoremle import write:"
                " name the config, such as --config=digits"
            )
        config, flow = recorded_config(workdir), workdir / options.deq_folder
        if _is_there(flow / CONFIG_RECORD):
            of_flow = recorded_config(flow)
            if options.mode == "train_deq":
                config = of_flow
            config.deq.update(of_flow.deq)
        # Fields that follow others follow them again, so that flags mean what they always mean.
        defaults.unresolve(config)
        return config, defaults.resolve


def _is_there(path: Path) -> bool:
    """Whether a file is there. Raises UserError where its folder can't be read."""
    try:
        path.lstat()
    except PermissionError as error:
        raise UserError(f"{path.parent} can't be read: {error.strerror}") from None
    except (OSError, ValueError):
        return False
    return True


def _print(options: Any) -> dict[str, Any]:
    """Prints the config, flags included, and returns it."""
    for name, (_, value) in fields_of(options.config).items():
        print(f"{name} = {'unset' if value is None else repr(value)}")
    return options.config.to_dict()


def _value(name: str, kind: type, text: str) -> Any:
    """The value of a field that a text means. Raises UserError if it means none."""
    try:
        value = READ.get(kind, kind)(text)
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, kind):
        such = ' such as "(1,2)", or "(1,)" of one element' * (kind is tuple)
        raise UserError(f'{name} must be {kind.__name__}{such}, got "{text}"')
    return value
