"""``scoremle stats``: Inception features of a data set's images, to compare samples with.

A run that was killed goes on where it was.
"""

import shutil
from pathlib import Path

import numpy as np

import scoremle
from scoremle import data
from scoremle.cli.commands import Parser
from scoremle.errors import UserError
from scoremle.quality.features import extract, load_inception, write_reference
from scoremle.resumable import content_hash, fingerprint
from scoremle.terminal import say

__all__ = ["main"]


def main(arguments: list[str]) -> None:
    parser = Parser(prog="scoremle stats", description=__doc__)
    parser.add_argument("dataset", help=f"one of {', '.join(data.DATASETS)}")
    parser.add_argument("--weights", type=Path, required=True, help="from convert-inception")
    parser.add_argument("--out", type=Path, required=True, help="the npz to write, for eval.stats")
    parser.add_argument("--path", default="", help="folder of the data set, as data.path")
    parser.add_argument("--split", choices=("train", "test"), default="train")
    parser.add_argument("--image_size", type=int, help="pad with zeros, as data.image_size")
    options = parser.parse_args(arguments)
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


def _images(dataset: str, path: str, split: str, size: int | None) -> tuple[np.ndarray, int]:
    found = data.load(dataset, path=path, image_size=size or 0)
    return (found.train if split == "train" else found.test), found.levels
