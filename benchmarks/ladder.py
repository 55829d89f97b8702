"""The ladder: what each successor of the first objective is worth on one budget of processor time.

Trains each rung for the same seconds of a processor, on digits or by another config, measures the
exact bits/dim and the bound on test images, and prints a table for docs/results.md and a line of
JSON.

    python benchmarks/ladder.py                          # all, three seeds: hours
    python benchmarks/ladder.py --config=fashion_mnist --budget=600 --point=300 --images=500
    python benchmarks/ladder.py --budget=60 --rungs plain LW LW+IS sub-VP --plot=ladder.png
    python benchmarks/ladder.py --budget=60 --rungs none # the table of what there is
    python benchmarks/ladder.py --of=networks --config=fashion_mnist --budget=600 --images=250

By ``--of=networks`` the rungs are networks and optimizers for one objective. What is chosen must
not see the test images, so they are measured on every tenth training image, which is left out of
their training.

A run that was stopped goes on where it was, within a training, too, and a larger ``--budget`` goes
on from the smaller one. A step's seconds are measured first, without compilation and in turns with
the first rung's, so that other work slows both; they set how many steps the budget has. A flow
dequantizer is trained in addition to the budget, for the steps that its config has.
Fine-tuning has the last third of the budget, a point at least, from another rung's checkpoint on.

A difference is a rung's bits/dim minus the first rung's, image by image and seed by seed. Its
error is that over images, and where there are two seeds or more that over seeds, added in
quadrature.
The picture has these differences beside the paper's, and the curves over seconds and over steps.
"""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from common import answer, parser_of, run, timed
from jax.tree_util import Partial
from rungs import BASE, FLOW, LADDERS, Rung

from scoremle.cli.cache import keep_programs
from scoremle.data.feed import feed
from scoremle.data.prepare import prepare
from scoremle.data.readers.base import Chunk, Options, Reading
from scoremle.devices import needs
from scoremle.evaluation.figures import ABOVE, COLOURS, INK, drawn
from scoremle.evaluation.result import Result
from scoremle.evaluation.statistics import paired_difference
from scoremle.experiment.build import build
from scoremle.experiment.config import load_config
from scoremle.experiment.results import measured
from scoremle.experiment.workdir import Workdir
from scoremle.files import read_json, write_json
from scoremle.training.program import make_program

STEPS, ROUNDS = 20, 3  # so many are timed at once, so often
KINDS = ("exact", "bound")


class Ladder(NamedTuple):
    """The trainings below ``workdir``, each for ``budget`` seconds with a point each so often.

    So many ``images`` of the test split are measured; 0: all. For networks, the test split is
    every tenth training image.
    """

    of: str
    workdir: Path
    config: str
    images: int
    budget: int
    point: int
    seeds: int

    @property
    def rungs(self) -> Mapping[str, Rung]:
        return LADDERS[self.of]

    @property
    def first(self) -> str:
        return next(iter(self.rungs))

    @property
    def points(self) -> int:
        return self.budget // self.point

    @property
    def turn(self) -> int:
        """The point at which a training is fine-tuned."""
        return self.points - max(self.points // 3, 1)

    @property
    def paces(self) -> dict[str, dict[str, float]]:
        """Seconds and MiB of a step, of the networks that were timed."""
        path = self.workdir / "paces.json"
        return read_json(path) if path.exists() else {}

    def folder(self, name: str, seed: int) -> Path:
        """The working directory of a training."""
        of_budget = f"_{self.points}" * bool(self.rungs[name].begun)
        return self.workdir / slug(self.rungs[name].network or name) / f"{seed}{of_budget}"

    def fields(self, name: str) -> dict[str, Any]:
        """The fields that a rung's training sets."""
        both = BASE | self.rungs[name].fields
        return {field: value for field, value in both.items() if value is not None}

    def pace(self, name: str) -> float:
        """Seconds of a step: measured once, in turns with steps of the first rung."""
        if name != self.first:
            self.pace(self.first)
        if name not in self.paces:
            steps, memory = zip(*map(self.program, (self.first, name)), strict=True)
            turns = [[timed(each)[1].computing for each in steps] for _ in range(ROUNDS + 1)]
            first, own = np.min(turns[1:], axis=0) / STEPS  # the first turn compiles
            # Read now: another run of this ladder may have measured its own in the meantime.
            known = self.paces
            seconds = known[self.first]["seconds"] * own / first if name != self.first else own
            found = {name: {"seconds": seconds, "MiB": memory[1]}}
            write_json(self.workdir / "paces.json", known | found)
        return self.paces[name]["seconds"]

    def program(self, name: str) -> tuple[Callable[[], Any], float]:
        """Some steps of a rung's training as a call, and the MiB that a step needs."""
        config, resolve = load_config(self.config)
        config.update_from_flattened_dict(self.fields(name))
        resolve(config)
        training = build(config).training
        images, state = feed(training.data), training.init_state()
        batch = images.batch_of(training.data)
        program = make_program(
            Partial(training.objective.loss), training.optimizer, training.ema_rate,
            seed=config.seed, resident=images.resident, gather=images.gather,
            places=training.places,
        )  # fmt: skip
        batches = jax.tree.map(lambda *each: np.stack(each), *map(batch, range(STEPS)))
        memory = needs(program.lower(state, batch(0)))

        def steps() -> Any:
            nonlocal state
            state, metrics = program(state, batches)
            return metrics

        return steps, (memory.given + memory.work) / 2**20 if memory else np.nan

    def steps(self, name: str, points: int) -> int:
        """Steps of a rung in the time of so many points."""
        return points * max(round(self.point / self.pace(name) / 5), 1) * 5

    def train(self, name: str, seed: int) -> None:
        """Trains the network of a rung for the budget, and the flow for it where it has one."""
        network, folder = self.rungs[name].network or name, self.folder(name, seed)
        flow = folder / f"deq_{self.points}"
        if self.points not in Workdir(folder).snapshots.numbers():
            steps = self.steps(network, self.points)
            if begun := self.rungs[network].begun:
                self.begin(begun, seed, folder)
                steps = self.steps(begun, self.turn) + self.steps(name, self.points - self.turn)
            run(f"--config={self.config}", f"--workdir={folder}", "--mode=train", *flags({
                "seed": seed, "training.n_iters": steps, "training.eval_freq": steps,
                "training.snapshot_freq": steps // self.points,
                "training.snapshot_sampling": False,
                **self.fields(network), **self.data(),
            }))  # fmt: skip
        if self.rungs[name].exact == FLOW and not Workdir(flow).snapshots.numbers():
            run("train-deq", str(folder), f"--deq-folder={flow.name}")

    def data(self) -> dict[str, str]:
        """The fields of the images: those of the config, or for networks the training part."""
        if self.of == "objectives":
            return {}
        folder = self.workdir / "training_images"
        if not folder.exists():
            config, resolve = load_config(self.config)
            resolve(config)
            data = build(config).training.data
            held = np.arange(len(data.train)) % 10 == 9
            chunks = [Chunk(data.train[~held], "train", 0.9), Chunk(data.train[held], "test", 1.0)]
            reading = Reading(iter(chunks), lambda: "", data.levels)
            prepare(reading, folder, name="images", source=config.data.dataset, options=Options())
        return {"data.dataset": "images", "data.path": str(folder)}

    def begin(self, name: str, seed: int, folder: Path) -> None:
        """Copies a rung's checkpoint at the turn, unless a training was begun with it."""
        self._replace(budget=self.turn * self.point).train(name, seed)
        if not Workdir(folder).begun:
            own, copy = (Workdir(each).snapshots for each in (self.folder(name, seed), folder))
            shutil.copytree(own.path(self.turn), copy.path(self.turn))

    def measure(self, name: str, seed: int) -> None:
        """Measures the exact bits/dim at each point of its own curve, and the bound at the end."""
        rung = self.rungs[name]
        exact, bound = ([r.checkpoint for r in self.results(name, seed, kind)] for kind in KINDS)
        begin = self.points if rung.network or rung.begun else max(exact, default=0) + 1
        fixed = {"eval.end_ckpt": self.points, "eval.solver": "multistep",
                 "eval.num_images": self.images}  # fmt: skip
        wanted = [("exact", fixed | {"eval.begin_ckpt": begin} | {**rung.exact})]
        wanted = wanted if self.points not in exact else []
        if rung.bound is not None and self.points not in bound:
            wanted.append(("bound", fixed | {"eval.bound": True} | {**rung.bound}))
        for kind, fields in wanted:
            run("eval", str(self.folder(name, seed)), f"--eval-folder={self.outcome(name, kind)}",
                f"--deq-folder=deq_{self.points}", *flags(fields))  # fmt: skip

    def outcome(self, name: str, kind: str) -> str:
        """The folder of a rung's measurements, within that of its training."""
        return f"{kind}_{slug(name)}" + f"_{self.images}" * bool(self.images)

    def results(self, name: str, seed: int, kind: str) -> list[Result]:
        """The measurements of a rung within the budget, in the order of training steps."""
        folder = self.folder(name, seed) / self.outcome(name, kind)
        found = measured(folder) if folder.exists() else []
        return sorted((r for r in found if r.checkpoint <= self.points), key=lambda r: r.step)

    def ends(self, name: str, kind: str) -> dict[int, Result]:
        """The result at the end of the budget by seed."""
        found = {seed: self.results(name, seed, kind)[-1:] for seed in range(self.seeds)}
        return {seed: r for seed, own in found.items() for r in own if r.checkpoint == self.points}


def slug(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def flags(fields: Mapping[str, Any]) -> list[str]:
    return [f"--config.{name}={value}" for name, value in fields.items()]


def difference(first: Mapping[int, Result], own: Mapping[int, Result]) -> tuple[float, float]:
    """A rung's bits/dim minus the first's over the seeds of both, and its error."""
    pairs = [(first[seed].values, own[seed].values) for seed in first.keys() & own.keys()]
    mean, error, _ = paired_difference(*np.mean(pairs, axis=0))
    of_seeds = [np.mean(b - a) for a, b in pairs]
    spread = np.std(of_seeds, ddof=1) / len(pairs) ** 0.5 if len(pairs) > 1 else 0.0
    return mean, float(np.hypot(error, spread))


def draw(
    rungs: Mapping[str, Rung], axes: Any, gains: Mapping[str, Any], curves: Mapping[str, Any]
) -> None:
    """Differences from the first rung beside the paper's, and curves over seconds and steps."""
    first = next(iter(rungs))
    figure, names = axes.figure, list(gains)
    axes.remove()
    figure.set_size_inches(13, 4.8)
    left, middle, right = figure.subplots(1, 3, width_ratios=(4, 3, 3))
    for i, kind in enumerate(KINDS):
        style: Any = {"color": COLOURS[i], "marker": "os"[i], "linestyle": "none"}
        here = [(*gains[n][kind], y + 0.2 * i) for y, n in enumerate(names) if kind in gains[n]]
        x, error, y = np.reshape(here, (-1, 3)).T
        left.errorbar(x, y, xerr=error, **style, capsize=2, label=f"{kind}, here")
        of_paper = [(paper[i] - rungs[first].paper[i], y)
                for y, n in enumerate(names) if (paper := rungs[n].paper)]  # fmt: skip
        if of_paper:
            left.plot(*np.transpose(of_paper), **style, fillstyle="none",
                      label=f"{kind}, ScoreFlow on CIFAR-10")  # fmt: skip
    left.axvline(0, color=INK, linewidth=0.8)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_xlabel(f"bits/dim minus those of {first}")
    left.legend(**ABOVE, fontsize=8)
    for i, (name, rows) in enumerate(curves.items()):
        steps, seconds, bpd = np.transpose(rows)
        style = {"color": COLOURS[i % 6], "marker": "os^vDP"[i // 6], "markersize": 4}
        middle.plot(seconds, bpd, **style)
        right.plot(steps, bpd, **style, label=name)
    middle.set(xlabel="seconds of a processor", ylabel="exact bits/dim")
    right.set(xlabel="training steps")
    right.sharey(middle)
    figure.legend(*right.get_legend_handles_labels(), loc="outside right")


def show(ladder: Ladder, plot: Path | None) -> None:
    """Prints the table of what there is, and draws it."""
    first = {kind: ladder.ends(ladder.first, kind) for kind in KINDS}
    rows: list[tuple[str, ...]] = []
    gains: dict[str, dict[str, tuple[float, float]]] = {}
    curves: dict[str, list[tuple[int, float, float]]] = {}
    for name, rung in ladder.rungs.items():
        found = {kind: ladder.ends(name, kind) for kind in KINDS}
        claim = "{:.2f} exact, {:.2f} bound".format(*rung.paper) if rung.paper else rung.claim
        if not found["exact"]:
            rows.append((name, "not run", *[""] * 7, claim))
            continue
        pace, (one, *_) = ladder.paces[rung.network or name], found["exact"].values()
        gains[name], cells = {}, [name, str(len(found["exact"])), str(one.step)]
        for kind, own in found.items():
            if name != ladder.first and first[kind].keys() & own.keys():
                gains[name][kind] = difference(first[kind], own)
            cells += [
                f"{np.mean([r.mean for r in own.values()]):.3f}" if own else "",
                "{:+.3f} ± {:.3f}".format(*gains[name][kind]) if kind in gains[name] else "",
            ]
        rows.append((*cells, f"{pace['seconds']:.4f}", f"{pace['MiB']:.0f}", claim))
        if not (rung.network or rung.begun):
            curve = ladder.results(name, min(found["exact"]), "exact")
            curves[name] = [(r.step, r.step * pace["seconds"], r.mean) for r in curve]
    if plot:
        # One that is a bit behind is far from trained, and would hide what the others are apart.
        others = {name: gain for name, gain in gains.items()
                  if gain and max(mean for mean, _ in gain.values()) < 1}  # fmt: skip
        near = {name: curve for name, curve in curves.items() if name in {ladder.first, *others}}
        plot.write_bytes(*drawn(partial(draw, ladder.rungs, gains=others, curves=near), "png"))
    header = ("rung", "seeds", "steps", *(c for k in KINDS for c in (k, f"minus {ladder.first}")),
              "s/step", "MiB", "papers, CIFAR-10")  # fmt: skip
    used = slice(None if any(row[-1] for row in rows) else -1)
    numbers = {"budget": ladder.budget, "differences": gains, "curves": curves}
    answer(header[used], [row[used] for row in rows], numbers)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--config", default="digits")
    parser.add_argument("--images", type=int, default=0, help="of the test split; 0: all")
    parser.add_argument("--budget", type=int, default=180, help="seconds of a processor, each")
    parser.add_argument("--point", type=int, default=30, help="seconds between points of a curve")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--of", choices=LADDERS, default="objectives", help="what rungs differ in")
    parser.add_argument("--rungs", nargs="+", help="names, or none; all by default")
    parser.add_argument("--plot", type=Path, help="the picture to write")
    options = parser.parse_args(arguments)
    options.workdir /= slug(options.config) + f"_{options.of}" * (options.of == "networks")
    ladder = Ladder(*(getattr(options, field) for field in Ladder._fields))
    keep_programs()
    if unknown := set(options.rungs or ()) - {*ladder.rungs, "none"}:
        parser.error(f"no rung {unknown.pop()}; there are {', '.join(ladder.rungs)}")
    names = [name for name in ladder.rungs if name in (options.rungs or ladder.rungs)]
    for name in names:
        if ladder.points < (least := 2 if ladder.rungs[name].begun else 1):
            parser.error(f"{name} takes a --budget of {least} x --point or more")
    for seed, name in product(range(options.seeds), names):
        ladder.train(name, seed)
        ladder.measure(name, seed)
    show(ladder, options.plot)


if __name__ == "__main__":
    main()
