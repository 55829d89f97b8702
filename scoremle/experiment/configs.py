"""Experiments by name (``--config=digits``): a table of the fields that differ from the defaults.

The published ones have their published names; ``configs/NAME.py`` means the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from scoremle.experiment import defaults

__all__ = ["NAMED_CONFIGS"]


def _imagenet_resolve(config: ConfigDict) -> None:
    """Resolves as by default, but likelihood training with importance sampling starts later."""
    training = config.training
    likelihood = training.likelihood_weighting and training.importance_weighting
    if training.smallest_time is None and training.sde.lower() == "vpsde" and likelihood:
        training.smallest_time = 5e-5
    defaults.resolve(config)


class NamedConfig(NamedTuple):
    """A config: its fields by their dotted names, and what fills those that are unset."""

    fields: dict[str, Any]
    resolve: Callable[[ConfigDict], None] = defaults.resolve

    def get_config(self) -> ConfigDict:
        """The config, whose unset fields are not filled yet."""
        config = defaults.get_config()
        config.update_from_flattened_dict(self.fields)
        return config


DEEP = {"training.n_iters": 950_001, "model.num_res_blocks": 8}
# The SDE sets the smallest times of training and sampling: both 1e-2 (see defaults.py).
SUBVP = {"training.sde": "subvpsde"}
IMAGENET = {
    "data.dataset": "ImageNet", "data.random_flip": False, "model.dropout": 0.0,
    "eval.num_repeats": 1,
    "deq.variant": "imagenet32", "deq.filters": 128, "deq.blocks": 8, "deq.couplings": 8,
}  # fmt: skip
# Maximum likelihood on a CPU: a small network, times stratified over the batch.
SMALL = {
    "training.likelihood_weighting": True, "training.importance_weighting": True,
    "training.stratified": True, "training.batch_size": 64,
    "eval.num_samples": 100, "eval.num_repeats": 1,
    "data.random_flip": False, "data.uniform_dequantization": True,
    "model.nf": 16, "model.num_res_blocks": 1, "model.dropout": 0.0,
}  # fmt: skip
# The best rung of benchmarks/ladder.py.
VELOCITY = {
    "training.sde": "idode", "model.parameterization": "v",
    "training.importance_weighting": False, "training.time_density": "alpha_squared",
}  # fmt: skip
SMALL_FLOW = {"deq.filters": 32, "deq.components": 8, "deq.blocks": 1}
FASHION = SMALL | SMALL_FLOW | {
    "training.n_iters": 4000, "training.snapshot_freq": 1000,
    "training.snapshot_freq_for_preemption": 500,
    "eval.batch_size": 250, "eval.bound_draws": 16,
    "data.dataset": "fashion_mnist", "data.image_size": 28, "data.num_channels": 1,
    "model.ch_mult": (1, 2, 2), "model.attn_resolutions": (7,), "model.ema_rate": 0.999,
    "deq.n_iters": 1000, "optim.lr": 1e-3, "optim.warmup": 500,
}  # fmt: skip

# VDM (arXiv 2107.00630) and i-DODE (arXiv 2305.03935): the bound on integers in the middle of
# their bins, and a network that never halves the image.
VDM = {
    "seed": 1, "training.sde": "vdm", "training.likelihood_weighting": True,
    "training.stratified": True, "training.n_iters": 10_000_000, "training.log_freq": 1000,
    "training.eval_freq": 10_000,
    "eval.bound": True, "eval.dequantization": "none", "eval.num_repeats": 1,
    "eval.batch_size": 128,
    "data.random_flip": False, "data.bin_middles": True,
    "model.name": "vdm", "model.num_res_blocks": 32, "model.attn_resolutions": (),
    "model.fourier_features": True, "model.schedule": "scalar",
    "optim.optimizer": "AdamW", "optim.beta2": 0.99, "optim.weight_decay": 0.01,
    "optim.warmup": 100, "optim.grad_clip": -1.0,
}  # fmt: skip
IDODE = VDM | {
    "training.sde": "idode", "training.time_density": "alpha_squared",
    "training.n_iters": 6_000_000,
    "eval.bound": False, "eval.dequantization": "truncated_normal", "eval.num_repeats": 5,
    "eval.batch_size": 256, "model.schedule": "fixed", "model.parameterization": "v",
}  # fmt: skip
# MuLAN (arXiv 2312.13236): a schedule for each number, by a code of the image.
MULAN = VDM | {"model.schedule": "polynomial"}
WIDE = {"model.nf": 256}
# With augmentation, which is an input of the network.
AUGMENTED = WIDE | {"data.augment": True, "model.dropout": 0.05, "training.batch_size": 1024}
OF_IMAGENET = WIDE | {"data.dataset": "ImageNet"}
LARGE = {"eval.batch_size": 512, "training.n_iters": 2_000_000}
SUCCESSORS = {
    "vdm/cifar10": VDM,
    "vdm/cifar10_aug": VDM | AUGMENTED | {  # as its code has it
        "training.batch_size": 768, "training.n_iters": 100_000_000, "optim.lr": 1e-4,
        "model.schedule": "network", "eval.batch_size": 1024,
    },
    "vdm/cifar10_aug_paper": VDM | AUGMENTED | {
        "training.n_iters": 100_000_000, "model.schedule": "network",
        "model.attn_resolutions": (32,), "eval.batch_size": 1024,
    },
    "vdm/imagenet32": VDM | OF_IMAGENET,
    "vdm/imagenet64": VDM | OF_IMAGENET | {"data.image_size": 64, "model.num_res_blocks": 64},
    "idode/cifar10": IDODE,
    "idode/cifar10_aug": IDODE | AUGMENTED | {
        "training.n_iters": 10_000_000, "model.attn_resolutions": (32,),
        "eval.importance_samples": 20, "eval.num_repeats": 1, "eval.batch_size": 128,
    },
    "idode/imagenet32": IDODE | OF_IMAGENET | LARGE | {"training.batch_size": 512},  # the old one
    "idode/imagenet32_new": IDODE | OF_IMAGENET | LARGE,
    "mulan/cifar10-conditioned": MULAN | {"model.parameterization": "v"},
    "mulan/imagenet32": MULAN | OF_IMAGENET | LARGE | {"training.batch_size": 512},
}  # fmt: skip

OF_A_CPU = {
    # scikit-learn's handwritten digits (8x8, 17 levels): a whole experiment in minutes.
    "digits": SMALL | SMALL_FLOW | VELOCITY | {
        "training.batch_size": 32, "training.n_iters": 4800, "training.snapshot_freq": 1600,
        "training.snapshot_freq_for_preemption": 400,
        "eval.batch_size": 360, "eval.bound_draws": 64,
        "eval.probes": 2,  # their difference gives their error
        "data.dataset": "digits", "data.image_size": 8, "data.num_channels": 1,
        "model.ch_mult": (1, 2), "model.attn_resolutions": (4,), "model.ema_rate": 0.9975,
        "deq.n_iters": 800, "optim.lr": 2e-3, "optim.warmup": 100,
        "sampling.method": "pc", "model.num_scales": 100,
    },
    # Fashion-MNIST (28x28, grey): a small DDPM++ that a core trains in two hours.
    "fashion_mnist": FASHION | VELOCITY | {
        "training.batch_size": 32, "model.nf": 24,
        "training.n_iters": 14_000, "training.snapshot_freq": 2800,
        "training.snapshot_freq_for_preemption": 600,
    },
    # Halved to 14x14: a quarter of the work, where there are minutes.
    "fashion_mnist14": FASHION | {
        "training.batch_size": 128, "training.snapshot_freq": 4000, "eval.batch_size": 500,
        "eval.probes": 2, "data.image_size": 14, "data.fit": "resize", "model.ch_mult": (1, 2),
    },
    # Own colour images at 16x16: a small DDPM++ that trains in minutes. For larger images set
    # data.image_size, and give the network more: model.nf, steps, warm-up.
    "own_images": SMALL | VELOCITY | {
        "training.n_iters": 500, "training.snapshot_freq": 500,
        "training.snapshot_freq_for_preemption": 250,
        "eval.batch_size": 100, "eval.num_samples": 64, "eval.nodes": 48,
        "eval.bound_draws": 16,
        "data.dataset": "images", "data.fit": "resize", "data.image_size": 16,
        "data.num_channels": 3,
        "model.ch_mult": (1, 2, 2), "model.attn_resolutions": (8,), "model.ema_rate": 0.995,
        "optim.lr": 2e-3, "optim.warmup": 100,
    },
}  # fmt: skip
NAMED_CONFIGS = {name: NamedConfig(own) for name, own in (OF_A_CPU | SUCCESSORS).items()}
for sde, of_sde in (("vp", {}), ("subvp", SUBVP)):
    for data, of_data in (("cifar10", {}), ("imagenet32", IMAGENET)):
        resolve = _imagenet_resolve if (sde, data) == ("vp", "imagenet32") else defaults.resolve
        for depth, of_depth in (("", {}), ("_deep", DEEP)):
            own = {**of_data, **of_depth, **of_sde}
            NAMED_CONFIGS[f"{sde}/{data}_ddpmpp{depth}_continuous"] = NamedConfig(own, resolve)
