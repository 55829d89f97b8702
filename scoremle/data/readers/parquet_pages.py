"""Unpacked sizes that the pages of a Parquet file declare, read before anything is unpacked.

Each page has a header in Thrift's compact protocol, and its packed bytes lie behind that
(https://parquet.apache.org/docs/file-format). pyarrow makes room for what the header says, up to
2 GiB a page, whatever the list of the file says. Here headers alone are read: fields 2 and 3 are
the sizes of the page, unpacked and packed, and the others are passed over.
"""

import re
from typing import Any

UNPACKED, PACKED = 2, 3
# Types of Thrift's compact protocol.
BOOLEANS, BYTE, INTEGERS, DOUBLE, BINARY, LISTS, STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12
# Headers of pages are nested twice.
DEEPEST = 4


class BadPage(Exception):
    """An invalid header."""


def unpacked_bytes(content: bytes, metadata: Any) -> int:
    """The sum over all pages of a file.

    Args:
        content: the file.
        metadata: its ``pyarrow.parquet.FileMetaData``.

    Raises BadPage for a header that can't be read, pages that lie outside of the file, and files
    of before 2014, behind whose columns pyarrow looks for more.
    """
    if _is_padded(metadata.created_by or ""):
        raise BadPage("written by a version of parquet-mr whose lists are wrong")
    total = 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        for j in range(group.num_columns):
            column = group.column(j)
            if column.total_compressed_size:
                total += _of_column(_pages(memoryview(content), column))
    return total


def _is_padded(writer: str) -> bool:
    """Whether pyarrow reads on behind a column's stated end, as it does for old writers."""
    version = tuple(map(int, re.findall(r"\d+", writer)[:3]))
    return writer.startswith("parquet-mr") and version < (1, 2, 9)


def _pages(content: memoryview, column: Any) -> memoryview:
    starts = (column.dictionary_page_offset, column.data_page_offset)
    start = min((offset for offset in starts if offset), default=0)
    end = start + column.total_compressed_size
    if not 0 < start < end <= len(content):
        raise BadPage("a column lies outside of the file")
    return content[start:end]


def _of_column(pages: memoryview) -> int:
    total, place = 0, 0
    while place < len(pages):
        header = _Header(pages, place)
        sizes = header.integers()
        unpacked, packed = sizes.get(UNPACKED, -1), sizes.get(PACKED, -1)
        if min(unpacked, packed) < 0:
            raise BadPage("a page does not say its size")
        total, place = total + unpacked, header.place + packed
    return total


class _Header:
    """A reader of a struct of Thrift, whose ``place`` is the next byte."""

    def __init__(self, content: memoryview, place: int) -> None:
        self.content, self.place = content, place

    def integers(self, depth: int = 0) -> dict[int, int]:
        """The integers of a struct by their field; all else is passed over."""
        found, field = {}, 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            field = field + step if step else self._integer()
            if kind in INTEGERS:
                found[field] = self._integer()
            else:
                self._pass_over(kind, depth)
        return found

    def _pass_over(self, kind: int, depth: int, *, element: bool = False) -> None:
        if depth > DEEPEST or self.place > len(self.content):
            raise BadPage("a header is nested too deep, or cut off")
        if kind in BOOLEANS:  # of a field the type is the value, and an element is a byte
            self.place += element
        elif kind == BYTE:
            self.place += 1
        elif kind in INTEGERS:
            self._integer()
        elif kind == DOUBLE:
            self.place += 8
        elif kind == BINARY:
            length = self._unsigned()
            self.place += length
        elif kind == STRUCT:
            self.integers(depth + 1)
        elif kind in LISTS:
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._unsigned()
            for _ in range(count):
                self._pass_over(head & 15, depth + 1, element=True)
        else:
            raise BadPage("a header has a field of an unknown type")

    def _byte(self) -> int:
        if self.place >= len(self.content):
            raise BadPage("a header is cut off")
        self.place += 1
        return self.content[self.place - 1]

    def _unsigned(self) -> int:
        """Seven bits a byte, the lowest first; the eighth says that more follow."""
        value, shift = 0, 0
        while (byte := self._byte()) & 128 and shift < 63:
            value, shift = value | (byte & 127) << shift, shift + 7
        return value | byte << shift

    def _integer(self) -> int:
        """Zigzag: 0, -1, 1, -2, ..."""
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)
