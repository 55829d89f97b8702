"""Predictor-corrector samplers: the original's numbers, and the right distributions."""

import re
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import SDES, Gaussian, Mixture, golden_network, schedule64
from scipy import stats

from scoremle.errors import UserError
from scoremle.numerics import expand
from scoremle.parameterization import noise_fn
from scoremle.predictor_corrector import (
    PredictorCorrector,
    ald,
    ancestral_sampling,
    euler_maruyama,
    langevin,
    pc_sample,
    reverse_diffusion,
)
from scoremle.sde import SubVP

every_sde = pytest.mark.parametrize("name", SDES)
PREDICTORS = {
    f.__name__: f for f in (euler_maruyama, reverse_diffusion, ancestral_sampling)
} | {"none": None}
CORRECTORS = {f.__name__: f for f in (langevin, ald)} | {"none": None}


# The original's numbers


@cache
def network(net):
    """The golden network's noise prediction, compiled once for two images."""
    noise = noise_fn(golden_network(net), SDES["ve" if net == "ncsnpp_ve" else "vp"])
    compiled = jax.jit(noise)

    def eps(x, t):
        with jax.disable_jit(False):
            return compiled(x, t)

    return eps


def noise_of(name):
    """VP and sub-VP have the same network and the same labels."""
    return network("ncsnpp_ve" if name == "ve" else "ddpmpp")


def close(value, expected, tolerance):
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * np.abs(expected).max())


STEPS = [
    (name, rule)
    for name, predictors, correctors in (
        ("vp", PREDICTORS, ("langevin_snr0.16_steps1", "langevin_snr0.07_steps2", "ald_snr0.16_steps1")),
        ("subvp", ("euler_maruyama", "reverse_diffusion"), ()),
        ("ve", PREDICTORS, ("langevin_snr0.16_steps1", "langevin_snr0.07_steps2")),
    )
    for rule in (*predictors, *correctors)
    if rule != "none"
]


@pytest.mark.parametrize("i", [0, 1])
@pytest.mark.parametrize(("name", "rule"), STEPS)
def test_single_steps_are_those_of_the_original(name, rule, i, golden):
    numbers, sde, noise = golden("samplers"), SDES[name], noise_of(name)
    prefix, tolerance = ("ve/", 2e-4) if name == "ve" else ("", 2e-5)
    t, x, z = (jnp.asarray(a) for a in (numbers["t"][i], *map(numbers.get, (prefix + "x", prefix + "noise"))))
    if name == "ve":
        x = x * expand(sde.sigma(t), x)

    def check(value, key):
        close(value, numbers[f"{name}/{key}"][i], tolerance)

    if rule in PREDICTORS:
        method = PredictorCorrector(predictor=PREDICTORS[rule])
        mean, std = method.predict(noise, sde, x, t)
        check(mean, f"{rule}/x_mean")
        check(mean + expand(std, x) * z, f"{rule}/x")
        if rule != "ancestral_sampling":
            flow = replace(method, probability_flow=True)
            mean, std = flow.predict(noise, sde, x, t)
            check(mean, f"{rule}_pf/x_mean")
            assert not std.any()
    else:
        corrector, snr, steps = re.fullmatch(r"(\w+)_snr([\d.]+)_steps(\d)", rule).groups()
        method = PredictorCorrector(corrector=CORRECTORS[corrector], snr=float(snr))
        for _ in range(int(steps)):
            x = method.correct(noise, sde, x, t, z)
        check(x, f"{rule}/x")


@pytest.mark.parametrize(
    "chain",
    [
        "vp/pc_euler_maruyama_none",
        "vp/pc_euler_maruyama_none_denoise",
        "vp/pc_reverse_diffusion_langevin_denoise",
        "vp/pc_ancestral_sampling_none_denoise",
        "subvp/pc_euler_maruyama_none_denoise",
        "subvp/pc_reverse_diffusion_none_denoise",
        "ve/pc_euler_maruyama_none_denoise",
        "ve/pc_reverse_diffusion_langevin_denoise",
        "ve/pc_ancestral_sampling_none_denoise",
    ],
)
def test_chains_are_those_of_the_original(chain, golden, monkeypatch):
    """Thirty steps in which every normal draw is the same array."""
    numbers = golden("samplers")
    name, rest = chain.split("/pc_")
    denoise = rest.endswith("_denoise")
    predictor, corrector = rest.removesuffix("_denoise").rsplit("_", 1)
    method = PredictorCorrector(
        30, PREDICTORS[predictor], CORRECTORS[corrector], denoise=denoise
    )
    z = jnp.asarray(numbers["ve/z" if name == "ve" else "z"])
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype=None: z)
    eps = 1e-2 if name == "subvp" else 1e-3
    with jax.disable_jit():  # the network is compiled once, for all chains
        x = pc_sample(
            noise_of(name), SDES[name], jax.random.key(0), z.shape, eps=eps, method=method
        )
    if name != "ve":
        x = (x + 1) / 2
    expected = numbers[f"{chain}/x"]
    print(chain, np.abs(x - expected).max() / np.abs(expected).max())
    close(x, expected, 5e-3 if name == "ve" else 1e-3)
