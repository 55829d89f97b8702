"""Progress: what is told, when, and a time to go that leaves compilation out."""

import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from fcntl import ioctl

import pytest

from scoremle import progress as module
from scoremle.progress import Progress, progress

COMPILING = "compiling what was not kept from before"


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    """As where compiled programs are kept."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "folder")


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def told(clock, shown, *moments):
    for seconds, done, *text in moments:
        clock[0] = seconds
        shown.advance(done, *text)


def test_lines_now_and_then_and_one_at_the_end(clock, capsys):
    with progress("label", 100, "image", done=10) as advance:
        for seconds, done in ((10, 20), (15, 30), (21, 40), (30, 60), (40, 90), (41, 100)):
            clock[0] = seconds
            advance(done, f"mean {done}")
    assert capsys.readouterr().out.splitlines() == [
        "label  image 40/100  mean 40  1.8 images/s  elapsed 21s  ETA 33s",
        "label  image 100/100  mean 100  2.6 images/s  elapsed 41s",
    ]


def test_a_line_says_what_compiles_for_long(capsys, monkeypatch):
    """And none what does not."""
    monkeypatch.setattr(module, "LONG", 0.02)
    with progress("label", 5, "image"):
        time.sleep(0.2)
    assert capsys.readouterr().out == f"label  {COMPILING}\n"
    with progress("label", 5, "image") as advance:
        advance(0)
        time.sleep(0.2)
    assert capsys.readouterr().out == ""


def test_the_time_to_go_leaves_compilation_out(clock, capsys):
    """The first step takes a minute, each other half a second."""
    shown = Progress("", 100, "step", every=0)
    shown.start()
    told(clock, shown, (60, 1), (60.5, 2), (64.5, 10))
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "step 1/100  elapsed 1m00s"
    assert second == "step 2/100  2.0 steps/s  elapsed 1m00s  ETA 49s"
    assert third == "step 10/100  2.0 steps/s  elapsed 1m04s  ETA 45s"


def test_the_time_to_go_leaves_out_what_compiles_later(clock, capsys):
    """A measurement takes half a minute the first time, and a second from then on."""
    shown = Progress("", 100, "step", every=0)
    shown.start()
    told(clock, shown, (0, 0), (10, 10))
    shown.doing(10, "measuring")
    told(clock, shown, (40, 10), (41, 11), (50, 20))
    shown.doing(20, "measuring")
    told(clock, shown, (51, 20), (60, 29))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "step 20/100  1.0 steps/s  elapsed 50s  ETA 1m20s",
        "step 20/100  0.91 steps/s  elapsed 51s  ETA 1m28s",
        "step 29/100  0.95 steps/s  elapsed 1m00s  ETA 1m15s",
    ]


def test_the_speed_is_that_of_the_last_minute(clock, capsys):
    """Another compilation, half a minute at step 10, is forgotten; steps that move count."""
    shown = Progress("", 1000, "step", every=0)
    shown.start()
    told(clock, shown, (0, 0), (10, 10), (40, 11))
    for second in range(41, 130):
        clock[0] = second
        shown.move(second - 29)
    told(clock, shown, (130, 101))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "step 101/1000  1.0 steps/s  elapsed 2m10s  ETA 14m59s"


def test_what_was_done_before_does_not_count_as_speed(clock, capsys):
    shown = Progress("", 100, "step", every=0)
    shown.start(90)
    told(clock, shown, (1, 91), (3, 92))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "step 92/100  0.5 steps/s  elapsed 3s  ETA 16s"


def test_nothing_left_to_do(capsys):
    with progress("label", 5, "image", done=5) as advance:
        advance(5, "mean 1")
    assert capsys.readouterr().out == "label  image 5/5  mean 1  elapsed 0s\n"


def test_a_share_is_shown_only_while_it_lasts(clock, capsys):
    with progress("preparing x", 1.0) as advance:
        for seconds, done in ((21, 0.25), (22, 0.3), (50, 0.5), (60, 1.0)):
            clock[0] = seconds
            advance(done)
    assert capsys.readouterr().out.splitlines() == [
        "preparing x  25%  elapsed 21s  ETA 1m03s",
        "preparing x  50%  elapsed 50s  ETA 50s",
    ]


def test_what_is_done_is_a_line_once(capsys):
    shown = Progress("", 10, "step", every=0)
    shown.start()
    for step in (2, 4):
        shown.advance(step)
        shown.doing(step, "drawing")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "step 2/10", "drawing", "step 4/10",
    ]  # fmt: skip


def test_without_a_label_nothing_is_said(capsys):
    with progress("", 5, "image") as advance:
        advance(5, "mean 1")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("unit", ["step", ""])
def test_a_bar_on_a_terminal(unit, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    total = 10 if unit else 1.0
    with progress("[label] {x}", total, unit) as advance:
        advance(total, "bpd [2.5]")
    out = capsys.readouterr().out
    place = "step 10/10" if unit else "100%"
    assert "[label] {x}" in out and f"{place}  elapsed 0s  bpd [2.5]" in out
    assert out.endswith("\x1b[2K") == (not unit)  # a share is wiped out when it is done


# On a terminal of its own

TRAINING = """
import time
from scoremle.training.writers import Console
bar = Console(1500)
bar.rewind(0)
time.sleep(0.3)
bar.at(5)
bar.write(100, {"loss": 0.1234, "eval_bpd": 1.961, "eval_bpd_stderr": 0.011})
time.sleep(0.3)
bar.write(964, {"loss": 0.1234})
time.sleep(0.3)
bar.at(965)
time.sleep(0.3)
bar.close()
"""


def on_terminal(code: str, columns: int, **variables: str) -> str:
    """What a program writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    hidden = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
    environment = {n: v for n, v in os.environ.items() if n not in hidden} | {"TERM": "xterm"}
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=theirs, env=environment | variables)
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 4096):
            text += part
    except OSError:  # Linux's way to say that nobody writes any more
        pass
    os.close(ours)
    assert process.wait(60) == 0
    return text.decode()


WIDTHS = {
    60: "  loss 0.1234",
    80: "  loss 0.1234  bpd 1.961 +- 0.011",
    100: "  loss 0.1234  bpd 1.961 +- 0.011  (step 100)",
    120: "  loss 0.1234  bpd 1.961 +- 0.011  (step 100)",
}


@pytest.fixture(scope="module")
def trainings():
    """The texts that a training writes to terminals, by their width or by their setting."""
    kinds = [(columns, {}) for columns in WIDTHS]
    kinds += [(80, {"NO_COLOR": "1"}), (80, {"TERM": "dumb"})]
    with ThreadPoolExecutor(len(kinds)) as pool:  # for they sleep
        texts = pool.map(lambda kind: on_terminal(TRAINING, kind[0], **kind[1]), kinds)
    return dict(zip((*WIDTHS, "NO_COLOR", "dumb"), texts, strict=True))


def screens(text: str) -> list[str]:
    """Each state of the last line."""
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", text)
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.mark.parametrize(("columns", "last"), WIDTHS.items())
def test_a_bar_is_whole_at_any_width(columns, last, trainings):
    """A line, no fact cut in two, at least ten cells, and it moves from step to step."""
    lines = screens(trainings[columns])
    assert max(map(len, lines)) <= columns
    assert any(COMPILING in line for line in lines[:3])
    assert any("step 964/1500" in line for line in lines)
    times = r"ETA \S+  elapsed 1s"
    pattern = rf"[━╸╺ ]{{10,}} step 965/1500  {times}{re.escape(last)}(  [\d.]+ steps/s)?"
    assert re.fullmatch(pattern, lines[-1].rstrip()), lines[-1]
    assert lines[-1].rstrip().endswith("steps/s") == (columns == 120)


def test_what_passes_is_wiped_out_and_is_on_terminals_alone(capsys):
    code = """
from scoremle.terminal import passing
with passing("loading"):
    pass
print("done")
"""
    assert on_terminal(code, 80) == "loading\r\x1b[Kdone\r\n"
    assert on_terminal(code, 80, TERM="dumb") == "done\r\n"
    exec(code, {})
    assert capsys.readouterr().out == "done\n"


def test_no_color_where_none_is_wanted(trainings):
    assert re.search(r"\x1b\[[\d;]*m", trainings[80])
    assert not re.search(r"\x1b\[[\d;]*m", trainings["NO_COLOR"])


def test_a_terminal_that_can_not_move_its_cursor_gets_lines(trainings):
    text = trainings["dumb"]
    assert "\x1b" not in text and text.startswith("step 100/1500")


def notebook(monkeypatch):
    """What a notebook would show, from here on."""
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stdout", stream)
    return stream


def test_a_notebook_has_one_line_that_is_written_over(clock, monkeypatch):
    shown = notebook(monkeypatch)
    with progress("label", 100, "image") as advance:
        for seconds, done in ((1, 1), (2, 50), (3, 100)):
            clock[0] = seconds
            advance(done)
    lines = shown.getvalue().split("\r")
    assert [line.rstrip() for line in lines] == [
        "",
        f"label  {COMPILING}  image 0/100",
        "label  image 1/100  elapsed 1s",
        "label  image 50/100  ETA 1s  elapsed 2s  49.0 images/s",
        "label  image 100/100  elapsed 3s  49.5 images/s",
    ]
    assert shown.getvalue().count("\n") == 1
    assert len(lines[2]) == len(lines[1]), "the longer text before it still shows"


def test_a_notebook_forgets_a_share_that_is_done(clock, monkeypatch):
    shown = notebook(monkeypatch)
    with progress("preparing x", 1.0) as advance:
        advance(0.5)
    *_, last = shown.getvalue().removesuffix("\r").split("\r")
    assert shown.getvalue().endswith("\r") and not last.strip()
    assert "50%" in shown.getvalue() and "\n" not in shown.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (0.6, "1s"), (59.4, "59s"), (59.6, "1m00s"), (61, "1m01s"),
        (3599, "59m59s"), (3600, "1h00m"), (7290, "2h01m"), (360_000, "100h00m"),
    ],
)  # fmt: skip
def test_a_duration_has_its_two_largest_units(seconds, text):
    assert module._duration(seconds) == text


@pytest.mark.parametrize(
    ("room", "text"),
    [(9, "ab  c  de"), (8, "ab  c"), (5, "ab  c"), (4, "ab"), (2, "ab"), (1, "a"), (-1, "")],
)
def test_as_many_words_are_shown_as_there_is_room_for(room, text):
    assert module._fitting(["ab", "c", "de"], room) == text
