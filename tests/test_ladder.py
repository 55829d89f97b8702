"""The ladder: a tiny rung, the same measured in another way, and one that goes on from it."""

import json
import sys

import numpy as np
import pytest
from helpers.places import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import ladder
from ladder import Rung

from scoremle.data.registry import load
from scoremle.experiment import configs
from scoremle.experiment.workdir import Workdir

TINY = {
    "model.nf": 8, "model.ch_mult": (1,), "model.attn_resolutions": (),
    "eval.nodes": 4, "eval.bound_draws": 2, "training.batch_size": 4, "eval.probes": 1,
    "eval.bound_times": "log_snr",
}  # fmt: skip
CONFIG = """
from scoremle.experiment.configs import NAMED_CONFIGS

def get_config():
    config = NAMED_CONFIGS["digits"].get_config()
    config.model.skip_rescale = False
    return config
"""
RUNGS = {
    "first": Rung(TINY, paper=(3.0, 3.1)),
    "other": Rung({}, {"eval.nodes": 5}, None, "first", paper=(2.9, 2.95)),
    "later": Rung(TINY | {"training.log_freq": 3}, begun="first", claim="better"),
}


def test_the_first_rungs_have_nothing_of_the_best():
    assert configs.VELOCITY.keys() <= ladder.BASE.keys()


def test_rungs_are_of_rungs():
    for rungs in ladder.LADDERS.values():
        assert {name for r in rungs.values() for name in (r.network, r.begun)} <= {"", *rungs}
    for rung in ladder.LADDERS["objectives"].values():
        assert rung.paper is None or len(rung.paper) == 2


@pytest.mark.parametrize("of", ladder.LADDERS)
def test_each_rung_is_a_config(of, tmp_path, capsys):
    rungs = ladder.Ladder(of, tmp_path, "digits", 0, 1, 1, 1)
    for name in rungs.rungs:
        ladder.run("train", "digits", "--print-config", *ladder.flags(rungs.fields(name)))
        ladder.run("train", "digits", "--print-config", *ladder.flags(rungs.rungs[name].exact))
    assert "model.embedding" in capsys.readouterr().out


@pytest.mark.parametrize(("rung", "budget", "least"), [("plain", 0, 1), ("second order", 1, 2)])
def test_a_budget_has_the_points_of_its_rungs(rung, budget, least, tmp_path, capsys):
    with pytest.raises(SystemExit):
        ladder.main([f"--workdir={tmp_path}", f"--budget={budget}", "--point=1", "--rungs", rung])
    assert f"{least} x --point" in capsys.readouterr().err


def test_networks_are_measured_on_training_images_that_are_left_out(tmp_path):
    of_config = ladder.Ladder("objectives", tmp_path, "digits", 0, 1, 1, 1)
    assert of_config.data() == {}
    fields = of_config._replace(of="networks").data()
    own, part = load("digits"), load(fields["data.dataset"], path=fields["data.path"])
    assert (part.levels, len(part.train), len(part.test)) == (17, 1294, 143)
    assert np.array_equal(part.test, own.train[9::10])
    assert np.array_equal(part.train[:9], own.train[:9])
    assert np.array_equal(part.train[9:18], own.train[10:19])


@pytest.mark.long
def test_it_goes_on_by_rung_and_by_budget(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(ladder.LADDERS, "objectives", RUNGS)
    monkeypatch.setattr(ladder, "STEPS", 5)
    # A step of the first: so five in a second, while others are timed.
    paces = {"first": {"seconds": 0.2, "MiB": 1.0}}
    config = tmp_path / "unscaled.py"
    config.write_text(CONFIG)
    folder = tmp_path / ladder.slug(str(config))
    folder.mkdir()
    (folder / "paces.json").write_text(json.dumps(paces))

    def climb(*arguments):
        ladder.main([
            f"--workdir={tmp_path}", f"--config={config}", "--point=1", "--seeds=1", "--images=8",
            *arguments,
        ])  # fmt: skip
        return capsys.readouterr().out

    out = climb("--budget=1", "--rungs", "first")
    assert "not run" in next(line for line in out.splitlines() if line.startswith("other"))
    out = climb("--budget=2", f"--plot={tmp_path}/ladder.png")
    assert "resuming from step 5" in out
    found = json.loads(out.splitlines()[-1])
    assert [step for step, *_ in found["curves"]["first"]] == [5, 10]
    assert [seconds for _, seconds, _ in found["curves"]["first"]] == pytest.approx([1, 2])
    assert {name: list(kinds) for name, kinds in found["differences"].items()} == {
        "first": [], "other": ["exact"], "later": ["exact", "bound"],
    }  # fmt: skip
    tuned = json.loads((folder / "later" / "0_2" / "config.json").read_text())
    assert tuned["training"]["n_iters"] >= 10 and tuned["training"]["log_freq"] == 3
    assert tuned["model"]["skip_rescale"] is False
    rows = (folder / "later" / "0_2" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["step"] > 5  # after the first's point
    assert (tmp_path / "ladder.png").stat().st_size > 10_000
    # Against the files: image by image.
    folders = [folder / "first" / "0" / f"exact_{name}_8" for name in ("first", "other")]
    first, other = (np.load(f / "exact_test_ckpt_2.npz")["bpd"].mean(axis=0) for f in folders)
    assert len(first) == 8
    gap = other - first
    expected = [gap.mean(), gap.std(ddof=1) / len(gap) ** 0.5]
    assert found["differences"]["other"]["exact"] == pytest.approx(expected)
    # A larger budget of what goes on from the first has no need of the first's last point.
    climb("--budget=3", "--rungs", "later")
    assert Workdir(folder / "later" / "0_3").snapshots.numbers() == [2, 3]
    assert Workdir(folder / "first" / "0").snapshots.numbers() == [1, 2]
    # All is there: nothing is trained or measured again.
    monkeypatch.setattr(ladder, "run", lambda *words: pytest.fail(str(words)))
    assert json.loads(climb("--budget=2").splitlines()[-1]) == found


def test_the_error_of_a_difference_has_the_seeds(monkeypatch):
    class Found:
        def __init__(self, values):
            self.values = np.asarray(values)

    first = {0: Found([1.0, 2.0]), 1: Found([1.0, 2.0]), 2: Found([9.0, 9.0])}
    own = {0: Found([1.1, 2.1]), 1: Found([1.3, 2.3])}
    mean, error = ladder.difference(first, own)
    assert mean == pytest.approx(0.2) and error == pytest.approx(0.1)
