"""Parameters are float32, whatever the default of JAX is, and models are loaded with either."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some

import scoremle
from scoremle.core.dequantize import Flow
from scoremle.experiment.build import build
from scoremle.experiment.config import published_config
from scoremle.nn import FlowPP
from scoremle.nn.applied import Applied

SMALL = {
    "data.image_size": 8, "model.nf": 32, "model.num_res_blocks": 1, "model.ch_mult": (1, 2),
    "model.attn_resolutions": (4,), "model.latent_size": 5, "model.latent_k": 2,
    "model.encoder_blocks": 1,
}  # fmt: skip


NCSNPP = {
    "model.embedding_type": "fourier", "model.fir": True, "model.progressive_input": "residual",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "fields"),
    [("vp/cifar10_ddpmpp_continuous", {}), ("vp/cifar10_ddpmpp_continuous", NCSNPP),
     ("vdm/cifar10", {}), ("vdm/cifar10_aug", {}), ("mulan/cifar10-conditioned", {})],
)  # fmt: skip
def test_first_parameters_of_networks_and_schedules(name, fields, x64):
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8)
    spec = build(published_config(name, SMALL | fields), levels=256).training.objective.initialiser
    params = jax.eval_shape(spec.init, jax.random.key(0), images)
    types = Counter(str(leaf.dtype) for leaf in jax.tree.leaves(params))
    assert set(types) == {"float32"}


@some("variant", ["cifar10", "imagenet32"], quick=["cifar10"])
def test_a_flow_begins_in_float32_and_takes_doubles(variant, x64):
    flow = FlowPP(variant, filters=8, components=2, blocks=1, couplings=1, heads=2)
    x = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    small = jnp.asarray(x / 255, jnp.float32)
    params = jax.jit(flow.init)(jax.random.key(0), small - 0.5, small)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    u, log_q = Flow(Applied(flow), params, 256)(jax.random.key(1), jnp.asarray(x))
    assert log_q.dtype == np.float64 and ((u > 0) & (u < 1)).all()


@pytest.mark.long
def test_the_model_that_ships_is_loaded_with_doubles(x64):
    images = scoremle.data.load("digits").test[:2]
    scores = scoremle.load("digits").score(images)
    assert np.isfinite(scores.bpd).all() and (scores.bpd < 3).all()
