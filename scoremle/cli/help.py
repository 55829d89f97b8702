"""``scoremle --help``, on one screen, and ``scoremle help TOPIC``."""

import importlib
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from scoremle.cli.commands import COMMANDS, SELDOM
from scoremle.cli.parsers import DATASETS, PARSERS
from scoremle.errors import choose
from scoremle.evaluation.tables import screen_width, wrapped
from scoremle.experiment.configs import NAMED

__all__ = ["FIELD_LINE", "TOPICS", "config_table", "main", "screen"]

START = """\
How likely is an image under a diffusion model, and how sure are you?

  scoremle train digits runs/digits     # handwritten digits: minutes on a CPU
  scoremle eval runs/digits             # bits/dim of test images, with errors
  scoremle score digits my_pictures     # your own images; digits ships with it

usage: scoremle COMMAND [ARGUMENTS]     # COMMAND --help explains it
       scoremle --config=CONFIG --workdir=DIR --mode=MODE      # as published
--debug, anywhere, shows what libraries said of a damaged file or a full disk
"""
EXIT_CODES = """\
  0    done
  1    a fault of the program, with a traceback: please report it, with what
       scoremle env prints
  2    a mistake that you can mend: one line says what was wrong, and what to do;
       nothing is lost
  3    done, but for files that --skip-bad left out: the table has the reasons
  130  stopped by Ctrl-C, and
  143  stopped by SIGTERM: a training has saved the step that it was at, an
       evaluation its finished batches, and the same command goes on from there

What runs several commands, such as make demo, stops with the first that was
stopped.
"""
# One line of experiment/defaults.py: config.<field> = <value>  # <meaning>
FIELD_LINE = re.compile(r"^    config\.([\w.]+) = .*?  # (.*)$", re.MULTILINE)


def screen() -> str:
    """What fits one screen: first steps, commands, configs and data sets."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    rows.insert(len(COMMANDS) - len(SELDOM), "seldom needed:")
    named = {"configs:": ", ".join(NAMED), "data sets:": ", ".join(DATASETS)}
    lists = [
        textwrap.fill(words, 80, initial_indent=f"{what:11}", subsequent_indent=" " * 11)
        for what, words in named.items()
    ]
    return "\n".join([START, "commands:", *rows, "", *lists])


def main(arguments: list[str]) -> None:
    """Prints what there is about a topic: a command, ``config [NAME]``, ``exit-codes``."""
    topic, *rest = arguments or ["--help"]
    if topic in ("-h", "--help"):
        print(screen())
    elif topic in TOPICS:
        print(TOPICS[topic](*rest[:1]))
    elif topic in PARSERS:
        PARSERS[topic]().print_help()
    else:
        module, _ = choose({**COMMANDS, **dict.fromkeys(TOPICS, ("", ""))}, topic, "topic")
        importlib.import_module(module).main(["--help"])


def config_table(place: str = "") -> str:
    """Name, type, value and meaning of each field of a config, or of the defaults."""
    from scoremle.cli.flags import fields_of, named_config
    from scoremle.experiment import defaults

    config = named_config(place)[0] if place else defaults.get_config()
    meanings = dict(FIELD_LINE.findall(Path(defaults.__file__).read_text(encoding="utf-8")))
    rows = [("field", "type", "default", "meaning")]
    fields = fields_of(config)
    # In the order of experiment/defaults.py, which is by importance; a config iterates by name.
    for name in dict.fromkeys([*meanings, *fields]):
        kind, value = fields[name]
        shown = "unset" if value is None else repr(value)
        rows.append((name, kind.__name__, shown, meanings.get(name, "")))
    how = "each set by --config.FIELD=VALUE (booleans also by --config.FIELD and --noconfig.FIELD)"
    head = wrapped(f"fields of {place or 'experiment/defaults.py'}, {how}:")
    return "\n".join([*head, "", _aligned(rows)])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of a table; on a screen without room for it, meanings stand below their fields."""
    *columns, meanings = zip(*rows, strict=True)
    widths = [max(map(len, column)) for column in columns]
    starts = ["  ".join(map(str.ljust, row, widths)) for row in zip(*columns, strict=True)]
    beside = [f"{start}  {what}" for start, what in zip(starts, meanings, strict=True)]
    below = [f"{start.rstrip()}\n    {what}" for start, what in zip(starts, meanings, strict=True)]
    room = screen_width()
    return "\n".join(beside if room is None or max(map(len, beside)) <= room else below)


TOPICS: dict[str, Callable[..., str]] = {
    "config": config_table,
    "exit-codes": lambda *_: EXIT_CODES.rstrip(),
}
