"""What states a number of network evaluations makes so many: they are counted as they run.

Those of samplers: tests/experiment/test_build.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some

import scoremle
from scoremle.core.dequantize import Uniform
from scoremle.core.keys import example_keys
from scoremle.core.pixels import Pixels
from scoremle.interop.diffrax import ByDiffrax
from scoremle.likelihood.decoders import DiscreteDecoder, InformedDecoder
from scoremle.likelihood.labels import ByLabels
from scoremle.likelihood.published_rk45 import PublishedRK45
from scoremle.likelihood.steps import BySteps

SDE, PIXELS = scoremle.VP(), Pixels(4)
IMAGE = jnp.asarray([[[[1], [2]]]], jnp.uint8)
CALLS: list[None] = []


def noise(x, t, condition=None):
    """Of data N(0, I), but for waves in t, which make an adaptive solver work."""
    jax.debug.callback(lambda: CALLS.append(None))  # when it runs, not when it is traced
    shape = (-1,) + (1,) * (x.ndim - 1)
    return SDE.sigma(t).reshape(shape) * x * (1 + 0.3 * jnp.sin(20 * t)).reshape(shape)


MODEL = scoremle.ScoreModel(noise, SDE, 1e-3, (1, 2, 1), PIXELS)


def of_arrays(**options):
    x = jnp.ones((1, 2))
    found = scoremle.ode_log_likelihood(noise, SDE, x, jax.random.key(0), eps=1e-3, **options)
    return found.evaluations[0]


def of_an_image(estimator):
    keys = example_keys(jax.random.key(0), 1)
    return jax.jit(lambda keys: estimator(MODEL, Uniform(), IMAGE, keys))(keys)["nfe"][0]


def of_diffrax(name):
    method = getattr(pytest.importorskip("diffrax"), name)
    return of_arrays(solver=ByDiffrax(method(), 1e-2))


EXACT, INFORMED = scoremle.Exact(), InformedDecoder(PIXELS.points, 1.0)
CASES = {
    "Multistep": lambda: of_arrays(
        solver=scoremle.Multistep(9), divergence=scoremle.Hutchinson(2)),
    "Doubling": lambda: of_arrays(solver=scoremle.Doubling(1e-4, fewest=4, most=32)),
    "PublishedRK45": lambda: of_arrays(solver=PublishedRK45(1e-2, 1e-2)),
    "diffrax, whose steps share an evaluation": lambda: of_diffrax("Tsit5"),
    "diffrax, whose steps share none": lambda: of_diffrax("Heun"),
    "bound": lambda: of_an_image(scoremle.ByElbo(draws=5)),
    "bound, a drawn last term": lambda: of_an_image(
        scoremle.ByElbo(draws=5, decoder=DiscreteDecoder(PIXELS.points))),
    "bound, an informed last term": lambda: of_an_image(
        scoremle.ByElbo(draws=5, decoder=INFORMED)),
    "ODE, three draws": lambda: of_an_image(
        scoremle.ByOde(EXACT, scoremle.Multistep(9), samples=3)),
    "informed ODE, two draws": lambda: of_an_image(
        scoremle.ByOde(EXACT, scoremle.Multistep(9), 2, INFORMED)),
    "chain of steps": lambda: of_an_image(BySteps(np.linspace(1e-3, 1, 6))),
    "chain of steps, three of them": lambda: of_an_image(
        BySteps(np.linspace(1e-3, 1, 6), draws=3)),
    "all labels": lambda: of_an_image(
        ByLabels(scoremle.ByOde(EXACT, scoremle.Multistep(9)), 3)),
}  # fmt: skip


@some("name", CASES, quick=[name for name in CASES if "diffrax" not in name])
def test_as_many_evaluations_run_as_are_stated(name):
    CALLS.clear()
    stated = CASES[name]()
    jax.effects_barrier()
    assert stated == len(CALLS)
