"""Commands: ``scoremle NAME ...``. ``COMMANDS`` is the whole list.

A command whose arguments stand in ``cli/parsers/`` is a module with ``run(options)``; any other
is one with ``main(arguments)``. It is imported once its arguments are known to be good.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from scoremle.errors import UserError

__all__ = ["COMMANDS", "SELDOM", "Parser", "Partly"]

# Name on the command line -> module, and one line of help. In the order of a first use.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("scoremle.cli.commands.experiment", "train a model, or go on training it"),
    "eval": ("scoremle.cli.commands.experiment", "bits/dim of a whole test set, with errors"),
    "sample": ("scoremle.cli.commands.sample", "samples of a model, as a picture or an array"),
    "score": (
        "scoremle.cli.commands.score",
        "the likelihood of each of your own images, as a CSV",
    ),
    "report": ("scoremle.cli.commands.report", "a page about a working directory, to look at"),
    "compare": (
        "scoremle.cli.commands.compare",
        "two models on the same images: the difference and its error",
    ),
    "data": ("scoremle.cli.commands.data", "prepare a data set, or look at one"),
    "plan": ("scoremle.cli.commands.plan", "what a config will take: memory, time, on k devices"),
    "verify": ("scoremle.cli.commands.verify", "whether what lies there is as it was written"),
    "env": ("scoremle.cli.commands.env", "versions, devices, folders: for a report of a fault"),
    "help": ("scoremle.cli.help", "a command; config: every field; exit-codes"),
    "train-deq": ("scoremle.cli.commands.experiment", "train a flow dequantizer for a model"),
    "stats": ("scoremle.cli.commands.stats", "features of a data set, to compare samples with"),
    "import": (
        "scoremle.cli.commands.import_checkpoint",
        "a published checkpoint: what it is, and a workdir of it",
    ),
    "export": (
        "scoremle.cli.commands.export_checkpoint",
        "a checkpoint in the published format, or as safetensors",
    ),
    "convert-inception": (
        "scoremle.cli.commands.convert_inception",
        "PyTorch's weights of the Inception network, as ours",
    ),
    "completion": (
        "scoremle.cli.commands.completion",
        "a script that completes words, for bash, zsh or fish",
    ),
}
# Those that few need.
SELDOM = (
    "train-deq", "stats", "import", "export", "convert-inception", "completion",
)  # fmt: skip


class Partly(NamedTuple):
    """What a command gives that is done but for something that it was told to leave out."""

    result: Any


class Parser(argparse.ArgumentParser):
    """argparse, but complaints are lines like all others, and help begins with examples.

    ``check`` raises UserError for what the arguments name and can't be used. It comes after the
    arguments are parsed, and before the command is imported.
    """

    def __init__(
        self,
        *,
        examples: tuple[str, ...] = (),
        check: Callable[[Any], None] = lambda options: None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.examples, self.check = examples, check

    def format_help(self) -> str:
        examples = "".join(f"  {example}\n" for example in self.examples)
        return "\n".join(filter(None, [examples, super().format_help()]))

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message} (see {self.prog} --help)")
