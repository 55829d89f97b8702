"""Bijectors: their determinants by automatic differentiation, the way back, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoremle import VP, Affine, Bounded, Chain, ScoreModel, UserError
from scoremle.core.bijectors import AtTime

inf = np.inf
MIXED = Bounded(np.asarray([-inf, 0.0, -inf, -2.0]), np.asarray([inf, inf, 1.0, 3.0]))
X = np.asarray([[-5.0, 0.3, -7.0, -1.9], [0.0, 40.0, 0.9, 0.5], [12.0, 1e-3, 0.0, 2.99]])
MAPS = {
    "affine": Affine(0.5, -2.0),
    "affine of each dimension": Affine(np.arange(4.0), np.asarray([0.1, 1.0, 3.0, 20.0])),
    "standardizing": Affine.standardizing(X),
    "positive": Bounded(low=-8.0),
    "below a bound": Bounded(high=50.0),
    "interval": Bounded(-8.0, 50.0),
    "one of each kind": MIXED,
    "chain": Chain((MIXED, Affine.standardizing(np.asarray(MIXED.forward(X)[0])))),
    "chain of none": Chain(()),
    "at a time": AtTime(VP(), 0.5),
}
every_map = pytest.mark.parametrize("name", MAPS)


@every_map
def test_determinants_are_those_of_the_derivative(name, x64):
    x, bijector = jnp.asarray(X), MAPS[name]

    @jax.jit
    def derivatives(x):
        jacobian = jax.vmap(jax.jacfwd(lambda x: bijector.forward(x[None])[0][0]))(x)
        slope = jax.grad(lambda x: bijector.forward(x)[1].sum())(x)
        return bijector.forward(x)[1], jacobian, slope

    log_det, jacobian, slope = derivatives(x)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-12, atol=1e-12)
    assert np.isfinite(slope).all()


@every_map
def test_there_and_back(name, x64):
    x, bijector = jnp.asarray(X), MAPS[name]

    @jax.jit
    def inverse(z):
        return bijector.inverse(z), jax.vmap(jax.jacfwd(lambda z: bijector.inverse(z[None])[0]))(z)

    z, log_det = jax.jit(bijector.forward)(x)
    again, back = inverse(z)
    np.testing.assert_allclose(again, x, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.linalg.slogdet(back)[1], -log_det, rtol=1e-7, atol=1e-9)


def test_logarithm_and_logit_are_those():
    x = np.asarray([[0.2], [0.7]], np.float32)
    np.testing.assert_allclose(Bounded(low=0.0).forward(x)[0], np.log(x), rtol=1e-6)
    np.testing.assert_allclose(Bounded(0.0, 1.0).forward(x)[0], np.log(x / (1 - x)), rtol=1e-6)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, inf), (-inf, 0.0), (-2.0, 3.0)])
def test_rounding_leads_to_no_bound(bounds):
    z = jnp.asarray([[-200.0], [-40.0], [40.0], [200.0]])
    x = Bounded(*bounds).inverse(jnp.clip(z, -80, 80) if inf in np.abs(bounds) else z)
    assert jnp.isfinite(Bounded(*bounds).forward(x)[0]).all()


def test_images_are_vectors_with_more_axes():
    """A number for all dimensions counts once for each."""
    x = jnp.ones((2, 3, 4, 1))
    np.testing.assert_allclose(Affine(0.0, 2.0).forward(x)[1], -12 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("way", ["forward", "inverse"])
@pytest.mark.parametrize(
    "bijector",
    [
        Affine(np.zeros(3), 2.0), Affine(0.0, np.ones(3)), Affine(np.zeros((2, 1)), 1.0),
        Bounded(np.zeros(3)), Chain((Bounded(high=np.full(3, 2.0)),)),
    ],
)  # fmt: skip
def test_data_are_not_broadcast(bijector, way):
    """Each example would have three dimensions, or a map of its own."""
    with pytest.raises(UserError, match="each dimension"):
        getattr(bijector, way)(np.ones((2, 1), np.float32))


def test_whole_numbers_are_at_the_same_time_as_reals(unchecked):
    at, x = AtTime(VP(), 0.5), np.asarray([[1, 2]])
    for way in (lambda x: at.forward(x)[0], lambda x: at.forward(x)[1], at.inverse):
        np.testing.assert_array_equal(way(x), way(x.astype(np.float32)))


def test_standardized_data_have_mean_0_and_standard_deviation_1():
    z, _ = Affine.standardizing(X).forward(X)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-6)


def test_what_is_no_bijection_is_refused(unchecked):
    with pytest.raises(ValueError, match="Affine: scale"):
        Affine(np.arange(99.0), np.arange(99.0))
    with pytest.raises(ValueError, match="Bounded: low"):
        Bounded(1.0, 1.0)
    with pytest.raises(UserError, match="all examples"):
        Affine.standardizing(np.ones((5, 2)))
    with pytest.raises(UserError, match="all examples"):  # whose mean is rounded
        Affine.standardizing(np.full((100, 2), 0.1))


class Half:
    """z = x / 2 of vectors of three dimensions, or nearly so."""

    def __init__(self, kind):
        self.kind = kind

    def forward(self, x):
        each = jnp.full(x.shape, np.log(0.5))
        return {
            "right": lambda: (x / 2, each.sum(1)), "of each": lambda: (x / 2, each),
            "column": lambda: (x / 2, each[:, :1]), "narrower": lambda: (x[:, :1], each.sum(1)),
            "none": lambda: (x / 2, None), "alone": lambda: x / 2,
            "three": lambda: (x, each.sum(1), x),
        }[self.kind]()  # fmt: skip

    def inverse(self, z):
        return 2 * z[:, :1] if self.kind == "narrower" else 2 * z


def model_of_half(kind, within):
    own, sde = Chain((Half(kind),)) if within else Half(kind), VP()
    return ScoreModel(lambda x, t: sde.sigma(t)[:, None] * x, sde, 1e-3, (3,), bijector=own)


@pytest.mark.parametrize("within", ["", "chain"])
def test_a_map_of_ones_own_is_a_bijector(within, unchecked):
    found = model_of_half("right", within).log_prob(np.zeros((3, 3)), jax.random.key(0)).log_prob
    np.testing.assert_allclose(found, 3 * (np.log(0.5) - np.log(2 * np.pi) / 2), atol=1e-3)


@pytest.mark.parametrize("within", ["", "chain"])
@pytest.mark.parametrize("kind", ["of each", "column", "narrower", "none", "alone", "three"])
def test_what_a_map_of_ones_own_gives_is_checked(kind, within, unchecked):
    model = model_of_half(kind, within)
    with pytest.raises(UserError, match="forward"):
        model.log_prob(np.zeros((3, 3)), jax.random.key(0))
    if kind == "narrower":
        with pytest.raises(UserError, match="inverse"):
            model.sample(2, jax.random.key(0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Affine(0.0, 1e39), "scale"),
        (lambda: Affine(0.0, 1e-39), "scale"),
        (lambda: Affine(1e39, 1.0), "shift must"),
        (lambda: Affine("a", 1.0), "shift is no"),
        (lambda: Affine(np.zeros(3), np.ones(2)), "go together"),
        (lambda: Affine.standardizing(np.zeros((0, 3))), "two examples"),
        (lambda: Affine.standardizing(np.zeros((1, 3))), "two examples"),
        (lambda: Affine.standardizing(1e-39 * np.arange(1.0, 7).reshape(3, 2)), "scale"),
        (lambda: Bounded(np.zeros(2), np.ones(3)), "go together"),
        (lambda: Bounded(0.0, None), "high"),
        (lambda: Bounded("a", 1.0), "low is no"),
        (lambda: Bounded(np.nan, 1.0), "below high"),
    ],
)
def test_what_is_wrong_with_numbers_is_named(make, words, unchecked):
    with pytest.raises(UserError, match=words):
        make()
