"""What the weighting and the importance sampling are worth: the paper's ladder, on digits.

Trains the same small network under each objective (plain; likelihood weighting, LW; LW with
importance sampling, IS), for VP and sub-VP and several seeds, and evaluates the exact bits/dim and
the bound of each on the whole test split. Prints a table for docs/results.md, and a line of JSON.

    python benchmarks/objectives.py                                           # under an hour
    python benchmarks/objectives.py --workdir=runs/quick --steps=20 --seeds=2 # it runs

A run that was stopped goes on where it was. ``objectives.png`` in the workdir has the gain of each
objective over plain VP, with error bars over seeds, beside what the paper has for CIFAR-10. The
spread of the training loss is that of the loss of one image, relative to its mean, averaged over
the second half of the training.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import answer, parser_of, run

from scoremle.evaluation.figures import ABOVE, COLOURS, INK, drawn

OBJECTIVES = {
    "plain": (False, False),
    "LW": (True, False),
    "LW + IS": (True, True),
}
SDES = {"VP": "vpsde", "sub-VP": "subvpsde"}
# The paper's bits/dim of CIFAR-10 in that order, uniformly dequantized.
PAPER = {
    "exact": (3.16, 3.06, 2.95, 2.99, 2.97, 2.94),
    "bound": (3.28, 3.18, 3.08, 3.09, 3.07, 3.05),
}  # fmt: skip
KINDS = {"exact": ("exact (ODE)", COLOURS[0], "o"), "bound": ("bound (SDE)", COLOURS[1], "s")}


def arguments(sde: str, objective: str, seed: int, steps: int, workdir: Path) -> list[str]:
    """The command line of one training, but for its mode."""
    weighting, importance = OBJECTIVES[objective]
    return [
        "--config=configs/digits.py",
        f"--workdir={workdir}",
        f"--config.training.sde={SDES[sde]}",
        f"--config.training.likelihood_weighting={weighting}",
        f"--config.training.importance_weighting={importance}",
        f"--config.seed={seed}",
        f"--config.training.n_iters={steps}",
        f"--config.training.snapshot_freq={steps}",
        f"--config.training.eval_freq={steps}",
        "--config.training.snapshot_sampling=False",
    ]


def measure(sde: str, objective: str, seed: int, steps: int, workdir: Path) -> dict[str, float]:
    """Trains and evaluates once; bits/dim, and the relative spread of the loss."""
    common = arguments(sde, objective, seed, steps, workdir)
    for mode in (["train"], ["eval"], ["eval", "--config.eval.bound"]):
        run(*common, f"--mode={mode[0]}", *mode[1:])
    results = json.loads((workdir / "eval" / "results.json").read_text())
    by_kind = {r["kind"]: r["mean"] for r in results.values()}
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    late = [r["loss_std"] / r["loss"] for r in rows if r["step"] > steps / 2]
    return {**by_kind, "spread": float(np.mean(late))}


def with_spread(values: list[float], digits: int = 3) -> str:
    """Mean over seeds and its standard error."""
    stderr = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{np.mean(values):.{digits}f} ± {stderr:.{digits}f}"


def draw(axes: Any, record: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Each objective's bits/dim less than plain VP's, here and in the paper."""
    for shift, (kind, (name, colour, mark)) in zip((-0.15, 0.15), KINDS.items(), strict=True):
        values = np.array([[run[kind] for run in runs] for runs in record.values()])
        place, gains = np.arange(len(values)) + shift, values[0] - values  # of equal seeds
        error = gains.std(axis=1, ddof=1) / gains.shape[1] ** 0.5 if gains.shape[1] > 1 else None
        style = {"color": colour, "marker": mark, "linestyle": "none"}
        axes.errorbar(place, gains.mean(axis=1), error, **style, capsize=3, label=name)
        paper = PAPER[kind][0] - np.array(PAPER[kind])
        axes.plot(place + 0.08, paper, **style, fillstyle="none", label=f"{name}, paper, CIFAR-10")
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xticks(range(len(record)), [name.replace(" ", "\n", 1) for name in record])
    axes.set_ylabel("bits/dim less than plain VP")
    axes.legend(**ABOVE)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    # Seeds share their compiled programs.
    jax.config.update("jax_compilation_cache_dir", str(options.workdir.absolute() / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    rows, record = [], {}
    for sde in SDES:
        for objective in OBJECTIVES:
            name = f"{SDES[sde]}_{objective.replace(' + ', '_').lower()}"
            found = [
                measure(sde, objective, seed, options.steps, options.workdir / f"{name}_{seed}")
                for seed in range(options.seeds)
            ]
            record[f"{sde} {objective}"] = found
            columns = [[run[key] for run in found] for key in ("exact", "bound", "spread")]
            rows.append((sde, objective, *map(with_spread, columns)))
    header = ("SDE", "objective", "exact bits/dim (ODE)", "bound (SDE)", "sd / mean of the loss")
    picture = options.workdir / "objectives.png"
    picture.write_bytes(drawn(partial(draw, record=record), "png"))
    print(f"written: {picture}")
    answer(header, rows, {"steps": options.steps, "seeds": options.seeds, "runs": record})


if __name__ == "__main__":
    main()
