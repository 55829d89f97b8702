"""Predictor-corrector samplers (Song et al., arXiv 2011.13456, section 4.2 and appendices E to G).

The reverse SDE is dx = [f x - g^2 score] dt + g dw, backwards in time. At each of N times, even
from t = 1 to t = eps, Langevin steps first move x towards p_t (the corrector),

    x <- x + h score(x, t) + sqrt(2 h) z,

and then a step of length 1/N leads to an earlier time (the predictor), x <- mean + std z.

Steps and times of the SDE are the published ones. So the N steps, though N - 1 would do, take 1/N
each, and the DDPM and SMLD rules read beta or sigma at the multiple of 1 / (N - 1) below t. With
many steps that leaves an error of relative size eps, which the noise of later steps hides. The
probability flow adds no noise, and would contract its samples by a power of eps too much: its N
steps take (1 - eps) / N each, and end at t = eps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from scoremle.core.arguments import as_shape, check_count, check_kind, check_number
from scoremle.core.keys import example_keys, fold_in, normal, split
from scoremle.core.prediction import check_model, score_of
from scoremle.core.pytree import known
from scoremle.core.sde import SDE
from scoremle.errors import UserError
from scoremle.numerics import expand, sum_data
from scoremle.sampling.ends import ends
from scoremle.types import Data, Keys, NoiseFn, Scalar, Times

__all__ = [
    "Corrector", "Predictor", "PredictorCorrector", "ald", "ancestral_sampling", "euler_maruyama",
    "langevin", "pc_sample", "reverse_diffusion",
]  # fmt: skip


@dataclass(frozen=True)
class PredictorStep:
    """One step of a predictor.

    Args:
        length: of the step, in time.
        intervals: in a unit of time, between those times at which the DDPM and SMLD rules read
            beta or sigma.
        end: the end of the flow, whose steps begin on this grid; None: the published grid, which
            begins at 0 and has other times than the steps.
    """

    length: float
    intervals: float
    end: Scalar | None = None

    def grid(self, t: Times, back: int = 0) -> Times:
        """The time of the grid at t or below, and ``back`` intervals further down."""
        if self.end is None:
            return (jnp.floor(t * self.intervals) - back) / self.intervals
        return self.end + (jnp.round((t - self.end) * self.intervals) - back) / self.intervals


# (sde, x, score, t, step) -> mean of the next state, and the standard deviation around it
Predictor = Callable[[SDE, Data, Data, Times, PredictorStep], tuple[Data, Times]]
# (sde, score, z, t, snr) -> size of the Langevin step, in units of the variance that a forward
# step keeps
Corrector = Callable[[SDE, Data, Data, Times, float], Times]
# (keys, x, t) -> x at time t, with what is known about it put in
Constraint = Callable[[Keys, Data, Times], Data]


def euler_maruyama(
    sde: SDE, x: Data, score: Data, t: Times, step: PredictorStep
) -> tuple[Data, Times]:
    """Euler's step of the reverse SDE.

    Args:
        sde: the noise at each time.
        x: [b *d] states.
        score: [b *d] at these.
        t: [b] times.
        step: to the next time.
    """
    g2 = sde.g2(t)
    drift = expand(sde.f(t), x) * x - expand(g2, x) * score
    return x - drift * step.length, jnp.sqrt(g2 * step.length)


def reverse_diffusion(
    sde: SDE, x: Data, score: Data, t: Times, step: PredictorStep
) -> tuple[Data, Times]:
    """The forward rule x -> scale x + spread z, reversed as the SDE is.

    Args:
        sde: the noise at each time.
        x: [b *d] states.
        score: [b *d] at these.
        t: [b] times.
        step: to the next time.
    """
    scale, spread = FORWARD_RULES[sde.chain](sde, t, step)
    return x - expand(scale - 1, x) * x + expand(jnp.square(spread), x) * score, spread


def ancestral_sampling(
    sde: SDE, x: Data, score: Data, t: Times, step: PredictorStep
) -> tuple[Data, Times]:
    """The forward rule's chain reversed, as in DDPM (VP) and SMLD (VE); for these two alone.

    Args:
        sde: the noise at each time.
        x: [b *d] states.
        score: [b *d] at these.
        t: [b] times.
        step: to the next time.
    """
    scale, spread = FORWARD_RULES[sde.chain](sde, t, step)
    variance = jnp.square(spread)
    mean = (x + expand(variance, x) * score) / expand(scale, x)
    if sde.chain == "smld":
        sigma2 = jnp.square(sde.sigma(step.grid(t)))
        spread = spread * jnp.sqrt(1 - variance / sigma2)
    return mean, spread


def _ddpm(sde: SDE, t: Times, step: PredictorStep) -> tuple[Times, Times]:
    beta = -2 * sde.f(step.grid(t)) * step.length
    return jnp.sqrt(1 - beta), jnp.sqrt(beta)


def _smld(sde: SDE, t: Times, step: PredictorStep) -> tuple[Times, Times]:
    # Between neighbouring sigmas, the first of which comes after 0.
    before = step.grid(t, back=1)
    below = jnp.where(before < 0, 0, jnp.square(sde.sigma(before)))
    return jnp.ones_like(t), jnp.sqrt(jnp.square(sde.sigma(step.grid(t))) - below)


def _euler(sde: SDE, t: Times, step: PredictorStep) -> tuple[Times, Times]:
    return 1 + sde.f(t) * step.length, jnp.sqrt(sde.g2(t) * step.length)


# (scale, spread) of the forward step x -> scale x + spread z, by the chain that the SDE was
# published with.
FORWARD_RULES: dict[str | None, Callable[[SDE, Times, PredictorStep], tuple[Times, Times]]] = {
    "ddpm": _ddpm,
    "smld": _smld,
    None: _euler,
}


def langevin(sde: SDE, score: Data, z: Data, t: Times, snr: float) -> Times:
    """The step in which the score's part is ``snr`` times the noise's, in mean norms.

    The means are over the batch, as published. A step from the example's own norms would depend on
    the noise that it scales, and lead away from p_t.

    Args:
        sde: not used.
        score: [b *d].
        z: [b *d] standard normal.
        t: [b] times.
        snr: the share.
    """

    def norm(a: Data) -> Times:
        return jnp.mean(jnp.sqrt(sum_data(jnp.square(a))))

    return jnp.full_like(t, 2 * jnp.square(snr * norm(z) / norm(score)))


def ald(sde: SDE, score: Data, z: Data, t: Times, snr: float) -> Times:
    """The step of annealed Langevin dynamics (NCSN), from sigma_t alone.

    Args:
        sde: the noise at each time.
        score: not used.
        z: not used.
        t: [b] times.
        snr: the square root of half the step, in units of sigma_t.
    """
    return 2 * jnp.square(snr * sde.sigma(t))


@dataclass(frozen=True)
class PredictorCorrector:
    """Settings of a predictor-corrector sampler (Song et al., arXiv 2011.13456).

    Args:
        steps: number of predictor steps.
        predictor: ``euler_maruyama``, ``reverse_diffusion`` or ``ancestral_sampling``; None:
            corrector steps alone.
        corrector: ``langevin`` or ``ald``; None: predictor steps alone.
        snr: sets the size of the corrector's steps, as published.
        corrector_steps: number of corrector steps before each predictor step.
        probability_flow: the predictor solves the ODE in place of the SDE.
        denoise: the last step adds no noise.

    Raises UserError for no steps, an snr that is not above 0, and a step given by its name.

    Example:
        >>> corrector = scoremle.sampling.predictor_corrector.ald
        >>> scoremle.PredictorCorrector(steps=500, corrector=corrector).evaluations
        1000
    """

    steps: int = 1000
    predictor: Predictor | None = euler_maruyama
    corrector: Corrector | None = None
    snr: float = 0.16
    corrector_steps: int = 1
    probability_flow: bool = False
    denoise: bool = True

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("corrector_steps", self.corrector_steps)
        check_number("snr", self.snr, above=0)
        for name in ("predictor", "corrector"):
            such = f"a function of this module, or None for no {name}"
            check_kind(name, getattr(self, name), Callable | None, such)

    @property
    def evaluations(self) -> int:
        """Network evaluations that a sample takes."""
        corrections = 0 if self.corrector is None else self.corrector_steps
        return self.steps * (corrections + (self.predictor is not None))

    def end(self, eps: Scalar) -> Scalar:
        """The end time of the last step; a step of the SDE begins at t = ``eps``."""
        if self.predictor is None or self.probability_flow:
            return eps
        end = eps - 1 / self.steps
        return max(end, 0.0) if known(eps) else jnp.maximum(end, 0.0)

    def grid(self, eps: float) -> tuple[Times, PredictorStep]:
        """The times at which the steps down to ``eps`` begin, and the step."""
        times = jnp.linspace(1, eps, self.steps, endpoint=not self.probability_flow)
        if not self.probability_flow:
            return times, self.published
        length = (1 - eps) / self.steps
        return times, PredictorStep(length, 1 / length, eps)

    @property
    def published(self) -> PredictorStep:
        """The step that the published samplers take."""
        return PredictorStep(1 / self.steps, max(self.steps - 1, 1))

    def check(self, sde: SDE) -> None:
        """Raises UserError where a step is not defined for ``sde``."""
        if self.predictor is ancestral_sampling:
            if sde.chain is None:
                raise UserError(
                    "ancestral_sampling is defined for scoremle.VP and scoremle.VE, by their"
                    f" betas, not for {sde!r}: choose euler_maruyama or reverse_diffusion"
                )
            if self.probability_flow:
                raise UserError("ancestral_sampling has no probability flow: choose another")
        by_rule = self.predictor in (reverse_diffusion, ancestral_sampling) and sde.chain == "ddpm"
        if (by_rule or self.corrector is not None) and known(sde):
            with jax.ensure_compile_time_eval():
                beta_max = float(jnp.max(-2 * sde.f(self.grid(0.0)[0])))
            if self.steps <= beta_max:
                raise UserError(
                    f"{self.steps} steps are too few for beta_max = {beta_max:g}: take more"
                )

    def predict(
        self, noise: NoiseFn, sde: SDE, x: Data, t: Times, step: PredictorStep
    ) -> tuple[Data, Times]:
        """Mean of the state that follows ``x``, and the standard deviation around it.

        Args:
            noise: eps(x, t).
            sde: the SDE that it belongs to.
            x: [b *d] states.
            t: [b] times.
            step: to the next time.
        """
        if self.predictor is None:
            return x, jnp.zeros_like(t)
        score = score_of(noise, sde)(x, t)
        if not self.probability_flow:
            return self.predictor(sde, x, score, t, step)
        mean, std = self.predictor(sde, x, score / 2, t, step)
        return mean, jnp.zeros_like(std)

    def correct(self, noise: NoiseFn, sde: SDE, x: Data, t: Times, z: Data) -> Data:
        """``x`` after one corrector step with standard normal ``z``.

        Args:
            noise: eps(x, t).
            sde: the SDE that it belongs to.
            x: [b *d] states.
            t: [b] times.
            z: [b *d] noise.
        """
        if self.corrector is None:
            return x
        score = score_of(noise, sde)(x, t)
        # The share of the variance that a forward step keeps: 1 for VE.
        step = self.published
        kept = 1 + 2 * sde.f(step.grid(t)) * step.length
        size = expand(kept, x) * expand(self.corrector(sde, score, z, t, self.snr), x)
        return x + size * score + jnp.sqrt(2 * size) * z


def unconstrained(keys: Keys, x: Data, t: Times) -> Data:
    """The constraint that leaves samples as they are."""
    return x


@ends(
    lambda eps, method=PredictorCorrector(), **options: method.end(eps),
    lambda sde, method=PredictorCorrector(), **options: method.check(sde),
)
def pc_sample(
    noise: NoiseFn,
    sde: SDE,
    key: Keys,
    shape: tuple[int, ...],
    *,
    eps: float,
    method: PredictorCorrector = PredictorCorrector(),
    constraint: Constraint = unconstrained,
) -> Data:
    """Samples at t = ``method.end(eps)``, by ``method.evaluations`` evaluations of the network.

    Args:
        noise: the noise prediction eps(x, t).
        sde: the noise at each time.
        key: one, or one for each sample.
        shape: of all samples.
        eps: the time of the last step.
        method: which steps to take.
        constraint: what is known of the samples; it is applied before each evaluation.

    Raises UserError for eps outside [0, 1), a network for another SDE, another shape, and where a
    step of ``method`` is not defined for ``sde``.

    Example:
        >>> sde, key = scoremle.VP(), jax.random.key(0)
        >>> x = scoremle.pc_sample(  # of data N(0, I)
        ...     lambda x, t: sde.sigma(t)[:, None] * x, sde, key, (4000, 1),
        ...     eps=1e-3, method=scoremle.PredictorCorrector(steps=200),
        ... )
        >>> print(f"{jnp.std(x):.1f}")
        1.0
    """
    n, *dims = shape = as_shape(shape, of_batch=True)
    check_model(noise, sde, eps, tuple(dims))
    check_kind("method", method, PredictorCorrector, "scoremle.PredictorCorrector(100)")
    method.check(sde)
    corrections = 0 if method.corrector is None else method.corrector_steps
    key_prior, key_steps = split(example_keys(key, n))
    x = sde.prior_sample(key_prior, shape)
    times, of_grid = method.grid(eps)

    def step(carry: tuple[Data, Data], inputs: tuple) -> tuple[tuple[Data, Data], None]:
        x, _ = carry
        time, i = inputs
        t = jnp.full(shape[0], time, x.dtype)
        keys = split(fold_in(key_steps, i), 2 * (corrections + 1))

        def correct(j: int, x: Data) -> Data:
            z = normal(keys[2 * j + 1], x)
            return method.correct(noise, sde, constraint(keys[2 * j], x, t), t, z)

        x = jax.lax.fori_loop(0, corrections, correct, x)
        mean, std = method.predict(noise, sde, constraint(keys[-2], x, t), t, of_grid)
        z = normal(keys[-1], x)
        return (mean + expand(std, x) * z, mean), None

    inputs = times.astype(x.dtype), jnp.arange(method.steps)
    (x, mean), _ = jax.lax.scan(step, (x, x), inputs)
    return mean if method.denoise else x
