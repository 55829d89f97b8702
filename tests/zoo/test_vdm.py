"""Training states of VDM, i-DODE and MuLAN: what they give, and what can't be had of others."""

import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.marks import some
from helpers.places import GOLDEN
from helpers.vdm_networks import golden_mulan, golden_params

import scoremle
from scoremle.cli import main as cli
from scoremle.core.dequantize import TruncatedNormal
from scoremle.errors import UserError
from scoremle.experiment.own_measurement import prepared
from scoremle.likelihood.score_images import score_images
from scoremle.published import state_dict
from scoremle.zoo.families import FAMILIES, family_of

BESIDE = {"image_size": 8}
KINDS = {
    # name: (network, learned schedule, fields beside)
    "vdm": ("fourier", "scalar", BESIDE),
    "vdm_aug": ("fourier", "nnet", BESIDE),
    "idode": ("idode", None, BESIDE),
    "idode_straight": ("idode", None, BESIDE | {"schedule": "SP"}),
    "idode_eps": ("idode", None, BESIDE | {"velocity": False}),
}


def written(folder, ema, fields=None):
    """A training state with these averaged parameters, as Flax writes it."""
    params = jax.tree.map(np.zeros_like, ema)
    optimizer = {"0": {"count": np.int32(3), "mu": params, "nu": params}, "2": {}}
    state = {"step": np.int32(3), "params": params, "ema_params": ema, "opt_state": optimizer}
    state_dict.write(folder / "ckpt-3.flax", state)
    if fields:
        (folder / "ckpt-3.json").write_text(json.dumps(fields))
    return folder / "ckpt-3.flax"


def averaged(kind, golden):
    network, learned, fields = KINDS[kind]
    ema = {"score_model": golden_params(network)}
    if learned:
        prefix = f"schedules/{learned}/params/"
        arrays = golden("vdm_loss").items()
        flat = {k.removeprefix(prefix): v for k, v in arrays if k.startswith(prefix)}
        ema["gamma"] = unflatten_dict(flat, sep="/")
    return ema, fields


@some("kind", KINDS, quick=["vdm_aug", "idode_straight"])
def test_the_model_is_theirs(kind, golden, tmp_path):
    """Schedule, noise prediction, the points of pixels, and the noise at their bins."""
    path = written(tmp_path, *averaged(kind, golden))
    assert family_of(path) == "vdm"
    model = scoremle.load(path)
    learned = {"vdm": "scalar", "vdm_aug": "nnet"}.get(kind)
    arrays = golden("vdm_loss" if learned else "idode")
    if learned:
        gamma = -model.sde.log_snr(jnp.asarray(arrays["schedules/t"], jnp.float32))
        np.testing.assert_allclose(gamma, arrays[f"schedules/{learned}/gamma"], atol=3e-5)
        assert model.sde.prior_std == 1
    else:
        key = {"idode": "VP/eps_hat", "idode_straight": "SP/eps_hat", "idode_eps": "F_hat"}[kind]
        t = model.sde.time_of_log_snr(-jnp.asarray(arrays["gamma"], jnp.float32))
        found = model.noise(jnp.asarray(arrays["z"]), t)
        scale = np.abs(arrays[key]).max()
        np.testing.assert_allclose(found, arrays[key], atol=2e-4 * scale)
        assert model.sde.prior_std == pytest.approx(float(model.sde.sigma(1.0)))
    assert (model.eps, model.shape, model.decoder) == (0.0, (8, 8, 3), None)
    np.testing.assert_allclose(model.pixels.points, 2 * (np.arange(256) + 0.5) / 256 - 1)
    assert isinstance(model.default_dequantizer, TruncatedNormal)


@pytest.mark.parametrize("kind", ["idode_straight", "mulan"])
def test_an_imported_state_is_the_same_model(kind, golden, tmp_path):
    state = (golden_mulan(), MULAN) if kind == "mulan" else averaged(kind, golden)
    path = written(tmp_path, *state)
    assert cli.main(["import", str(path), str(tmp_path / "run")]) == 0
    models = map(scoremle.load, (path, tmp_path / "run"))
    for one, other in zip(*map(jax.tree.leaves, models), strict=True):
        np.testing.assert_array_equal(one, other)
    path.with_suffix(".json").unlink()
    assert FAMILIES["vdm"].files(path) == {"model.flax": path}


@some("family", ["vdm", "idode", "mulan"], quick=["vdm"])
def test_a_state_of_the_published_tree_is_known_by_its_content(family, tmp_path):
    """Without a file beside it, and under any name."""
    shapes = json.loads((GOLDEN / "vdm_shapes.json").read_text())
    if family != "vdm":  # i-DODE's is that of VDM, but for the schedule
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("gamma")}
    if family == "mulan":
        shapes |= json.loads((GOLDEN / "mulan_shapes.json").read_text())
        assert sum(map(math.prod, shapes.values())) == 71_153_846
    rng = np.random.default_rng(0)
    flat = {name: rng.random(shape, np.float32) for name, shape in shapes.items()}
    ema = unflatten_dict(flat, sep="/")
    state = {"step": np.int32(3), "params": ema, "ema_params": ema, "opt_state": {}}
    path = tmp_path / "any.name"
    state_dict.write(path, state)
    model = scoremle.load(path)
    network = model.noise.network.func.network
    assert (network.nf, network.num_res_blocks, network.fourier_features) == (128, 32, True)
    assert model.shape == (32, 32, 3)
    assert model.noise.prediction == ("eps" if family == "vdm" else "v")
    if family == "mulan":
        assert (model.coder.bits, model.coder.on) == (50, 15)
        assert model.coder.nats == pytest.approx(28.44, abs=0.01)
        assert model.coder.encoder.func.network.num_res_blocks == 4


MULAN = {"image_size": 6, "latent_k": 3, "velocity": False}


@pytest.mark.long
def test_a_model_with_codes_scores_images_and_draws_samples(golden, tmp_path):
    """Each image under its own code, at the cost of one of all codes."""
    arrays = golden("mulan")
    model = scoremle.load(written(tmp_path, golden_mulan(), MULAN))
    images = arrays["images"][:2].astype(np.uint8)
    codes = jnp.asarray(arrays["likelihood/embedding"])
    few = replace(model, solver=scoremle.Multistep(4), origin=replace(model.origin, pilot=False))
    under, cost = few.under(codes), np.log(120) / (108 * np.log(2))
    np.testing.assert_array_equal(few.coder(few.pixels.encode(images, 0.5)), codes)
    with pytest.raises(UserError, match="under a code"):
        few.sample(1, jax.random.key(0), log_prob=True)
    of_few = prepared(few, images)
    assert of_few.title.startswith("exact by the ODE, bound by a code of 3 of 10 bits")
    how = {"dequantizer": of_few.dequantizer}
    found = score_images(few, of_few.estimator, images, **how).values
    bpd = under.score(images).bpd
    np.testing.assert_allclose(found["code"], cost, rtol=1e-5)
    np.testing.assert_allclose(found["bpd"][0] - bpd, cost, rtol=1e-3)
    bound = replace(prepared(few, images, "bound").estimator, draws=8)
    assert (few.score(images, estimator=bound).bpd > found["bpd"][0] - 1).all()
    drawn, z = few.sample(3, jax.random.key(0)), jnp.asarray(arrays["z"][:2])
    assert drawn.shape == (3, 6, 6, 3) and drawn.dtype == np.uint8
    for use in (lambda: few.log_prob(z, jax.random.key(0)), lambda: few.encode(z),
                lambda: few.sample(1, jax.random.key(0), log_prob=True),
                lambda: few.elbo(z, jax.random.key(0)), lambda: few.profile(images)):  # fmt: skip
        with pytest.raises(UserError, match=r"code|dimension"):
            use()


@pytest.mark.parametrize(("words", "change", "fields"), [
    ("has no dense_2/bias", lambda ema: ema["gamma"]["dense_2"].pop("bias"), {}),
    ("has no mid.block_2", lambda ema: ema["encoder_model"].pop("mid.block_2"), {}),
    ("latent_k is 11", lambda ema: None, {"latent_k": 11}),
    ("dense_layer_final/kernel",
     lambda ema: ema["encoder_model"]["dense_layer_final"].update(bias=np.zeros(9, "f")), {}),
    ("KeyError: 'gamma'", lambda ema: ema.pop("gamma"), {}),
])  # fmt: skip
def test_damages_of_a_model_with_codes_are_one_line(words, change, fields, tmp_path):
    ema = golden_mulan()
    change(ema)
    with pytest.raises(UserError, match=words) as error:
        scoremle.load(written(tmp_path, ema, MULAN | fields))
    assert "\n" not in str(error.value)


DAMAGES = {
    "conv1/kernel of shape": lambda flat: flat.update(
        {"score_model/mid.block_1/conv1/kernel": np.zeros((3, 3, 64, 32), np.float32)}
    ),
    "has no mid.attn_1/q/bias": lambda flat: flat.pop("score_model/mid.attn_1/q/bias"),
    "lacks": lambda flat: flat.update({"score_model/more/bias": np.zeros(3, np.float32)}),
    "KeyError": lambda flat: flat.pop("score_model/conv_in/kernel"),
    "not all finite": lambda flat: flat.update(
        {"score_model/dense0/bias": np.full(256, np.nan, np.float32)}
    ),
}


@pytest.mark.parametrize("words", DAMAGES)
def test_damages_are_one_line(words, golden, tmp_path):
    ema, fields = averaged("idode", golden)
    flat = flatten_dict(ema, sep="/")
    DAMAGES[words](flat)
    path = written(tmp_path, unflatten_dict(flat, sep="/"), fields)
    with pytest.raises(UserError, match=words) as error:
        scoremle.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("fields", "words"), [
    ({"schedule": "VE"}, "schedule is 'VE'"), ({"image_size": -1}, "image_size"),
    ({"gamma_min": 6.0}, "log_snr_min must"), ({"image_size": "8"}, "image_size"),
])  # fmt: skip
def test_fields_beside_it_that_cannot_be_had(fields, words, golden, tmp_path):
    ema, beside = averaged("idode", golden)
    with pytest.raises(UserError, match=words):
        scoremle.load(written(tmp_path, ema, beside | fields))


def test_a_state_that_ends_too_early(golden, tmp_path):
    path = written(tmp_path, *averaged("idode", golden))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="ends too early"):
        scoremle.load(path)


def test_scores_name_the_noise_of_the_bins_and_the_decoder(golden, tmp_path):
    """The number by the ODE with truncated normal noise, and the bound on integers."""
    model = scoremle.load(written(tmp_path, *averaged("idode", golden)))
    images = golden("idode")["images"][:1].astype(np.uint8)
    few = replace(model, solver=scoremle.Multistep(2), origin=replace(model.origin, pilot=False))
    by_ode = prepared(few, images)
    assert by_ode.title == "exact by the ODE, truncated normal dequantization"
    assert prepared(few, images, "bound").title.endswith("draws, discrete decoder")
    explicit = few.score(images, dequantizer=TruncatedNormal(few.sde, 0.0, few.pixels))
    # The last noise but a hair: half a bin is 3.02 standard deviations, and here it is three.
    found = score_images(few, by_ode.estimator, images, dequantizer=by_ode.dequantizer)
    np.testing.assert_allclose(found.values["bpd"][0], explicit.bpd, rtol=2e-3)
