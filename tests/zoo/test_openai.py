"""Models of improved- and guided-diffusion: from flags and tensors to the authors' own bound."""

import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ddpm_chain import published_terms
from helpers.weights import drawn

from scoremle.core.betas import betas
from scoremle.core.divergence import Exact
from scoremle.core.keys import example_keys, fold_in, normal, split
from scoremle.core.times import log_snr_edges
from scoremle.errors import UserError
from scoremle.likelihood.steps import step_bound
from scoremle.solvers.multistep import Multistep
from scoremle.zoo import families, openai

STEPS, CLASSES = 8, jnp.asarray([4, 0])
IMAGES = len(CLASSES)
DIFFUSION = {"noise_schedule": "cosine", "diffusion_steps": STEPS, "rescale_timesteps": True}


@pytest.fixture
def load(golden, monkeypatch, tmp_path):
    """A small model, class-conditional; its tensors in place of a .pt."""
    arrays = golden("adm_guided")

    def load(without=None, **flags):
        shapes = json.loads(str(arrays["shapes"]))
        if flags.get("learn_sigma"):
            shapes |= {name: (6, *shapes[name][1:]) for name in ("out.2.weight", "out.2.bias")}
        monkeypatch.setattr(openai.pytorch, "load_pth", lambda path: drawn(shapes))
        flags = {**json.loads(str(arrays["flags"])), **DIFFUSION, **flags}
        flags.pop(without, None)
        families.flags_beside(tmp_path / "model.pt").write_text(json.dumps(flags))
        return openai.load(tmp_path / "model.pt")

    return load


def network_of(model):
    """What the authors' loop calls: x in NHWC and the number of the step, to all channels."""
    run = jax.jit(model.noise.noise.network)

    def network(x, label):
        told = jnp.asarray(label * 1000 / STEPS)
        return np.asarray(run(jnp.asarray(x), told, CLASSES), np.float64)

    return network


def test_a_learned_range_is_their_bound_term_by_term(load, x64):
    model, key = load(learn_sigma=True), jax.random.key(0)
    integers = np.random.default_rng(0).integers(0, 256, (IMAGES, *model.shape), np.uint8)
    times = np.arange(1, STEPS + 1) / STEPS

    @jax.jit
    def run(times):
        return step_bound(
            model.condition_on(CLASSES).noise, model.sde, jnp.asarray(integers), key,
            points=model.pixels.points, times=times, variance="learned",
        )  # fmt: skip

    _, keys = split(example_keys(key, IMAGES))
    like = jnp.zeros(integers.shape)
    noises = [np.asarray(normal(fold_in(keys, n), like)) for n in range(STEPS + 3)]
    prior, terms, last = published_terms(
        network_of(model), integers, 256, np.arange(STEPS), noises, "learned", True,
        betas("cosine", STEPS),
    )  # fmt: skip
    found = run(times)
    np.testing.assert_allclose(found.prior, prior, rtol=1e-9)
    np.testing.assert_allclose(found.reconstruction, last.mean(axis=0), rtol=1e-5)
    # The profile has a step or two in a bin.
    edges, lam = log_snr_edges(model.sde, times[0]), model.sde.log_snr(times[1:])
    expected = [np.histogram(lam, edges, weights=row)[0] for row in terms.T]
    np.testing.assert_allclose(found.profile, expected, rtol=1e-5)


@pytest.mark.long
def test_log_p_is_that_of_the_torch_module_in_float64(load, golden):
    """Whose outputs are the authors'; the model has the same tensors, for smaller images."""
    torch = pytest.importorskip("torch")
    from helpers.torch_flow import assert_log_prob, vp_log_prob
    from helpers.torch_unets import Guided

    arrays = golden("adm_guided")
    network = Guided(drawn(json.loads(str(arrays["shapes"]))), heads=4, heads_up=2)
    images, t, label = (torch.tensor(arrays[name]) for name in ("x", "t", "class_labels"))
    output = network(images.double().movedim(-1, 1), t.double(), label).movedim(1, -1)
    np.testing.assert_allclose(output, arrays["out"], atol=1e-5)

    def eps(x, label):
        return network(x, torch.full((len(x),), label).double(), torch.full((len(x),), 4))

    # Rescaled, the waves of so few steps turn too often from one to the next.
    model = load(image_size=4, attention_resolutions="2", rescale_timesteps=False)
    x = np.random.default_rng(1).normal(size=(1, 4, 4, 3)) * 0.5
    angles = (np.arange(STEPS + 1) / STEPS + 0.008) / 1.008 * np.pi / 2
    left = np.maximum(np.cos(angles[1:]) ** 2 / np.cos(angles[:-1]) ** 2, 0.001)
    found = model.condition_on(CLASSES[:1]).log_prob(
        jnp.asarray(x, jnp.float32), jax.random.key(0), divergence=Exact(), solver=Multistep(256)
    )
    assert_log_prob(found, vp_log_prob(eps, x[0], np.cumprod(left)), dims=x.size)


def test_a_checkpoint_is_identified_by_what_it_holds(tmp_path):
    """Whatever its name, if flags lie beside it; and other archives are none."""
    for name, member in (("weights.bin", "weights/data.pkl"), ("images.bin", "a.png")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(member, b"")
    assert not families.is_openai(tmp_path / "weights.bin")  # it may be anything
    for name in ("weights.json", "images.json"):
        (tmp_path / name).write_text("{}")
    assert families.is_openai(tmp_path / "weights.bin")
    assert not families.is_openai(tmp_path / "images.bin") and not families.is_openai(tmp_path)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, "fixed large"),
        ({"sigma_small": True}, "fixed small"),
        ({"learn_sigma": True, "sigma_small": True}, "learned"),
    ],
)
def test_their_chain_has_the_variance_of_the_flags(load, flags, words):
    model = load(**flags)
    told = f"chain of steps, {words} variance, estimates clipped"
    assert model.origin.chain.title.endswith(told)
    assert model.origin.classes == 1000


def test_the_flags_say_what_the_network_predicts(load):
    """The same weights give eps, or x_0 = (x - sigma eps) / alpha."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(IMAGES, 4, 4, 3)), jnp.float32)
    t = jnp.full(IMAGES, 4 / STEPS)
    by_eps, by_start = (
        load(image_size=4, attention_resolutions="2", predict_xstart=flag).condition_on(CLASSES)
        for flag in (False, True)
    )
    output = by_eps.noise(x, t)
    alpha, sigma = (float(f(t[0])) for f in (by_eps.sde.alpha, by_eps.sde.sigma))
    np.testing.assert_allclose(by_start.noise(x, t), (x - alpha * output) / sigma, atol=1e-5)


def test_time_labels_that_are_no_number_of_a_thousand_steps_must_be_declared(load):
    """At a thousand steps both of the libraries' defaults are the same labels."""
    with pytest.raises(UserError, match="need rescale_timesteps") as error:
        load(without="rescale_timesteps")
    assert "\n" not in str(error.value)
    load(without="rescale_timesteps", diffusion_steps=1000)


def test_flags_must_be_there_and_name_a_known_schedule(load, tmp_path):
    with pytest.raises(UserError, match="not 'sqrt'"):
        load(noise_schedule="sqrt")
    families.flags_beside(tmp_path / "model.pt").unlink()
    with pytest.raises(UserError, match=r"to \S*model\.json.*FILE\.py:function"):
        openai.load(tmp_path / "model.pt")
