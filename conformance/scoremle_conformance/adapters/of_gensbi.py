"""GenSBI: ``compute_log_prob`` of its ODE solvers, for flow matching and for score matching."""

from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from gensbi.core.prior import make_gaussian_prior
from gensbi.diffusion.path.scheduler.sm_sde import VESmScheduler, VPSmScheduler
from gensbi.diffusion.solver.sm_ode_solver import SMODESolver
from gensbi.flow_matching.solver import FMODESolver
from gensbi.utils.model_wrapping import ModelWrapper, ScoreToODEDrift

from scoremle_conformance.adapter import Adapter, Answer, Ask
from scoremle_conformance.fields import Field
from scoremle_conformance.paths import BETA_MAX, BETA_MIN, SIGMA_MAX, SIGMA_MIN

__all__ = ["GenSBI"]

SDES = {"vp": VPSmScheduler(BETA_MIN, BETA_MAX), "ve": VESmScheduler(SIGMA_MIN, SIGMA_MAX)}


class GenSBI(Adapter):
    name, package, framework = "gensbi", "gensbi", "jax"
    networks: ClassVar = [("straight", "velocity"), ("vp", "score"), ("ve", "score")]
    can = frozenset({"exact", "probes", "noise", "classes", "steps", "gradient"})
    settings: ClassVar = {
        "default": "float32 and the defaults: Dopri5, atol = rtol = 1e-5",
        "best": "float32, Dopri5, atol = rtol = 1e-6",
    }
    adaptive, order = True, 2.0

    def _log_prob(self, field: Field, x: Any, ask: Ask, label: int = -1) -> jax.Array:
        path, flow = field.path, field.path.name == "straight"  # whose t is 1 at data
        ends, near = np.array([path.start, path.stop]), 1e-6 if self.setting == "best" else 1e-5
        size = np.ptp(ends) / ask.steps if ask.steps else 0.01
        method = diffrax.Midpoint() if ask.steps else "Dopri5"
        given = None if label < 0 else label  # a solve has one for all

        def net(obs: jax.Array, t: Any) -> jax.Array:
            found = field(obs[..., 0], jnp.ravel(1 - t if flow else t), given)
            return (-found if flow else found)[..., None]

        prior = make_gaussian_prior(field.dims, 1, sigma=path.prior_std)
        drift = net if flow else ScoreToODEDrift(net, SDES[path.name])
        return (FMODESolver if flow else SMODESolver)(ModelWrapper(drift)).compute_log_prob(
            jnp.float32(x)[..., None], prior.log_prob, size, method, near, near,
            jnp.array(1 - ends if flow else ends), exact_divergence=ask.exact,
            key=jax.random.key(ask.seed),
        )  # fmt: skip

    def log_prob(self, field: Field, x: np.ndarray, ask: Ask) -> Answer:
        found, labels = np.empty(len(x)), -np.ones(len(x)) if ask.labels is None else ask.labels
        for label in np.unique(labels):
            found[labels == label] = self._log_prob(field, x[labels == label], ask, int(label))
        return Answer(found)

    def gradient(self, field: Field, x: np.ndarray) -> np.ndarray:
        return jax.grad(lambda y: self._log_prob(field, y, Ask()).sum())(jnp.float32(x))
