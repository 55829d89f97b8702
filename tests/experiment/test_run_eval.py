"""An evaluation's values belong to images: the batch size is a matter of speed alone."""

import shutil

import jax
import numpy as np
import pytest
from helpers.marks import some
from helpers.tiny_runs import evaluate, npz, run

import scoremle
from scoremle.experiment.build import build
from scoremle.experiment.results import read_results
from scoremle.experiment.workdir import Workdir

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
        build(place.config(), levels=17).training.template
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
