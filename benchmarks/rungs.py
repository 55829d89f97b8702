"""The rungs of ``ladder.py``: trainings that differ in an objective, or in the network."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Rung(NamedTuple):
    """A row of the ladder: a training by ``BASE`` and ``fields``, where None leaves a field out.

    ``exact`` and ``bound`` are fields of its evaluations; None: none is made. ``network``: the
    rung whose training is measured, in place of one of its own. ``begun``: the rung whose training
    it goes on with, for the last third of the budget. ``paper``: bits/dim of CIFAR-10,
    exact and bound, in ScoreFlow's table. ``claim``: what another paper has.
    """

    fields: Mapping[str, Any] = {}
    exact: Mapping[str, Any] = {}
    bound: Mapping[str, Any] | None = {}
    network: str = ""
    begun: str = ""
    paper: tuple[float, float] | None = None
    claim: str = ""


# The first network and batch: what digits had before the ladder.
BASE = {
    "training.sde": "vpsde",
    "model.embedding": "time", "model.parameterization": "published", "model.ema_rate": 0.995,
    "training.likelihood_weighting": True, "training.importance_weighting": True,
    "training.time_density": "published", "training.batch_size": 64,
}  # fmt: skip
NO_IS = {"training.importance_weighting": False}
ALPHA_SQUARED = NO_IS | {"training.time_density": "alpha_squared"}
VELOCITY = ALPHA_SQUARED | {"training.sde": "idode", "model.parameterization": "v"}
# What the four below it change.
SMALL_BATCH = VELOCITY | {"training.batch_size": 32, "model.ema_rate": 0.9975}
INTEGERS = {"data.bin_middles": True, "data.uniform_dequantization": False}
TRUNCATED, DISCRETE, FLOW = (
    {"eval.dequantization": way} for way in ("truncated_normal", "none", "variational")
)
OBJECTIVES = {
    "plain": Rung(NO_IS | {"training.likelihood_weighting": False}, paper=(3.16, 3.28)),
    "LW": Rung(NO_IS, paper=(3.06, 3.18)),
    "LW+IS": Rung(paper=(2.95, 3.08)),
    "sub-VP": Rung({"training.sde": "subvpsde"}, paper=(2.94, 3.05)),
    "velocity": Rung(VELOCITY, claim="i-DODE: 2.56 exact"),
    "velocity, batch 32": Rung(SMALL_BATCH),
    "straight": Rung(
        ALPHA_SQUARED | {"training.sde": "idode_straight", "model.parameterization": "unit_u"},
        claim="i-DODE: as VP",
    ),
    "log-SNR seen": Rung({"model.embedding": "log_snr"}, claim="VDM, part of 2.65 bound"),
    "EDM's scales": Rung({"model.parameterization": "edm"}),
    "Fourier features": Rung({"model.fourier_features": True}, claim="VDM, part of 2.65 bound"),
    "learned times": Rung(NO_IS | {"training.time_density": "learned"}),
    "bin middles": Rung(INTEGERS, TRUNCATED, DISCRETE, claim="i-DODE, part of 2.56 exact"),
    "learned schedule": Rung(
        NO_IS | INTEGERS | {"training.sde": "vdm", "model.schedule": "scalar"},
        TRUNCATED, DISCRETE, claim="VDM: 2.65 bound",
    ),
    "variational": Rung({}, FLOW, FLOW, "LW+IS", paper=(2.83, 2.92)),
    "10 samples": Rung(
        {}, {"eval.importance_samples": 10}, None, "LW+IS", claim="i-DODE: 20, part of 2.42 exact"
    ),
    "multivariate": Rung(
        NO_IS | INTEGERS | {
            "training.sde": "vdm", "model.schedule": "polynomial", "model.parameterization": "v",
            "model.name": "vdm", "model.embedding": None, "model.attn_resolutions": (),
            "model.nf": 32, "model.latent_size": 10, "model.latent_k": 3,
            "model.encoder_blocks": 1,
        },
        TRUNCATED, DISCRETE, claim="MuLAN: 2.55 exact",
    ),
    "second order": Rung(
        VELOCITY | {"training.second_order": True}, begun="velocity",
        claim="i-DODE, part of 2.56 exact",
    ),
}  # fmt: skip
# Of one objective, beside the network and the optimizer of the config.
NETWORKS = {
    name: Rung(SMALL_BATCH | fields)
    for name, fields in {
        "config": {},
        "8 channels": {"model.nf": 8},
        "16 channels": {"model.nf": 16},
        "32 channels": {"model.nf": 32},
        "32 at each level": {"model.nf": 32, "model.ch_mult": (1, 1, 1)},
        "2 levels": {"model.ch_mult": (1, 2), "model.attn_resolutions": (14,)},
        "2 blocks": {"model.num_res_blocks": 2},
        "batch 16": {"training.batch_size": 16},
        "rate 5e-4": {"optim.lr": 5e-4},
        "rate 2e-3": {"optim.lr": 2e-3},
        "EMA 0.99": {"model.ema_rate": 0.99},
        "EMA 0.999": {"model.ema_rate": 0.999},
    }.items()
}
LADDERS = {"objectives": OBJECTIVES, "networks": NETWORKS}
