"""scoremle: ``ScoreModel.log_prob`` of reals and ``ScoreModel.score`` of integer images.

A density at a stated noise is that of ``ode_log_likelihood``.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

import scoremle
from scoremle import Exact, Hutchinson, Multistep
from scoremle.core.keys import example_keys, per_example
from scoremle.likelihood.ode import Likelihood
from scoremle.likelihood.pilot import FEW_DIMS
from scoremle_conformance.adapter import Adapter, Answer, Ask
from scoremle_conformance.fields import OUTPUTS, Field
from scoremle_conformance.images import Images
from scoremle_conformance.paths import Path

__all__ = ["ScoreMLE"]

# Where the open ends of the straight path are cut, as scoremle.interop.torch.from_velocity does.
LEAST, MOST = -18.0, 13.3


def _sde(path: Path) -> tuple[scoremle.SDE, float]:
    """The SDE of a path, and the time where likelihoods start."""
    if path.name == "vp":
        return scoremle.VP(), path.start
    if path.name == "ve":
        return scoremle.VE(), path.start
    cut = path.start > 0
    least, most = (
        2 * np.log((1 - t) / t) if cut else end
        for t, end in ((path.stop, LEAST), (path.start, MOST))
    )
    prior_std = path.prior_std if cut else 1 / (1 + np.exp(least / 2))
    return scoremle.SDE("straight", scoremle.LinearLogSNR(least, most), float(prior_std)), 1e-5


@jax.tree_util.register_static
@dataclass(frozen=True)
class Beta:
    """Dequantization noise of the density 6 u (1 - u)."""

    start: None = None

    def __call__(self, key: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = example_keys(key, len(x))
        u = per_example(lambda k, shape: jax.random.beta(k, 2.0, 2.0, shape), keys, x.shape[1:])
        return u, jnp.log(6 * u * (1 - u)).sum((1, 2, 3))


def _trace(ask: Ask) -> Exact | Hutchinson:
    return Exact() if ask.exact else Hutchinson(ask.probes)


class ScoreMLE(Adapter):
    name, package, framework = "scoremle", "scoremle", "jax"
    outputs, paths = tuple(OUTPUTS), ("vp", "ve", "straight")
    can = frozenset({
        "exact", "probes", "several probes", "noise", "classes", "steps", "gradient",
        "probe error", "solver error", "images", "several draws", "dequantizer",
    })  # fmt: skip
    settings: ClassVar = {
        "default": "float32, and log_prob and score called with nothing else",
        "best": "float32, Multistep of 256 steps",
    }
    fresh, order = True, 3.0

    @property
    def version(self) -> str:
        """Of the code: that of an editable install may be an older one."""
        return scoremle.__version__

    @property
    def networks(self) -> list[tuple[str, str]]:
        """A velocity is that of the straight path; on others it has no name for one."""
        return [(p, o) for p, o in super().networks if o != "velocity" or p == "straight"]

    def _model(self, field: Field, shape: tuple[int, ...], **more: Any) -> scoremle.ScoreModel:
        sde, eps = _sde(field.path)

        def network(x: jax.Array, t: jax.Array, *labels: jax.Array) -> jax.Array:
            return field(x.reshape(len(x), -1), t, *labels).reshape(x.shape)

        prediction = "u" if field.output == "velocity" else field.output
        label = "sigma" if field.path.name == "straight" else "time"
        noise = scoremle.noise_fn(network, sde, prediction=prediction, time_input=label)
        return scoremle.ScoreModel(noise, sde, eps, shape, **more)

    def _solver(self, steps: int | None) -> Multistep | None:
        default = None if self.setting == "default" else Multistep(256)
        return default if steps is None else Multistep(steps)

    def _found(self, field: Field, x: Any, ask: Ask) -> Likelihood:
        model, key = self._model(field, (field.dims,)), jax.random.key(ask.seed)
        x = jnp.asarray(x, jnp.float32)
        few = self.setting == "default" and ask.exact and field.dims <= FEW_DIMS
        how: dict[str, Any] = {
            "divergence": None if few else _trace(ask), "condition": ask.labels,
            "solver": self._solver(ask.steps),
        }  # fmt: skip
        if field.path.start:  # x lie at that time, and are not data
            return scoremle.ode_log_likelihood(
                model.noise, model.sde, x, key, eps=model.eps, **how
            )
        return model.log_prob(x, key, **how)

    def log_prob(self, field: Field, x: np.ndarray, ask: Ask) -> Answer:
        found = self._found(field, x, ask)
        return Answer(found.log_prob, found.probe_stderr, found.solver_error)

    def gradient(self, field: Field, x: np.ndarray) -> np.ndarray:
        def total(x: jax.Array) -> jax.Array:
            return self._found(field, x, Ask()).log_prob.sum()

        return np.asarray(jax.grad(total)(jnp.asarray(x, jnp.float32)))

    def log_prob_images(
        self, field: Field, images: np.ndarray, kind: Images, ask: Ask
    ) -> np.ndarray:
        model = self._model(field, kind.shape, pixels=scoremle.Pixels(kind.levels))
        return model.score(
            images.astype(np.uint8), seed=ask.seed,
            dequantizer=Beta() if ask.dequantizer == "beta" else None,
            estimator=scoremle.ByOde(
                _trace(ask), self._solver(ask.steps) or Multistep(), ask.draws
            ),
        ).log_prob  # fmt: skip
