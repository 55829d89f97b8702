"""A tiny model of the digits, trained in seconds by the program, and runs of the program on it."""

import hashlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np

from helpers.places import ROOT
from scoremle.cli import main as cli
from scoremle.core.sde import VP

TINY = (
    "--config=digits",
    "--config.training.sde=vpsde",
    "--config.model.parameterization=published",
    "--config.training.time_density=published",
    "--config.training.importance_weighting=True",
    "--config.sampling.method=ode",
    "--config.model.nf=4",
    "--config.model.ch_mult=(1,)",
    "--config.model.attn_resolutions=(1,)",
    "--config.training.n_iters=20",
    "--config.training.batch_size=32",
    "--config.training.log_freq=5",
    "--config.training.eval_freq=10",
    "--config.training.snapshot_freq=10",
    "--config.training.snapshot_freq_for_preemption=10",
    "--config.optim.lr=1e-3",
    "--config.optim.warmup=5",
    "--config.eval.batch_size=100",
    "--config.eval.solver=multistep",
    "--config.eval.nodes=6",
    "--config.eval.probes=1",
    "--config.eval.num_repeats=1",
    "--config.eval.bound_draws=4",
    "--config.eval.num_samples=10",
)


def start(*flags: str) -> subprocess.Popen[str]:
    """The program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *TINY, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


IMAGES = 360


PROTOCOL = {
    "dataset": "digits",
    "levels": 17,
    "split": "test",
    "augmentation": "none",
    "dequantizer": "uniform",
    "importance_samples": 1,
    "full_pass": True,
    "images": IMAGES,
    "passes": 2,
    "precision": "float32",
    "checkpoint": 2,
    "step": 20,
    "eps": 1e-5,
    "sde": VP().describe(),
    "unit": "bits/dim",
}


def flags(**values):
    """``eval__bound=True`` as --config.eval.bound=True."""
    return [f"--config.{name.replace('__', '.')}={value}" for name, value in values.items()]


def run(mode, workdir, *more, **values):
    tiny = TINY
    if values.get("model__name") == "vdm":  # whose levels have one width
        tiny = [flag for flag in TINY if "ch_mult" not in flag]
    return cli.main([*tiny, f"--workdir={workdir}", f"--mode={mode}", *more, *flags(**values)])


def as_it_was(workdir, step, folder):
    """Copies a finished training as it was when it was killed, just after a step was saved."""
    shutil.copytree(workdir, folder)
    shutil.rmtree(folder / "checkpoints")
    later = {*(folder / "checkpoints-meta").iterdir()}
    later.remove(folder / "checkpoints-meta" / f"checkpoint_{step}")
    for saved in later:
        shutil.rmtree(saved)


def evaluate(tiny, folder, **values):
    """Evaluates the tiny model, and gives the folder and its results."""
    assert run("eval", tiny.workdir, f"--eval_folder={folder}", **values) == 0
    path = tiny.workdir / folder
    return path, json.loads((path / "results.json").read_text())


def params_of(model):
    """The network's parameters of a model that was loaded."""
    return model.noise.network.args[0]


def npz(path):
    with np.load(path) as saved:
        return dict(saved)


def digest(folder):
    """Every file of a folder, by name and content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def mistake(capfd, mode, workdir, *more, **values):
    """The one line of a mistake, which leaves the working directory as it was."""
    before = digest(workdir)
    code = run(mode, workdir, *more, **values)
    out, err = capfd.readouterr()
    assert code == 2
    assert re.fullmatch(r"scoremle: error: [^\n]+\n", err), err
    assert "step" not in out and "  image " not in out  # found before any work
    assert digest(workdir) == before
    return err

