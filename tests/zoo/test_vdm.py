"""Training states of VDM and i-DODE: what they give, and what can't be had of others."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.marks import some
from helpers.places import GOLDEN
from helpers.vdm_networks import golden_params

import scoremle
from scoremle.core.dequantize import TruncatedNormal
from scoremle.errors import UserError
from scoremle.experiment.scoring import prepared
from scoremle.published import state_dict
from scoremle.zoo.families import family_of

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


def test_a_state_of_the_published_tree_is_known_by_its_content(tmp_path):
    """Without a file beside it, and under any name."""
    shapes = json.loads((GOLDEN / "vdm_shapes.json").read_text())
    rng = np.random.default_rng(0)
    flat = {name: rng.random(shape, np.float32) for name, shape in shapes.items()}
    path = written(tmp_path, unflatten_dict(flat, sep="/")).rename(tmp_path / "any.name")
    model = scoremle.load(path)
    network = model.noise.network.func.network
    assert (network.nf, network.num_res_blocks, network.fourier_features) == (128, 32, True)
    assert model.shape == (32, 32, 3)


DAMAGES = {
    "conv1/kernel of shape": lambda flat: flat.update(
        {"score_model/mid.block_1/conv1/kernel": np.zeros((3, 3, 64, 32), np.float32)}
    ),
    "has no mid.attn_1/q/bias": lambda flat: flat.pop("score_model/mid.attn_1/q/bias"),
    "lacks": lambda flat: flat.update({"score_model/more/bias": np.zeros(3, np.float32)}),
    "KeyError": lambda flat: flat.pop("score_model/conv_in/kernel"),
    "MuLAN": lambda flat: flat.update({"encoder_model/conv_in/bias": np.zeros(3, np.float32)}),
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
    assert prepared(few, images, "bound").title.endswith("times, discrete decoder")
    explicit = few.score(images, dequantizer=TruncatedNormal(few.sde, 0.0, few.pixels))
    # The last noise but a hair: half a bin is 3.02 standard deviations, and here it is three.
    np.testing.assert_allclose(by_ode.score(images).values["bpd"][0], explicit.bpd, rtol=2e-3)
