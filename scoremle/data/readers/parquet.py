"""Parquet files as the Hugging Face hub has them: a column of encoded pictures, one of labels.

The column of pictures is a struct with ``bytes``, or binary; its first such column is taken. The
split is in the files' names (``train-00000-of-00001.parquet``).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scoremle.bounded import MAX_FILE, check_ratio
from scoremle.data.archive import Source
from scoremle.data.readers.base import ImageReport, Options, Reading, as_labels
from scoremle.data.readers.parquet_pages import unpacked_bytes
from scoremle.data.readers.pictures import ImageDecoder, chunked, split_of
from scoremle.errors import UserError, damaged, needing
from scoremle.files import opened

DAMAGED = "truncated or no parquet file"
LABELS = ("label", "labels", "fine_label")
# All rows may hold the same large picture, which the file has once.
ROWS = 16


def is_parquet(name: str) -> bool:
    return name.lower().endswith(".parquet")


def read_parquet(path: Path, options: Options) -> Reading:
    """Reads a .parquet file, or all those of a folder."""
    _check_pyarrow(path)
    source = Source(path)
    return Reading(chunked(_reports(source, options), source), source.sha256)


def count_rows(path: Path) -> int:
    """The rows that a file says that it has; they are not read."""
    _check_pyarrow(path)
    import pyarrow.parquet as pq

    with damaged(path, DAMAGED), opened(path, MAX_FILE) as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def _check_pyarrow(path: Path) -> None:
    with needing(f"{path}: parquet", "hf"):
        import pyarrow.parquet  # noqa: F401


def _reports(
    source: Source, options: Options
) -> Iterator[tuple[str | None, str | int, ImageReport]]:
    decoder = ImageDecoder(options)
    for name, content in source.files(is_parquet):
        rows = parquet_rows(content, f"{source.path}: {name}")
        for row, (picture, label) in enumerate(rows):
            yield split_of(name), label, decoder(f"{name} row {row}", picture)


def parquet_rows(content: bytes, where: str) -> Iterator[tuple[bytes, Any]]:
    """Encoded picture, empty where there is none, and label of each row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with damaged(where, DAMAGED):
        file = pq.ParquetFile(pa.BufferReader(content))
        check_ratio(where, unpacked_bytes(content, file.metadata), len(content))
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise UserError(f"{where}: two of its columns have the same name")
        pictures = [f.name for f in file.schema_arrow if _is_picture(f.type)]
        labels = [f.name for f in file.schema_arrow if f.name in LABELS and _is_label(f.type)]
        if not pictures:
            raise UserError(f"{where}: no column of encoded pictures among: {', '.join(names)}")
        for batch in file.iter_batches(ROWS, columns=[pictures[0], *labels[:1]]):
            cells = batch.column(pictures[0])
            of_cells = batch.column(labels[0]).to_pylist() if labels else [""] * len(cells)
            known = [-1 if label is None else label for label in of_cells]
            as_labels(known, len(cells), where)
            for scalar, label in zip(cells, known, strict=True):
                cell = scalar.as_py()
                picture = cell.get("bytes") if isinstance(cell, dict) else cell
                yield picture or b"", label


def _is_label(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_integer(kind) or types.is_string(kind)


def _is_picture(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)
