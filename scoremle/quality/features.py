"""Features of images by a fixed network, for sample quality; and files of a data set's features.

Distances between features mean something only if one network made both sides. So an extractor has
facts that identify it, a file of reference features keeps those of the extractor that made it, and
reading it for another extractor is refused. Only the published Inception's have the right to the
names FID, KID and Inception score.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Float, Int, UInt8

from scoremle import devices, xla
from scoremle.bounded import LONGEST_JSON
from scoremle.errors import UserError
from scoremle.files import named, read_npz, write_npz
from scoremle.quality import inception
from scoremle.records import Size, check_record
from scoremle.resumable import Arrays, resumable_map
from scoremle.types import AnyArray

__all__ = [
    "PUBLISHED_SHA256", "Extractor", "Reference", "extract", "load_inception", "read_reference",
    "write_inception", "write_reference",
]  # fmt: skip

logger = logging.getLogger(__name__)

UInt8Images = UInt8[np.ndarray, "b h w c"]

# pt_inception-2015-12-05-6726825d.pth, also called weights-inception-2015-12-05-6726825d.pth.
PUBLISHED_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
PICTURES_AT_ONCE = 64
# The origin of files without a record, such as score_flow's assets/stats.
UNRECORDED = (
    "unknown: pool_3 alone, as in score_flow's assets/stats (TF-Hub's Inception, images scaled by "
    "(x - 127.5) / 127.5)"
)


@dataclass(frozen=True)
class Extractor:
    """A function of uint8 colour images, what it is, and how many features it has.

    Args:
        apply: gives the features of uint8 [b h w 3].
        name: the network, in words.
        size: number of features.
        weights_sha256: that of the file of its weights.
    """

    apply: Callable[[UInt8[AnyArray, "b h w 3"]], inception.Features]
    name: str
    size: int
    weights_sha256: str

    @property
    def identity(self) -> dict[str, str]:
        return {"features": self.name, "weights_sha256": self.weights_sha256}

    @property
    def is_published_inception(self) -> bool:
        return self.weights_sha256 == PUBLISHED_SHA256


def extract(
    extractor: Extractor, images: UInt8Images, levels: int, *, folder: Path, label: str
) -> Arrays:
    """Features of all images in order: ``pool_3`` [n d] and ``logits`` [n classes].

    Finished parts are kept in ``folder``.

    Args:
        extractor: the network.
        images: [n h w c].
        levels: of grey.
        folder: keeps finished parts.
        label: that progress is shown under.
    """

    def work(_: int, index: Int[np.ndarray, " size"]) -> Arrays:
        batch = devices.split_rows(_colour(images[index], levels))
        found = devices.to_numpy(extractor.apply(batch))
        return {"pool_3": found.pool, "logits": found.logits}

    size = devices.round_up(min(PICTURES_AT_ONCE, len(images)))
    found = resumable_map(work, len(images), size=size, folder=folder, label=label)
    return {name: rows[0] for name, rows in found.items()}


def _colour(images: UInt8Images, levels: int) -> UInt8[np.ndarray, "b h w 3"]:
    """Levels spread over 0..255, and grey repeated."""
    spread = np.round(images * (255 / (levels - 1))).astype(np.uint8)
    return np.broadcast_to(spread, (*images.shape[:3], 3))


# Weights -----------------------------------------------------------------------------------------


def write_inception(path: Path, params: Mapping[str, np.ndarray], source_sha256: str) -> None:
    """Writes parameters by name, with the hash of the file that they come from.

    Args:
        path: of the file.
        params: by name.
        source_sha256: that of the file that they come from.
    """
    write_npz(path, {**params, "source_sha256": np.asarray(source_sha256)})


def load_inception(path: Path) -> Extractor:
    """The extractor whose weights ``scoremle convert-inception`` wrote.

    Args:
        path: of the file.

    Raises UserError where there are no weights, or not those of Inception.
    """
    devices.check_devices()
    how = "make it with: scoremle convert-inception"
    if not path.is_file():
        raise UserError(f"no Inception weights at {path}; {how}")
    arrays = read_npz(named(path))
    if arrays is None or "source_sha256" not in arrays:
        raise UserError(f"{path} is not a file of Inception weights; {how}")
    sha256 = str(arrays.pop("source_sha256"))
    if {name: array.shape for name, array in arrays.items()} != inception.shapes():
        raise UserError(f"{path} does not fit the Inception network; {how}")
    if not all(a.dtype == np.float32 and np.isfinite(a).all() for a in arrays.values()):
        raise UserError(f"{path} has weights that are not finite float32 numbers; {how}")
    params = devices.replicate(unflatten_dict(arrays, sep="/"))
    apply = partial(xla.compiled(inception.Inception().apply), {"params": params})
    origin = "published weights" if sha256 == PUBLISHED_SHA256 else "weights of unknown origin"
    size = arrays["fc/kernel"].shape[0]
    return Extractor(apply, f"Inception-2015, {origin}", size, sha256)


# Reference features ------------------------------------------------------------------------------


class _Record(TypedDict, total=False):
    """Fields of a record that are read anywhere."""

    origin: dict[str, Any]
    dataset: str
    split: str
    shape: list[Size]


@dataclass(frozen=True, eq=False)
class Reference:
    """Features of the images that samples are compared with, and what is known of them.

    Args:
        pool: [n d] features.
        facts: of the images and the extractor.
    """

    pool: Float[np.ndarray, "n d"]
    facts: dict[str, Any]


def write_reference(
    path: Path, pool: Float[np.ndarray, "n d"], extractor: Extractor, facts: dict[str, Any]
) -> None:
    """Writes features as ``pool_3``, the name that score_flow has, and what they are.

    Args:
        path: of the file.
        pool: [n d] features.
        extractor: the network that made them.
        facts: of the images.
    """
    record = json.dumps({"origin": extractor.identity, **facts})
    write_npz(path, {"pool_3": pool, "record": np.asarray(record)})


def read_reference(path: Path, extractor: Extractor) -> Reference:
    """Reads what ``scoremle stats`` wrote for this extractor, or ``pool_3`` without a record.

    Args:
        path: of the file.
        extractor: the network that must have made them.

    Raises UserError for features of another extractor; warns if it can't be known.
    """
    how = "make it with: scoremle stats"
    if not path.is_file():
        raise UserError(f"no reference statistics at {path}; {how}")
    arrays = read_npz(named(path))
    if arrays is None or "pool_3" not in arrays:
        raise UserError(f"{path} is not a file of features: it has no pool_3; {how}")
    pool = arrays["pool_3"]
    if pool.ndim != 2 or pool.shape[1] != extractor.size:
        raise UserError(f"{path}: pool_3 has shape {pool.shape}, not (n, {extractor.size}); {how}")
    if pool.dtype.kind != "f" or not np.isfinite(pool).all():
        raise UserError(f"{path}: pool_3 has values that are not finite numbers; {how}")
    known = _record(arrays, path, extractor)
    return Reference(pool, {"path": str(path), "images": len(pool), **known})


def _record(arrays: Mapping[str, np.ndarray], path: Path, extractor: Extractor) -> dict[str, Any]:
    if "record" not in arrays:
        logger.warning(
            "%s does not say which network made its features; ours differs from the one of "
            "score_flow's files, so compare the numbers with each other alone",
            path,
        )
        return {"origin": UNRECORDED}
    try:
        if arrays["record"].nbytes > LONGEST_JSON:
            raise ValueError("its record is too long")
        record = json.loads(str(arrays["record"]))
    except (ValueError, RecursionError):
        raise UserError(f"{path}: its record can't be read") from None
    check_record(record, _Record, f"{path}: its record")
    if record.get("origin") != extractor.identity:
        raise UserError(
            f"{path} holds features of another network ({record.get('origin')}) than "
            f"{extractor.identity}: make it anew with scoremle stats"
        )
    return record
