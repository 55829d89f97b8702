"""Commands that need no config: ``scoremle NAME ...``, one module each, with a function ``main``.

``COMMANDS`` is the whole list. A module is imported only when its command runs.
"""

import argparse
from typing import NoReturn

from scoremle.errors import UserError

__all__ = ["COMMANDS", "Parser"]

# Name on the command line -> module with main(arguments), and one line of help.
COMMANDS: dict[str, tuple[str, str]] = {
    "data": ("scoremle.cli.commands.data", "prepare a data set, or look at one"),
    "score": (
        "scoremle.cli.commands.score",
        "the likelihood of each of your own images, as a CSV",
    ),
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
        "weights of the Inception network, from PyTorch's file to ours",
    ),
    "verify": ("scoremle.cli.commands.verify", "whether what lies there is as it was written"),
    "stats": ("scoremle.cli.commands.stats", "features of a data set, to compare samples with"),
}


class Parser(argparse.ArgumentParser):
    """argparse, whose complaints are lines like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message} (see {self.prog} --help)")
