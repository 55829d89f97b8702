"""Visible characters alone reach a terminal, and a CSV's text is not a formula."""

import logging
import os
import shlex
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.marks import some
from helpers.places import ROOT

from scoremle.cli import main as cli
from scoremle.errors import (
    UserError,
    as_flag,
    damaged,
    first_line,
    in_short,
    nearest,
    needing,
    no_chain,
    no_labels,
    no_model,
    out_of_memory,
    warn,
)
from scoremle.evaluation.tables import table
from scoremle.experiment.own_images import refuse
from scoremle.progress import progress
from scoremle.terminal import cell, counted, html_table, in_markdown, is_stdout, printable, say

# Clears the screen, names the window, goes back, turns what follows around; a byte of no UTF-8.
NAME = "a\x1b[2J\x1b]0;me\x07\r\x9b1m‮\udce9é±图"
SHOWN = r"a\x1b[2J\x1b]0;me\x07\r\x9b1m\u202e\udce9é±图"


def test_standard_output_is_known_under_all_its_names(tmp_path, monkeypatch):
    (tmp_path / "x").touch()
    _, pipe = os.pipe()
    monkeypatch.setattr(os, "fstat", lambda number, fstat=os.fstat: fstat(pipe))
    assert is_stdout(Path(f"/dev/fd/{pipe}")) and is_stdout(Path(f"/proc/self/fd/{pipe}"))
    for place in (Path("/dev/null"), tmp_path / "x", tmp_path / "nothing"):
        assert not is_stdout(place)


def test_what_is_visible_stays():
    assert printable(NAME) == SHOWN
    assert printable("two lines\nof text, 2.5 ± 0.1") == "two lines\nof text, 2.5 ± 0.1"


def test_every_way_to_a_terminal(capsys, monkeypatch):
    say(NAME)
    print(table(("name", NAME), [(NAME, "1")]))
    with progress(NAME, 1.0, "image") as advance:
        advance(1.0)
    assert str(UserError(NAME)) == SHOWN

    def wrong(arguments):
        logging.getLogger("scoremle.here").warning("%s is odd", NAME)
        raise OSError(28, "No space left", NAME)

    monkeypatch.setattr(cli, "_run", wrong)
    assert cli.main(["x"]) == 2
    captured = capsys.readouterr()
    for text in captured:
        assert SHOWN in text
        assert all(c.isprintable() or c == "\n" for c in text)
    assert captured.out.count(SHOWN) == 4 and captured.err.count(SHOWN) == 2


@contextmanager
def stdout_by_a_pipe(monkeypatch):
    """Stdout in a narrow encoding; yields the reader's end."""
    ends = os.pipe()
    with open(ends[0], "rb", 0) as reader, open(ends[1], "w", encoding="latin-1") as writer:
        monkeypatch.setattr(sys, "stdout", writer)
        yield reader


def test_work_goes_on_where_the_reader_has_seen_enough(monkeypatch):
    done = []

    def work(arguments):
        for _ in range(2):
            say("a line")
        done.append(arguments)
        return 4

    monkeypatch.setattr(cli, "_run", work)
    with stdout_by_a_pipe(monkeypatch) as reader:
        reader.close()
        assert cli.main(["x"]) == 4 and done == [["x"]]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_output_that_can_not_be_written_does_not_stop_the_work(monkeypatch, capsys):
    done = []
    monkeypatch.setattr(cli, "_run", lambda arguments: say("a") or done.append(arguments) or 0)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["x"]) == 2 and done == [["x"]]
    assert "to standard output" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(cli, "_run", lambda arguments: 0)
    assert cli.main(["x"]) == 0


def test_a_mistake_keeps_its_code_where_it_can_not_be_said(monkeypatch):
    closed = open(os.devnull, "w")  # noqa: SIM115
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    assert cli.main(["no such command"]) == 2


@some("closed", ["<&-", ">&-", "2>&-"], quick=[">&-", "2>&-"])
def test_a_closed_stream_is_as_none(closed):
    command = f"exec {shlex.quote(sys.executable)} -m scoremle --version {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_what_an_encoding_lacks_is_an_escape(monkeypatch):
    monkeypatch.setattr(cli, "_run", lambda arguments: say("é图") or 0)
    with stdout_by_a_pipe(monkeypatch) as reader:
        assert cli.main(["x"]) == 0
        assert reader.read(99) == b"\xe9\\u56fe\n"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_cell_is_no_formula(start):
    name = f"{start}cmd|' /C calc'!A1"
    assert cell(name) == printable(f"'{name}")
    assert cell(f"a{name}") == printable(f"a{name}")


@pytest.mark.parametrize(
    ("count", "word", "text"),
    [
        (0, "image", "0 images"), (1, "image", "1 image"), (2, "pass", "2 passes"),
        (1, "pass", "1 pass"), (12345, "row", "12,345 rows"),
    ],
)  # fmt: skip
def test_a_count_has_its_plural(count, word, text):
    assert counted(count, word) == text


def test_markup_is_text():
    text = html_table(("<b>",), [('"><script>',)], NAME)
    assert "<b>" not in text and "<script>" not in text and '">' not in text and SHOWN in text
    told = in_markdown("[a](b) <b>x</b> | **c** `d` &lt; http://e www.f.g 2.5, a-b\n# h")
    assert told == (
        r"\[a\](b) \<b\>x\</b\> \| \*\*c\*\* \`d\` \&lt; http\://e www\.f.g 2.5, a-b\\n\# h"
    )


def test_what_is_logged_takes_one_line(capsys, monkeypatch):
    def warn(arguments):
        logging.getLogger("scoremle.here").warning("%s is odd", "a\nscoremle: all is well")
        return 0

    monkeypatch.setattr(cli, "_run", warn)
    assert cli.main(["x"]) == 0
    assert capsys.readouterr().err == "scoremle: warning: a\\nscoremle: all is well is odd\n"


@pytest.mark.parametrize("least", [logging.INFO, logging.DEBUG])
def test_a_traceback_of_what_jax_called_is_for_debugging(least):
    jax_says = logging.getLogger("jax._src.callback")
    with cli._logged(least):
        assert jax_says.disabled == (least == logging.INFO)
    assert not jax_says.disabled


def test_a_warning_names_the_line_of_the_caller():
    within = {"__name__": "scoremle.within", "warn": warn}
    exec("def inner(text):\n    warn(text)\ndef outer(text):\n    inner(text)", within)
    for call in (within["inner"], within["outer"]):
        with pytest.warns(UserWarning, match="odd") as warned:
            call("odd")
        assert warned[0].filename == __file__


def test_a_name_of_several_lines_takes_one(capsys, caplog):
    name = "a\n  b.png: scored"
    say(name, "c")
    assert capsys.readouterr().out == "a\\n  b.png: scored\nc\n"
    assert cell(name) == r"a\n  b.png: scored"
    assert len(table(("file",), [(name,)]).splitlines()) == 3
    refuse(Path("here"), [(name, "bad"), ("c", "bad")], 3, skip_bad=True)
    assert caplog.messages[0] == r"a\n  b.png: scored: bad"


@pytest.mark.parametrize(
    ("error", "named", "text"),
    [
        (ValueError("a\nb"), False, "a"), (ValueError("\n a\nb"), True, "ValueError: a"),
        (UserError("a"), True, "a"), (ValueError(), True, "ValueError"),
        (KeyError(), False, "KeyError"),
    ],
)  # fmt: skip
def test_the_first_line_of_an_error(error, named, text):
    assert first_line(error, named=named) == text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("odd"), "x: no zip (odd); fetch it again"),
        (ValueError("a" * 81), f"x: no zip ({'a' * 80}); fetch it again"),
        (OSError(5, "Input/output error"), "x: cannot be read: Input/output error"),
        (OSError("cut off"), "x: no zip (cut off); fetch it again"),
        (UserError("as it is"), "as it is"),
    ],
)
def test_what_is_damaged_is_said_with_a_remedy(error, text):
    with pytest.raises(UserError) as told, damaged("x", "no zip"):
        raise error
    assert str(told.value) == text
    with pytest.raises(MemoryError), damaged("x", "no zip"):
        raise MemoryError


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True), (RuntimeError("RESOURCE_EXHAUSTED: 9"), True),
        (RuntimeError("other"), False),
    ],
)  # fmt: skip
def test_which_errors_are_of_memory(error, short):
    assert out_of_memory(error) == short


def test_names_that_are_meant():
    assert nearest("digts", ["digits", "mnist"]) == "digits" and nearest("q", ["digits"]) == ""
    told = str(no_model("digts", ["digits", "mnist"]))
    assert "did you mean digits?" in told and "there are: digits, mnist" in told
    assert "mean" not in str(no_model("q", ["digits"]))
    assert "leave --label out" in str(no_labels("--label")) and "label out" in str(no_labels())
    assert " steps=1000 " in str(no_chain()) and " --steps=1000 " in str(no_chain(as_flag))
    assert (as_flag("skip_bad=True"), as_flag("fit")) == ("--skip-bad", "--fit")
    told = pytest.raises(UserError, match=r"page .*plots: .*scoremle\[plots\]")
    with told, needing("a page", "plots"):
        raise ImportError


@pytest.mark.parametrize(
    ("count", "text"), [(0, ""), (1, "a"), (3, "a, b, c"), (4, "a, b, c and 1 more")]
)
def test_a_list_is_short(count, text):
    assert in_short([*"abcd"][:count], 3) == text
