"""``scoremle stats``: Inception features of a data set's images, to compare samples with.

A run that was killed goes on where it was.
"""

import shlex
import shutil
from typing import Any

import numpy as np

import scoremle
from scoremle import data
from scoremle.errors import UserError
from scoremle.quality.features import extract, load_inception, write_reference
from scoremle.resumable import content_hash, fingerprint
from scoremle.terminal import say

__all__ = ["run"]


def run(options: Any) -> None:
    """Extracts and writes them."""
    if options.out.suffix != ".npz":
        raise UserError(f"{options.out}: the name to write must end in .npz")
    extractor = load_inception(options.weights)
    images, levels = _images(options.dataset, options.path, options.split, options.image_size)
    facts = {
        "dataset": options.dataset.lower(),
        "split": options.split,
        "levels": levels,
        "shape": list(images.shape[1:]),
        "data_hash": content_hash(images),
        "version": scoremle.__version__,
    }
    parts = options.out.with_suffix(f".parts_{fingerprint({**extractor.facts, **facts})}")
    label = f"{options.split} images of {facts['dataset']}"
    found = extract(extractor, images, levels, folder=parts, label=label)
    write_reference(options.out, found["pool_3"], extractor, facts)
    shutil.rmtree(parts)
    say(f"{options.out}: features of {len(images)} {label} ({extractor.name})")
    flags = [f"--config.eval.inception={options.weights}", f"--config.eval.stats={options.out}"]
    say(f"next: scoremle eval WORKDIR --config.eval.enable_sampling {shlex.join(flags)}")


def _images(dataset: str, path: str, split: str, size: int | None) -> tuple[np.ndarray, int]:
    found = data.load(dataset, path=path, image_size=size or 0)
    return (found.train if split == "train" else found.test), found.levels
