"""Explains a command or a topic. Without one: prints the first steps and all commands.

    scoremle help score
    scoremle help config digits
"""

import textwrap
from collections import defaultdict
from typing import Any

from scoremle.cli.commands import COMMANDS, SELDOM_USED, parser_of
from scoremle.cli.commands.data import DATASETS
from scoremle.cli.flags import MEANINGS
from scoremle.cli.parser import Parser
from scoremle.errors import choose
from scoremle.evaluation.tables import screen_width, table, wrapped
from scoremle.experiment import defaults
from scoremle.experiment.config import fields_of, load_config
from scoremle.experiment.configs import NAMED_CONFIGS

START = """\
Likelihoods of images and vectors under diffusion and flow models, with errors

  scoremle train digits runs/digits     # handwritten digits: minutes on a CPU
  scoremle eval runs/digits             # bits/dim of test images, with errors
  scoremle score digits my_pictures     # your own images; digits ships with it

usage: scoremle COMMAND [ARGUMENTS]     # COMMAND --help explains it
       scoremle --config=CONFIG --workdir=DIR --mode=MODE      # as published
--debug, with any command, also prints the libraries' own messages
"""
EXIT_CODES = """\
  0    done
  1    a fault of the program, with a traceback: please report it, with what
       scoremle env prints
  2    a mistake that you can correct: one line says what was wrong, and what to do;
       nothing is lost; or the work is done, and its output could not be written
  3    done, but score or anomaly left out files, as by --skip-bad: the table has the
       reasons
  4    done, and scoremle anomaly score --fail-on-suspects found some
  130  stopped by Ctrl-C, and
  143  stopped by SIGTERM: train has saved its last step; eval, score, sample and
       stats their finished batches; the same command resumes from there

So a script of several commands, such as make demo, ends where one was stopped.
"""
TOPICS = ("config", "exit-codes")
HEADER = ("field", "type", "default", "meaning")


def arguments(parser: Parser) -> None:
    parser.add("topic", f"a command, or {' or '.join(TOPICS)}", nargs="?")
    parser.add("name", "config: a name, or a Python file", nargs="?", default="")


def run(options: Any) -> None:
    """Prints the text of a topic."""
    if options.topic is None:
        print(screen())
    elif options.topic == "config":
        print(config_table(options.name))
    elif options.topic == "exit-codes":
        print(EXIT_CODES, end="")
    else:
        topics = {name: name for name in (*COMMANDS, *TOPICS)}
        parser_of(choose(topics, options.topic, "topic")).print_help()


def screen() -> str:
    """The first screen: first steps, commands, configs and data sets."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    rows.insert(len(COMMANDS) - len(SELDOM_USED), "seldom needed:")
    own = [name for name in NAMED_CONFIGS if "/" not in name]
    named = {"configs:": own} | _published() | {"data sets:": [*DATASETS]}
    rest = " " * 11
    lists = [
        textwrap.fill(", ".join(words), 80, initial_indent=f"{what:11}", subsequent_indent=rest)
        for what, words in named.items()
    ]
    return "\n".join([START, "commands:", *rows, *lists])


def _published() -> dict[str, list[str]]:
    """Names of published configs, by the folders that have configs of these names."""
    folders = defaultdict(list)
    for name in NAMED_CONFIGS:
        folder, slash, rest = name.partition("/")
        if slash:
            folders[folder].append(rest)
    alike = defaultdict(list)
    for folder, names in folders.items():
        alike[tuple(names)].append(f"{folder}/")
    return {f"{' '.join(places)} ": [*names] for names, places in alike.items()}


def config_table(place: str = "") -> str:
    """Name, type, value and meaning of each field of a config, or of the defaults.

    On a narrow screen, meanings are printed below their fields.
    """
    fields, rows = fields_of(load_config(place)[0] if place else defaults.get_config()), []
    # In the order of experiment/defaults.py, which is by importance; a config iterates by name.
    for name, meaning in MEANINGS.items():
        kind, value = fields[name]
        rows.append((name, kind.__name__, "unset" if value is None else repr(value), meaning))
    lines = table(HEADER, rows).splitlines()
    if (room := screen_width()) and max(map(len, lines)) > room:
        narrow = table(HEADER[:3], [row[:3] for row in rows]).splitlines()
        below = [f"{line}\n    {row[3]}" for line, row in zip(narrow[2:], rows, strict=True)]
        lines = [*narrow[:2], *below]
    how = "each set by --config.FIELD=VALUE (booleans also by --config.FIELD and --noconfig.FIELD)"
    head = wrapped(f"fields of {place or 'experiment/defaults.py'}, {how}:")
    return "\n".join([*head, "", *lines])
