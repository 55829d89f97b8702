"""Scales of the informed decoder: a network's own, as L_0 has it; and those fitted to others."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ddpm_chain import published_terms
from helpers.oracles import SDES, Gaussian

from scoremle import Multistep, Pixels, ScoreModel, Uniform
from scoremle.core import schedules
from scoremle.core.betas import betas
from scoremle.core.keys import fold_in, image_keys, normal, split
from scoremle.core.prediction import RangedNoise, noise_fn
from scoremle.core.sde import SDE
from scoremle.likelihood.decoders import InformedDecoder
from scoremle.likelihood.images import ByElbo, ByOde
from scoremle.likelihood.informed import fitted_scale, scale_of_others
from scoremle.likelihood.scales import LearnedScale, ScaleOfOthers

KEY, BITS = jax.random.key(0), np.log(2)

# --- learned ----------------------------------------------------------------------------------

PIXELS, STEPS = Pixels(8, -1 - 1 / 7, 1 + 1 / 7), 20
SHAPE, IMAGES = (2, 2, 3), 4
IDS = np.arange(IMAGES)
INTEGERS = np.random.default_rng(0).integers(0, 8, (IMAGES, *SHAPE)).astype(np.uint8)
RNG = np.random.default_rng(1)
WEIGHTS = [RNG.normal(size=(12, 16)) / 3, RNG.normal(size=(16, 12)) / 3]
CHAIN = SDE("vp", schedules.Discrete.of_betas(betas("linear", STEPS, 0.03, 0.4)), 1.0)


def network(x, label, xp=jnp):
    """eps of a Gaussian; and v, which depends on all pixels."""
    hidden = xp.tanh(x.reshape(len(x), -1) @ WEIGHTS[0] + label[:, None] / STEPS)
    return xp.concatenate([0.5 * x, (hidden @ WEIGHTS[1]).reshape(x.shape)], axis=-1)


def ranged(**changes):
    noise = RangedNoise(noise_fn(network, CHAIN, time_input="step"))
    return replace(
        ScoreModel(noise, CHAIN, 1 / STEPS, SHAPE, PIXELS, Multistep(16)), **changes
    )


def published_last(z):
    """L_0 of each image in bits/dim by the authors' formulas, for this noise; nothing clipped."""

    def outputs(x, label):
        return network(x, label, np)

    noises = [z] * STEPS  # those of the other steps do not matter
    _, _, last = published_terms(
        outputs, INTEGERS, 8, np.arange(STEPS), noises, "learned", False,
        betas("linear", STEPS, 0.03, 0.4),
    )  # fmt: skip
    return last[0] / (12 * BITS)


@pytest.mark.long
def test_the_default_decoder_is_the_l_0_of_the_chain_for_the_same_noise(x64):
    """With the ODE: all but the decoder drops out of the difference to a flat one's bound."""
    model, keys = ranged(), image_keys(KEY, IDS)
    assert isinstance(model.decoder.scale, LearnedScale)
    other = InformedDecoder(PIXELS.points, 0.3)

    @jax.jit
    def bpd(estimator):
        return estimator(model, Uniform(), jnp.asarray(INTEGERS), keys)["bpd"]

    key_z, _ = split(keys)
    z = normal(key_z, jnp.zeros((IMAGES, *SHAPE)))
    t = jnp.full(IMAGES, model.eps)
    error = model.noise(CHAIN.perturb(other.encode(INTEGERS), t, z), t) - z
    of_other = -other.log_prob(error, CHAIN, jnp.asarray(INTEGERS), t) / (12 * BITS)
    gap = bpd(ByOde(solver=Multistep(4), decoder=model.decoder)) - bpd(
        ByOde(solver=Multistep(4), decoder=other)
    )
    np.testing.assert_allclose(gap + of_other, published_last(np.asarray(z)), rtol=1e-7)


@pytest.mark.parametrize("matching", ["denoising", "sliced"])
def test_in_the_bound_it_is_that_too(matching, x64):
    """The mean over the draws of its last term, which are the same."""
    estimator, keys = ByElbo(2, matching, decoder=ranged().decoder), image_keys(KEY, IDS)
    found = jax.jit(lambda x: estimator(ranged(), Uniform(), x, keys))(jnp.asarray(INTEGERS))
    _, key_rows = split(split(keys)[1])
    noises = [split(fold_in(key_rows, number))[0] for number in range(2, 6)]
    like = jnp.zeros((IMAGES, *SHAPE))
    expected = [published_last(np.asarray(normal(key, like))) for key in noises]
    np.testing.assert_allclose(found["reconstruction"], np.mean(expected, axis=0), rtol=1e-7)


def test_where_a_network_predicts_its_scale_none_is_fitted():
    model = ranged()
    assert model.fit_decoder(INTEGERS) is model
    words = "informed decoder with the network's own scales"
    assert model.default_estimator.title == f"ODE bound, {words}, 1 draw"
    by_elbo = ByElbo(decoder=model.decoder)
    assert by_elbo.title == f"variational bound (SDE), 1000 draws, {words}"
    assert ranged(decoder_scale=0.3).decoder.scale == 0.3
    given = ranged().condition_on(jnp.zeros(1))
    assert isinstance(given.decoder.scale, LearnedScale)


def test_a_range_of_other_steps_is_not_taken_for_one():
    """Where the chain does not begin at the smallest time, and where there is none."""
    sde = SDES["vp"]
    of_any_time = RangedNoise(noise_fn(network, sde, time_input="time_999"))
    for changes in ({"eps": 2 / STEPS}, {"noise": of_any_time, "sde": sde, "eps": 0.1}):
        decoder = ranged(**changes).decoder
        assert not callable(decoder.scale)
    plain = noise_fn(lambda x, label: network(x, label)[..., :3], CHAIN, time_input="step")
    assert not callable(ranged(noise=plain).decoder.scale)
    with pytest.raises(ValueError, match="no variance"):
        by_ode = ByOde(solver=Multistep(4), decoder=ranged().decoder)
        ranged(noise=plain).score(INTEGERS, estimator=by_ode)


# --- of others --------------------------------------------------------------------------------

VP = SDES["vp"]
EPS = float(VP.time_of_log_snr(jnp.asarray(-2 * np.log(0.3))))


def gaussian():
    data, pixels = Gaussian.of([0.05], [0.1]), Pixels(256)
    of_pixel = data.noise(VP)

    def noise(x, t):
        return of_pixel(x.reshape(-1, 1), jnp.repeat(t, 16)).reshape(x.shape)

    x = pixels.decode(jnp.asarray(data.draw(0, 16 * 24)).reshape(-1, 4, 4, 1))
    return ScoreModel(noise, VP, EPS, (4, 4, 1), pixels, Multistep(8)), np.asarray(x)


def scales_of(found, images):
    """What each image is decoded by."""
    return np.asarray(found(jnp.asarray(images), None))[:, 0, 0, 0]


@pytest.mark.parametrize("count", [1, 2, 7, 16, 24])
def test_no_image_has_a_scale_that_was_fitted_to_it(count):
    """Whatever is done to an image leaves its own scale as it is, and changes others'."""
    model, images = gaussian()
    images = images[:count]
    before = scales_of(scale_of_others(model, images, KEY), images)
    fitted_to, half = min(count, 16), (min(count, 16) + 1) // 2
    assert len(set(before.tolist())) == min(2, count)
    for i in {0, half - 1, fitted_to - 1, count - 1}:
        changed = images.copy()
        changed[i] = 255 - changed[i] // 2
        after = scales_of(scale_of_others(model, changed, KEY), changed)
        assert after[i] == before[i]
        assert (after != before).any() == (i < fitted_to and count > 1)


def test_its_halves_are_fitted_to_each_other():
    model, images = gaussian()
    found = scale_of_others(model, images, KEY)
    assert found.scale == pytest.approx(fitted_scale(model, images[:8], KEY), rel=1e-5)
    assert found.of_these == pytest.approx(fitted_scale(model, images[8:16], KEY), rel=0.25)
    np.testing.assert_array_equal(found.images, images[:8])
    alone = scale_of_others(model, images[:1], KEY)
    assert alone.of_these == pytest.approx(0.3, rel=1e-5)  # that of the noise
    same = scale_of_others(model, np.repeat(images[:1], 20, axis=0), KEY)
    assert (same.scale, same.of_these) == (alone.scale, alone.of_these)


@pytest.mark.long
def test_a_score_does_not_depend_on_its_batch():
    model, images = gaussian()
    decoder = InformedDecoder(model.pixels.points, scale_of_others(model, images, KEY))
    estimator, order = ByOde(decoder=decoder), np.random.default_rng(0).permutation(24)
    whole = model.score(images, estimator=estimator)
    parts = model.score(images[order], index=order, estimator=estimator, batch_size=5)
    np.testing.assert_allclose(parts.bpd, whole.bpd[order], rtol=1e-6)
    of_these = InformedDecoder(model.pixels.points, decoder.scale.of_these)
    alone = model.score(images[:8], estimator=ByOde(decoder=of_these))
    np.testing.assert_allclose(whole.bpd[:8], alone.bpd, rtol=1e-6)
    rest = InformedDecoder(model.pixels.points, decoder.scale.scale)
    others = model.score(images[8:], index=np.arange(8, 24), estimator=ByOde(decoder=rest))
    np.testing.assert_allclose(whole.bpd[8:], others.bpd, rtol=1e-6)


def test_equal_pixels_in_part_are_not_the_same_image():
    image = np.zeros((1, 2, 2, 1), np.uint8)
    other = image.copy()
    other[0, 1, 1] = 1
    found = ScaleOfOthers(image, 0.1, 0.2)
    np.testing.assert_allclose(scales_of(found, np.concatenate([image, other])), [0.2, 0.1])
