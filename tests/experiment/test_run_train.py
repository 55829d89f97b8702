"""What a training logs, measured again."""

import json

import jax
import numpy as np
import pytest

from scoremle.experiment.build import build
from scoremle.experiment.workdir import Workdir


def test_what_is_logged_of_test_images_is_of_the_averaged_parameters(tiny):
    place = Workdir(tiny.workdir)
    training = build(place.config()).training
    state = place.snapshots.restore(training.template())[0]
    rows = map(json.loads, (tiny.workdir / "metrics.jsonl").read_text().splitlines())
    (logged,) = (row for row in rows if row["step"] == 20)
    key = jax.random.fold_in(jax.random.key(training.config.seed + 1), 20)
    images = np.resize(np.roll(training.data.test, -20 * 32, axis=0), (32, 8, 8, 1))
    found = jax.jit(training.measure)(state.ema, images, key)
    assert logged["eval_bpd"] == pytest.approx(float(found["bpd"]), rel=1e-5)
    other = jax.jit(training.measure)(state.params, images, key)
    assert logged["eval_bpd"] != pytest.approx(float(other["bpd"]), rel=1e-4)
