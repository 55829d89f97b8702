"""From a network's raw output to the noise prediction, and between noise and score.

The noise prediction eps(x, t) is what everything here takes: it is of order one at every t. The
score is a view of it, score = -eps / sigma_t. With the data x_0 in x = alpha x_0 + sigma eps, a
network may predict instead

    score    -eps / sigma
    x_0      (x - sigma eps) / alpha
    v        alpha eps - sigma x_0              (Salimans and Ho, arXiv 2202.00512)
    u        eps - x_0, the velocity of the straight path (arXiv 2209.03003)
    unit_u   u / sqrt(2), whose variance is one (Zheng et al., arXiv 2305.03935)
    -u       x_0 - eps, the velocity towards the data (arXiv 2210.02747)
    edm      F = (x_0 - c_skip y) / c_out of y = x / alpha, where the network sees c_in y
             (Karras et al., arXiv 2206.00364, table 1)

All are exact, for any alpha and sigma, in a form whose large terms have cancelled. A
network's label for t, its time input, is another choice: ``TIME_INPUTS``. The published networks
get 999 t, or sigma_t of the geometric VE. The embedding of 999 t oscillates several times between
the steps of a solver; one of the log-SNR itself is smooth there, and every solver of the ODE is
cheaper for it (docs/math.md). A network that reads t from a table takes whole steps alone
(``BetweenSteps``).
"""

import math
import sys
from collections.abc import Callable
from dataclasses import field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from scoremle.core.arguments import check_choice, check_number
from scoremle.core.condition import Conditioned
from scoremle.core.pytree import frozen_pytree, known, static
from scoremle.core.sde import SDE, check_dimensions, check_eps, check_sde
from scoremle.errors import UserError
from scoremle.numerics import as_pytree, check_call, check_function, expand, output_of, predict
from scoremle.types import Data, NoiseFn, Scalar, ScoreFn, Times

__all__ = [
    "BETWEEN_REMEDY", "PREDICTIONS", "TIME_INPUTS", "Between", "NetworkNoise", "RangedNoise",
    "TimeInput", "check_model", "check_network", "data_of", "noise_fn", "score_of",
    "time_input_of",
]  # fmt: skip

LABEL_SCALE = 999.0
# Log-SNRs that differ by less at these times are of one SDE.
ALIKE, TIMES = 0.01, np.array([0.01, 0.5, 1], np.float32)
BETWEEN_REMEDY = "between='interpolate' mixes the outputs of the two steps on either side"

Between = Literal["interpolate"]
# (sde, t) -> the label that the network gets for t
TimeInput = Callable[[SDE, Times], Times]


def _steps(sde: SDE, t: Times) -> Times:
    if not hasattr(sde.schedule, "label"):
        raise UserError(
            f"time_input 'step' is of a Discrete schedule, not {type(sde.schedule).__name__}"
        )
    return sde.schedule.label(t)


def _mean_log_snr(sde: SDE, t: Times) -> Times:
    lam = sde.log_snr(t)
    return jnp.mean(lam, axis=tuple(range(t.ndim, lam.ndim)))


TIME_INPUTS: dict[str, TimeInput] = {
    "time": lambda sde, t: t,
    "time_999": lambda sde, t: LABEL_SCALE * t,
    "step": _steps,
    "alpha": lambda sde, t: sde.alpha(t),
    "sigma": lambda sde, t: sde.sigma(t),
    "log_snr": lambda sde, t: sde.log_snr(t),
    "mean_log_snr": _mean_log_snr,  # over dimensions, where each has its own
    "c_noise": lambda sde, t: -sde.log_snr(t) / 8,  # log(sigma / alpha) / 4
}


def time_input_of(choice: str | TimeInput) -> TimeInput:
    """The function of a time input that is given by its name, or itself.

    Args:
        choice: a name of ``TIME_INPUTS``, or a function of (sde, t).
    """
    return TIME_INPUTS[choice] if isinstance(choice, str) else choice


# (output, x, alpha, sigma) -> the noise prediction
PREDICTIONS: dict[str, Callable[[Data, Data, Data, Data], Data]] = {
    "eps": lambda output, x, alpha, sigma: output,
    "score": lambda output, x, alpha, sigma: -sigma * output,
    "x_0": lambda output, x, alpha, sigma: (x - alpha * output) / sigma,
    "v": lambda output, x, alpha, sigma: (
        (alpha * output + sigma * x) / (jnp.square(alpha) + jnp.square(sigma))
    ),
    "u": lambda output, x, alpha, sigma: (alpha * output + x) / (alpha + sigma),
    "unit_u": lambda output, x, alpha, sigma: (
        (math.sqrt(2) * alpha * output + x) / (alpha + sigma)
    ),
    "-u": lambda output, x, alpha, sigma: (x - alpha * output) / (alpha + sigma),
}


@frozen_pytree
class BetweenSteps:
    """Interpolates a network that takes whole steps alone, linearly between two steps.

    The network gets whole numbers as integers, and both steps in one call.

    Args:
        network: gets integers from 0 to ``steps`` - 1 as its label.
        steps: how many there are.
    """

    network: Callable[..., Data]
    steps: int = static()

    def __call__(self, x: Data, label: Times, *condition: Any) -> Data:
        label = jnp.clip(label, 0, self.steps - 1)
        before = jnp.minimum(jnp.floor(label), self.steps - 2)
        both = jnp.concatenate([before, before + 1]).astype(int)
        twice, *given = jax.tree.map(lambda a: jnp.concatenate([a, a]), (x, *condition))
        output = output_of(self.network, twice, both, *given)
        below, above = jnp.split(output, 2)
        share = expand(label - before, x)
        return (1 - share) * below + share * above

    @property
    def way(self) -> str:
        """The network's way to JAX, in words, if it came from elsewhere."""
        return self.network.way  # type: ignore[attr-defined]


@frozen_pytree
class NetworkNoise:
    """The noise prediction of a network: what ``noise_fn`` gives.

    Parameters of the network and numbers of the SDE are leaves. What is static compares equal for
    networks of one architecture, so that they are arguments of one compiled program.

    Args:
        network: a function of x, label and a condition, if it takes one.
        sde: the noise at each time.
        prediction: what the network's output means.
        time_input: its label for t.
        sigma_data: the standard deviation of data that the scales of "edm" are made for.
    """

    network: Callable[..., Data] = field(repr=False)
    sde: SDE
    prediction: str = static()
    time_input: str | TimeInput = static()
    sigma_data: float = static()

    def __call__(self, x: Data, t: Times, condition: Any = None) -> Data:
        alpha, sigma = expand(self.sde.alpha(t), x), expand(self.sde.sigma(t), x)
        label = time_input_of(self.time_input)(self.sde, t)
        given = () if condition is None else (condition,)
        if self.prediction != "edm":
            output = output_of(self.network, x, label, *given)
            return PREDICTIONS[self.prediction](output, x, alpha, sigma)
        scale = jnp.sqrt(jnp.square(sigma) + jnp.square(self.sigma_data * alpha))
        shown = x / scale
        output = output_of(self.network, shown, label, *given)
        return (sigma * shown - self.sigma_data * alpha * output) / scale


@frozen_pytree
class RangedNoise:
    """The noise prediction of a network with a second output, the variance of its steps.

    ``noise`` is that of the network with all its channels: the second half are v.
    """

    noise: NetworkNoise

    @property
    def network(self) -> Callable[..., Data]:
        return self.noise.network

    def __call__(self, x: Data, t: Times, condition: Any = None) -> Data:
        return self.both(x, t, condition)[0]

    def both(self, x: Data, t: Times, condition: Any = None) -> tuple[Data, Data]:
        """eps, and v: -1 for the least variance, 1 for the greatest.

        Args:
            x: [b *d] noisy data.
            t: [b] times.
            condition: what the network takes, if it takes one.
        """
        channels, behind = x.shape[-1], []

        def first_half(*inputs: Any) -> Data:
            output = output_of(self.noise.network, *inputs, channels=2)
            behind.append(output[..., channels:])
            return output[..., :channels]

        prediction = replace(self.noise, network=first_half)(x, t, condition)
        return prediction, behind[0]


def noise_fn(
    network: Callable[..., Data],
    sde: SDE,
    *,
    prediction: str = "eps",
    time_input: str | TimeInput = "log_snr",
    between: Between | None = None,
    sigma_data: float = 0.5,
) -> NetworkNoise:
    """The noise prediction of ``network(x, label)``, or of ``network(x, label, condition)``.

    Args:
        network: a function, which is part of a compiled program with the arrays that it closes
            over; or a pytree whose leaves are its parameters, such as
            ``jax.tree_util.Partial(apply, params)`` of ``apply(params, x, label)``.
        sde: the noise at each time.
        prediction: what its output means: "eps", "score", "x_0", "v", "u", "unit_u", "-u"
            or "edm".
        time_input: its label for t: "time", "time_999", "step" (the number of a discrete
            schedule's step), "alpha", "sigma", "log_snr", "mean_log_snr" (over dimensions),
            "c_noise" (log(sigma/alpha) / 4), or a function of (sde, t).
        between: "interpolate" for a network that takes whole steps alone, as one with a table of
            times does: its outputs at the two steps on either side are mixed, at twice the cost.
            None: its label is any number.
        sigma_data: the standard deviation of data that the scales of "edm" are made for.

    Raises UserError for another prediction, time_input or ``between``, for ``between`` without
    the steps of a discrete schedule as labels, and for a sigma_data that is not above 0.

    Example:
        >>> def network(x, log_snr):  # E[x_0 | x] of data N(0, I)
        ...     return jnp.sqrt(jax.nn.sigmoid(log_snr))[:, None] * x
        >>> sde, x, t = scoremle.VP(), jnp.ones((1, 2)), jnp.full(1, 0.3)
        >>> noise = scoremle.noise_fn(network, sde, prediction="x_0")
        >>> print(f"{noise(x, t)[0, 0] / sde.sigma(0.3):.4f}")
        1.0000
    """
    check_sde(sde)
    check_choice("prediction", prediction, (*PREDICTIONS, "edm"))
    if callable(time_input):
        check_call(time_input, sde, TIMES)
    else:
        check_choice("time_input", time_input, TIME_INPUTS)
    check_number("sigma_data", sigma_data, above=0)
    network = as_pytree(network, "network")
    if between is not None:
        check_choice("between", between, ("interpolate",))
        if time_input != "step" or not hasattr(sde.schedule, "steps"):
            raise UserError("between is of networks with time_input='step' of a Discrete schedule")
        network = BetweenSteps(network, sde.schedule.steps)
    return NetworkNoise(network, sde, prediction, time_input, sigma_data)


def check_model(noise: NoiseFn, sde: SDE, eps: Scalar, shape: tuple[int, ...]) -> None:
    """Raises UserError for an eps that ``sde`` does not have, and as ``check_network``.

    Args:
        noise: the noise prediction.
        sde: the noise at each time.
        eps: the smallest time.
        shape: of one example.
    """
    check_eps(sde, eps)
    check_network(noise, sde, shape)


def check_network(noise: NoiseFn, sde: SDE, shape: tuple[int, ...] | None = None) -> None:
    """Raises UserError for noise that is no function of JAX, no SDE, and noise for another SDE.

    Args:
        noise: the noise prediction; what is not of ``noise_fn`` has no SDE to compare.
        sde: the noise at each time; one of other dimensions than an example's is refused, too.
        shape: of one example; None where it is not known yet.
    """
    check_function("noise", noise)
    check_sde(sde)
    _check_made_for(noise, sde)
    if shape is not None:
        check_dimensions(sde, shape)


def _check_made_for(noise: NoiseFn, sde: SDE) -> None:
    """Raises UserError for a PyTorch module, and for a network of another SDE."""
    while isinstance(noise, Conditioned | RangedNoise):
        noise = noise.noise
    network = noise.network if isinstance(noise, NetworkNoise) else noise
    torch = sys.modules.get("torch")
    if torch and isinstance(getattr(network, "func", network), torch.nn.Module):
        raise UserError(
            "noise must be a function of JAX, not a PyTorch module: give the module to"
            " scoremle.interop.torch.from_module"
        )
    if not isinstance(noise, NetworkNoise) or noise.sde is sde or not known((noise.sde, sde)):
        return
    if noise.sde.kernel != sde.kernel or _apart(noise.sde, sde) > ALIKE:
        raise UserError(
            f"noise is made for {noise.sde!r}, and sde is {sde!r}: give noise_fn the model's SDE"
        )


def _apart(one: SDE, other: SDE) -> float:
    """The most that log-SNRs differ by; not known where a code decides: 0."""
    if one.schedule.per_example or other.schedule.per_example:
        return 0.0
    with jax.ensure_compile_time_eval():
        first, second = (sde.log_snr(TIMES) for sde in (one, other))
        both = np.asarray(expand(first, second)), np.asarray(expand(second, first))
    try:
        return float(np.abs(np.subtract(*both)).max())
    except ValueError:  # they are of other dimensions
        return math.inf


def score_of(noise: NoiseFn, sde: SDE) -> ScoreFn:
    """The score that belongs to a noise prediction.

    Args:
        noise: eps(x, t).
        sde: the SDE that it belongs to.
    """
    return lambda x, t: -predict(noise, x, t) / expand(sde.sigma(t), x)


def data_of(noise: NoiseFn, sde: SDE) -> Callable[[Data, Times], Data]:
    """The estimate of the data, E[x_0 | x_t], that belongs to a noise prediction (Tweedie).

    Args:
        noise: eps(x, t).
        sde: the SDE that it belongs to.
    """
    return lambda x, t: (
        (x - expand(sde.sigma(t), x) * predict(noise, x, t)) / expand(sde.alpha(t), x)
    )
