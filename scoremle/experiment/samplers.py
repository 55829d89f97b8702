"""Samplers by their names, each as one function that draws."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Array, Bool

from scoremle.core.sde import SDE
from scoremle.errors import choose
from scoremle.model import Sampler, ScoreModel, draw_samples
from scoremle.sampling import predictor_corrector as by_pc
from scoremle.sampling.exponential import ddim_sample, dpm_solver_sample
from scoremle.sampling.ode import euler_sample, ode_draw, ode_sample
from scoremle.solvers.multistep import Multistep
from scoremle.types import Images, IntImages, Keys

PREDICTORS: dict[str, by_pc.Predictor | None] = {
    "euler_maruyama": by_pc.euler_maruyama,
    "reverse_diffusion": by_pc.reverse_diffusion,
    "ancestral_sampling": by_pc.ancestral_sampling,
    "none": None,
}
CORRECTORS: dict[str, by_pc.Corrector | None] = {
    "langevin": by_pc.langevin,
    "ald": by_pc.ald,
    "none": None,
}


class ConfiguredSampler(NamedTuple):
    """Draws samples down to t = ``eps``, each by so many evaluations of the network.

    ``mixes``: it takes norms over the samples that are drawn at once, which depend on one another.
    """

    draw: Sampler
    eps: float
    evaluations: int
    mixes: bool = False

    def images(self, model: ScoreModel, keys: Keys) -> tuple[IntImages, Bool[Array, " n"]]:
        """Samples of a model of integer images, and whether each was of finite numbers."""
        return draw_samples(replace(model, eps=self.eps), keys, sampler=self.draw)


def _flow_sampler(
    how: Any, transport: Callable[..., Images], evaluations: int
) -> ConfiguredSampler:
    """Draws latents and takes them to samples."""
    draw = partial(ode_draw, transport=transport, denoised=how.noise_removal)
    return ConfiguredSampler(draw, how.smallest_time, evaluations + how.noise_removal)


def _pc_sampler(how: Any, sde: SDE) -> ConfiguredSampler:
    method = by_pc.PredictorCorrector(
        steps=how.steps,
        predictor=choose(PREDICTORS, how.predictor, "sampling.predictor"),
        corrector=choose(CORRECTORS, how.corrector, "sampling.corrector"),
        snr=how.snr,
        corrector_steps=how.n_steps_each,
        probability_flow=how.probability_flow,
        denoise=how.noise_removal,
    )
    method.check(sde)
    draw, mixes = partial(by_pc.pc_sample, method=method), method.corrector is by_pc.langevin
    return ConfiguredSampler(draw, how.smallest_time, method.evaluations, mixes)


def _euler_sampler(how: Any, sde: SDE) -> ConfiguredSampler:
    draw = partial(euler_sample, steps=how.steps, denoise=how.noise_removal)
    return ConfiguredSampler(draw, how.smallest_time, how.steps)


# From the fields of config.sampling, and the SDE.
SAMPLERS: dict[str, Callable[[Any, SDE], ConfiguredSampler]] = {
    "ode": lambda how, sde: _flow_sampler(
        how, partial(ode_sample, solver=Multistep(how.steps)), evaluations=how.steps + 1
    ),
    "pc": _pc_sampler,
    "euler": _euler_sampler,
    "ddim": lambda how, sde: _flow_sampler(how, partial(ddim_sample, steps=how.steps), how.steps),
    "dpm_solver": lambda how, sde: _flow_sampler(
        how, partial(dpm_solver_sample, steps=how.steps), how.steps
    ),
}  # fmt: skip
