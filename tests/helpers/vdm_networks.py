"""Small networks of VDM, i-DODE and MuLAN of golden files."""

import flax.traverse_util
import numpy as np
from jax.tree_util import Partial

from helpers.places import GOLDEN
from scoremle.nn.applied import Applied
from scoremle.nn.vdm import VDMNet

NETWORKS = {
    "fourier": VDMNet(64, 1),
    "plain_attn": VDMNet(64, 1, attn_resolutions=(8,), fourier_features=False),
    "idode": VDMNet(64, 1, fourier_features=False),
}


def golden_params(name):
    """The parameters of one of ``NETWORKS``."""
    file, prefix = ("idode", "params/") if name == "idode" else ("vdm_network", f"{name}/params/")
    with np.load(GOLDEN / f"{file}.npz") as arrays:
        found = {k.removeprefix(prefix): arrays[k] for k in arrays.files if k.startswith(prefix)}
    return flax.traverse_util.unflatten_dict(found, sep="/")


def golden_mulan():
    """The averaged parameters of MuLAN's small model."""
    with np.load(GOLDEN / "mulan.npz") as arrays:
        found = {k.removeprefix("params/"): arrays[k] for k in arrays.files if "params/" in k}
    return flax.traverse_util.unflatten_dict(found, sep="/")


def golden_vdm(name):
    """``apply(x, log_snr)``, or with side information ``apply(x, log_snr, c)``."""
    return Partial(Applied(NETWORKS[name]), golden_params(name))
