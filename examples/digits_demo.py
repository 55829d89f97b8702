"""The whole job on real images, in a few minutes on two cores: scikit-learn's handwritten digits.

    make demo        or        python examples/digits_demo.py --workdir=runs/digits

It runs four commands of scoremle, printed as you would type them: train; evaluate the exact
likelihood and draw samples; evaluate the bound; write a report. Then it sets the model beside
simple densities, and ends with the place of the report. Run again, it goes on from where it
stopped; once all is done, it shows the results again. It ends with the first of the commands
that was stopped, and with its exit code.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np

from scoremle import data
from scoremle.cli import main as cli
from scoremle.evaluation import baselines, tables


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits"))
    workdir = parser.parse_args().workdir

    for command in (
        ["train", "digits", str(workdir)],
        ["eval", str(workdir), "--config.eval.enable_sampling"],
        ["eval", str(workdir), "--config.eval.bound"],
        ["report", str(workdir)],
    ):
        print(f"\n$ scoremle {shlex.join(command)}", flush=True)
        code = cli.main(command)
        if code:
            return code
    show(workdir)
    return 0


def show(workdir: Path) -> None:
    """Prints a table and its notes, all from the files that the commands wrote."""
    digits = data.load("digits")
    train, test, levels = digits.train, digits.test, digits.levels
    exact, bound = (newest(workdir / "eval", kind) for kind in ("exact", "bound"))
    simple = {
        f"uniform, log2 {levels}": baselines.uniform_bpd(test, levels),
        "histogram of each pixel": baselines.histogram_bpd(train, test, levels),
        "Gaussian, full covariance": baselines.gaussian_bpd(train, test),
    }
    rows = [(name, *mean_and_stderr(bits)) for name, bits in simple.items()]
    rows.append(("score model (SDE), bound [1]", bound["mean"], bound["stderr"]))
    rows.append(("score model (ODE), exact [2]", exact["mean"], exact["stderr"]))

    best = min(simple, key=lambda name: simple[name].mean())
    gain, stderr = mean_and_stderr(simple[best] - exact["values"])
    cells = [(name, f"{mean:.3f}", f"{error:.3f}") for name, mean, error in rows]
    draw_error, probe_error = bound["draw_stderr_of_mean"], exact["probe_stderr_of_mean"]
    solver_error, solver, probes = exact["mean_solver_error"], exact["solver"], exact["divergence"]
    how = f"{solver['type']} with {solver['nodes']:.0f} steps, {exact['mean_nfe']:.0f} evaluations"
    drawn = f"{probes['probes']:.0f} {probes['distribution']} probes at each step"
    notes = f"""
The standard error is over images. The histogram is of the integer pixels. The Gaussian and the
model are of uniformly dequantized pixels, which can only cost them bits.
[1] {bound["draws"]} random times for each image; they make {draw_error:.4f} of the standard error
[2] exact for the density at t = {exact["eps"]:g}, by the probability-flow ODE:
    {how}; {solver_error:.4f} covers its error for about 95% of images
    {drawn} make {probe_error:.4f} of the standard error

Image by image, the model's exact value is {gain:.3f} +- {stderr:.3f} bits/dim below that of the
best of the others ({best}).

In {workdir}:
  checkpoints/, for scoremle.load("{workdir}")
  eval/: results.json, the value of each image, and pictures
  samples/: a grid of samples at each snapshot
To begin anew: rm -r {workdir}
Look at the report in a browser: {workdir / "report" / "index.html"}"""
    print(f"\nHandwritten digits: bits/dim of all {len(test)} test images, less is better;")
    print(f"the model is that of training step {exact['step']}\n")
    print(tables.table(("density", "bits/dim", "std. error"), cells))
    print(notes)


def newest(folder: Path, kind: str) -> dict[str, Any]:
    """The result of the newest checkpoint, with the value of each image."""
    results = json.loads((folder / "results.json").read_text())
    mine = [name for name in results if name.startswith(f"{kind}_test_ckpt_")]
    name = max(mine, key=lambda name: results[name]["checkpoint"])
    with np.load(folder / f"{name}.npz") as values:
        return {**results[name], "values": values["bpd"].mean(axis=0)}


def mean_and_stderr(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


if __name__ == "__main__":
    sys.exit(main())
