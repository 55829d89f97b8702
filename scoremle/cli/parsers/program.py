"""Arguments of ``env``, ``completion`` and ``verify``."""

import os
from pathlib import Path

from scoremle.cli.commands import Parser
from scoremle.cli.places import exist

__all__ = ["completion_parser", "env_parser", "verify_parser"]

# How variables begin that change what a command does.
SETTINGS = ("JAX_", "XLA_", "SCOREMLE_", "XDG_CACHE", "CUDA_VISIBLE", "TF_CPP")


def env_parser() -> Parser:
    parser = Parser(
        prog="scoremle env",
        examples=("scoremle env", "scoremle env --json"),
        description="Versions, devices, memory and cache folders: what a report of a fault needs.",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    # Before JAX and the cache of programs add settings of their own.
    settings = {name: v for name, v in sorted(os.environ.items()) if name.startswith(SETTINGS)}
    parser.set_defaults(settings=settings)
    return parser


def completion_parser() -> Parser:
    parser = Parser(
        prog="scoremle completion",
        examples=("scoremle completion bash", "scoremle completion fish"),
        description="Prints a script that completes commands, flags and fields of the config. For"
        " bash, into this shell: source <(scoremle completion bash)",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that it is for")
    return parser


def verify_parser() -> Parser:
    parser = Parser(
        prog="scoremle verify",
        examples=("scoremle verify runs/digits", "scoremle verify ~/.cache/scoremle"),
        description="Reads all that lies in a place (a workdir, a prepared data set, checkpoints,"
        " results, a model) and compares it with the checksums that it has. What is damaged is a"
        " line: what, where, what to do. The exit code is then 2, else 0.",
        check=exist("path"),
    )
    parser.add_argument("path", type=Path, help="a folder, with all below it, or a file")
    return parser
