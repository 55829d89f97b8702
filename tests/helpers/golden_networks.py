"""Small published networks of golden files: configuration, parameters, inputs and outputs."""

import functools
import json

import flax.traverse_util
import numpy as np

from helpers.places import GOLDEN
from scoremle.core.prediction import noise_fn
from scoremle.nn import DDPMpp

NETWORKS = (
    "ddpm_blocks",
    "ddpmpp",
    "gray28",
    "ncsnpp_ve",
    "output_skip",
    "residual_out",
    "rgb32",
)


def network(config, **changes):
    """The network of a published configuration; fields that only other code reads are left out."""
    fields = {k: v for k, v in config["model"].items() if k in DDPMpp.__dataclass_fields__}
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    del fields["name"]
    log_labels = config["training"]["sde"] == "vesde"
    fields |= {"centered": config["data"]["centered"], "log_labels": log_labels}
    return DDPMpp(**fields | changes)


@functools.cache
def golden(name):
    config = json.loads((GOLDEN / f"ncsnpp_{name}.config.json").read_text())
    with np.load(GOLDEN / f"ncsnpp_{name}.npz") as arrays:
        arrays = dict(arrays)
    params = {k.removeprefix("params/"): v for k, v in arrays.items() if k.startswith("params/")}
    return config, flax.traverse_util.unflatten_dict(params, sep="/"), arrays


def golden_network(name):
    """``apply(x, labels)``: the raw output of the network."""
    config, params, _ = golden(name)
    return functools.partial(network(config).apply, {"params": params})


def golden_noise(name, sde):
    """Its noise prediction: of the geometric VE, the output is the score and the label sigma."""
    if golden(name)[0]["training"]["sde"] == "vesde":
        how = {"prediction": "score", "time_input": "sigma"}
    else:
        how = {"prediction": "eps", "time_input": "time_999"}
    return noise_fn(golden_network(name), sde, **how)
