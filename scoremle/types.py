"""Named array types: what a function takes and gives, with shapes.

Images are NHWC. ``*d`` is any number of data axes, so that every likelihood here works for
vectors and images alike; ``b`` is the batch. Per-example values are in nats until the last line.
"""

from collections.abc import Callable

from jaxtyping import Array, Float, Integer, Key

__all__ = [
    "Data",
    "Images",
    "IntImages",
    "Keys",
    "NoiseFn",
    "PRNGKey",
    "PerExample",
    "Scalar",
    "ScoreFn",
    "Times",
]

Data = Float[Array, "b *d"]
Images = Float[Array, "b h w c"]
IntImages = Integer[Array, "b h w c"]
Times = Float[Array, "*b"]
PerExample = Float[Array, " b"]
# A number, or what stands for it in a compiled function.
Scalar = float | Float[Array, ""]
PRNGKey = Key[Array, ""]
# One key, or one for each example.
Keys = Key[Array, "*b"]

# The noise prediction eps(x, t), of order one at every t: the primitive that everything takes.
NoiseFn = Callable[[Data, Times], Data]
# The score grad log p_t(x) = -eps(x, t) / sigma_t: a view of it.
ScoreFn = Callable[[Data, Times], Data]
