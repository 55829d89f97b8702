"""Commands: ``scoremle NAME ...``. ``COMMANDS`` is the whole list.

The module of a command has ``arguments(parser)``, which adds what can be typed, and
``run(options)``; if need be ``check(options)``, which raises UserError for what can't be used,
``NEEDS``, a module that ``run`` imports and that takes seconds, and the class of its ``PARSER``.
Its docstring is its help. It imports nothing of JAX at its top: help, and what is wrong with
arguments, come at once.
"""

import importlib

from scoremle.cli.parser import Parser

__all__ = ["COMMANDS", "SELDOM_USED", "parser_of"]

# Name on the command line -> module here, and one line of help. In the order of a first use.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("experiment", "train a model, or continue its training"),
    "eval": ("experiment", "bits/dim of a whole test set, with errors"),
    "sample": ("sample", "samples of a model, as a picture or an array"),
    "score": ("score", "the likelihood of each of your own images, as a CSV"),
    "anomaly": ("anomaly", "find images that do not belong, by p-values"),
    "report": ("report", "a page about a working directory, to look at"),
    "compare": ("compare", "the difference of two models on the same images"),
    "compress": ("compress", "store images without loss, in the bits that a model states"),
    "decompress": ("decompress", "get back the images that compress stored"),
    "data": ("data", "prepare a data set, or look at one"),
    "plan": ("plan", "the memory and time that a config needs, on k devices"),
    "verify": ("verify", "find damaged files in a folder"),
    "env": ("env", "versions, devices and folders, to report a fault"),
    "help": ("help", "explain a command, every field (config), or the exit-codes"),
    "train-deq": ("experiment", "train a flow dequantizer for a model"),
    "stats": ("stats", "features of a data set, to compare samples with"),
    "import": ("import_checkpoint", "describe a published model, and make a workdir of it"),
    "export": ("export_checkpoint", "a checkpoint in the published format, or as safetensors"),
    "convert-inception": ("convert_inception", "convert PyTorch's weights of Inception"),
    "completion": ("completion", "a script that completes words, for bash, zsh or fish"),
}
# Those that few need.
SELDOM_USED = ("train-deq", "stats", "import", "export", "convert-inception", "completion")


def parser_of(name: str) -> Parser:
    """The parser of a command; of "" that of the published form.

    Args:
        name: of the command; "" for the published form.
    """
    module, _ = COMMANDS.get(name, ("experiment", ""))
    command = importlib.import_module(f"{__name__}.{module}")
    of_kind = getattr(command, "PARSER", Parser)
    parser: Parser = of_kind(prog=f"scoremle {name}".rstrip(), text=command.__doc__)
    parser.run, parser.check = command.run, getattr(command, "check", None)
    parser.needs = getattr(command, "NEEDS", "")
    command.arguments(parser)
    return parser
