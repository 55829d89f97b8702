"""Flow++'s variational dequantizer: a flow q(u | x) on (0, 1)^D, given an image x.

    u = sigmoid(f_x(e)),      e ~ N(0, I),      log q(u | x) = log N(e; 0, I) - log |det du/de|

f_x acts on the even and the odd columns of an image, a pair (a, b). Each step normalises both,
mixes the channels of each by a matrix (in the flow for CIFAR-10), changes one of them elementwise,

    b -> e^s logit F(b) + t,        F the distribution function of a mixture of logistics,

where a network of gated convolutions and attention makes s, t and the mixture from a and x, and
exchanges the two. Ho et al. 2019, arXiv 1902.00275.

logit F = log F - log(1 - F) is taken from both logarithms, so that neither tail loses digits. Its
inverse is found by bisection: since F lies between the distribution functions of its components,
the solution of logit F(b) = y lies between the least and the greatest m_k + s_k y.

Names and shapes of parameters are those of the published dequantizers. They include normalisation
and position embeddings of each pixel: parameters belong to one size of image. The first values of
many depend on data, those of the batch that ``init`` is called with: activations begin with mean
zero and a set standard deviation.
"""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scoremle.core.arguments import check_count
from scoremle.errors import UserError
from scoremle.nn.layers import MOST_CHANNELS, MOST_LAYERS
from scoremle.numerics import sum_data
from scoremle.types import AnyArray, Images, PerExample

Pair = tuple[Images, Images]
Mixture = Float[AnyArray, "b h w c k"]
ColumnKernel = Float[AnyArray, "3 3 c k"]
Positions = Float[AnyArray, "h w c"]

# Of each published flow: does it use weight normalisation (and a deep processor), or matrices that
# mix channels (and a shallow one)?
VARIANTS = {"cifar10": False, "imagenet32": True}

# Channels and attention heads of the processor of x, and its blocks in either flow.
CONTEXT, CONTEXT_HEADS, SHALLOW, DEEP = 32, 4, 3, 8
MIN_LOG_SCALE = -7.0
# Halvings of the bracket of an inverse: its width times 2^-60, which is less than rounding error.
BISECTIONS = 60


class FlowPP(nn.Module):
    """u and log q(u | x) in nats, from e and x in [0, 1]; with ``inverse``, e and the same from u.

    In float32 the inverse carries the rounding error of u, which logit enlarges near 0 and 1.

    Args:
        variant: "cifar10" (matrices mix the channels) or "imagenet32" (weight normalisation and a
            deeper network of x).
        filters: channels of the networks in the couplings.
        components: logistics in each mixture.
        blocks: pairs of a convolution and attention in the network of a coupling.
        couplings: steps of the flow.
        heads: heads of attention in a coupling; they divide ``filters``.

    Raises UserError, when it is called, for fields or images that can't be had.
    """

    variant: str = "cifar10"
    filters: int = 96
    components: int = 32
    blocks: int = 2
    couplings: int = 4
    heads: int = 4

    @nn.compact
    def __call__(
        self, value: Images, x: Images, *, inverse: bool = False
    ) -> tuple[Images, PerExample]:
        _check(self, x.shape)
        name = "DeepProcessor_0" if self._weight_norm else "ShallowProcessor_0"
        context = Processor(weight_norm=self._weight_norm, name=name)(x)
        layers = [layer for i in range(self.couplings) for layer in self._step(i, context)]
        given = logit(value) if inverse else value
        pair, log_det = split_columns(given), jnp.zeros(len(value), value.dtype)
        for layer in reversed(layers) if inverse else layers:
            pair, more = layer(pair, inverse)
            log_det = log_det + more
        noise, logits = (merge(pair), given) if inverse else (given, merge(pair))
        log_det = log_det - sum_data(nn.softplus(logits) + nn.softplus(-logits))
        log_q = -sum_data(jnp.square(noise) + math.log(2 * math.pi)) / 2 - log_det
        return (noise if inverse else open_sigmoid(logits)), log_q

    @property
    def _weight_norm(self) -> bool:
        return VARIANTS[self.variant]

    def _step(self, i: int, context: Images) -> list[Callable[[Pair, bool], tuple]]:
        """Step i of the flow, as bijections of a pair with their log-determinants."""
        norm, mix = Norm(name=f"Norm_{i}"), Pointwise(name=f"Pointwise_{i}")
        coupling = Coupling(
            weight_norm=self._weight_norm, filters=self.filters, components=self.components,
            blocks=self.blocks, heads=self.heads, name=f"MixLogisticAttnCoupling_{i}",
        )  # fmt: skip
        last = [lambda pair, inverse: coupling(pair, context, inverse)]
        return [norm, *([] if self._weight_norm else [mix]), *last]


def _check(flow: FlowPP, shape: tuple[int, ...]) -> None:
    if flow.variant not in VARIANTS:
        raise UserError(f"variant is {flow.variant!r}: choose one of {', '.join(VARIANTS)}")
    check_count("blocks", flow.blocks, most=MOST_LAYERS)
    check_count("couplings", flow.couplings, most=MOST_LAYERS)
    for name in ("filters", "components", "heads"):
        check_count(name, getattr(flow, name), most=MOST_CHANNELS)
    if shape[2] % 2:
        raise UserError(
            f"images of size {shape[1]}x{shape[2]}: the dequantizer splits columns into even and "
            "odd ones; pad the images to an even size"
        )
    if flow.filters % flow.heads:
        raise UserError(f"filters={flow.filters} does not divide by heads={flow.heads}")


def split_columns(x: Images) -> Pair:
    """Even and odd columns."""
    return x[:, :, 0::2], x[:, :, 1::2]


def merge(pair: Pair) -> Images:
    """The image of these even and odd columns."""
    b, h, half, c = pair[0].shape
    return jnp.stack(pair, axis=3).reshape(b, h, 2 * half, c)


def logit(u: Array) -> Array:
    return jnp.log(u) - jnp.log1p(-u)


def open_sigmoid(x: Array) -> Array:
    """sigmoid(x), kept from being rounded to 0 or to 1."""
    limits = jnp.finfo(x.dtype)
    return jnp.clip(nn.sigmoid(x), limits.tiny, 1 - limits.epsneg)


# The mixture of logistics ------------------------------------------------------------------------


def mixture_logits(
    x: Images, log_weights: Mixture, means: Mixture, log_scales: Mixture
) -> tuple[Images, Images]:
    """logit F(x), and the logarithm of its derivative."""
    z = (x[..., None] - means) * jnp.exp(-log_scales)
    log_cdf = nn.logsumexp(log_weights + nn.log_sigmoid(z), axis=-1)
    log_rest = nn.logsumexp(log_weights + nn.log_sigmoid(-z), axis=-1)
    pdf_terms = nn.log_sigmoid(z) + nn.log_sigmoid(-z) - log_scales
    log_pdf = nn.logsumexp(log_weights + pdf_terms, axis=-1)
    return log_cdf - log_rest, log_pdf - log_cdf - log_rest


def mixture_quantile(
    y: Images, log_weights: Mixture, means: Mixture, log_scales: Mixture
) -> Images:
    """The x at which logit F(x) = y, by bisection."""
    ends = means + jnp.exp(log_scales) * y[..., None]

    def halve(_: int, bracket: Pair) -> Pair:
        low, high = bracket
        middle = (low + high) / 2
        above = mixture_logits(middle, log_weights, means, log_scales)[0] > y
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (ends.min(-1), ends.max(-1)))
    return (low + high) / 2


def normal_init(scale: float) -> Callable[..., Array]:
    """An initialiser of normal numbers with this standard deviation."""
    return nn.initializers.normal(scale, jnp.float32)


def nearly_identity(key: Array, shape: tuple[int, int]) -> Float[Array, "c c"]:
    return jnp.eye(*shape, dtype=jnp.float32) + normal_init(1e-3)(key, shape)


# Bijections of a pair ----------------------------------------------------------------------------


class Norm(nn.Module):
    """A scale and a shift for each pixel and channel, at first those that normalise the batch."""

    @nn.compact
    def __call__(self, pair: Pair, inverse: bool) -> tuple[Pair, Array]:
        halves, log_det = [], jnp.zeros(())
        for i, h in enumerate(pair):
            g = self.param(f"norm{i}_g", lambda _, h=h: gain(h, axis=0))
            b = self.param(f"norm{i}_b", lambda _, h=h, g=g: -jnp.mean(h, axis=0) * g)
            g = jnp.maximum(g, 1e-10)
            halves.append((h - b) / g if inverse else h * g + b)
            log_det = log_det + jnp.sum(jnp.log(g))
        return (halves[0], halves[1]), log_det


class Pointwise(nn.Module):
    """A matrix that mixes the channels, at first nearly the identity."""

    @nn.compact
    def __call__(self, pair: Pair, inverse: bool) -> tuple[Pair, Array]:
        halves, log_det = [], jnp.zeros(())
        for i, h in enumerate(pair):
            _, height, width, c = h.shape
            w = self.param(f"W{i}", nearly_identity, (c, c))
            halves.append(h @ (jnp.linalg.inv(w) if inverse else w))
            log_det = log_det + height * width * jnp.linalg.slogdet(w)[1]
        return (halves[0], halves[1]), log_det


# Networks ----------------------------------------------------------------------------------------


def gain(y: AnyArray, scale: float = 1.0, axis: int | tuple[int, ...] = (0, 1, 2)) -> Array:
    """Gain that gives ``y`` the standard deviation ``scale``."""
    return scale * jax.lax.rsqrt(jnp.var(y, axis=axis) + 1e-6)


def convolve_same(x: Images, kernel: ColumnKernel) -> Images:
    dtype = jnp.result_type(x, kernel)
    return jax.lax.conv_general_dilated(
        x.astype(dtype), kernel.astype(dtype), (1, 1), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def unit_kernel(v: ColumnKernel) -> Float[Array, "3 3 c k"]:
    """The kernel whose length is one for each output channel."""
    return v * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(v), axis=(0, 1, 2)), 1e-12))


def concat_elu(x: Images) -> Images:
    return nn.elu(jnp.concatenate([x, -x], axis=-1))


def gate(x: Images) -> Images:
    a, b = jnp.split(x, 2, axis=-1)
    return a * nn.sigmoid(b)


class Layers(nn.Module):
    """Layers whose parameters lie side by side in the module, under the published names.

    ``weight_norm``: convolutions are a direction and a gain. Without, they are a plain kernel,
    which the published flow for CIFAR-10 applies with height and width exchanged.
    """

    _: KW_ONLY
    weight_norm: bool

    def conv(self, name: str, x: Images, features: int, scale: float = 1.0) -> Images:
        """A 3x3 convolution, whose output at first has mean 0 and standard deviation ``scale``."""
        shape = (3, 3, x.shape[-1], features)
        if self.weight_norm:
            direction = unit_kernel(self.param(f"{name}_V", normal_init(0.05), shape))
            g = self.param(f"{name}_g", lambda _: gain(convolve_same(x, direction), scale))
            y = convolve_same(x, direction * g)
        else:

            def first(key: Array) -> Array:
                w = normal_init(0.05)(key, shape)
                return w * gain(convolve_same(x, w.swapaxes(0, 1)), scale)

            y = convolve_same(x, self.param(f"{name}_W", first).swapaxes(0, 1))
        return self._centred(name, y)

    def dense(self, name: str, x: Images, features: int, scale: float = 1.0) -> Images:
        """One matrix for all pixels, with the same first statistics."""

        def first(key: Array) -> Array:
            w = normal_init(0.05)(key, (x.shape[-1], features))
            return w * gain(x @ w, scale)

        return self._centred(name, x @ self.param(f"{name}_W", first))

    def _centred(self, name: str, y: Images) -> Images:
        return y + self.param(f"{name}_b", lambda _: -jnp.mean(y, axis=(0, 1, 2)))

    def layer_norm(self, name: str, x: Images) -> Images:
        shape = (1, 1, 1, x.shape[-1])
        g = self.param(f"{name}_g", nn.initializers.ones, shape, jnp.float32)
        b = self.param(f"{name}_b", nn.initializers.zeros, shape, jnp.float32)
        mean = jnp.mean(x, axis=-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(jnp.var(x, axis=-1, keepdims=True) + 1e-5) * g + b

    def gated(
        self, name: str, x: Images, *, context: Images | None = None, pointwise: bool = False
    ) -> Images:
        """x + a gated function of its neighbourhood and, if given, of ``context``."""
        features = x.shape[-1]
        h = self.conv(f"{name}_c1", concat_elu(x), features)
        if context is not None:
            h = h + self.dense(f"{name}_a_proj", concat_elu(context), features)
        last = self.dense if pointwise else self.conv
        return x + gate(last(f"{name}_c2", concat_elu(h), 2 * features, 0.1))

    def attend(self, name: str, x: Images, positions: Positions, heads: int) -> Images:
        """x + a gated function of what its pixels find in all others."""
        b, height, width, c = x.shape
        qkv = self.dense(f"{name}_proj1", x + positions, 3 * c)
        q, k, v = jnp.moveaxis(qkv.reshape(b, height * width, 3, heads, c // heads), 2, 0)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(c // heads)
        h = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(logits), v).reshape(x.shape)
        return x + gate(self.dense(f"{name}_proj2", h, 2 * c, 0.1))

    def positions(self, name: str, x: Images) -> Positions:
        return self.param(name, normal_init(0.01), x.shape[1:])


class Processor(Layers):
    """Features of the image x that all couplings take, for each pair of columns."""

    @nn.compact
    def __call__(self, x: Images) -> Images:
        h = self.conv("proj", jnp.concatenate(split_columns(x - 0.5), axis=-1), CONTEXT)
        if not self.weight_norm:
            for i in range(SHALLOW):
                h = self.gated(f"c{i}", h)
            return h
        positions = self.positions("pos_emb_dq", h)
        for i in range(DEEP):
            h = self.layer_norm(f"dqln{i}", self.gated(f"c{i}", h))
            h = self.layer_norm(f"ln{i}", self.attend(f"dqattn{i}", h, positions, CONTEXT_HEADS))
        return h


class Coupling(Layers):
    """Changes the second of a pair, given the first, and exchanges them."""

    filters: int
    components: int
    blocks: int
    heads: int

    @nn.compact
    def __call__(self, pair: Pair, context: Images, inverse: bool) -> tuple[Pair, PerExample]:
        fixed, h = pair[::-1] if inverse else pair
        log_scale, shift, mixture = self._parameters(fixed, context)
        if inverse:
            h = mixture_quantile((h - shift) * jnp.exp(-log_scale), *mixture)
        y, log_derivative = mixture_logits(h, *mixture)
        new = (fixed, h) if inverse else (y * jnp.exp(log_scale) + shift, fixed)
        return new, sum_data(log_scale + log_derivative)

    def _parameters(
        self, fixed: Images, context: Images
    ) -> tuple[Images, Images, tuple[Mixture, Mixture, Mixture]]:
        """s, t, and the logarithms of weights, the means and log-scales of the mixture."""
        channels = fixed.shape[-1]
        h = self.conv("c1" if self.weight_norm else "proj_in", fixed, self.filters)
        positions = self.positions("pos_emb", h)
        for i in range(self.blocks):
            name = f"block{i}"
            h = self.gated(f"{name}_conv", h, context=context, pointwise=True)
            h = self.layer_norm(f"{name}_ln1", h)
            h = self.attend(f"{name}_attn", h, positions, self.heads)
            h = self.layer_norm(f"{name}_ln2", h)
        # Published with the name of the last block.
        last = f"block{self.blocks - 1}_{'c2' if self.weight_norm else 'proj_out'}"
        h = concat_elu(h) if self.weight_norm else h
        out = self.conv(last, h, channels * (2 + 3 * self.components), 0.1)
        out = out.reshape(*fixed.shape, 2 + 3 * self.components)
        logits, means, log_scales = jnp.split(out[..., 2:], 3, axis=-1)
        mixture = nn.log_softmax(logits), means, jnp.maximum(log_scales, MIN_LOG_SCALE)
        return jnp.tanh(out[..., 0]), out[..., 1], mixture
