"""diffrax: the solve of its example "Continuous Normalising Flow", with a given velocity."""

from typing import ClassVar

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from scoremle_conformance.adapter import Adapter, Answer, Ask
from scoremle_conformance.fields import Field

__all__ = ["Diffrax"]


class Diffrax(Adapter):
    name, package, framework = "diffrax", "diffrax", "jax"
    paths = ("straight", "vp", "ve")
    can = frozenset({"exact", "probes", "noise", "classes", "steps", "gradient"})
    settings: ClassVar = {
        "example": "float32, Tsit5, constant steps of 0.05, as in the example",
        "best": "float32, Tsit5, PIDController(rtol=1e-6, atol=1e-6)",
    }
    probe, order = "gaussian", 5.0

    def __init__(self, setting: str | None = None) -> None:
        super().__init__(setting)
        self.adaptive = self.setting == "best"

    def log_prob(self, field: Field, x: np.ndarray, ask: Ask) -> Answer:
        return Answer(jax.jit(self._solved(field, ask))(jnp.asarray(x, jnp.float32)))

    def gradient(self, field: Field, x: np.ndarray) -> np.ndarray:
        total = self._solved(field, Ask())
        return jax.jit(jax.grad(lambda y: total(y).sum()))(jnp.asarray(x, jnp.float32))

    def _solved(self, field: Field, ask: Ask):
        path = field.path
        size = 0.05 if ask.steps is None else (path.stop - path.start) / ask.steps
        constant = self.setting == "example" or ask.steps is not None
        steps = (
            diffrax.ConstantStepSize() if constant else diffrax.PIDController(rtol=1e-6, atol=1e-6)
        )

        def of_one(y: jax.Array, probe: jax.Array, label: jax.Array | None) -> jax.Array:
            def rate(t, state, args):
                u, pull = jax.vjp(lambda now: field(now, t, label), state[0])
                if ask.exact:
                    return u, jnp.trace(jax.vmap(pull)(jnp.eye(len(y)))[0])
                return u, pull(probe)[0] @ probe

            found = diffrax.diffeqsolve(
                diffrax.ODETerm(rate), diffrax.Tsit5(), path.start, path.stop, size, (y, 0.0),
                stepsize_controller=steps,
            )  # fmt: skip
            z, trace = found.ys
            return jax.scipy.stats.norm.logpdf(z[0], scale=path.prior_std).sum() + trace[0]

        def of_all(x: jax.Array) -> jax.Array:
            probes = jax.random.normal(jax.random.key(ask.seed), x.shape)
            labels = None if ask.labels is None else jnp.asarray(ask.labels)
            return jax.vmap(of_one, in_axes=(0, 0, None if labels is None else 0))(
                x, probes, labels
            )

        return of_all
