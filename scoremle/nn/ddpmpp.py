"""DDPM++ and NCSN++: the U-Nets of score-based diffusion models.

Down through the levels of ``ch_mult``, halving the image at each, up again with a skip connection
from every block, attention where the image has a size in ``attn_resolutions``; the noise level
enters each block as a bias. That is the U-Net of Ho et al. 2020 (DDPM), arXiv 2006.11239. Song et
al. 2021, arXiv 2011.13456, appendix H, add BigGAN blocks, rescaled skips, StyleGAN2's FIR filter
and progressive growing of input and output (Karras et al. 2020, arXiv 1912.04958). DDPM++ takes
the first two with sinusoidal embeddings; NCSN++ takes all with random Fourier features.

The parameter tree has the names and shapes of the published checkpoints.
"""

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from scoremle.core.arguments import check_count, check_number
from scoremle.errors import UserError
from scoremle.nn import layers
from scoremle.types import Images, PRNGKey, Times
from scoremle.xla import compile_once

Embedding = Float[Array, "b e"] | None

_CHOICES = {
    "resblock_type": ("ddpm", "biggan"),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
    "embedding_type": ("positional", "fourier"),
    "nonlinearity": tuple(layers.ACTIVATIONS),
}


class DDPMpp(nn.Module):
    """A noise (or score) network of images and noise labels; fields are those of ``model.*``.

    Args:
        nf: channels of the first level.
        ch_mult: channels of each level, in units of ``nf``; each level halves the image.
        num_res_blocks: residual blocks of a level.
        attn_resolutions: sizes of the image at which there is attention.
        resblock_type: "ddpm" or "biggan".
        dropout: share of activations that training drops.
        fir: resample by a FIR filter.
        fir_kernel: the filter along one axis.
        resamp_with_conv: resample by a convolution, where blocks do not.
        conditional: take the noise label in.
        skip_rescale: divide the sums of residual blocks by sqrt(2).
        scale_by_sigma: divide the output by the label.
        progressive: growing of the output: "none", "output_skip" or "residual".
        progressive_input: growing of the input: "none", "input_skip" or "residual".
        progressive_combine: how the grown input is joined: "sum" or "cat".
        embedding_type: of the label: "positional" or "fourier".
        fourier_scale: standard deviation of random Fourier frequencies.
        trainable_embedding: learn these frequencies.
        init_scale: scale of each block's last layer at first; 0: almost zero.
        nonlinearity: "swish", "elu", "relu" or "lrelu".
        fourier_features: the first layer sees Fourier features of the image, too.
        centered: images come in [-1, 1]; otherwise in [0, 1].
        log_labels: labels are sigma and their logarithm is embedded (geometric VE); otherwise they
            are embedded as they are.
        dtype: what to compute in; parameters and output are float32 (the output float64 where
            dtype is).
        remat: the gradient of training computes residual blocks again, and so keeps less.

    Raises UserError, when it is called, for fields or images that can't be had.

    Example:
        >>> network = scoremle.DDPMpp(nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=())
        >>> x, labels = jnp.ones((2, 4, 4, 1)), jnp.ones(2)
        >>> params = jax.jit(network.init)(jax.random.key(0), x, labels)
        >>> print(f"{jnp.abs(network.apply(params, x, labels)).max():.3f}")  # zero at first
        0.000
    """

    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    resblock_type: str = "biggan"
    dropout: float = 0.0
    fir: bool = False
    fir_kernel: tuple[float, ...] = (1, 3, 3, 1)
    resamp_with_conv: bool = True
    conditional: bool = True
    skip_rescale: bool = True
    scale_by_sigma: bool = False
    progressive: str = "none"
    progressive_input: str = "none"
    progressive_combine: str = "sum"
    embedding_type: str = "positional"
    fourier_scale: float = 16.0
    trainable_embedding: bool = False
    init_scale: float = 0.0
    nonlinearity: str = "swish"
    fourier_features: bool = False
    centered: bool = True
    log_labels: bool = False
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Images, labels: Times, *, shift: Embedding = None, train: bool = False
    ) -> Images:
        """The raw output, of the shape of ``x``. With ``train`` it takes a "dropout" key.

        ``shift`` is added to the embedding of the noise labels, as EDM adds that of a class.
        """
        _check_fields(self)
        _check_images(x.shape, self.ch_mult)
        x, labels = x.astype(self._wide), labels.astype(self._wide)
        blocks = len(self.ch_mult) * (2 * self.num_res_blocks + 3)  # no fewer than there are
        keys = layers.dropout_keys(self, train, blocks)
        block = functools.partial(
            self._block,
            embedding=self._embed(labels, shift),
            keys=keys,
            remat=train and self.remat,
        )
        skips = self._down(x if self.centered else 2 * x - 1, block)
        h = self._middle(skips[-1], block)
        out = self._up(h, skips, x.shape[-1], block)
        return out / labels[:, None, None, None] if self.scale_by_sigma else out

    # The three parts of the U-Net.

    def _down(self, x: Images, block) -> list[Images]:
        """The features after every block, finest first."""
        pyramid = x
        waves = [layers.fourier_features(x)] if self.fourier_features else []
        skips = [self._conv3x3(self.nf)(jnp.concatenate([x, *waves], axis=-1))]
        for level, multiple in enumerate(self.ch_mult):
            for _ in range(self.num_res_blocks):
                skips.append(self._attend(block(skips[-1], features=self.nf * multiple)))
            if level < len(self.ch_mult) - 1:
                h = self._resized(skips[-1], block, halved=True)
                h, pyramid = self._join_input(h, pyramid)
                skips.append(h)
        return skips

    def _middle(self, h: Images, block) -> Images:
        return block(self._attention(block(h)))

    def _up(self, h: Images, skips: list[Images], channels: int, block) -> Images:
        """Up path: from the middle to the output, with the skip features of the way down."""
        pyramid = None
        for level, multiple in reversed(list(enumerate(self.ch_mult))):
            for _ in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, features=self.nf * multiple)
            h, pyramid = self._join_output(self._attend(h), pyramid, channels)
            if level > 0:
                h = self._resized(h, block, halved=False)
        if self.progressive != "output_skip":
            return self._to_image(h, channels)
        assert pyramid is not None  # every level has joined in
        return pyramid

    # Progressive growing: a pyramid of images or features beside the U-Net.

    def _join_input(self, h: Images, pyramid: Images) -> tuple[Images, Images]:
        """Features with the halved input joined in, and the pyramid's next level."""
        if self.progressive_input == "none":
            return h, pyramid
        if self.progressive_input == "input_skip":
            pyramid = self._resampler(layers.Downsample, with_conv=False)(pyramid)
            return layers.Combine(self.progressive_combine, self.dtype)(pyramid, h), pyramid
        to_features = self._resampler(layers.Downsample, with_conv=True, features=h.shape[-1])
        h = layers.add_residual(to_features(pyramid), h, rescale=self.skip_rescale)
        return h, h

    def _join_output(
        self, h: Images, pyramid: Images | None, channels: int
    ) -> tuple[Images, Images | None]:
        """Features, and the pyramid with this level joined in."""
        if self.progressive == "none":
            return h, None
        if self.progressive == "output_skip":
            image = self._to_image(h, channels)
            if pyramid is None:
                return h, image
            return h, self._resampler(layers.Upsample, with_conv=False)(pyramid) + image
        if pyramid is None:
            return h, self._conv3x3(h.shape[-1])(self._normalized(h))
        grown = self._resampler(layers.Upsample, with_conv=True, features=h.shape[-1])(pyramid)
        h = layers.add_residual(grown, h, rescale=self.skip_rescale)
        return h, h

    # The parts, with the fields of this network.

    @property
    def _wide(self) -> jnp.dtype:
        return layers.wide(self.dtype)

    @property
    def _act(self) -> layers.Activation:
        return layers.ACTIVATIONS[self.nonlinearity]

    @property
    def _fir_kernel(self) -> layers.FirKernel:
        return tuple(self.fir_kernel) if self.fir else None

    def _embed(self, labels: Times, shift: Embedding) -> Float[Array, "b features"] | None:
        if self.embedding_type == "positional":
            waves = layers.positional_embedding(labels, self.nf)
        else:
            fourier = layers.GaussianFourierProjection
            project = fourier(self.nf, self.fourier_scale, self.trainable_embedding)
            waves = project(jnp.log(labels) if self.log_labels else labels)
        if not self.conditional:
            return None
        waves = waves if shift is None else waves + shift
        hidden = layers.dense(4 * self.nf, dtype=self.dtype)(waves)
        return layers.dense(4 * self.nf, dtype=self.dtype)(self._act(hidden))

    def _block(
        self, h: Images, *, embedding: Embedding, keys: Iterator[PRNGKey | None], remat: bool,
        **fields: Any,
    ) -> Images:  # fmt: skip
        biggan = self.resblock_type == "biggan"
        kind = layers.ResnetBlockBigGANpp if biggan else layers.ResnetBlockDDPMpp
        block = kind(
            act=self._act, dropout=self.dropout, skip_rescale=self.skip_rescale,
            init_scale=self.init_scale, dtype=self.dtype, **fields,
        )  # fmt: skip
        return compile_once(block, h, embedding, next(keys), remat=remat)

    def _attention(self, h: Images) -> Images:
        return compile_once(layers.AttnBlockpp(self.skip_rescale, self.init_scale, self.dtype), h)

    def _attend(self, h: Images) -> Images:
        return self._attention(h) if h.shape[1] in self.attn_resolutions else h

    def _resampler(self, kind, **fields: Any):
        return kind(fir_kernel=self._fir_kernel, dtype=self.dtype, **fields)

    def _resized(self, h: Images, block, *, halved: bool) -> Images:
        """Features of half or of double the size."""
        if self.resblock_type == "ddpm":
            layer = layers.Downsample if halved else layers.Upsample
            return self._resampler(layer, with_conv=self.resamp_with_conv)(h)
        resize = layers.downsample if halved else layers.upsample
        return block(h, resize=resize, fir_kernel=self._fir_kernel)

    def _conv3x3(self, features: int) -> nn.Conv:
        return layers.conv3x3(features, dtype=self.dtype)

    def _normalized(self, h: Images) -> Images:
        return self._act(layers.group_norm(h.shape[-1], dtype=self.dtype)(h))

    def _to_image(self, h: Images, channels: int) -> Images:
        conv = layers.conv3x3(channels, dtype=self._wide, init_scale=self.init_scale)
        return conv(self._normalized(h))


def _check_fields(net: DDPMpp) -> None:
    for field, choices in _CHOICES.items():
        value = getattr(net, field)
        if value not in choices:
            raise UserError(f"{field} is {value!r}: choose one of {', '.join(choices)}")
    check_count("num_res_blocks", net.num_res_blocks, most=layers.MOST_LAYERS)
    check_count("the length of ch_mult", len(net.ch_mult), most=layers.MOST_RESOLUTIONS)
    for multiple in net.ch_mult:
        check_count("a number of ch_mult", multiple, most=layers.MOST_CHANNELS)
    check_count("nf", net.nf, 4, layers.MOST_CHANNELS)  # as normalisation needs
    for tap in net.fir_kernel:
        check_number("a number of fir_kernel", tap)
    if net.fir and not sum(net.fir_kernel):
        raise UserError(f"fir_kernel={net.fir_kernel}: the filter divides by the sum, which is 0")
    if net.log_labels and net.embedding_type != "fourier":
        raise UserError(
            "labels that are noise levels sigma (geometric VE) need "
            f"embedding_type='fourier', not {net.embedding_type!r}"
        )
    if net.scale_by_sigma and not net.log_labels:
        raise UserError(
            "scale_by_sigma divides by the labels, which are noise levels sigma only for the "
            "geometric VE SDE (log_labels): set scale_by_sigma=False"
        )


def _check_images(shape: tuple[int, ...], ch_mult: tuple[int, ...]) -> None:
    _, height, width, _ = shape
    if height != width:
        raise UserError(f"images are {height}x{width}: the network takes square images; pad them")
    multiple = 2 ** (len(ch_mult) - 1)
    if height % multiple:
        raise UserError(
            f"images of size {height}x{width} cannot be halved {len(ch_mult) - 1} times, which "
            f"ch_mult={ch_mult} needs: take fewer levels, or pad the images to a multiple of "
            f"{multiple}"
        )
