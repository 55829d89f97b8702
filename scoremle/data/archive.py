"""The files of a folder or an archive, read safely: nothing is ever unpacked to disk.

Hostile archives are refused: names that point out of the archive, members that unpack to far more
than any image or batch has, archives that unpack to far more than they hold. Links are not
followed, in an archive never, in a folder not out of it.
"""

import bz2
import gzip
import hashlib
import io
import logging
import lzma
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import IO, Any

from scoremle import bounded
from scoremle.errors import UserError, damaged
from scoremle.files import inside, named, opened, read_bytes, sha256_of

logger = logging.getLogger(__name__)

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
DAMAGED = "truncated or damaged archive"
# Names in a line.
SHOWN = 3
UNREAD = "a link that is not followed, or no plain file: put a copy of the file there"


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
        whole, (found, self._unread) = is_archive(path) and path.is_file(), _walked(path)
        packed = {name for name in found if whole or (nested and is_archive(Path(name)))}
        self._archives = {name: found[name] for name in packed}
        self._files = {name: file for name, file in found.items() if name not in packed}
        self._total = sum(file.stat().st_size for file in found.values())
        self._passed = 0.0
        self._hash = hashlib.sha256()

    @property
    def done(self) -> float:
        return min(1.0, self._passed / max(self._total, 1))

    def sha256(self) -> str:
        """SHA-256 of the one file; of several files, that of their names and hashes."""
        if not self.path.is_dir():
            return sha256_of(named(self.path), bounded.MAX_ARRAYS)
        return self._hash.hexdigest()

    def hash(self, wanted: Callable[[str], bool]) -> str:
        """``sha256`` of a folder whose wanted files are read by other means."""
        for name, file in self._files.items():
            if self._wanted(name, wanted):
                self._note(name, sha256_of(file, bounded.MAX_ARRAYS))
        return self.sha256()

    def files(
        self,
        wanted: Callable[[str], bool],
        limit: int = bounded.MAX_FILE,
        unreadable: Callable[[str, str], None] | None = None,
    ) -> Iterator[tuple[str, bytes]]:
        """Name and content of the files whose name is wanted; others are counted.

        One that is wanted, and can't be read or has more than ``limit`` bytes, is a UserError; in
        a folder, ``unreadable``, if given, gets its name and the reason, and the rest is read.
        Links that are not followed, which a line names otherwise, it gets of archives, too.
        """
        self._passed = 0.0
        if unreadable is None:
            _say_unread(self.path, self._unread)
        else:
            for name in self._unread:
                unreadable(name, UNREAD)
        for name, file in self._files.items():
            if self._wanted(name, wanted):
                try:
                    content = read_bytes(file, limit)
                except UserError as error:
                    if unreadable is None:
                        raise
                    unreadable(name, str(error).removeprefix(f"{file}: "))
                    continue
                self._note(name, hashlib.sha256(content).hexdigest())
                self._passed += len(content)
                yield name, content
        for name, archive in self._archives.items():
            yield from self._members(name, archive, wanted, limit, unreadable)

    def _members(
        self, name: str, archive: Path, wanted: Callable[[str], bool], limit: int,
        unreadable: Callable[[str, str], None] | None,
    ) -> Iterator[tuple[str, bytes]]:
        prefix, size, before = "", archive.stat().st_size, self._passed
        unread: list[str] = []
        if self.path.is_dir():
            prefix = f"{name}/"
            self._note(prefix, sha256_of(archive, bounded.MAX_ARRAYS))
        members = _zip_members if name.lower().endswith(".zip") else _tar_members
        for name, share, length, read in members(archive):
            self._passed = before + share * size
            if read is None and unreadable and not is_hidden(name):
                unreadable(prefix + name, UNREAD)
            elif read is None:
                unread = [*unread[:SHOWN], name]
            elif self._wanted(prefix + name, wanted):
                bounded.check_size(f"{archive}: {name!r}", length, limit)
                with damaged(archive, DAMAGED):
                    content = read()
                yield prefix + name, content
        self._passed = before + size
        _say_unread(archive, unread)

    def _wanted(self, name: str, wanted: Callable[[str], bool]) -> bool:
        if is_hidden(name) and name != self.path.name:  # which the user named
            self.hidden += 1
            return False
        found = wanted(name)
        self.left_out += not found
        return found

    def _note(self, name: str, sha256: str) -> None:
        self._hash.update(name.encode(errors="surrogateescape") + b"\0" + bytes.fromhex(sha256))


def is_hidden(name: str) -> bool:
    """Whether it is, or lies in, what operating systems add on their own."""
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def listing(path: Path) -> dict[str, Path]:
    """The files of a folder by their names in it, sorted; or that one file.

    They are not links any more. Links that lead out and what is not a plain file are named in a
    line, and left out. Raises UserError for a folder in it that can't be read and is not hidden.
    """
    found, left = _walked(path)
    _say_unread(path, left)
    return found


def _walked(path: Path) -> tuple[dict[str, Path], list[str]]:
    """The files of ``listing``, and the names of what is left out, without hidden ones."""
    if not path.is_dir():
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise UserError(f"{path} is neither a file nor a folder")
        return {path.name: named(path)}, []
    found: dict[str, Path] = {}
    left: list[str] = []

    def refuse(error: OSError) -> None:
        if not is_hidden(os.path.relpath(error.filename, path)):
            raise UserError(f"{error.filename} can't be read: {error.strerror}") from error

    for folder, folders, names in os.walk(path, onerror=refuse):
        folders.sort()
        for name in sorted([*names, *(f for f in folders if (Path(folder) / f).is_symlink())]):
            file = Path(folder) / name
            place = file.relative_to(path).as_posix()
            if real := _plain(file, path):
                found[place] = real
            elif not is_hidden(place):
                left.append(place)
    return found, left


def _plain(file: Path, folder: Path) -> Path | None:
    """The file, or in its folder what it links to; None for anything else."""
    try:
        real = inside(folder, str(file.relative_to(folder))) if file.is_symlink() else file
    except UserError:
        return None
    return real if real.is_file() else None


def _say_unread(path: Path, names: Sequence[str]) -> None:
    if names:
        logger.warning(
            "%s: links that are not followed, and what is not a plain file, are not read: %s",
            path, ", ".join([*map(repr, names[:SHOWN]), *["..."] * (len(names) > SHOWN)]),
        )  # fmt: skip


def stamp(path: Path) -> str:
    """A hash of the names, sizes and times of all files below ``path``; reads none of them."""
    digest = hashlib.sha256()
    for file in listing(path).values():
        state = file.stat()
        digest.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\0".encode("utf-8", "replace"))
    return digest.hexdigest()


# Of an archive: name, share of the archive passed so far, size, and what gives the content; None
# for a link and whatever else is not a plain file.
Member = tuple[str, float, int, Callable[[], bytes] | None]


def _zip_members(path: Path) -> Iterator[Member]:
    with (
        damaged(path, DAMAGED),
        opened(path, bounded.MAX_ARRAYS) as file,
        bounded.open_zip(file, path) as archive,
    ):
        plain = (info for info in archive.infolist() if not info.is_dir())
        infos = sorted(plain, key=attrgetter("filename"))
        unpacked, passed = sum(info.file_size for info in infos), 0
        for info in infos:
            _check_name(path, info.filename)
            passed += info.file_size
            is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
            content = None if is_link else partial(bounded.read_member, archive, info)
            yield info.filename, passed / max(unpacked, 1), info.file_size, content


def _tar_members(path: Path) -> Iterator[Member]:
    size = path.stat().st_size
    with damaged(path, DAMAGED), opened(path, bounded.MAX_ARRAYS) as raw:
        stream: Any = _Unpacked(path, raw)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            while member := archive.next():
                _check_name(path, member.name)
                # Every member is checked: the next one begins behind its claimed size.
                bounded.check_size(f"{path}: {member.name!r}", member.size, bounded.MAX_FILE)
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
    content = bounded.read_no_further(file, member.size) if file else b""
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
        bounded.check_ratio(self._path, self._place, self._raw.tell())
        if self._place > self.next_header + bounded.MAX_HEADER:
            raise UserError(
                f"{self._path}: refused: the header of a member, {self.next_header} bytes from the"
                f" start of what it unpacks to, has more than {bounded.MAX_HEADER} bytes"
            )
        return content


class _Xz:
    """lzma.open, but for files that need gigabytes of memory."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._unpack = self._stream()

    @staticmethod
    def _stream() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=bounded.MAX_XZ)

    def _begin_next(self) -> bool:
        """Begins the stream behind the one that ended and zeros; False: there is none."""
        packed = self._unpack.unused_data
        while not (packed := packed.lstrip(b"\0")):
            if not (packed := self._raw.read(io.DEFAULT_BUFFER_SIZE)):
                return False
        self._unpack = self._stream()
        self._unpack.decompress(packed, 0)
        return True

    def read(self, size: int) -> bytes:
        content = b""
        while not content and (not self._unpack.eof or self._begin_next()):
            packed = self._raw.read(io.DEFAULT_BUFFER_SIZE) if self._unpack.needs_input else b""
            if not packed and self._unpack.needs_input:
                raise EOFError("it is cut off")
            content = self._unpack.decompress(packed, size)
        return content


def _check_name(path: Path, name: str) -> None:
    parts, drive = PurePosixPath(name.replace("\\", "/")), re.match(r"[A-Za-z]:([\\/]|$)", name)
    if parts.is_absolute() or ".." in parts.parts or drive:
        raise UserError(f"{path}: refused: its member {name!r} points out of the archive")


def read_start(file: Path, limit: int) -> bytes:
    """The first ``limit`` bytes of a file, or all; of what it unpacks to, if it ends in .gz."""
    packed = file.suffix == ".gz"
    with damaged(file, "truncated or damaged gzip"), opened(file, bounded.MAX_ARRAYS) as raw:
        if packed:
            bounded.check_ratio(file, limit, os.fstat(raw.fileno()).st_size)
        with gzip.open(raw) if packed else nullcontext(raw) as stream:
            return bounded.read_no_further(stream, limit)
