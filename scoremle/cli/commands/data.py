"""Fetches public data sets, prepares any data set, and shows it.

    scoremle data fetch cifar10
    scoremle data prepare pictures/ --size=32 --fit=crop
"""

import math
import os
import shlex
from pathlib import Path
from typing import Any

import scoremle
from scoremle.cli import checks
from scoremle.cli.parser import FITS, Parser
from scoremle.errors import UserError, as_flag, by, named_as
from scoremle.evaluation.tables import table
from scoremle.terminal import say

NEEDS = "scoremle.data"
# The names in scoremle.data, whose import brings JAX.
DATASETS = (
    "digits", "synthetic", "mnist", "fashion_mnist", "emnist", "cifar10", "cifar100", "imagenet",
    "svhn", "celeba", "celebahq", "ffhq", "lsun", "images", "photos",
)  # fmt: skip
FETCHED = ("cifar10", "cifar100", "mnist", "fashion_mnist", "svhn")
SPLITS = ("train", "test")
# The network of the config own_images halves its images twice.
MULTIPLE = 4
SHOWN = 64
# Arguments of Python that are flags here.
NAMED = ("path", "size", "channels", "fit", "levels", "skip_bad", "test_fraction")


def arguments(parser: Parser) -> None:
    parser.set_defaults(into=None, picture=None, levels=0)
    for what, add in parser.add_commands(RUNS):
        add("--json", "facts of the data set as JSON, on stdout", action="store_true")
        if what == "fetch":
            add("name", f"one of {', '.join(FETCHED)}", metavar="NAME", choices=FETCHED)
            continue
        add("name", f"your own images by their path, or one of {', '.join(DATASETS)}",
            metavar="NAME|PATH")  # fmt: skip
        add("--path", "files of NAME; not needed for your own PATH", default="")
        add("--size", "height and width; 0: as the images are", type=checks.at_least(0), default=0)
        add("--channels", "1: grey, 3: RGB; 0: as the images are", type=int, default=0,
            choices=(0, 1, 3))  # fmt: skip
        add("--fit", "bring other sizes to --size: crop the centre, resize the centred square, or"
            " pad with black", default="", choices=FITS)  # fmt: skip
        add("--levels", "reduce to so many grey levels, 2 to 256; 0: as the images are",
            type=int, default=0)  # fmt: skip
        add("--test-fraction", "share of the images to test on, where the source has no split"
            " (0.1)", type=checks.fraction, default=0.1)  # fmt: skip
        add("--skip-bad", "leave out images that can't be used, and count them",
            action="store_true")  # fmt: skip
        if what == "prepare":
            add("--into", "a new folder; unset: in the cache", type=Path)
        else:
            add("--split", "split to draw from (train)", default="train", choices=SPLITS)
            add("--picture", "picture to write (NAME.png)", type=Path)


def check(options: Any) -> None:
    if options.picture:
        checks.ending("--picture=", options.picture, ".png")
        checks.writable("--picture=", options.picture, force=None)
    if options.levels and not 2 <= options.levels <= 256:
        raise UserError(f"--levels must be from 2 to 256, not {options.levels}")
    if options.into and options.into.exists():
        raise UserError(f"--into={options.into} exists; name a new folder, or remove it")


def run(options: Any) -> dict[str, Any]:
    """Runs one of the three; gives the facts of the data set."""
    with named_as(as_flag, NAMED):
        return RUNS[options.what](options)


def _fetch(options: Any) -> dict[str, Any]:
    """Downloads the files of a public data set into the cache. If it is stopped, it resumes.

        scoremle data fetch cifar10
    """
    name = options.name
    folder = scoremle.data.fetch(name)
    say(f"{name}: {folder}", "", f"next: scoremle data show {name}")
    return {"name": name, "folder": str(folder), "files": sorted(f.name for f in folder.iterdir())}


def _prepare(options: Any) -> dict[str, Any]:
    """Converts images of any format to arrays, and checks them.

        scoremle data prepare pictures/ --size=32 --fit=crop
        scoremle data prepare cifar10 --path=cifar-10-binary.tar.gz
    """
    prepared, facts = _listed(options)
    say("", f"next: {_training(prepared)}")
    return facts


def _show(options: Any) -> dict[str, Any]:
    """Prints the facts of a data set and draws some images.

        scoremle data show digits --picture=digits.png
        scoremle data show pictures/ --size=32 --fit=crop
    """
    from scoremle.evaluation.pictures import write_grid

    name = data_named(options.name, options.path)[0].name
    path = options.picture or Path(f"{name}.png")
    checks.writable("--picture=", path, force=None)
    prepared, facts = _listed(options)
    images = prepared.images(options.split)
    shown = min(SHOWN, len(images))
    chosen = [len(images) * i // shown for i in range(shown)]  # from all over the split
    caption = f"{name}: {shown} of {len(images):,} {options.split} images"
    write_grid(path, images[chosen], facts["levels"], caption=caption)
    say("", f"{shown} of its {options.split} images: {path}")
    return facts


RUNS = {"fetch": _fetch, "prepare": _prepare, "show": _show}


def _listed(options: Any) -> tuple["scoremle.data.Prepared", dict[str, Any]]:
    """The data set, and its facts, which are printed."""
    prepared = _prepared(options)
    say(*table(("data set", prepared.meta["name"]), _rows(prepared)).splitlines())
    return prepared, {**prepared.meta, "folder": str(prepared.folder)}


def _prepared(options: Any) -> "scoremle.data.Prepared":
    """Finds the data set, or makes it."""
    dataset, path = data_named(options.name, options.path)
    how = scoremle.data.Options(
        options.size, options.channels, options.fit, options.levels,
        options.test_fraction, options.skip_bad,
    )  # fmt: skip
    for what in ("size", "channels", "fit"):
        if getattr(how, what) and what not in dataset.options:
            own = f"; for the folder give {options.name}/" * Path(options.name).is_dir()
            raise UserError(
                f"--{what} is not for {dataset.name}: its images stay as they are{own}"
            )
    if options.into is None:
        return dataset.find(path, how)
    if path and scoremle.data.is_prepared(Path(path)):
        raise UserError(f"{path} is prepared already: copy it, or prepare what it was made of")
    dataset.prepare(dataset.place_of(path), how, options.into)
    return scoremle.data.Prepared(options.into)


def data_named(name: str, path: str = "") -> tuple["scoremle.data.Dataset", str]:
    """The data set that is meant, and its path; an own path is a set of images."""
    if name.lower() not in scoremle.data.DATASETS and (Path(name).exists() or os.sep in name):
        name, path = name_of(Path(name)), name
    try:
        return scoremle.data.lookup(name), path
    except UserError as error:
        raise UserError(f"no folder or file {name}, and as a name: {error}") from None


def name_of(path: Path) -> str:
    """The data set that a path holds: the one it was prepared as, or one's own images."""
    checks.exists(path)
    if path.is_dir() and scoremle.data.is_prepared(path):
        return str(scoremle.data.Prepared(path).meta["name"])
    return "images"


def _rows(prepared: "scoremle.data.Prepared") -> list[tuple[str, str]]:
    meta = prepared.meta
    counts, shape, levels = meta["counts"], meta["shape"], meta["levels"]
    labels = prepared.labels("train")
    made, default = meta["options"].items(), vars(scoremle.data.Options())
    reduced = f", from {meta['source_levels']}" if levels != meta["source_levels"] else ""
    rows = [
        ("version", meta["version"]),
        ("images", f"{counts['train']} for training, {counts['test']} for testing"),
        ("shape", by(shape)),
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
    """The command that trains on it, padded to a size that the network can halve."""
    meta = prepared.meta
    own, channels = max(meta["shape"][:2]), meta["shape"][2]
    size = -(-own // MULTIPLE) * MULTIPLE
    fields = {"dataset": meta["name"], "path": prepared.folder, "image_size": size}
    fields |= {"num_channels": channels, "fit": meta["options"]["fit"] if size == own else ""}
    flags = [f"--config.data.{name}={value}" for name, value in fields.items()]
    return shlex.join(["scoremle", "train", "own_images", f"runs/{meta['name']}", *flags])
