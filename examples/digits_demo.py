"""The whole job on real images, in a few minutes on two cores: scikit-learn's handwritten digits.

    make demo        or        python examples/digits_demo.py --workdir=runs/digits

It runs three commands of scoremle, printed as you would type them: train; evaluate the exact
likelihood and draw samples; evaluate the bound. Then it sets the model beside simple densities.
Run again, it goes on from where it stopped; once all is done, it shows the results again. It
ends with the first of them that was stopped, and with its exit code.
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np

from scoremle.cli import main as cli
from scoremle.data.readers.digits import load_digits
from scoremle.evaluation import baselines, pictures, tables

SHOWN = 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits"))
    workdir = parser.parse_args().workdir

    for command in (
        ["train", "digits", str(workdir)],
        ["eval", str(workdir), "--config.eval.enable_sampling"],
        ["eval", str(workdir), "--config.eval.bound"],
    ):
        print(f"\n$ scoremle {shlex.join(command)}", flush=True)
        code = cli.main(command)
        if code:
            return code
    show(workdir)
    return 0


def show(workdir: Path) -> None:
    """The table, its notes and the pictures, all from the files that the commands wrote."""
    train, test, levels = load_digits("")
    exact, bound = (newest(workdir / "eval", kind) for kind in ("exact", "bound"))
    simple = {
        f"uniform, log2 {levels}": baselines.uniform_bpd(test, levels),
        "histogram of each pixel": baselines.histogram_bpd(train, test, levels),
        "Gaussian, full covariance": baselines.gaussian_bpd(train, test),
    }
    rows = [(name, *mean_and_stderr(bits)) for name, bits in simple.items()]
    rows.append(("score model (SDE), bound [1]", bound["mean"], bound["stderr"]))
    rows.append(("score model (ODE), exact [2]", exact["mean"], exact["stderr"]))
    write_pictures(workdir, test, levels, rows)

    best = min(simple, key=lambda name: simple[name].mean())
    gain, stderr = mean_and_stderr(simple[best] - exact["values"])
    cells = [(name, f"{mean:.3f}", f"{error:.3f}") for name, mean, error in rows]
    draw_error, probe_error = bound["draw_stderr_of_mean"], exact["probe_stderr_of_mean"]
    solver_error, solver, probes = exact["mean_solver_error"], exact["solver"], exact["divergence"]
    how = f"{solver['type']} with {solver['nodes']:.0f} nodes, {exact['mean_nfe']:.0f} evaluations"
    drawn = f"{probes['probes']:.0f} {probes['distribution']} probes at each node"
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
  samples_beside_digits.png, training_curve.png
  eval/: results.json, every image's values, and pictures: samples, the likeliest and the
    unlikeliest images, and which noise levels cost the bits of the bound
  samples/: a grid of samples at each snapshot
  checkpoints/, for scoremle.load("{workdir}")
next: scoremle report {workdir}, or to begin anew: rm -r {workdir}"""
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


# Pictures ----------------------------------------------------------------------------------------


def write_pictures(
    workdir: Path, test: np.ndarray, levels: int, rows: list[tuple[str, float, float]]
) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no pictures without matplotlib: pip install 'scoremle[plots]'\n")
        return
    draw_samples(Figure(figsize=(9, 4.8), layout="constrained"), workdir, test, levels)
    draw_curve(Figure(figsize=(8, 5), layout="constrained"), workdir, rows)


def draw_samples(figure: Any, workdir: Path, test: np.ndarray, levels: int) -> None:
    newest_samples = max((workdir / "eval").glob("samples_ckpt_*.npz"), key=os.path.getmtime)
    with np.load(newest_samples) as saved:
        samples = saved["samples"]
    titles = {"samples of the model": samples, "test digits": test}
    for axis, (title, images) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        grid = pictures.image_grid(images[:SHOWN], levels, columns=8)
        axis.imshow(grid.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(title)
        axis.set_axis_off()
    figure.savefig(workdir / "samples_beside_digits.png", dpi=120)


def draw_curve(figure: Any, workdir: Path, rows: list[tuple[str, float, float]]) -> None:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    points = [row for row in map(json.loads, lines) if row.get("eval_bpd") is not None]
    step, bpd, stderr = (
        np.array([row[name] for row in points]) for name in ("step", "eval_bpd", "eval_bpd_stderr")
    )
    axis = figure.subplots()
    axis.plot(step, bpd, label="score model, bound on a batch of test images")
    axis.fill_between(step, bpd - stderr, bpd + stderr, alpha=0.3)
    *others, (name, exact, error) = rows
    for i, (other, mean, _) in enumerate(others[:3]):
        axis.axhline(mean, color=f"C{i + 1}", linestyle="--", label=other)
    axis.errorbar(step[-1], exact, error, fmt="ko", label=name.removesuffix(" [2]"), zorder=3)
    axis.set(
        xlabel="training step", ylabel="bits/dim", ylim=(exact - 0.2, rows[0][1] + 0.4),
        title="Handwritten digits: learning against simple densities",
    )  # fmt: skip
    axis.legend()
    figure.savefig(workdir / "training_curve.png", dpi=120)


if __name__ == "__main__":
    sys.exit(main())
