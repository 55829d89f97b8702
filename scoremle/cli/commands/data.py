"""``scoremle data prepare NAME|PATH`` and ``scoremle data show NAME|PATH``."""

import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from scoremle import data
from scoremle.errors import UserError
from scoremle.evaluation import pictures, tables
from scoremle.terminal import say

__all__ = ["name_of", "run"]

SHOWN = 64


def run(options: Any) -> dict[str, Any]:
    """Runs one of the two; gives the facts of the data set."""
    picture = getattr(options, "picture", None)
    if picture and picture.suffix.lower() != ".png":
        raise UserError(f"--picture={picture}: the name to draw to must end in .png")
    prepared = _prepared(options)
    say(*tables.table(("data set", prepared.meta["name"]), _facts(prepared)).splitlines())
    if options.what == "show":
        _draw(prepared, options.split, options.picture)
    else:
        say("", f"next: {_training(prepared)}")
    return {**prepared.meta, "folder": str(prepared.folder)}


def _prepared(options: Any) -> data.Prepared:
    """Finds the data set, or makes it; an own path is a set of images."""
    name, path = options.name, options.path
    if name.lower() not in data.DATASETS and (Path(name).exists() or os.sep in name):
        name, path = name_of(Path(name)), name
    dataset = _lookup(name)
    how = data.Options(
        options.size, options.channels, options.fit, options.levels,
        options.test_fraction, options.skip_bad,
    )  # fmt: skip
    if how.levels and not 2 <= how.levels <= 256:
        raise UserError(f"--levels must be from 2 to 256, not {how.levels}")
    into = getattr(options, "into", None)
    if into is None:
        return dataset.find(path, how)
    if into.exists():
        raise UserError(f"--into={into} exists; name a new folder, or remove it")
    dataset.prepare(dataset.place_of(path), how, into)
    return data.Prepared(into)


def _lookup(name: str) -> data.Dataset:
    try:
        return data.lookup(name)
    except UserError as error:
        raise UserError(f"no folder or file {name}, and as a name: {error}") from None


def name_of(path: Path) -> str:
    """The data set that a path holds: the one it was prepared as, or one's own images."""
    if not path.exists():
        raise UserError(f"no folder or file {path}")
    if path.is_dir() and data.is_prepared(path):
        return str(data.Prepared(path).meta["name"])
    return "images"


def _facts(prepared: data.Prepared) -> list[tuple[str, str]]:
    meta = prepared.meta
    counts, shape, levels = meta["counts"], meta["shape"], meta["levels"]
    reduced = f", from {meta['source_levels']}" if levels != meta["source_levels"] else ""
    rows = [
        ("version", meta["version"]),
        ("images", f"{counts['train']} for training, {counts['test']} for testing"),
        ("shape", "x".join(map(str, shape))),
        ("levels", f"{levels} ({np.log2(levels):.4g} bits){reduced}"),
        ("split", meta["split"]),
        ("labels", _labels(prepared)),
        *((what.replace("_", " "), meta.get(what, "")) for what in ("crop", "orientation")),
        *((f"duplicates {where}", str(n)) for where, n in meta["duplicates"].items()),
        ("images of one colour", str(meta["constant_images"])),
        ("skipped, unusable", str(len(meta["skipped"]))),
        *((note, str(n)) for note, n in meta["notes"].items()),
        ("made with", _made_with(meta["options"])),
        ("source", meta["source"]),
        ("source sha256", meta["source_sha256"]),
        ("folder", str(prepared.folder)),
    ]
    return [(what, value) for what, value in rows if value]


def _labels(prepared: data.Prepared) -> str:
    labels = prepared.labels("train")
    if labels is None:
        return "none"
    return f"{len(np.unique(labels))} different"


def _made_with(options: dict[str, Any]) -> str:
    default = vars(data.Options())
    return ", ".join(f"{k}={v}" for k, v in options.items() if v != default.get(k))


def _training(prepared: data.Prepared) -> str:
    """The command that trains on it."""
    meta = prepared.meta
    fields = {
        "dataset": meta["name"],
        "path": prepared.folder,
        "image_size": max(meta["shape"][:2]),
        "num_channels": meta["shape"][2],
    }
    flags = [f"--config.data.{name}={value}" for name, value in fields.items()]
    return shlex.join(["scoremle", "train", "own_images", f"runs/{meta['name']}", *flags])


def _draw(prepared: data.Prepared, split: str, picture: Path | None) -> None:
    """Images from all over the split, in one picture."""
    images = prepared.images(split)
    chosen = np.linspace(0, len(images) - 1, min(SHOWN, len(images))).astype(int)
    path = picture or Path(f"{prepared.meta['name']}.png")
    caption = f"{prepared.meta['name']}: {len(chosen)} of {len(images):,} {split} images"
    pictures.write_grid(path, images[chosen], prepared.meta["levels"], caption=caption)
    say("", f"{len(chosen)} of its {split} images: {path}")
