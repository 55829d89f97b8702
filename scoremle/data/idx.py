"""MNIST and Fashion-MNIST from their idx files, plain or gzipped.

An idx file of images is a big-endian header (magic 0x00000803, count, rows, columns) and then one
byte a pixel. A file that is not exactly as long as its header says is an error.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from scoremle.errors import UserError

__all__ = ["load_fashion_mnist", "load_mnist", "read_images"]

# Where Debian's package dataset-fashion-mnist installs.
FASHION_MNIST_FOLDER = "/usr/share/datasets/fashion-mnist"
FILES = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
MAGIC = 0x803
HEADER = struct.Struct(">4I")


def load_mnist(path: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Training images, test images, uint8 [n 28 28 1], and the number of levels."""
    advice = f"set --config.data.path to the folder with {FILES[0]}[.gz] and {FILES[1]}[.gz]"
    if not path:
        raise UserError(f"mnist has no default folder; {advice}")
    return _load(Path(path), advice)


def load_fashion_mnist(path: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Training images, test images, uint8 [n 28 28 1], and the number of levels."""
    advice = (
        "install Debian's package dataset-fashion-mnist, or set --config.data.path"
        f" to the folder with {FILES[0]}[.gz] and {FILES[1]}[.gz]"
    )
    return _load(Path(path or FASHION_MNIST_FOLDER), advice)


def _load(folder: Path, advice: str) -> tuple[np.ndarray, np.ndarray, int]:
    train, test = (read_images(_find(folder, name, advice)) for name in FILES)
    if train.shape[1:] != test.shape[1:]:
        raise UserError(
            f"{folder}: training images are {train.shape[1]}x{train.shape[2]},"
            f" test images {test.shape[1]}x{test.shape[2]}"
        )
    return train, test, 256


def _find(folder: Path, name: str, advice: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"no data folder {folder}; {advice}")
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    raise UserError(f"neither {name} nor {name}.gz in {folder}; {advice}")


def read_images(file: Path) -> np.ndarray:
    """The images of one idx file, uint8 [n h w 1]; a name ending in .gz is decompressed."""
    content = _read(file)
    if len(content) < HEADER.size:
        raise UserError(f"{file}: truncated within its header; fetch the file again")
    magic, count, height, width = HEADER.unpack_from(content)
    if magic != MAGIC:
        raise UserError(
            f"{file}: not an idx file of images: its magic number is 0x{magic:08x},"
            f" not 0x{MAGIC:08x}"
        )
    expected = HEADER.size + count * height * width
    if len(content) != expected or not count:
        state = "truncated" if len(content) < expected else "inconsistent"
        raise UserError(
            f"{file}: {state}: its header promises {count} images of {height}x{width},"
            f" {expected} bytes, but it holds {len(content)}; fetch the file again"
        )
    pixels = np.frombuffer(content, np.uint8, offset=HEADER.size)
    return pixels.reshape(count, height, width, 1)


def _read(file: Path) -> bytes:
    try:
        content = file.read_bytes()
        return gzip.decompress(content) if file.suffix == ".gz" else content
    except gzip.BadGzipFile as error:
        raise UserError(f"{file}: not a gzip file ({error}); fetch the file again") from error
    except (EOFError, zlib.error) as error:
        raise UserError(f"{file}: truncated or damaged gzip; fetch the file again") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
