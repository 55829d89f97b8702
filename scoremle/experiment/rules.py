"""Values that a config may have, checked before anything is built."""

import math
from collections.abc import Callable
from typing import Any

from scoremle.core.learned_schedules import LEARNED_SCHEDULES
from scoremle.core.prediction import PREDICTIONS
from scoremle.errors import UserError
from scoremle.experiment.config import check_types, flat
from scoremle.experiment.defaults import FROM_ZERO
from scoremle.experiment.labels import ALL

__all__ = ["check_config"]

# Fields that nothing here reads: accepted with their published values alone, so that another value
# is an error and not silence.
ONLY = {
    "training.continuous": True,
    "model.normalization": "GroupNorm",
    "model.attention_type": "ddpm",
    "model.conv_size": 3,
    "model.data_init": False,
    "deq.dropout": 0.0,
}
CHOICES = {
    "eval.dataset": ("train", "test"),
    "data.fit": ("", "crop", "resize", "pad"),
    "data.on_device": ("auto", "true", "false"),
    "training.on_nan": ("stop", "rollback"),
    "training.time_density": ("published", "alpha_squared", "learned"),
    "optim.optimizer": ("Adam", "AdamW"),
    "model.embedding": ("time", "log_snr"),
    "model.schedule": ("fixed", *LEARNED_SCHEDULES),
    "model.parameterization": ("published", *PREDICTIONS, "edm"),
}

DEQUANTIZATIONS = ("uniform", "truncated_normal", "variational", "none", "informed")
# What values must be, by name: in words, and as a test that NaN fails.
RULES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    ("at least 1", lambda v: v >= 1, (
        "data.image_size", "data.num_channels", "training.batch_size", "training.accumulate",
        "eval.batch_size", "eval.num_samples", "eval.num_repeats",
        "eval.bound_draws", "eval.probes", "eval.nodes", "model.ch_mult", "model.num_res_blocks",
        "model.num_scales", "sampling.steps", "sampling.n_steps_each",
        "eval.importance_samples", "deq.n_iters", "deq.filters", "deq.components",
        "deq.blocks", "deq.couplings", "deq.heads",
    )),
    ("at most 65,536", lambda v: v <= 1 << 16, ("data.image_size", "data.num_channels")),
    ("at least 0", lambda v: v >= 0, (
        "eval.num_images", "eval.bound_steps", "optim.warmup", "optim.weight_decay",
        "training.rollbacks",
    )),
    ("a finite number above 0", lambda v: 0 < v < math.inf, (
        "eval.tolerance", "optim.lr", "optim.eps", "model.beta_min", "model.beta_max",
        "model.sigma_min", "model.sigma_max", "sampling.snr",
    )),
    ("at least 0 and below 1", lambda v: 0 <= v < 1, (
        "model.dropout", "model.ema_rate", "optim.beta1", "optim.beta2", "deq.ema_rate",
        "training.smallest_time", "sampling.smallest_time",
    )),
    ("at least 0 and below 2**32 - 1", lambda v: 0 <= v < 2**32 - 1, ("seed",)),
)  # fmt: skip


def check_config(config: Any) -> None:
    """Raises UserError for a value of a resolved config that can't be had.

    Args:
        config: a resolved one.
    """
    check_types(config)
    fields = flat(config)
    for name, value in ONLY.items():
        if fields[name] != value:
            raise UserError(f"{name} can only be {value!r} here, not {fields[name]!r}")
    for words, holds, names in RULES:
        for name in names:
            value = fields[name]
            values = value if isinstance(value, tuple) else (value,)
            if not values or not all(map(holds, values)):
                raise UserError(f"{name} must be {words}, not {value}")
    if config.model.sigma_min >= config.model.sigma_max:
        raise UserError("model.sigma_min must be below model.sigma_max")
    if config.data.levels != 0 and not 2 <= config.data.levels <= 256:
        raise UserError(f"data.levels must be 0 or from 2 to 256, not {config.data.levels}")
    if config.training.batch_size % config.training.accumulate:
        raise UserError(
            f"training.batch_size {config.training.batch_size} does not divide into"
            f" training.accumulate={config.training.accumulate} parts"
        )
    if config.training.importance_weighting and not config.training.likelihood_weighting:
        raise UserError(
            "training.importance_weighting draws t for the likelihood weighting: "
            "set training.likelihood_weighting too"
        )
    for name, choices in CHOICES.items():
        if (value := fields[name]) not in choices:
            listing = " or ".join(choice or "''" for choice in choices)
            raise UserError(f"{name} must be {listing}, not {value!r}")
    _check_objective(config)
    _check_dequantization(config.eval)
    _check_label(config.eval)
    if config.eval.solver == "rk45_reference":
        _check_published_solver(config.eval)


def _check_objective(config: Any) -> None:
    """Fields of VDM and i-DODE that need others, or exclude them."""
    training, data, schedule = config.training, config.data, config.model.schedule
    density, learned = training.time_density, schedule != "fixed"
    for wrong, words in (
        (density != "published" and training.importance_weighting,
         f"training.time_density={density} draws t in its own way: unset"
         " training.importance_weighting"),
        (data.bin_middles and not training.likelihood_weighting,
         "data.bin_middles has the bound on integers as loss: set training.likelihood_weighting"),
        (data.bin_middles and data.uniform_dequantization,
         "data.bin_middles and data.uniform_dequantization are two ways to train: set one"),
        (learned and not data.bin_middles,
         f"model.schedule={schedule} is learned by the bound on integers: set data.bin_middles"),
        (learned and training.sde.lower() not in FROM_ZERO,
         f"model.schedule={schedule} begins as one that is linear in log-SNR: set training.sde to"
         f" one of {', '.join(FROM_ZERO)}"),
        (data.augment and config.model.name.lower() != "vdm",
         "data.augment is told to the network, which only model.name=vdm takes in"),
    ):  # fmt: skip
        if wrong:
            raise UserError(words)


def _check_published_solver(evaluation: Any) -> None:
    alone = {"probes": 1, "importance_samples": 1, "suite": False}
    wrong = [name for name, value in alone.items() if evaluation[name] != value]
    if evaluation.divergence.lower() not in ("rademacher", "gaussian"):
        wrong.append("divergence")
    if wrong:
        raise UserError(
            f"eval.solver=rk45_reference is the published algorithm, of one random probe and one"
            f" draw: it can't go with eval.{wrong[0]}={evaluation[wrong[0]]}"
        )


def _check_dequantization(evaluation: Any) -> None:
    name = evaluation.dequantization
    if name not in DEQUANTIZATIONS:
        raise UserError(
            f"eval.dequantization must be one of {', '.join(DEQUANTIZATIONS)}, not {name!r}"
        )
    if evaluation.dequantizer and name != "variational":
        raise UserError(f"eval.dequantizer means variational dequantization, not {name}")
    if name == "none" and not evaluation.bound:
        raise UserError(
            "eval.dequantization=none is for the bound, with its discrete decoder: set eval.bound"
        )
    if evaluation.bound_steps and name in ("truncated_normal", "variational"):
        raise UserError(
            f"eval.bound_steps is a bound on integers, which takes no dequantization noise: unset"
            f" eval.dequantization={name}"
        )
    if evaluation.bound_steps and evaluation.suite:
        raise UserError("eval.suite does not measure eval.bound_steps: unset one of the two")
    if evaluation.importance_samples > 1 and (evaluation.bound or evaluation.bound_steps):
        raise UserError(
            "eval.importance_samples is for the exact likelihood: the draws of the bound would "
            "make a mean of exponentials far too large; unset eval.bound"
        )
    if evaluation.wait and evaluation.end_ckpt is None:
        raise UserError("eval.wait waits for checkpoints up to eval.end_ckpt: set it")


def _check_label(evaluation: Any) -> None:
    """A label is of bits/dim; the mean over all of them is compiled."""
    if not evaluation.label:
        return
    for name in ("suite", "enable_loss", "enable_sampling"):
        if evaluation[name]:
            raise UserError(
                f"eval.{name} does not take eval.label: unset one of the two; scoremle sample has"
                " --label"
            )
    if evaluation.label == ALL and evaluation.solver == "rk45_reference":
        raise UserError("eval.solver=rk45_reference takes one label, not eval.label=all")
