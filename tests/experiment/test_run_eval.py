"""An evaluation's values belong to images: the batch size is a matter of speed alone."""

import dataclasses
import re
import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from helpers.marks import some
from helpers.reported import result
from helpers.tiny_runs import evaluate, npz, run

import scoremle
from scoremle.cli import main as cli
from scoremle.evaluation.result import Result
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
        for each in ("seal", "values_hash"):
            del results[name][each]
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


@pytest.mark.parametrize(
    ("bias", "stderr", "words"),
    [
        (-0.005, 1.0, ""), (-0.00501, 1.0, "too low"), (-0.002, 0.01, ""),
        (-0.00201, 0.01, "too low"), (0.5, 0.0, ""), (-1e-9, None, "too low"), (0.0, None, ""),
        (None, 0.01, "one random probe"),
    ],
)  # fmt: skip
def test_optimism_that_is_more_than_a_fifth_of_the_error_gets_a_warning(
    bias, stderr, words, caplog, unchecked
):
    """Or more than 0.005 bits/dim."""
    result = Mock(columns={"mean_probe_bias": bias}, stderr=stderr)
    result.name = "exact_k10"
    run_eval._warn_of_optimism(result)
    assert len(caplog.messages) == bool(words)
    assert all(words in text and "exact_k10" in text for text in caplog.messages)


def test_the_cost_of_precision_by_hand(tmp_path, unchecked):
    """Of gaps 1, -3 and 0 the mean is -2/3; the precision of products is the highest in one."""
    called = []

    def score(model, *, parts, label):
        called.append((model, parts.name, label, jax.config.jax_default_matmul_precision))
        return Mock(values={"bpd": np.array([model, [9.0] * len(model)])})

    usual = jax.config.jax_default_matmul_precision
    found = run_eval.cost_of_precision(score, [2.0, 0.0, 4.0], [1.0, 3.0, 4.0], tmp_path)
    first, second = "precision as asked", "precision float32"
    assert called == [([2.0, 0.0, 4.0], first, first, usual),
                      ([1.0, 3.0, 4.0], second, second, "highest")]  # fmt: skip
    stderr = np.std([1, -3, 0], ddof=1) / np.sqrt(3)
    assert found == {"mean": pytest.approx(-2 / 3), "stderr": pytest.approx(stderr),
                     "largest": -3.0, "images": 3}  # fmt: skip
    assert run_eval.cost_of_precision(score, [2.0], [1.0], tmp_path)["stderr"] is None


def test_a_control_is_not_written_through_a_link(tiny, tmp_path, capfd):
    folder = tmp_path / "workdir"
    shutil.copytree(tiny.workdir, folder)
    (tmp_path / "theirs").mkdir()
    (folder / "e").mkdir()
    (folder / "e" / "parts").symlink_to(tmp_path / "theirs")
    assert run("eval", folder, "--eval_folder=e", eval__bound=True) == 2
    assert "is a link" in capfd.readouterr().err and not [*(tmp_path / "theirs").iterdir()]


def test_another_number_of_the_same_name_is_replaced_by_a_line(tmp_path, capsys):
    path, values = tmp_path / "results.json", np.arange(4.0)

    def replaced(of):
        facts = result("exact", of, images=len(of))
        found = Result.read("exact", facts, tmp_path)
        run_eval.EvaluationRun._say_if_replaced(Mock(folder=tmp_path), found)
        add_results(path, {"exact": facts})
        return capsys.readouterr().out

    assert not replaced(values) and not replaced(values)
    assert "replaces 1.5000 of 4 images" in replaced(values[:2])
    add_results(path, {"exact": {"mean": 7.0}})  # of an old version
    assert "replaces 7.0000 of some images" in replaced(values)


@pytest.mark.parametrize(("images", "shown"), [(1, 0), (2, 1), (5, 2), (64, 32), (80, 32)])
def test_as_many_of_either_end_are_shown(images, shown, tmp_path, monkeypatch, unchecked):
    scores = np.arange(images)[::-1] / 8
    written = []
    monkeypatch.setattr(run_eval.pictures, "write_parts", lambda *given: written.append(given))
    run = Mock(folder=tmp_path, images=np.arange(images), workdir=Mock(folder=tmp_path / "w"))
    result = Mock(step=1200, split="test", dataset="digits", noised="exact", unit="bits/dim")
    result.name = "exact"
    run_eval.EvaluationRun._write_extremes(run, result, scores)
    assert len(written) == bool(shown)
    for path, (low, high), _, columns in written:
        assert path.name == "exact_likeliest_then_unlikeliest.png" and columns == 8
        assert low.images.tolist() == [*range(images)[::-1][:shown]]
        assert high.images.tolist() == [*range(shown)]
        assert low.values[0] == "0.000" and high.values[0] == f"{(images - 1) / 8:.3f}"
        assert f"{images} test images of digits" in low.caption and "1,200" in low.caption
        assert high.caption == f"{shown} highest"
