"""Progress: what is told, when, and a time to go that leaves compilation out."""

import sys

import pytest

from scoremle import progress as module
from scoremle.progress import Progress, progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def told(clock, shown, *moments):
    for seconds, done, *text in moments:
        clock[0] = seconds
        shown.tell(done, *text)


def test_lines_now_and_then_and_one_at_the_end(clock, capsys):
    with progress("label", 100, "image", done=10) as tell:
        for seconds, done in ((10, 20), (15, 30), (21, 40), (30, 60), (40, 90), (41, 100)):
            clock[0] = seconds
            tell(done, f"mean {done}")
    assert capsys.readouterr().out.splitlines() == [
        "label  image 40/100  mean 40  1.8 images/s  ETA 33s",
        "label  image 100/100  mean 100  2.6 images/s  ETA 0s",
    ]


def test_the_time_to_go_leaves_compilation_out(clock, capsys):
    """The first step takes a minute, each other half a second."""
    shown = Progress("", 100, "step", every=0)
    shown.start()
    told(clock, shown, (60, 1), (60.5, 2), (64.5, 10))
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "step 1/100  0.017 steps/s  ETA 1h39m (with compilation)"
    assert second == "step 2/100  2.0 steps/s  ETA 49s"
    assert third == "step 10/100  2.0 steps/s  ETA 45s"


def test_what_was_done_before_does_not_count_as_speed(clock, capsys):
    shown = Progress("", 100, "step", every=0)
    shown.start(90)
    told(clock, shown, (1, 91), (3, 92))
    assert capsys.readouterr().out.splitlines()[1] == "step 92/100  0.5 steps/s  ETA 16s"


def test_nothing_left_to_do(capsys):
    with progress("label", 5, "image", done=5) as tell:
        tell(5, "mean 1")
    assert capsys.readouterr().out == "label  image 5/5  mean 1  ETA 0s\n"


def test_a_share_is_told_only_while_it_lasts(clock, capsys):
    with progress("preparing x", 1.0) as tell:
        for seconds, done in ((21, 0.25), (22, 0.3), (50, 0.5), (60, 1.0)):
            clock[0] = seconds
            tell(done)
    assert capsys.readouterr().out.splitlines() == [
        "preparing x  25%  ETA 1m03s",
        "preparing x  50%  ETA 58s",
    ]


def test_without_a_label_nothing_is_said(capsys):
    with progress("", 5, "image") as tell:
        tell(5, "mean 1")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("unit", ["step", ""])
def test_a_bar_on_a_terminal(unit, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    total = 10 if unit else 1.0
    with progress("[label] {x}", total, unit) as tell:
        tell(total, "bpd [2.5]")
    out = capsys.readouterr().out
    assert "[label] {x}" in out and f"{'step 10/10' if unit else '100%'}  bpd [2.5]" in out
    assert out.endswith("\x1b[2K") == (not unit)  # a share is wiped out when it is done
