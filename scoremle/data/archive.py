"""The files of a folder or an archive, read safely: nothing is ever unpacked to disk.

Hostile archives are refused: names that point out of the archive, members that unpack to far more
than any image or batch has, archives that unpack to far more than they hold. Links are not
followed, in an archive never, in a folder not out of it.
"""

import gzip
import hashlib
import logging
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from scoremle.errors import UserError

__all__ = ["Source", "check_ratio", "hash_files", "is_archive", "read_bytes", "read_gzip", "stamp"]

logger = logging.getLogger(__name__)

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# The largest real member is a batch of ImageNet 64x64, 1.6 GB.
MAX_MEMBER = 4 << 30
# Images hardly compress; even black ones as BMP stay below this, and bombs are at 1000 and more.
MAX_RATIO = 200
SMALL = 64 << 20
DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError,
    gzip.BadGzipFile, NotImplementedError, RuntimeError,
)  # fmt: skip


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


class Source:
    """The files at ``path``: of a folder, of a zip or tar, or that one file.

    With ``nested``, archives in a folder count as folders. ``done`` is the share of the bytes
    that were passed; ``sha256`` is of all that was read.
    """

    def __init__(self, path: Path, *, nested: bool = False) -> None:
        self.path = path
        self.left_out = 0
        self._archives = [path] if is_archive(path) and path.is_file() else []
        self._files = [] if self._archives else _listing(path)
        if nested and path.is_dir():
            self._archives = [file for file in self._files if is_archive(file)]
            self._files = [file for file in self._files if not is_archive(file)]
        self._total = sum(file.stat().st_size for file in (*self._files, *self._archives))
        self._passed = 0.0
        self._hash = hashlib.sha256()

    @property
    def done(self) -> float:
        return min(1.0, self._passed / max(self._total, 1))

    def sha256(self) -> str:
        """Of one file: its own. Of several: of their names and hashes."""
        if not self.path.is_dir():
            return _digest(self.path).hexdigest()
        return self._hash.hexdigest()

    def files(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        """Name and content of the files whose name is wanted; others are counted."""
        self._passed = 0.0
        for file in self._files:
            name = self._name(file)
            if self._wanted(name, wanted):
                content = read_bytes(file)
                self._note(name, hashlib.sha256(content).digest())
                self._passed += len(content)
                yield name, content
        for archive in self._archives:
            yield from self._members(archive, wanted)

    def _members(
        self, archive: Path, wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, bytes]]:
        prefix, size, before = "", archive.stat().st_size, self._passed
        if self.path.is_dir():
            prefix = f"{self._name(archive)}/"
            self._note(prefix, _digest(archive).digest())
        members = _zip_members if archive.suffix.lower() == ".zip" else _tar_members
        for name, share, read in members(archive):
            self._passed = before + share * size
            if self._wanted(prefix + name, wanted):
                with _damage(archive):
                    content = read()
                yield prefix + name, content
        self._passed = before + size

    def _name(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix() if self.path.is_dir() else file.name

    def _wanted(self, name: str, wanted: Callable[[str], bool]) -> bool:
        # What operating systems add on their own.
        parts = PurePosixPath(name).parts
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            return False
        found = wanted(name)
        self.left_out += not found
        return found

    def _note(self, name: str, digest: bytes) -> None:
        self._hash.update(name.encode(errors="surrogateescape") + b"\0" + digest)


def _listing(path: Path) -> list[Path]:
    """The files of a folder, sorted; links that lead out of it are named, not followed."""
    if not path.is_dir():
        return [path]
    root, found, outside = path.resolve(), [], []
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted([*names, *(f for f in folders if (Path(folder) / f).is_symlink())]):
            file = Path(folder) / name
            if file.is_symlink() and not (
                file.is_file() and file.resolve().is_relative_to(root)
            ):
                outside.append(name)
            elif file.is_file():
                found.append(file)
    if outside:
        logger.warning(
            "%s: %d links lead to folders or out of it and are not followed: %s",
            path, len(outside), ", ".join(outside[:3]) + (", ..." if outside[3:] else ""),
        )  # fmt: skip
    return found


def _digest(file: Path) -> Any:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256")


def hash_files(folder: Path, wanted: Callable[[str], bool]) -> str:
    """``sha256`` of a folder whose files are read by other means."""
    source = Source(folder)
    for _ in source.files(wanted):
        pass
    return source.sha256()


def stamp(path: Path) -> str:
    """Changes when a file below ``path`` comes, goes, or is written; reads none."""
    digest = hashlib.sha256()
    for file in _listing(path):
        state = file.stat()
        digest.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\0".encode("utf-8", "replace"))
    return digest.hexdigest()


# One archive: name, share of the archive passed so far, and a function that gives the content.
Member = tuple[str, float, Callable[[], bytes]]


def _zip_members(path: Path) -> Iterator[Member]:
    with _damage(path), zipfile.ZipFile(path) as archive:
        infos = sorted((i for i in archive.infolist() if not i.is_dir()), key=_name_of)
        unpacked = sum(info.file_size for info in infos)
        check_ratio(path, unpacked, path.stat().st_size)
        passed = 0
        for info in infos:
            _check_member(path, info.filename, info.file_size)
            passed += info.file_size
            is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
            if not is_link:
                yield info.filename, passed / max(unpacked, 1), partial(archive.read, info)


def _name_of(info: zipfile.ZipInfo) -> str:
    return info.filename


def _tar_members(path: Path) -> Iterator[Member]:
    size = path.stat().st_size
    with _damage(path), path.open("rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as archive:
        while member := archive.next():
            _check_member(path, member.name, member.size)
            check_ratio(path, archive.offset, raw.tell())
            # A sparse file is small in the archive and may be of any size outside.
            if member.isfile() and not member.issparse():
                yield member.name, raw.tell() / size, partial(_content, archive, member)
            # Else the list of members would grow with a million images.
            archive.members.clear()  # type: ignore[attr-defined]


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    content = file.read() if file else b""
    if len(content) < member.size:
        raise EOFError(f"{member.name} is cut off")
    return content


def _check_member(path: Path, name: str, size: int) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in name.split("/")[0]:
        raise UserError(f"{path}: refused: its member {name!r} points out of the archive")
    if size > MAX_MEMBER:
        raise UserError(
            f"{path}: refused: its member {name!r} unpacks to {size} bytes, which no file of"
            " images has"
        )


def check_ratio(where: str | Path, unpacked: int, packed: int) -> None:
    """Refuses what unpacks to far more than images do."""
    if unpacked > SMALL and unpacked > MAX_RATIO * packed:
        raise UserError(
            f"{where}: refused: it unpacks to more than {MAX_RATIO} times its size, as a"
            " decompression bomb does"
        )


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise UserError(
            f"{path}: truncated or damaged archive ({_line(error)}); fetch the file again"
        ) from error


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error


def read_gzip(file: Path, limit: int) -> bytes:
    """The content of a gzip file, but no more than ``limit`` bytes of it."""
    try:
        with gzip.open(file) as stream:
            return stream.read(limit)
    except gzip.BadGzipFile as error:
        raise UserError(f"{file}: not a gzip file ({error}); fetch the file again") from error
    except (EOFError, zlib.error) as error:
        raise UserError(f"{file}: truncated or damaged gzip; fetch the file again") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
