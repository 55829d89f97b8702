"""Folders of diffusers: the network's outputs, the schedule, log p against torch, refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scoremle
from scoremle.core.divergence import Exact
from scoremle.core.prediction import score_of
from scoremle.errors import UserError
from scoremle.published import safetensors
from scoremle.solvers.multistep import Multistep
from scoremle.zoo import diffusers as family

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from helpers.torch_flow import assert_log_prob, flow_log_prob, vp_log_prob  # noqa: E402

FIELDS = {
    "sample_size": 4, "in_channels": 1, "out_channels": 1, "layers_per_block": 1,
    "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture(autouse=True)
def one_thread():
    """Torch's threads wait for one another by spinning: beside another worker, for minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pipeline(**scheduler):
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**FIELDS).eval()
    return diffusers.DDPMPipeline(network, diffusers.DDPMScheduler(**scheduler))


def score_sde_pipeline(**scheduler):
    torch.manual_seed(3)
    network = diffusers.UNet2DModel(**FIELDS, time_embedding_type="fourier").eval()
    return diffusers.ScoreSdeVePipeline(network, diffusers.ScoreSdeVeScheduler(**scheduler))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("diffusers")
    pipeline().save_pretrained(path)
    return path


def theirs(network, x, label, classes=None):
    with torch.no_grad():
        images = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
        output = network(images, torch.as_tensor(label), classes).sample
    return np.moveaxis(output.numpy(), 1, -1)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_noise_prediction_at_their_steps(tmp_path, kind):
    """What add_noise adds is what the prediction is of, whatever the output means."""
    pipe = pipeline(prediction_type=kind, beta_schedule="squaredcos_cap_v2")
    pipe.save_pretrained(tmp_path)
    model = scoremle.load(tmp_path)
    assert model.origin.classes == 0
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 4, 1)).astype(np.float32)
    label = np.array([5, 400, 900])
    t = jnp.asarray((label + 1) / 1000, jnp.float32)
    signal = pipe.scheduler.alphas_cumprod.numpy()[label][:, None, None, None]
    np.testing.assert_allclose(model.sde.alpha(t), np.sqrt(signal.ravel()), rtol=2e-4)
    output, alpha, sigma = theirs(pipe.unet, x, label), np.sqrt(signal), np.sqrt(1 - signal)
    expected = {
        "epsilon": output,
        "sample": (x - alpha * output) / sigma,
        "v_prediction": alpha * output + sigma * x,
    }[kind]
    found = jax.jit(model.noise)(jnp.asarray(x), t)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4 * np.abs(expected).max())


def test_the_score_at_their_sigmas(tmp_path):
    """The output is the score, at the sigmas of the scheduler, of images from 0 to 1."""
    pipe = score_sde_pipeline(sigma_max=30.0, sampling_eps=1e-3, num_train_timesteps=5)
    pipe.save_pretrained(tmp_path)
    model = scoremle.load(tmp_path)
    t, sigma = pipe.scheduler.timesteps.numpy(), pipe.scheduler.sigmas.numpy()
    np.testing.assert_allclose(model.sde.sigma(t), sigma, rtol=1e-5)
    np.testing.assert_array_equal(model.sde.alpha(t), 1)
    assert model.eps == pytest.approx(t[-1]) and model.sde.prior_std == sigma.max()
    x = np.random.default_rng(0).normal(size=(5, 4, 4, 1)).astype(np.float32)
    found = jax.jit(score_of(model.noise, model.sde))(jnp.asarray(x), jnp.asarray(t))
    np.testing.assert_allclose(found, theirs(pipe.unet, x, sigma), rtol=1e-3, atol=1e-4)
    levels = model.pixels.encode(np.arange(256), 0.5)
    np.testing.assert_allclose(levels, np.arange(256) / 255, atol=1e-6)


def test_a_learned_range_is_found_too(tmp_path):
    torch.manual_seed(1)
    network = diffusers.UNet2DModel(**FIELDS | {"out_channels": 2}).eval()
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    diffusers.DDPMPipeline(network, scheduler).save_pretrained(tmp_path)
    model = scoremle.load(tmp_path)
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype(np.float32)
    label = np.array([3, 700])
    found = jax.jit(model.noise.both)(jnp.asarray(x), jnp.asarray((label + 1) / 1000, jnp.float32))
    expected = theirs(network, x, label)
    np.testing.assert_allclose(jnp.concatenate(found, -1), expected, rtol=1e-3, atol=1e-4)
    assert model.origin.chain.title.endswith("chain of steps, learned variance")


def test_channels_behind_the_noise_are_left_out(tmp_path):
    """So DDPM's scheduler does with a network of twice the channels and a fixed variance."""
    torch.manual_seed(1)
    network = diffusers.UNet2DModel(**FIELDS | {"out_channels": 2}).eval()
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype(np.float32)
    label = np.array([3, 700])
    t = jnp.asarray((label + 1) / 1000, jnp.float32)
    found = jax.jit(scoremle.load(tmp_path).noise)(jnp.asarray(x), t)
    np.testing.assert_allclose(found, theirs(network, x, label)[..., :1], rtol=1e-3, atol=1e-4)


def test_classes_are_a_condition(tmp_path):
    torch.manual_seed(2)
    network = diffusers.UNet2DModel(**FIELDS, num_class_embeds=3).eval()
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    model = scoremle.load(tmp_path)
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype(np.float32)
    label, classes = np.array([3, 700]), np.array([2, 0])
    noise, t = model.condition_on(classes).noise, jnp.asarray((label + 1) / 1000, jnp.float32)
    found = jax.jit(lambda x, t: noise(x, t))(jnp.asarray(x), t)
    expected = theirs(network, x, label, torch.as_tensor(classes))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert model.origin.classes == 3
    integers = np.zeros((2, *model.shape), np.uint8)
    for beyond in (3, np.array([0, -1])):
        with pytest.raises(UserError, match="0 to 2"):
            model.score(integers, condition=beyond)
        with pytest.raises(UserError, match="0 to 2"):
            model.condition_on(beyond).sample(2, jax.random.key(0))


@pytest.mark.parametrize(("size", "shape"), [(6, (6, 6, 1)), ([4, 6], (4, 6, 1))])
def test_images_are_of_the_height_and_the_width_of_the_config(folder, tmp_path, size, shape):
    model = scoremle.load(edited(folder, tmp_path, "unet/config.json", sample_size=size))
    assert model.shape == shape


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "fixed small variance, estimates clipped"),
        ({"variance_type": None}, "fixed small variance, estimates clipped"),  # of DPMSolver
        ({"variance_type": "fixed_large", "clip_sample": False}, "fixed large variance"),
        ({"variance_type": "learned"}, None),
        ({"thresholding": True}, None),
        ({"clip_sample_range": 2.0}, None),
        ({"clip_sample_range": 0.5}, None),
    ],
)
def test_the_bound_of_a_scheduler(folder, tmp_path, fields, words):
    chain = scoremle.load(edited(folder, tmp_path, SCHEDULER, **fields)).origin.chain
    assert words is None if chain is None else chain.title.endswith(f"chain of steps, {words}")


@pytest.mark.long
def test_log_p_is_that_of_the_torch_module_in_float64(tmp_path):
    pipeline(num_train_timesteps=50, beta_end=0.3).save_pretrained(tmp_path)
    model = scoremle.load(tmp_path)
    network = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet").double().eval()
    x = np.random.default_rng(1).normal(size=(1, 4, 4, 1)) * 0.5

    def eps(x, label):
        return network(x, torch.as_tensor([label])).sample

    kept = np.cumprod(1 - np.linspace(1e-4, 0.3, 50))
    found = model.log_prob(
        jnp.asarray(x, jnp.float32), jax.random.key(0), divergence=Exact(), solver=Multistep(256)
    )
    assert_log_prob(found, vp_log_prob(eps, x[0], kept), dims=x.size)


@pytest.mark.long
def test_log_p_by_sigmas_is_that_of_the_torch_module_in_float64(tmp_path):
    score_sde_pipeline(sigma_min=0.1, sigma_max=1.0).save_pretrained(tmp_path)
    model = scoremle.load(tmp_path)
    network = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet").double().eval()
    x = np.random.default_rng(1).uniform(size=(1, 4, 4, 1))

    def eps(x, log_sigma):
        sigma = np.exp(log_sigma)
        return -sigma * network(x, torch.as_tensor([sigma])).sample

    # The embedding of log sigma oscillates some 40 times on the way: both need many steps.
    log_s = np.linspace(np.log(0.1 * 10**model.eps), 0, 101)
    found = model.log_prob(
        jnp.asarray(x, jnp.float32), jax.random.key(0), divergence=Exact(), solver=Multistep(512)
    )
    assert_log_prob(found, flow_log_prob(eps, x[0], log_s, 1.0), dims=x.size)


def test_the_grid_of_images_and_how_they_are_scored(folder):
    model = scoremle.load(folder)
    assert model.shape == (4, 4, 1) and model.eps == pytest.approx(1e-3)
    centre = model.pixels.encode(np.arange(256), 0.5)
    np.testing.assert_allclose(centre, 2 * np.arange(256) / 255 - 1, atol=1e-6)
    # At the first of a thousand steps the noise still hides the levels: they are decoded.
    assert model.default_estimator.title == "ODE bound, informed decoder, 1 draw"


def test_a_flat_folder_and_the_older_file(folder, tmp_path):
    whole = scoremle.load(folder)
    for file in (folder / "unet/config.json", folder / "scheduler/scheduler_config.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = safetensors.read(folder / "unet" / family.WEIGHTS[0])
    state = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
    torch.save(state, tmp_path / family.WEIGHTS[1])
    flat = scoremle.load(tmp_path)
    for ours, other in zip(*map(jax.tree.leaves, (whole, flat)), strict=True):
        np.testing.assert_array_equal(ours, other)


def edited(folder, tmp_path, name, **fields):
    for file in folder.rglob("*.*"):
        place = tmp_path / file.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    path = tmp_path / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return tmp_path


@pytest.mark.parametrize("absent", [[None, None], (None, None)])
def test_a_part_that_is_left_out_makes_no_latent_model(absent):
    family.refuse_latents("folder", {"vqvae": absent, "unet": ["diffusers", "UNet2DModel"]})
    with pytest.raises(UserError, match="a vae"):
        family.refuse_latents("folder", {"vqvae": absent, "vae": ["diffusers", "AutoencoderKL"]})


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("model_index.json", {"vae": ["diffusers", "AutoencoderKL"]}, "a vae"),
        (SCHEDULER, {"prediction_type": "flow"}, "not one of"),
        (SCHEDULER, {"beta_schedule": "odd"}, "name of betas"),
        (SCHEDULER, {"variance_type": "learned_range"}, "predicts none"),
        (SCHEDULER, {"snr_shift_scale": 3.0}, "has snr_shift_scale"),
        (SCHEDULER, {"timestep_type": "continuous"}, "has timestep_type"),
        (SCHEDULER, {"use_flow_sigmas": True}, "has use_flow_sigmas"),
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "a UNet2DModel"),
        ("unet/config.json", {"out_channels": 3}, "are not noise"),
        ("unet/config.json", {"sample_size": None}, "no sample_size"),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "numbers of steps"),
        (SCHEDULER, {"_class_name": "ScoreSdeVeScheduler"}, "gives sigmas"),
        (SCHEDULER, {"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.0}, "sigma_min must"),
        (SCHEDULER, {"_class_name": "ScoreSdeVeScheduler", "sigma_max": "a"}, "sigma_max must"),
    ],
)
def test_what_can_not_be_served_is_one_line(folder, tmp_path, name, fields, words):
    with pytest.raises(UserError, match=words) as error:
        scoremle.load(edited(folder, tmp_path, name, **fields))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "scheduler_config.json", family.WEIGHTS[0]])
def test_a_file_that_is_missing_is_named(folder, tmp_path, name):
    place = edited(folder, tmp_path, SCHEDULER)
    next(place.rglob(name)).unlink()
    with pytest.raises(UserError, match=f"{name}"):
        family.load(place)


@pytest.mark.parametrize(
    ("fields", "prediction"),
    [
        ({"predict_epsilon": False}, "x_0"),
        ({"predict_epsilon": True}, "eps"),
        ({"predict_epsilon": False, "prediction_type": "v_prediction"}, "v"),
        ({"snr_shift_scale": 1.0, "timestep_type": "discrete", "use_flow_sigmas": False}, "eps"),
    ],
)
def test_the_prediction_that_a_scheduler_declares(folder, tmp_path, fields, prediction):
    place = edited(folder, tmp_path, SCHEDULER)
    (place / SCHEDULER).write_text(json.dumps({"beta_schedule": "linear"} | fields))
    assert scoremle.load(place).noise.prediction == prediction


def test_a_scheduler_without_betas_is_refused(folder, tmp_path):
    place = edited(folder, tmp_path, SCHEDULER)
    of_ipndm = {"num_train_timesteps": 1000, "trained_betas": None}
    (place / SCHEDULER).write_text(json.dumps(of_ipndm))
    with pytest.raises(UserError, match=r"no betas.*from_velocity"):
        scoremle.load(place)


CUT = (lambda b: b[:5], lambda b: b[:-9], lambda b: b[:8] + b"!" + b[9:])


def test_a_damaged_file_of_the_older_kind_is_one_line(folder, tmp_path):
    place = edited(folder, tmp_path, "unet/config.json") / "unet"
    (place / family.WEIGHTS[0]).rename(place / family.WEIGHTS[1])
    with pytest.raises(UserError, match="PyTorch checkpoint"):
        scoremle.load(tmp_path)


@pytest.mark.parametrize("damage", CUT)
def test_damaged_weights_are_one_line(folder, tmp_path, damage):
    place = edited(folder, tmp_path, "unet/config.json") / "unet" / family.WEIGHTS[0]
    place.write_bytes(damage(place.read_bytes()))
    with pytest.raises(UserError, match="complete safetensors"):
        scoremle.load(tmp_path)
