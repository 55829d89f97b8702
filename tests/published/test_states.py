"""Published checkpoints give the published numbers, go on as published, and are read with care."""

import json
import shutil
import struct

import flax.serialization
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import optax
import pytest
from helpers import small_places
from helpers.published_folder import (
    DEQUANTIZER,
    FILE,
    FLOW,
    FOLDER,
    NAME,
    SUBVP,
    TINY,
    expected,
    experiment,
    restore,
)
from helpers.steps import make_step

from scoremle import data, published
from scoremle.cli import main as cli
from scoremle.errors import UserError
from scoremle.experiment import run_train
from scoremle.experiment.workdir import Workdir
from scoremle.published import PublishedCheckpoints, state_dict
from scoremle.training.checkpoints import Damaged
from scoremle.training.checksums import tree_hash
from scoremle.training.step import init_state, make_optimizer

OBJECTIVE = (
    "--config.training.likelihood_weighting",
    "--config.training.importance_weighting",
)
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def small_cifar10(monkeypatch):
    def load(name, *, batch_size, seed, **options):
        return data.ImageSet(
            IMAGES, IMAGES[:8], 256, name=name.lower(), batch_size=batch_size, seed=seed
        )

    monkeypatch.setattr(data, "load", load)


@pytest.fixture
def workdir(tmp_path):
    """A folder as published: nothing but checkpoints."""
    folder = tmp_path / NAME
    for part in ("checkpoints", "flowpp_dequantizer"):
        shutil.copytree(FOLDER / part, folder / part)
    return folder


def norm(tree):
    return np.sqrt(sum((np.asarray(a, np.float64) ** 2).sum() for a in jax.tree.leaves(tree)))


# What the files hold


def test_the_network_gives_the_published_outputs():
    state, meta, number = restore()
    facts = expected()
    assert (number, meta["step"], int(state.step)) == (1, 3, int(facts["score_model/step"]))
    assert meta["rng"] == facts["score_model/rng"].tolist()
    apply = jax.jit(experiment().model.network.apply)
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


def test_a_state_is_written_as_it_was_read():
    state, meta, _ = restore()
    raw = flax.serialization.msgpack_restore(FILE.read_bytes())
    kept = {"lr": float(raw["lr"]), "ema_rate": float(raw["ema_rate"]), "rng": meta["rng"]}
    jax.tree.map(np.testing.assert_array_equal, published.published_tree(state, **kept), raw)


def test_the_dequantizer_is_read_into_plain_trees():
    found, facts = published.read(DEQUANTIZER), expected()
    assert found.step == int(facts["dequantizer/step"])
    assert found.rng == facts["dequantizer/rng"].tolist()
    # Constructed so: the average is about 0.9375 times the parameters.
    assert norm(found.ema) == pytest.approx(0.9375 * norm(found.params), rel=0.02)
    attention = found.ema["MixLogisticAttnCoupling_0"]
    assert attention["block0_attn_proj1_W"].shape == (4, 12)
    assert attention["block0_ln1_g"].shape == (1, 1, 1, 4)  # no GroupNorm: left as it is
    optimizer = experiment().training.optimizer
    template = jax.eval_shape(lambda: init_state(found.params, optimizer))
    state = PublishedCheckpoints(DEQUANTIZER.parent, keep=None).restore(template).tree
    assert tree_hash(state.ema) == tree_hash(found.ema)


def test_the_dequantizer_gives_the_published_outputs():
    found, facts = published.read(DEQUANTIZER), expected()
    apply = jax.jit(experiment(*FLOW).flow.dequantizer(None).apply)
    for tree, name in ((found.ema, "params_ema"), (found.params, "optimizer_target")):
        u, log_q = apply(tree, facts["dequantizer/eps"], facts["dequantizer/x"])
        np.testing.assert_allclose(u, facts[f"dequantizer/{name}/u"], atol=2e-5)
        want = -facts[f"dequantizer/{name}/neg_log_density"]
        if name == "optimizer_target":
            # One u of this image is 4e-10, where the original loses six nats to rounding. This is
            # from the Jacobian of the flow in float64.
            want[1] = 99.52908536
        np.testing.assert_allclose(log_q, want, rtol=1e-5)


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
    optimizer = make_optimizer(
        lr=float(g["lr"]),
        beta1=float(g["beta1"]),
        eps=float(g["eps"]),
        warmup=int(g["warmup"]),
        grad_clip=float(g["grad_clip"]),
    )
    template = init_state({n: jnp.asarray(g[f"params/{n}"]) for n in "ab"}, optimizer)
    state = PublishedCheckpoints(tmp_path, keep=None).restore(template).tree

    def loss(params, images, key):
        return sum(jnp.vdot(jnp.asarray(g[f"grads/{n}"])[i + 1], params[n]) for n in "ab"), {}

    step = make_step(loss, optimizer, float(g["ema_rate"]))
    state, _ = step(jax.device_put(state), np.zeros((1, 1, 1, 1, 1), np.uint8))
    for what, tree in (("params", state.params), ("ema", state.ema)):
        for n in "ab":
            want = g[f"{what}_after/{n}"][i + 1]
            np.testing.assert_allclose(tree[n], want, rtol=1e-6, atol=1e-7)


# A folder as published is a working directory


def run(workdir, mode, *flags):
    return cli.main([SUBVP, *TINY, f"--workdir={workdir}", f"--mode={mode}", *flags])


def test_evaluation_of_a_folder_as_published(workdir):
    # The bound, because it compiles in less time than the likelihood.
    flags = ("--config.eval.batch_size=8", "--config.eval.num_repeats=1", "--config.eval.bound")
    assert run(workdir, "eval", *flags, "--config.eval.bound_draws=2") == 0
    results = json.loads((workdir / "eval" / "results.json").read_text())
    bound = results["bound_test_ckpt_1"]
    assert (bound["step"], bound["sde"]["type"]) == (3, "SubVP")
    assert bound["ema_hash"] == tree_hash(restore()[0].ema)[:16]
    assert 5 < bound["mean"] < 20  # integers at random have 8 bits/dim, and the model knows little
    assert FILE.read_bytes() == (workdir / "checkpoints" / "checkpoint_1").read_bytes()


@pytest.mark.long
def test_evaluation_with_the_published_dequantizer_and_samples(workdir):
    flags = (
        "--config.eval.dequantizer",
        "--config.eval.batch_size=8",
        "--config.eval.num_repeats=1",
        "--config.eval.solver=multistep",
        "--config.eval.nodes=32",
        "--config.eval.enable_sampling",
        "--config.eval.num_samples=4",
        "--config.sampling.steps=4",
    )
    assert run(workdir, "eval", *FLOW, *flags) == 0
    results = json.loads((workdir / "eval" / "results.json").read_text())
    exact = results["exact_variational_test_ckpt_1"]
    found = published.read(DEQUANTIZER)
    assert (exact["dequantizer_checkpoint"], exact["dequantizer_step"]) == (1, found.step)
    assert exact["dequantizer_ema_hash"] == tree_hash(found.ema)[:16]
    assert 5 < exact["mean"] < 20
    with np.load(workdir / "eval" / "samples_ckpt_1.npz") as saved:
        assert saved["samples"].shape == (4, 8, 8, 3)


TRAINING = (
    *OBJECTIVE,
    "--config.training.batch_size=8",
    "--config.training.n_jitted_steps=1",
    "--config.training.snapshot_freq=3",
    "--config.training.snapshot_freq_for_preemption=2",
    "--config.training.log_freq=1",
    "--noconfig.training.snapshot_sampling",
    "--config.optim.warmup=2",
)


def fake_step(*_, **__):
    """A step that moves every parameter by 1e-3 and leaves the average."""

    def step(state, batches):
        count = len(jax.tree.leaves(batches)[0])
        params = jax.tree.map(lambda p: p + count * 1e-3, state.params)
        zeros = {name: np.zeros(count) for name in ("loss", "grad_norm")}
        return state._replace(step=state.step + count, params=params), zeros

    return step


def test_training_goes_on_in_a_folder_as_published(workdir, capsys, monkeypatch):
    monkeypatch.setattr(run_train, "make_program", fake_step)
    monkeypatch.setattr(run_train, "checked", lambda step, lighter: step)
    monkeypatch.setattr(run_train, "_on_eval", lambda *_: lambda state, step: {})
    assert run(workdir, "train", *TRAINING, "--config.training.n_iters=5") == 0
    out = capsys.readouterr().out
    assert f"resuming from step 3, {workdir}/checkpoints/checkpoint_1" in out
    place = Workdir(workdir)
    assert place.preemption.numbers() == [4, 5]
    # 5 // 3 is 1: the file that has the name is put aside, not lost.
    assert place.snapshots.published() == []
    aside = workdir / "checkpoints" / "checkpoint_1.published"
    assert aside.read_bytes() == FILE.read_bytes()
    begun, ended = restore()[0], restore(place.snapshots)[0]
    assert (int(begun.step), int(ended.step)) == (3, 5)
    for a, b in zip(jax.tree.leaves(begun.params), jax.tree.leaves(ended.params), strict=True):
        np.testing.assert_allclose(b - a, 2e-3, atol=1e-6)
    assert tree_hash(begun.ema) == tree_hash(ended.ema)
    assert tree_hash(begun.opt_state) == tree_hash(ended.opt_state)
    # From here on it is a training like any other.
    assert place.snapshot_state(experiment().training.template) is None
    assert place.config().training.likelihood_weighting is True


def flow_state(folder):
    return Workdir(folder).snapshots.restore(experiment(*FLOW).flow_training.template).tree


def test_training_goes_on_with_the_published_dequantizer(workdir, capsys, monkeypatch):
    monkeypatch.setattr(run_train, "make_program", fake_step)
    monkeypatch.setattr(run_train, "checked", lambda step, lighter: step)
    monkeypatch.setattr(run_train, "_on_eval", lambda *_: lambda state, step: {})
    folder = workdir / "flowpp_dequantizer"
    begun = flow_state(folder)
    assert int(begun.step) == int(expected()["dequantizer/step"])
    flags = (*FLOW, *TRAINING, f"--config.deq.n_iters={begun.step + 2}")
    assert run(workdir, "train_deq", *flags) == 0
    out = capsys.readouterr().out
    assert f"resuming from step {begun.step}, {folder}/checkpoints/checkpoint_1" in out
    ended = flow_state(folder)
    assert int(ended.step) == begun.step + 2
    for a, b in zip(jax.tree.leaves(begun.params), jax.tree.leaves(ended.params), strict=True):
        np.testing.assert_allclose(b - a, 2e-3, atol=1e-6)
    assert tree_hash(begun.ema) == tree_hash(ended.ema)
    assert tree_hash(begun.opt_state) == tree_hash(ended.opt_state)
    note = json.loads((folder / "score_model.json").read_text())
    assert (note["score_checkpoint"], note["score_step"]) == (1, 3)


@pytest.mark.parametrize(
    ("mode", "wrong", "words", "folder"),
    [
        ("train", "model.nf=8", "model.nf is 4", "."),
        ("train_deq", "deq.filters=8", "deq.filters is", "flowpp_dequantizer"),
    ],
)  # fmt: skip
def test_training_with_a_wrong_config_leaves_no_trace(
    mode, wrong, words, folder, workdir, capsys
):
    assert run(workdir, mode, *FLOW, *TRAINING, f"--config.{wrong}") == 2
    assert words in capsys.readouterr().err
    assert {path.name for path in (workdir / folder).iterdir()} <= {
        "checkpoints", "flowpp_dequantizer"
    }  # fmt: skip


def test_a_published_meta_checkpoint_of_another_network_leaves_no_trace(workdir, capsys):
    (workdir / "checkpoints").rename(workdir / "checkpoints-meta")
    assert run(workdir, "train", *TRAINING, "--config.model.nf=8") == 2
    assert "model.nf is 4" in capsys.readouterr().err
    assert not (workdir / "config.json").exists()


def test_training_goes_on_from_a_published_meta_checkpoint(workdir):
    (workdir / "checkpoints-meta").mkdir()
    meta = workdir / "checkpoints-meta" / "checkpoint_130"
    (workdir / "checkpoints" / "checkpoint_1").rename(meta)
    store = Workdir(workdir).preemption
    state = restore(store)[0]
    assert int(state.step) == 3
    for number in (1000, 1001, 1002):
        store.save(number, state, {"step": number})
    assert store.own() == [1001, 1002] and meta.read_bytes() == FILE.read_bytes()


def test_a_name_that_says_otherwise(workdir, capsys):
    vp = [SUBVP.replace("subvp", "vp"), *TINY, f"--workdir={workdir}", "--mode=eval"]
    assert cli.main(vp) == 2
    err = capsys.readouterr().err
    assert "training.sde=subvpsde" in err
    assert err.endswith("set --config.training.sde=subvpsde\n")
    # A network that takes images in [0, 1] and gives a score looks like any other.
    ve = (workdir.parent / "ve").joinpath("cifar10_ncsnpp_continuous")
    shutil.move(workdir, ve)
    flags = ("--config.training.sde=vesde", "--config.model.embedding_type=fourier")
    assert run(ve, "eval", *flags) == 2
    err = capsys.readouterr().err
    assert err.endswith("set --config.data.centered=False --config.model.scale_by_sigma=True\n")
    workdir = shutil.move(ve, workdir)
    Workdir(workdir).check(experiment(*OBJECTIVE), "training")
    Workdir(FOLDER).check(experiment(), "evaluation")  # its config.json says some of the fields
    assert capsys.readouterr().err == ""


def test_another_objective_is_named(workdir, caplog):
    Workdir(workdir).check(experiment(), "training")
    text = caplog.text
    assert "training.likelihood_weighting=True" in text
    assert "trained with training.importance_weighting=True" in text and "random_flip" not in text


# Files that are damaged, or that mean harm


def pack(tree):
    return flax.serialization.msgpack_serialize(tree)


def ext(code, content):
    return b"\xc9" + struct.pack(">IB", len(content), code) + content


def array(shape, dtype, content):
    return b"\x81\xa1a" + ext(1, msgpack.packb((shape, dtype, content)))


HARMFUL = {
    "empty": (b"", "ends too early"),
    "text": (b"hello", "bytes follow"),
    "a number": (b"\x07", "no map of names"),
    "pickle": (b"\x80\x04\x95\x10", "not a flax checkpoint"),
    "a promise of 4 GB": (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "bytes follow its end"),
    "a map of 4 billion": (b"\xdf\xff\xff\xff\xff", "ends too early"),
    "a long name": (b"\x81\xdb\x7f\xff\xff\xff", "ends too early"),
    "deep": (b"\x81\xa1a" * 100_000, "not a flax checkpoint|ends too early"),
    "objects": (array((1,), "object", b"\0" * 8), "not a numeric"),
    "structure": (array((1,), "V8", b"\0" * 8), "not a numeric"),
    "a shape beyond its bytes": (array((2**40, 2**40), "float32", b"\0" * 8), "by its shape"),
    "a negative shape": (array((-1, -4), "float32", b"\0" * 16), "list of whole numbers"),
    "a shape that is a number": (array(4, "float32", b"\0" * 16), "other than shape"),
    "another extension": (b"\x81\xa1a" + ext(9, b"1234"), "extension of type 9"),
    "an array of nothing": (b"\x81\xa1a" + ext(1, b"\x90"), "other than shape"),
    "an array that is a number": (b"\x81\xa1a" + ext(1, b"\x05"), "other than shape"),
    "a complex number that is none": (b"\x81\xa1a" + ext(2, b"\x05"), "two parts"),
    "a complex number of three": (b"\x81\xa1a" + ext(2, b"\x93\x01\x01\x01"), "not a flax"),
    "a damaged array": (b"\x81\xa1a" + ext(1, b"\x93"), "not a flax checkpoint"),
    "chunks of another shape": (
        b"\x81\xa1a\x83" + b"".join(map(msgpack.packb, (
            "__msgpack_chunked_array__", True, "shape", {"0": 3}, "chunks")))
        + b"\x81\xa10" + ext(1, msgpack.packb(((2,), "float32", b"\0" * 8))),
        "not that of its chunks",
    ),
    "chunks missing": (b"\x81\xb9__msgpack_chunked_array__\xc3", "chunks missing"),
    "no names": (b"\x81\x01\x02", "not a flax checkpoint"),
    "a list": (msgpack.packb({"a": [1]}), "max_array_len"),
    "bytes": (msgpack.packb({"a": b"1"}), "max_bin_len"),
    "a longer name": (msgpack.packb({"a" * 1001: None}), "max_str_len"),
    "many entries": (
        b"\x8f" + b"".join(b"\xa1" + bytes([97 + i]) + b"\xde\x27\x10" + b"".join(
            b"\xa4%04d\xc0" % j for j in range(10_000)) for i in range(15)),
        "entries",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMFUL)
def test_harmful_files_are_refused_in_one_line(name, tmp_path):
    content, words = HARMFUL[name]
    path = tmp_path / "checkpoint_1"
    path.write_bytes(content)
    with pytest.raises(Damaged, match=words):
        state_dict.read(path)
    with pytest.raises(UserError, match=f"{path} is damaged") as error:
        restore(PublishedCheckpoints(tmp_path, keep=None))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", [0.001, 0.3, 0.7, 0.999])
def test_a_truncated_file_takes_no_memory(part, tmp_path, monkeypatch):
    content = FILE.read_bytes()
    path = tmp_path / "checkpoint_1"
    path.write_bytes(content[: int(part * len(content))])
    monkeypatch.setattr(state_dict.msgpack, "unpackb", None)  # what builds anything is not reached
    with pytest.raises(UserError, match="ends too early"):
        published.read(path)


def test_a_damaged_newest_file_is_named_and_the_one_before_taken(workdir, caplog):
    (workdir / "checkpoints" / "checkpoint_2").write_bytes(FILE.read_bytes()[:-1])
    assert restore(Workdir(workdir).snapshots).number == 1
    assert "checkpoint_2 is damaged" in caplog.text


def test_a_deep_tree(tmp_path):
    tree = state_dict.read(FILE)
    for _ in range(450):
        tree["params_ema"] = {"a": tree["params_ema"]}
    path = tmp_path / "checkpoint_1"
    path.write_bytes(msgpack.packb(tree, default=state_dict._packed, strict_types=True))
    with pytest.raises(UserError) as error:
        restore(PublishedCheckpoints(tmp_path, keep=None))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["optimizer", "params_ema", "step"])
def test_what_is_no_training_state(missing, tmp_path):
    tree = state_dict.read(FILE)
    del tree[missing]
    path = tmp_path / "checkpoint_1"
    path.write_bytes(pack(tree))
    with pytest.raises(UserError, match=f"training state .*{missing}"):
        published.read(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": np.asarray(-1)}, "count of -1"),
        ({"step": np.asarray(2**31)}, "count of 2147483648"),
        ({"params_ema": {"scale": np.float32(1.5), "more": {"bias": None}}}, "not an array"),
    ],
)
def test_a_training_state_of_other_things(change, words, tmp_path):
    path = tmp_path / "checkpoint_1"
    path.write_bytes(pack(state_dict.read(FILE) | change))
    with pytest.raises(UserError, match=f"training state .*{words}"):
        published.read(path)


def test_state_dicts_are_those_of_flax(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 40)
    rng = np.random.default_rng(1)
    tree = {
        "chunked": rng.normal(size=(5, 7)).astype(np.float32),
        "inside": {"half": jnp.asarray(rng.normal(size=3), jnp.bfloat16), "no": np.zeros((0, 2))},
        "scalar": np.float32(2.5),
        "complex": 1 - 2j,
        "plain": 3,
    }
    path = tmp_path / "checkpoint_1"
    path.write_bytes(pack(tree))
    found = state_dict.read(path)
    assert (found["complex"], found["plain"], found["scalar"]) == (1 - 2j, 3, 2.5)
    assert tree_hash(found) == tree_hash(tree)
    arrays = {"b": tree["chunked"], "a": tree["inside"], "none": {}}
    state_dict.write(path, arrays)
    assert tree_hash(flax.serialization.msgpack_restore(path.read_bytes())) == tree_hash(arrays)
    assert list(state_dict.read(path)) == ["b", "a", "none"]


def test_updates_are_those_that_adam_counted(tmp_path):
    """Of a training that left some out, they are fewer than the steps."""
    tree = published.published_tree(small_places.state(10), lr=1e-2, ema_rate=0.99, rng=[0, 42])
    tree["optimizer"]["state"]["step"] = np.asarray(7)
    state_dict.write(tmp_path / "checkpoint_1", tree)
    found = published.read(tmp_path / "checkpoint_1")
    assert (found.step, found.updates) == (10, 7)
