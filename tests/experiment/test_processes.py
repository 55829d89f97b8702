"""Several processes of one run, on devices of the CPU: the same numbers, and an end for all."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers.places import ROOT
from helpers.several import Run, parameters, together
from helpers.tiny_runs import TINY

import scoremle
from scoremle import processes
from scoremle.cli import main as cli
from scoremle.cli.commands import experiment
from scoremle.errors import UserError
from scoremle.experiment.build import build
from scoremle.experiment.config import published_config
from scoremle.experiment.workdir import Workdir

FIELDS = (
    "--config.model.nf=4", "--config.model.ch_mult=(1,)", "--config.model.attn_resolutions=()",
    "--config.model.dropout=0.1", "--config.training.batch_size=32",
    "--config.training.n_jitted_steps=5", "--config.training.log_freq=5",
    "--config.training.snapshot_freq=1000", "--config.training.snapshot_freq_for_preemption=1000",
)  # fmt: skip


def test_what_processes_must_agree_on():
    config = published_config("digits", {"data.path": "here", "training.batch_size": 12})
    facts = experiment._facts(SimpleNamespace(config=config, mode="train"))
    assert facts["mode"] == "train" and facts["training.batch_size"] == 12
    assert facts["jax"] == jax.__version__ and facts["scoremle"] == scoremle.__version__
    assert "eval.nodes" in facts and not facts.keys() & {"data.path", "eval.stats"}


@pytest.mark.parametrize("flag", ["--process=0", "--processes=1", "--distributed"])
def test_each_flag_of_a_process_makes_it_one_of_several(flag, tmp_path, monkeypatch, capsys):
    def met(options):
        raise UserError("it was met")

    monkeypatch.setattr(experiment, "_one_of_several", met)
    assert cli.main(["train", "digits", str(tmp_path), flag]) == 2
    assert "it was met" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.long
def test_stopped_and_gone_on_with_another_number(tmp_path):
    """The first run has its state split over the devices, and those that follow have it whole."""
    fields = (*FIELDS, "--config.model.nf=32")  # arrays that are large enough to be split
    words = ("train", "digits", tmp_path / "several", *fields)
    first = (*words, "--config.training.n_iters=5000", "--config.devices.fsdp")
    run = together(first, tmp_path)
    run.until_step(10)
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.codes() == [143, 143], run.texts()
    (saved,) = (tmp_path / "several" / "checkpoints-meta").glob("checkpoint_*")
    step = int(saved.name.partition("_")[2])
    assert f"saved step {step}" in run.said[0].read_text() and not run.said[1].read_text()

    end = f"--config.training.n_iters={step + 10}"
    run = together((*words, end, "--noconfig.devices.fsdp"), tmp_path, 1, devices=2)
    assert run.codes() == [0], run.texts()
    assert f"resuming from step {step}" in run.said[0].read_text()
    run = together(("train", "digits", tmp_path / "one", *fields, end), tmp_path, 1)
    assert run.codes() == [0], run.texts()
    one, several = parameters(tmp_path / "one"), parameters(tmp_path / "several")
    np.testing.assert_allclose(several, one, atol=2e-6)
    rows = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("one", "several")
    ]
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], abs=1e-5)

    words = (
        "--config.eval.num_images=10", "--config.eval.solver=multistep", "--config.eval.nodes=8",
        "--config.eval.batch_size=7", "--json",
    )  # fmt: skip
    values = []
    for name, count in (("one", 1), ("several", 2)):
        run = together(("eval", tmp_path / name, *words), tmp_path, count, devices=count)
        assert set(run.codes()) == {0}, run.texts()
        (result,) = json.loads(run.said[0].read_text()).values()
        values.append(result["mean"])
    assert values[0] == pytest.approx(values[1], abs=1e-4)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ([{"seed": 1, "optim.lr": 0.1}] * 3, ""),
        ([{"seed": 1}, {"seed": 1}, {"seed": 2}], "seed is 1 in process 0 and 2 in process 2"),
        ([{}, {"field": ""}], 'field is unknown in process 0 and "" in process 1'),
        ([{"field": None}, {}], "field is null in process 0 and unknown in process 1"),
        ([{"dims": (1, 2)}, {"dims": [1, 2]}], ""),
        (
            [dict.fromkeys("abcde", 1), {**dict.fromkeys("abcde", 2), "b": 1}],
            "a is 1 in process 0 and 2 in process 1, c is 1 in process 0 and 2 in process 1, "
            "d is 1 in process 0 and 2 in process 1, and 1 more",
        ),
        (
            [{"a": "x" * 58}, {"a": "y" * 60}],
            f'a is "{"x" * 58}" in process 0 and "{"y" * 59} in process 1',
        ),
        (
            [dict.fromkeys("abc", 1), dict.fromkeys("abc", 2)],
            ", ".join(f"{name} is 1 in process 0 and 2 in process 1" for name in "abc"),
        ),
    ],
)
def test_what_processes_disagree_on_is_named(known, words):
    assert processes.disagreement(known) == words


def another_seed(request, folder):
    place = f"--workdir={folder}/w"
    return (place,), (place, "--config.seed=3")


def other_data(request, folder):
    """In two places, as two machines may have them."""
    for i in range(2):
        images = np.random.default_rng(i).integers(0, 256, (40, 8, 8, 1), np.uint8)
        np.save(folder / f"images{i}.npy", images)
    flags = ("--config.data.dataset=images", f"--workdir={folder}/w")
    return tuple((*flags, f"--config.data.path={folder}/images{i}.npy") for i in range(2))


def a_checkpoint_less(request, folder):
    shutil.copytree(request.getfixturevalue("tiny").workdir, folder / "w0")
    return tuple((f"--workdir={folder}/w{i}", "--config.training.n_iters=30") for i in range(2))


def other_numbers(request, folder):
    """In a checkpoint of the same step of the same training."""
    for i in range(2):
        shutil.copytree(request.getfixturevalue("tiny").workdir, folder / f"w{i}")
    place = Workdir(folder / "w1")
    template = build(place.config()).training.template
    state, meta, number = place.preemption.restore(template)
    altered = state._replace(ema=jax.tree.map(lambda leaf: leaf + 1, state.ema))
    place.preemption.save(number, altered, meta)
    return tuple((f"--workdir={folder}/w{i}", "--config.training.n_iters=30") for i in range(2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("differs", "words"),
    [
        (another_seed, "seed is 42 in process 0 and 3 in process 1"),
        pytest.param(other_data, "train_sha256 is", marks=pytest.mark.long),
        pytest.param(a_checkpoint_less, "checkpoints is [1, 2] in", marks=pytest.mark.long),
        pytest.param(other_numbers, "hash of the state is", marks=pytest.mark.long),
    ],
)
def test_processes_that_disagree_do_not_train(differs, words, request, tmp_path):
    first, second = differs(request, tmp_path)
    common = (*TINY, "--mode=train")
    run = together((*common, *first), tmp_path / "logs", last=(*common, *second))
    assert run.codes() == [2, 2], run.texts()
    for i in range(2):
        line = rf"scoremle: error: process {i}: .* do not agree: .*{re.escape(words)}.*"
        assert re.fullmatch(line, run.last(i)), run.texts()
    assert not any("loss" in text for text in run.texts())


# Two processes that do nothing but agree.
AGREEING = """
import sys, time
from scoremle.cli.child import run_in_child
coordinator, processes, process = (word.partition("=")[2] for word in sys.argv[1:])
with run_in_child(int(process)) as has_met:
    from scoremle.processes import check_agreed, join
    join(coordinator, int(processes), int(process))
    has_met()
    while True:
        check_agreed({})
        print("agreed", flush=True)
        time.sleep(0.1)
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_killed_process_ends_the_others(tmp_path):
    run = together((), tmp_path, program=("-c", AGREEING))
    run.until(lambda: all("agreed" in path.read_text() for path in run.said), "agreed")
    assert_that_one_ends_all(run)


def assert_that_one_ends_all(run):
    os.kill(run.worker(1), signal.SIGKILL)
    began = time.monotonic()
    codes = run.codes()
    assert time.monotonic() - began < 60
    assert codes == [2, 2], run.texts()
    assert "another process" in run.last(0)
    assert "signal SIGKILL" in run.last(1)


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_process_ends_the_others_in_a_training(tmp_path):
    words = ("train", "digits", tmp_path / "run", *FIELDS, "--config.training.n_iters=100000")
    run = together(words, tmp_path)
    run.until_step(5)
    second = Run([words], tmp_path / "second")
    assert second.codes() == [2] and "in use" in second.last(0), second.texts()
    assert_that_one_ends_all(run)


def test_machines_whose_names_lead_nowhere_are_named_in_a_line(monkeypatch):
    """As with Debian's /etc/hosts, in which a machine's own name is 127.0.1.1."""
    said = "Gloo context initialization failed: [external/gloo/pair.cc:152] Connection refused"

    def refused(_):
        raise jax.errors.JaxRuntimeError(f"UNKNOWN: {said}\nand more")

    monkeypatch.setattr(processes, "split_rows", refused)
    monkeypatch.setattr("socket.gethostname", lambda: "node.invalid")
    with pytest.raises(UserError, match=rf"{re.escape(said)}; .* node\.invalid"):
        processes._meet()


def test_other_errors_of_devices_are_not_of_names(monkeypatch):
    def refused(_):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(processes, "split_rows", refused)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        processes._meet()


# SLURM's names for a task of one step.
SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1",
}  # fmt: skip
JOINED = """
import jax, scoremle.processes
scoremle.processes.join()
print(jax.config.values["jax_cuda_visible_devices"], jax.process_count())
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_task_of_slurm_that_is_alone_on_its_machine_has_all_its_devices():
    command = [sys.executable, "-c", JOINED]
    told = subprocess.run(
        command, env=os.environ | SLURM, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert told.stdout.splitlines()[-1] == "all 1"


@pytest.mark.parametrize("hidden", ["SLURM_GPUS_PER_TASK", "CUDA_VISIBLE_DEVICES"])
def test_slurm_that_hides_devices_is_caught_in_a_line(hidden, monkeypatch):
    for name, value in {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2(x3),1", hidden: "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="gpus-per-task"):
        processes.join()


def test_who_can_not_join_is_told_in_a_line(monkeypatch):
    """As here, where JAX has computed; a task of SLURM sees a GPU for each, as it should."""
    for name, value in {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1,2(x3)"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    jax.devices()
    try:
        with pytest.raises(UserError, match="be joined: "):
            processes.join()
    finally:
        jax.config.update("jax_enable_preemption_service", False)
