"""Parameters of a network here from the state dict of the PyTorch module whose layers it names.

A layer has the name that it has in PyTorch, dots included ("down_blocks.0.resnets.1"), so that one
rule finds every tensor: what is called kernel, scale or embedding here is a "weight" there. A
kernel is (*size, in, out) here and (out, in, *size) there. All else has the same layout.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from scoremle.errors import UserError

Path = tuple[str, ...]
Shape = tuple[int, ...]


def from_torch(
    state: Mapping[str, np.ndarray],
    network: nn.Module,
    inputs: tuple[Any, ...],
    theirs: Mapping[str, str] = {},
) -> dict[str, Any]:
    """The parameters of ``network``, float32, from the tensors of ``state``.

    ``inputs``: what the network can be called with. Only the shapes matter.
    ``theirs``: what parts of a name are called there, where that differs.
    Raises UserError for a tensor that is missing, has no place here, or has another shape.
    """
    shapes = flatten_dict(jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"])
    names = {path: _name(path, theirs) for path in shapes}
    _check_names(set(names.values()), set(state))
    return unflatten_dict(
        {path: _translated(state[names[path]], path, shapes[path].shape, names[path])
         for path in shapes}
    )  # fmt: skip


def _name(path: Path, theirs: Mapping[str, str]) -> str:
    *layer, leaf = path
    parts = ".".join([*layer, "bias" if leaf == "bias" else "weight"]).split(".")
    return ".".join(theirs.get(part, part) for part in parts)


def _check_names(needed: set[str], given: set[str]) -> None:
    missing, extra = sorted(needed - given), sorted(given - needed)
    facts = [f"{len(missing)} missing, such as {missing[0]}"] if missing else []
    facts += [f"{len(extra)} without a place in it, such as {extra[0]}"] if extra else []
    if facts:
        raise UserError(
            f"the tensors do not fit the network: {'; '.join(facts)}; "
            "take the configuration that was saved with them"
        )


def _translated(tensor: np.ndarray, path: Path, shape: Shape, name: str) -> np.ndarray:
    kernel = path[-1] == "kernel"
    needed = (*shape[:-3:-1], *shape[:-2]) if kernel else shape
    if tensor.shape != needed:
        raise UserError(
            f"the tensor {name} has the shape {tensor.shape}, and the network needs {needed}; "
            "take the configuration that was saved with it"
        )
    axes = (*range(2, tensor.ndim), 1, 0)
    return np.ascontiguousarray(tensor.transpose(axes) if kernel else tensor, np.float32)
