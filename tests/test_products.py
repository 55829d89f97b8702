"""Matrix products outside of networks: each has all digits of float32, on a GPU too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.products import HIGHEST, precisions

import scoremle
from scoremle.core.codes import sum_of_gamma
from scoremle.core.schedules import Discrete
from scoremle.core.sde import SDE
from scoremle.core.times import log_snr_edges
from scoremle.likelihood.control_variate import Control, FittedGaussian
from scoremle.likelihood.decoders import DiscreteDecoder, InformedDecoder
from scoremle.likelihood.skill import _basis
from scoremle.likelihood.steps import step_bound

KEY, EPS, VP = jax.random.key(0), 1e-3, scoremle.VP()
X, PIXELS = jnp.linspace(-1, 1, 15).reshape(5, 3), scoremle.Pixels(8)
INTEGERS = jnp.arange(15).reshape(5, 3) % 8
CHAIN = SDE("vp", Discrete(jnp.linspace(5.0, -5.0, 6)), 1.0)
TIMES = scoremle.UniformLogSNR(VP, EPS)
CONTROL = Control(
    FittedGaussian.fit(np.eye(8, 3)), log_snr_edges(VP, EPS),
    levels=jnp.ones((24, 2)), slopes=jnp.ones((25, 4)), shares=jnp.full(24, 1 / 24),
)  # fmt: skip


def noise(x, t):
    return jnp.tanh(x) * t.reshape(-1, *(1,) * (x.ndim - 1))


def density(x, **options):
    return scoremle.ode_log_likelihood(noise, VP, x, KEY, eps=EPS, **options)


def bound(x, **options):
    return scoremle.elbo(noise, VP, x, KEY, eps=EPS, times=TIMES, draws=4, **options)


def skill(x):
    to, back, _ = _basis(x.shape[1:], jnp.eye(3))
    return back(to(x))


# What is traced, and how many products it has at least.
CASES = {
    "ode": (density, 3),
    "ode, random trace": (lambda x: density(x, divergence=scoremle.Hutchinson()), 4),
    "elbo, control": (lambda x: bound(x, control=CONTROL), 3),
    "elbo, discrete": (
        lambda x: bound(x, decoder=DiscreteDecoder(PIXELS.points), integers=INTEGERS), 1,
    ),
    "elbo, informed": (
        lambda x: bound(x, decoder=InformedDecoder(PIXELS.points, 0.1), integers=INTEGERS), 0,
    ),
    "importance": (
        lambda x: scoremle.importance_bound(lambda key: (density(x), x[:, 0]), KEY, 2), 5,
    ),
    "steps": (
        lambda x: step_bound(
            noise, CHAIN, INTEGERS, KEY, points=PIXELS.points, times=np.arange(1, 7) / 6
        ), 1,
    ),
    "codes": (lambda x: sum_of_gamma(jnp.ones((10, 5, 3)), 2), 1),
    "skill": (skill, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_products_outside_of_networks_are_of_the_highest_precision(name):
    function, least = CASES[name]
    found = precisions(function, X)
    assert len(found) >= least and set(found) <= {HIGHEST}
