"""What a PyTorch module costs on each way to JAX, beside the same network in JAX and torch alone.

One U-Net of diffusers with random weights, 0.7 M parameters, images of 16x16x3, four at once, and
one held probe for each. It is measured in JAX (``from_diffusers``), translated by torchax, and in
PyTorch by reverse mode; and with torch alone: torchdiffeq's dopri5 at rtol = atol = 1e-3 and 1e-5,
with value and v'J by autograd, as most PyTorch code has it. Prints seconds of CPU an image, the
same in PyTorch's forward passes (an image, measured here), the solver's error in bits/dim, mean
over the images, and seconds of CPU for compilation. The truth is ours at 512 steps. Needs
diffusers; torchax and torchdiffeq are left out where they are not installed. Under two minutes.

    python benchmarks/interop.py
"""

import math
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from common import KEY, answer, parser_of, timed

import scoremle
from scoremle.core.divergence import FixedProbe, Hutchinson
from scoremle.interop.torch import from_diffusers, from_module
from scoremle.solvers.multistep import Planned

SIZE, BATCH, EPS = 16, 4, 1e-3
NODES, FINEST = (32, 128), 512
TOLERANCES = (1e-3, 1e-5)
SDE = scoremle.VP()
BITS = SIZE * SIZE * 3 * math.log(2)


class Told(torch.nn.Module):
    """A network of diffusers that gives a tensor; its time input is the log-SNR."""

    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return self.unet(x, label, return_dict=False)[0]


def unet() -> torch.nn.Module:
    torch.manual_seed(0)
    network: Any = diffusers.UNet2DModel(
        sample_size=SIZE, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
    )  # fmt: skip
    return network.eval().requires_grad_(False)


def models(network: torch.nn.Module) -> dict[str, scoremle.ScoreModel]:
    pipeline = diffusers.DDPMPipeline(network, diffusers.DDPMScheduler())
    native = from_diffusers(pipeline)
    own: Any = native.noise
    noise = scoremle.noise_fn(own.network, SDE, time_input="log_snr")
    found = {"in JAX": replace(native, noise=noise, sde=SDE, eps=EPS)}
    for by in ("torchax", "torch"):
        if by == "torch" or find_spec(by):
            found[f'by="{by}"'] = from_module(
                Told(network), schedule=SDE, shape=native.shape, time_input="log_snr", eps=EPS,
                by=by,
            )  # fmt: skip
    return found


def by_dopri5(
    network: torch.nn.Module, x: np.ndarray, probe: np.ndarray, tolerance: float
) -> tuple:
    """log p of images as ``log_prob`` has it, of data without noise, and evaluations; in t."""
    from torchdiffeq import odeint

    x, v = (torch.from_numpy(np.moveaxis(a, -1, 1).copy()) for a in (x, probe))
    count, low, high = 0, SDE.beta_min, SDE.beta_max

    def rates(t: torch.Tensor, state: tuple) -> tuple:
        nonlocal count
        count += 1
        integral = low * t + (high - low) * t**2 / 2
        weight = (low + t * (high - low)) / 2
        with torch.enable_grad():
            point = state[0].detach().requires_grad_()
            variance = -torch.expm1(-integral)
            label = (-integral - torch.log(variance)).float().expand(len(x))
            drift = -weight * point + weight / torch.sqrt(variance) * network(point, label)
            (product,) = torch.autograd.grad(drift, point, v)
        return drift.detach(), (product * v).sum((1, 2, 3))

    t = torch.tensor([EPS, 1.0], dtype=torch.float64)
    log_alpha = float(jnp.log(SDE.alpha(jnp.asarray(EPS))))
    start = x * math.exp(log_alpha), torch.full((len(x),), log_alpha * x[0].numel())
    z, change = (a[-1] for a in odeint(rates, start, t, rtol=tolerance, atol=tolerance))
    log_prob = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((1, 2, 3)) + change
    return log_prob.numpy(), count


def main() -> None:
    parser_of(__doc__).parse_args()
    torch.set_num_threads(1)  # several wait for one another by spinning, which is CPU time too
    network = Told(unet())
    x = np.random.default_rng(0).normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32) / 2
    probe = Hutchinson().draw(KEY, jnp.asarray(x))
    forward = forward_seconds(network, x)
    rows, truth = [], None

    @jax.jit
    def log_prob(model, x, solver):
        found = model.log_prob(x, KEY, divergence=FixedProbe(probe), solver=solver)
        return found.log_prob

    def row(name: str, values: np.ndarray, taken: float, compiling: float | None) -> None:
        error = np.abs(np.asarray(values) - truth).mean() / BITS
        each = taken / BATCH
        words = "" if compiling is None else f"{compiling:.1f}"
        rows.append((name, f"{each:.3f}", f"{each / forward:.0f}", f"{error:.1e}", words))

    for name, model in models(network.unet).items():
        plans = {steps: Planned.of(steps, FINEST) for steps in (*NODES, FINEST)}
        (_, first), (_, usual) = (timed(log_prob, model, x, plans[NODES[0]]) for _ in range(2))
        if truth is None:
            truth = np.asarray(log_prob(model, x, plans[FINEST]), np.float64)
        for steps in NODES:
            values, taken = timed(log_prob, model, x, plans[steps])
            compiling = first.computing - usual.computing
            row(f"{name}, {steps} steps", values, taken.computing, compiling)
    if find_spec("torchdiffeq"):
        for tolerance in TOLERANCES:
            (values, count), taken = timed(by_dopri5, network, x, np.asarray(probe[0]), tolerance)
            name = f"torch alone, {tolerance:g}: {count} evaluations"
            row(name, values, taken.computing, None)
    columns = ("way", "CPU s/image", "forward passes", "solver, bits/dim", "compiling, s")
    answer(columns, rows)


def forward_seconds(network: torch.nn.Module, x: np.ndarray) -> float:
    """Seconds of CPU an image of PyTorch's forward pass."""
    images, label = torch.from_numpy(np.moveaxis(x, -1, 1).copy()), torch.full((BATCH,), 500.0)
    with torch.no_grad():
        return min(timed(network, images, label)[1].computing for _ in range(10)) / BATCH


if __name__ == "__main__":
    main()
