"""Models of EDM: denoisers as their own code gives them, from tensors and fields in two files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from helpers.products import HIGHEST, precisions
from helpers.weights import drawn

import scoremle
from scoremle.core.divergence import Exact
from scoremle.errors import UserError
from scoremle.published import safetensors
from scoremle.solvers.multistep import Multistep
from scoremle.zoo.edm_networks import FIELDS, edm_fields

CASES = ("ddpmpp_edm", "ddpmpp_vp", "ncsnpp_ve", "ncsnpp_edm", "adm_edm", "adm_iddpm")


def written(folder, arrays, change=None, **fields):
    """The two files of a model."""
    tensors = drawn(json.loads(str(arrays["shapes"])))
    tensors["model.enc.8x8_down.conv0.resample_filter"] = np.ones((1, 1, 2, 2), np.float32)
    tensors["u"] = np.zeros(1001, np.float32)  # their table of sigmas, with which ours agrees
    if change:
        change(tensors)
    safetensors.write(folder / "model.safetensors", tensors, {})
    fields = json.loads(str(arrays["fields"])) | fields
    (folder / "model.json").write_text(json.dumps(fields))
    return folder / "model.safetensors"


@some("name", CASES, quick=["ddpmpp_vp"])
def test_the_denoiser_is_theirs(name, golden, tmp_path):
    arrays = golden(f"edm_{name}")
    model = scoremle.load(written(tmp_path, arrays))
    y, sigma = arrays["x"], arrays["sigma"]
    t = model.sde.time_of_log_snr(jnp.asarray(-2 * np.log(sigma)))
    alpha = np.asarray(model.sde.alpha(t))[:, None, None, None]
    labels = arrays.get("labels")
    noise = model.condition_on(labels).noise
    eps = jax.jit(lambda x, t: noise(x, t))(jnp.asarray(alpha * y), t)
    assert set(precisions(noise, jnp.asarray(alpha * y), t)) == {HIGHEST}
    expected = (y - arrays["denoised"]) / sigma[:, None, None, None]
    error = np.abs(eps - expected).max(axis=(1, 2, 3)) / np.abs(expected).max(axis=(1, 2, 3))
    # Their own number has lost digits where little noise is: it is the data less its noise. And
    # the number of a step, up to 999, is off by 6e-5 in float32.
    limit = 2e-5 if model.origin.chain else 1e-5
    assert (error < limit + 1e-6 / sigma).all(), error
    assert model.origin.classes == json.loads(str(arrays["fields"])).get("label_dim", 0)
    assert model.shape == y.shape[1:]
    if labels is not None:
        none = model.condition_on(labels + model.origin.classes).noise
        assert np.isnan(none(jnp.asarray(alpha * y), t)).all()


@pytest.mark.long
def test_log_p_is_that_of_the_torch_module_in_float64(golden, tmp_path):
    """Whose outputs are the authors'; the model has the same tensors, for smaller images."""
    torch = pytest.importorskip("torch")
    from helpers.torch_flow import assert_log_prob, flow_log_prob
    from helpers.torch_unets import Song

    arrays, label = golden("edm_ddpmpp_edm"), 7
    shapes = json.loads(str(arrays["shapes"]))
    tensors = drawn(shapes)
    denoiser = Song({name: tensors[name] for name in shapes}, sigma_data=0.6)
    y, sigma, labels = (torch.tensor(arrays[name]) for name in ("x", "sigma", "labels"))
    output = denoiser(y.double().movedim(-1, 1), sigma.double(), labels).movedim(1, -1)
    np.testing.assert_allclose(output, arrays["denoised"], atol=5e-6)

    def eps(y, log_sigma):
        sigma = torch.full((len(y),), log_sigma).double().exp()
        return (y - denoiser(y, sigma, torch.full((len(y),), label))) / sigma[0]

    smaller = str(arrays["shapes"]).replace("4x4", "2x2").replace("8x8", "4x4")
    fields = {"img_resolution": 4, "attn_resolutions": [4, 2]}
    model = scoremle.load(written(tmp_path, {**arrays, "shapes": smaller}, **fields))
    y = np.random.default_rng(1).normal(size=(1, 4, 4, 3)) * 0.5
    found = model.condition_on(jnp.asarray([label])).log_prob(
        jnp.asarray(y, jnp.float32), jax.random.key(0), divergence=Exact(), solver=Multistep(256)
    )
    expected = flow_log_prob(eps, y[0], np.log([0.002, 80]), prior_std=80)
    assert_log_prob(found, expected, dims=y.size)


def test_where_they_begin_and_end(golden, tmp_path):
    model = scoremle.load(written(tmp_path, golden("edm_ncsnpp_edm")))
    ends = np.exp(-np.asarray(model.sde.log_snr(jnp.asarray([model.eps, 1.0]))) / 2)
    np.testing.assert_allclose(ends, [0.002, 80], rtol=1e-3)
    assert model.sde.prior_std == 80 and model.default_estimator.title == "exact by the ODE"
    model = scoremle.load(written(tmp_path, golden("edm_ncsnpp_ve"), sigma_max=60.0))
    ends = np.exp(-np.asarray(model.sde.log_snr(jnp.asarray([model.eps, 1.0]))) / 2)
    np.testing.assert_allclose(ends, [0.02, 60], rtol=1e-3)
    assert model.default_estimator.title.startswith("ODE bound, informed decoder")


def test_the_chain_of_iddpm_is_their_table_and_has_a_learned_range(golden, tmp_path):
    """By the recursion of table 1 (arXiv 2206.00364): step j has the label M - 1 - j."""
    arrays = golden("edm_adm_iddpm")
    model = scoremle.load(written(tmp_path, arrays))
    kept, u = np.sin(np.pi / 2 * np.arange(1001) / 1000 / 1.008) ** 2, np.zeros(1001)
    for j in range(1000, 0, -1):
        u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(kept[j - 1] / kept[j], 0.001) - 1)
    np.testing.assert_allclose(model.sde.schedule.log_snrs, -2 * np.log(u[999::-1]), rtol=1e-6)
    assert model.origin.chain.title.endswith("chain of steps, learned variance, estimates clipped")
    label = np.array([0, 300, 990])
    np.testing.assert_allclose(arrays["sigma"], u[999 - label], rtol=1e-6)
    x = jnp.asarray(arrays["x"] / np.hypot(1, arrays["sigma"])[:, None, None, None])
    _, found = model.condition_on(arrays["labels"]).noise.both(x, jnp.asarray((label + 1) / 1000))
    expected = arrays["range"]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_tensors_are_identified_by_what_the_file_holds(golden, tmp_path):
    path = written(tmp_path, golden("edm_ddpmpp_vp"))
    expected, other = scoremle.load(path), path.with_suffix(".weights")
    path.rename(other)
    for mine, theirs in zip(*map(jax.tree.leaves, (scoremle.load(other), expected)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_pickle_is_refused_by_name_and_never_opened(tmp_path):
    path = tmp_path / "edm-cifar10-32x32-cond-vp.pkl"
    path.write_bytes(b"no pickle at all")
    with pytest.raises(UserError, match="runs code"):
        scoremle.load(path)


QKV = "model.dec.4x4_in0.qkv.weight"


@pytest.mark.parametrize(
    ("fields", "change", "words"),
    [
        ({"class": "CTPrecond"}, None, "class is 'CTPrecond'"),
        ({"class": "iDDPMPrecond", "C_1": 0.1}, None, "C_1 is"),
        ({"class": "iDDPMPrecond"}, None, "variance of steps"),
        ({"class": "VPPrecond", "M": 100}, None, "M is 100"),
        ({"class": "VPPrecond", "epsilon_t": 2.0}, None, "epsilon_t is"),
        ({"class": "VPPrecond", "epsilon_t": float("nan")}, None, "epsilon_t must"),
        ({"model_type": "SwinUNet"}, None, "model_type is"),
        ({"encoder_type": "odd"}, None, "encoder_type is"),
        ({"channel_mult_noise": 2}, None, "channel_mult_noise is"),
        ({"depth": 3}, None, "field depth"),
        ({"img_resolution": None}, None, "img_resolution must"),
        ({"channel_mult": 3}, None, "channel_mult must"),
        ({"channel_mult": [2.5]}, None, "channel_mult: 1"),
        ({"sigma_data": "0.5"}, None, "sigma_data must"),
        ({"label_dim": True}, None, "label_dim must"),
        ({"model_channels": 32}, None, "map_label.weight has"),
        ({"num_blocks": 1}, None, "AttnBlockpp"),
        ({"model_type": "DhariwalUNet"}, None, "under 128 channels"),
        ({}, lambda t: t.pop(QKV), "AttnBlockpp"),
        ({}, lambda t: t.update({QKV: t[QKV][1:]}), "ValueError"),
        ({}, lambda t: t.update(bias=t[QKV]), "tensor bias"),
        ({}, lambda t: t.pop("model.map_label.bias"), "tensor map_label.bias"),
        ({}, lambda t: t.update({QKV.replace("qkv", "norm9"): t[QKV]}), "norm9.weight has no"),
        ({}, lambda t: [t.pop(name) for name in [*t] if "qkv" in name], "SongUNet's"),
    ],
)
def test_what_does_not_fit_is_one_line(golden, tmp_path, fields, change, words):
    path = written(tmp_path, golden("edm_ddpmpp_edm"), change, **fields)
    with pytest.raises(UserError) as error:
        scoremle.load(path)
    assert words in str(error.value) and str(path.with_suffix("")) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tensor_of_another_dhariwal_unet_is_one_line(golden, tmp_path):
    def rename(tensors):
        tensors["model.out_norm2.weight"] = tensors.pop("model.out_norm.weight")

    with pytest.raises(UserError, match=r"tensor out_norm2\.weight has"):
        scoremle.load(written(tmp_path, golden("edm_adm_edm"), rename))


@pytest.mark.parametrize("name", [name for name, value in FIELDS.items() if value is None])
def test_a_field_that_is_missing_is_named(name):
    given = {field: 1 for field in FIELDS if field not in (name, "channel_mult_emb")}
    with pytest.raises(UserError, match=f"field {name}"):
        edm_fields(given, {})


def test_fields_and_labels_are_required(golden, tmp_path):
    path = written(tmp_path, golden("edm_ddpmpp_edm"))
    model, x = scoremle.load(path), jnp.zeros((1, 8, 8, 3))
    with pytest.raises(UserError, match="needs class labels"):
        model.noise(x, jnp.ones(1))
    other = written(tmp_path, golden("edm_ddpmpp_vp"))
    with pytest.raises(UserError, match="no class labels"):
        scoremle.load(other).noise(x, jnp.ones(1), jnp.zeros(1, int))
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match="tensors alone"):
        scoremle.load(path)
