"""``scoremle completion SHELL``: a script that completes commands, flags and fields of configs."""

import argparse
from collections.abc import Iterator
from typing import Any

from scoremle.cli.commands import COMMANDS
from scoremle.cli.flags import fields_of
from scoremle.cli.help import TOPICS
from scoremle.cli.parsers import PARSERS, ModeParser
from scoremle.experiment import defaults
from scoremle.experiment.configs import NAMED

__all__ = ["run"]

BASH = """\
_scoremle() {{
  local words=
  if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"; else
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _scoremle scoremle"""
ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
FISH_COMMAND = "complete -c scoremle -n __fish_use_subcommand -f -a {name} -d '{what}'"
FISH_WORDS = "complete -c scoremle -n '__fish_seen_subcommand_from {name}' -a '{words}'"


def run(options: Any) -> None:
    """Prints the script."""
    print({"bash": _bash, "zsh": lambda: ZSH + _bash(), "fish": _fish}[options.shell]())


def _bash() -> str:
    """Names of files come where no word fits."""
    cases = "\n".join(f'    {name}) words="{" ".join(_words(name))}" ;;' for name in COMMANDS)
    return BASH.format(commands=" ".join(COMMANDS), cases=cases)


def _fish() -> str:
    commands = [
        FISH_COMMAND.format(name=name, what=what.replace("'", r"\'"))
        for name, (_, what) in COMMANDS.items()
    ]
    words = [FISH_WORDS.format(name=n, words=" ".join(_words(n))) for n in COMMANDS]
    return "\n".join([*commands, *words])


def _words(command: str) -> Iterator[str]:
    """What may follow a command, but for names of files."""
    if command == "help":
        yield from (*TOPICS, *COMMANDS)
    if command in ("train", "plan"):
        yield from NAMED
    if command in PARSERS:
        parser = PARSERS[command]()
        if isinstance(parser, ModeParser):
            yield from (f"--config.{name}" for name in fields_of(defaults.get_config()))
        yield from _of_parser(parser)


def _of_parser(parser: argparse.ArgumentParser) -> dict[str, None]:
    """Its flags and the words that it names, each once, and those of the parsers below it."""
    found: dict[str, None] = {}
    for action in parser._actions:
        words = action.option_strings or action.choices or ()
        found |= dict.fromkeys(map(str, words))
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                found |= _of_parser(below)
    found.pop("--config.FIELD", None)
    return found
