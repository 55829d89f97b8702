"""Draws samples of a model.

    scoremle sample digits -n 64 -o grid.png
    scoremle sample runs/digits -n 1000 -o many.npy --sampler=ddim --steps=100

Sample j of a seed is the same whatever number is drawn.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import scoremle
from scoremle.cli import checks
from scoremle.cli.parser import MODEL, Parser
from scoremle.errors import UserError, in_a_line
from scoremle.evaluation.tables import wrapped
from scoremle.experiment import defaults
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
    import numpy as np

    from scoremle.core.keys import key_of
    from scoremle.evaluation.pictures import write_grid
    from scoremle.experiment import build, labels, shipped, workdir

    model = scoremle.load(options.model, options.checkpoint)
    as_picture = options.out.suffix.lower() == ".png"
    if as_picture and (model.pixels is None or model.shape[-1] not in (1, 3)):
        raise UserError(f"samples of shape {model.shape} are not pictures: name a .npy or .npz")
    config, place = defaults.get_config(), Path(shipped.place_of(options.model))
    if options.sampler:
        config.sampling.method = options.sampler
    elif place.is_dir() and (own := workdir.Workdir(place)).config_path.exists():
        config.sampling = own.config().sampling
    if options.steps:
        config.sampling.steps = options.steps
    config.sampling.smallest_time = max(model.eps, SMALLEST_TIME)
    defaults.resolve(config)
    sampler, method = build.sampler_of(config, model.sde), config.sampling.method
    if not options.log_prob:
        say(*wrapped(f"{model}, by {method} in {counted(config.sampling.steps, 'step')}"))
    classes, condition = labels.check_label(model, options.label), None
    if options.label == labels.ALL:  # what is drawn so has the mean over labels for its density
        condition = np.random.default_rng(options.seed).integers(classes, size=options.n)
    elif classes:
        condition = np.full(options.n, int(options.label))
    key, devices = key_of(options.seed), jax.devices()
    if options.log_prob:
        model = replace(model, solver=scoremle.Multistep(options.steps or WITH_LOG_PROB))
        found = model.sample(
            options.n, key, condition=condition, devices=devices, label="samples", log_prob=True
        )
        columns = {name: column for name, column in vars(found).items() if column is not None}
        scoremle.files.write_npz(options.out, columns)
        say(*wrapped(f"{model}: {found}"), f"seed {options.seed}: {options.out}")
        return
    samples = replace(model, eps=sampler.eps).sample(
        options.n, key,
        condition=condition, sampler=sampler.draw, devices=devices, label="samples",
    )  # fmt: skip
    if as_picture and model.pixels:
        how = f"{method}, {counted(config.sampling.steps, 'step')}, seed {options.seed}"
        caption = in_a_line(f"{counted(options.n, 'sample')} of {options.model}, {how}")
        write_grid(options.out, samples, model.pixels.levels, caption=caption)
    else:
        levels = model.pixels.levels if model.pixels else None
        scoremle.files.write_array(options.out, "samples", samples, levels)
    say(f"{counted(options.n, 'sample')} of seed {options.seed}: {options.out}")
