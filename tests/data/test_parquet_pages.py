"""What pages of Parquet say of their size is what the file's list says, whoever wrote them."""

import io
import itertools

import numpy as np
import pytest

from scoremle.data.readers.parquet import parquet_rows
from scoremle.data.readers.parquet_pages import BadPage, _Header, unpacked_bytes
from scoremle.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

RNG = np.random.default_rng(0)
ROWS = 60
TABLE = pa.table({
    "image": [{"bytes": RNG.bytes(300), "path": f"{i}.png"} for i in range(ROWS)],
    "label": RNG.integers(0, 10, ROWS),
    "words": [["a", "b"]] * ROWS,
    "real": RNG.normal(size=ROWS),
    "flag": [True, None] * (ROWS // 2),
    "none": pa.nulls(ROWS),
})  # fmt: skip


def written(table=TABLE, **how):
    stream = io.BytesIO()
    pq.write_table(table, stream, **how)
    return stream.getvalue()


def metadata(content):
    return pq.ParquetFile(io.BytesIO(content)).metadata


@pytest.mark.parametrize("packed", ["none", "snappy", "gzip", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_they_say_what_the_list_says(packed, version):
    flags = ("use_dictionary", "write_statistics", "write_page_index", "write_page_checksum")
    for chosen in itertools.product([True, False], repeat=len(flags)):
        content = written(
            compression=packed, data_page_version=version, data_page_size=512, row_group_size=25,
            **dict(zip(flags, chosen, strict=True)),
        )  # fmt: skip
        known = metadata(content)
        groups = [known.row_group(i) for i in range(known.num_row_groups)]
        columns = [group.column(i) for group in groups for i in range(group.num_columns)]
        listed = sum(column.total_uncompressed_size for column in columns)  # with the headers
        assert 0.6 * listed < unpacked_bytes(content, known) < listed


def test_the_sum_of_a_page_by_hand():
    """Of one page without nulls: the repetition levels are none, and each length takes 4 bytes."""
    table = pa.table({"image": pa.array([b"abc", b"defgh"], pa.binary())})
    schema = pa.schema([pa.field("image", pa.binary(), nullable=False)])
    for packed in ("none", "zstd"):
        content = written(table.cast(schema), compression=packed, use_dictionary=False)
        assert unpacked_bytes(content, metadata(content)) == 4 + 3 + 4 + 5


def test_no_rows_have_no_pages():
    content = written(TABLE.slice(0, 0))
    assert unpacked_bytes(content, metadata(content)) == 0


@pytest.mark.parametrize(
    "start, words",
    [(b"\x1c" * 8, "nested too deep"), (b"\x19" + b"\x99" * 9, "nested too deep"),
     (b"\x19\xf1\xff\xff\xff\xff\xff\xff\xff\x7f", "cut off"), (b"\x1d", "unknown type"),
     (b"\x00", "its size"), (b"\x18\xff\xff\xff\x7f", "is cut off")],
)  # fmt: skip
def test_a_header_that_is_none(start, words):
    content = bytearray(written(use_dictionary=False))
    content[4 : 4 + len(start)] = start
    with pytest.raises(UserError, match=f"parquet file .*{words}"):
        list(parquet_rows(bytes(content), "here"))


@pytest.mark.parametrize("writer", ["parquet-mr version 1.2.8", "parquet-mr"])
def test_writers_behind_whose_columns_more_may_lie(writer):
    content = written()
    name = metadata(content).created_by.encode()
    old = content.replace(name, writer.encode().ljust(len(name)))
    with pytest.raises(UserError, match="parquet-mr"):
        list(parquet_rows(old, "here"))


@pytest.mark.parametrize("place", [3, 5])
def test_a_negative_size_is_refused(place):
    """The header begins with the type and both sizes, here of a byte each, whose last bit is the
    sign."""
    table = pa.table({"flag": [True, False]})
    content = bytearray(written(table, compression="none", use_dictionary=False))
    known = metadata(bytes(content))
    begin = known.row_group(0).column(0).data_page_offset
    assert bytes(content[begin : begin + 6 : 2]) == b"\x15\x15\x15"
    content[begin + place] |= 1
    with pytest.raises(BadPage, match="size"):
        unpacked_bytes(bytes(content), known)


def test_fields_of_each_kind_are_passed_over():
    """After true, a byte, two reals, a text, two bytes and a struct: the integers of 8 and 9."""
    content = bytes([
        0x11, 0x13, 9, 0x17, *bytes(8), 0x18, 2, *b"ab", 0x19, 0x21, 1, 2, 0x1C, 0x15, 9, 0,
        0x19, 0x15, 5, 0x15, 7, 0x16, 8, 0, 99,
    ])  # fmt: skip
    header = _Header(memoryview(content), 0)
    assert header.integers() == {8: -4, 9: 4} and header.place == len(content) - 1


def test_a_column_that_lies_outside_of_the_file():
    content = written()
    with pytest.raises(BadPage, match="outside"):
        unpacked_bytes(content[:500], metadata(content))
