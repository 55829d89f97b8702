"""Fetches public data sets, prepares any, and looks at them.

    scoremle data fetch cifar10
    scoremle data prepare photos/ --size=32 --fit=crop
"""

import argparse
import math
import os
import shlex
from pathlib import Path
from typing import Any

import scoremle
from scoremle.cli.parser import Parser, adder, check_ending
from scoremle.errors import UserError, as_flag, named_as
from scoremle.evaluation.tables import table
from scoremle.terminal import say

# The names in scoremle.data, whose import brings JAX.
DATASETS = (
    "digits", "synthetic", "mnist", "fashion_mnist", "emnist", "cifar10", "cifar100", "imagenet",
    "svhn", "celeba", "celebahq", "ffhq", "lsun", "images", "photos",
)  # fmt: skip
FETCHED = ("cifar10", "cifar100", "mnist", "fashion_mnist", "svhn")
FITS, SPLITS = ("crop", "resize", "pad"), ("train", "test")
TEXTS = {
    "fetch": """brings the files of a public data set into the cache, and goes on where it stopped

    scoremle data fetch cifar10
""",
    "prepare": """turns any source into arrays, checked, once

    scoremle data prepare photos/ --size=32 --fit=crop
    scoremle data prepare cifar10 --path=cifar-10-binary.tar.gz
""",
    "show": """prints the facts of a data set and draws some images

    scoremle data show digits --picture=digits.png
    scoremle data show photos/ --size=32 --fit=crop
""",
}
SHOWN = 64
# Arguments of Python that are flags here.
NAMED = ("path", "fit", "levels", "skip_bad", "test_fraction")


def parser(name: str) -> Parser:
    parser = Parser(name, __doc__, run=run, check=_check, needs="scoremle.data")
    parser.set_defaults(into=None, picture=None, levels=0)
    commands = parser.add_subparsers(dest="what", required=True, parser_class=Parser)
    for what, text in TEXTS.items():
        add = adder(commands.add_parser(what, text=text, help=text.partition("\n")[0]))
        add("--json", "its facts as JSON, on stdout", action="store_true")
        if what == "fetch":
            add("name", f"one of {', '.join(FETCHED)}", metavar="NAME", choices=FETCHED)
            continue
        add("name", f"your own images by their path, or one of {', '.join(DATASETS)}",
            metavar="NAME|PATH")  # fmt: skip
        add("--path", "files of NAME; an own PATH needs none", default="")
        add("--size", "height and width; 0: as it is", type=int, default=0)
        add("--channels", "1: grey, 3: RGB; 0: as the images are", type=int, default=0,
            choices=(0, 1, 3))  # fmt: skip
        add("--fit", "bring other sizes to --size: crop the centre, resize the centred square, or"
            " pad with black", default="", choices=FITS)  # fmt: skip
        add("--levels", "grey levels: 2**bits", type=int, default=0)
        add("--test-fraction", "share of the images to test on, where the source does not say"
            " (default: 0.1)", type=_fraction, default=0.1)  # fmt: skip
        add("--skip-bad", "leave out images that can't be used, and count them",
            action="store_true")  # fmt: skip
        if what == "prepare":
            add("--into", "a new folder; else in the cache", type=Path)
        else:
            add("--split", "which images (train)", default="train", choices=SPLITS)
            add("--picture", "file to draw to: NAME.png", type=Path)
    return parser


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _check(options: Any) -> None:
    if options.picture:
        check_ending("--picture=", options.picture, ".png")
    if options.levels and not 2 <= options.levels <= 256:
        raise UserError(f"--levels must be from 2 to 256, not {options.levels}")
    if options.into and options.into.exists():
        raise UserError(f"--into={options.into} exists; name a new folder, or remove it")


def run(options: Any) -> dict[str, Any]:
    """Runs one of the three; gives the facts of the data set."""
    if options.what == "fetch":
        return _fetch(options.name)
    with named_as(as_flag, NAMED):
        prepared = _prepared(options)
    say(*table(("data set", prepared.meta["name"]), _facts(prepared)).splitlines())
    if options.what == "show":
        _draw(prepared, options.split, options.picture)
    else:
        say("", f"next: {_training(prepared)}")
    return {**prepared.meta, "folder": str(prepared.folder)}


def _fetch(name: str) -> dict[str, Any]:
    with named_as(as_flag, NAMED):
        folder = scoremle.data.fetch(name)
    say(f"{name}: {folder}", "", f"next: scoremle data show {name}")
    return {"name": name, "folder": str(folder), "files": sorted(f.name for f in folder.iterdir())}


def _prepared(options: Any) -> "scoremle.data.Prepared":
    """Finds the data set, or makes it; an own path is a set of images."""
    name, path = options.name, options.path
    if name.lower() not in scoremle.data.DATASETS and (Path(name).exists() or os.sep in name):
        name, path = name_of(Path(name)), name
    try:
        dataset = scoremle.data.lookup(name)
    except UserError as error:
        raise UserError(f"no folder or file {name}, and as a name: {error}") from None
    how = scoremle.data.Options(
        options.size, options.channels, options.fit, options.levels,
        options.test_fraction, options.skip_bad,
    )  # fmt: skip
    if options.into is None:
        return dataset.find(path, how)
    dataset.prepare(dataset.place_of(path), how, options.into)
    return scoremle.data.Prepared(options.into)


def name_of(path: Path) -> str:
    """The data set that a path holds: the one it was prepared as, or one's own images."""
    if not path.exists():
        raise UserError(f"no folder or file {path}")
    if path.is_dir() and scoremle.data.is_prepared(path):
        return str(scoremle.data.Prepared(path).meta["name"])
    return "images"


def _facts(prepared: "scoremle.data.Prepared") -> list[tuple[str, str]]:
    meta = prepared.meta
    counts, shape, levels = meta["counts"], meta["shape"], meta["levels"]
    labels = prepared.labels("train")
    made, default = meta["options"].items(), vars(scoremle.data.Options())
    reduced = f", from {meta['source_levels']}" if levels != meta["source_levels"] else ""
    rows = [
        ("version", meta["version"]),
        ("images", f"{counts['train']} for training, {counts['test']} for testing"),
        ("shape", "x".join(map(str, shape))),
        ("levels", f"{levels} ({math.log2(levels):.4g} bits){reduced}"),
        ("split", meta["split"]),
        ("labels", "none" if labels is None else f"{len({*labels.tolist()})} different"),
        *((what.replace("_", " "), meta.get(what, "")) for what in ("crop", "orientation")),
        *((f"duplicates {where}", str(n)) for where, n in meta["duplicates"].items()),
        ("images of one colour", str(meta["constant_images"])),
        ("skipped, unusable", str(len(meta["skipped"]))),
        *((note, str(n)) for note, n in meta["notes"].items()),
        ("made with", ", ".join(f"{k}={v}" for k, v in made if v != default.get(k))),
        ("source", meta["source"]),
        ("source sha256", meta["source_sha256"]),
        ("folder", str(prepared.folder)),
    ]
    return [(what, value) for what, value in rows if value]


def _training(prepared: "scoremle.data.Prepared") -> str:
    """The command that trains on it."""
    meta = prepared.meta
    size, channels = max(meta["shape"][:2]), meta["shape"][2]
    fields = {"dataset": meta["name"], "path": prepared.folder, "image_size": size}
    fields["num_channels"] = channels
    flags = [f"--config.data.{name}={value}" for name, value in fields.items()]
    return shlex.join(["scoremle", "train", "own_images", f"runs/{meta['name']}", *flags])


def _draw(prepared: "scoremle.data.Prepared", split: str, picture: Path | None) -> None:
    """Images from all over the split, in one picture."""
    from scoremle.evaluation.pictures import write_grid

    images = prepared.images(split)
    shown = min(SHOWN, len(images))
    chosen = [len(images) * i // shown for i in range(shown)]
    path = picture or Path(f"{prepared.meta['name']}.png")
    caption = f"{prepared.meta['name']}: {shown} of {len(images):,} {split} images"
    write_grid(path, images[chosen], prepared.meta["levels"], caption=caption)
    say("", f"{shown} of its {split} images: {path}")
