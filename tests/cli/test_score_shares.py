"""Scores in shares and on workers: what they put together is what one machine scores."""

import sys
from contextlib import nullcontext

import numpy as np
import pytest

import scoremle
from scoremle.cli import main as cli
from scoremle.cli.commands import parser_of
from scoremle.cli.commands.score import _check_whole
from scoremle.errors import UserError
from scoremle.resumable import resumable_map


@pytest.fixture
def images(tmp_path):
    np.save(tmp_path / "x.npy", scoremle.data.load("digits").test[:7])
    return tmp_path / "x.npy"


def score(images, out, *flags):
    """Exit code of a command that scores in two passes."""
    return cli.main(["score", "digits", str(images), f"--out={out}", "--repeats=2", *flags])


@pytest.mark.slow
@pytest.mark.long
def test_shares_make_the_table_of_one_machine(images, tmp_path, capsys):
    assert score(images, tmp_path / "one.csv") == 0
    assert score(images, tmp_path / "two.csv", "--shard=2/2") == 0
    capsys.readouterr()
    assert score(images, tmp_path / "two.csv", "--merge") == 2
    assert "3 of 7" in (said := capsys.readouterr().err)
    assert "first is 0" in said
    assert score(images, tmp_path / "two.csv", "--shard=1/2") == 0
    assert not (tmp_path / "two.csv").exists()
    told = capsys.readouterr().out
    assert "share 1 of 2, 3 images" in told
    # Of each pass two: nothing was scored twice.
    assert len(list((tmp_path / ".two.csv.parts").glob("*/pass*.npz"))) == 4
    assert score(images, tmp_path / "two.csv", "--merge") == 0
    assert (tmp_path / "two.csv").read_text() == (tmp_path / "one.csv").read_text()


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ([(0, 7)], ""),
        ([(0, 4), (4, 7)], ""),
        ([(3, 7)], "1 to 3"),
        ([(0, 2), (3, 5)], "3, 6 to"),
        ([], "1 to 7"),
    ],
)
def test_images_that_shares_left_out_are_named(shares, words, tmp_path):
    """By their numbers from 1, though they lack but one of two passes."""
    for first, stop in shares:
        resumable_map(lambda _, index: {"bpd": index * 1.0}, 7, size=3, passes=2,
                 folder=tmp_path / "parts", share=slice(first, stop))  # fmt: skip
    resumable_map(lambda _, index: {"bpd": index * 1.0}, 7, size=7, folder=tmp_path / "parts")
    with pytest.raises(UserError, match=words) if words else nullcontext():
        _check_whole(tmp_path / "parts", "abcdefg", 2)


def asked(*flags):
    return parser_of("score").parse_args(["digits", "x.npy", *flags])


@pytest.mark.parametrize(("task", "share"), [
    ({"SLURM_ARRAY_TASK_ID": 5, "SLURM_ARRAY_TASK_MIN": 3, "SLURM_ARRAY_TASK_COUNT": 10,
      "SLURM_PROCID": 0, "SLURM_NTASKS": 1}, (3, 10)),
    ({"SLURM_ARRAY_TASK_ID": 6, "SLURM_ARRAY_TASK_MIN": 0, "SLURM_ARRAY_TASK_COUNT": 4,
      "SLURM_ARRAY_TASK_STEP": 2}, (4, 4)),
    ({"SLURM_PROCID": 1, "SLURM_NTASKS": 4}, (2, 4)),
    ({"OMPI_COMM_WORLD_RANK": 2, "OMPI_COMM_WORLD_SIZE": 3}, (3, 3)),
])  # fmt: skip
def test_the_share_of_a_task_of_a_cluster(task, share, monkeypatch):
    for name, value in task.items():
        monkeypatch.setenv(name, str(value))
    assert asked("--shard").shard == share
    assert asked("--shard=2/5").shard == (2, 5)
    assert asked().shard is None


@pytest.mark.parametrize(("number", "step"), [(5, 1), (3, 2), (8, 2)])
def test_a_task_beside_the_steps_of_its_array_is_refused(number, step, monkeypatch):
    for name, value in {"ID": number, "MIN": 0, "COUNT": 4, "STEP": step}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    with pytest.raises(UserError, match="give I/N"):
        asked("--shard")


@pytest.mark.parametrize("share", ["=0/3", "=4/3", "=1", "=a/b", ""])
def test_shares_that_are_none(images, share, capsys, monkeypatch):
    for name in ("SLURM_ARRAY_TASK_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert score(images, images.with_suffix(".csv"), f"--shard{share}") == 2
    assert "--shard" in capsys.readouterr().err


def test_ray_that_is_not_there_is_named(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert score(images, tmp_path / "out", "--engine=ray") == 2
    told, err = capsys.readouterr()
    assert "pip install 'scoremle[ray]'" in err and not told  # before any work


@pytest.mark.parametrize(
    ("out", "flag", "words"),
    [
        ("out", "--shard=1/2", "--shard is not"),
        ("out", "--force", "--force is not"),
        *(("out", f"--{flag}", f"--{flag.split('=')[0]} is not")
          for flag in ("skip-bad", "page=x", "profile", "merge", "correct")),
        ("pictures", "", "among the images"),
        ("pictures/../pictures/scores", "", "among the images"),
        ("o.csv", "", "o.csv must be"),
        (".", "", "among the images"),
    ],
)  # fmt: skip
def test_what_is_not_for_ray_is_refused(out, flag, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    line = ["digits", "pictures", f"--out={out}", "--engine=ray", *flag.split()]
    with pytest.raises(UserError, match=words):
        parser_of("score").checked(line)
