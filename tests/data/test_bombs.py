"""Files that claim or become far more than they have: one line, in a process of little memory.

Almost every bomb is of 512 MiB or more; helpers/hostile_worker.py gives its process 400 MiB.
"""

import gzip
import io
import itertools
import lzma
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.places import ROOT
from PIL import Image

from scoremle.cli import main as cli
from scoremle.data.archive import Source
from scoremle.data.prepared import Prepared
from scoremle.errors import UserError

WORKER = ROOT / "tests/helpers/hostile_worker.py"
GIB = 1 << 30
X = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def picture() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(X).save(stream, "PNG")
    return stream.getvalue()


def bomb(start: bytes, block: bytes = bytes(1 << 20), count: int = 1024, wbits: int = 31) -> bytes:
    """What unpacks to the start and then the block again and again, gzipped (or zlib, raw)."""
    pack = zlib.compressobj(9, wbits=wbits)
    first = pack.compress(start) + pack.flush(zlib.Z_FULL_FLUSH)
    again = pack.compress(block) + pack.flush(zlib.Z_FULL_FLUSH)
    return first + again * count


def tar_header(kind: bytes, size: int, name: str = "a.png") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def sparse(file: Path, start: bytes, size: int, end: bytes = b"") -> None:
    """A file with a hole: long, and almost nothing on the disk."""
    with file.open("wb") as stream:
        stream.write(start)
        stream.truncate(size - len(end))
        stream.seek(0, io.SEEK_END)
        stream.write(end)


# Each makes its files in a folder, and gives the data set, the place, and what must be said.


def tar_with_header(kind: bytes, folder: Path):
    file = folder / "x.tar.gz"
    file.write_bytes(bomb(tar_header(kind, GIB)))
    return "images", file, f"{file}: refused: the header of a member, 0 bytes from the start"


def long_name(folder):
    return tar_with_header(tarfile.GNUTYPE_LONGNAME, folder)


def long_link(folder):
    return tar_with_header(tarfile.GNUTYPE_LONGLINK, folder)


def pax(folder):
    return tar_with_header(tarfile.XHDTYPE, folder)


def pax_of_all(folder):
    return tar_with_header(tarfile.XGLTYPE, folder)


def later_name(folder):
    """The second member's, behind a picture."""
    first = tar_header(tarfile.REGTYPE, len(picture())) + picture()
    first += bytes(-len(first) % 512)
    file = folder / "x.tar.gz"
    file.write_bytes(bomb(first + tar_header(tarfile.GNUTYPE_LONGNAME, GIB)))
    return "images", file, f"{file}: refused: the header of a member, {len(first)} bytes from"


def list_of_holes(folder):
    """A sparse file whose list of parts goes on and on."""
    header = bytearray(tar_header(tarfile.GNUTYPE_SPARSE, 512))
    header[482] = 1
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:512]))
    part = (b"%011o\0" % 1 * 42).ljust(504, b"\0") + b"\1" + bytes(7)
    file = folder / "x.tar.gz"
    file.write_bytes(bomb(bytes(header), part * 2048))
    return "images", file, f"{file}: refused: the header of a member, 0 bytes from the start"


def wide_xz(folder):
    """It asks for a dictionary of 4 GiB."""
    content = bytearray(lzma.compress(tar_header(tarfile.REGTYPE, 0)))
    # The block's header: its size, flags, filter, size of properties, the dictionary; its CRC.
    assert content[14:16] == b"\x21\x01"
    content[16] = 40
    content[20:24] = struct.pack("<I", zlib.crc32(content[12:20]))
    file = folder / "x.tar.xz"
    file.write_bytes(content)
    return "images", file, f"{file}: truncated or damaged archive (Memory usage limit exceeded)"


def tar_that_skips(folder):
    """A file that is not wanted, and unpacks to more than the whole has."""
    file = folder / "x.tar.gz"
    file.write_bytes(bomb(tar_header(tarfile.REGTYPE, 3 * GIB, "a.bin")))
    return "images", file, f"{file}: refused: it unpacks to more than 200 times its size"


def sparse_picture(folder):
    sparse(folder / "a.png", picture(), 64 * GIB)
    return "images", folder, f"{folder / 'a.png'}: refused: of {64 * GIB} bytes; files of its kind"


def sparse_photograph(folder):
    return "photos", *sparse_picture(folder)[1:]


def sparse_batch(folder):
    sparse(folder / "test_batch.bin", b"", 64 * GIB)
    return "cifar10", folder, f"{folder / 'test_batch.bin'}: refused: of {64 * GIB} bytes"


def sparse_imagenet(folder):
    sparse(folder / "val_data", b"\x80\x02", 64 * GIB)
    return "imagenet", folder, f"{folder / 'val_data'}: refused: of {64 * GIB} bytes"


def sparse_mat(folder):
    sparse(folder / "test_32x32.mat", b"MATLAB 5.0", 64 * GIB)
    return "svhn", folder, f"{folder / 'test_32x32.mat'}: refused: of {64 * GIB} bytes"


def sparse_partition(folder):
    file = folder / "list_eval_partition.txt"
    sparse(file, b"a.jpg 0\n", 64 * GIB)
    return "celeba", folder, f"{file}: refused: of {64 * GIB} bytes"


def sparse_idx(folder):
    header = struct.pack(">4I", 0x803, 1 << 26, 32, 32)
    sparse(folder / "train-images-idx3-ubyte", header, 64 * GIB)
    return "mnist", folder, f"{folder}/train-images-idx3-ubyte: refused: of {64 * GIB + 16} bytes"


def idx_of_many(folder):
    """A small file whose header promises more than a number of 64 bits can count."""
    shape = struct.pack(">4I", 0x803, *[(1 << 32) - 1] * 3)
    (folder / "train-images-idx3-ubyte").write_bytes(shape)
    return "mnist", folder, f"{folder}/train-images-idx3-ubyte: refused: of 79228162458924105"


def idx_bomb(folder):
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(bomb(struct.pack(">4I", 0x803, 1 << 20, 32, 32)))
    return "mnist", folder, f"{file}: refused: it unpacks to more than 200 times its size"


def zip_of(folder, content: bytes, kind: int = zipfile.ZIP_DEFLATED, size: int = 0) -> Path:
    """A zip of one picture, packed already if its size is stated."""
    file = folder / "x.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED if size else kind) as archive:
        archive.writestr("a.png", content)
    if size:
        whole = bytearray(file.read_bytes())
        for start, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
            header = whole.index(start)
            whole[header + place : header + place + 2] = struct.pack("<H", zipfile.ZIP_DEFLATED)
            whole[header + place + 14 : header + place + 18] = struct.pack("<I", size)
        file.write_bytes(whole)
    return file


def zip_that_lies(folder):
    """A member that unpacks to a gibibyte, and claims a kilobyte."""
    file = zip_of(folder, bomb(b"", wbits=-15), size=1000)
    return "images", file, f"{file}: truncated or damaged archive (Bad CRC-32 for file 'a.png')"


def zip_otherwise(folder):
    """By bzip2, which zipfile unpacks without a bound."""
    file = zip_of(folder, bytes(1000), zipfile.ZIP_BZIP2)
    return "images", file, f"{file}: its member 'a.png' is neither stored nor deflated; pack it as"


def zip_listing(folder):
    file, size = folder / "x.zip", 3 * GIB
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, size, 0, 0)
    sparse(file, b"PK\1\2", size + len(end), end)
    return "images", file, f"{file}: truncated or damaged archive (its list of members has {size}"


def npy_header(folder):
    file = folder / "x.npy"
    sparse(file, b"\x93NUMPY\2\0" + struct.pack("<I", 2 * GIB), 3 * GIB)
    return "images", file, f"{file}: can't be read as an array (its header has more than 65536"


def npz_with(folder, shape: str, content: bytes) -> Path:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    file = folder / "x.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        array = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + content
        archive.writestr("train.npy", array)
    return file


def npz_of_many(folder):
    file = npz_with(folder, f"({GIB}, 1, 1)", bytes(100))
    return "images", file, f"{file}: can't be read as an array (its shape contradicts its size)"


def npz_in_imagenet(folder):
    npz_of_many(folder)[1].rename(folder / "val_data.npz")
    return "imagenet", folder, f"{folder}: val_data.npz: can't be read as an array (its shape cont"


def npz_sparse(folder):
    """A stored member of 6 GiB, most of it a hole."""
    file, size = npz_with(folder, "(1, 1, 1)", b"\0"), 6 * GIB
    extra = struct.pack("<2H2Q", 1, 16, size, size)
    member = struct.pack("<4s2B4HL2L2H", b"PK\3\4", 45, 0, 0, 0, 0, 0, 0, *[2**32 - 1] * 2, 9, 20)
    member += b"train.npy" + extra
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 45, 0, 45, 0, 0, 0, 0, 0, 0, *[2**32 - 1] * 2,
                        9, 20, 0, 0, 0, 0, 0) + b"train.npy" + extra  # fmt: skip
    start = len(member) + size
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(entry), start)
    end += struct.pack("<4sLQL", b"PK\6\7", 0, start + len(entry), 1)
    end += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entry), 2**32 - 1, 0)
    sparse(file, member, start + len(entry + end), entry + end)
    return "images", file, f"{file}: refused: of {size} bytes; files of its kind have {4 * GIB} at"


def mat_part(kind: int, content: bytes) -> bytes:
    return struct.pack("<2I", kind, len(content)) + content + bytes(-len(content) % 8)


def mat_array(kind: int, name: bytes, *parts: bytes) -> bytes:
    shape = mat_part(5, struct.pack("<2i", 1, 1))
    return mat_part(6, struct.pack("<2I", kind, 0)) + shape + mat_part(1, name) + b"".join(parts)


MAT = b"MATLAB 5.0".ljust(124) + b"\0\1IM"


def mat_bomb(folder):
    """An array of one number whose content is a gibibyte."""
    array = mat_array(9, b"X") + struct.pack("<2I", 2, GIB)
    packed = bomb(struct.pack("<2I", 14, GIB + len(array)) + array, wbits=15)
    file = folder / "test_32x32.mat"
    file.write_bytes(MAT + struct.pack("<2I", 15, len(packed)) + packed)
    return "svhn", folder, f"{folder}: {file.name}: refused: it unpacks to more than 200 times its"


def mat_that_lies(folder):
    """An array of one number that claims a gibibyte of them, in a file of a few bytes."""
    array = mat_array(9, b"X") + struct.pack("<2I", 2, GIB) + bytes(8)
    file = folder / "test_32x32.mat"
    file.write_bytes(MAT + mat_part(14, array))
    return "svhn", folder, f"{folder}: {file.name}: truncated or no .mat file (a part is longer"


def mat_of_cells(folder):
    """A cell in a cell in a cell: scipy's reader overflows the stack, a signal."""
    empty, inner = mat_array(1, b""), mat_part(14, mat_array(9, b"", mat_part(2, b"\1")))
    depth, layers = 200_000, []
    for place in range(depth):
        size = len(inner) + place * (8 + len(empty)) + len(empty)
        layers.append(struct.pack("<2I", 14, size) + empty)
    outer = mat_array(1, b"X")
    size = len(outer) + len(inner) + depth * (8 + len(empty))
    content = struct.pack("<2I", 14, size) + outer + b"".join(reversed(layers)) + inner
    (folder / "test_32x32.mat").write_bytes(MAT + content)
    return "svhn", folder, f"{folder}: test_32x32.mat: truncated or no .mat file (X or y is of ce"


def cifar(folder, content: bytes) -> Path:
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(content)
    return folder


def pickle_of_lists(folder):
    cifar(folder, b"\x80\x02" + b"}" * (16 << 20) + b".")
    return "cifar10", folder, f"{folder}: data_batch_1: refused: it has more than 2097152 commands"


def pickle_of_texts(folder):
    text = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x00"
    call = b"c_codecs\nencode\nh\x00X\x06\0\0\0latin1\x86R"
    cifar(folder, b"\x80\x02" + text + call * 1024 + b".")
    return "cifar10", folder, f"{folder}: data_batch_1: refused: it makes more text than it holds"


def pickle_of_labels(folder):
    labels: list = [1, 2]
    for _ in range(30):
        labels = [labels, labels]
    cifar(folder, pickle.dumps({"data": X.reshape(1, -1), "labels": [labels]}, 2))
    return "cifar10", folder, f"{folder}: data_batch_1: its labels are no list of whole numbers"


def parquet_of_copies(folder):
    """One picture of 2 MB that stands in 300 rows."""
    large = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (820, 820, 3), np.uint8)
    Image.fromarray(pixels).save(large, "PNG", compress_level=0)
    table = pa.table({"image": pa.DictionaryArray.from_arrays([0] * 300, [large.getvalue()])})
    with (folder / "train.parquet").open("wb") as file:
        pq.write_table(table, file, store_schema=False, dictionary_pagesize_limit=1 << 24)
    return "images", folder, f"{folder}: no images for testing"


def parquet_that_lies(folder):
    """A page that says that it unpacks to 2 GiB, which the list of the file does not say."""
    stream = io.BytesIO()
    table = pa.table({"image": [X.tobytes()] * 3})  # 9,216 bytes, which hardly pack
    pq.write_table(table, stream, compression="snappy", use_dictionary=False, store_schema=False)
    column, content = pq.ParquetFile(stream).metadata.row_group(0).column(0), stream.getvalue()
    start, size = column.data_page_offset, column.total_compressed_size
    # Fields 1 to 3 and 5 of the header: a page of data, 2 GiB less a byte, all the rest, PLAIN.
    parts = "1500 15feffffff0f 15", "2c 1506 1500 1506 1506 00 00"
    before, after = map(bytes.fromhex, parts)
    rest = 2 * (size - len(before) - 3 - len(after))
    packed = bytes([rest & 127 | 128, rest >> 7 & 127 | 128, rest >> 14])
    lie = (before + packed + after).ljust(size, b"\0")
    (folder / "train.parquet").write_bytes(content[:start] + lie + content[start + size :])
    words = "refused: it unpacks to more than 200 times its size, as a decompression bomb does"
    return "images", folder, f"{folder}: train.parquet: {words}"


BOMBS = [
    long_name, long_link, pax, pax_of_all, later_name, list_of_holes, wide_xz, tar_that_skips,
    sparse_picture, sparse_photograph, sparse_batch, sparse_imagenet, sparse_mat,
    sparse_partition, sparse_idx, idx_of_many, idx_bomb, zip_that_lies, zip_otherwise,
    zip_listing, npy_header, npz_of_many, npz_in_imagenet, npz_sparse, mat_bomb, mat_that_lies,
    mat_of_cells, pickle_of_lists, pickle_of_texts, pickle_of_labels, parquet_of_copies,
    parquet_that_lies,
]  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """How reading ended for each bomb: what was to be said, the exit code, and what was said."""
    names, places, messages = [], [], []
    for make in BOMBS:
        name, place, message = make(tmp_path_factory.mktemp(make.__name__))
        names.append(name)
        places.append(str(place))
        messages.append(message)
    arguments = itertools.chain(*zip(names, places, strict=True))
    done = subprocess.run(
        [sys.executable, WORKER, "read", *arguments], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    said = [line.rsplit("\t", 1) for line in done.stdout.splitlines() if "\t" in line]
    return {
        make.__name__: (message, int(code), text)
        for make, message, (text, code) in zip(BOMBS, messages, said, strict=True)
    }


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited on Linux")
@pytest.mark.parametrize("name", [make.__name__ for make in BOMBS])
def test_bombs_are_refused_by_one_line(name, ended):
    message, code, text = ended[name]
    assert text.startswith(message) and code == 0, (text, code)
    assert "\\n" not in text


def test_attributes_of_all_members_are_not_kept(tmp_path):
    """Each header is short, and names a new thing for all members that follow."""
    file, count, size = tmp_path / "x.tar.gz", 400, 50_000
    with gzip.open(file, "wb", 1) as stream:
        for place in range(count):
            text = b"%d k%03d=%s\n" % (size, place, b"a" * (size - 12))
            stream.write(tar_header(tarfile.XGLTYPE, size) + text + bytes(-size % 512))
            stream.write(tar_header(tarfile.REGTYPE, 0, f"{place}.png"))
    tracemalloc.start()
    names = [name for name, _ in Source(file).files(lambda name: True)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(names) == count and peak < count * size / 4


def test_headers_of_prepared_arrays(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(256, dtype=np.uint8).reshape(64, 2, 2, 1))
    folder = tmp_path / "made"
    assert cli.main(["data", "prepare", str(tmp_path / "x.npy"), f"--into={folder}"]) == 0
    sparse(folder / "train.npy", b"\x93NUMPY\2\0" + struct.pack("<I", 100_000), 200_000)
    with pytest.raises(UserError, match=r"train\.npy is damaged \(its header has more than 65536"):
        Prepared(folder).images("train")


def test_links_and_sparse_files_of_an_archive_are_left_out(tmp_path):
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", b"content")
        archive.writestr(link, "/etc/passwd")
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as packed:
        for name, kind in (("a.png", tarfile.REGTYPE), ("sparse.png", tarfile.GNUTYPE_SPARSE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            packed.addfile(info)
    for name in ("x.zip", "x.tar"):
        assert [member for member, _ in Source(tmp_path / name).files(lambda _: True)] == ["a.png"]


@pytest.mark.parametrize("name", ["pipe", "pipe.png", "pipe.zip", "pipe.npy", "pipe.npz"])
def test_a_pipe_is_not_waited_for(name, tmp_path):
    os.mkfifo(tmp_path / name)
    out = tmp_path / "scores.csv"
    assert cli.main(["score", "digits", str(tmp_path / name), f"--out={out}"]) == 2
