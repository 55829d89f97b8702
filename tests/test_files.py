"""Files are there whole or not at all."""

import errno
import json
import os
import stat
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from scoremle import files
from scoremle.data.prepared import made_whole
from scoremle.errors import UserError
from scoremle.files import (
    make_folder,
    read_json,
    read_npz,
    write_atomically,
    write_json,
    writing,
)
from scoremle.training.checkpoints import Checkpoints
from scoremle.training.writers import JsonLines


def test_a_new_file_takes_the_place_of_the_old_one_whose_content_stays_what_it_was(tmp_path):
    path = tmp_path / "a" / "file"
    with write_atomically(path) as temporary:
        temporary.write_text("the old one")
    with path.open() as old:
        with write_atomically(path) as temporary:
            temporary.write_text("the new one")
            assert path.read_text() == "the old one"
        assert old.read() == "the old one"
    assert path.read_text() == "the new one"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_what_fails_on_the_way_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("the old one")
    with pytest.raises(RuntimeError), write_atomically(path) as temporary:
        temporary.write_text("half of the")
        raise RuntimeError
    assert path.read_text() == "the old one" and list(tmp_path.iterdir()) == [path]


@pytest.fixture
def ended():
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_a_process_left_that_is_gone_is_swept(tmp_path, ended):
    now, earlier = time.time(), time.time() - 1e5
    names = {
        f".x.json.{files.machine()}.{ended}.0123abcd.tmp": (now, False),
        f".x.json.{files.machine()}.{os.getpid()}.0123abcd.tmp": (now, True),
        f".x.json.{files.machine()}.{1 << 70}.0123abcd.tmp": (now, False),
        ".x.json.another-1.7.0123abcd.tmp": (now, True),
        ".y.json.another-1.7.0123abcd.tmp": (earlier, False),
        ".somebody.elses.tmp": (earlier, True),
    }
    for name, (written, _) in names.items():
        (tmp_path / name).write_text("half of the")
        os.utime(tmp_path / name, (written, written))
    write_json(tmp_path / "x.json", {})
    kept = {name for name, (_, kept) in names.items() if kept}
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", *kept}


def test_what_can_not_be_swept_stays(tmp_path, ended):
    left = tmp_path / f".a.{files.machine()}.{ended}.0123abcd.tmp"
    left.write_text("no folder")
    with made_whole(tmp_path / "a") as folder:
        (folder / "x").touch()
    assert left.exists() and (tmp_path / "a/x").exists()


def test_a_clock_that_is_ahead_sweeps_nothing_of_other_machines(tmp_path, monkeypatch):
    written = tmp_path / ".x.json.another-1.7.0123abcd.tmp"
    written.write_text("half of the")
    ahead = time.time() + 1e6
    monkeypatch.setattr("time.time", lambda: ahead)
    write_json(tmp_path / "x.json", {})
    assert written.exists()


def test_two_that_write_at_once_do_not_meet(tmp_path, monkeypatch):
    """Not even where machines number their processes alike, and a machine has one name."""
    path = tmp_path / "file"
    with write_atomically(path) as one, write_atomically(path) as two:
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]
    here = files.temporary_beside(path).name
    monkeypatch.setattr("socket.gethostname", lambda: "node1.cluster.org")
    files.machine.cache_clear()
    there = files.temporary_beside(path).name
    files.machine.cache_clear()
    assert there.startswith(".file.node1-cluster-org-")
    assert all(files.TEMPORARY.fullmatch(name) for name in (here, there))


def test_a_name_may_be_as_long_as_file_systems_take(tmp_path):
    path = tmp_path / ("图" * 83 + ".json")  # 254 bytes
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}


def test_what_is_no_file_is_written_to(tmp_path):
    """A device, a pipe that has a reader, and what a shell gives for >(COMMAND)."""
    write_json(Path("/dev/null"), {})
    assert Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: nobody reads"):
        write_json(tmp_path / "pipe", {})
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_json(tmp_path / "pipe", {"a": 1})
    assert json.loads(os.read(reader, 100)) == {"a": 1}
    os.close(reader)
    (tmp_path / "link").symlink_to("pipe")
    write_json(tmp_path / "link", {})  # no link is written through
    assert (tmp_path / "pipe").is_fifo() and not (tmp_path / "link").is_symlink()
    reader, writer = os.pipe()
    write_json(Path(f"/dev/fd/{writer}"), {"a": 2})
    os.close(writer)
    with open(reader, "rb") as content:
        assert json.load(content) == {"a": 2}


def test_a_process_of_another_user_is_not_gone(monkeypatch):
    def other(number, _):
        raise PermissionError if number == 7 else ProcessLookupError

    monkeypatch.setattr("os.kill", other)
    here = files.machine()
    gone = [files.is_gone(*each) for each in ((here, 7), (here, 8), ("another-1", 8))]
    assert gone == [False, True, False]


def test_a_name_as_long_as_names_may_be(tmp_path):
    path = tmp_path / ("x" * 255)
    write_json(path, {})
    assert read_json(path) == {}


def test_what_can_not_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="file is no"):
        write_json(tmp_path / "file" / "below" / "x", {})
    with pytest.raises(UserError, match="file is no"), writing(tmp_path / "file" / "x"):
        make_folder(tmp_path / "file" / "x")


@pytest.fixture
def order(monkeypatch):
    """What was asked of the system, in order: each file or folder that was put on disk, by its
    name, and each renaming as (from, to)."""
    done = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def synced(handle):
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def renamed(by):
        def call(old, new):
            done.append((Path(old).name, Path(new).name))
            by(old, new)

        return call

    monkeypatch.setattr("os.fsync", synced)
    monkeypatch.setattr("os.replace", renamed(replace))
    monkeypatch.setattr("os.rename", renamed(rename))
    return done


def test_content_is_on_disk_before_its_name_and_the_name_before_it_returns(tmp_path, order):
    write_json(tmp_path / "new" / "folder" / "x.json", {})
    (temporary,) = {step[0] for step in order if isinstance(step, tuple)}
    # Both new folders lie in a folder that knows their names.
    assert sorted(order[:2]) == sorted([tmp_path.name, "new"])
    assert order[2:] == [temporary, (temporary, "x.json"), "folder"]


def test_a_row_of_the_log_is_on_disk_before_it_returns(tmp_path, order):
    """So that a checkpoint that comes later leaves no gap behind it."""
    writer = JsonLines(tmp_path / "metrics.jsonl")
    writer.rewind(0)
    del order[:]
    writer.write(1, {"loss": 1.0})
    assert order == ["metrics.jsonl"]


def test_a_checkpoint_is_on_disk_before_its_name(tmp_path, order):
    store = Checkpoints(tmp_path / "store", keep=1)
    store.save(1, {"a": np.arange(3.0)}, {})
    del order[:]
    store.save(2, {"a": np.arange(3.0)}, {})
    names = [path.name for path in store.path(2).rglob("*")]
    here = order.index(("checkpoint_2.new", "checkpoint_2"))
    # Orbax renames on the way; what counts is what comes between its end and our renaming.
    assert sorted(order[here - len(names) - 1 : here]) == sorted([*names, "checkpoint_2.new"])
    assert order[here + 1 :] == ["store", ("checkpoint_1", "checkpoint_1.old")]


def test_a_prepared_folder_is_on_disk_before_its_name(tmp_path, order):
    with made_whole(tmp_path / "a") as folder:
        (folder / "meta.json").write_text("{}")
    assert order == ["meta.json", folder.name, (folder.name, "a"), tmp_path.name]


def test_folders_that_can_not_be_put_on_disk_are_let_be(tmp_path, monkeypatch):
    """A network file system may refuse it for a folder; what it refuses for a file counts."""
    fsync, refused = os.fsync, errno.EINVAL

    def fails(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(refused, os.strerror(refused))
        fsync(handle)

    monkeypatch.setattr("os.fsync", fails)
    write_json(tmp_path / "x", {})
    assert read_json(tmp_path / "x") == {}
    refused = errno.EIO
    with pytest.raises(UserError, match="Input/output error"):
        write_json(tmp_path / "x", {})


class Harm:
    """What a pickle of it does when it is read."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (Path.touch, (self.place,))


def test_memory_that_does_not_suffice_is_no_damage_of_an_npz(tmp_path, monkeypatch):
    def fails(*_):
        raise MemoryError

    np.savez(tmp_path / "x.npz", a=1)
    monkeypatch.setattr(files, "read_arrays", fails)
    with pytest.raises(MemoryError):
        read_npz(tmp_path / "x.npz")


def test_an_npz_with_a_pickle_is_none_and_runs_nothing(tmp_path):
    harm = np.empty(1, object)
    harm[0] = Harm(tmp_path / "harm")
    np.savez(tmp_path / "x.npz", a=harm)
    assert read_npz(tmp_path / "x.npz") is None
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "X.NPZ"])
def test_an_array_is_written_in_the_format_of_its_name(name, tmp_path):
    files.write_array(tmp_path / name, "images", np.arange(3), None)
    with (tmp_path / name).open("rb") as file:
        found = np.load(file)
        array = found if name.endswith("npy") else found["images"]
    assert array.tolist() == [0, 1, 2]


def test_a_pipe_in_place_of_json_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UserError, match="plain file"):
        read_json(tmp_path / "config.json")


def test_json_is_read_no_further_than_records_are_long(tmp_path):
    """A file may be of any length, and take no place on a disk."""
    with (tmp_path / "x").open("wb") as file:
        file.write(b'{"a": 1}')
        file.truncate(1 << 42)
    with pytest.raises(UserError, match=r"\d+ bytes"):
        read_json(tmp_path / "x")
