"""Prints a script that completes commands, flags and fields of the config. For bash, into this
shell: source <(scoremle completion bash)

    scoremle completion bash
    scoremle completion fish
"""

import argparse
import shlex
from typing import Any

from scoremle.cli.commands import COMMANDS, parser_of
from scoremle.cli.commands.help import TOPICS
from scoremle.cli.parser import Parser
from scoremle.experiment.configs import NAMED_CONFIGS

# What is sourced must be evaluated there, or it would complete a word at once.
ZSH = "autoload -Uz compinit && compinit\neval"
# Words that complete an argument, but are not all that it takes.
WORDS = {"config": [*NAMED_CONFIGS], "topic": [*TOPICS, *COMMANDS]}


def arguments(parser: Parser) -> None:
    parser.add("shell", "the shell that it is for", choices=("bash", "zsh", "fish"))


def run(options: Any) -> None:
    """Prints the script."""
    import shtab

    program = argparse.ArgumentParser(prog="scoremle")
    commands = program.add_subparsers()
    for name, (_, what) in COMMANDS.items():
        command = commands.add_parser(name, help=what, parents=[parser_of(name)], add_help=False)
        for action in command._actions:
            action.choices = action.choices or WORDS.get(action.dest)
            if action.choices is None and action.nargs != 0:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    script = shtab.complete(program, options.shell)
    print(f"{ZSH} {shlex.quote(script)}" if options.shell == "zsh" else script)
