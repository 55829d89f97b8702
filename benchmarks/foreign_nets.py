"""Networks that others trained, in PyTorch, with the names and shapes that their files have.

``FashionUNet`` is the DDPM of Fashion-MNIST, and ``ImageFlow`` the two flows of MNIST, of the
files that foreign.py names. ``planar`` reads a flow of the plane. No code in a file is run:
tensors are all that is read.
"""

import math
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# --- DDPM of Fashion-MNIST ----------------------------------------------------------------------


class Block(nn.Module):
    """Two convolutions after a normalization over the whole image."""

    def __init__(self, size: int, inside: int, out: int) -> None:
        super().__init__()
        self.ln, self.normalized = nn.LayerNorm((inside, size, size)), True
        self.conv1 = nn.Conv2d(inside, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln(x) if self.normalized else x
        return F.silu(self.conv2(F.silu(self.conv1(x))))


def blocks(size: int, *channels: int) -> nn.Sequential:
    return nn.Sequential(*(Block(size, *pair) for pair in pairwise(channels)))


def of_time(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(100, channels), nn.SiLU(), nn.Linear(channels, channels))


class FashionUNet(nn.Module):
    """A noise prediction of 28x28 images and a step's number, which it looks up in a table."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embed = nn.Embedding(1000, 100)
        self.te1, self.b1 = of_time(1), blocks(28, 1, 10, 10, 10)
        self.te2, self.b2 = of_time(10), blocks(14, 10, 20, 20, 20)
        self.te3, self.b3 = of_time(20), blocks(7, 20, 40, 40, 40)
        self.te_mid, self.b_mid = of_time(40), blocks(3, 40, 20, 20, 40)
        self.te4, self.b4 = of_time(80), blocks(7, 80, 40, 20, 20)
        self.te5, self.b5 = of_time(40), blocks(14, 40, 20, 10, 10)
        self.te_out, self.b_out = of_time(20), blocks(28, 20, 10, 10, 10)
        self.b_out[-1].normalized = False  # though its file has weights for it
        self.down1, self.down2 = (nn.Conv2d(n, n, 4, 2, 1) for n in (10, 20))
        self.up2, self.up3 = (nn.ConvTranspose2d(n, n, 4, 2, 1) for n in (20, 10))
        self.down3 = nn.Sequential(nn.Conv2d(40, 40, 2, 1), nn.SiLU(), nn.Conv2d(40, 40, 4, 2, 1))
        self.up1 = nn.Sequential(
            nn.ConvTranspose2d(40, 40, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(40, 40, 2, 1)
        )
        self.conv_out = nn.Conv2d(10, 1, 3, padding=1)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        time = self.time_embed(step)

        def conditioned(h: Tensor, shift: nn.Module, block: nn.Module) -> Tensor:
            return block(h + shift(time)[:, :, None, None])

        a = conditioned(x, self.te1, self.b1)
        b = conditioned(self.down1(a), self.te2, self.b2)
        c = conditioned(self.down2(b), self.te3, self.b3)
        h = conditioned(self.down3(c), self.te_mid, self.b_mid)
        h = conditioned(torch.cat((c, self.up1(h)), 1), self.te4, self.b4)
        h = conditioned(torch.cat((b, self.up2(h)), 1), self.te5, self.b5)
        h = conditioned(torch.cat((a, self.up3(h)), 1), self.te_out, self.b_out)
        return self.conv_out(h)


# --- Flows of MNIST -----------------------------------------------------------------------------


class TwoSided(nn.Module):
    """ELU of x and of -x, one after the other in the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((F.elu(x), F.elu(-x)), 1)


class ChannelNorm(nn.Module):
    """Normalization over the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, 1, keepdim=True, correction=0)
        return (x - mean) * torch.rsqrt(variance + 1e-5) * self.gamma + self.beta


class Gated(nn.Module):
    """A residual block, whose sum has a gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            TwoSided(), nn.Conv2d(2 * channels, channels, 3, padding=1),
            TwoSided(), nn.Conv2d(2 * channels, 2 * channels, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.net(x).chunk(2, 1)
        return x + value * torch.sigmoid(gate)


class CouplingNet(nn.Module):
    def __init__(self, inside: int, hidden: int) -> None:
        super().__init__()
        gated = [part for _ in range(3) for part in (Gated(hidden), ChannelNorm(hidden))]
        self.nn = nn.Sequential(
            nn.Conv2d(inside, hidden, 3, padding=1), *gated,
            TwoSided(), nn.Conv2d(2 * hidden, 2, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.nn(x)


class Coupling(nn.Module):
    """An affine map of the pixels outside of a mask by those within it."""

    def __init__(self, inside: int, hidden: int) -> None:
        super().__init__()
        self.network = CouplingNet(inside, hidden)
        self.scaling_factor = nn.Parameter(torch.zeros(1))
        self.register_buffer("mask", torch.zeros(1, 1, 28, 28))

    def map_of(self, z: Tensor, *beside: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the scale, and the shift."""
        scale, shift = self.network(torch.cat((z * self.mask, *beside), 1)).chunk(2, 1)
        limit, changed = self.scaling_factor.exp(), 1 - self.mask
        return torch.tanh(scale / limit) * limit * changed, shift * changed

    def forward(self, z: Tensor, *beside: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.map_of(z, *beside)
        return (z + shift) * log_scale.exp(), log_scale.sum((1, 2, 3))

    def back(self, z: Tensor) -> Tensor:
        log_scale, shift = self.map_of(z)
        return z * (-log_scale).exp() - shift


class Dequantization(nn.Module):
    """Noise within the levels: uniform, or of couplings that see the image."""

    def __init__(self, couplings: int) -> None:
        super().__init__()
        self.flows = nn.ModuleList(Coupling(2, 16) for _ in range(couplings))

    def forward(self, u: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """The noise of uniform u, and the logarithm of its density."""
        z, gain = logit(u)
        for coupling in self.flows:
            z, more = coupling(z, image / 255 * 2 - 1)
            gain = gain + more
        u = from_logit(z)
        return u, logit(u)[1] - gain


class ImageFlow(nn.Module):
    """log p of y = (k + u) / 256: a logit, eight couplings, and a standard normal."""

    def __init__(self, dequantizing: int) -> None:
        super().__init__()
        first = Dequantization(dequantizing)
        self.flows = nn.ModuleList([first, *(Coupling(1, 32) for _ in range(8))])

    def latents(self, y: Tensor) -> tuple[Tensor, Tensor]:
        z, gain = logit(y)
        for coupling in self.flows[1:]:
            z, more = coupling(z)
            gain = gain + more
        return z, gain

    def log_prob(self, y: Tensor) -> Tensor:
        z, gain = self.latents(y)
        normal = -(z**2) / 2 - math.log(2 * math.pi) / 2
        return gain.double() + normal.double().sum((1, 2, 3))

    def data(self, z: Tensor) -> Tensor:
        for coupling in reversed(self.flows[1:]):
            z = coupling.back(z)
        return from_logit(z)


# The unit interval is drawn in so far before its logit.
MARGIN = 1e-5


def logit(u: Tensor) -> tuple[Tensor, Tensor]:
    """logit of u, drawn in from 0 and 1, and the logarithm of its derivative, over the image."""
    inner = u * (1 - MARGIN) + MARGIN / 2
    log, log_rest = inner.log(), torch.log1p(-inner)
    return log - log_rest, (math.log1p(-MARGIN) - log - log_rest).sum((1, 2, 3))


def from_logit(z: Tensor) -> Tensor:
    return (torch.sigmoid(z) - MARGIN / 2) / (1 - MARGIN)


# --- Flows of the plane, and their files --------------------------------------------------------


class Planar(nn.Module):
    """A velocity of points in the plane, by an MLP of (x, t)."""

    def __init__(self) -> None:
        super().__init__()
        sizes, layers = (3, 64, 64, 64, 2), list[nn.Module]()
        for inside, out in pairwise(sizes):
            layers += [nn.Linear(inside, out), nn.SELU()]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat((x, t[:, None]), 1))


def planar(path: Path) -> Planar:
    """The velocity in a file that is a pickle of a whole module, by its arrays alone."""
    net = Planar()
    with zipfile.ZipFile(path) as file:
        above = file.namelist()[0].split("/")[0]
        for i, parameter in enumerate(net.parameters()):
            values = np.frombuffer(file.read(f"{above}/data/{i}"), np.float32)
            parameter.data = torch.tensor(values).reshape(parameter.shape)
    return net


def filled(module: nn.Module, path: Path) -> nn.Module:
    """The module with the tensors of a file, each of which has its place in it."""
    held: Any = torch.load(path, map_location="cpu", weights_only=True)
    tensors = held.get("state_dict", held)
    module.load_state_dict({name.removeprefix("network."): tensors[name] for name in tensors})
    return module.eval()
