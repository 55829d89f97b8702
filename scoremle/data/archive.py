"""The files of a folder or an archive, read safely: nothing is ever unpacked to disk.

Hostile archives are refused: names that point out of the archive, members that unpack to far more
than any image or batch has, archives that unpack to far more than they hold. Links are not
followed, in an archive never, in a folder not out of it.

What a file claims about sizes is not believed: every read has a limit that is checked before it,
and what must be unpacked comes in chunks, no further than it goes.
"""

import bz2
import gzip
import hashlib
import io
import logging
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from scoremle.errors import UserError

__all__ = [
    "MAX_FILE", "MAX_HEADER", "Source", "check_ratio", "check_size", "hash_files", "is_archive",
    "is_hidden", "listing", "open_zip", "read_bytes", "read_member", "read_start", "stamp",
]  # fmt: skip

logger = logging.getLogger(__name__)

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# The largest real file is a batch of ImageNet 64x64, 1.6 GB.
MAX_FILE = 4 << 30
# Names and attributes of a member, in a tar. Longer ones also take old Pythons minutes to read.
MAX_HEADER = 64 << 10
# The list of members of a zip: 150 MB for the PNG files of ImageNet.
MAX_LISTING = 256 << 20
# What a .xz may ask for: xz -9 makes files that need 65 MiB.
MAX_XZ = 256 << 20
# Images hardly compress; even black ones as BMP stay below this, and bombs are at 1000 and more.
MAX_RATIO = 200
SMALL = 64 << 20
CHUNK = 1 << 20
# Names in a line.
SHOWN = 3


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


class Source:
    """The files at ``path``: of a folder, of a zip or tar, or that one file.

    With ``nested``, archives in a folder count as folders. ``done`` is the share of the bytes
    that were passed; ``sha256`` is of all that was read; ``hidden`` counts the files that were
    passed over since operating systems add such on their own.
    """

    def __init__(self, path: Path, *, nested: bool = False) -> None:
        self.path = path
        self.left_out = self.hidden = 0
        self._archives = [path] if is_archive(path) and path.is_file() else []
        self._files = [] if self._archives else listing(path)
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

    def files(
        self,
        wanted: Callable[[str], bool],
        limit: int = MAX_FILE,
        unreadable: Callable[[str, str], None] | None = None,
    ) -> Iterator[tuple[str, bytes]]:
        """Name and content of the files whose name is wanted; others are counted.

        One that is wanted, and can't be read or has more than ``limit`` bytes, is a UserError; in
        a folder, if there is ``unreadable``, that is told its name and why, and the rest is read.
        """
        self._passed = 0.0
        for file in self._files:
            name = self._name(file)
            if self._wanted(name, wanted):
                try:
                    content = read_bytes(file, limit)
                except UserError as error:
                    if unreadable is None:
                        raise
                    unreadable(name, str(error).removeprefix(f"{file}: "))
                    continue
                self._note(name, hashlib.sha256(content).digest())
                self._passed += len(content)
                yield name, content
        for archive in self._archives:
            yield from self._members(archive, wanted, limit)

    def _members(
        self, archive: Path, wanted: Callable[[str], bool], limit: int
    ) -> Iterator[tuple[str, bytes]]:
        prefix, size, before = "", archive.stat().st_size, self._passed
        unread: list[str] = []
        if self.path.is_dir():
            prefix = f"{self._name(archive)}/"
            self._note(prefix, _digest(archive).digest())
        members = _zip_members if archive.suffix.lower() == ".zip" else _tar_members
        for name, share, length, read in members(archive):
            self._passed = before + share * size
            if read is None:
                unread = [*unread[:SHOWN], name]
            elif self._wanted(prefix + name, wanted):
                check_size(f"{archive}: {name!r}", length, limit)
                with _damage(archive):
                    content = read()
                yield prefix + name, content
        self._passed = before + size
        _say_unread(archive, unread)

    def _name(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix() if self.path.is_dir() else file.name

    def _wanted(self, name: str, wanted: Callable[[str], bool]) -> bool:
        if is_hidden(name):
            self.hidden += 1
            return False
        found = wanted(name)
        self.left_out += not found
        return found

    def _note(self, name: str, digest: bytes) -> None:
        self._hash.update(name.encode(errors="surrogateescape") + b"\0" + digest)


def is_hidden(name: str) -> bool:
    """Is it, or does it lie in, what operating systems add on their own?"""
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def listing(path: Path) -> list[Path]:
    """The files of a folder, sorted; links that lead out of it and pipes are named, not read."""
    if not path.is_dir():
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise UserError(f"{path} is neither a file nor a folder")
        return [path]
    root = path.resolve()
    found: list[Path] = []
    left: list[Path] = []
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted([*names, *(f for f in folders if (Path(folder) / f).is_symlink())]):
            file = Path(folder) / name
            inside = not file.is_symlink() or file.resolve().is_relative_to(root)
            (found if inside and file.is_file() else left).append(file)
    _say_unread(path, [file.name for file in left])
    return found


def _say_unread(path: Path, names: Sequence[str]) -> None:
    if names:
        logger.warning(
            "%s: links that are not followed, and what is no plain file, are not read: %s",
            path, ", ".join([*map(repr, names[:SHOWN]), *["..."] * (len(names) > SHOWN)]),
        )  # fmt: skip


def _digest(file: Path) -> Any:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256")


def hash_files(folder: Path, wanted: Callable[[str], bool]) -> str:
    """``sha256`` of a folder whose files are read by other means."""
    source = Source(folder)
    for file in source._files:
        if source._wanted(name := source._name(file), wanted):
            source._note(name, _digest(file).digest())
    return source.sha256()


def stamp(path: Path) -> str:
    """Changes when a file below ``path`` comes, goes, or is written; reads none."""
    digest = hashlib.sha256()
    for file in listing(path):
        state = file.stat()
        digest.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\0".encode("utf-8", "replace"))
    return digest.hexdigest()


# Of an archive: name, share of the archive passed so far, size, and what gives the content; None
# for a link and whatever else is no plain file.
Member = tuple[str, float, int, Callable[[], bytes] | None]


def _zip_members(path: Path) -> Iterator[Member]:
    with _damage(path), open_zip(path, path) as archive:
        infos = sorted((i for i in archive.infolist() if not i.is_dir()), key=_name_of)
        unpacked, passed = sum(info.file_size for info in infos), 0
        for info in infos:
            _check_name(path, info.filename)
            passed += info.file_size
            is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
            content = None if is_link else partial(read_member, archive, info)
            yield info.filename, passed / max(unpacked, 1), info.file_size, content


def _name_of(info: zipfile.ZipInfo) -> str:
    return info.filename


@contextmanager
def open_zip(file: Path | bytes, where: str | Path) -> Iterator[zipfile.ZipFile]:
    """A zip, or its content, whose members may be read one by one: their sizes are checked."""
    raw = io.BytesIO(file) if isinstance(file, bytes) else file.open("rb", buffering=0)
    with _Listed(raw) as stream, zipfile.ZipFile(stream) as archive:
        infos = archive.infolist()
        check_ratio(where, sum(info.file_size for info in infos), stream.seek(0, os.SEEK_END))
        for info in infos:
            # Python unpacks the others without any bound.
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(
                    f"{where}: its member {info.filename!r} is neither stored nor deflated; pack"
                    " it as zip does unless told otherwise"
                )
        yield archive


class _Listed(io.BufferedReader):
    """A file for zipfile, which reads the list of members in one piece, as long as it claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_LISTING:
            raise zipfile.BadZipFile(f"its list of members has {size} bytes")
        return super().read(size)


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as stream:
        return _read(stream, info.file_size)


def _tar_members(path: Path) -> Iterator[Member]:
    size = path.stat().st_size
    with _damage(path), path.open("rb") as raw:
        stream: Any = _Unpacked(path, raw)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            while member := archive.next():
                _check_name(path, member.name)
                # Of all members, since it tells how far there is to go to the next.
                check_size(f"{path}: {member.name!r}", member.size, MAX_FILE)
                stream.next_header = archive.offset
                # A sparse file is small in the archive and may be of any size outside.
                plain = member.isfile() and not member.issparse()
                content = partial(_content, archive, member) if plain else None
                if not member.isdir():
                    yield member.name, raw.tell() / size, member.size, content
                # Else what is kept of members would grow with a million images.
                archive.members.clear()  # type: ignore[attr-defined]
                archive.pax_headers.clear()  # type: ignore[attr-defined]


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    content = _read(file, member.size) if file else b""
    if len(content) < member.size:
        raise EOFError(f"{member.name} is cut off")
    return content


class _Unpacked:
    """A tar as it is unpacked, for tarfile, which reads headers of any length that they claim.

    It may be read up to ``next_header``, and as much further as headers may be long.
    """

    def __init__(self, path: Path, raw: IO[bytes]) -> None:
        self._path, self._raw, self._place = path, raw, 0
        self.next_header = 0
        start = raw.read(6)
        raw.seek(0)
        self._stream: Any = raw
        for magic, unpack in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", _Xz)):
            if start.startswith(magic):
                self._stream = unpack(raw)

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._place += len(content)
        check_ratio(self._path, self._place, self._raw.tell())
        if self._place > self.next_header + MAX_HEADER:
            raise UserError(
                f"{self._path}: refused: the header of a member, {self.next_header} bytes from the"
                f" start of what it unpacks to, has more than {MAX_HEADER} bytes"
            )
        return content


class _Xz:
    """lzma.open, but for files that ask for gigabytes of memory."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._unpack = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ)

    def read(self, size: int) -> bytes:
        content = b""
        while not content and not self._unpack.eof:
            packed = self._raw.read(io.DEFAULT_BUFFER_SIZE) if self._unpack.needs_input else b""
            if not packed and self._unpack.needs_input:
                raise EOFError("it is cut off")
            content = self._unpack.decompress(packed, size)
        return content


def _check_name(path: Path, name: str) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in name.split("/")[0]:
        raise UserError(f"{path}: refused: its member {name!r} points out of the archive")


def check_size(where: str | Path, size: int, limit: int) -> None:
    """Refuses what is longer than any real file of its kind, before it is read."""
    if not 0 <= size <= limit:
        raise UserError(
            f"{where}: refused: of {size} bytes; files of its kind have {limit} at most"
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
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a damaged archive may raise anything
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: truncated or damaged archive ({text}); fetch the file again"
        ) from error


def _read(stream: Any, limit: int) -> bytes:
    """Up to ``limit`` bytes, for which no room is made before they are there."""
    chunks = []
    while limit and (chunk := stream.read(min(limit, CHUNK))):
        chunks.append(chunk)
        limit -= len(chunk)
    return b"".join(chunks)


def read_bytes(file: Path, limit: int = MAX_FILE) -> bytes:
    """A whole file; one of more than ``limit`` bytes is a UserError."""
    try:
        size = file.stat().st_size
        check_size(file, size, limit)
        with file.open("rb") as stream:
            return stream.read(size)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error


def read_start(file: Path, limit: int) -> bytes:
    """The first ``limit`` bytes of a file, or all; of what it unpacks to, if it ends in .gz."""
    packed = file.suffix == ".gz"
    try:
        if packed:
            check_ratio(file, limit, file.stat().st_size)
        with gzip.open(file) if packed else file.open("rb") as stream:
            return _read(stream, limit)
    except gzip.BadGzipFile as error:
        raise UserError(f"{file}: not a gzip file ({error}); fetch the file again") from error
    except (EOFError, zlib.error) as error:
        raise UserError(f"{file}: truncated or damaged gzip; fetch the file again") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
