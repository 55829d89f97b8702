"""An evaluation's values belong to images: the batch size is a matter of speed alone."""

import dataclasses
import re
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers.marks import some
from helpers.tiny_runs import evaluate, npz, run

import scoremle
from scoremle.cli import main as cli
from scoremle.experiment import build, run_eval
from scoremle.experiment.config import published_config
from scoremle.experiment.reference import reference_of
from scoremle.experiment.results import add_results, read_results
from scoremle.experiment.workdir import Workdir
from scoremle.files import write_npz, write_sealed
from scoremle.report.subject import Subject

FEW = {"eval__num_images": 12, "eval__bound_draws": 2, "eval__num_repeats": 2}
WHAT = {
    "exact_truncated_normal_k2": {
        "eval__dequantization": "truncated_normal", "eval__importance_samples": 2,
    },
    "bound": {"eval__bound": True},
    "loss": {"eval__enable_bpd": False, "eval__enable_loss": True},
}  # fmt: skip


@pytest.mark.slow
@some("name", WHAT, quick=["loss"])
def test_values_do_not_depend_on_the_batch_size(tiny, name):
    found = []
    for size in (12, 5):
        folder, results = evaluate(
            tiny, f"by_{size}", eval__batch_size=size, **FEW, **WHAT[name]
        )
        facts = results[f"{name}_test_ckpt_2"]
        assert "batch_size" not in facts
        changed = {f"eval__{field}": value for field, value in facts["flags"].items()}
        assert changed == {**FEW, **WHAT[name]}
        found.append(npz(folder / f"{name}_test_ckpt_2.npz"))
    for column, values in found[0].items():
        spread = values.std() or 1.0
        np.testing.assert_allclose(found[1][column], values, rtol=1e-4, atol=1e-4 * spread)
    values = found[0]["loss" if name == "loss" else "bpd"]
    assert (values[0] != values[1]).all()  # each pass has noise of its own


def test_results_on_other_data_are_not_those_of_the_model_s_own(tiny, tmp_path, monkeypatch):
    """An evaluation on another set is named by it, and neither ranks nor a card has its values."""
    folder, place = tmp_path / "workdir", str(tmp_path / "workdir")
    shutil.copytree(tiny.workdir, folder)
    few = {"eval__enable_bpd": False, "eval__enable_loss": True, "eval__num_repeats": 1}
    digits = scoremle.data.load("digits")
    own = np.asarray(digits.test[:9])
    for test, facts in ((own, digits.facts), (16 - own, {"train_sha256": "of other images"})):
        found = dataclasses.replace(digits, test=test, facts=facts)
        monkeypatch.setattr(build, "images_of", lambda config, found=found: found)
        _, results = evaluate(tiny._replace(workdir=folder), "eval", **few)
    first, other = results
    assert first == "loss_test_ckpt_2" and re.fullmatch("loss_test_of_[0-9a-f]{8}_ckpt_2", other)
    model, path = scoremle.load(folder), folder / "eval" / "results.json"
    for name, number in ((first, 1), (other, 2)):
        results[name] |= {"kind": "exact"}
        del results[name]["seal"]
        write_npz(folder / "eval" / f"{name}.npz", {"loss": np.full((1, 9), float(number))})
    path.unlink()
    add_results(path, {other: results[other]})
    assert not len(reference_of(place, model, "ode").values)
    card = tmp_path / "m.safetensors.md"
    assert cli.main(["export", place, str(card.with_suffix("")), "--card"]) == 0
    assert "not evaluated" in card.read_text()
    add_results(path, {first: results[first]})
    assert (reference_of(place, model, "ode").values == 1).all()
    assert [result.name for result in Subject(Workdir(folder), "eval").results] == [first]


@pytest.mark.parametrize(
    ("own", "path", "taken"),
    [("/a", "", True), ("/a", "/a", True), ("/a", "/b", False), ("", "/b", True)],
)
def test_images_of_one_s_own_are_told_by_their_place(own, path, taken, tmp_path):
    """As those of an imported model, whose record has no hash of them."""
    write_sealed(tmp_path / "data.json", {"name": "images", "levels": 256})
    config = published_config("digits", {"data.dataset": "images", "data.path": own})
    write_sealed(tmp_path / "config.json", config.to_dict())
    facts = {"dataset": "images", "train_sha256": "1", "data_flags": {"path": path}}
    assert Workdir(tmp_path).has_measured(facts) == taken
    assert not Workdir(tmp_path).has_measured({"dataset": "digits"})


def test_a_score_is_the_value_of_an_evaluation_with_its_seed(tiny):
    """Image by image, though the batches are of other sizes."""
    folder, _ = evaluate(tiny, "exact_by_12", eval__batch_size=12, **FEW)
    values = npz(folder / "exact_test_ckpt_2.npz")
    images = scoremle.data.load("digits").test[:9]
    scores = scoremle.load(tiny.workdir).score(images, seed=42, passes=2)
    np.testing.assert_allclose(scores.bpd, values["bpd"].mean(axis=0)[:9], rtol=1e-5)


def test_values_that_are_not_finite_make_no_result(tiny, tmp_path, capfd):
    """Parameters may be finite, and so large that nothing else is. What was measured is kept."""
    folder = tmp_path / "workdir"
    shutil.copytree(tiny.workdir, folder)
    place = Workdir(folder)
    state, meta, number = place.snapshots.restore(
        build.build(place.config(), levels=17).training.template
    )
    state = state._replace(ema=jax.tree.map(lambda leaf: 1e30 * leaf, state.ema))
    place.snapshots.save(number, state, meta)
    few = {**FEW, "eval__num_images": 3, "eval__num_repeats": 1}
    assert run("eval", folder, "--eval_folder=e", **few) == 2
    assert "for 3 images" in capfd.readouterr().err
    assert not np.isfinite(npz(folder / "e/exact_test_ckpt_2.npz")["bpd"]).any()
    assert "exact_test_ckpt_2" not in read_results(folder / "e/results.json")
    assert run("eval", folder, "--eval_folder=e", **few, **WHAT["bound"]) == 2
    assert "training images" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("number", "newest", "told"), [(2, 30, True), (2, 20, False), (1, 30, False)]
)
def test_a_training_that_is_further_than_its_snapshot_is_said(
    number, newest, told, capsys, unchecked
):
    place = SimpleNamespace(
        training=lambda: {"newest_step": newest, "steps": 50},
        snapshots=SimpleNamespace(latest=lambda: 2, path=lambda number: f"checkpoint_{number}"),
    )
    run_eval._say_if_older(place, SimpleNamespace(meta={"step": 20}, number=number))
    said = " ".join(capsys.readouterr().out.split())
    assert said == told * (
        "checkpoint_2 is of step 20: the newest snapshot; training is at step 30 of 50"
    )
