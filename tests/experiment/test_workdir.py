"""Whether a working directory belongs to an experiment; which of its checkpoints are meant."""

from dataclasses import replace

import jax.numpy as jnp
import pytest
from helpers.tiny_runs import TINY

from scoremle.cli import main as cli
from scoremle.errors import UserError
from scoremle.experiment.build import build
from scoremle.experiment.run_eval import chosen_checkpoints
from scoremle.experiment.workdir import Workdir
from scoremle.training.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def experiment():
    return build(cli.parse([*TINY, "--workdir=w", "--mode=train"]).config)


def with_fields(experiment, **fields):
    """The experiment under a config that differs in fields such as ``optim__lr``."""
    config = {
        name: dict(section) if isinstance(section, dict) else section
        for name, section in experiment.config.items()
    }
    for name, value in fields.items():
        section, _, field = name.partition("__")
        if field:
            config[section][field] = value
        else:
            config[section] = value
    return replace(experiment, config=config)


@pytest.fixture
def begun(experiment, tmp_path):
    workdir = Workdir(tmp_path)
    workdir.describe(experiment)
    workdir.preemption.save(1, {"a": jnp.zeros(1)}, {})
    return workdir


# What may change without a word: in training, in evaluation.
@pytest.mark.parametrize(
    ("fields", "training", "evaluation"),
    [
        ({}, True, True),
        ({"training__n_iters": 9999}, True, True),
        ({"training__snapshot_freq": 7}, True, True),
        ({"eval__probes": 9}, True, True),
        ({"data__path": "/moved"}, True, True),
        ({"optim__lr": 0.5}, False, True),
        ({"seed": 1}, False, True),
        ({"training__batch_size": 9}, False, True),
        ({"training__smallest_time": 1e-3}, False, True),
        ({"model__dtype": "bfloat16"}, False, True),
        ({"model__dropout": 0.5}, False, True),
        ({"model__beta_max": 10.0}, False, False),
        ({"model__skip_rescale": False}, False, False),
        ({"data__centered": False}, False, False),
        ({"data__dataset": "mnist"}, False, False),
        ({"training__sde": "subvpsde"}, False, False),
    ],
)
def test_what_makes_another_experiment(begun, experiment, fields, training, evaluation):
    changed = with_fields(experiment, **fields)
    for check, allowed in ((begun.check_training, training), (begun.check_evaluation, evaluation)):
        if allowed:
            check(changed)
        else:
            (name,) = fields
            with pytest.raises(UserError, match=name.replace("__", ".") + " was .* and is now"):
                check(changed)


def test_without_a_checkpoint_a_config_may_be_corrected(experiment, tmp_path):
    workdir = Workdir(tmp_path)
    workdir.describe(experiment)
    workdir.check_training(with_fields(experiment, optim__lr=0.5))


def test_the_config_is_read_as_it_was_written(begun, experiment):
    assert build(begun.config()).config == experiment.config


@pytest.mark.parametrize(
    ("begin", "end", "chosen"),
    [(None, None, [None]), (1, None, [1, 3, 4]), (None, 3, [3]), (2, 3, [3]), (1, 9, [1, 3, 4])],
)
def test_which_checkpoints_are_meant(tmp_path, begin, end, chosen):
    for number in (1, 3, 4):
        (tmp_path / f"checkpoint_{number}").mkdir()
    assert chosen_checkpoints(Checkpoints(tmp_path, keep=None), begin, end) == chosen


@pytest.mark.parametrize(
    ("content", "words"),
    [("{}", "doesn't say the number of grey levels"), ("[]", "holds no JSON object")],
)
def test_a_record_of_the_data_that_says_nothing(content, words, begun):
    begun.data_path.write_text(content)
    with pytest.raises(UserError, match=words):
        begun.levels()
