"""Checkpoints of score_sde_pytorch (.pth): the same networks under other names and layouts.

There a network is one list, ``all_modules``, in the order in which its parts are used. Parts
without parameters leave a gap in the numbers, and only resampling layers have none. Here a part is
named by its class and its number in the class. Upsample and Downsample are distinguished by the
middle of the U-Net: the one attention that is followed by a block, and that by a block that takes
in more channels than the one before gave.

Kernels are stored as (out, in, height, width) there, dense ones as (out, in). The averaged
parameters are a list, in the order of the named ones, without the fixed Fourier frequencies.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scoremle.bounded import MAX_MODEL
from scoremle.errors import UserError, first_line
from scoremle.files import named, opened
from scoremle.published import torch_file
from scoremle.training.checkpoints import Damaged

__all__ = ["is_torch_file", "load_pth", "network_parameters", "tensors"]

Arrays = Mapping[str, np.ndarray]
Part = dict[str, np.ndarray]

# Four digits are enough, and no list of parts becomes longer.
NAME = re.compile(r"(?:module\.)?all_modules\.(\d{1,4})\.(.+)")
# Kept beside the parameters, and the same for all networks of a configuration.
BUFFERS = re.compile(r"(?:module\.)?sigmas")
# Fixed Fourier frequencies, which are not trained.
FREQUENCIES = "all_modules.0.W"
ATTENTION, BLOCK, RESAMPLER = "AttnBlockpp", "residual block", "resampler"


def is_torch_file(path: Path) -> bool:
    """Whether this is a file of torch.save: a zip with a pickle that names its tensors.

    Args:
        path: of any file.
    """
    with opened(named(path), MAX_MODEL) as file:
        return torch_file.is_zip(file)


def load_pth(path: Path) -> Any:
    """The content of a .pth, its tensors as arrays. No code in it is run.

    Args:
        path: of the file.

    Raises Damaged for one that is damaged, or that would take far more memory than it has bytes.
    """
    with opened(path, MAX_MODEL) as file:
        try:
            return torch_file.read(file, os.fstat(file.fileno()).st_size)
        except MemoryError:
            raise
        except Exception as error:
            # Damaged files come out of pickletools, zipfile and numpy as every kind of exception.
            raise Damaged(f"not a PyTorch checkpoint: {first_line(error, named=True)}") from None


def tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict, by name. Raises UserError for a file of another kind.

    Args:
        path: of the file.
    """
    try:
        content = load_pth(path)
    except Damaged as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, np.ndarray) for name, value in content.items()
    ):
        raise UserError(f"{path} is not a state dict, which has a tensor for each name")
    return content


def trees(content: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Parameters, their average and Adam's two moments, as trees of this library's names."""
    model: Arrays = {n: a for n, a in content["model"].items() if not BUFFERS.fullmatch(n)}
    trained = [name for name in model if not name.endswith(FREQUENCIES)]
    shadow = content["ema"]["shadow_params"]
    if len(shadow) != len(trained):
        raise Damaged(f"it has {len(trained)} parameters and averages of {len(shadow)}")
    average = {**model, **dict(zip(trained, shadow, strict=True))}
    adam = content["optimizer"]["state"]
    moments = (
        {
            name: adam[i][moment] if name in trained else np.zeros_like(model[name])
            for i, name in enumerate(model)
        }
        for moment in ("exp_avg", "exp_avg_sq")
    )
    return tuple(network_parameters(arrays) for arrays in (model, average, *moments))


def network_parameters(arrays: Arrays) -> dict[str, Any]:
    """The tree of parameters of a state dict with names ``all_modules.<number>.<name>``.

    Args:
        arrays: by the names of PyTorch.

    Raises Damaged for a name or a shape that no DDPM++ or NCSN++ has.
    """
    parts: dict[int, Part] = {}
    for name, array in arrays.items():
        match = NAME.fullmatch(name)
        if not match:
            raise Damaged(f"it has {name}, which no DDPM++ or NCSN++ has")
        parts.setdefault(int(match[1]), {})[match[2]] = array
    in_order = [parts.get(number, {}) for number in range(max(parts, default=-1) + 1)]
    return dict(zip(_names(in_order), map(_translated, in_order), strict=True)) if parts else {}


# The order of parts ------------------------------------------------------------------------------


def _names(parts: list[Part]) -> Iterator[str]:
    """Yields for each part the name of its class, and its number among those of the class."""
    kinds = [_kind(part) for part in parts]
    middle = _middle(parts, kinds)
    ddpm = any("NIN_0.W" in part for part, kind in zip(parts, kinds, strict=True) if kind == BLOCK)
    counts: Counter[str] = Counter()
    for i, kind in enumerate(kinds):
        if kind == BLOCK:
            kind = "ResnetBlockDDPMpp" if ddpm else "ResnetBlockBigGANpp"
        elif kind == RESAMPLER:
            kind = "Downsample" if i < middle else "Upsample"
        yield f"{kind}_{counts[kind]}"
        counts[kind] += 1


def _kind(part: Part) -> str:
    if "NIN_3.W" in part:
        return ATTENTION
    if "Conv_1.weight" in part:
        return BLOCK
    if "Conv.weight" in part:
        return "Combine"
    if "W" in part:
        return "GaussianFourierProjection"
    if "weight" in part:
        return {1: "GroupNorm", 2: "Dense"}.get(part["weight"].ndim, "Conv")
    return RESAMPLER


def _middle(parts: list[Part], kinds: list[str]) -> int:
    for place in range(len(parts) - 2):
        if kinds[place : place + 3] == [ATTENTION, BLOCK, BLOCK]:
            before, after = (parts[place + i]["Conv_0.weight"].shape for i in (1, 2))
            if after[1] > before[0]:
                return place
    raise Damaged("its parameters are not those of a DDPM++ or NCSN++")


# One part ----------------------------------------------------------------------------------------


def _translated(part: Part) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in part.items():
        *above, leaf = name.split(".")
        inside = tree
        for level in above:
            inside = inside.setdefault("Conv_0" if level == "Conv" else level, {})
        leaf, value = _leaf(leaf, array, fir="Conv2d_0" in above)
        inside[leaf] = value
    return tree


def _leaf(name: str, array: np.ndarray, *, fir: bool) -> tuple[str, np.ndarray]:
    if name != "weight":
        return name, array
    if array.ndim == 1:
        return "scale", array
    if array.ndim == 2:
        return "kernel", array.T
    return "weight" if fir else "kernel", array.transpose(2, 3, 1, 0)
