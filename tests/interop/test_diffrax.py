"""A solver of diffrax along the probability flow, beside many steps and the closed form."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.oracles import EPS, SDES, Mixture

import scoremle
from scoremle.interop.diffrax import ByDiffrax

SDE, EPS_, DATA = SDES["vp"], EPS["vp"], Mixture.on_line()


def log_prob(x, solver):
    return scoremle.ode_log_likelihood(
        DATA.noise(SDE), SDE, x, jax.random.key(0), eps=EPS_, solver=solver
    )


@pytest.mark.long
def test_a_solver_of_diffrax_is_within_its_stated_error_of_a_mixture():
    diffrax = pytest.importorskip("diffrax")
    x = DATA.draw(0, 40).astype(np.float32)
    found = log_prob(x, ByDiffrax(diffrax.Tsit5(), 1e-4))
    error = np.abs(found.log_prob - DATA.log_model(SDE, x.astype(np.float64), EPS_))
    assert np.mean(error <= found.solver_error + 1e-5) >= 0.9 and np.max(error) < 5e-3
    assert np.ptp(found.evaluations) == 0 and 40 < found.evaluations[0] < 400
    with pytest.raises(scoremle.UserError, match="Tsit5"):
        ByDiffrax(diffrax.Kvaerno3())
    with pytest.raises(scoremle.UserError, match="below"):
        ByDiffrax(diffrax.Dopri5(), 0.03)


@pytest.mark.long
def test_its_values_and_gradients_are_those_of_many_steps():
    diffrax = pytest.importorskip("diffrax")
    x, many = jnp.asarray(DATA.draw(0, 40), jnp.float32), scoremle.Multistep(256)
    values = [log_prob(x, by).log_prob for by in (ByDiffrax(diffrax.Tsit5(), 1e-4), many)]
    np.testing.assert_allclose(*values, atol=5e-3)
    slopes = [
        jax.grad(lambda x, by=by: log_prob(x, by).log_prob.sum())(x[:4])
        for by in (ByDiffrax(diffrax.Tsit5()), many)
    ]
    np.testing.assert_allclose(*slopes, rtol=0.01, atol=0.01)


def test_rows_that_are_not_finite_and_no_rows_leave_the_others_as_they_are():
    diffrax = pytest.importorskip("diffrax")

    def far_is_lost(x, t):  # of N(0, 4 I)
        alpha, sigma = SDE.alpha(t)[:, None], SDE.sigma(t)[:, None]
        return jnp.where(jnp.abs(x) > 50, jnp.nan, sigma * x / (4 * alpha**2 + sigma**2))

    x = np.array([[0.1, -0.3], [60.0, 0.0], [1.0, 0.2]], np.float32)
    found, fine, none = (
        scoremle.ode_log_likelihood(
            far_is_lost, SDE, rows, jax.random.key(0), eps=EPS_,
            solver=ByDiffrax(diffrax.Tsit5()),
        )
        for rows in (x, x[[0, 2, 2]], x[:0])
    )  # fmt: skip
    assert np.isnan(found.log_prob[1]) and none.log_prob.shape == (0,)
    # Where one is NaN, diffrax measures an error by the sizes before the step.
    others = found.log_prob[np.array([0, 2])]
    np.testing.assert_allclose(others, fine.log_prob[:2], atol=np.max(fine.solver_error))


def test_without_diffrax_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(scoremle.UserError, match=r"scoremle\[diffrax\]"):
        ByDiffrax(None)
