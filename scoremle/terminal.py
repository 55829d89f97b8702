"""Text that others wrote, as it reaches a terminal, a table, a page or a document, and no more.

A file may be called anything. Control characters in its name could clear a terminal or write over
what it shows, an end of a line could forge another line, a cell that begins like a formula is one
for a spreadsheet, and markup is obeyed by a browser.
"""

import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from typing import Any, TextIO

from scoremle.errors import in_a_line

# How a formula begins, in some spreadsheet.
FORMULA = ("=", "+", "-", "@", "\t", "\r")
# What wipes out the line on which a terminal is.
WIPE = "\r\x1b[K"
# What Markdown obeys within a line: its own marks, HTML, cells of tables, and bare addresses.
MARKDOWN = re.compile(r"[][\\`*_<>&|~@$#]|:(?=\S)|(?<=www)\.", re.IGNORECASE)


def printable(text: str) -> str:
    """The text with what is not a visible character, but for ends of lines, as an escape."""
    return "\n".join(map(in_a_line, text.split("\n")))


def counted(count: int, word: str) -> str:
    """Count of a word, in the plural if it is not 1."""
    plural = "es" if word.endswith("s") else "s"
    return f"{count:,} {word}{plural * (count != 1)}"


def in_html(text: str) -> str:
    """The text for a line of HTML, within an element or within the quotes of an attribute."""
    return escape(in_a_line(text))


def in_markdown(text: str) -> str:
    """The text for a line of Markdown, without any markup of its own."""
    return MARKDOWN.sub(r"\\\g<0>", in_a_line(text))


_is_mute = False


def is_mute() -> bool:
    """Whether this process leaves printing to another."""
    return _is_mute


def mute() -> None:
    """Mutes this process from now on: another process of the run prints."""
    global _is_mute
    _is_mute = True


def is_live() -> bool:
    """Whether there is a terminal whose lines can be written over."""
    return not is_mute() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def is_stream(path: Path) -> bool:
    """Whether this is a device or a pipe in place of a file, such as /dev/stdout."""
    folder = os.path.realpath(path.parent)
    if folder == "/dev" or folder.startswith("/proc/"):
        return path.exists() and not (path.is_dir() or path.is_block_device())
    return path.is_fifo() and not path.is_symlink()


def is_stdout(path: Path) -> bool:
    """Whether this is the standard output of the process, under any name."""
    try:
        return is_stream(path) and os.path.samestat(path.stat(), os.fstat(1))
    except OSError:  # it is closed, or is not there
        return False


@contextmanager
def passing(text: str) -> Iterator[None]:
    """Shows a text on a terminal for as long as something lasts, and then wipes it out."""
    shown = is_live()
    if shown:
        print(text, end="", flush=True)
    try:
        yield
    finally:
        if shown:
            print(WIPE, end="", flush=True)


def say(*lines: object) -> None:
    """Prints lines, if any, at once. What is given as one line is one, whatever it contains.

    Where they can't be written the work goes on, and nothing more is printed. If that is for
    another reason than that the reader of a pipe has seen enough, ``unsaid`` gives it.
    """
    global _unsaid
    if not lines or is_mute():
        return
    try:
        print(*(in_a_line(str(line)) for line in lines), sep="\n", flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            _unsaid = f"can't write to standard output: {error.strerror}"
        _silence(sys.stdout)


_unsaid = ""


def unsaid() -> str:
    """Returns why lines could not be written since the last call; "" where all were."""
    global _unsaid
    words, _unsaid = _unsaid, ""
    return words


def complain(line: str) -> None:
    """Prints a line on standard error, if that can be written."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # full, or closed: the exit code remains
        with suppress(OSError, ValueError):
            _silence(sys.stderr)


def _silence(stream: TextIO) -> None:
    """Drops what is written to a stream from now on, and what it could not write."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def say_mistake(text: str) -> int:
    """Prints the line of an error, and gives the exit code of a user's mistake."""
    complain(f"scoremle: error: {' '.join(printable(text).splitlines())}")
    return 2


class Formatter(logging.Formatter):
    """Format of what is logged, on a terminal: lines like those of errors."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        kind = "warning: " if record.levelno >= logging.WARNING else ""
        return in_a_line(f"scoremle: {kind}{super().formatMessage(record)}")

    def formatException(self, ei: Any) -> str:
        return printable(super().formatException(ei))


def cell(text: str) -> str:
    """A text as a cell of a CSV, which a spreadsheet takes for text. It is one line."""
    return in_a_line(f"'{text}" if text.startswith(FORMULA) else text)


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """A table of HTML for a page or a notebook, under its caption."""
    head = "".join(f'<th scope=col>{in_html(text)}</th>' for text in header)
    lines = ("".join(f"<td>{in_html(text)}</td>" for text in row) for row in rows)
    return (
        f"<table><caption>{in_html(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"
    )
