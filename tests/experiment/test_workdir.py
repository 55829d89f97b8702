"""Whether a working directory belongs to an experiment; which of its checkpoints are meant."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import pytest
from helpers.tiny_runs import TINY

from scoremle.cli.commands import parser_of
from scoremle.data.prepared import META
from scoremle.errors import UserError
from scoremle.experiment.build import build
from scoremle.experiment.config import flat
from scoremle.experiment.record import record_of
from scoremle.experiment.results import RESULTS
from scoremle.experiment.workdir import Workdir, chosen_checkpoints
from scoremle.files import read_sealed, write_json, write_sealed
from scoremle.training.checkpoints import Checkpoints
from scoremle.training.step import TrainState

STATE = TrainState(*[jnp.zeros(1)] * 4)
CALM = nullcontext()

@pytest.fixture(scope="module")
def experiment():
    return build(parser_of("").checked([*TINY, "--workdir=w", "--mode=train"]).config)


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


NETWORK = "model training.sde data.dataset data.image_size data.num_channels data.centered"
NOT_OF_IT = "model.dropout model.ema_rate model.dtype model.remat model.num_scales"
# By what goes on: the sections and fields that make it another experiment, and what of them may
# change without a word.
COUNTING = {
    "training": (
        "model optim training data seed",
        "training.n_iters training.log_freq training.eval_freq training.snapshot_freq"
        " training.snapshot_freq_for_preemption training.snapshot_sampling training.on_nan"
        " training.rollbacks training.second_order data.path data.on_device",
    ),
    "evaluation": (NETWORK, NOT_OF_IT),
    "flow": (
        f"{NETWORK} deq optim training.batch_size training.accumulate training.smallest_time"
        " training.stratified seed data.random_flip",
        f"{NOT_OF_IT.replace('model.dtype ', '')} deq.n_iters",
    ),
}


def checks(workdir):
    return {what: partial(workdir.check, what=what) for what in COUNTING}


@pytest.mark.parametrize("work", COUNTING)
def test_each_field_makes_another_experiment_or_may_change(begun, experiment, work):
    check, (counting, free) = checks(begun)[work], map(str.split, COUNTING[work])
    check(experiment)
    for name in flat(experiment.config):
        counts = not {name, name.partition(".")[0]}.isdisjoint(counting) and name not in free
        with pytest.raises(UserError, match=f"{name} was") if counts else CALM:
            check(with_fields(experiment, **{name.replace(".", "__"): "another"}))


@pytest.mark.parametrize(
    ("fact", "refusing"),
    [
        ("levels", {"training", "evaluation", "flow"}),
        ("data_version", {"training", "evaluation", "flow"}),
        ("train_sha256", {"training", "flow"}),
        ("test_sha256", set()),
    ],
)
def test_each_fact_of_the_data_makes_another_experiment_or_may_change(
    begun, experiment, fact, refusing
):
    data = replace(experiment.data, facts={**experiment.data.facts, "data_version": "1"})
    begun.describe(replace(experiment, data=data))
    other = replace(data, facts={**data.facts, fact: "2"})
    if fact == "levels":
        other = replace(data, levels=16)
    for work, check in checks(begun).items():
        with pytest.raises(UserError, match=fact) if work in refusing else CALM:
            check(replace(experiment, data=other))


@pytest.mark.parametrize("imported", [True, False])
def test_an_imported_model_is_measured_on_whatever_images_it_is_made_for(
    begun, experiment, imported
):
    other = with_fields(experiment, data__dataset="images", data__image_size=16)
    if imported:
        write_sealed(begun.folder / "published.json", {})
    with CALM if imported else pytest.raises(UserError, match="image_size was"):
        begun.check(other, "evaluation")


@pytest.fixture
def recorded(experiment, tmp_path):
    """Begun by this version: its checkpoint says of which experiment it is."""
    workdir = Workdir(tmp_path)
    workdir.describe(experiment)
    for store in (workdir.preemption, workdir.snapshots):
        store.save(1, STATE, {**record_of(experiment, "training"), "step": 10})
    return workdir


@pytest.mark.parametrize("name", ["model.beta_max", "training.sde", "seed", "levels"])
def test_files_that_say_other_than_the_checkpoint(recorded, experiment, name):
    """With seals that fit: another config.json was put there, or edited with care."""
    path = recorded.data_path if name == "levels" else recorded.config_path
    content = read_sealed(path, "")
    section, _, field = name.rpartition(".")
    (content[section] if section else content)[field] = 5
    write_sealed(path, content)
    for use in (
        lambda: recorded.check(experiment, "training"),
        lambda: recorded.check(experiment, "evaluation"),
        recorded.check_records, lambda: recorded.restore(STATE),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"{path.name} says {name}=5"):
            use()
    path.unlink()  # what the line advises
    recorded.check(experiment, "training")
    recorded.describe(experiment)
    assert recorded.restore(STATE).number == 1


def test_fields_that_may_change_are_not_compared(recorded, experiment):
    recorded.describe(with_fields(experiment, training__n_iters=7, eval__probes=9))
    recorded.check_records()


def test_snapshots_to_come_take_no_number_of_those_that_are_there(recorded, experiment):
    recorded.snapshots.save(4, {"a": jnp.zeros(1)}, {"step": 40})
    for freq in (5, 10):
        recorded.check(with_fields(experiment, training__snapshot_freq=freq), "training")
    with pytest.raises(UserError, match="10 or less"):
        recorded.check(with_fields(experiment, training__snapshot_freq=11), "training")
    recorded.check(with_fields(experiment, training__snapshot_freq=11), "evaluation")
    (recorded.snapshots.path(4) / "record" / "metadata").write_text("{}")  # said at its time
    recorded.check(with_fields(experiment, training__snapshot_freq=11), "training")


@pytest.mark.parametrize(("n_iters", "replaced"), [(40, False), (45, True), (50, False)])
def test_a_snapshot_that_will_be_replaced_is_named(
    recorded, experiment, n_iters, replaced, caplog
):
    """By a training that goes on for less than the steps between snapshots."""
    recorded.snapshots.save(4, STATE, {"step": 40})
    fields = {"training__snapshot_freq": 10, "training__n_iters": n_iters}
    recorded.check(with_fields(experiment, **fields), "training")
    fields = {"training__snapshot_freq": 10, "training__n_iters": 45, "deq__n_iters": 50}
    recorded.check(with_fields(experiment, **fields), "flow")  # whose steps are its own
    told = [record.getMessage() for record in caplog.records]
    assert [("checkpoint_4 is of step 40" in text, "step 45" in text) for text in told] == [
        (True, True)
    ] * replaced


def test_the_snapshot_of_number_0_is_named_too(experiment, tmp_path, caplog):
    workdir = Workdir(tmp_path / "short")
    workdir.snapshots.save(0, STATE, {"step": 15})
    fields = {"training__snapshot_freq": 50, "training__n_iters": 20}
    workdir._check_numbers(with_fields(experiment, **fields).config, "training")
    (told,) = (record.getMessage() for record in caplog.records)
    assert "checkpoint_0 is of step 15" in told and "step 20" in told


def test_without_its_config_a_checkpoint_says_what_it_is_of(recorded, experiment):
    recorded.config_path.unlink()
    with pytest.raises(UserError, match=r"optim\.lr was"):
        recorded.check(with_fields(experiment, optim__lr=0.5), "training")
    with pytest.raises(UserError, match=r"model\.beta_max was"):
        recorded.check(with_fields(experiment, model__beta_max=10.0), "evaluation")


def test_a_damaged_checkpoint_says_nothing_and_the_one_before_does(recorded, experiment):
    recorded.preemption.save(2, {"a": jnp.zeros(1)}, {})
    (recorded.preemption.path(2) / "record" / "metadata").write_text("{}")
    recorded.config_path.unlink()
    with pytest.raises(UserError, match="seed was"):
        recorded.check(with_fields(experiment, seed=1), "training")


def test_a_flow_says_of_which_flow_it_is(experiment, tmp_path):
    place = Workdir(tmp_path)
    place.describe(experiment)
    place.snapshots.save(1, {"a": jnp.zeros(1)}, record_of(experiment, "flow"))
    place.check(with_fields(experiment, training__reduce_mean=False), "flow")
    place.config_path.unlink()
    with pytest.raises(UserError, match=r"deq\.filters was"):
        place.check(with_fields(experiment, deq__filters=3), "evaluation of a flow")


def test_without_a_checkpoint_a_config_may_be_corrected(experiment, tmp_path):
    workdir = Workdir(tmp_path)
    workdir.describe(experiment)
    workdir.check(with_fields(experiment, optim__lr=0.5), "training")


def test_results_of_a_training_that_is_gone_are_not_taken_for_those_of_another(
    experiment, tmp_path
):
    write_json(tmp_path / "eval" / RESULTS, {})
    Workdir(tmp_path).check(experiment, "evaluation")
    with pytest.raises(UserError, match="checkpoints are gone"):
        Workdir(tmp_path).check(experiment, "training")


def test_a_training_is_not_begun_in_a_prepared_data_set(experiment, tmp_path):
    write_json(tmp_path / META, {})
    with pytest.raises(UserError, match="prepared data"):
        Workdir(tmp_path).check(experiment, "training")


@pytest.mark.parametrize("name", ["config.json", "data.json"])
@pytest.mark.parametrize("content", ["hello", "[]", '{"mine": 1}'])
def test_a_file_of_ones_own_is_no_record_to_write_over(name, content, experiment, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{name} is no"):
        Workdir(tmp_path).check(experiment, "training")
    assert (tmp_path / name).read_text() == content


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
    [("{}", "it lacks levels"), ("[]", "JSON object")],
)
def test_a_record_of_the_data_that_says_nothing(content, words, begun):
    begun.data_path.write_text(content)
    with pytest.raises(UserError, match=words):
        begun.levels()
