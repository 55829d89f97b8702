"""Weights by a formula, so that golden numbers need not hold them."""

import numpy as np

__all__ = ["drawn"]


def drawn(shapes):
    """Random tensors, drawn in the order of their names."""
    rng = np.random.RandomState(0)
    tensors = {}
    for name in sorted(shapes):
        z = rng.standard_normal(shapes[name])
        is_scale = z.ndim == 1 and name.endswith("weight")
        spread = np.prod(z.shape[1:]) ** -0.5 if z.ndim > 1 else 0.3
        tensors[name] = (is_scale + spread * z).astype(np.float32)
    return tensors
