"""Computes Inception features of a data set's images, to compare samples with. If it is killed,
the same command resumes.

    scoremle stats cifar10 --weights=inception.npz --out=cifar10.npz
    scoremle stats digits --weights=inception.npz --out=digits.npz --image-size=32
"""

import shlex
from pathlib import Path
from typing import Any

import scoremle
from scoremle.cli import checks
from scoremle.cli import parts as finished
from scoremle.cli.commands.data import DATASETS, SPLITS
from scoremle.cli.parser import Parser
from scoremle.errors import as_flag, named_as
from scoremle.terminal import say

NEEDS = "scoremle.quality.features"


def arguments(parser: Parser) -> None:
    add = parser.add
    add("dataset", f"one of {', '.join(DATASETS)}")
    add("--weights", "weights of Inception, from scoremle convert-inception", type=Path,
        required=True)  # fmt: skip
    add("-o --out", "npz to write, which eval.stats takes", type=Path, required=True,
        metavar="FILE")  # fmt: skip
    add("--path", "folder of the data set, as data.path", default="")
    add("--split", "split to take (train)", choices=SPLITS, default="train")
    add("--image-size", "size to pad the images to with zeros, as data.image_size; 0: as they are",
        type=int, default=0)  # fmt: skip
    add("--force", "overwrite a file that exists", action="store_true")


def check(options: Any) -> None:
    checks.ending("--out=", options.out, ".npz")
    checks.different((options.weights, options.path), options.out)
    checks.writable("--out=", options.out, force=options.force)


def run(options: Any) -> None:
    """Extracts and writes them."""
    from scoremle.quality.features import extract, load_inception, write_reference
    from scoremle.resumable import content_hash, parts_in

    extractor = load_inception(options.weights)
    with named_as(as_flag, ("path", "image_size")):
        found = scoremle.data.load(
            options.dataset, path=options.path, image_size=options.image_size
        )
    images = getattr(found, options.split)
    facts = {
        "dataset": options.dataset.lower(),
        "split": options.split,
        "levels": found.levels,
        "shape": list(images.shape[1:]),
        "data_hash": content_hash(images),
        "version": scoremle.__version__,
    }
    parts = parts_in(finished.above(options.out), {**extractor.identity, **facts})
    label = f"{options.split} images of {facts['dataset']}"
    with finished.kept(parts):
        features = extract(extractor, images, found.levels, folder=parts, label=label)
    check(options)  # another process may have written there
    write_reference(options.out, features["pool_3"], extractor, facts)
    finished.remove(parts)
    say(f"{options.out}: features of {len(images)} {label} ({extractor.name})")
    flags = [f"--config.eval.inception={options.weights}", f"--config.eval.stats={options.out}"]
    say(f"next: scoremle eval WORKDIR --config.eval.enable_sampling {shlex.join(flags)}")
