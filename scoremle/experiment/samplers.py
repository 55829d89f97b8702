"""Samplers by their names, each as one function that draws."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

from jaxtyping import Array, Bool

from scoremle.core.pixels import Pixels
from scoremle.core.sde import SDE
from scoremle.errors import choose
from scoremle.model import ScoreModel
from scoremle.numerics import all_finite
from scoremle.sampling.exponential import ddim_sample, dpm_solver_sample
from scoremle.sampling.ode import denoise, euler_sample, ode_sample
from scoremle.sampling.predictor_corrector import (
    Corrector,
    Predictor,
    PredictorCorrector,
    ald,
    ancestral_sampling,
    euler_maruyama,
    langevin,
    pc_sample,
    reverse_diffusion,
)
from scoremle.solvers.multistep import Multistep
from scoremle.types import Images, IntImages, Keys, NoiseFn

__all__ = ["SAMPLERS", "Sampler", "SamplerFields", "Sampling"]

PREDICTORS: dict[str, Predictor | None] = {
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral_sampling": ancestral_sampling,
    "none": None,
}
CORRECTORS: dict[str, Corrector | None] = {"langevin": langevin, "ald": ald, "none": None}


class Sampler(NamedTuple):
    """Draws samples of a shape, each by so many evaluations of the network.

    ``mixes``: it takes norms over the samples that are drawn at once, which depend on one another.
    """

    draw: Callable[[NoiseFn, Keys, tuple[int, ...]], Images]
    evaluations: int
    mixes: bool = False

    def images(
        self, model: ScoreModel, key: Keys, count: int
    ) -> tuple[IntImages, Bool[Array, " n"]]:
        """Samples of a model of integer images, and whether each was of finite numbers."""
        x = self.draw(model.noise, key, (count, *model.shape))
        return cast(Pixels, model.pixels).decode(x), all_finite(x)


@dataclass(frozen=True)
class Sampling:
    """How many samples are drawn in which rounds, and the files that they are judged by.

    ``inception`` and ``stats`` are empty where there is none. ``facts`` are what a sample depends
    on, in values that JSON knows.
    """

    sampler: Sampler
    number: int
    batch_size: int
    inception: str
    stats: str
    facts: Mapping[str, Any]


class SamplerFields(NamedTuple):
    """What samplers are made of: fields of ``config.sampling``, by their names there."""

    smallest_time: float
    noise_removal: bool
    steps: int
    predictor: str
    corrector: str
    snr: float
    n_steps_each: int
    probability_flow: bool


def _flow_sampler(
    how: SamplerFields, sde: SDE, transport: Callable[..., Images], nodes: int
) -> Sampler:
    """Draws latents and takes them to samples."""
    eps, remove = how.smallest_time, how.noise_removal

    def draw(noise: NoiseFn, key: Keys, shape: tuple[int, ...]) -> Images:
        x = transport(noise, sde, sde.prior_sample(key, shape), eps=eps)
        return denoise(noise, sde, x, eps=eps) if remove else x

    return Sampler(draw, nodes + remove)


def _pc_sampler(how: SamplerFields, sde: SDE) -> Sampler:
    method = PredictorCorrector(
        steps=how.steps,
        predictor=choose(PREDICTORS, how.predictor, "sampling.predictor"),
        corrector=choose(CORRECTORS, how.corrector, "sampling.corrector"),
        snr=how.snr,
        corrector_steps=how.n_steps_each,
        probability_flow=how.probability_flow,
        denoise=how.noise_removal,
    )
    method.check(sde)
    return Sampler(
        lambda noise, key, shape: pc_sample(
            noise, sde, key, shape, eps=how.smallest_time, method=method
        ),
        method.evaluations,
        mixes=method.corrector is langevin,
    )


def _euler_sampler(how: SamplerFields, sde: SDE) -> Sampler:
    return Sampler(
        lambda noise, key, shape: euler_sample(
            noise, sde, key, shape,
            eps=how.smallest_time, steps=how.steps, denoise=how.noise_removal,
        ),
        how.steps,
    )  # fmt: skip


SAMPLERS: dict[str, Callable[[SamplerFields, SDE], Sampler]] = {
    "ode": lambda how, sde: _flow_sampler(
        how, sde, partial(ode_sample, solver=Multistep(how.steps)), nodes=how.steps + 1
    ),
    "pc": _pc_sampler,
    "euler": _euler_sampler,
    "ddim": lambda how, sde: _flow_sampler(
        how, sde, partial(ddim_sample, steps=how.steps), how.steps
    ),
    "dpm_solver": lambda how, sde: _flow_sampler(
        how, sde, partial(dpm_solver_sample, steps=how.steps), how.steps
    ),
}  # fmt: skip
