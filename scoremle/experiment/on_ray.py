"""Scores on Ray: many workers, each with the model loaded once, write Parquet files as they go.

A worker takes a batch of images and writes what it found before it says that it is done. So a run
that was stopped goes on from the files that are there, and a worker that was lost loses one
batch, which Ray gives to another.
"""

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt64

from scoremle.bounded import MAX_FILE
from scoremle.core.pixels import Pixels
from scoremle.data.pieces import MOST_ROWS, ImageKind, Piece, piece_images
from scoremle.errors import UserError, first_line, needing
from scoremle.files import inside, opened, read_sealed, write_atomically, write_sealed
from scoremle.likelihood.scores import INDEX, SCORE_COLUMNS
from scoremle.progress import progress

__all__ = ["Table", "ray_data", "score_on_ray"]

RECORD = "run.json"
# CPU cores of a machine for each worker, where there is no GPU: JAX takes several.
CORES = 4

Batch = dict[str, np.ndarray]
# A Scorer, or another that maps a batch to its likelihoods.
Score = Callable[[Batch], Batch]


@dataclass(frozen=True)
class Table:
    """Parquet files in a folder: index, name, the fields of ``Scores``, and why one is missing.

    Args:
        folder: of its files.
    """

    folder: Path

    COLUMNS: ClassVar = (INDEX, "name", *SCORE_COLUMNS, "reason")

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Says what the values depend on. Raises UserError if other values are there.

        Args:
            facts: all that a value depends on.
        """
        path = inside(self.folder, RECORD)
        if not path.exists():
            write_sealed(path, facts)
            return
        found = read_sealed(path, f"move {self.folder} away")
        for name, value in facts.items():
            if found.get(name) != value:
                raise UserError(
                    f"{self.folder} holds scores with {name} {found.get(name)!r}, not {value!r}:"
                    " name another --out"
                )

    def write(self, columns: Batch) -> None:
        """Writes a file of rows.

        Args:
            columns: a row for each image.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        index = columns[INDEX]
        with write_atomically(self.folder / f"{index[0]:020d}-{len(index)}.parquet") as temporary:
            pq.write_table(pa.table(dict(columns)), temporary, write_page_checksum=True)

    def column(self, name: str) -> np.ndarray:
        """A column of all files, each image once, by index.

        Args:
            name: of the column.
        """
        files = sorted(self.folder.glob("*.parquet"))
        tables = [_columns(file, [*{INDEX, name}]) for file in files]
        if not tables:
            return np.zeros(0, np.uint64)
        index, column = (np.concatenate([table[n] for table in tables]) for n in (INDEX, name))
        _, once = np.unique(index, return_index=True)
        return column[once]


def _columns(file: Path, names: list[str]) -> Batch:
    """Columns of a file, of the types in which they are written."""
    import pyarrow.parquet as pq

    kinds = {INDEX: np.uint64, **dict.fromkeys(SCORE_COLUMNS, np.float64)}
    try:
        with opened(file, MAX_FILE) as content:
            table = pq.read_table(content, columns=names, page_checksum_verification=True)
        return {
            name: table[name].to_numpy().astype(kinds.get(name, object), casting="safe")
            for name in names
        }
    except MemoryError:
        raise
    except Exception as error:  # Arrow raises many kinds for damaged files
        raise UserError(
            f"{file} is damaged ({type(error).__name__}): remove it, and its images are scored"
            " again"
        ) from error


def score_on_ray(
    scorer: Callable[[], Score],
    pieces: Sequence[Piece],
    images: tuple[ImageKind, str],
    table: Table,
    *,
    address: str = "",
    workers: int | None = None,
    batch_size: int,
) -> None:
    """Scores the images of the pieces that are not in the table yet.

    Args:
        scorer: makes a Scorer; called once by each worker.
        pieces: of the images.
        images: what those of the model are, and how pictures of other sizes get there.
        table: what is there already, and where values are written.
        address: of a cluster, as Ray has it; "": this machine.
        workers: how many; None: one for each GPU, or one for each four cores.
        batch_size: images in a batch.

    Raises UserError without Ray, for a cluster that is too small, and for what a worker can't do.
    """
    ray = ray_data()
    done = table.column(INDEX)
    left = [(piece, _within(piece, done)) for piece in pieces]
    left = [(piece, written) for piece, written in left if len(written) != piece.count]
    if not left:
        return
    with _running(ray, address, workers) as (number, gpus), _in_a_line(ray):
        items = ray.data.from_items(left, override_num_blocks=len(left))
        read = items.map_batches(_read, fn_args=images, batch_size=1, num_cpus=1)
        rows = read.map_batches(
            _Work, fn_constructor_args=(scorer, table), batch_size=batch_size,
            batch_format="numpy", compute=ray.data.ActorPoolStrategy(size=number),
            num_cpus=1, num_gpus=gpus,
        )  # fmt: skip
        seen, total = len(done), sum(math.inf if p.count is None else p.count for p in pieces)
        with progress("scores", total, "image", done=seen) as advance:
            for batch in rows.iter_batches(batch_size=None, batch_format="numpy"):
                seen += int(batch["count"].sum())
                advance(seen)


def _within(piece: Piece, done: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " k"]:
    """The indices in ``done`` that belong to a piece."""
    end = piece.first + (MOST_ROWS if piece.count is None else piece.count)
    first, stop = np.searchsorted(done, np.asarray([piece.first, end], np.uint64))
    return done[first:stop]


def _read(batch: Batch, kind: ImageKind, fit: str) -> Iterator[Batch]:
    """Reads the images of pieces that are not there yet."""
    nothing = np.zeros(kind.shape, Pixels(kind.levels).dtype)
    for piece, written in batch["item"]:
        if images := dict(piece_images(piece, kind, fit, set(written.tolist()))):
            reports = images.values()
            yield {
                INDEX: np.asarray([*images], np.uint64),
                "name": _texts(report.name for report in reports),
                "image": np.stack([nothing if r.pixels is None else r.pixels for r in reports]),
                "reason": _texts(report.reason for report in reports),
            }


def _texts(texts: Iterable[str]) -> np.ndarray:
    """A column of texts; bytes that are not UTF-8, which Parquet needs, are escaped."""
    return np.asarray([text.encode(errors="backslashreplace").decode() for text in texts])


class _Work:
    """Scores a batch and writes it."""

    def __init__(self, scorer: Callable[[], Score], table: Table) -> None:
        self._scorer, self._table = scorer(), table

    def __call__(self, batch: Batch) -> Batch:
        good = batch["reason"] == ""
        found = self._scorer({name: batch[name][good] for name in ("image", INDEX)})
        columns = {name: batch[name] for name in (INDEX, "name", "reason")}
        for name in SCORE_COLUMNS:
            columns[name] = np.full(len(good), np.nan)
            columns[name][good] = found[name]
        self._table.write(columns)
        return {"count": np.asarray([len(good)])}


def ray_data() -> Any:
    """The module ``ray``, with its data. Raises UserError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its advice to programmers
    with needing("--engine=ray", "ray"):
        import pyarrow  # noqa: F401
        import ray
        import ray.data
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # else the reason of a worker's error is lost
    for handler in logging.getLogger("ray.data").handlers:
        handler.setLevel(logging.CRITICAL)
    return ray


@contextmanager
def _running(ray: Any, address: str, wanted: int | None) -> Iterator[tuple[int, int]]:
    """A cluster that runs: how many workers, and GPUs for each."""
    if address:
        where: dict[str, Any] = {"address": address}
    else:
        # One more than workers: without the reader's, they would wait forever.
        room = max(os.cpu_count() or 1, (wanted or 1) + 1)
        where = {"num_cpus": room, "include_dashboard": False}
    with warnings.catch_warnings():
        # What Ray forks starts another program at once, and does not touch JAX.
        warnings.filterwarnings("ignore", message=r"os.fork\(\) was called")
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # many kinds: a timeout is a bare Exception
            what = f"the cluster {address} can't be reached" if address else "Ray can't begin"
            raise UserError(f"{what}: {first_line(error, named=True)}") from error
    try:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        yield _workers(wanted, gpus, int(resources.get("CPU", 0))), int(gpus > 0)
    finally:
        ray.shutdown()


def _workers(wanted: int | None, gpus: int, cpus: int) -> int:
    """Number of workers. Raises UserError if they leave no core to a reader."""
    workers = wanted or gpus or max(1, cpus // CORES)
    if workers >= cpus:
        raise UserError(
            f"the cluster has {cpus} CPU cores, and {workers} workers with a reader need"
            f" {workers + 1}: take fewer --workers, or a larger cluster"
        )
    return workers


@contextmanager
def _in_a_line(ray: Any) -> Iterator[None]:
    """Turns a worker's error into a UserError of one line, without Ray's tracebacks."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException = error
        while (inner := getattr(cause, "cause", None) or cause.__cause__) is not None:
            cause = inner
        # Ray adds advice about its own settings; in a UserError it is on the same line.
        reason, *_ = first_line(cause, named=True).split(r"\nFailed to apply UDF")
        raise UserError(f"a worker failed: {reason}") from error
