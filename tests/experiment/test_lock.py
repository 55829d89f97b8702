"""One process at a time: the second is refused in a line, and a dead owner is in nobody's way."""

import errno
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.places import ROOT
from helpers.tiny_runs import evaluate, mistake

from scoremle.errors import UserError
from scoremle.experiment import lock
from scoremle.experiment.lock import locked
from scoremle.experiment.results import add_results, read_results
from scoremle.experiment.workdir import Workdir
from scoremle.files import machine

IN_2242 = 2**33
OWNER = """
import pathlib, sys, time
from scoremle.experiment.lock import locked
with locked(pathlib.Path(sys.argv[1]), "training there"):
    print("there", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / ".lock"


@pytest.fixture
def owner(path):
    """Another process that has the file."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(path)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout.readline() == "there\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def no_locks(monkeypatch):
    """A file system that knows no locks."""

    def unknown(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unknown)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.04)
    monkeypatch.setattr(lock, "WATCH", 0.4)


def write_owner(path, **fields):
    path.parent.mkdir()
    known = {"doing": "training there", "machine": "another-1", "process": 7, "since": "noon"}
    path.write_text(json.dumps(known | fields))


def test_the_file_is_there_for_as_long_as_its_owner_works(path):
    with locked(path, "training there"):
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert not path.exists()
    with pytest.raises(RuntimeError), locked(path, "training there"):
        raise RuntimeError
    assert not path.exists()


def test_the_file_is_left_to_another_that_took_it_over(path):
    with locked(path, "training there"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "another-1"}))
    assert path.exists()


def test_the_second_is_refused_in_a_line_that_says_who_is_there(path, owner):
    line = (
        rf"\S*run is in use: process {owner.pid} on {machine()} is training there since "
        r"\d+-\d+-\d+ \d+:\d+:\d+ \w+; wait for it, or end it"
    )
    with pytest.raises(UserError) as error, locked(path, "training there"):
        pass
    assert re.fullmatch(line, str(error.value))
    assert json.loads(path.read_text())["process"] == owner.pid


def test_the_second_is_refused_though_the_file_does_not_say_by_whom(path, owner):
    path.write_text("{}")
    with pytest.raises(UserError, match="by another process:"):
        locked(path, "training there").__enter__()


def test_a_process_that_leaves_writing_to_others_needs_no_file(path, monkeypatch):
    monkeypatch.setattr(lock, "is_writer", lambda: False)
    with locked(path, "training there"):
        assert not path.parent.exists()


def test_a_file_whose_owner_has_removed_it_is_made_anew(path, monkeypatch):
    """Between its opening and its lock; or another has made it again."""
    path.parent.mkdir()
    opened = []

    def held(handle, at):
        opened.append(handle)
        if len(opened) < 3:
            at.unlink()
        if len(opened) == 2:
            at.touch()
        return False

    monkeypatch.setattr(lock, "_is_held", held)
    with locked(path, "training there"):
        assert len(opened) == 3 and json.loads(path.read_text())["process"] == os.getpid()


def test_an_owner_elsewhere_that_removes_its_file_was_alive(path, monkeypatch):
    path.parent.mkdir()
    path.touch()
    monkeypatch.setattr(lock.time, "sleep", lambda _: path.unlink())
    assert lock._is_touched(path)


def test_a_killed_owner_is_in_nobodys_way(path, owner):
    owner.kill()
    owner.wait()
    assert path.exists()
    began = time.monotonic()
    with locked(path, "training there"):
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert time.monotonic() - began < lock.BEAT / 2


def test_without_locks_a_dead_process_of_this_machine_is_known(path, owner, no_locks):
    owner.kill()
    owner.wait()
    with locked(path, "training there"):
        assert json.loads(path.read_text())["process"] == os.getpid()


@pytest.mark.parametrize("locks", [True, False])
def test_an_owner_elsewhere_is_watched(path, quick, locks, request, capsys):
    """A network file system may keep its locks to one machine, or have none; clocks differ."""
    if not locks:
        request.getfixturevalue("no_locks")
    write_owner(path)
    os.utime(path, (IN_2242, IN_2242))
    stop = threading.Event()
    beating = threading.Thread(target=lock._beat, args=(path, stop))
    beating.start()
    with pytest.raises(UserError, match="process 7"):
        locked(path, "training there").__enter__()
    stop.set()
    beating.join()
    os.utime(path, (IN_2242, IN_2242))
    with locked(path, "training there"):  # it gives no sign of life any more
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert "is its owner alive?" in capsys.readouterr().out


def test_who_is_there_gives_signs_of_life(path, quick):
    with locked(path, "training there"):
        seen = {lock._touched_at(path) for _ in range(20) if not time.sleep(0.02)}
    assert len(seen) > 3


@pytest.mark.parametrize("content", [
    "", "{", "[]", "7", '{"machine": "another-1"}', "[" * 9000,
    *(json.dumps({"doing": "", "machine": machine(), "process": number, "since": ""})
      for number in ("7", None, 7.5, 1 << 31, [7])),
])  # fmt: skip
def test_a_file_that_does_not_say_whose_it_is_is_nobodys(path, content):
    path.parent.mkdir()
    path.write_text(content)
    with locked(path, "training there"):
        assert path.exists()


def test_who_waits_gets_it_when_it_is_free(path):
    order = []

    def work(i):
        with locked(path, "writing", wait=30):
            order.append(("in", i))
            time.sleep(0.005)
            order.append(("out", i))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16)))
    for (into, i), (out, j) in zip(order[::2], order[1::2], strict=True):
        assert (into, out, i) == ("in", "out", j)
    assert not path.exists()


def test_results_of_many_at_once_are_all_there(tmp_path):
    path = tmp_path / "results.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: add_results(path, {f"result_{i}": {"mean": i}}), range(24)))
    assert {name: facts["mean"] for name, facts in read_results(path).items()} == {
        f"result_{i}": i for i in range(24)
    }
    assert list(tmp_path.iterdir()) == [path]


def test_the_second_training_in_a_workdir_is_refused(tiny, capfd):
    with Workdir(tiny.workdir).locked():
        line = mistake(capfd, "train", tiny.workdir)
    assert f"process {os.getpid()}" in line
    assert not (tiny.workdir / ".training.lock").exists()


@pytest.mark.long
@pytest.mark.slow
def test_an_evaluation_while_training_is_allowed(tiny):
    with Workdir(tiny.workdir).locked():
        _, results = evaluate(tiny, "while_training", eval__num_images=10)
    assert results
