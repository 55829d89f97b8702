"""Scores in shares and on workers: what they put together is what one machine scores."""

import sys

import numpy as np
import pytest

from scoremle.cli import main as cli
from scoremle.cli.parsers import PARSERS
from scoremle.data.readers.digits import load_digits


@pytest.fixture
def images(tmp_path):
    np.save(tmp_path / "x.npy", load_digits("")[1][:7])
    return tmp_path / "x.npy"


def score(images, out, *flags):
    """Exit code of a command that scores in two passes."""
    return cli.main(["score", "digits", str(images), f"--out={out}", "--repeats=2", *flags])


@pytest.mark.slow
@pytest.mark.long
def test_shares_make_the_table_of_one_machine(images, tmp_path, capsys):
    assert score(images, tmp_path / "one.csv") == 0
    for share in ("2/2", "1/2"):
        assert score(images, tmp_path / "two.csv", f"--shard={share}") == 0
    assert not (tmp_path / "two.csv").exists()
    told = capsys.readouterr().out
    assert "share 1 of 2, 3 images" in told and "share 2 of 2, 4 images" in told
    # Of each pass two: nothing was scored twice.
    assert len(list((tmp_path / "two.csv.parts").glob("*/pass*.npz"))) == 4
    assert score(images, tmp_path / "two.csv") == 0
    assert (tmp_path / "two.csv").read_text() == (tmp_path / "one.csv").read_text()


def asked(*flags):
    return PARSERS["score"]().parse_args(["digits", "x.npy", *flags])


def test_the_share_of_a_task_of_slurm(monkeypatch):
    for name, value in (("ID", "5"), ("MIN", "3"), ("COUNT", "10")):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert asked("--shard=slurm").shard == (3, 10)
    assert asked("--shard=2/4").shard == (2, 4)


@pytest.mark.parametrize("share", ["0/3", "4/3", "1", "a/b", "slurm"])
def test_shares_that_are_none(images, share, capsys, monkeypatch):
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    assert score(images, images.with_suffix(".csv"), f"--shard={share}") == 2
    assert "--shard" in capsys.readouterr().err


def test_ray_that_is_not_there_is_named(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert score(images, tmp_path / "out", "--engine=ray") == 2
    assert "pip install 'scoremle[ray]'" in capsys.readouterr().err
    assert score(images, tmp_path / "out", "--engine=ray", "--shard=1/2") == 2
    assert "of one machine" in capsys.readouterr().err
