"""A PyTorch module by FILE.py:function, from the command line: its score, and its mistakes."""

import sys

import numpy as np
import pytest
from helpers.printed import assert_printed, column

import scoremle
from scoremle.cli import main as cli

torch = pytest.importorskip("torch")

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self, most=100):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.most = torch.nn.Conv2d(1, 1, 3, padding=1), most

    def forward(self, x, label):
        if len(x) > self.most:
            raise RuntimeError("out of luck")
        return SIGN * self.conv(x)
"""
MINE = """
import scoremle
from net import Net
from scoremle.interop.torch import from_module

def model(**options):
    return from_module(
        Net(**options), schedule="linear", shape=(4, 4, 1), pixels=scoremle.Pixels(8), by="torch",
    )

def weak():
    return model(most=2)
"""
SAID = "scoremle: Net stays in PyTorch, on cpu: by your choice\n"


@pytest.fixture
def place(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, sign in (("a", "1"), ("b", "-1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "net.py").write_text(NET.replace("SIGN", sign))
        (tmp_path / name / "mine.py").write_text(MINE)
    images = np.random.default_rng(0).integers(0, 8, (5, 4, 4, 1), np.uint8)
    np.save(tmp_path / "images.npy", images)
    yield tmp_path
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_folder_with_its_own_module_is_scored(place, capsys):
    out = place / "scores.csv"
    model = f"{place}/a/mine.py:model"
    flags = f"--out={out}", "--estimator=bound", "--repeats=1"
    assert cli.main(["score", model, f"{place}/images.npy", *flags]) == 0
    assert capsys.readouterr().err.count(SAID) == 1
    assert str(place / "a") not in sys.path and "net" not in sys.modules
    images, bound = np.load(place / "images.npy"), scoremle.ByElbo()
    assert_printed(column(out), scoremle.load(model).score(images, estimator=bound).bpd)


def test_two_folders_may_have_modules_of_one_name(place):
    x, t = np.float32(np.random.default_rng(0).normal(size=(2, 4, 4, 1))), np.float32([0.3, 0.6])
    a, b = (scoremle.load(f"{place}/{name}/mine.py:model").noise(x, t) for name in "ab")
    np.testing.assert_allclose(a, -b, atol=1e-6)


def test_what_fails_while_it_is_scored_is_one_line(place, capsys):
    assert cli.main(["score", f"{place}/a/mine.py:weak", f"{place}/images.npy"]) == 2
    error = capsys.readouterr().err.removeprefix(SAID).strip()
    assert "\n" not in error
    assert error.startswith("scoremle: error: Net failed on inputs float32 [")
    assert error.endswith("RuntimeError: out of luck")
