"""``scoremle stats``: Inception features of a data set's images, to compare samples with.

A run that was killed goes on where it was.
"""

import shlex
import shutil
from pathlib import Path
from typing import Any

import scoremle
from scoremle.cli.commands.data import DATASETS, SPLITS
from scoremle.cli.parser import Parser, check_ending
from scoremle.terminal import say

__all__ = ["parser", "run"]


def parser(name: str) -> Parser:
    parser = Parser(
        name, run=run, needs="scoremle.quality.features",
        check=lambda options: check_ending("--out=", options.out, ".npz"),
        examples=(
            "cifar10 --weights=inception.npz --out=cifar10.npz",
            "digits --weights=inception.npz --out=digits.npz --image-size=32",
        ),
        description="Inception features of a data set's images, to compare samples with. A run"
        " that was killed goes on where it was.",
    )  # fmt: skip
    add = parser.add_argument
    add("dataset", help=f"one of {', '.join(DATASETS)}")
    add("--weights", type=Path, required=True, help="from convert-inception")
    add("--out", type=Path, required=True, help="the npz to write, for eval.stats")
    add("--path", default="", help="folder of the data set, as data.path")
    add("--split", choices=SPLITS, default="train", help="which images (train)")
    add("--image-size", type=int, default=0, help="pad with zeros, as data.image_size")
    return parser


def run(options: Any) -> None:
    """Extracts and writes them."""
    from scoremle.quality.features import extract, load_inception, write_reference
    from scoremle.resumable import content_hash, fingerprint

    extractor = load_inception(options.weights)
    found = scoremle.data.load(options.dataset, path=options.path, image_size=options.image_size)
    images = getattr(found, options.split)
    facts = {
        "dataset": options.dataset.lower(),
        "split": options.split,
        "levels": found.levels,
        "shape": list(images.shape[1:]),
        "data_hash": content_hash(images),
        "version": scoremle.__version__,
    }
    parts = options.out.with_suffix(f".parts_{fingerprint({**extractor.facts, **facts})}")
    label = f"{options.split} images of {facts['dataset']}"
    features = extract(extractor, images, found.levels, folder=parts, label=label)
    write_reference(options.out, features["pool_3"], extractor, facts)
    shutil.rmtree(parts)
    say(f"{options.out}: features of {len(images)} {label} ({extractor.name})")
    flags = [f"--config.eval.inception={options.weights}", f"--config.eval.stats={options.out}"]
    say(f"next: scoremle eval WORKDIR --config.eval.enable_sampling {shlex.join(flags)}")
