"""A model card: what a checkpoint is, what was measured of it, and how to use it, as Markdown."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import scoremle
from scoremle.errors import by, in_a_line
from scoremle.evaluation.result import Result
from scoremle.experiment.build import Experiment
from scoremle.experiment.record import augmentation
from scoremle.experiment.workdir import Workdir
from scoremle.terminal import in_markdown
from scoremle.training.checkpoints import Restored

__all__ = ["card"]

LIMITS = """\
Low bits/dim say that the model finds an image likely. They do not say that the image looks like
the data: simple and smooth pictures are likely whatever they show. Values of two models can be
compared where data, grey levels, dequantization and augmentation are the same."""
NETWORK = ("nf", "ch_mult", "num_res_blocks", "attn_resolutions")


def card(
    workdir: Workdir,
    experiment: Experiment,
    restored: Restored,
    measured: Sequence[Result],
    file: Path,
) -> str:
    """The card of the exported ``file``.

    Of those ``measured``, those of other parameters and of other data sets are left out.

    Args:
        workdir: the working directory.
        experiment: what was trained.
        restored: the checkpoint.
        measured: its results.
        file: the exported one.
    """
    use = [f"score {shlex.quote(file.name)} IMAGES"]
    if file.suffix != ".safetensors":
        use = [f"import {shlex.quote(file.name)} --out=WORKDIR", "score WORKDIR IMAGES"]
    data = in_markdown(experiment.data.name)
    of_it = (restored.number, restored.meta["step"])
    own = [result for result in measured
           if (result.checkpoint, result.step) == of_it and workdir.has_measured(result.to_json())]
    return "\n".join([
        f"# {in_markdown(file.stem)}", "",
        f"A score model of {data}, trained and measured with scoremle.", "",
        *_table(("", ""), _facts(workdir, experiment, restored)), "",
        "## Results", "", *_results(own), "",
        "## Limits", "", LIMITS, "",
        "## Use", "", "```sh", *(in_a_line(f"scoremle {words}") for words in use), "```", "",
    ])  # fmt: skip


def _facts(
    workdir: Workdir, experiment: Experiment, restored: Restored
) -> Iterator[tuple[str, str]]:
    model, data, config = experiment.model, experiment.data, experiment.config
    training, of_model = config["training"], config["model"]
    yield "data", f"{data.name}: {by(model.shape)}, {data.levels} grey levels"
    facts = workdir.data_facts()
    for name in ("data_version", "train_sha256"):
        if name in facts:
            yield name, str(facts[name])
    yield "augmentation", augmentation(config["data"])
    parameters = sum(leaf.size for leaf in jax.tree.leaves(restored.tree.ema))
    yield "network", f"{_network(of_model)}; {parameters:,} parameters"
    yield "average", f"of the parameters over the steps, decay {of_model['ema_rate']}"
    yield "SDE", f"{model.sde}, from t = {model.eps:g}"
    chosen = [n for n in ("likelihood_weighting", "importance_weighting") if training[n]]
    yield "objective", ", ".join(chosen).replace("_", " ") or "plain weighting"
    steps, batch = restored.meta["step"], training["batch_size"]
    yield "training", f"{steps:,} steps of {batch} images; seed {config['seed']}"
    yield "made by", f"scoremle {scoremle.__version__}, checkpoint {restored.number}"
    yield "licence", "not stated: say which"


def _network(fields: Mapping[str, Any]) -> str:
    """The kind of a network and its sizes; VDM's has no levels, since it never halves an image."""
    unread = {"ch_mult"} if fields["name"].lower() == "vdm" else set()
    sizes = (f"{name} {fields[name]}" for name in NETWORK if name not in unread)
    return f"{fields['name']}: {', '.join(sizes)}"


def _results(results: Sequence[Result]) -> list[str]:
    rows = []
    for r in results:
        mean, stderr, _, solver = r.in_cells()
        rows.append((r.noised, f"{mean} {r.unit}", stderr, solver, r.images_in_words))
    header = ("what", "value", "std. error over images", "solver's error", "protocol")
    without = ["This checkpoint was not evaluated: `scoremle eval` measures it."]
    return list(_table(header, rows)) if rows else without


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for line in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(map(in_markdown, line))} |"
