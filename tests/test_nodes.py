"""The pilot takes the fewest nodes whose error is what it says and small beside the probes'."""

import jax
import jax.numpy as jnp
import numpy as np
from oracles import SDES, Gaussian

from scoremle.divergence import Exact, Hutchinson
from scoremle.likelihood import ode_log_likelihood
from scoremle.multistep import Multistep
from scoremle.nodes import LIMIT, NODES, SHARE, choose_nodes

DIMS = 8


def setting(divergence):
    data, sde = Gaussian.random(6, DIMS), SDES["vp"]
    x = data.draw(7, 8).astype(np.float32)
    noise = data.noise(sde)
    choice = choose_nodes(
        noise, sde, jnp.asarray(x), jax.random.key(1), eps=1e-5, divergence=divergence
    )
    return data, sde, noise, x, choice


def test_the_measured_error_is_the_true_one():
    data, sde, noise, x, choice = setting(Exact())
    assert choice.met and choice.solver_error <= LIMIT and choice.probe_stderr == 0
    result = ode_log_likelihood(
        noise, sde, jnp.asarray(x), jax.random.key(0), eps=1e-5, divergence=Exact(),
        solver=Multistep(choice.nodes),
    )  # fmt: skip
    exact = data.log_model(sde, x.astype(np.float64), 1e-5)
    error = (result.log_prob - exact) / (DIMS * np.log(2))
    size = np.sqrt(np.mean(error**2))
    np.testing.assert_allclose(size, choice.solver_error, rtol=0.1, atol=1e-5)
    np.testing.assert_allclose(error.mean(), choice.solver_bias, rtol=0.1, atol=1e-5)


def test_the_solver_stays_below_a_share_of_the_probes():
    choice = setting(Hutchinson())[-1]
    assert choice.nodes in NODES and choice.met
    assert choice.solver_error <= min(LIMIT, SHARE * choice.probe_stderr)
    more = setting(Hutchinson(16))[-1]
    assert more.probe_stderr < 0.5 * choice.probe_stderr
