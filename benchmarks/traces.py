"""What probes leave of a trace, at equal cost.

    python benchmarks/traces.py
    python benchmarks/traces.py --subjects=mixture

Jacobians of the probability flow's field, whole, at the 33 nodes of the default call, of noised
images; each estimator draws anew at each node, many times. The table has the standard error of
one image's likelihood that this leaves, in bits/dim, by the number of derivatives (Jacobian times
vector) at each node. Subjects: the digits network that ships with the package; and a mixture of
six Gaussians in 64 dimensions, in closed form.

Hutch++ (Meyer, Musco, Musco, Woodruff, arXiv 2010.09649) takes a third of its derivatives each to
find a subspace, for the trace in it, and for the rest; XTrace (Epperly, Tropp, Webber, arXiv
2301.07825) a half each for the first two, and leaves each vector out in turn. The control variate
takes v'Jv - v'J_G v + tr J_G, where J_G is the Jacobian of a Gaussian with the mean and covariance
of other images: known, and without an evaluation of the network. The best one multiplies J_G by
the coefficient that is best at each node for these very images: no fit could do better.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import scoremle
from scoremle.core.sde import SDE
from scoremle.data.readers.digits import load_digits
from scoremle.evaluation import tables
from scoremle.solvers.multistep import Multistep, plan
from scoremle.solvers.probability_flow import WIDTH, ProbabilityFlow
from scoremle.types import Data, NoiseFn, PRNGKey

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from helpers.oracles import Mixture

KEY = jax.random.key(0)
IMAGES, DRAWS = 8, 128
DERIVATIVES = (1, 2, 6, 12)
Matrix = Float[Array, "D D"]
Estimator = Callable[[PRNGKey, Matrix, int], Float[Array, ""]]


def signs(key: PRNGKey, dims: int, count: int) -> Float[Array, "D k"]:
    return jax.random.rademacher(key, (dims, count), float)


def quadratic(A: Matrix, V: Float[Array, "D k"]) -> Float[Array, ""]:
    """The sum of v'Av over the columns."""
    return jnp.sum(V * (A @ V))


def off(Q: Float[Array, "D k"], V: Float[Array, "D m"]) -> Float[Array, "D m"]:
    """What is orthogonal to the columns of Q."""
    return V - Q @ (Q.T @ V)


def hutchinson(key: PRNGKey, A: Matrix, k: int) -> Float[Array, ""]:
    return quadratic(A, signs(key, len(A), k)) / k


def gaussian(key: PRNGKey, A: Matrix, k: int) -> Float[Array, ""]:
    return quadratic(A, jax.random.normal(key, (len(A), k))) / k


def orthogonal(key: PRNGKey, A: Matrix, k: int) -> Float[Array, ""]:
    frame = jnp.linalg.qr(jax.random.normal(key, (len(A), k)))[0]
    return quadratic(A, frame) * len(A) / k


def hutch_plus_plus(key: PRNGKey, A: Matrix, k: int) -> Float[Array, ""]:
    first, second = jax.random.split(key)
    Q = jnp.linalg.qr(A @ signs(first, len(A), k // 3))[0]
    rest = off(Q, signs(second, len(A), k // 3))
    return quadratic(A, Q) + quadratic(A, rest) / (k // 3)


def xtrace(key: PRNGKey, A: Matrix, k: int) -> Float[Array, ""]:
    m = k // 2
    V = signs(key, len(A), m)
    images = A @ V

    def without(i: int) -> Float[Array, ""]:
        Q = jnp.linalg.qr(jnp.delete(images, i, axis=1))[0]
        return quadratic(A, Q) + quadratic(A, off(Q, V[:, i : i + 1]))

    return jnp.mean(jnp.stack([without(i) for i in range(m)]))


# The fewest derivatives of each.
ESTIMATORS: dict[str, tuple[Estimator, int]] = {
    "Hutchinson, Rademacher": (hutchinson, 1),
    "Hutchinson, Gaussian": (gaussian, 1),
    "orthogonal": (orthogonal, 1),
    "Hutch++": (hutch_plus_plus, 3),
    "XTrace": (xtrace, 4),
}


@dataclass(frozen=True)
class Jacobians:
    """Of the field and of the Gaussian's field, at each node and image, and the nodes' weights."""

    field: Float[Array, "n b D D"]
    of_gaussian: Float[Array, "n b D D"]
    weights: Float[np.ndarray, " n"]

    @classmethod
    def of(cls, noise: NoiseFn, sde: SDE, eps: float, x: Data, others: Data) -> "Jacobians":
        flat = np.asarray(others, np.float64).reshape(len(others), -1)
        mean, covariance = flat.mean(axis=0), np.cov(flat, rowvar=False)
        variances, axes = (jnp.asarray(a, jnp.float32) for a in np.linalg.eigh(covariance))

        def of_data(x: Data, t: Array) -> Data:
            """The Gaussian's noise prediction."""
            alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
            along = (x.reshape(len(x), -1) - alpha * mean) @ axes
            scaled = along * sigma / (jnp.square(alpha) * variances + jnp.square(sigma))
            return (scaled @ axes.T).reshape(x.shape)

        def matrices(noise: NoiseFn) -> Float[Array, "n b D D"]:
            flow = ProbabilityFlow(noise, sde)
            start, stop = flow.span(eps, x.dtype)

            def one(u: Data, clock: Array) -> Matrix:
                value = flow.velocity(clock[None], u.reshape(x[:1].shape))
                return value.ravel()

            @jax.jit
            def at(node: Array, z: Data) -> Float[Array, "b D D"]:
                clock = start + (stop - start) * node
                t = sde.time_of_log_snr(WIDTH * jnp.sinh(clock))
                u = (sde.alpha(t) * x + sde.sigma(t) * z) / jnp.exp(flow.log_rho(t))
                return jax.vmap(jax.jacfwd(one), (0, None))(u.reshape(len(x), -1), clock)

            return jnp.stack([
                at(node, jax.random.normal(jax.random.fold_in(KEY, n), x.shape))
                for n, node in enumerate(jnp.asarray(nodes.node, x.dtype))
            ])  # fmt: skip

        nodes = plan(Multistep().nodes)
        span = np.diff(ProbabilityFlow(noise, sde).span(eps, x.dtype))[0]
        return cls(matrices(noise), matrices(of_data), span * nodes.total)

    def spread(self, estimator: Estimator, k: int, *, controlled: bool = False) -> float:
        """The standard error of an image, bits/dim, of k derivatives at each node."""
        matrices = self.field - self.of_gaussian if controlled else self.field
        n, b, dims, _ = matrices.shape
        keys = jax.random.split(jax.random.key(k), (n * b, DRAWS))

        @jax.jit
        def variance(A: Matrix, keys: Array) -> Float[Array, ""]:
            return jnp.var(jax.vmap(lambda key: estimator(key, A, k))(keys), ddof=1)

        each = jax.lax.map(lambda pair: variance(*pair), (matrices.reshape(-1, dims, dims), keys))
        total = np.square(self.weights) @ np.asarray(each).reshape(n, b)
        return float(np.sqrt(total.mean()) / (dims * np.log(2)))

    def best_controlled(self) -> float:
        """Of one Rademacher probe, with the coefficient of the control variate that is best at
        each node for these very images: the variance is twice the sum of the squares off the
        diagonal of the symmetric part."""
        A, G = (self._off_diagonal(a) for a in (self.field, self.of_gaussian))

        def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return 2 * np.sum(a * b, axis=(2, 3)).mean(axis=1)

        variance = product(A, A) - np.square(product(A, G)) / product(G, G)
        return float(np.sqrt(np.square(self.weights) @ variance) / (A.shape[-1] * np.log(2)))

    @staticmethod
    def _off_diagonal(a: Array) -> np.ndarray:
        a = np.asarray(a, np.float64)
        return (a + a.swapaxes(2, 3)) / 2 * (1 - np.eye(a.shape[-1]))


def digits() -> Jacobians:
    model = scoremle.load("digits")
    train, test = load_digits("")[:2]

    def reals(images: np.ndarray) -> Data:
        x = jnp.asarray(images)
        return model.pixels.encode(x, scoremle.Uniform()(KEY, x)[0])

    return Jacobians.of(model.noise, model.sde, model.eps, reals(test[:IMAGES]), reals(train))


def mixture(dims: int = 64, components: int = 6) -> Jacobians:
    rng, sde = np.random.default_rng(0), scoremle.VP()
    means = 0.5 * rng.normal(size=(components, dims))
    data = Mixture.of(np.full(components, 1 / components), means, np.full(components, 0.2))
    x, others = (jnp.asarray(data.draw(s, n), jnp.float32) for s, n in ((1, IMAGES), (2, 2000)))
    return Jacobians.of(data.noise(sde), sde, 1e-3, x, others)


SUBJECTS = {"digits": digits, "mixture": mixture}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    options = parser.parse_args()
    rows, results = [], {}
    for subject in options.subjects:
        jacobians = SUBJECTS[subject]()
        best = jacobians.best_controlled() / np.sqrt(DERIVATIVES)
        label = "Hutchinson, Rademacher, best control variate"
        rows.append((subject, label, *(f"{error:.4f}" for error in best)))
        for name, (estimator, least) in ESTIMATORS.items():
            for controlled in (False, True):
                found = {
                    k: jacobians.spread(estimator, k, controlled=controlled)
                    for k in DERIVATIVES
                    if k >= least
                }
                label = f"{name}, control variate" if controlled else name
                cells = (f"{found[k]:.4f}" if k in found else "" for k in DERIVATIVES)
                rows.append((subject, label, *cells))
                results[f"{subject}, {label}"] = found
                print(" ".join(rows[-1]), flush=True)
    print(tables.table(("subject", "estimator", *map(str, DERIVATIVES)), rows))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
