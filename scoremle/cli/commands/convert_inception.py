"""Converts the Inception weights of PyTorch's FID packages to the npz that eval and stats take.

    scoremle convert-inception pt_inception-2015-12-05-6726825d.pth fid.npz
    scoremle convert-inception weights-inception-2015-12-05-6726825d.pth fid.npz

The hash of the source is kept in the npz: only features of the published weights are called
Inception's in results.
"""

from pathlib import Path
from typing import Any

from scoremle.cli import checks
from scoremle.cli.parser import Parser
from scoremle.errors import UserError
from scoremle.terminal import say

NEEDS = "scoremle.quality.inception"
OTHERS = "not the published weights, so results won't be called FID, KID or IS"


def arguments(parser: Parser) -> None:
    parser.add("weights", "the state dict, a .pth file", type=Path)
    parser.add("out", "the npz to write", type=Path)
    parser.add("--force", "overwrite a file that exists", action="store_true")


def check(options: Any) -> None:
    checks.ending("", options.out, ".npz")
    checks.exists(options.weights)
    checks.different((options.weights,), options.out)
    checks.writable("", options.out, force=options.force)


def run(options: Any) -> None:
    """Converts and writes them."""
    import numpy as np

    from scoremle.bounded import MAX_MODEL
    from scoremle.files import named, sha256_of
    from scoremle.published import pytorch
    from scoremle.quality.features import PUBLISHED_SHA256, write_inception
    from scoremle.quality.inception import from_state_dict
    from scoremle.training.checkpoints import Damaged

    weights = options.weights
    try:  # nothing but arrays is unpickled
        items = pytorch.load_pth(named(weights)).items()
    except (Damaged, AttributeError) as error:
        raise UserError(f"{weights} is not a state dict of PyTorch ({error})") from None
    state = {str(n): v.astype(np.float32) for n, v in items if isinstance(v, np.ndarray)}
    try:
        params = from_state_dict(state)
    except UserError as error:
        raise UserError(f"{weights} {error}: it is not the Inception of FID") from None
    sha256 = sha256_of(named(weights), MAX_MODEL)
    write_inception(options.out, params, sha256)
    say(f"{options.out}: {sum(p.size for p in params.values()):,} parameters")
    origin = "the published weights" if sha256 == PUBLISHED_SHA256 else OTHERS
    say(f"sha256 of {weights}: {sha256}, {origin}")
    say(f"next: scoremle stats DATASET --weights={options.out} --out=STATS.npz")
