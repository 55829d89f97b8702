"""``scoremle convert-inception``: the Inception weights of PyTorch's FID packages, as our npz.

The source is pt_inception-2015-12-05-6726825d.pth (also named weights-inception-...). Its hash is
kept in the npz: only features of those weights are called Inception's in results.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from scoremle.bounded import MAX_MODEL
from scoremle.errors import UserError
from scoremle.files import named, opened
from scoremle.published import pytorch
from scoremle.quality.features import PUBLISHED_SHA256, write_inception
from scoremle.quality.inception import from_torch
from scoremle.terminal import say
from scoremle.training.checkpoints import Damaged

__all__ = ["run"]

ORIGINS = {
    True: "the published weights",
    False: "not the published weights, so results won't be called FID, KID or IS",
}


def run(options: Any) -> None:
    """Converts and writes them."""
    if options.out.suffix != ".npz":
        raise UserError(f"{options.out}: the name to write must end in .npz")
    state = _load(options.weights)
    try:
        params = from_torch(state)
    except UserError as error:
        raise UserError(f"{options.weights} {error}: it is not the Inception of FID") from None
    with opened(named(options.weights), MAX_MODEL) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    write_inception(options.out, params, sha256)
    say(f"{options.out}: {sum(p.size for p in params.values()):,} parameters")
    say(f"sha256 of {options.weights}: {sha256}, {ORIGINS[sha256 == PUBLISHED_SHA256]}")
    say(f"next: scoremle stats DATASET --weights={options.out} --out=STATS.npz")


def _load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a state dict, by name; nothing but arrays is unpickled."""
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        items = pytorch.load(named(path)).items()
    except (Damaged, AttributeError) as error:
        raise UserError(f"{path} is no state dict of PyTorch ({error})") from None
    return {str(name): v.astype(np.float32) for name, v in items if isinstance(v, np.ndarray)}
