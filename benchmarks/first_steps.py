"""The first steps of a published training beside PyTorch's, of the same draws.

The network of a config, its first parameters, images, times, noise and dropout are given to the
network of score_sde_pytorch in the tests' own words, to torch's Adam, and to the published loss.

    python benchmarks/first_steps.py --path=FOLDER       # CIFAR-10, or images in its layout
    python benchmarks/first_steps.py --path=FOLDER --config=vp/cifar10_ddpmpp_deep_continuous
    python benchmarks/first_steps.py --path=FOLDER --warmup=0
    python benchmarks/first_steps.py --quick             # a small network, random images

A row is a step: the loss and the norm of its gradient, ours and torch's. Below: how far the steps
moved the parameters and their average, and the distance of the two sides relative to it. The
published warm-up moves parameters by less than 1e-6 in some steps, and a network that begins as 0
gives the mean square of the noise. ``--warmup=0`` has the whole learning rate from the first step
on.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from common import answer, parser_of
from helpers.pytorch_checkpoints import as_pytorch
from helpers.torch_networks import Block, Network

from scoremle.core import loss
from scoremle.experiment.build import build
from scoremle.experiment.config import published_config
from scoremle.nn import layers
from scoremle.training.program import make_program
from scoremle.training.step import init_state

QUICK = {
    "data.image_size": 16, "model.nf": 16, "model.num_res_blocks": 1, "model.ch_mult": (1, 2),
    "model.attn_resolutions": (8,),
}  # fmt: skip

Arrays = Mapping[str, np.ndarray]


class Draws:
    """Draws of a step by its key: the times, the noise, and the keys of dropout.

    Args:
        objective: of the training.
    """

    def __init__(self, objective: Any) -> None:
        self.of = jax.jit(lambda *step: self._recorded(objective, *step))

    def _recorded(self, objective: Any, *step: Any) -> tuple[Any, Any, Any]:
        draw, split = loss.draw, layers.dropout_keys
        drawn: list[Any] = []
        keys: list[Any] = []

        def times_and_noise(*given: Any) -> Any:
            drawn.append(draw(*given))
            return drawn[-1]

        def of_dropout(network: Any, *given: Any) -> Any:
            found = split(network, *given)
            if network.dropout:
                keys.extend(found)
                return iter(keys)
            return found

        with (
            mock.patch.object(loss, "draw", times_and_noise),
            mock.patch.object(layers, "dropout_keys", of_dropout),
        ):
            objective.loss(*step)
        ((t, _, z),) = drawn
        return t, z, keys


class Dropout(torch.nn.Module):
    """Drops what our network drops by ``key``.

    Args:
        rate: the share that is dropped.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.key = rate, jax.random.key(0)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        b, c, *size = h.shape
        kept = layers.drop(jnp.ones((b, *size, c)), self.rate, self.key)
        return h * nchw(kept)


class Torch:
    """The training in PyTorch: the published plain loss, clipping, Adam, warm-up and average.

    Args:
        config: of the training.
        params: ours, to begin with.
    """

    def __init__(self, config: Any, params: Any) -> None:
        data, self.config, self.steps = config.data, config, 0
        self.network = Network(
            config.model.to_dict(), size=data.image_size, channels=data.num_channels,
            centered=data.centered,
        )  # fmt: skip
        own = {name: torch.from_numpy(array) for name, array in named(config, params).items()}
        self.network.load_state_dict({"sigmas": self.network.sigmas, **own})
        self.blocks = [each for each in self.network.modules() if isinstance(each, Block)]
        for block in self.blocks:
            block.Dropout_0 = Dropout(config.model.dropout)
        self.average = [each.detach().clone() for each in self.params]
        optim = config.optim
        self.adam = torch.optim.Adam(
            self.params, lr=optim.lr, betas=(optim.beta1, 0.999), eps=optim.eps
        )

    @property
    def params(self) -> list[torch.Tensor]:
        return list(self.network.parameters())

    def step(self, images: np.ndarray, t: Any, z: Any, keys: Any) -> tuple[float, float]:
        """The loss of a step, and the norm of its gradient."""
        config, optim = self.config, self.config.optim
        for block, key in zip(self.blocks, keys, strict=False):  # there may be more keys
            block.Dropout_0.key = key
        x, noise, time = nchw(images) / 127.5 - 1, nchw(z), torch.from_numpy(np.array(t))
        low, high = config.model.beta_min, config.model.beta_max
        log_alpha = (-(time**2) * (high - low) / 4 - time * low / 2)[:, None, None, None]
        variance = -torch.expm1(2 * log_alpha)
        sigma = variance if config.training.sde == "subvpsde" else variance.sqrt()
        found = self.network(log_alpha.exp() * x + sigma * noise, 999 * time)
        value = (found - noise).square().mean()
        self.adam.zero_grad()
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.params, optim.grad_clip)
        share = min(self.steps / optim.warmup, 1.0) if optim.warmup else 1.0
        self.adam.param_groups[0]["lr"] = share * optim.lr
        self.adam.step()
        self.steps += 1
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.params, 1 - config.model.ema_rate)
        return value.item(), norm.item()


def nchw(images: Any) -> torch.Tensor:
    """Images in torch's order, in single precision."""
    return torch.from_numpy(np.array(images, np.float32)).permute(0, 3, 1, 2)


def named(config: Any, params: Any) -> Arrays:
    """Our parameters, by torch's names and in its layouts."""
    arrays = as_pytorch(config.to_dict(), jax.device_get(params))
    return {name.removeprefix("module."): array for name, array in arrays.items()}


def norm(arrays: Iterable[np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(np.square(each, dtype=np.float64)) for each in arrays)))


def apart(first: Arrays, ours: Arrays, theirs: Mapping[str, torch.Tensor]) -> tuple[float, float]:
    """The distance that parameters moved, and that of torch's from ours relative to it."""
    moved = norm(ours[name] - first[name] for name in theirs)
    return moved, norm(ours[name] - a.detach().numpy() for name, a in theirs.items()) / moved


def measure(config: Any, images: Sequence[np.ndarray], training: Any) -> tuple[Any, Any]:
    """Rows of both sides by step, and how far they are moved and apart."""
    objective, optimizer = training.objective, training.optimizer
    key = jax.random.key(config.seed)
    params = objective.initialiser.init(jax.random.key(config.seed, impl="rbg"), images[0])
    first, theirs = named(config, params), Torch(config, params)
    state = init_state(params, optimizer)
    program = make_program(objective.loss, optimizer, training.ema_rate, seed=config.seed)
    draws, rows = Draws(objective), []
    for number, batch in enumerate(images):
        drawn = draws.of(state.params, batch, jax.random.fold_in(key, number))
        state, metrics = program(state, batch[None])
        ours = [metrics[name].item() for name in ("loss", "grad_norm")]
        rows.append((*ours, *theirs.step(batch, *drawn)))
    names = dict(theirs.network.named_parameters())
    ends = {"parameters": (state.params, theirs.params), "average": (state.ema, theirs.average)}
    return rows, {
        name: apart(first, named(config, ours), dict(zip(names, other, strict=True)))
        for name, (ours, other) in ends.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--config", default="vp/cifar10_ddpmpp_continuous")
    parser.add_argument("--path", type=Path, help="CIFAR-10, or images in its layout")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--warmup", type=int, help="steps; the config's by default")
    parser.add_argument("--quick", action="store_true", help="a small network, random images")
    options = parser.parse_args(arguments)
    given = {"optim.warmup": options.warmup, "data.path": options.path and str(options.path)}
    fields = {name: value for name, value in given.items() if value is not None}
    config = published_config(options.config, {
        "training.batch_size": options.batch, **fields, **(QUICK if options.quick else {}),
    })  # fmt: skip
    training = build(config, levels=256 if options.quick else None).training
    rng, size = np.random.default_rng(0), (options.batch, *training.objective.model.shape)
    images = [
        rng.integers(0, 256, size, np.uint8) if options.quick else training.data.batch(i)
        for i in range(options.steps)
    ]
    rows, ends = measure(config, images, training)
    header = ("step", "loss", "torch's", "relative difference", "gradient", "torch's")
    answer(header, [
        (str(i), f"{a:.6f}", f"{b:.6f}", f"{abs(a / b - 1):.1e}", f"{g:.6f}", f"{h:.6f}")
        for i, (a, g, b, h) in enumerate(rows, 1)
    ])  # fmt: skip
    for name, (moved, distance) in ends.items():
        print(f"{name}: moved by {moved:.3g}, the two sides {distance:.1e} of that apart")
    print(json.dumps({"steps": rows, **ends}))


if __name__ == "__main__":
    main()
