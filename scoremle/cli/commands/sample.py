"""Draws samples of a model.

    scoremle sample digits -n 64 -o grid.png
    scoremle sample runs/digits -n 1000 -o many.npy --sampler=ddim --steps=100

Sample j of a seed is the same whatever number is drawn. After Ctrl-C the same command resumes.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import scoremle
from scoremle.cli import checks
from scoremle.cli import parts as finished
from scoremle.cli.parser import MODEL, Parser
from scoremle.errors import UserError, in_a_line
from scoremle.evaluation.tables import wrapped
from scoremle.terminal import counted, say

NEEDS = "scoremle.experiment.models"
# The names in experiment/samplers.py, whose import brings JAX.
SAMPLERS = ("ode", "ddim", "dpm_solver", "pc", "euler")
# Where sampling ends, unless the model begins later: as published for the VP SDE.
SMALLEST_TIME = 1e-3
# Steps of a sample with log p: to 0.01 nats images would take 1,024, and minutes.
WITH_LOG_PROB = 128


def arguments(parser: Parser) -> None:
    add = parser.add
    add("model", MODEL)
    add("-n", "number of samples (64)", type=checks.at_least(1), default=64)
    add("-o --out", "a picture of all samples (.png), or an array (.npy, .npz); unset:"
        " samples.png, or samples.npz with --log-prob", type=Path, metavar="FILE")  # fmt: skip
    add("--seed", "seed of all randomness (0)", type=checks.seed, default=0)
    add("--sampler", "by the ODE: ode, ddim, dpm_solver; by the reverse SDE: pc, euler; unset: the"
        " sampler of the model's config, or ode", choices=SAMPLERS)  # fmt: skip
    add("--steps", "number of the sampler's steps; unset: its default", type=checks.at_least(1))
    add("--label", "class, for a class-conditional model: a number, or all to draw one for each"
        " sample", default="")  # fmt: skip
    add("--log-prob", "also write log p of each sample in nats, and its errors, into a .npz; by"
        " the ODE alone", action="store_true")  # fmt: skip
    add("--force", "overwrite a file that exists", action="store_true")
    add("--checkpoint", "number of the checkpoint; unset: the newest", type=int)


def check(options: Any) -> None:
    options.out = options.out or Path("samples.npz" if options.log_prob else "samples.png")
    checks.ending("--out=", options.out, ".png", ".npy", ".npz")
    checks.different((options.model,), options.out)
    checks.writable("--out=", options.out, force=options.force)
    if options.log_prob:
        if options.out.suffix.lower() != ".npz":
            raise UserError(f"--log-prob writes an array: name a .npz, not {options.out}")
        if options.sampler not in (None, "ode"):
            raise UserError(f"--log-prob is for --sampler=ode: {options.sampler} gives no density")
    checks.model(options)


def run(options: Any) -> None:
    """Draws the samples and writes the file."""
    import jax

    from scoremle.core.keys import key_of
    from scoremle.experiment import build
    from scoremle.experiment.labels import under
    from scoremle.experiment.measurement import facts_of
    from scoremle.resumable import parts_in

    model = scoremle.load(options.model, options.checkpoint)
    if _is_picture(options.out) and (model.pixels is None or model.shape[-1] not in (1, 3)):
        raise UserError(f"samples of shape {model.shape} are not pictures: name a .npy or .npz")
    config, condition = _config(options, model.eps), _labels(options, model)
    sampler = build.sampler_of(config, model.sde)
    method, steps = config.sampling.method, counted(config.sampling.steps, "step")
    how: dict[str, Any] = {"condition": condition, "log_prob": options.log_prob}
    if options.log_prob:
        model = replace(model, solver=scoremle.Multistep(options.steps or WITH_LOG_PROB))
    else:
        say(*wrapped(f"{model}, by {method} in {steps}"))
        model, how["sampler"] = replace(model, eps=sampler.eps), sampler.draw
    facts = {"sampling": config.sampling.to_dict(), "samples": options.n, "label": options.label,
             "log_prob": options.log_prob}  # fmt: skip
    facts |= facts_of(under(model, options.label), options.model, options.seed)
    parts = parts_in(finished.above(options.out), facts)
    with finished.kept(parts):
        found = model.sample(
            options.n, key_of(options.seed), devices=jax.devices(), label="samples", parts=parts,
            **how,
        )  # fmt: skip
    checks.writable("--out=", options.out, force=options.force)  # another may have written there
    _write(options, model, found, f"{method}, {steps}")
    finished.remove(parts)
    drawn = f"{counted(options.n, 'sample')} of seed {options.seed}: {options.out}"
    say(*wrapped(f"{model}: {found}") * options.log_prob, drawn)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def _config(options: Any, eps: float) -> Any:
    """The sampler's config: that of the flags, then of the working directory, then the default."""
    from scoremle.experiment import defaults, shipped, workdir

    config, place = defaults.get_config(), Path(shipped.place_of(options.model))
    if options.sampler:
        config.sampling.method = options.sampler
    elif place.is_dir() and (own := workdir.Workdir(place)).config_path.exists():
        config.sampling = own.config().sampling
    if options.steps:
        config.sampling.steps = options.steps
    config.sampling.smallest_time = max(eps, SMALLEST_TIME)
    defaults.resolve(config)
    return config


def _labels(options: Any, model: Any) -> Any:
    """The class of each sample; None for a model without classes."""
    import numpy as np

    from scoremle.experiment import labels

    classes = labels.check_label(model, options.label)
    if options.label == labels.ALL:  # what is drawn so has the mean over labels for its density
        return np.random.default_rng(options.seed).integers(classes, size=options.n)
    return np.full(options.n, int(options.label)) if classes else None


def _write(options: Any, model: Any, found: Any, how: str) -> None:
    """Writes samples: with log p, as a picture, or as an array."""
    from scoremle.evaluation.pictures import write_grid

    if options.log_prob:
        columns = {name: column for name, column in vars(found).items() if column is not None}
        scoremle.files.write_npz(options.out, columns)
    elif _is_picture(options.out):
        drawn = f"{counted(options.n, 'sample')} of {options.model}"
        caption = in_a_line(f"{drawn}, {how}, seed {options.seed}")
        write_grid(options.out, found, model.pixels.levels, caption=caption)
    else:
        levels = model.pixels.levels if model.pixels else None
        scoremle.files.write_array(options.out, "samples", found, levels)
