"""Work in parts: rows by image, whatever parts they came in, through kills and other sizes."""

import logging
import os
import re
import shutil

import jax
import numpy as np
import pytest
from helpers.tiny_runs import npz

from scoremle import processes
from scoremle.errors import UserError
from scoremle.progress import progress
from scoremle.resumable import fingerprint, missing, resumable_map

N = 11


class Work:
    """Rows that depend on pass and image; remembers what it was asked for.

    It is killed after ``until`` calls, and raises ``error`` for more than ``most`` images.
    """

    def __init__(self, until=None, *, most=np.inf, error=None):
        self.asked, self.until, self.most, self.error = [], until, most, error

    def __call__(self, repeat, index):
        if len(self.asked) == self.until:
            raise KeyboardInterrupt
        if len(index) > self.most:
            raise self.error
        self.asked.append((repeat, index.tolist()))
        return {"x": 100 * repeat + index, "more": np.stack([index, -index], axis=1)}


def expected(passes=2, n=N):
    i = np.tile(np.arange(n), (passes, 1))
    return {"x": 100 * np.arange(passes)[:, None] + i, "more": np.stack([i, -i], axis=2)}


def check(found, **sizes):
    assert found.keys() == expected(**sizes).keys()
    for name, rows in expected(**sizes).items():
        np.testing.assert_array_equal(found[name], rows)


def run(folder, work, size=4, passes=2, n=N, **more):
    return resumable_map(work, n, size=size, passes=passes, folder=folder, **more)


@pytest.mark.parametrize("size", [1, 4, 11, 50])
@pytest.mark.parametrize("kept", [True, False])
def test_each_image_once_a_pass_in_calls_of_one_size(tmp_path, size, kept):
    work = Work()
    check(run(tmp_path if kept else None, work, size))
    assert {len(index) for _, index in work.asked} == {size}
    for repeat in (0, 1):
        seen = [i for r, index in work.asked if r == repeat for i in dict.fromkeys(index)]
        assert seen == [*range(N)]
    assert bool([*tmp_path.iterdir()]) == kept


def test_images_without_a_finished_part_are_known(tmp_path):
    assert missing(N, passes=2, folder=tmp_path).tolist() == [*range(N)]
    run(tmp_path, Work(), share=slice(2, 9))
    assert missing(N, passes=2, folder=tmp_path).tolist() == [0, 1, 9, 10]
    assert missing(N, passes=3, folder=tmp_path).tolist() == [*range(N)]
    assert missing(N, passes=1, folder=tmp_path).tolist() == [0, 1, 9, 10]
    (tmp_path / "pass1_image6.npz").write_bytes(b"")
    assert missing(N, passes=2, folder=tmp_path).tolist() == [0, 1, 6, 7, 8, 9, 10]


def test_a_fingerprint_is_of_facts_not_of_their_order():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert len({fingerprint({"a": value}) for value in (1, 2, "1", [1])}) == 4


def test_the_last_call_is_filled_up_with_its_last_image():
    work = Work()
    run(None, work, passes=1)
    assert work.asked[-1] == (0, [8, 9, 10, 10])


@pytest.mark.parametrize("finished", range(6))
@pytest.mark.parametrize("size", [4, 3, 11])
def test_killed_work_goes_on_with_any_size(tmp_path, finished, size):
    first, then = Work(until=finished), Work()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, first)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(times) == finished
    check(run(tmp_path, then, size))
    assert {path: path.stat().st_mtime_ns for path in times} == times
    asked = [*first.asked, *then.asked]
    asked = [(repeat, i) for repeat, index in asked for i in dict.fromkeys(index)]
    assert sorted(asked) == [(r, i) for r in (0, 1) for i in range(N)]  # none twice, none left out


XLA_ERROR = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nand a long list")


@pytest.mark.parametrize("error", [XLA_ERROR, MemoryError("3 GiB are needed")])
def test_what_does_not_fit_memory_is_halved_and_that_is_said(tmp_path, error, caplog):
    work = Work(most=3, error=error)
    with caplog.at_level(logging.WARNING, "scoremle"):
        check(run(tmp_path, work, size=11))
    assert {len(index) for _, index in work.asked} == {2}  # 11, 5, 2
    told = str(error).splitlines()[0]
    assert caplog.messages == [
        f"{size} images at once are too many for memory ({told}): continuing with {half} at once"
        for size, half in ((11, 5), (5, 2))
    ]
    check(run(tmp_path, Work(until=0), size=11))  # all of it is there


def test_a_half_divides_over_the_devices_or_there_is_none():
    work = Work(most=7, error=XLA_ERROR)
    check(run(None, work, size=12, least=4))
    assert {len(index) for _, index in work.asked} == {4}
    for settings in ({"size": 4, "least": 4}, {"size": 1}, {"size": 8, "least": 8}):
        with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
            run(None, Work(most=0, error=XLA_ERROR), **settings)


def test_other_errors_are_not_taken_for_memory():
    work = Work(most=3, error=RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        run(None, work, size=11)
    assert not work.asked


def test_damaged_lost_and_foreign_files_are_no_parts(tmp_path):
    run(tmp_path, Work())
    (tmp_path / "pass0_image4.npz").unlink()
    (tmp_path / "pass1_image8.npz").write_bytes(b"PK\3\4damaged")
    np.savez(tmp_path / "pass1_image0.npz", x=np.zeros(4))  # says nothing of its place
    (tmp_path / ".pass0_image4.npz.12").write_bytes(b"half")
    (tmp_path / "passport.npz").write_bytes(b"of another program")
    work = Work()
    check(run(tmp_path, work, size=3))
    assert work.asked == [
        (0, [4, 5, 6]), (0, [7, 7, 7]), (1, [0, 1, 2]), (1, [3, 3, 3]), (1, [8, 9, 10])
    ]  # fmt: skip


def test_a_folder_may_have_any_name(tmp_path):
    folder = tmp_path / os.fsdecode(b"a\xff")
    run(folder, Work())
    work = Work()
    check(run(folder, work))
    assert not work.asked


def test_parts_of_other_work_or_another_place_are_named_and_left_out(tmp_path, caplog):
    ours, other = tmp_path / "parts" / "exact_0123", tmp_path / "parts" / "exact_4567"
    run(ours, Work())
    run(other, lambda repeat, index: {"x": -index, "more": np.stack([index, index], axis=1)})
    shutil.copy(other / "pass0_image4.npz", ours)  # of other settings
    shutil.copy(ours / "pass0_image8.npz", ours / "pass1_image8.npz")  # of another place
    part = npz(ours / "pass1_image4.npz")
    np.savez(ours / "pass1_image4.npz", **part | {"x": part["x"] + 1})  # sound, but altered
    work = Work()
    with caplog.at_level(logging.WARNING, "scoremle"):
        check(run(ours, work))
    assert work.asked == [(0, [4, 5, 6, 7]), (1, [4, 5, 6, 7]), (1, [8, 9, 10, 10])]
    lines = "\n".join(record.getMessage() for record in caplog.records)
    named = re.findall(r"(\w+)\.npz is damaged or was made for another place", lines)
    assert named == ["pass0_image4", "pass1_image4", "pass1_image8"]


@pytest.mark.parametrize("odd", [np.zeros(2), np.zeros(0), np.float64(1.0), np.zeros((5, 4))])
def test_a_part_whose_columns_are_not_as_long_is_worked_on_again(odd, tmp_path, caplog):
    """Where there is no seal either."""
    run(tmp_path, Work())
    path = tmp_path / "pass0_image4.npz"
    part = npz(path)
    del part["seal"]
    np.savez(path, **{**part, "odd": odd})
    work = Work()
    with caplog.at_level(logging.WARNING, "scoremle"):
        check(run(tmp_path, work))
    assert "pass0_image4.npz is damaged" in caplog.text
    assert work.asked == [(0, [4, 5, 6, 7])]


def test_parts_of_an_earlier_version_are_taken(tmp_path):
    """They have no seal."""
    run(tmp_path, Work())
    for path in tmp_path.iterdir():
        part = npz(path)
        del part["seal"]
        np.savez(path, **part)
    check(run(tmp_path, Work(until=0)))


def test_more_images_and_more_passes_are_added_and_fewer_are_taken(tmp_path):
    run(tmp_path, Work(), passes=1, n=6)
    work = Work()
    check(run(tmp_path, work))
    assert work.asked[0] == (0, [6, 7, 8, 9])
    none = Work(until=0)
    check(run(tmp_path, none, passes=1, n=5), passes=1, n=5)


def test_parts_of_several_runs_lie_together(tmp_path):
    """Two runs with other sizes that were stopped: each has what the other lacks."""
    a, b = (tmp_path / run / "parts" / "exact_0123" for run in ("a", "b"))
    for folder, size, until in ((a, 5, 2), (b, 3, 5)):
        with pytest.raises(KeyboardInterrupt):
            run(folder, Work(until), size)
    for part in a.iterdir():
        part.rename(b / f"{part.stem}_of_a.npz")
    work = Work()
    check(run(b, work))
    assert work.asked == [(1, [3, 4, 5, 6]), (1, [7, 8, 9, 10])]


def test_progress_counts_what_was_finished_before(tmp_path, capsys, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Work(until=4))
    told, begun = [], []

    def noted(*arguments, done):
        begun.append(done)
        return progress(*arguments, done=done)

    monkeypatch.setattr("scoremle.resumable.progress", noted)

    def describe(rows, done):
        told.append(int(done.sum()))
        return f"mean {rows['x'][done].mean():.1f}"

    run(tmp_path, Work(), label="work", unit="image", describe=describe)
    assert begun == [15] and told == [19, 22]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("work, 2 passes of 11  image 22/22  mean 55.0  ")
    assert line.endswith("elapsed 0s")
    run(tmp_path, Work())
    assert capsys.readouterr().out == ""


def test_no_images():
    check(resumable_map(Work(), 0, size=3), passes=1, n=0)


def test_processes_that_see_other_parts_end_with_a_line(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr(processes, "LAST_WORDS", 0)
    monkeypatch.setattr(processes, "_of_all", lambda text: [text, b"{}"])
    with pytest.raises(UserError, match="do not agree"):
        resumable_map(lambda repeat, index: {"row": index}, 4, size=2, label="scores")
