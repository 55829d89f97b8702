"""A process in two: however the one that works ends, the other says a line and the exit code."""

import signal
import subprocess
import sys

import pytest
from helpers.places import ROOT

from scoremle.cli.child import LOST, NEVER_MET

SCRIPT = """
import os, signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored
from scoremle.cli.child import run_in_child
fork = os.fork
os.fork = lambda: (child := fork()) and (time.sleep({}), child)[1]  # the parent is late
with run_in_child(3) as has_met:
    {}
print("done")
"""
WAITS = "print(os.getpid(), flush=True); time.sleep(60)"


def start(block, late=0.0):
    command = [sys.executable, "-c", SCRIPT.format(late, block)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)


@pytest.mark.parametrize(("block", "line"), [
    (r"raise ValueError('one\ntwo')", "one two"),
    (r"has_met(); raise ValueError('one\ntwo')", "one two"),
    ("has_met(); print('Terminating process', file=sys.stderr); os._exit(1)", LOST),
    ("has_met(); os.abort()", LOST),
    ("os.abort()", NEVER_MET),
    ("os.kill(os.getpid(), 9)",
     "its work was ended by signal SIGKILL: the same command resumes from what is saved"),
])  # fmt: skip
def test_the_last_line_is_ours(block, line):
    process = start(block)
    said, errors = process.communicate()
    assert process.returncode == 2 and not said
    assert errors.splitlines()[-1] == f"scoremle: error: process 3: {line}"


def test_what_ends_well_says_nothing():
    process = start("pass")
    assert process.communicate() == ("done\n", "") and process.returncode == 0


@pytest.mark.parametrize("late", [0.0, 0.5])
def test_sigterm_is_handed_on(late):
    process = start(f"signal.signal(signal.SIGTERM, lambda *_: os._exit(143)); {WAITS}", late)
    assert int(process.stdout.readline()) != process.pid
    process.terminate()
    said, errors = process.communicate()
    assert not said and process.returncode == 143
    assert errors.startswith("scoremle: stopping") and errors.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
@pytest.mark.parametrize("block", [WAITS, f"has_met(); {WAITS}"])
def test_who_works_ends_with_its_parent(block, number):
    """What the parent has not read of the connection makes an error of its end."""
    process = start(block)
    process.stdout.readline()
    process.send_signal(number)
    process.communicate(timeout=30)  # both have their ends of the pipes
