"""The file of compressed images: a line of what it is, a JSON record of what it holds, and bits.

    scoremle images, coded 4
    {"model": ..., "program": ..., "blocks": [[images, crc, plain], ...]}
    the stack as little-endian words of 32 bits, the plain blocks, SHA-256 of all before it

The record names the model and the program by what their numbers depend on. Nothing of a file is
run, and it is of no use without its model.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from scoremle.bounded import LONGEST_JSON, MAX_FILE, MAX_PIXELS
from scoremle.coding.codec import Coded, CodedBlock
from scoremle.coding.rates import KIND
from scoremle.errors import UserError
from scoremle.files import named, read_bytes, write_bytes
from scoremle.records import Count, Size, check_record

# The chain of a model is not part of the record: another chain is another version.
MAGIC = KIND + b" 4\n"
DIGEST = 32
# More steps than any chain has, and more images at once than any device takes.
MOST_STEPS, MOST_LANES = 10_000, 1024
# Letters of a name: file systems take 255 bytes.
LONGEST = 60


class CodedRecord(TypedDict):
    """Record of coded images, beside their bits.

    ``place`` and ``model`` are of the model: where it was, and the hash of its parameters.
    ``program`` is all else that its rounding depends on, and ``names`` are those of the files that
    the images were, if they were files. ``checkpoint`` is the model's in its working directory.
    """

    place: str
    model: str
    program: str
    steps: Size
    lanes: Size
    shape: list[Size]
    names: list[str]
    checkpoint: NotRequired[Count | None]


class _Whole(CodedRecord):
    blocks: list[tuple[Size, Count, Count]]
    words: Count
    initial: Count


def are_short(names: list[str]) -> bool:
    """Whether so many names are short enough, all together, to be read again."""
    return len(json.dumps(names)) <= LONGEST_JSON // 2


def are_names(names: list[str], images: int) -> bool:
    """Whether so many pictures in one folder may have these names, without their endings."""
    return len(set(names)) == len(names) == images and all(map(_is_name, names))


def _is_name(name: str) -> bool:
    return name.isprintable() and not {*name} & {*"/\\:"} and 0 < len(name.strip(".")) < LONGEST


def write_coded(path: str | Path, record: CodedRecord, coded: Coded) -> int:
    """Writes the file; returns its size in bytes.

    Raises UserError for more than is read again, before anything is written.
    """
    whole: _Whole = {
        **record,
        "blocks": [(Size(b.images), Count(b.crc), Count(b.plain)) for b in coded.blocks],
        "words": Count(len(coded.words)), "initial": Count(coded.initial),
    }  # fmt: skip
    header = json.dumps(whole, separators=(",", ":")).encode() + b"\n"
    content = MAGIC + header + coded.words.astype("<u4").tobytes() + coded.plain
    content += hashlib.sha256(content).digest()
    if len(header) > LONGEST_JSON or len(content) > MAX_FILE:
        raise UserError(f"{path}: too many images for one file: compress them in parts")
    write_bytes(path, content)
    return len(content)


def read_coded(path: str | Path) -> tuple[CodedRecord, Coded]:
    """Reads a file.

    Args:
        path: of the file.

    Raises UserError for another file, one of another version, a damaged one, and for one
    that claims more than its bytes can be.
    """
    path = named(path)
    content = read_bytes(path, MAX_FILE)
    if not content.startswith(KIND):
        raise UserError(f"{path} is not a file of scoremle compress")
    if not content.startswith(MAGIC):
        raise UserError(f"{path} is of another version of scoremle compress than this one reads")
    content, digest = content[:-DIGEST], content[-DIGEST:]
    if hashlib.sha256(content).digest() != digest:
        raise UserError(f"{path} is damaged: its checksum is another; copy or make it again")
    header, _, _ = content[len(MAGIC) : len(MAGIC) + LONGEST_JSON].partition(b"\n")
    payload = content[len(MAGIC) + len(header) + 1 :]
    try:
        record = json.loads(header)
    except (ValueError, RecursionError):
        raise UserError(f"{path}: its record can't be read") from None
    check_record(record, _Whole, f"{path}: its record")
    blocks = tuple(CodedBlock(*block) for block in record["blocks"])
    words = 4 * record["words"]
    _check(path, record, blocks, len(payload) - words)
    stack = np.frombuffer(payload[:words], "<u4").astype(np.uint32)
    return record, Coded(blocks, stack, payload[words:], record["initial"])


def _check(path: Path, record: _Whole, blocks: tuple[CodedBlock, ...], plain: int) -> None:
    """Raises UserError for numbers that contradict each other, or exceed those of any image.

    How many pixels a byte becomes has no bound: they are decoded, and compared, block by block.
    """
    images = sum(block.images for block in blocks)
    if not blocks or sum(block.plain for block in blocks) != plain or plain < 0:
        raise UserError(f"{path}: its record contradicts its size")
    names = record["names"]
    if names and not are_names(names, images):
        raise UserError(f"{path}: its names are not those of {images} files in one folder")
    largest = max(block.images for block in blocks)
    lanes, dims = record["lanes"], math.prod(record["shape"])
    if largest > lanes or lanes > MOST_LANES or record["steps"] > MOST_STEPS or dims > MAX_PIXELS:
        raise UserError(f"{path}: its record has larger numbers than compress ever writes")
