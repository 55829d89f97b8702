"""High-order losses against the numbers of their authors, and their minimum on a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.marks import some
from helpers.oracles import SDES, Gaussian
from helpers.vdm_networks import NETWORKS, golden_params

from scoremle.core.high_order import high_order_terms, second_order_loss
from scoremle.core.pixels import Pixels
from scoremle.core.prediction import noise_fn
from scoremle.core.schedules import LinearLogSNR
from scoremle.core.sde import SDE, VE
from scoremle.core.times import AlphaSquared, UniformTime


def score(params, x, std):
    """The small network of the golden file, which is a score of flattened images."""
    h = jnp.tanh(
        x.reshape(len(x), -1) @ params["W1"] / jnp.sqrt(1 + std**2)[:, None] + params["b1"]
        + 0.3 * jnp.log(std)[:, None] * params["c"]
    )  # fmt: skip
    return -((h @ params["W2"] + params["b2"]) / std[:, None]).reshape(x.shape)


@pytest.mark.parametrize("case", [
    "order1/plain", "order1/likelihood", "order2/plain", "order3/plain",
])  # fmt: skip
def test_golden_high_order_score_matching(case, golden):
    """The loss of each example and order, and its gradient by the parameters."""
    arrays, order = golden("dsm_high_order"), int(case[5])
    with jax.enable_x64(True):
        names = ("W1", "b1", "c", "W2", "b2")
        params = {name: jnp.asarray(arrays[f"params/{name}"], float) for name in names}
        x, t, z, v = (jnp.asarray(arrays[k], float) for k in ("x", "t", "z", "v"))
        sde = VE(0.01, 50.0)

        def loss(params):
            def noise(x, t):
                std = sde.sigma(t)
                return -std[:, None, None, None] * score(params, x, std)

            terms = high_order_terms(noise, sde, x, t, z, v, order=order)
            if "likelihood" in case:
                terms = terms * sde.likelihood_weight(t)[:, None]
            return terms.sum(axis=1).mean(), terms

        (value, terms), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(value, arrays[f"{case}/loss"], rtol=1e-9)
    np.testing.assert_allclose(terms, arrays[f"{case}/per_example"][:, :order], rtol=1e-9)
    for name, found in gradient.items():
        expected = arrays[f"{case}/grad/{name}"]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=1e-9 * scale, err_msg=name)


@some(
    "path, mode",
    [(path, mode) for path in ("VP", "SP") for mode in ("velocity_is", "velocity_uniform")],
    quick=[("VP", "velocity_is")],
)
def test_golden_second_order_loss(path, mode, golden, monkeypatch):
    """The network predicts a velocity, on both paths."""
    arrays = golden("idode")
    kernel, prediction = ("vp", "v") if path == "VP" else ("straight", "unit_u")
    sde = SDE(kernel, LinearLogSNR(-5.0, 13.3), 1.0)
    monkeypatch.setattr(jax.random, "uniform", lambda key: jnp.asarray(arrays["u0"]))
    times = AlphaSquared(sde, 0.0, True) if mode == "velocity_is" else UniformTime(0.0, True)
    x = jnp.asarray(Pixels().points[arrays["images"].astype(int)], jnp.float32)
    z, v = (jnp.asarray(arrays[k]) for k in ("eps", "v"))

    def loss(params):
        t, density = times(jax.random.key(0), 3)

        def network(x, label):
            return NETWORKS["idode"].apply({"params": params}, x, label)

        noise = noise_fn(network, sde, prediction=prediction)
        weight = sde.likelihood_weight(t) / density
        losses = second_order_loss(noise, sde, x, t, z, v, weight)
        return losses.mean(), losses

    params = golden_params("idode")
    (_, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(found, arrays[f"{path}/{mode}/loss_diff2"], rtol=5e-3)
    norm = np.sqrt(sum(np.square(np.asarray(leaf)).sum() for leaf in jax.tree.leaves(gradient)))
    assert norm == pytest.approx(float(arrays[f"{path}/{mode}/grad_l2/mean_loss_diff2"]), rel=5e-3)


def test_its_target_trace_is_that_of_a_gaussian():
    """sigma tr(d eps/dx) = D - E ||r||^2 of the exact prediction, at a point and on average."""
    sde, data, n = SDES["vp"], Gaussian.random(3, 4), 20_000
    noise = data.noise(sde)

    @jax.jit
    def run(x, key):
        t, z = jnp.full(n, 0.3), jax.random.normal(key, (n, 4))
        x_t = sde.perturb(x, t, z)
        jacobian = jax.jacobian(lambda y: noise(y[None], t[:1])[0])(x_t[0])
        return sde.sigma(0.3) * jnp.trace(jacobian), noise(x_t, t) - z

    trace, errors = run(jnp.asarray(data.draw(0, n), jnp.float32), jax.random.key(0))
    errors = np.square(np.asarray(errors, np.float64)).sum(axis=1)
    assert abs(trace - (4 - errors.mean())) < 4 * errors.std() / np.sqrt(n)


def test_the_second_order_loss_is_least_for_the_exact_prediction():
    """Varies the trace of a Gaussian's exact prediction; the error gets no gradient."""
    sde, data, n = SDES["vp"], Gaussian.random(3, 4), 20_000
    exact, x = data.noise(sde), jnp.asarray(data.draw(0, n), jnp.float32)

    @jax.jit
    @jax.grad
    def slopes_of(more):
        """Slopes of the loss of a prediction with another trace, whose values stay the same."""
        t, z = jnp.full(n, 0.3), jax.random.normal(jax.random.key(0), (n, 4))
        v = jax.random.rademacher(jax.random.key(1), (n, 4), float)
        x_t = sde.perturb(x, t, z)

        def noise(y, t):
            return exact(y, t) + more[:, None] * (y - x_t)

        return second_order_loss(noise, sde, x, t, z, v, jnp.ones(n)).sum()

    for more, expected in ((-0.3, -1), (0.0, 0), (0.3, 1)):
        slopes = np.asarray(slopes_of(np.full(n, more, np.float32)), np.float64)
        error = slopes.std() / np.sqrt(n)
        there = np.sign(slopes.mean()) * (abs(slopes.mean()) > 4 * error)
        assert there == expected
