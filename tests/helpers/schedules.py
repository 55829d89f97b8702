"""Schedules to test, and the formulas of kernels and schedules a second time.

They compute in the precision of what they are given.
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from scoremle.core.pytree import pytree, static
from scoremle.core.schedules import (
    Cosine,
    Discrete,
    GeometricSigma,
    KarrasSigma,
    LinearBeta,
    LinearLogSNR,
    LinearSigma,
    PerDimension,
    Schedule,
)

TOP = 10.0


@pytree
@dataclass(frozen=True, eq=False)
class Monotone(Schedule):
    """A small network whose weights enter by their absolute values (arXiv 2107.00630, H.1)."""

    first: jax.Array
    inner: jax.Array
    shift: jax.Array
    outer: jax.Array
    top: float = static(default=TOP)

    def log_snr(self, t):
        hidden = jnp.tanh(jnp.abs(self.inner) * (2 * jnp.asarray(t)[..., None] - 1) + self.shift)
        return self.top - jnp.abs(self.first) * t - hidden @ jnp.abs(self.outer)


@pytree
@dataclass(frozen=True, eq=False)
class Curved(PerDimension):
    """lambda = top - fall (t + curvature t (1 - t)) in each dimension; a code bends it more."""

    top: float
    fall: jax.Array
    curvature: jax.Array

    def log_snr(self, t):
        t = jnp.asarray(t)
        t = t.reshape(t.shape + (1,) * jnp.ndim(self.fall))
        return self.top - self.fall * (t + self.curvature * t * (1 - t))

    def at(self, code):
        rows = code.reshape(code.shape + (1,) * jnp.ndim(self.fall))
        return dataclasses.replace(self, curvature=self.curvature * rows)


BETAS = np.linspace(0.01, 0.6, 20)
SCHEDULES: dict[str, Schedule] = {
    "beta_vp": LinearBeta(),
    "beta_subvp": LinearBeta(0.2, 15.0, "subvp"),
    "beta_straight": LinearBeta(0.1, 10.0, "straight"),
    "geometric": GeometricSigma(),
    "linear_sigma": LinearSigma(30.0),
    "karras": KarrasSigma(),
    "log_snr": LinearLogSNR(-5.0, 13.3),
    "cosine": Cosine(-12.0, 14.0),
    "discrete": Discrete.of_betas(BETAS),
    "learned": Monotone(
        np.float32(-12.0),
        np.array([0.7, -1.5, 4.0], np.float32),
        np.array([0.1, -0.4, 0.9], np.float32),
        np.array([1.0, -0.8, 0.6], np.float32),
    ),
}


# --- the formulas, a second time: of parameters p by their names, and a module xp of functions ---


def _beta(schedule, p, t, xp):
    b = p["beta_min"] * t + (p["beta_max"] - p["beta_min"]) * t**2 / 2
    alpha = xp.exp(-b / 2)
    sigma = {
        "vp": xp.sqrt(-xp.expm1(-b)), "subvp": -xp.expm1(-b), "straight": -xp.expm1(-b / 2)
    }[schedule.kernel]  # fmt: skip
    return 2 * xp.log(alpha / sigma)


def _karras(schedule, p, t, xp):
    low, high = (p[name] ** (1 / p["rho"]) for name in ("sigma_min", "sigma_max"))
    return -2 * xp.log((low + t * (high - low)) ** p["rho"])


def _cosine(schedule, p, t, xp):
    first, last = (xp.arctan(xp.exp(-p[f"log_snr_{end}"] / 2)) for end in ("max", "min"))
    return -2 * xp.log(xp.tan(first + t * (last - first)))


def _table(schedule, p, t, xp):
    table = p["log_snrs"]
    label = len(table) * t - 1
    before = xp.clip(xp.floor(label).astype(int), 0, len(table) - 2)
    table = xp.asarray(table)
    return table[before] + (label - before) * (table[before + 1] - table[before])


def _network(schedule, p, t, xp):
    hidden = xp.tanh(xp.abs(p["inner"]) * (2 * t[..., None] - 1) + p["shift"])
    return TOP - xp.abs(p["first"]) * t - (hidden * xp.abs(p["outer"])).sum(-1)


FORMULAS = {
    LinearBeta: _beta,
    GeometricSigma: lambda schedule, p, t, xp: (
        -2 * xp.log(p["sigma_min"] * (p["sigma_max"] / p["sigma_min"]) ** t)
    ),
    LinearSigma: lambda schedule, p, t, xp: -2 * xp.log(p["sigma_max"] * t),
    KarrasSigma: _karras,
    LinearLogSNR: lambda schedule, p, t, xp: (1 - t) * p["log_snr_max"] + t * p["log_snr_min"],
    Cosine: _cosine,
    Discrete: _table,
    Monotone: _network,
}


def log_snr(schedule, p, t, xp=np):
    """lambda at t."""
    return FORMULAS[type(schedule)](schedule, p, t, xp)


def log_alpha_and_sigma(kernel, lam, xp=np):
    """At a log-SNR."""
    s = xp.exp(-lam / 2)
    return {
        "vp": (-xp.log1p(s**2) / 2, s / xp.sqrt(1 + s**2)),
        "subvp": (-xp.arcsinh(s / 2), -xp.expm1(-2 * xp.arcsinh(s / 2))),
        "ve": (xp.zeros_like(s), s),
        "straight": (-xp.log1p(s), s / (1 + s)),
    }[kernel]


def parameters(schedule, dtype=np.float64):
    """The numbers of a schedule by name."""
    fields = [f.name for f in dataclasses.fields(schedule) if not f.metadata.get("static")]
    return {name: np.asarray(getattr(schedule, name), dtype) for name in fields}
