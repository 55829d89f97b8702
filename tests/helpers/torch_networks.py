"""DDPM++ and NCSN++ in PyTorch, with the names, the order and the layouts of score_sde_pytorch.

Written anew for tests, and only what its continuous models for CIFAR-10 are made of: BigGAN
blocks, nearest neighbours and means or the FIR filter, sinusoidal or Fourier embedding, a residual
pyramid of the input or none. Fields are those of ``model.*``. Needs PyTorch.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["Network"]


class Network(nn.Module):
    """``network(x, labels)`` of images in NCHW; all that has parameters is in ``all_modules``."""

    def __init__(self, model, *, size, centered, channels=3):
        super().__init__()
        self.model, self.centered = model, centered
        self.fourier = model["embedding_type"] == "fourier"
        self.residual_input = model["progressive_input"] == "residual"
        self.register_buffer("sigmas", torch.linspace(0, 1, 10))
        self.all_modules = nn.ModuleList(self._parts(size, channels))

    def _parts(self, size, channels):
        model, nf = self.model, self.model["nf"]
        widths = [nf * multiple for multiple in model["ch_mult"]]
        fir = tuple(model["fir_kernel"]) if model["fir"] else None

        def block(inside, outside, resize=None):
            halved_or_doubled = resize and (lambda x: resize(x, fir))
            return Block(inside, outside, 4 * nf, halved_or_doubled, model["dropout"])

        def attention(level):
            return [Attention(widths[level])] if size >> level in model["attn_resolutions"] else []

        if self.fourier:
            yield Fourier(nf, model["fourier_scale"])
        yield nn.Linear(2 * nf if self.fourier else nf, 4 * nf)
        yield nn.Linear(4 * nf, 4 * nf)
        yield nn.Conv2d(channels, nf, 3, padding=1)
        skips, last, pyramid = [nf], nf, channels
        for level, width in enumerate(widths):
            for _ in range(model["num_res_blocks"]):
                yield block(last, width)
                yield from attention(level)
                last = width
                skips.append(last)
            if level < len(widths) - 1:
                yield block(last, last, halve)
                if self.residual_input:
                    yield Halving(pyramid, last, fir)
                    pyramid = last
                skips.append(last)
        yield from (block(last, last), Attention(last), block(last, last))
        for level, width in reversed([*enumerate(widths)]):
            for _ in range(model["num_res_blocks"] + 1):
                yield block(last + skips.pop(), width)
                last = width
            yield from attention(level)
            if level:
                yield block(last, last, double)
        yield from (norm(last), nn.Conv2d(last, channels, 3, padding=1))

    def forward(self, x, labels):
        model, parts = self.model, iter(self.all_modules)
        levels = range(len(model["ch_mult"]))

        def attend(h):
            return next(parts)(h) if h.shape[-1] in model["attn_resolutions"] else h

        waves = next(parts)(labels.log()) if self.fourier else positional(labels, model["nf"])
        embedding = next(parts)(waves)
        embedding = next(parts)(F.silu(embedding))
        x = x if self.centered else 2 * x - 1
        pyramid, skips = x, [next(parts)(x)]
        for level in levels:
            for _ in range(model["num_res_blocks"]):
                skips.append(attend(next(parts)(skips[-1], embedding)))
            if level < levels[-1]:
                h = next(parts)(skips[-1], embedding)
                if self.residual_input:
                    h = pyramid = (next(parts)(pyramid) + h) / math.sqrt(2)
                skips.append(h)
        h = next(parts)(skips[-1], embedding)
        h = next(parts)(h)
        h = next(parts)(h, embedding)
        for level in reversed(levels):
            for _ in range(model["num_res_blocks"] + 1):
                h = next(parts)(torch.cat([h, skips.pop()], dim=1), embedding)
            h = attend(h)
            if level:
                h = next(parts)(h, embedding)
        h = F.silu(next(parts)(h))
        h = next(parts)(h)
        assert next(parts, None) is None
        return h / labels[:, None, None, None] if model["scale_by_sigma"] else h


class Block(nn.Module):
    """norm, act, (resize), conv, bias of the embedding, norm, act, dropout, conv; the shortcut."""

    def __init__(self, inside, outside, embedding, resize, dropout):
        super().__init__()
        self.resize = resize or (lambda x: x)
        self.GroupNorm_0 = norm(inside)
        self.Conv_0 = nn.Conv2d(inside, outside, 3, padding=1)
        self.Dense_0 = nn.Linear(embedding, outside)
        self.GroupNorm_1 = norm(outside)
        self.Dropout_0 = nn.Dropout(dropout)
        self.Conv_1 = nn.Conv2d(outside, outside, 3, padding=1)
        self.Conv_2 = nn.Conv2d(inside, outside, 1) if resize or inside != outside else None

    def forward(self, x, embedding):
        h = self.Conv_0(self.resize(F.silu(self.GroupNorm_0(x))))
        h = h + self.Dense_0(F.silu(embedding))[:, :, None, None]
        h = self.Conv_1(self.Dropout_0(F.silu(self.GroupNorm_1(h))))
        x = self.resize(x)
        return ((self.Conv_2(x) if self.Conv_2 else x) + h) / math.sqrt(2)


class Attention(nn.Module):
    """Self-attention of all pixels, one head."""

    def __init__(self, width):
        super().__init__()
        self.GroupNorm_0 = norm(width)
        for i in range(4):
            setattr(self, f"NIN_{i}", NIN(width))

    def forward(self, x):
        h = self.GroupNorm_0(x)
        q, k, v = (nin(h).flatten(2) for nin in (self.NIN_0, self.NIN_1, self.NIN_2))
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(x.shape[1]), dim=-1)
        h = self.NIN_3((v @ weights.transpose(1, 2)).reshape(x.shape))
        return (x + h) / math.sqrt(2)


class NIN(nn.Module):
    """One matrix (in, out) for all pixels."""

    def __init__(self, width):
        super().__init__()
        self.W = nn.Parameter(torch.zeros(width, width))
        self.b = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return torch.einsum("bchw,cd->bdhw", x, self.W) + self.b[:, None, None]


class Fourier(nn.Module):
    """Sines and cosines of fixed random frequencies: a parameter that is not trained."""

    def __init__(self, width, scale):
        super().__init__()
        self.W = nn.Parameter(scale * torch.randn(width), requires_grad=False)

    def forward(self, x):
        phases = x[:, None] * self.W * 2 * np.pi
        return torch.cat([phases.sin(), phases.cos()], dim=-1)


class Halving(nn.Module):
    """The pyramid's filter and 3x3 convolution with stride 2."""

    def __init__(self, inside, outside, fir):
        super().__init__()
        self.Conv2d_0 = nn.Conv2d(inside, outside, 3, stride=2)
        self.fir = fir

    def forward(self, x):
        return self.Conv2d_0(filtered(x, self.fir, pad=(2, 2)))


def norm(width):
    return nn.GroupNorm(min(width // 4, 32), width, eps=1e-6)


def positional(labels, width):
    frequencies = torch.exp(torch.arange(width // 2) * -(math.log(1e4) / (width // 2 - 1)))
    phases = labels[:, None] * frequencies
    return torch.cat([phases.sin(), phases.cos()], dim=1)


def halve(x, fir):
    return filtered(x, fir, pad=(1, 1))[:, :, ::2, ::2] if fir else F.avg_pool2d(x, 2)


def double(x, fir):
    if not fir:
        return F.interpolate(x, scale_factor=2, mode="nearest")
    spread = F.conv_transpose2d(x.flatten(0, 1)[:, None], torch.ones(1, 1, 1, 1), stride=2)
    return 4 * filtered(spread.reshape(*x.shape[:2], *spread.shape[2:]), fir, pad=(2, 2))


def filtered(x, fir, *, pad):
    """With the outer product of the taps; zeros beyond the border."""
    taps = torch.tensor(fir, dtype=x.dtype) / sum(fir)
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(x, (*pad, *pad)), kernel, groups=x.shape[1])
