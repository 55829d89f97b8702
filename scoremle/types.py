"""Named array types: what a function takes and gives, with shapes.

Images are NHWC. ``*d`` is any number of data axes, so that every likelihood here works for
vectors and images alike; ``b`` is the batch. Per-example values are in nats until the last line.
Within a signature a name is one size; not so ``_h``, ``_w`` and ``_c``, which a network changes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Array, Float, Integer, Key

# Where an array of JAX is taken, one of numpy may be given. Type checkers see JAX's alone.
if TYPE_CHECKING:
    AnyArray = Array
else:
    AnyArray = Array | np.ndarray

Data = Float[AnyArray, "b *d"]
# Data that users give, for type checkers, too.
DataLike = Float[Array | np.ndarray, "b *d"]
Images = Float[AnyArray, "b _h _w _c"]
# Integers of images or of vectors.
IntImages = Integer[AnyArray, "b *d"]
# Times, or what an SDE has at times; where each dimension has its own, the data's axes follow.
Times = Float[AnyArray, "..."]
# A network's input for the times: integers where it takes whole steps alone.
Labels = Float[AnyArray, "..."] | Integer[AnyArray, "..."]
PerExample = Float[Array, " b"]
# A number, or its tracer in a compiled function.
Scalar = float | Float[Array, ""]
PRNGKey = Key[Array, ""]
# One key, or one for each example.
Keys = Key[Array, "*b"]

# The noise prediction eps(x, t), or eps(x, t, condition), of order one at every t: the primitive
# that everything takes.
NoiseFn = Callable[..., Data]
# The score grad log p_t(x) = -eps(x, t) / sigma_t: a view of it.
ScoreFn = Callable[[Data, Times], Data]
