"""SIGINT and SIGTERM: they end a command wherever they come, and are nobody's error."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import jax
import jax.numpy as jnp
import pytest
from helpers.places import ROOT
from jax.experimental.buffer_callback import buffer_callback

from scoremle.__main__ import main as program
from scoremle.cli import main as cli
from scoremle.cli import signals
from scoremle.cli.signals import ANSWERED, answered, going_on
from scoremle.errors import Stopped, UserError

ENDS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Stopped}


def plainly(number, tmp_path):
    signal.raise_signal(number)


def imported(number, tmp_path, seconds):
    lines = ["import signal, time", f"signal.raise_signal({number})", f"time.sleep({seconds})"]
    (tmp_path / "interrupted.py").write_text("\n".join([*lines, "whole = True", ""]))
    import interrupted

    return interrupted


def in_an_import(number, tmp_path):
    """The module is read to its end, however often the signal comes."""
    try:
        assert imported(number, tmp_path, 3 * signals.AGAIN).whole
    except tuple(ENDS.values()) as error:
        raise AssertionError("it came within the import") from error
    threading.Event().wait(60)


def in_an_import_that_does_not_end(number, tmp_path):
    imported(number, tmp_path, 60)


def in_a_finalizer(number, tmp_path):
    """Python drops its error."""

    class Last:
        def __del__(self):
            signal.raise_signal(number)

    Last()
    threading.Event().wait(60)


def in_code_that_takes_it_for_damage(number, tmp_path):
    try:
        signal.raise_signal(number)
    except Exception as error:
        raise UserError("it is damaged") from error


def in_code_that_drops_whatever_comes(number, tmp_path):
    with suppress(BaseException):
        signal.raise_signal(number)
    threading.Event().wait(60)


def in_a_function_that_a_program_calls(number, tmp_path):
    """JAX makes a RuntimeError of it."""

    def called(context, out, x):
        signal.raise_signal(number)

    x = jnp.ones(3)
    jax.block_until_ready(buffer_callback(called, jax.typeof(x))(x))


@pytest.mark.parametrize("number", ANSWERED)
@pytest.mark.parametrize(
    "place",
    [
        plainly, in_an_import, in_an_import_that_does_not_end, in_a_finalizer,
        in_code_that_takes_it_for_damage, in_code_that_drops_whatever_comes,
        in_a_function_that_a_program_calls,
    ],
)  # fmt: skip
def test_it_ends_the_work_wherever_it_comes(place, number, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "interrupted", raising=False)
    monkeypatch.setattr(signals, "PATIENCE", 0.4)
    monkeypatch.setattr(signals, "SOON", 5.0)  # a busy machine may take half a second to end
    before = [*map(signal.getsignal, ANSWERED), sys.unraisablehook]
    with pytest.raises(ENDS[number]), answered():
        place(number, tmp_path)
    assert [*map(signal.getsignal, ANSWERED), sys.unraisablehook] == before
    assert capsys.readouterr() == ("", "")


def test_a_line_comes_at_once_where_the_end_may_take_long(capfd):
    with pytest.raises(Stopped), answered():
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        os.system("sleep 1; echo compiled >&2")  # no handler runs meanwhile
    first, *rest = capfd.readouterr().err.splitlines()
    assert first.startswith("scoremle: stopping") and rest == ["compiled"]


def test_what_is_ignored_stays_so(monkeypatch):
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with answered():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, usual)


def test_what_others_drop_is_still_shown(monkeypatch):
    class Last:
        def __del__(self):
            raise ValueError("of another")

    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: told.append(dropped.exc_value))
    with answered():
        Last()
    assert str(told[0]) == "of another" and len(told) == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, lambda: Stopped(signal.SIGTERM)])
def test_what_is_finished_is_named_if_there_is_any(kind, tmp_path):
    for name, said in (("x.json", ""), ("x.npz", "it is there")):
        (tmp_path / name).touch()
        with pytest.raises((KeyboardInterrupt, Stopped)) as end, going_on("it is there", tmp_path):
            raise kind()
        words = end.value.words if isinstance(end.value, Stopped) else "".join(end.value.args)
        assert words == said


def test_a_thread_beside_the_main_one_is_left_alone():
    def work():
        with answered():
            return [*map(signal.getsignal, ANSWERED)]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == [*map(signal.getsignal, ANSWERED)]


def test_a_program_that_was_stopped_does_not_wait_for_what_is_computed(monkeypatch):
    """Python's own end would, and crashes then."""
    usual = {number: signal.getsignal(number) for number in ANSWERED}
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    for code in (0, 2, 130, 143):
        monkeypatch.setattr(cli, "main", lambda code=code: code)
        assert program() == code
    for number in ANSWERED:
        signal.signal(number, usual[number])
    assert ended == [130, 143]


# The program, to which a signal comes when it begins to import a module.
SCRIPT = """
import os, signal, sys
module, number = sys.argv.pop(1), int(sys.argv.pop(1))
class Finder:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), number)
sys.meta_path.insert(0, Finder())
from scoremle.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("module", "number", "words"),
    [
        ("scoremle.cli.parser", signal.SIGINT, ["verify", "docs"]),
        ("jax._src.lib", signal.SIGTERM, ["verify", "docs"]),
        pytest.param(
            "optax", signal.SIGINT, ["train", "digits", "nowhere"], marks=pytest.mark.long
        ),
    ],
)
def test_while_the_program_is_loaded_one_line_is_all(module, number, words):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, module, str(int(number)), *words],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (128 + number, "")
    # Where an import takes longer than half a second, a line before says so.
    said = [line for line in done.stderr.splitlines() if "stopping as soon" not in line]
    assert said == ["scoremle: interrupted"] * (number == signal.SIGINT)
