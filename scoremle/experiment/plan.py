"""Cost of a config before it is trained: parameters, FLOPs, memory, time.

FLOPs and memory are XLA's own accounts of the compiled programs, memory at two batches and on the
line through them. Time is measured: a few training steps, and a few evaluations of the network
alone and with its derivative along the probes, of images of noise. What takes many evaluations (a
likelihood, a sample) takes that many times as long.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoremle.core.keys import key_of
from scoremle.devices import Needs, bytes_of_each, needs
from scoremle.devices import memory as memory_here
from scoremle.errors import UserError
from scoremle.experiment.build import Experiment
from scoremle.experiment.networks import Params
from scoremle.likelihood.decoders import InformedDecoder
from scoremle.likelihood.elbo import decoder_draws
from scoremle.solvers.multistep import Multistep
from scoremle.training.program import Program, largest_batch, make_program
from scoremle.training.saving import bytes_of_copy
from scoremle.types import NoiseFn
from scoremle.xla import compiled

__all__ = ["Plan"]

# The smaller of two batches, on each device. Its pace decides if the whole batch is measured.
FEW = 4
# Timed calls of a program; what all of them may take, in seconds.
CALLS, LONGEST = 3, 60.0
SAMPLES = 50_000


class Pace(NamedTuple):
    """Seconds an image, and of how many at a time that was measured."""

    seconds: float
    batch: int


@dataclass(frozen=True)
class Plan:
    """Cost of an experiment on this machine. Each property measures when it is first read.

    Args:
        experiment: whose images may be left out.
        memory: bytes on each device.
        devices: number that share the work, ideally: communication takes no time.
    """

    experiment: Experiment
    memory: int
    devices: int = 1

    def costs(self, test_images: int) -> dict[str, Any]:
        """Costs by name: bytes, seconds, numbers; None if unknown.

        Args:
            test_images: how many an evaluation takes.
        """
        training, evaluation = self.experiment.training, self.experiment.evaluation
        step, images = self.step.seconds * self.batch, test_images * evaluation.num_repeats
        an_image, evaluations = self._likelihood()
        drawn, template = self.experiment.sampler.evaluations, training.template
        # As XLA counts them before it optimises.
        flops = (self._lowered(self.batch).cost_analysis() or {}).get("flops", float("nan"))
        return {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(template.params)),
            "batch": self.batch,
            "flops_step": flops,
            "flops_image": flops / self.batch,
            "state_bytes": self.needs.given,
            # On each of the devices if it is split over them (devices.fsdp).
            "split_state_bytes": bytes_of_each(template, self.devices),
            "copy_bytes": bytes_of_copy(template),
            "work_bytes": self.needs.work,
            "memory_bytes": self.memory,
            "largest_batch": self._largest_batch(),
            "step_seconds": step / self.devices,
            "step_measured_with": self.step.batch,
            "training_steps": training.schedule.n_iters,
            "training_seconds": step * training.schedule.n_iters / self.devices,
            "evaluation_images": test_images,
            "evaluation_passes": evaluation.num_repeats,
            "likelihood_evaluations": evaluations,
            "pilot": self.experiment.exact and self.experiment.pilot,
            "likelihood_seconds_image": an_image,
            "evaluation_seconds": an_image and an_image * images / self.devices,
            "samples": SAMPLES,
            "sample_evaluations": drawn,
            "samples_seconds": self.forward.seconds * drawn * SAMPLES / self.devices,
            "devices": self.devices,
            "device": jax.devices()[0].device_kind,
        }

    # The training step

    @property
    def batch(self) -> int:
        """Images of a step."""
        return self.experiment.training.data.batch_size

    @property
    def _few(self) -> int:
        least = jax.device_count() * self.experiment.training.config.training.accumulate
        return max(min(FEW * jax.device_count(), self.batch // 2) // least, 1) * least

    @cached_property
    def _program(self) -> Program:
        training = self.experiment.training
        return make_program(
            training.objective.loss, training.optimizer, training.ema_rate,
            seed=self.experiment.seed, accumulate=training.config.training.accumulate,
        )  # fmt: skip

    def _lowered(self, batch: int) -> jax.stages.Lowered:
        shape = (batch, *self.experiment.model.shape)
        template = self.experiment.training.template
        return self._program.lower(template, jax.ShapeDtypeStruct(shape, jnp.uint8))

    @cached_property
    def needs(self) -> Needs:
        """Bytes of a step of the whole batch."""
        return self._needs(self.batch)

    def _needs(self, batch: int) -> Needs:
        if found := needs(self._lowered(batch)):
            return found
        raise UserError("XLA does not say on this device what memory a program takes")

    def _largest_batch(self) -> int:
        """Largest batch beside the state and its copy, over the devices that share it."""
        training, template = self.experiment.training, self.experiment.training.template
        split = training.config.devices.fsdp
        given = bytes_of_each(template, self.devices) if split else self.needs.given
        room = self.memory - given - bytes_of_copy(template)
        few = self._few
        whole = (self.batch, self.needs) if few < self.batch else (2 * few, self._needs(2 * few))
        return self.devices * largest_batch(room, (few, self._needs(few)), whole)

    @cached_property
    def step(self) -> Pace:
        """Pace of a training step of the whole batch, if that fits and does not take too long."""

        def run(batch: int) -> Callable[[], Any]:
            images = self._images(batch)[None]
            state = jax.tree.map(jnp.zeros_like, self.experiment.training.template)

            def call() -> Any:
                nonlocal state
                state, row = self._program(state, images)
                return state, row

            return call

        return self._pace(run)

    # The network

    @cached_property
    def forward(self) -> Pace:
        """Pace of the noise prediction."""
        return self._network(lambda params, x, t: self._noise(params)(x, t))

    @cached_property
    def derivative(self) -> Pace:
        """Pace of the noise prediction and its estimated divergence."""
        divergence = self.experiment.by_ode.divergence

        def estimate(params: Params, x: jax.Array, t: jax.Array) -> Any:
            probes = divergence.draw(key_of(0), x)
            return divergence(lambda y: self._noise(params)(y, t), x, probes)

        return self._network(estimate)

    def _noise(self, params: Params) -> NoiseFn:
        """The noise prediction; where it depends on a code of the image, under one of zeros."""
        model = self.experiment.model.model(params)
        return model.under(jnp.zeros((1, model.coder.bits))).noise if model.coder else model.noise

    def _network(self, function: Callable[[Params, jax.Array, jax.Array], Any]) -> Pace:
        program = compiled(function)

        def run(batch: int) -> Callable[[], Any]:
            x = jnp.asarray(self._images(batch), jnp.float32) / 255
            params = jax.tree.map(jnp.zeros_like, self.experiment.training.template.params)
            return lambda: program(params, x, jnp.full(batch, 0.5))

        return self._pace(run)

    def _likelihood(self) -> tuple[float | None, int | None]:
        """Seconds an image of what eval measures, and the evaluations of the network for it."""
        how = self.experiment
        if how.evaluation.suite or not how.evaluation.enable_bpd:
            return None, None  # of several estimators, or none
        if evaluations := how.evaluation.bound_steps:
            if not how.origin.without_noise:
                evaluations += decoder_draws(InformedDecoder, evaluations)
            return evaluations * self.forward.seconds, evaluations
        if how.evaluation.bound:
            one = self.forward if how.by_elbo.matching == "denoising" else self.derivative
            evaluations = how.by_elbo.draws + decoder_draws(how.by_elbo.decoder, how.by_elbo.draws)
            return evaluations * one.seconds, evaluations
        if not isinstance(how.by_ode.solver, Multistep):
            return None, None  # it takes as many as an image needs
        evaluations = (how.by_ode.solver.steps + 1) * how.by_ode.samples
        return evaluations * self.derivative.seconds, evaluations

    # Time

    def _images(self, batch: int) -> np.ndarray:
        shape = (batch, *self.experiment.model.shape)
        levels = self.experiment.model.pixels.levels
        return np.random.default_rng(0).integers(0, levels, shape, np.uint8)

    def _pace(self, run: Callable[[int], Callable[[], Any]]) -> Pace:
        """Pace of ``run(batch)``: of the whole batch, or of few if it is too large or slow."""
        few = Pace(_seconds(run(self._few)) / self._few, self._few)
        here = memory_here()
        fits = here is None or self.needs.given + self.needs.work <= here.free
        if not fits or few.seconds * self.batch * (CALLS + 1) > LONGEST:
            return few
        return Pace(_seconds(run(self.batch)) / self.batch, self.batch)


def _seconds(call: Callable[[], Any]) -> float:
    """Seconds of one call; the first, which compiles, is left out."""
    jax.block_until_ready(call())
    taken = []
    for _ in range(CALLS):
        began = time.monotonic()
        jax.block_until_ready(call())
        taken.append(time.monotonic() - began)
    return min(taken)
