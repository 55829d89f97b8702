"""The published algorithm, against the numbers that the original gave with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden_networks import golden_noise
from helpers.oracles import SDES

from scoremle.core.divergence import Exact, FixedProbe, Hutchinson, Orthogonal
from scoremle.core.pixels import Pixels, bits_per_dim
from scoremle.errors import UserError
from scoremle.likelihood import published_rk45
from scoremle.likelihood.ode import ode_log_likelihood
from scoremle.likelihood.published_rk45 import PublishedRK45


@pytest.mark.parametrize("name", ["vp", pytest.param("subvp", marks=pytest.mark.long)])
def test_it_gives_the_originals_numbers(name, golden):
    arrays, sde = golden("likelihood"), SDES[name]
    found = PublishedRK45().log_likelihood(
        golden_noise("ddpmpp", sde),
        sde,
        jnp.asarray(arrays["data"]),
        jnp.asarray(arrays["epsilon"]),
        eps=float(arrays[f"{name}/t_eps"]),
    )
    bpd = np.asarray(bits_per_dim(found.log_prob, Pixels(), 768))
    published = f"{name}/tol1e-5"
    np.testing.assert_allclose(bpd, arrays[f"{published}/bpd"], rtol=0, atol=5e-4)
    np.testing.assert_allclose(found.latent, arrays[f"{published}/z"], rtol=0, atol=2e-3)
    np.testing.assert_allclose(found.evaluations, arrays[f"{published}/nfe"], rtol=0.15)
    assert found.ok.all() and np.isnan(found.probe_stderr).all()


@pytest.mark.parametrize(
    "divergence", [Exact(), Hutchinson(2), Orthogonal(2), FixedProbe(jnp.ones((2, 1, 2)))], ids=str
)
def test_it_takes_one_probe_and_no_more(divergence):
    sde, x = SDES["vp"], jnp.ones((1, 2))
    with pytest.raises(ValueError, match="one random probe"):
        ode_log_likelihood(
            lambda x, t: sde.sigma(t)[:, None] * x, sde, x, jax.random.key(0),
            eps=1e-3, divergence=divergence, solver=PublishedRK45(),
        )  # fmt: skip


def test_a_row_without_a_rate_ends_and_changes_no_other(monkeypatch):
    rates, calls = published_rk45._rates, []

    def counted(*arguments):
        calls.append(arguments)
        assert len(calls) < 1000, "SciPy tries for ever"
        return rates(*arguments)

    monkeypatch.setattr(published_rk45, "_rates", counted)
    sde, x = SDES["vp"], jnp.asarray([[0.5, 1.0], [500.0, 0.0]])

    def noise(x, t):
        return jnp.where(jnp.abs(x[:, :1]) > 50, jnp.nan, sde.sigma(t)[:, None] * x)

    def found(x):
        return ode_log_likelihood(
            noise, sde, x, jax.random.key(0), eps=1e-3, solver=PublishedRK45()
        )  # fmt: skip

    both, one = found(x), found(x[:1])
    np.testing.assert_array_equal(both.ok, [True, False])
    assert np.isnan(both.log_prob[1])
    np.testing.assert_allclose(both.log_prob[0], one.log_prob[0], atol=1e-4)


def test_within_a_program_it_is_a_line():
    sde = SDES["vp"]

    def latent(x):
        return ode_log_likelihood(
            lambda x, t: sde.sigma(t)[:, None] * x, sde, x, jax.random.key(0),
            eps=1e-3, solver=PublishedRK45(),
        ).latent  # fmt: skip

    with pytest.raises(UserError, match="outside of jit"):
        jax.jit(latent)(jnp.ones((1, 2)))
