"""Divergence of a vector field, exact or by the Skilling-Hutchinson estimate.

    tr J = E[ v^T J v ],     E[v v^T] = I

An estimator draws its probes and then, at a point, gives the field's value and its estimates of
the divergence from forward-mode derivatives: all probes share one evaluation of the field.
Rademacher probes have the smaller variance, 2 sum_{i != j} A_ij^2 against 2 ||A||_F^2 for Gaussian
ones (A symmetrised). k orthogonal probes in D dimensions cover a share k/D of the trace.

How large the error of an estimate is shows in its parts, a number for each dimension: in thousands
of dimensions those of a single estimate give its variance to a few hundredths. They are

    sqrt(2) v_i (Jv)_i  (Rademacher),    sqrt(2) (Jv)_i  (Gaussian)

whose variances have the sum 2 (||J||^2 - sum_i J_ii^2), or 2 ||J||^2: that of the estimate if J is
symmetric, as of a gradient, and else more.
"""

import math
from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from scoremle.core.arguments import as_array, check_choice, check_count
from scoremle.core.keys import example_keys, fold_in, per_example
from scoremle.core.pytree import frozen_pytree, frozen_static
from scoremle.errors import UserError
from scoremle.numerics import dims_of, expand
from scoremle.types import AnyArray, Data, Keys

__all__ = [
    "DivergenceEstimator", "Estimates", "Exact", "FixedProbe", "Hierarchical", "Hutchinson",
    "Orthogonal", "Probes",
]  # fmt: skip

Probes = Float[Array, "k b *d"]
# The field, estimates of its divergence, and parts of each, whose variances add up to its own.
Estimates = tuple[Data, Float[Array, "m b"], Float[Array, "m b *k"]]
Field = Callable[[Data], Data]

DISTRIBUTIONS = {"rademacher": jax.random.rademacher, "gaussian": jax.random.normal}


@runtime_checkable
class DivergenceEstimator(Protocol):
    """Draws probes for a batch; then estimates divergences with them.

    ``random``: another key draws other probes.
    """

    @property
    def random(self) -> bool: ...

    def draw(self, key: Keys, x: Data) -> Probes:
        """Draws the probes.

        Args:
            key: one, or one for each example.
            x: [b *d] data, whose shape and type the probes have.
        """
        ...

    def __call__(self, field: Field, x: Data, probes: Probes) -> Estimates:
        """The field at ``x``, and ``m`` exchangeable estimates of its divergence with their parts.

        The variances of an estimate's parts, over draws, have that of the estimate for their sum.
        Of an estimate that is not random there are no parts.
        """
        ...

    def deviations(self, estimates: Float[Array, "m b"]) -> Float[Array, "m b"]:
        """Scaled deviations of several estimates, or of their integrals, from their mean.

        The sum of their squares is the variance of the mean. NaN for a single random estimate.

        Args:
            estimates: [m b].
        """
        ...


def _products(field: Field, x: Data, probes: Probes) -> tuple[Data, Probes]:
    """The field at ``x``, and its Jacobian times each probe."""

    # The value does not depend on the probe, so vmap computes it once.
    def push(v: Data) -> tuple[Data, Data]:
        return jax.jvp(field, (x,), (v,))

    return jax.vmap(push, out_axes=(None, 0))(probes)


def _dot(a: Probes, b: Probes) -> Float[Array, "k b"]:
    return jnp.sum(a * b, axis=tuple(range(2, a.ndim)))


class _Sampled:
    """Base of the estimators by random probes."""

    random = True

    def __call__(self, field: Field, x: Data, probes: Probes) -> Estimates:
        value, jv = _products(field, x, probes)
        return value, _dot(probes, jv), self._parts(probes, jv)

    def _parts(self, probes: Probes, jv: Probes) -> Float[Array, "m b *k"]:
        return jnp.zeros((*probes.shape[:2], 0), jv.dtype)

    def deviations(self, estimates: Float[Array, "m b"]) -> Float[Array, "m b"]:
        m = len(estimates)
        if m == 1:
            return jnp.full_like(estimates, jnp.nan)
        return (estimates - jnp.mean(estimates, axis=0)) / math.sqrt(m * (m - 1))


@frozen_static
class Hutchinson(_Sampled):
    """Independent random probes for each example.

    Args:
        probes: how many. The work grows with their number.
        distribution: "rademacher" or "gaussian".

    Raises UserError for less than one probe, and another distribution.

    Example:
        >>> x, hutchinson = jnp.ones((1, 2)), scoremle.Hutchinson(probes=2)
        >>> probes = hutchinson.draw(jax.random.key(0), x)
        >>> print(hutchinson(lambda x: 3 * x, x, probes)[1])  # of each probe
        [[6.]
         [6.]]
    """

    probes: int = 1
    distribution: Literal["rademacher", "gaussian"] = "rademacher"

    def __post_init__(self) -> None:
        check_count("probes", self.probes)
        check_choice("distribution", self.distribution, DISTRIBUTIONS)

    def draw(self, key: Keys, x: Data) -> Probes:
        """Draws independent probes.

        Args:
            key: one, or one for each example.
            x: [b *d] data, whose shape and type the probes have.
        """
        keys, shape = example_keys(key, len(x)), (self.probes, *x.shape[1:])
        probes = per_example(DISTRIBUTIONS[self.distribution], keys, shape, x.dtype)
        return jnp.moveaxis(probes, 1, 0)

    def _parts(self, probes: Probes, jv: Probes) -> Probes:
        return math.sqrt(2) * (probes * jv if self.distribution == "rademacher" else jv)


@frozen_static
class Orthogonal(_Sampled):
    """A random frame of orthogonal vectors for each example.

    Args:
        probes: how many vectors, at most as many as dimensions.

    Raises UserError for less than one probe, and for more than dimensions.

    Example:
        >>> x, orthogonal = jnp.ones((1, 2)), scoremle.Orthogonal(2)
        >>> probes = orthogonal.draw(jax.random.key(0), x)
        >>> matrix = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
        >>> estimates = orthogonal(lambda x: x @ matrix, x, probes)[1]
        >>> print(f"{estimates.mean():.3f}")  # the trace: as many probes as dimensions
        5.000
    """

    probes: int = 2

    def __post_init__(self) -> None:
        check_count("probes", self.probes)

    def draw(self, key: Keys, x: Data) -> Probes:
        """Draws probes that are orthogonal to each other.

        Args:
            key: one, or one for each example.
            x: [b *d] data, whose shape and type the probes have.

        Raises UserError for more probes than dimensions.
        """
        dims = dims_of(x)
        if self.probes > dims:
            raise UserError(f"{self.probes} orthogonal probes do not fit in {dims} dimensions")
        keys = example_keys(key, len(x))
        block = per_example(jax.random.normal, keys, (dims, self.probes), x.dtype)
        frame, upper = jnp.linalg.qr(block)
        signs = jnp.sign(jnp.diagonal(upper, axis1=1, axis2=2))  # without them they are not random
        frame *= signs[:, None] * jnp.sqrt(jnp.asarray(dims, x.dtype))
        return jnp.moveaxis(frame, 2, 0).reshape(self.probes, *x.shape)

    def __call__(self, field: Field, x: Data, probes: Probes) -> Estimates:
        value, estimates, parts = super().__call__(field, x, probes)
        # Probes drawn without replacement have a smaller error than their spread suggests: the
        # correction of a finite population. The mean stays.
        mean = jnp.mean(estimates, axis=0)
        less = math.sqrt(1 - self.probes / dims_of(x))
        return value, mean + less * (estimates - mean), parts

    def _parts(self, probes: Probes, jv: Probes) -> Probes:
        # Along a probe, whose length is given, nothing is random.
        dims = dims_of(probes[0])
        across = jv - probes * expand(_dot(probes, jv) / dims, jv)
        return math.sqrt(2 * (dims - self.probes) / max(dims - 1, 1)) * across


@frozen_static
class Hierarchical(_Sampled):
    """Rademacher probes that change their signs from step to step, so that most errors cancel.

    An example has two probes at random, for even and for odd steps. At the k-th of its steps a
    probe is multiplied by the k-th Walsh function of the place in the example: the first ones
    differ between neighbours, later ones between places that lie further apart. The estimate of
    each step is unbiased, as one by ``Hutchinson``, and the integral over the steps has a smaller
    error. How much smaller depends on the Jacobian: it should change slowly along the path, and
    its elements off the diagonal should be large for neighbours alone, as those of images. From
    the difference between even and odd steps, element by element, the error is known.

    A solver that holds its probe has one as by ``Hutchinson``.

    Args:
        probes: how many for each step. The work grows with their number.

    Raises UserError for less than one probe.

    Example:
        >>> images = scoremle.data.load("digits").test[:2]
        >>> by_ode = scoremle.ByOde(divergence=scoremle.Hierarchical())
        >>> scores = scoremle.load("digits").score(images, estimator=by_ode)
        >>> print(bool((scores.probe_stderr < 0.05).all()))  # bits/dim
        True
    """

    probes: int = 1

    def __post_init__(self) -> None:
        check_count("probes", self.probes)

    def draw(self, key: Keys, x: Data) -> Probes:
        """Draws the probes of the first step.

        Args:
            key: one, or one for each example.
            x: [b *d] data, whose shape and type the probes have.
        """
        return Hutchinson(self.probes).draw(key, x)

    def draw_at(self, keys: Keys, number: Int[Array, ""] | np.integer | int, x: Data) -> Probes:
        """Draws the probes of a step.

        Args:
            keys: one for each example.
            number: of the step.
            x: [b *d] data, whose shape and type the probes have.
        """
        walsh = jax.lax.population_count((number // 2) & jnp.asarray(_places(x.shape[1:])))
        return self.draw(fold_in(keys, number % 2), x) * (1 - 2 * (walsh & 1)).astype(x.dtype)

    def _parts(self, probes: Probes, jv: Probes) -> Probes:
        return math.sqrt(2) * probes * jv


def _places(shape: tuple[int, ...]) -> Integer[np.ndarray, "*d"]:
    """Numbers of the places in an example: in their lowest bits neighbours differ.

    Bit by bit of the coordinates, from the lowest: whether their sum is odd, then each but the
    last, which follows from these.
    """
    coordinates, bits = np.indices(shape, np.int32), []
    for level in range(max(shape, default=0).bit_length()):
        own = [c >> level & 1 for c in coordinates if np.max(c) >> level]
        bits += [np.bitwise_xor.reduce(own), *own[:-1]] if own else []
    return sum((bit << i for i, bit in enumerate(bits[:31])), np.zeros(shape, np.int32))


@frozen_pytree(eq=False)
class FixedProbe(_Sampled):
    """Probes that the caller gives, to repeat an estimate or to compare solvers.

    Args:
        vectors: [k b *d], the k probes of each example.

    Raises UserError for what is not an array of numbers, and, when a trace is taken, for probes of
    another shape than the data's.

    Example:
        >>> x, fixed = jnp.ones((1, 2)), scoremle.FixedProbe(jnp.ones((1, 1, 2)))
        >>> probes = fixed.draw(jax.random.key(0), x)
        >>> print(fixed(lambda x: 3 * x, x, probes)[1])
        [[6.]]
    """

    vectors: Float[AnyArray, "k b *d"]

    random = False

    def __repr__(self) -> str:
        return f"FixedProbe({len(self.vectors)} given)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "vectors", as_array(self.vectors, "vectors"))

    def draw(self, key: Keys, x: Data) -> Probes:
        """Gives the probes that it was made with.

        Args:
            key: not used.
            x: [b *d] data, whose shape the probes must have.

        Raises UserError for vectors of another shape than an example's.
        """
        if self.vectors.shape[1:] != x.shape:
            shape = ", ".join(map(str, ("k", *x.shape)))
            raise UserError(f"vectors must have shape ({shape}), not {self.vectors.shape}")
        return jnp.asarray(self.vectors, x.dtype)


@frozen_static
class Exact:
    """The exact trace: a derivative along each dimension, ``block`` of them at once.

    Memory is that of the network on so many batches at once, whatever the number of dimensions. In
    work, D dimensions cost D derivatives, and one evaluation of the field a block.

    Args:
        block: how many derivatives at once.

    Raises UserError for a block below 1.

    Example:
        >>> x, exact = jnp.ones((1, 2)), scoremle.Exact()
        >>> probes = exact.draw(jax.random.key(0), x)
        >>> print(exact(lambda x: 3 * x, x, probes)[1])
        [[6.]]
    """

    block: int = 64

    random = False

    def __post_init__(self) -> None:
        check_count("block", self.block)

    def draw(self, key: Keys, x: Data) -> Probes:
        """Draws no probes: unit vectors are made a block at a time.

        Args:
            key: not used.
            x: [b *d] data, whose shape and type the probes have.
        """
        return jnp.zeros((0, *x.shape), x.dtype)

    def __call__(self, field: Field, x: Data, probes: Probes) -> Estimates:
        dims = dims_of(x)
        no_parts = jnp.zeros((1, len(x), 0), x.dtype)
        blocks = -(-dims // self.block)
        size = -(-dims // max(blocks, 1))

        def part(first: Array | int) -> tuple[Data, Float[Array, " b"]]:
            # Rows behind the last dimension are zero, and add nothing.
            rows = jnp.eye(size, dims, k=first, dtype=x.dtype).reshape(size, 1, *x.shape[1:])
            rows = jnp.broadcast_to(rows, (size, *x.shape))
            value, columns = _products(field, x, rows)
            return value, jnp.sum(_dot(rows, columns), axis=0)

        if blocks <= 1:
            value, trace = part(0)
            return value, trace[None], no_parts
        # The backward pass computes each block anew, so that it takes the memory of one block.
        value, traces = jax.lax.map(jax.checkpoint(part), size * jnp.arange(blocks))
        return value[0], jnp.sum(traces, axis=0, keepdims=True), no_parts

    def deviations(self, estimates: Float[Array, "m b"]) -> Float[Array, "m b"]:
        return jnp.zeros_like(estimates)
