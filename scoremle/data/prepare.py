"""From a reader's stream of images to a prepared folder, checked on the way, in one pass.

Fewer grey levels than the source's are its values x scaled down, floor(x levels / own levels): for
a power of two, the upper bits.

Every image is hashed as it is then. The hash finds duplicates, and divides a source without
splits: an image is for testing if its hash, as a share of all hashes, is below the stated
fraction. So the split depends on the image alone: it is the same in any order, whatever else is
added, and copies of an image never lie on both sides.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import scoremle
from scoremle.data.prepared import META, format_of, made_whole
from scoremle.data.readers.base import Chunk, ImageReport, Options, Reading, in_levels
from scoremle.errors import UserError, by, in_short
from scoremle.files import write_sealed, writing
from scoremle.progress import progress

SHOWN = 5
# Images that are worked on at once: chunks may be large.
BLOCK = 4096


def prepare(
    reading: Reading,
    folder: Path,
    *,
    name: str,
    source: str,
    options: Options,
    counts: tuple[int, int] | None = None,
) -> None:
    """Fills ``folder`` from a reader's stream, or raises UserError and leaves nothing.

    ``counts``, if known, are the numbers of training and test images that there must be.
    """
    with (
        made_whole(folder) as temporary,
        closing(_Writer(temporary, reading.levels or 256, options)) as writer,
    ):
        with progress(f"preparing {name}", 1.0) as advance:
            done = 0.0
            for chunk in reading.chunks:
                for share in writer.add(chunk):
                    advance(done + share * (chunk.done - done))
                done = chunk.done
        facts = writer.finish(source)
        _check_counts(facts["counts"], counts, f"{name} in {source}")
        meta = {
            "format": format_of(options),
            "name": name,
            "version": reading.version,
            "source": source,
            "source_sha256": reading.sha256(),
            **facts,
            **reading.facts,
            "options": asdict(options),
            "scoremle": scoremle.__version__,
        }
        write_sealed(temporary / META, meta)


class _Split:
    """The images of a split: a .npy of uint8 that grows, the hash of each, and their labels.

    Their count is written into the header at the end.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self.shape, self.count = path, shape, 0
        self.hash = hashlib.sha256()
        self.words: list[np.ndarray] = []
        self.labels: list = []
        with writing(path):
            self._file = path.open("wb+")
            self._header()
            self._start = self._file.tell()

    def _header(self) -> None:
        # numpy pads it so that the first axis can grow in place.
        fields = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(self._file, fields)

    def add(self, images: np.ndarray, words: np.ndarray, labels: np.ndarray | None) -> None:
        content = np.ascontiguousarray(images).data
        with writing(self.path):
            self._file.write(content)
        self.hash.update(content)
        self.count += len(images)
        self.words.append(words)
        self.labels += [] if labels is None else labels.tolist()

    def finish(self) -> None:
        with writing(self.path):
            self._file.seek(0)
            self._header()
        if self._file.tell() != self._start:
            raise RuntimeError(f"the header of {self.path} has outgrown its place")
        self.close()

    def close(self) -> None:
        with writing(self.path):  # what is buffered
            self._file.close()


class _Writer:
    """Divides, checks and writes chunks; then reports on them."""

    def __init__(self, folder: Path, levels: int, options: Options) -> None:
        self._folder, self._own_levels, self._options = folder, levels, options
        self._levels = options.levels or levels
        if self._levels > levels:
            raise UserError(f"levels is {self._levels}, but the images have {levels}")
        self._shape: tuple[int, ...] | None = None
        self._splits: dict[str, _Split] = {}
        self._ways: set[bool] = set()
        self._unusable: list[ImageReport] = []
        self._notes: Counter[str] = Counter()
        self._constant, self._largest = 0, 0

    def add(self, chunk: Chunk) -> Iterator[float]:
        """Takes in a chunk, and yields the share of it that is done."""
        self._unusable += chunk.unusable
        self._notes.update(chunk.notes)
        for start in range(0, len(chunk.images), BLOCK):
            block = slice(start, start + BLOCK)
            labels = None if chunk.labels is None else np.asarray(chunk.labels[block], object)
            self._add(self._checked(chunk.images[block]), labels, chunk.split)
            yield min(block.stop / len(chunk.images), 1.0)

    def _add(self, images: np.ndarray, labels: np.ndarray | None, split: str | None) -> None:
        self._largest = max(self._largest, int(images.max()))
        images = in_levels(images, self._levels, self._own_levels)
        words = _hashes(images)
        self._constant += int((images == images[:, :1, :1]).all(axis=(1, 2, 3)).sum())
        self._ways.add(split is None)
        for_test = words < np.uint64(self._options.test_fraction * 2.0**64)
        parts: dict[str, Any] = {"train": ~for_test, "test": for_test}
        for part, chosen in ({split: slice(None)} if split else parts).items():
            of_these = None if labels is None else labels[chosen]
            self._split(part).add(images[chosen], words[chosen], of_these)

    def _checked(self, images: np.ndarray) -> np.ndarray:
        if self._shape is None:
            self._shape = images.shape[1:]
        if not images.size:
            raise UserError(f"images of no pixels: {by(images.shape[1:])}")
        if images.shape[1:] != self._shape:
            other = by(images.shape[1:])
            raise UserError(f"images of different sizes: {by(self._shape)} and {other}")
        if images.max() >= self._own_levels:
            raise UserError(
                f"a pixel is {images.max()}, but with {self._own_levels} levels the values are"
                f" 0 to {self._own_levels - 1}"
            )
        return images

    def _split(self, name: str) -> _Split:
        if name not in self._splits:
            assert self._shape is not None
            self._splits[name] = _Split(self._folder / f"{name}.npy", self._shape)
        return self._splits[name]

    def finish(self, source: str) -> dict[str, Any]:
        """Ends the files; raises UserError for what makes the whole unfit."""
        for split in self._splits.values():
            split.finish()
        self._check_usable(source)
        left = self._largest * self._levels // self._own_levels + 1
        if self._levels < self._own_levels and (
            self._largest < self._levels or left < min(self._levels, 3)
        ):
            raise UserError(
                f"the values of {source} go to {self._largest}, so they seem to have fewer than"
                f" {self._own_levels} levels already, of which {left} would be left; an .npz can"
                " state its number of levels"
            )
        with writing(self._folder):
            self._choose_test(source)
            label_hashes, classes = self._write_labels()
        both = train, test = self._splits["train"], self._splits["test"]
        given = self._ways == {False}
        fraction = f"by content: a fraction of {self._options.test_fraction:g} is for testing"
        words = [np.concatenate(split.words) for split in both]
        return {
            "counts": {"train": train.count, "test": test.count},
            "shape": list(self._shape or ()),
            "levels": self._levels,
            "source_levels": self._own_levels,
            "split": "given" if given else fraction,
            "labels": bool(label_hashes),
            "classes": classes,
            "sha256": {
                "train": train.hash.hexdigest(), "test": test.hash.hexdigest(), **label_hashes
            },
            "duplicates": {
                "within train": len(words[0]) - len(np.unique(words[0])),
                "within test": len(words[1]) - len(np.unique(words[1])),
                "of train in test": int(np.isin(words[1], words[0]).sum()),
            },
            "constant_images": self._constant,
            "skipped": [report.name for report in self._unusable],
            "notes": dict(self._notes),
        }

    def close(self) -> None:
        for split in self._splits.values():
            split.close()

    def _check_usable(self, source: str) -> None:
        if self._unusable and not self._options.skip_bad:
            bad = [f"{report.name} ({report.reason})" for report in self._unusable]
            raise UserError(
                f"{source}: {len(bad)} image{'s' * (len(bad) > 1)} can't be used:"
                f" {in_short(bad, SHOWN)}; repair or remove them, or leave them out by"
                " skip_bad=True"
            )
        if not self._splits:
            raise UserError(f"{source}: no images in it")
        if self._ways == {True, False}:
            raise UserError(
                f"{source}: some images are in folders named train or test and others are not;"
                " move them there, or all out"
            )

    def _choose_test(self, source: str) -> None:
        """Validation images are the test split of a source without one, else left out."""
        if val := self._splits.pop("val", None):
            if "test" in self._splits:
                self._notes["validation images, left out beside the test split"] = val.count
                val.path.unlink()
            else:
                val.path.rename(self._folder / "test.npy")
                self._splits["test"] = val
        for split in ("train", "test"):
            if split not in self._splits or not self._splits[split].count:
                raise UserError(
                    f"{source}: no images for {split}ing; give more images, another"
                    " test_fraction=SHARE, or folders named train and test"
                )

    def _write_labels(self) -> tuple[dict[str, str], list[str]]:
        """Writes them if each image has one, and all are names or all numbers.

        Gives the files' hashes, and the names of the numbers.
        """
        splits = self._splits["train"], self._splits["test"]
        both = [split.labels for split in splits]
        everything = both[0] + both[1]
        kinds = {isinstance(label, str) for label in everything}
        whole = [len(labels) for labels in both] == [split.count for split in splits]
        if not whole or len(kinds) > 1:
            return {}, []
        names: list[str] = []
        if kinds == {True}:
            names = sorted(set(everything))
            if len(names) < 2:
                return {}, []
            places = {name: place for place, name in enumerate(names)}
            both = [[places[label] for label in labels] for labels in both]
        hashes = {}
        for split, labels in zip(("train", "test"), both, strict=True):
            array, name = np.asarray(labels, np.int32), f"{split}_labels"
            np.save(self._folder / f"{name}.npy", array)
            hashes[name] = hashlib.sha256(array.data).hexdigest()
        return hashes, names


def _hashes(images: np.ndarray) -> np.ndarray:
    """64 bits of each image's content: two different images share them once in 10^19 pairs."""
    digests = [hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def _check_counts(found: dict[str, int], counts: tuple[int, int] | None, where: str) -> None:
    if counts and (found["train"], found["test"]) != counts:
        raise UserError(
            f"{where} has {found['train']} training and {found['test']} test images, not"
            f" {counts[0]} and {counts[1]}: it is not whole; fetch it again"
        )
