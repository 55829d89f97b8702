"""Several processes of one run, on devices of the CPU: the same numbers, and an end for all."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from scoremle.experiment.trained import load_workdir

FIELDS = (
    "--config.model.nf=4", "--config.model.ch_mult=(1,)", "--config.model.attn_resolutions=()",
    "--config.model.dropout=0.1", "--config.training.batch_size=32",
    "--config.training.n_jitted_steps=5", "--config.training.log_freq=5",
    "--config.training.snapshot_freq=1000", "--config.training.snapshot_freq_for_preemption=1000",
)  # fmt: skip
# Seconds that a process of a run may take, on a busy machine.
LONGEST = 300


def start(words, processes=1, devices=1):
    """The processes of one run, with so many devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }  # fmt: skip
    joined = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}"]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "scoremle", *words,
             *([*joined, f"--process={i}"] if processes > 1 else [])],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(processes)
    ]  # fmt: skip


def ended(run):
    """Exit code, and what was printed on either side, of each."""
    found = [process.communicate(timeout=LONGEST) for process in run]
    return [(process.returncode, *texts) for process, texts in zip(run, found, strict=True)]


def steps_of(process, step):
    """Reads what a process prints until it has made so many steps."""
    for line in process.stdout:
        if line.startswith("step ") and int(line.split()[1].partition("/")[0]) >= step:
            return
    raise AssertionError(process.communicate())


def parameters(workdir):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(load_workdir(workdir))])


@pytest.mark.slow
@pytest.mark.long
def test_stopped_and_gone_on_with_another_number(tmp_path):
    """The first run has its state split over the devices, and those that follow have it whole."""
    fields = (*FIELDS, "--config.model.nf=32")  # arrays that are large enough to be split
    words = ("train", "digits", str(tmp_path / "several"), *fields)
    run = start(
        (*words, "--config.training.n_iters=5000", "--config.devices.fsdp"), processes=2
    )
    steps_of(run[0], 10)
    run[1].send_signal(signal.SIGTERM)
    (first, told, _), (second, nothing, _) = ended(run)
    assert (first, second) == (143, 143) and nothing.count("step ") == 0
    (saved,) = (tmp_path / "several" / "checkpoints-meta").glob("checkpoint_*")
    step = int(saved.name.partition("_")[2])
    assert f"saved step {step}" in told

    end = f"--config.training.n_iters={step + 10}"
    whole = (end, "--noconfig.devices.fsdp")
    ((code, told, errors),) = ended(start((*words, *whole), devices=2))
    assert code == 0 and f"going on from step {step}" in told, errors
    ((code, _, errors),) = ended(start(("train", "digits", str(tmp_path / "one"), *fields, end)))
    assert code == 0, errors
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
    for name, processes in (("one", 1), ("several", 2)):
        found = ended(start(("eval", str(tmp_path / name), *words), processes=processes))
        assert [code for code, *_ in found] == [0] * processes, found
        text = found[0][1]  # gloo, which carries numbers between CPUs, talks on stdout, too
        (result,) = json.loads(text[text.index("{") :]).values()
        values.append(result["mean"])
    assert values[0] == pytest.approx(values[1], abs=1e-4)


@pytest.mark.slow
def test_a_killed_process_ends_the_others(tmp_path):
    words = ("train", "digits", str(tmp_path), *FIELDS, "--config.training.n_iters=100000")
    run = start(words, processes=2)
    steps_of(run[0], 5)
    run[1].kill()
    began = time.monotonic()
    (code, _, errors), _ = ended(run)
    assert time.monotonic() - began < 60
    assert code == 2
    assert "process 0: another process of this run has ended" in errors.splitlines()[-1]
