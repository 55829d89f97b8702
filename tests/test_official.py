"""Published checkpoints give the published numbers, go on as published, and are read with care."""

import functools
import json
import shutil
import struct
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import optax
import pytest

from scoremle import cli, data, official, train
from scoremle.checkpoint import Checkpoints, Damaged, tree_hash
from scoremle.errors import UserError
from scoremle.experiment import build
from scoremle.official import PublishedCheckpoints, state_dict
from scoremle.workdir import Workdir

ROOT = Path(__file__).parents[1]
NAME = "cifar10_subvp_likelihood_iw_flip"
FOLDER = ROOT / "tests" / "golden" / "published" / NAME
FILE = FOLDER / "checkpoints" / "checkpoint_1"
DEQUANTIZER = FOLDER / "flowpp_dequantizer" / "checkpoints" / "checkpoint_1"
SUBVP = f"--config={ROOT}/configs/subvp/cifar10_ddpmpp_continuous.py"
# What config.json of the folder says.
TINY = (
    "--config.model.nf=4",
    "--config.model.ch_mult=(1,2)",
    "--config.model.num_res_blocks=1",
    "--config.model.attn_resolutions=(4,)",
    "--config.data.image_size=8",
)
OBJECTIVE = (
    "--config.training.likelihood_weighting",
    "--config.training.importance_weighting",
)
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def small_cifar10(monkeypatch):
    monkeypatch.setitem(data.DATASETS, "cifar10", lambda path: (IMAGES, IMAGES[:8], 256))


@functools.cache
def experiment(*flags):
    return build(cli.parse([SUBVP, *TINY, *flags, "--workdir=w", "--mode=eval"]).config, levels=256)


@functools.cache
def expected():
    with np.load(FOLDER / "expected.npz") as archive:
        return dict(archive)


@pytest.fixture
def workdir(tmp_path):
    """A folder as published: nothing but checkpoints."""
    folder = tmp_path / NAME
    for part in ("checkpoints", "flowpp_dequantizer"):
        shutil.copytree(FOLDER / part, folder / part)
    return folder


def restore(store=None):
    store = store or Workdir(FOLDER).snapshots
    return store.restore(experiment().template())


def norm(tree):
    return np.sqrt(sum((np.asarray(a, np.float64) ** 2).sum() for a in jax.tree.leaves(tree)))


# What the files hold


def test_the_network_gives_the_published_outputs():
    state, meta, number = restore()
    facts = expected()
    assert (number, meta["step"], int(state.step)) == (1, 3, int(facts["score_model/step"]))
    assert meta["rng"] == facts["score_model/rng"].tolist()
    apply = jax.jit(experiment().network.apply)
    for tree, name in ((state.ema, "params_ema"), (state.params, "optimizer_target")):
        out = apply({"params": tree}, facts["x"], facts["labels"])
        want = facts[f"score_model/out_{name}"]
        assert np.abs(out - want).max() < 2e-5 * np.abs(want).max()
        np.testing.assert_allclose(norm(tree), facts[f"score_model/{name}_l2"], rtol=1e-6)


def test_the_moments_of_adam_are_those_of_the_file():
    state = restore()[0]
    raw = flax.serialization.msgpack_restore(FILE.read_bytes())["optimizer"]["state"]
    for ours, theirs in (("mu", "grad_ema"), ("nu", "grad_sq_ema")):
        found = optax.tree.get(state.opt_state, ours)
        want = raw["param_states"]["ResnetBlockBigGANpp_1"]["GroupNorm_0"]["scale"][theirs]
        np.testing.assert_array_equal(
            found["ResnetBlockBigGANpp_1"]["GroupNorm_0"]["scale"], want.ravel()
        )
        np.testing.assert_array_equal(
            found["Conv_0"]["kernel"], raw["param_states"]["Conv_0"]["kernel"][theirs]
        )
    counts = [int(count) for _, count in optax.tree.get_all_with_path(state.opt_state, "count")]
    assert counts == [3, 3]  # of Adam, and of the warm-up


def test_the_dequantizer_is_read_into_plain_trees():
    published, facts = official.read(DEQUANTIZER), expected()
    assert published.step == int(facts["dequantizer/step"])
    assert published.rng == facts["dequantizer/rng"].tolist()
    # Constructed so: the average is about 0.9375 times the parameters.
    assert norm(published.ema) == pytest.approx(0.9375 * norm(published.params), rel=0.02)
    attention = published.ema["MixLogisticAttnCoupling_0"]
    assert attention["block0_attn_proj1_W"].shape == (4, 12)
    assert attention["block0_ln1_g"].shape == (1, 1, 1, 4)  # no GroupNorm: left as it is
    optimizer = experiment().optimizer
    template = jax.eval_shape(lambda: train.init_state(published.params, optimizer))
    state = PublishedCheckpoints(DEQUANTIZER.parent, keep=None).restore(template).tree
    assert tree_hash(state.ema) == tree_hash(published.ema)


def as_published(golden, i):
    """The state of the toy of golden optimizer.npz after step i, as score_flow would save it."""

    def tree(what):
        return {name: golden[f"{what}_after/{name}"][i] for name in "ab"}

    mu, nu = tree("grad_ema"), tree("grad_sq_ema")
    moments = {name: {"grad_ema": mu[name], "grad_sq_ema": nu[name]} for name in "ab"}
    step = np.asarray(i + 1, np.int32)
    return {
        "step": step,
        "optimizer": {"target": tree("params"), "state": {"step": step, "param_states": moments}},
        "lr": golden["lr"],
        "model_state": {},
        "ema_rate": golden["ema_rate"],
        "params_ema": tree("ema"),
        "rng": np.zeros(2, np.uint32),
    }


@pytest.mark.parametrize("i", [0, 2, 5])
def test_training_goes_on_with_the_published_parameters(golden, tmp_path, i):
    g = golden("optimizer")
    (tmp_path / "checkpoint_1").write_bytes(
        flax.serialization.msgpack_serialize(as_published(g, i))
    )
    optimizer = train.make_optimizer(
        lr=float(g["lr"]),
        beta1=float(g["beta1"]),
        eps=float(g["eps"]),
        warmup=int(g["warmup"]),
        grad_clip=float(g["grad_clip"]),
    )
    template = train.init_state({n: jnp.asarray(g[f"params/{n}"]) for n in "ab"}, optimizer)
    state = PublishedCheckpoints(tmp_path, keep=None).restore(template).tree

    def loss(params, images, key):
        return sum(jnp.vdot(jnp.asarray(g[f"grads/{n}"])[i + 1], params[n]) for n in "ab"), {}

    step = train.make_step(loss, optimizer, float(g["ema_rate"]))
    state, _ = step(jax.device_put(state), np.zeros((1, 1, 1, 1, 1), np.uint8))
    for what, tree in (("params", state.params), ("ema", state.ema)):
        for n in "ab":
            want = g[f"{what}_after/{n}"][i + 1]
            np.testing.assert_allclose(tree[n], want, rtol=1e-6, atol=1e-7)
