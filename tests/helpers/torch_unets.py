"""The networks of guided diffusion and of EDM in PyTorch, of the tensors of their state dicts.

Written anew for tests, and only what the golden numbers ``adm_guided`` and ``edm_ddpmpp_edm`` are
of. What a layer does, is told by its tensors' names. Images have channels first. Needs PyTorch.
"""

import numpy as np
import torch
from torch.nn import functional as F

__all__ = ["Guided", "Song"]


class Tensors:
    """Layers by name, in float64."""

    def __init__(self, tensors):
        self.tensors = {name: torch.tensor(array).double() for name, array in tensors.items()}

    def has(self, name):
        return any(other.startswith(f"{name}.") for other in self.tensors)

    def of(self, name):
        return self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]

    def conv(self, name, x, **options):
        weight, bias = self.of(name)
        weight = weight[..., None] if weight.ndim == 3 else weight
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, **options)

    def linear(self, name, x):
        return F.linear(x, *self.of(name))


def waves(t, width, last):
    """cos, then sin, of frequencies from 1 to 1/10000, which is number ``last``."""
    phases = t[:, None] * 1e4 ** (-torch.arange(width // 2).double() / last)
    return torch.cat([phases.cos(), phases.sin()], dim=1)


def mixed(q, k, v):
    """Attention of [n heads channels pixels]."""
    weights = torch.softmax(q.transpose(-1, -2) @ k / np.sqrt(q.shape[-2]), dim=-1)
    return v @ weights.transpose(-1, -2)


class Guided(Tensors):
    """``network(x, t, label)``; ``heads`` of attention on the way down, and on the way up."""

    def __init__(self, tensors, heads, heads_up):
        super().__init__(tensors)
        self.heads, self.heads_up = heads, heads_up

    def __call__(self, x, t, label):
        width = self.tensors["time_embed.0.weight"].shape[1]
        h = F.silu(self.linear("time_embed.0", waves(t, width, width // 2)))
        emb = F.silu(self.linear("time_embed.2", h) + self.tensors["label_emb.weight"][label])
        skips, h = [], x
        for number in self.numbers("input_blocks"):
            h = self.block(f"input_blocks.{number}", h, emb, self.heads)
            skips.append(h)
        h = self.block("middle_block", h, emb, self.heads)
        for number in self.numbers("output_blocks"):
            h = torch.cat([h, skips.pop()], dim=1)
            h = self.block(f"output_blocks.{number}", h, emb, self.heads_up)
        return self.conv("out.2", F.silu(self.norm("out.0", h)))

    def numbers(self, way):
        return sorted({int(n.split(".")[1]) for n in self.tensors if n.startswith(way)})

    def norm(self, name, h):
        return F.group_norm(h, 32, *self.of(name), eps=1e-5)

    def block(self, name, h, emb, heads):
        for layer in (f"{name}.{i}" for i in range(3)):
            if self.has(f"{layer}.in_layers"):
                h = self.residual(layer, h, emb)
            elif self.has(f"{layer}.qkv"):
                parts = self.conv(f"{layer}.qkv", self.norm(f"{layer}.norm", h))
                q, k, v = parts.reshape(len(h), heads, 3, -1, h[0, 0].numel()).unbind(2)
                h = h + self.conv(f"{layer}.proj_out", mixed(q, k, v).reshape(h.shape))
            elif self.has(f"{layer}.op"):
                h = self.conv(f"{layer}.op", h, stride=2)
            elif self.has(f"{layer}.conv"):
                h = self.conv(f"{layer}.conv", F.interpolate(h, scale_factor=2))
            elif f"{layer}.weight" in self.tensors:
                h = self.conv(layer, h)
        return h

    def residual(self, name, x, emb):
        h = self.conv(f"{name}.in_layers.2", F.silu(self.norm(f"{name}.in_layers.0", x)))
        scale, shift = self.linear(f"{name}.emb_layers.1", emb)[..., None, None].chunk(2, dim=1)
        h = F.silu(self.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift)
        shortcut = f"{name}.skip_connection"
        x = self.conv(shortcut, x) if self.has(shortcut) else x
        return x + self.conv(f"{name}.out_layers.3", h)


class Song(Tensors):
    """``denoiser(y, sigma, label)`` of EDMPrecond; the tensors are in the order of their use."""

    def __init__(self, tensors, sigma_data):
        super().__init__({n.removeprefix("model."): array for n, array in tensors.items()})
        self.sigma_data = sigma_data

    def __call__(self, y, sigma, label):
        s, total = sigma[:, None, None, None], sigma**2 + self.sigma_data**2
        total = total[:, None, None, None]
        output = self.network(y / total.sqrt(), sigma.log() / 4, label)
        return self.sigma_data * (self.sigma_data * y / total + s * output / total.sqrt())

    def network(self, x, told, label):
        weight, bias = self.of("map_label")
        emb = waves(told, len(weight), len(weight) // 2 - 1).roll(len(weight) // 2, dims=1)
        emb = emb + weight[:, label].T * np.sqrt(weight.shape[1]) + bias
        for name in ("map_layer0", "map_layer1"):
            emb = F.silu(self.linear(name, emb))
        skips, h = [], x
        parts = dict.fromkeys(".".join(name.split(".")[:2]) for name in self.tensors)
        for part in (part for part in parts if part.startswith("enc.")):
            h = self.conv(part, h) if part.endswith("_conv") else self.block(part, h, emb)
            skips.append(h)
        for part in (part for part in parts if part.startswith("dec.") and "aux" not in part):
            if "_block" in part:
                h = torch.cat([h, skips.pop()], dim=1)
            h = self.block(part, h, emb)
        (norm,), (conv,) = ([p for p in parts if p.endswith(f"aux_{n}")] for n in ("norm", "conv"))
        return self.conv(conv, F.silu(self.norm(norm, h)))

    def norm(self, name, h):
        return F.group_norm(h, min(32, h.shape[1] // 4), *self.of(name), eps=1e-6)

    def block(self, name, x, emb):
        def resized(h):
            if name.endswith("_down"):
                return F.avg_pool2d(h, 2)
            return F.interpolate(h, scale_factor=2) if name.endswith("_up") else h

        h = self.conv(f"{name}.conv0", resized(F.silu(self.norm(f"{name}.norm0", x))))
        h = h + self.linear(f"{name}.affine", emb)[..., None, None]
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", h)))
        x = resized(x)
        x = self.conv(f"{name}.skip", x) if self.has(f"{name}.skip") else x
        h = (h + x) / np.sqrt(2)
        if not self.has(f"{name}.qkv"):
            return h
        parts = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", h))
        q, k, v = parts.reshape(len(h), 1, h.shape[1], 3, -1).unbind(3)
        return (h + self.conv(f"{name}.proj", mixed(q, k, v).reshape(h.shape))) / np.sqrt(2)
