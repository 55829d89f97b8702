"""What a training logs, measured again."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from helpers.tiny_runs import as_it_was, run

from scoremle.experiment import run_train
from scoremle.experiment.build import build
from scoremle.experiment.workdir import Workdir
from scoremle.training.step import TrainState


@pytest.mark.long
def test_what_is_logged_of_test_images_is_of_the_averaged_parameters(tiny):
    place = Workdir(tiny.workdir)
    training = build(place.config()).training
    state = place.snapshots.restore(training.template)[0]
    rows = map(json.loads, (tiny.workdir / "metrics.jsonl").read_text().splitlines())
    (logged,) = (row for row in rows if row["step"] == 20)
    key = jax.random.fold_in(jax.random.key(training.config.seed + 1), 20)
    before = 20 // training.schedule.eval_freq
    images = np.roll(training.data.test, -before * 32, axis=0)[:32]
    found = jax.jit(training.objective.measure)(state.ema, images, key)
    assert logged["eval_bpd"] == pytest.approx(float(found["bpd"]), rel=1e-5)
    other = jax.jit(training.objective.measure)(state.params, images, key)
    assert logged["eval_bpd"] != pytest.approx(float(other["bpd"]), rel=1e-4)
    # Of one image there is no error: NaN would be printed, and drawn.
    shapes = [jax.eval_shape(training.objective.measure, state.ema, x, key).keys()
              for x in (images, images[:1])]  # fmt: skip
    assert shapes == [{"bpd", "bpd_stderr", "loss"}, {"bpd", "loss"}]


def test_the_window_of_test_images_moves_over_all_of_them(tiny, monkeypatch):
    """Also where what is trained on between two evaluations is a multiple of their number."""
    training = build(Workdir(tiny.workdir).config()).training
    test = np.arange(200, dtype=np.uint8).reshape(-1, 1, 1, 1)
    training = dataclasses.replace(
        training, data=dataclasses.replace(training.data, test=test, batch_size=50),
        schedule=dataclasses.replace(training.schedule, eval_freq=100),
    )  # fmt: skip

    def compiled(_):
        return lambda ema, x, key: {"first": x[0, 0, 0, 0]}

    monkeypatch.setattr(run_train.xla, "compiled", compiled)
    on_eval = run_train._on_eval(training, ())
    state = TrainState(np.zeros((), int), {}, {}, ())
    seen = [on_eval(state, step)["first"] for step in (100, 200, 305, 400)]
    assert sorted(seen) == [0, 50, 100, 150]


@pytest.mark.long
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_learned_of_times_goes_on_to_the_last_bit(tmp_path, accumulate):
    """VDM's network and loss on bin middles: six steps, and the last three of them again."""
    fields = {
        "model__name": "vdm", "model__nf": 32, "model__num_res_blocks": 1,
        "model__parameterization": "v", "training__sde": "idode", "training__batch_size": 4,
        "training__importance_weighting": False, "training__time_density": "learned",
        "training__accumulate": accumulate, "training__snapshot_sampling": False,
        "training__n_iters": 6, "training__snapshot_freq_for_preemption": 3,
        "training__n_jitted_steps": 1,
        "data__bin_middles": True, "data__uniform_dequantization": False,
        "optim__optimizer": "AdamW", "optim__weight_decay": 0.01,
    }  # fmt: skip
    assert run("train", tmp_path / "whole", **fields) == 0
    as_it_was(tmp_path / "whole", 3, tmp_path / "parts")
    assert run("train", tmp_path / "parts", **fields) == 0
    states = []
    for name in ("whole", "parts"):
        place = Workdir(tmp_path / name)
        experiment = build(place.config())
        states.append(place.restore(experiment.training.template, None).tree)
    memory = states[0].memory
    assert int(states[0].step) == 6 and 0 < float(memory.draws.sum()) < 24
    assert np.ptp(memory.shares) > 1e-3
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.long
def test_it_is_fine_tuned_by_the_second_order(tmp_path, capsys):
    """In the same folder; stopped and gone on with, to the last bit; it is not unset again."""
    fields = {
        "training__sde": "idode", "model__parameterization": "v",
        "training__importance_weighting": False, "training__time_density": "alpha_squared",
        "training__snapshot_sampling": False, "training__snapshot_freq": 5,
        "training__snapshot_freq_for_preemption": 8, "training__n_jitted_steps": 1,
    }  # fmt: skip
    longer = {**fields, "training__n_iters": 10}
    tuned = {**longer, "training__second_order": True}
    first, whole, parts = (tmp_path / name for name in ("first", "whole", "parts"))
    assert run("train", whole, **fields, training__n_iters=5) == 0
    shutil.copytree(whole, first)
    assert run("train", first, **longer) == run("train", whole, **tuned) == 0
    as_it_was(whole, 8, parts)
    assert run("train", parts, **tuned) == 0
    places = [Workdir(folder) for folder in (first, whole, parts)]
    template = build(places[0].config()).training.template
    states = [jax.tree.leaves(place.restore(template).tree) for place in places]
    for a, b, c in zip(*states, strict=True):
        np.testing.assert_array_equal(b, c)
        assert a.ndim == 0 or (a != b).any()
    assert places[1].restore(template, 1).meta["step"] == 5  # from before it was set
    capsys.readouterr()
    assert run("train", whole, **fields, training__n_iters=12) == 2
    assert "training.second_order was True" in capsys.readouterr().err
