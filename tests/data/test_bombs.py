"""Files that claim or become far more than they have: one line, in a process of little memory.

Almost every bomb is of 512 MiB or more; helpers/hostile_worker.py gives its process 400 MiB.
"""

import contextlib
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

from scoremle import bounded, files
from scoremle.cli import main as cli
from scoremle.cli.commands import compare
from scoremle.coding.file import read_coded
from scoremle.data.archive import Source
from scoremle.data.fetch import ORIGINS
from scoremle.data.prepared import Prepared
from scoremle.data.readers import celeba, parquet
from scoremle.data.readers.arrays import load_npy, read_array_files
from scoremle.data.readers.base import Options
from scoremle.data.registry import DATASETS
from scoremle.errors import UserError
from scoremle.files import opened
from scoremle.published import pytorch, safetensors, state_dict
from scoremle.training.writers import JsonLines, read_log
from scoremle.zoo import families

WORKER = ROOT / "tests/helpers/hostile_worker.py"
# Of computing, which is slower where others compute, too.
SECONDS = 10
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
    return "images", file, f"{file}: its member 'a.png' is neither stored nor deflated"


def zip_listing(folder):
    file, size = folder / "x.zip", 300 << 20
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, size, 0, 0)
    sparse(file, b"PK\1\2" + bytes(2 << 20), size + len(end), end)
    return "images", file, f"{file}: truncated or damaged archive (its list of members has {size}"


def npy_header(folder):
    file = folder / "x.npy"
    sparse(file, b"\x93NUMPY\2\0" + struct.pack("<I", 2 * GIB), 1 << 20)
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
    size = start + len(entry + end)
    sparse(file, member, size, entry + end)
    return "images", file, f"{file}: refused: of {size} bytes; files of its kind have {4 * GIB} at"


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
    return "cifar10", folder, f"{folder}: data_batch_1: its labels are not a list of whole numbers"


def parquet_of_copies(folder):
    """One picture of 2 MB, most of it behind its end, that stands in 300 rows."""
    large = picture() + np.random.default_rng(0).bytes(2_000_000)
    table = pa.table({"image": pa.DictionaryArray.from_arrays([0] * 300, [large])})
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


def hollow(kind: str, name: str, start: bytes, size: int):
    """A file of holes behind a start that is as it should be."""

    def make(folder):
        place = folder / name
        sparse(place, start, size)
        in_a_folder = kind in ("mnist", "imagenet")
        words = f"refused: of its {size} bytes next to none are on the disk"
        return kind, folder if in_a_folder else place, f"{place}: {words}"

    make.__name__ = f"hollow {name}"
    return make


HEADER = b'{"a":{"dtype":"F32","shape":[1610612000],"data_offsets":[0,6442448000]}}'
HOLLOW = [
    hollow("mnist", "train-images-idx3-ubyte", struct.pack(">4I", 0x803, 3 << 20, 32, 32),
           (3 << 30) + 16),
    hollow("imagenet", "val_data", b"\x80\x02", 3 << 30),
    hollow("images", "x.npz", b"PK\3\4", 3 << 30),
    hollow("images", "x.zip", b"PK\3\4", 3 << 30),
    hollow("parameters", "x.safetensors", struct.pack("<Q", len(HEADER)) + HEADER,
           8 + len(HEADER) + 6442448000),
    hollow("parameters of PyTorch", "x.pt", b"PK\3\4", 6 << 30),
    hollow("a training state", "checkpoint_1", b"\x81\xa1a\xc7", 3 << 30),
]  # fmt: skip


def hollow_parquet(folder):
    sparse(folder / "x.parquet", b"PAR1", 4 << 30, b"PAR1")
    words = f"refused: of its {4 << 30} bytes next to none are on the disk"
    return "images", folder / "x.parquet", f"{folder / 'x.parquet'}: {words}"


def tensors(folder, pickled: bytes, storages: dict[str, bytes]) -> Path:
    file = folder / "x.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        for name, content in storages.items():
            archive.writestr(f"x/data/{name}", content)
    return file


def tensors_of(folder, content, words: str):
    return "parameters of PyTorch", tensors(folder, pickle.dumps(content, 2), {}), words


def pt_of_lists(folder):
    """Each list holds the one before twice."""
    lists: list = [1, 2]
    for _ in range(40):
        lists = [lists, lists]
    return tensors_of(folder, {"a": lists}, f"{folder}/x.pt is not a state dict")


def pt_of_tuples(folder):
    """To hash the name takes for ever."""
    pickled = b"\x80\x02}K\1K\2\x86" + b"q\0h\0\x86" * 40 + b"K\1s."
    words = f"{folder}/x.pt: not a PyTorch checkpoint: ValueError: a tuple where"
    return "parameters of PyTorch", tensors(folder, pickled, {}), words


def pt_that_makes_room(folder):
    pickled = b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R."
    words = f"{folder}/x.pt: not a PyTorch checkpoint: it names __builtin__.bytearray"
    return "parameters of PyTorch", tensors(folder, pickled, {}), words


def pt_of_copies(folder):
    """A thousand tensors of one storage."""
    size = 1 << 20
    key = b"X\7\0\0\0storageh\1X\1\0\0\0" + b"0X\3\0\0\0cpu" + b"J" + struct.pack("<i", size)
    start = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x00ctorch\nFloatStorage\nq\x01}("
    tensor = b"h\0((" + key + b"tQK\0J" + struct.pack("<i", size) + b"\x85K\1\x85\x89}tR"
    names = (b"X\4\0\0\0%04d" % i for i in range(1000))
    pickled = start + b"".join(name + tensor for name in names) + b"u."
    file = tensors(folder, pickled, {"0": bytes(4 * size)})
    words = "ValueError: its tensors have more numbers than there are in the file"
    return "parameters of PyTorch", file, f"{file}: not a PyTorch checkpoint: {words}"


def pt_of_old(folder):
    """Of before version 1.6; a storage that claims 8 TiB."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {}]
    key = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpu"
    key += b"\x8a\6" + (1 << 41).to_bytes(6, "little") + b"NtQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + key + b"K\0K\1\x85K\1\x85\x89}tR"
    content = b"".join(pickle.dumps(part, 2) for part in parts)
    content += b"\x80\x02}X\1\0\0\0a" + tensor + b"s." + pickle.dumps(["0"], 2)
    (folder / "x.pt").write_bytes(content + struct.pack("<q", 1 << 41) + bytes(100))
    words = "not a PyTorch checkpoint: ValueError: a s"
    return "parameters of PyTorch", folder / "x.pt", f"{folder}/x.pt: {words}"


def header_of(folder, header: str, size: int) -> Path:
    file = folder / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(size))
    return file


def safetensors_of_copies(folder):
    one = '"a%d":{"dtype":"F32","shape":[1048576],"data_offsets":[0,4194304]}'
    file = header_of(folder, "{" + ",".join(one % i for i in range(1000)) + "}", 4 << 20)
    return "parameters", file, f"{file}: not a complete safetensors file (tensors lie over"


def safetensors_of_digits(folder):
    shape = ",".join(["9" * 4299] * 1000)
    one = f'{{"a":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,0]}}}}'
    file = header_of(folder, one, 0)
    return "parameters", file, f"{file}: not a complete safetensors file (a shape is not"


def safetensors_of_lists(folder):
    file = header_of(folder, "[" * 100_000, 0)
    return "parameters", file, f"{file}: not a complete safetensors file ("


def picture_of(folder, name: str, content: bytes, words: str):
    (folder / name).write_bytes(content)
    return "pictures", folder, words


def jpeg_with(scans: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (1000, 1000)).save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * scans + content[-2:]


TOO_OFTEN = f"its pixels are coded more than {1 << 31} times"


def jpeg_of_scans(folder):
    return picture_of(folder, "a.jpg", jpeg_with(20_000), f"a.jpg: {TOO_OFTEN}")


def jpegs_of_scans(folder):
    """Two frames, which Pillow calls by another format."""
    stream, grey = io.BytesIO(), Image.new("L", (1000, 1000))
    grey.save(stream, "MPO", save_all=True, append_images=[grey], progressive=True)
    content = stream.getvalue()
    end = content.index(b"\xff\xd9")
    last = content[content.rindex(b"\xff\xda", 0, end) : end]
    content = content[:end] + last * 20_000 + content[end:]
    return picture_of(folder, "a.jpg", content, f"a.jpg: {TOO_OFTEN}")


def tiff(packed, content: bytes, side: int, tile: tuple[int, int] = (), directories: int = 1):
    """Grey, of one strip or, with its size, one tile. The last directories say nothing."""
    form = [*zip((322, 323), tile, strict=True)] if tile else [(278, side)]
    at, long = (324, 325) if tile else (273, 279)
    tags = [(256, side), (257, side), (258, 8), (259, packed), (262, 1), (277, 1), *form]
    size = 2 + 12 * (len(tags) + 2) + 4
    tags += [(at, 8 + size), (long, len(content))]
    after = 8 + size + len(content)
    first = b"".join(struct.pack("<2H2I", tag, 4, 1, value) for tag, value in sorted(tags))
    others = np.zeros(directories - 1, [("n", "<u2"), ("tag", "V12"), ("next", "<u4")])
    others["n"], others["tag"] = 1, struct.pack("<2H2I", 254, 4, 1, 0)
    others["next"] = after + others.itemsize * np.arange(1, directories)
    others["next"][-1:] = 0
    start = struct.pack("<IH", 8, len(tags)) + first + struct.pack("<I", after * (directories > 1))
    return b"II*\0" + start + content + others.tobytes()


def tiff_of_directories(folder):
    return picture_of(folder, "a.tif", tiff(1, bytes(16), 4, directories=500_000), "read")


def tiff_of_scans(folder):
    """libtiff reads a hundred."""
    words = "a.tif: can't be decoded"
    return picture_of(folder, "a.tif", tiff(7, jpeg_with(20_000), 1000), words)


def tiff_of_a_tile(folder):
    content = tiff(8, zlib.compress(bytes(1 << 28), 1), 16, (1 << 14, 1 << 14))
    return picture_of(folder, "a.tif", content, "a.tif: more than 80000000 pixels")


def tiff_of_many_tiles(folder):
    content = tiff(1, bytes(16), 5000, (16, 1 << 20))
    return picture_of(folder, "a.tif", content, "a.tif: more than 80000000 pixels")


def tiff_otherwise(folder):
    content = tiff(34925, lzma.compress(bytes(16)), 4)
    return picture_of(folder, "a.tif", content, "a.tif: a TIFF of lzma: save it as PNG")


def large_palette(folder):
    """Of 40 million pixels, some of which may be transparent: it is taken, in little memory."""
    stream = io.BytesIO()
    Image.new("P", (6320, 6320)).save(stream, "PNG", transparency=b"\x80" * 256, compress_level=1)
    return picture_of(folder, "a.png", stream.getvalue(), "read")


BOMBS = [
    long_name, long_link, pax, pax_of_all, later_name, list_of_holes, wide_xz, tar_that_skips,
    sparse_picture, sparse_photograph, sparse_batch, sparse_imagenet, sparse_mat,
    sparse_partition, idx_of_many, idx_bomb, zip_that_lies, zip_otherwise,
    zip_listing, npy_header, npz_of_many, npz_in_imagenet, npz_sparse, pickle_of_lists,
    pickle_of_texts, pickle_of_labels, parquet_of_copies,
    parquet_that_lies, *HOLLOW, hollow_parquet, pt_of_lists, pt_of_tuples, pt_that_makes_room,
    pt_of_copies, pt_of_old, safetensors_of_copies, safetensors_of_digits, safetensors_of_lists,
    jpeg_of_scans, jpegs_of_scans, tiff_of_directories, tiff_of_scans, tiff_of_a_tile,
    tiff_of_many_tiles, tiff_otherwise, large_palette,
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
    said = [line.rsplit("\t", 2) for line in done.stdout.splitlines() if "\t" in line]
    return {
        make.__name__: (message, int(code), text, float(seconds))
        for make, message, (text, seconds, code) in zip(BOMBS, messages, said, strict=True)
    }


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited on Linux")
@pytest.mark.parametrize("name", [make.__name__ for make in BOMBS])
def test_bombs_end_in_one_line(name, ended):
    message, code, text, seconds = ended[name]
    assert text.startswith(message) and code == 0, (text, code)
    assert seconds < SECONDS
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
    with pytest.raises(UserError, match="than 65536"):
        Prepared(folder).images("train")


def test_links_and_sparse_files_of_an_archive_are_left_out_and_named(tmp_path, caplog):
    """Folders are left out without a word."""
    link = zipfile.ZipInfo("other.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.mkdir("folder")
        archive.writestr("a.png", b"content")
        archive.writestr(link, "/etc/passwd")
    members = {
        "folder": tarfile.DIRTYPE, "a.png": tarfile.REGTYPE, "other.png": tarfile.GNUTYPE_SPARSE,
    }  # fmt: skip
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as packed:
        for name, kind in members.items():
            info = tarfile.TarInfo(name)
            info.type = kind
            packed.addfile(info)
    for name in ("x.zip", "x.tar"):
        assert [member for member, _ in Source(tmp_path / name).files(lambda _: True)] == ["a.png"]
        (said,) = caplog.messages
        assert "other.png" in said and "folder" not in said
        caplog.clear()


@pytest.mark.parametrize("name", ["pipe", "pipe.png", "pipe.zip", "pipe.npy", "pipe.npz"])
def test_a_pipe_is_not_waited_for(name, tmp_path):
    os.mkfifo(tmp_path / name)
    out = tmp_path / "scores.csv"
    assert cli.main(["score", "digits", str(tmp_path / name), f"--out={out}"]) == 2


def bytes_of_bmp(pixels: int) -> int:
    """The length of a BMP with alpha, by those of two small ones."""
    small, double = (io.BytesIO(), io.BytesIO())
    Image.new("RGBA", (8, 8)).save(small, "BMP")
    Image.new("RGBA", (8, 16)).save(double, "BMP")
    of_64 = len(double.getvalue()) - len(small.getvalue())
    return len(small.getvalue()) + of_64 * (pixels - 64) // 64


LARGEST = {  # in bytes
    "MAX_PICTURE": bytes_of_bmp(bounded.MAX_PIXELS),
    "MAX_BATCH": max(size for size, _ in ORIGINS["svhn"].files.values()),
    "MAX_FILE": 128_117 * 64 * 64 * 3,  # a batch of ImageNet
    "MAX_ARRAYS": 1_281_167 * 256 * 256 * 3,
    "MAX_MODEL": 4 * 4_000_000_000,
    "MAX_PARTITION": 202_599 * len("000001.jpg 0\r\n"),
    "MAX_LISTING": 1_331_149 * (46 + len("train_64x64/0000001.png") + 36),
    "MAX_TEXT": 1_300_000 * 200,  # rows of a log
}


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_true_file_is_within_its_bound(name):
    assert LARGEST[name] <= getattr(bounded, name) < 100 * LARGEST[name]


def test_a_zip_is_read_as_far_as_its_members_are_bounded(monkeypatch):
    for packed, refused in ((zipfile.ZIP_DEFLATED, False), (zipfile.ZIP_BZIP2, True)):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", packed) as archive:
            archive.writestr("a", b"1" * 9)
        if refused:
            with pytest.raises(UserError, match="'a' is neither"), bounded.open_zip(stream, "x"):
                pass
        else:
            with bounded.open_zip(stream, "x") as archive:
                assert archive.read("a") == b"1" * 9
    monkeypatch.setattr(bounded, "MAX_LISTING", 46)  # a member takes 46 bytes and its name
    with pytest.raises(zipfile.BadZipFile, match="47 bytes"), bounded.open_zip(stream, "x"):
        pass


def list_of(file, name):
    """Reads a data set whole, from the folder of a file."""
    return [*DATASETS[name].read(file.parent, Options()).chunks]


# A file's name, what reads it, and the most bytes that one of its kind may have.
BOUNDS = {
    "record": ("config.json", files.read_json, 8 << 20),
    "log": ("metrics.jsonl", read_log, 512 << 20),
    "log that goes on": ("metrics.jsonl", lambda path: JsonLines(path).rewind(0), 512 << 20),
    "table of scores": ("a.csv", compare._of_scores, 512 << 20),
    "picture": ("a.png", lambda path: list_of(path, "images"), 321_048_576),
    "batch of CIFAR": ("test_batch.bin", lambda path: list_of(path, "cifar10"), 256 << 20),
    "file of SVHN": ("test_32x32.mat", lambda path: list_of(path, "svhn"), 256 << 20),
    "partition": ("list_eval_partition.txt", lambda path: celeba._partition(path.parent),
                  64 << 20),
    "arrays": ("a.npz", lambda path: read_array_files(path, Options()), 4 << 30),
    "array": ("a.npy", load_npy, 1 << 40),
    "rows of parquet": ("a.parquet", parquet.count_rows, 4 << 30),
    "coded images": ("a.coded", read_coded, 4 << 30),
    "anything in a folder": ("a", lambda path: [*Source(path.parent).files(bool)], 4 << 30),
    ".pth": ("a.pth", pytorch.load_pth, 32 << 30),
    "perhaps a .pth": ("a.pth", pytorch.is_torch_file, 32 << 30),
    "state": ("checkpoint", state_dict.read, 32 << 30),
    "tensors": ("a.safetensors", safetensors.read, 32 << 30),
    "perhaps tensors": ("a.safetensors", safetensors.is_file, 32 << 30),
    "notes of tensors": ("a.safetensors", safetensors.notes, 32 << 30),
    "perhaps a state": ("checkpoint", families.is_vdm, 32 << 30),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOUNDS)
def test_a_file_may_have_as_many_bytes_as_its_bound_and_no_more(kind, tmp_path):
    """Both are holes: what is long enough is refused for them, after its size was looked at."""
    name, read, most = BOUNDS[kind]
    for size in (most, most + 1):
        sparse(tmp_path / name, b"", size)
        with pytest.raises(UserError) as error:
            read(tmp_path / name)
        assert (f"of {size} bytes; files of its kind have {most} at most" in str(error.value)) == (
            size > most
        )


@pytest.mark.parametrize(
    ("unpacked", "packed", "fine"),
    [
        (64 << 20, 1, True),
        ((64 << 20) + 1, 1, False),
        (200 << 20, 1 << 20, True),
        ((200 << 20) + 1, 1 << 20, False),
    ],
)
def test_what_unpacks_to_two_hundred_times_its_size_is_read(unpacked, packed, fine):
    with contextlib.nullcontext() if fine else pytest.raises(UserError, match="200 times"):
        bounded.check_ratio("x", unpacked, packed)


@pytest.mark.parametrize(("extra", "hollow"), [(0, False), (1, True)])
def test_a_file_of_which_a_two_hundredth_is_on_disk_is_read(extra, hollow, tmp_path):
    start = bytes(1 << 19)
    sparse(tmp_path / "a", start, 200 * len(start) + extra)
    told = pytest.raises(UserError, match="holes") if hollow else contextlib.nullcontext()
    with told, opened(tmp_path / "a", 1 << 30) as file:
        assert file.tell() == 0


@pytest.mark.parametrize(
    ("shape", "fine"),
    [
        ((1,) * 32, True), ((1,) * 33, False), ((1 << 40, 0), True), (((1 << 40) + 1, 0), False),
        ((-1,), False), ((2.0,), False), ((True,), False), ((), True),
    ],
)  # fmt: skip
def test_a_declared_shape_has_32_axes_at_most(shape, fine):
    with contextlib.nullcontext() if fine else pytest.raises(ValueError, match="shape"):
        assert bounded.array_bytes(shape, 3) == 3 * np.prod(shape)


@pytest.mark.parametrize(("length", "words"), [(1 << 16, "EOF"), ((1 << 16) + 1, "header has")])
def test_a_header_of_64_kib_is_read(length, words):
    content = b"\x93NUMPY\x02\x00" + length.to_bytes(4, "little") + b"{"
    with pytest.raises(ValueError, match=words):
        bounded.npy_header(io.BytesIO(content), 1 << 20)


@pytest.mark.parametrize(("size", "fine"), [(256 << 20, True), ((256 << 20) + 1, False)])
def test_a_list_of_members_of_256_mib_is_read(size, fine):
    with contextlib.nullcontext() if fine else pytest.raises(zipfile.BadZipFile, match="list"):
        assert bounded._Listed(io.BytesIO(b"listed")).read(size) == b"listed"


def zip_of_one(name, at, byte):
    """A zip with a member, a byte of whose entry in the list of members is changed."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, b"1")
    content = bytearray(stream.getvalue())
    content[content.index(b"PK\x01\x02") + at] = byte
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (zip_of_one("a/data.pkl", 4, 20), True),
        (zip_of_one("\u00e9/data.pkl", 46, 0xFF), False),  # its name is not UTF-8
        (zip_of_one("a/data.pkl", 6, 99), False),  # a version of zip that there is not
        (zip_of_one("a/data.pkl", 10, 12), False),  # bzip2
        (b"PK\x03\x04", False),
    ],
)
def test_an_odd_zip_is_no_file_of_pytorch(content, found, tmp_path):
    (tmp_path / "a").write_bytes(content)
    assert pytorch.is_torch_file(tmp_path / "a") == found


def test_a_long_list_of_members_is_not_read_to_see_what_a_file_is(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(zip_of_one("a/data.pkl", 4, 20))
    monkeypatch.setattr(bounded, "MAX_LISTING", 46)
    assert not pytorch.is_torch_file(tmp_path / "a")


@pytest.mark.parametrize("length", [0, 1, 5, 1 << 20, (1 << 20) + 1, (2 << 20) + 7])
def test_a_stream_is_read_as_far_as_asked(length):
    stream = io.BytesIO(bytes(range(256)) * (1 << 14))
    assert bounded.read_no_further(stream, length) == stream.getvalue()[:length]
    assert stream.tell() == length
