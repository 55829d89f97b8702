"""Flow++ against the reference's numbers, the determinant of its Jacobian, and its own inverse."""

import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.flows import SMALL, golden_variables, tiny
from helpers.marks import some
from helpers.places import GOLDEN

from scoremle.errors import UserError
from scoremle.nn import flowpp
from scoremle.nn.flowpp import FlowPP

PUBLISHED = {
    "cifar10": FlowPP(),
    "imagenet32": FlowPP(variant="imagenet32", filters=128, blocks=8, couplings=8),
}
variants = some("variant", SMALL, quick=["cifar10"])


def forward(flow, variables, noise, x):
    return jax.jit(flow.apply)(variables, noise, x)


@pytest.fixture
def shallow(monkeypatch):
    """The deep processor with a single block: nothing else changes, and it compiles soon."""
    monkeypatch.setattr(flowpp, "DEEP", 1)


# --- the published flows ----------------------------------------------------------------------


@variants
def test_parameters_have_the_published_names_and_shapes(variant):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(PUBLISHED[variant].init, jax.random.key(0), image, image)["params"]
    found = {k: list(v.shape) for k, v in flax.traverse_util.flatten_dict(params, sep="/").items()}
    facts = json.loads((GOLDEN / f"dequantizer_{variant}_shapes.json").read_text())
    assert found == facts["shapes"]
    assert sum(p.size for p in jax.tree.leaves(params)) == facts["parameter_count"]


@variants
def test_golden_float64(variant, golden, x64):
    arrays = golden(f"dequantizer_{variant}")
    variables = golden_variables(arrays, np.float64)
    noise, x = (arrays[k].astype(np.float64) for k in ("eps", "x"))
    u, log_q = forward(SMALL[variant], variables, noise, x)
    np.testing.assert_allclose(u, arrays["u_f64"], atol=1e-12)
    np.testing.assert_allclose(log_q, -arrays["neg_log_density_f64"], atol=1e-9)


def test_golden_float32_and_its_inverse(golden):
    arrays = golden("dequantizer_cifar10")
    variables, flow = golden_variables(arrays, np.float32), SMALL["cifar10"]

    @jax.jit
    def both(noise, x):
        u, log_q = flow.apply(variables, noise, x)
        return u, log_q, *flow.apply(variables, jnp.asarray(arrays["u"]), x, inverse=True)

    u, log_q, noise, log_q_of_u = both(arrays["eps"], arrays["x"])
    np.testing.assert_allclose(u, arrays["u_f64"], atol=1e-6)
    np.testing.assert_allclose(log_q, -arrays["neg_log_density_f64"], atol=2e-3)
    # As far as the rounding of u, which lies near 1 in one place, allows (the reference: 1.2e-2).
    np.testing.assert_allclose(noise, arrays["eps"], atol=2e-2)
    np.testing.assert_allclose(log_q_of_u, log_q, atol=5e-2)


def test_golden_mixture(golden, x64):
    arrays = {k: v.astype(np.float64) for k, v in golden("dequantizer_cifar10").items()}
    x, logits, means, log_scales = (
        arrays[f"modules/{k}"] for k in ("x", "logits", "means", "logscales")
    )
    mixture = jax.nn.log_softmax(logits), means, log_scales
    y, log_derivative = flowpp.mixture_logits(x, *mixture)
    log_cdf = jax.nn.log_sigmoid(y)
    np.testing.assert_allclose(log_cdf, arrays["modules/logcdf"], atol=2e-5)
    log_pdf = log_derivative + log_cdf + jax.nn.log_sigmoid(-y)
    np.testing.assert_allclose(log_pdf, arrays["modules/logpdf"], atol=2e-5)
    np.testing.assert_allclose(flowpp.mixture_quantile(y, *mixture), x, rtol=1e-12, atol=1e-12)


# --- first values -----------------------------------------------------------------------------


@pytest.mark.parametrize("variant", SMALL)
def test_golden_first_normalisation(variant, golden):
    """Without randomness: statistics of each pixel over the batch."""
    arrays = golden(f"dequantizer_{variant}")
    pair = flowpp.split_columns(arrays["init/batch_eps"])
    norm = flowpp.Norm()
    params = norm.init(jax.random.key(0), pair, False)["params"]
    for name, value in params.items():
        np.testing.assert_allclose(value, arrays[f"init/Norm_0/{name}"], atol=2e-5)
    (a, b), _ = norm.apply({"params": params}, pair, False)
    for half in (a, b):
        np.testing.assert_allclose(np.mean(half, axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(np.std(half, axis=0), 1, atol=1e-4)


def test_golden_first_gains(golden):
    """The reference measures its CIFAR-10 convolution with height and width not yet exchanged."""
    arrays = {k.removeprefix("init/"): v for k, v in golden("dequantizer_cifar10").items()}
    x, raw = arrays["x"], 0.05 * arrays["raw_conv"]
    y = flowpp.convolve_same(x, raw)
    s = flowpp.gain(y, 0.1)
    np.testing.assert_allclose(raw * s, arrays["conv2d_cifar10/W"], atol=2e-5)
    bias = -jnp.mean(y * s, axis=(0, 1, 2))
    np.testing.assert_allclose(bias, arrays["conv2d_cifar10/b"], atol=2e-5)
    out = flowpp.convolve_same(x, (raw * s).swapaxes(0, 1)) + bias
    np.testing.assert_allclose(out, arrays["conv2d_cifar10/y"], atol=2e-5)
    direction = flowpp.unit_kernel(arrays["conv2d_imagenet32/V"])
    g = flowpp.gain(flowpp.convolve_same(x, direction), 0.1)
    np.testing.assert_allclose(g, arrays["conv2d_imagenet32/g"], atol=2e-5)


class Both(flowpp.Layers):
    """A convolution and a matrix, as ``Layers`` begins them."""

    @flowpp.nn.compact
    def __call__(self, x):
        return self.conv("conv", x, 7, 0.1), self.dense("nin", x, 5)


@pytest.mark.parametrize("weight_norm", [False, True])
def test_layers_begin_normalised_on_the_first_batch(weight_norm, golden):
    x = golden("dequantizer_cifar10")["init/x"]
    (y, z), variables = Both(weight_norm=weight_norm).init_with_output(jax.random.key(0), x)
    weights = {name: w for name, w in variables["params"].items() if name[-1] in "VW"}
    assert len(weights) == 2 and all(w.min() < 0 < w.max() for w in weights.values())
    for out, scale in ((y, 0.1), (z, 1.0)):
        np.testing.assert_allclose(np.mean(out, axis=(0, 1, 2)), 0, atol=1e-6)
        np.testing.assert_allclose(np.std(out, axis=(0, 1, 2)), scale, rtol=1e-3)


# --- a bijection, with its density ------------------------------------------------------------


@variants
def test_log_density_is_that_of_the_jacobian(variant, x64, shallow):
    flow, variables, noise, x = tiny(variant)

    @jax.jit
    def run(noise, x):
        u, log_q = flow.apply(variables, noise, x)

        def one(e):
            return flow.apply(variables, e.reshape(noise.shape[1:])[None], x[:1])[0].ravel()

        return u, log_q, jax.jacfwd(one)(noise[0].ravel())

    @jax.jit
    def back(u, x):
        return flow.apply(variables, u, x, inverse=True)

    u, log_q, jacobian = run(noise, x)
    e = noise[0].ravel()
    expected = -0.5 * np.sum(e**2 + np.log(2 * np.pi)) - np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(log_q[0], expected, rtol=1e-10)
    again, log_q_of_u = back(u, x)
    np.testing.assert_allclose(again, noise, atol=1e-9)
    np.testing.assert_allclose(log_q_of_u, log_q, atol=1e-9)


def test_u_stays_inside_and_the_density_finite_far_out():
    flow, variables, noise, x = tiny("cifar10")
    variables = jax.tree.map(lambda p: p.astype(np.float32), variables)
    far = np.concatenate([np.full_like(noise[:1], v) for v in (-200, 0, 200)]).astype(np.float32)
    u, log_q = forward(flow, variables, far, x.astype(np.float32))
    assert u.dtype == np.float32
    assert u.min() > 0 and u.max() < 1
    assert (u[0] < 1e-6).any() and (u[2] > 1 - 1e-6).any()  # so that it was a test
    assert np.isfinite(log_q).all()


def test_one_image_does_not_depend_on_its_neighbours():
    flow, variables, noise, x = tiny("cifar10")
    u, log_q = forward(flow, variables, noise, x)
    noise[1:], x[1:] = 0.3, 0.9
    other, other_log_q = forward(flow, variables, noise, x)
    np.testing.assert_allclose(u[0], other[0], rtol=1e-5)
    np.testing.assert_allclose(log_q[0], other_log_q[0], rtol=1e-5)
    assert abs(log_q[1] - other_log_q[1]) > 1


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flow", "width", "message"),
    [
        (FlowPP("cifar"), 4, "variant is"),
        (FlowPP(filters=6), 4, "heads=4"),
        (FlowPP(filters=0), 4, "filters must"),
        (FlowPP(components=0), 4, "components must"),
        (FlowPP(heads=0), 4, "heads must"),
        (FlowPP(), 5, "size 4x5"),
    ],
)
def test_mistakes(flow, width, message):
    image = jnp.zeros((1, 4, width, 1))
    with pytest.raises(UserError, match=message):
        jax.eval_shape(flow.init, jax.random.key(0), image, image)
