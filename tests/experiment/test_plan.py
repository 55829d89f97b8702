"""What a config will take: against counts by hand, and XLA's account at a batch not measured."""

import contextlib
import itertools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_runs import TINY

import scoremle
from scoremle import devices
from scoremle.cli import main as cli
from scoremle.cli.commands import parser_of
from scoremle.cli.commands import plan as command
from scoremle.devices import Memory, Needs, needs
from scoremle.errors import UserError
from scoremle.experiment import plan as planning
from scoremle.experiment.build import build
from scoremle.experiment.config import published_config
from scoremle.experiment.plan import Pace, Plan
from scoremle.likelihood.elbo import MIN_LAST_DRAWS
from scoremle.training import program as module
from scoremle.training.program import checked, largest_batch, make_program
from scoremle.training.step import init_state, make_optimizer

PARAMETERS = 1000
COPY = 4 * 16 * PARAMETERS * 4 + 8  # bytes of a state: two counts, too
OPTIMIZER = make_optimizer(lr=1e-3, beta1=0.9, eps=1e-8, warmup=0, grad_clip=1.0)


def dense(params, images, key):
    """A loss whose work is known: a row of 16 numbers for each image, times a matrix."""
    x = images.reshape(len(images), -1).astype(jnp.float32)
    return jnp.mean(jnp.tanh(x @ params) ** 2), {}


@pytest.fixture(scope="module")
def program():
    return make_program(dense, OPTIMIZER, 0.9)


def state():
    return init_state(jnp.ones((16, PARAMETERS)) / 100, OPTIMIZER)


def batch(size):
    return jnp.ones((1, size, 4, 4, 1), jnp.uint8)


def test_xla_says_what_a_step_needs(program):
    """The state is four times the parameters; the work holds the activations of each image."""
    few, many = (needs(program.lower(state(), batch(size)[0])) for size in (64, 256))
    images = 256 * 16
    assert many.given == pytest.approx(4 * 16 * PARAMETERS * 4 + images, abs=64)
    activations = PARAMETERS * 4
    assert 1 <= (many.work - few.work) / 192 / activations < 4


@pytest.mark.parametrize(
    ("function", "given", "least", "most"),
    [
        (lambda x: jnp.tile(x, 50), {}, 200_000, 210_000),  # its result
        (lambda x: jnp.sort(jnp.tile(x, 50))[0], {}, 200_000, 500_000),  # on the way to it
        (lambda x: x + 1, {"donate_argnums": 0}, 0, 3999),  # in the place of what is given
    ],
)
def test_work_is_what_is_new(function, given, least, most):
    found = needs(jax.jit(function, **given).lower(jnp.ones(1000)))
    assert found.given == 4000 and least <= found.work <= most


def test_the_largest_batch_fits_and_one_more_image_does_not(program):
    few, many = (needs(program.lower(state(), batch(size)[0])) for size in (64, 256))
    room = 10 << 20
    size = largest_batch(room, (64, few), (256, many))
    assert needs(program.lower(state(), batch(size)[0])).work <= room * 1.02
    assert needs(program.lower(state(), batch(size + size // 20)[0])).work > room
    assert largest_batch(1000, (64, few), (256, many)) == 0


def test_a_step_that_does_not_fit_names_a_batch_that_does(program, monkeypatch, caplog):
    wanted = needs(program.lower(state(), batch(256)[0]))
    whole = wanted.given + wanted.work + COPY
    at_half = needs(program.lower(state(), batch(128)[0])).work + COPY
    there = Memory(whole - 1, at_half)
    monkeypatch.setattr(devices, "memory", lambda: there)
    with pytest.raises(UserError, match=r"its copy.*batch_size=128"):
        checked(program)(state(), batch(256))
    with pytest.raises(UserError, match=r"model\.remat=True"):
        checked(program, "model.remat=True")(state(), batch(256))
    assert not caplog.records
    there = Memory(whole, at_half)
    after, row = checked(program)(state(), batch(256))
    assert int(after.step) == 1 and np.isfinite(row["loss"]).all()
    (told,) = caplog.messages
    assert "batch_size=128" in told
    there = Memory(whole - 1, 100)
    with pytest.raises(UserError, match="no batch"):
        checked(program)(state(), batch(256))


@pytest.mark.parametrize("short", [0, 1])
def test_a_step_and_a_copy_of_its_state_fit_to_the_last_byte(program, monkeypatch, caplog, short):
    wanted = needs(program.lower(state(), batch(256)[0]))
    room = wanted.work + COPY
    monkeypatch.setattr(devices, "memory", lambda: Memory(wanted.given + room, room - short))
    checked(program)(state(), batch(256))
    assert len(caplog.messages) == short


def test_parts_of_a_batch_take_less_and_are_named(program, monkeypatch):
    in_parts = make_program(dense, OPTIMIZER, 0.9, accumulate=4)
    whole, parts = (needs(p.lower(state(), batch(4096)[0])) for p in (program, in_parts))
    assert parts.work < whole.work / 2
    assert module._remedy(program, 128, 40) == (
        "batch_size=40 fits, or accumulate=4 with this one"
    )
    assert module._remedy(in_parts, 128, 60).endswith("accumulate=16 with this one")


def test_only_the_first_call_looks(program, monkeypatch):
    looked = []
    monkeypatch.setattr(module, "_check", lambda *arguments: looked.append(arguments))
    step = checked(program)
    after, _ = step(state(), batch(2))
    step(after, batch(2))
    assert len(looked) == 1


def test_memory_of_this_machine():
    for there in (devices.memory(), devices.memory_of_machine()):
        assert there is not None and 0 < there.free <= there.whole < 2**50


@pytest.mark.parametrize("short", [0, 1])
def test_arrays_and_programs_fit_to_the_last_byte(short, monkeypatch):
    tree = {"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.uint8)}
    monkeypatch.setattr(devices, "memory", lambda: Memory(100, 67 - short))
    told = pytest.raises(UserError, match="its arrays") if short else contextlib.nullcontext()
    with told:
        devices.check_room(tree)
    program, x = jax.jit(lambda x: jnp.tile(x, 3)), jnp.ones(100)
    work = needs(program.lower(x)).work
    monkeypatch.setattr(devices, "memory", lambda: Memory(work, work - short))
    with pytest.raises(MemoryError, match="needed") if short else contextlib.nullcontext():
        assert devices.within_memory(program)(x).shape == (300,)
    looked = devices.within_memory(program)
    monkeypatch.setattr(devices, "memory", lambda: Memory(work, work // 2))
    assert looked(x.astype(jnp.int8)).shape == (300,)  # a quarter of it
    with pytest.raises(MemoryError, match="needed"):
        looked(x)
    monkeypatch.setattr(devices, "memory", lambda: None)  # where nothing is known, all fits
    devices.check_room(tree)
    assert devices.within_memory(program)(x).shape == (300,)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 * 10**9), ("24gb", 24 * 10**9), ("1.5 GiB", 3 << 29), (".5MiB", 1 << 19),
        ("500MB", 5 * 10**8), ("2 MB", 2 * 10**6),
    ],
)  # fmt: skip
def test_sizes_of_memory(text, size):
    assert command._bytes(text) == size


@pytest.mark.parametrize(("size", "text"), [(1 << 30, "1 GiB"), (5 << 28, "1.25 GiB")])
def test_bytes_are_told_in_gib(size, text):
    assert devices.in_gib(size) == text


def test_rows_are_rounded_up_to_the_devices(unchecked):
    three = [object()] * 3
    assert [devices.round_up(n, three) for n in (0, 1, 3, 4)] == [0, 3, 3, 6]
    tree = {"a": jnp.zeros((64, 64)), "b": jnp.zeros((3, 5), jnp.float16)}
    assert [devices.bytes_of_each(tree, n) for n in (1, 2, 3)] == [16414, 8222, 16414]


def pace(seconds):
    return Pace(seconds, 32)


def tiny(*more):
    return build(parser_of("").checked([*TINY, "--mode=train", "--workdir=w", *more]).config)


@pytest.mark.long
def test_a_plan_of_a_tiny_network():
    """Paces are set by hand: what is left are counts, and sums of what XLA says."""
    experiment = tiny("--config.eval.num_repeats=3")
    plan = Plan(experiment, memory=2**30, devices=2)
    for name, seconds in (("step", 0.5), ("forward", 1.0), ("derivative", 2.0)):
        vars(plan)[name] = pace(seconds)
    found = plan.costs(100)
    template = experiment.training.template
    params = sum(leaf.size for leaf in jax.tree.leaves(template.params))
    assert found["parameters"] == params
    assert found["state_bytes"] == pytest.approx(16 * params, rel=0.1)
    assert found["split_state_bytes"] == devices.bytes_of_each(template, 2)
    assert found["copy_bytes"] == devices.bytes_of_each(template, 1)  # as this is a CPU
    # Of a network of convolutions: two operations a parameter at each pixel, and the gradient
    # twice as many; those of biases and of the embedding of t have fewer.
    assert 0.2 < found["flops_image"] / (6 * params * 64) < 2
    assert found["step_seconds"] == 0.5 * 32 / 2
    assert found["training_seconds"] == 0.5 * 32 * 20 / 2
    assert found["likelihood_evaluations"] == 7 and not found["pilot"]  # six steps
    assert found["evaluation_seconds"] == 2.0 * 7 * 300 / 2
    assert found["samples_seconds"] == 50_000 * found["sample_evaluations"] / 2
    rows, notes = dict(command._rows(found)), "\n".join(command._notes(found))
    assert rows["a step of 32, on 2 devices"] == "8.0 seconds"
    assert rows["20 steps, on 2 devices"] == "2.7 minutes"
    assert rows["evaluation, 100 images, passes: 3, on 2 devices"] == "35.0 minutes"
    assert rows["parameters"] == f"{params:,}" and "the same with devices.fsdp" in "".join(rows)
    assert "a likelihood takes 7 evaluations, a sample" in notes
    assert "2 devices: the time of one over 2" in notes and "by the pace" not in notes
    alone = {**found, "devices": 1, "step_measured_with": 4, "likelihood_evaluations": None}
    rows, notes = dict(command._rows(alone)), "\n".join(command._notes(alone))
    assert "a step of 32" in rows and "fsdp" not in "".join(rows)
    assert "by the pace of 4 images at a time" in notes
    assert "likelihood" not in notes and "devices" not in notes
    images = plan._images(50)
    assert images.shape == (50, 8, 8, 1) and {*np.unique(images)} == {*range(17)}
    bound = Plan(tiny("--config.eval.bound"), memory=2**30)
    vars(bound).update(step=pace(1.0), forward=pace(1.0))
    assert bound._likelihood() == (4.0 + MIN_LAST_DRAWS, 4 + MIN_LAST_DRAWS)
    chain = Plan(tiny("--config.eval.bound_steps=6"), memory=2**30)
    vars(chain).update(step=pace(1.0), forward=pace(1.0))
    steps = 6 + MIN_LAST_DRAWS  # and draws of its informed decoder
    assert chain._likelihood() == (steps, steps)
    for flag in ("solver=doubling", "suite", "enable_bpd=False"):
        assert Plan(tiny(f"--config.eval.{flag}"), memory=2**30)._likelihood() == (None, None)


@pytest.mark.parametrize(("least", "batch"), [(1, 1), (2, 8)])
def test_the_largest_batch_takes_the_memory_that_is_left(least, batch):
    """Of a step whose memory is linear in the batch."""
    flags = (f"batch_size={batch}", f"accumulate={least}")
    plan = Plan(tiny(*(f"--config.training.{flag}" for flag in flags)), memory=2**30)
    given, fixed, an_image = 1 << 20, 1 << 22, 12_345
    vars(plan)["_needs"] = lambda images: Needs(given, fixed + an_image * images)
    copy = planning.bytes_of_copy(plan.experiment.training.template)
    assert plan._largest_batch() == (2**30 - given - copy - fixed) // an_image


@pytest.mark.long
@pytest.mark.parametrize("least", [1, 2])
def test_the_largest_batch_is_known_from_the_least(least):
    """By one of twice as many images."""
    plan, usual = (
        Plan(tiny(*(f"--config.training.{flag}" for flag in flags)), memory=2**30)
        for flags in ((f"batch_size={n}", f"accumulate={least}") for n in (least, 8))
    )
    assert plan._few == plan.batch < usual.batch
    assert plan._largest_batch() == pytest.approx(usual._largest_batch(), rel=0.3)


def test_a_network_whose_noise_depends_on_a_code_is_timed_under_one():
    fields = {
        "data.dataset": "digits", "data.image_size": 8, "data.num_channels": 1,
        "model.nf": 32, "model.num_res_blocks": 1, "model.encoder_blocks": 1,
    }  # fmt: skip
    plan = Plan(build(published_config("mulan/cifar10-conditioned", fields)), memory=2**30)
    x = jnp.zeros((3, *plan.experiment.model.shape))
    params = plan.experiment.training.template.params
    found = jax.eval_shape(lambda given: plan._noise(given)(x, jnp.ones(3)), params)
    assert found.shape == x.shape


@pytest.mark.slow
@pytest.mark.long
def test_the_command_measures_and_prints(capfd):
    words = [flag.replace("--config=", "") for flag in TINY[:1]]
    assert cli.main(["plan", *words, *TINY[1:], "--memory=1GiB", "--devices=3", "--json"]) == 0
    captured = capfd.readouterr()
    found = json.loads(captured.out)
    assert found["memory_bytes"] == 2**30 and found["devices"] == 3
    assert found["step_seconds"] > 0 and found["evaluation_images"] == 360
    assert found["step_measured_with"] == found["batch"] == 32
    assert captured.err == ""
    notes = "\n".join(command._notes(found))
    assert "3 devices: the time of one over 3, an ideal split" in notes
    assert "the same with devices.fsdp, on 3 devices" in dict(command._rows(found))
    assert found["largest_batch"] % 3 == 0 and found["largest_batch"] > 1000


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "not known before"), (0.125, "0.125 seconds"), (119, "119.0 seconds"),
        (120, "2.0 minutes"), (7200, "2.0 hours"), (172799, "48.0 hours"), (172800, "2.0 days"),
    ],
)  # fmt: skip
def test_times_are_in_units_of_which_there_are_two(seconds, words):
    assert command._time(seconds).startswith(words)


def test_the_quickest_call_counts_and_not_the_first(monkeypatch):
    clock = itertools.count()
    taken = iter([50, 9, 3, *[7] * 9])

    def call():
        for _ in range(next(taken)):
            next(clock)

    monkeypatch.setattr(planning.time, "monotonic", lambda: next(clock))
    assert planning._seconds(call) == 4  # with its own


def test_mistakes_of_the_command(capfd):
    for arguments, line in (
        (["plan"], "missing CONFIG, such as in: scoremle plan digits"),
        (["plan", "digits", "--memory=much"], "--memory: much is not a size such as 24GB"),
        (["plan", "digits", "--memory=0GB"], "--memory: 0GB is not a size"),
        (["plan", "digits", "--memory=24"], "--memory: 24 is not a size such as 24GB"),
        (["plan", "digits", "--memory=4 cows"], "--memory: 4 cows is not a size"),
        (["plan", "digits", "--devices=0"], "0 is not an integer from 1"),
    ):
        assert cli.main(arguments) == 2
        assert line in capfd.readouterr().err


def test_a_batch_that_does_not_fit_here_is_not_run(monkeypatch):
    """Whatever memory is planned for: a few images tell the pace."""
    plan = Plan(tiny(), memory=2**50)
    vars(plan)["needs"] = Needs(1000, 1000)
    monkeypatch.setattr(planning, "memory_here", lambda: Memory(4000, 1999))
    monkeypatch.setattr(planning, "_seconds", lambda call: 2.0 * call)
    assert plan._pace(lambda batch: batch) == Pace(2.0, 4)
    monkeypatch.setattr(planning, "memory_here", lambda: Memory(4000, 2000))
    monkeypatch.setattr(planning, "_seconds", lambda call: 0.1 * call)
    assert plan._pace(lambda batch: batch).batch == 32
    monkeypatch.setattr(planning, "_seconds", lambda call: 0.5 * call)  # 4 times 16 seconds
    assert plan._pace(lambda batch: batch).batch == 4


@pytest.mark.parametrize(
    ("split", "asked", "images"),
    [("test", 0, 360), ("test", 100_000, 360), ("test", 5, 5), ("train", 100_000, 1437)],
)
def test_no_more_images_are_counted_than_the_split_has(split, asked, images, monkeypatch):
    config = SimpleNamespace(eval=SimpleNamespace(dataset=split, num_images=asked))
    digits = SimpleNamespace(data=scoremle.data.load("digits"))
    monkeypatch.setattr("scoremle.experiment.build.build", lambda _: digits)
    assert command._experiment(config) == (digits, images, [])


def test_a_data_set_that_is_not_here_is_said(tmp_path):
    config = parser_of("").checked([*TINY, "--print-config", "--config.data.dataset=cifar10",
                          f"--config.data.path={tmp_path / 'no'}"]).config  # fmt: skip
    experiment, images, (note,) = command._experiment(config)
    assert images == 10_000 and experiment.model.shape == (8, 8, 1)
    assert note.startswith("the data set is not here, so that 10,000 test images are taken:")
