"""Values that a config may have, checked before anything is built."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from scoremle.bounded import LARGEST_SIDE
from scoremle.core.learned_schedules import BETWEEN_ENDS, LEARNED_SCHEDULES, POLYNOMIAL
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
    "eval.dequantization": ("uniform", "truncated_normal", "variational", "none", "informed"),
    "data.fit": ("", "crop", "resize", "pad"),
    "data.on_device": ("auto", "true", "false"),
    "training.on_nan": ("stop", "rollback"),
    "training.time_density": ("published", "alpha_squared", "learned"),
    "optim.optimizer": ("Adam", "AdamW"),
    "model.embedding": ("time", "log_snr"),
    "model.schedule": ("fixed", *LEARNED_SCHEDULES, POLYNOMIAL),
    "model.parameterization": ("published", *PREDICTIONS, "edm"),
}
# What the published algorithm is of.
OF_RK45 = {
    "probes": ("1",), "importance_samples": ("1",), "suite": ("false",),
    "divergence": ("rademacher", "gaussian"),
}  # fmt: skip
# What values must be, by name: in words, and as a test. All reals must be finite, too.
RULES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    ("at least 1", lambda v: v >= 1, (
        "data.image_size", "data.num_channels", "training.batch_size", "training.accumulate",
        "eval.batch_size", "eval.num_samples", "eval.num_repeats",
        "eval.bound_draws", "eval.probes", "model.ch_mult", "model.num_res_blocks",
        "model.num_scales", "model.latent_size", "model.latent_k", "model.encoder_blocks",
        "sampling.steps", "sampling.n_steps_each",
        "eval.importance_samples", "deq.n_iters", "deq.filters", "deq.components",
        "deq.blocks", "deq.couplings", "deq.heads",
    )),
    ("at least 4", lambda v: v >= 4, ("eval.nodes",)),  # fewer give no error of the solver
    (f"at most {LARGEST_SIDE:,}", lambda v: v <= LARGEST_SIDE, ("data.image_size",)),
    ("at most 65,536", lambda v: v <= 1 << 16, ("data.num_channels",)),
    ("0 or from 2 to 256", lambda v: v == 0 or 2 <= v <= 256, ("data.levels",)),
    ("at least 0", lambda v: v is None or v >= 0, (
        "eval.num_images", "eval.bound_steps", "optim.warmup", "optim.weight_decay",
        "training.rollbacks", "eval.begin_ckpt", "eval.end_ckpt", "eval.ckpt_id", "eval.deq_ckpt",
    )),
    ("above 0, or below 0 for none", lambda v: v != 0, ("optim.grad_clip",)),
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
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} must be a finite number, not {value}")
    for name, choices in CHOICES.items():
        if (value := fields[name]) not in choices:
            listing = " or ".join(choice or "''" for choice in choices)
            raise UserError(f"{name} must be {listing}, not {value!r}")
    for wrong, words in (*_of_training(config), *_of_evaluation(config)):
        if wrong:
            raise UserError(words)


def _of_training(config: Any) -> Iterator[tuple[bool, str]]:
    """Fields of a model and its training that need others, or exclude them."""
    training, data, model = config.training, config.data, config.model
    density, learned = training.time_density, model.schedule != "fixed"
    yield model.sigma_min >= model.sigma_max, "model.sigma_min must be below model.sigma_max"
    yield (training.batch_size % training.accumulate > 0,
           f"training.batch_size {training.batch_size} does not divide into"
           f" training.accumulate={training.accumulate} parts")  # fmt: skip
    yield (training.importance_weighting and not training.likelihood_weighting,
           "training.importance_weighting draws t for the likelihood weighting: set"
           " training.likelihood_weighting too")  # fmt: skip
    yield (density != "published" and training.importance_weighting,
           f"training.time_density={density} draws t in its own way: unset"
           " training.importance_weighting")  # fmt: skip
    yield (data.bin_middles and not training.likelihood_weighting,
           "data.bin_middles has the bound on integers as loss: set"
           " training.likelihood_weighting")  # fmt: skip
    yield (data.bin_middles and data.uniform_dequantization,
           "data.bin_middles and data.uniform_dequantization are two ways to train: set one")
    yield (learned and not data.bin_middles,
           f"model.schedule={model.schedule} is learned by the bound on integers: set"
           " data.bin_middles")  # fmt: skip
    yield (learned and training.sde.lower() not in FROM_ZERO,
           f"model.schedule={model.schedule} begins as one that is linear in log-SNR: set"
           f" training.sde to one of {', '.join(FROM_ZERO)}")  # fmt: skip
    yield (learned and training.second_order,
           f"training.second_order is for a schedule that is fixed: unset"
           f" model.schedule={model.schedule}")  # fmt: skip
    drawn_evenly = density == "published" and not training.importance_weighting
    yield (model.schedule in (BETWEEN_ENDS, POLYNOMIAL) and not drawn_evenly,
           f"model.schedule={model.schedule} draws t evenly: unset training.time_density and"
           " training.importance_weighting")  # fmt: skip
    takes_codes = {model.name.lower(), training.sde.lower()} == {"vdm"} and not data.augment
    yield (model.schedule == POLYNOMIAL and not takes_codes,
           f"model.schedule={POLYNOMIAL} is of model.name=vdm, whose input is the code, and of"
           " training.sde=vdm, without data.augment")  # fmt: skip
    yield (model.schedule in (BETWEEN_ENDS, POLYNOMIAL) and training.smallest_time > 0,
           f"model.schedule={model.schedule} has its ends at t = 0 and 1: set"
           " training.smallest_time=0")  # fmt: skip
    yield (model.latent_k > model.latent_size,
           f"model.latent_k={model.latent_k} is more than model.latent_size={model.latent_size}")
    yield (data.augment and model.name.lower() != "vdm",
           "data.augment is an input of the network, which only model.name=vdm has")


def _of_evaluation(config: Any) -> Iterator[tuple[bool, str]]:
    """Fields of an evaluation that need others, or exclude them."""
    flags = config.eval
    noise, published = flags.dequantization, flags.solver == "rk45_reference"
    yield (flags.dequantizer and noise != "variational",
           f"eval.dequantizer means variational dequantization, not {noise}")
    yield (noise == "none" and not flags.bound,
           "eval.dequantization=none is for the bound, with its discrete decoder: set eval.bound")
    yield (flags.bound and noise == "truncated_normal",
           "eval.bound begins at the smallest time, and the noise of eval.dequantization="
           "truncated_normal at another: take none, where the model was trained on the middles of"
           " bins, or uniform")  # fmt: skip
    yield (flags.bound and not flags.offset and noise in ("none", "informed"),
           f"eval.offset is of the step to reals, and eval.dequantization={noise} takes the step"
           " to integers: leave it True")  # fmt: skip
    yield (flags.bound_steps > 0 and noise in ("truncated_normal", "variational"),
           "eval.bound_steps is a bound on integers, which takes no dequantization noise: unset"
           f" eval.dequantization={noise}")  # fmt: skip
    yield (flags.bound_steps > 0 and flags.suite,
           "eval.suite does not measure eval.bound_steps: unset one of the two")
    yield (flags.suite and config.model.schedule == POLYNOMIAL,
           "eval.suite measures bounds of dequantized data, which"
           f" model.schedule={POLYNOMIAL} does not have: unset eval.suite")  # fmt: skip
    yield (flags.importance_samples > 1 and (flags.bound or flags.bound_steps > 0),
           "eval.importance_samples is for the exact likelihood: the draws of the bound would make"
           " a mean of exponentials far too large; unset eval.bound")  # fmt: skip
    yield (flags.wait and flags.end_ckpt is None,
           "eval.wait waits for checkpoints up to eval.end_ckpt: set it")
    for name in ("suite", "enable_loss", "enable_sampling"):  # a label is of bits/dim
        yield (flags.label and flags[name],
               f"eval.{name} does not take eval.label: unset one of the two; scoremle sample has"
               " --label")  # fmt: skip
    yield (published and flags.label == ALL,  # which is compiled
           "eval.solver=rk45_reference takes one label, not eval.label=all")
    for name, values in OF_RK45.items():
        yield (published and str(flags[name]).lower() not in values,
               "eval.solver=rk45_reference is the published algorithm, of one random probe and one"
               f" draw: it can't go with eval.{name}={flags[name]}")  # fmt: skip
