"""Files that are there whole or not at all, after a kill and after a lost power.

What lies in a folder may be a stranger's. ``opened`` alone opens it: a plain file, within a bound,
without waiting for a pipe. A link is followed where the user named it (``named``), or where it
stays in the folder that the user named (``inside``).

While a file or folder is written, its name has the machine and the process that writes it: no two
write to the same, and what a dead process left can be found and removed.

Of several processes of one run the first writes. The others do the same work, and their writes
are dropped.

What a number depends on is sealed: a file contains the SHA-256 of its content, so that a change
is found when it is read. Files of earlier versions have no seal, and are read as they are.
"""

import csv
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import numpy as np

from scoremle.bounded import LONGEST_JSON, MAX_FILE, MAX_RATIO, SMALL, check_size, read_arrays
from scoremle.errors import UserError
from scoremle.terminal import is_stream

# The name that a seal has beside what it seals.
SEAL = "seal"
# What temporary_beside makes: the machine and the process are its groups.
TEMPORARY = re.compile(r"\..+\.([\w-]+)\.(\d+)\.[0-9a-f]{8}\.tmp")
# Seconds without a write, after which a file counts as abandoned.
ABANDONED = 24 * 3600.0


# What others made -------------------------------------------------------------------------------


def opened(path: Path, most: int) -> BufferedReader:
    """A plain file of at most ``most`` bytes, open for reading.

    Raises UserError for a link, for what is not a plain file, which might be waited for, for one
    that is longer, and for one that is almost all holes; OSError where there is none.
    """
    file = open(path, "rb", opener=handle_of)  # noqa: SIM115
    try:
        size = os.fstat(file.fileno()).st_size
        check_size(path, size, most)
        if size > SMALL and _is_hollow(file.fileno(), size):
            raise UserError(
                f"{path}: refused: of its {size} bytes next to none are on the disk, and holes are"
                " read as zeros"
            )
    except BaseException:
        file.close()
        raise
    return file


def handle_of(path: Any, flags: int) -> int:
    """An open plain file, by its number. Raises UserError for a link, and for anything else."""
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{path} is a link, which is not followed: name its target") from None
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise UserError(f"{path} is not a plain file")


def _is_hollow(handle: int, size: int) -> bool:
    """Whether so little of a file is on disk, and the rest holes, that it may be a bomb."""
    held, end = 0, 0
    try:
        while held * MAX_RATIO < size:
            start = os.lseek(handle, end, os.SEEK_DATA)
            end = os.lseek(handle, start, os.SEEK_HOLE)
            held += end - start
    except OSError as error:  # no more of it, or a file system that has no holes
        return error.errno == errno.ENXIO
    finally:
        os.lseek(handle, 0, os.SEEK_SET)
    return False


def named(path: str | Path) -> Path:
    """The file that the user named, which may be a link."""
    path = Path(path)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def listed(folder: Path) -> list[Path]:
    """The paths in a folder in their order; none if there is no folder.

    Raises UserError for a folder that can't be read, of which ``glob`` gives none.
    """
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder} can't be read: {error.strerror}") from None


def inside(folder: Path, *names: str, writing: bool = False) -> Path:
    """A place in a folder that the user named, without links on the way from there.

    Links of the folder are followed to what is in it, and those of the Hugging Face hub's cache to
    its blobs.

    Args:
        folder: it may be a link itself.
        names: of the place, one below the other.
        writing: no link is followed.

    Raises UserError for a link that is not followed, and for names that lead out.
    """
    root, path = Path(os.path.realpath(folder)), folder.joinpath(*names)
    place = Path(os.path.normpath(root.joinpath(*names)))
    real = Path(os.path.realpath(place))
    if any(part.is_symlink() for part in (real, *real.parents)):
        raise UserError(f"{path} is a link that leads to itself: remove it")
    if real == place and place.is_relative_to(root):
        return path
    if not writing and (real.is_relative_to(root) or _is_blob(real, root)):
        return real
    if real == place:
        raise UserError(f"{path} is not in {folder}")
    raise UserError(
        f"{path} is a link to {real}, and links{'' if writing else ' out'} of a folder are not"
        f" followed: name {real} itself, or move all of {folder} to where that is and name it"
        " there"
    )


def _is_blob(real: Path, root: Path) -> bool:
    """Whether this file is a blob that a folder of the hub's cache links to.

    It has models--OWNER--NAME/snapshots/REVISION, whose files are links into the folders blobs of
    the model and of the cache.
    """
    models = (above.parent for above in (root, *root.parents) if above.name == "snapshots")
    return any(
        real.is_relative_to(folder / "blobs")
        for model in models if "--" in model.name for folder in (model, model.parent)
    )  # fmt: skip


def read_bytes(path: Path, most: int) -> bytes:
    """A whole file. Raises UserError as ``opened``, and where it can't be read."""
    try:
        with opened(path, most) as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def sha256_of(path: Path, most: int) -> str:
    """The SHA-256 of a file, which is opened as by ``opened``."""
    with opened(path, most) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Who writes -------------------------------------------------------------------------------------

_is_writer = True


def is_writer() -> bool:
    """Whether this process writes files."""
    return _is_writer


def leave_writing_to_others() -> None:
    """Stops this process from writing files."""
    global _is_writer
    _is_writer = False


@contextmanager
def for_this_process() -> Iterator[None]:
    """Lets this process write its own files in the block, even if another writes all others."""
    global _is_writer
    before, _is_writer = _is_writer, True
    try:
        yield
    finally:
        _is_writer = before


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of ``path`` when all is on disk.

    No link is written through: it is replaced. What is a stream gets the content.
    """
    path = Path(path)
    with writing(path), (_to_stream if is_stream(path) else _in_place_of)(path) as temporary:
        yield temporary


@contextmanager
def _in_place_of(path: Path) -> Iterator[Path]:
    make_folder(path.parent)
    _sweep(path.parent)
    temporary = temporary_beside(path)
    try:
        yield temporary
        if is_writer():
            # In this order: a name must not be on disk before its content.
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _to_stream(path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / path.name
        yield temporary
        if is_writer():
            try:
                handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                raise UserError(f"can't write {path}: nobody reads this pipe") from None
            os.set_blocking(handle, True)
            with open(handle, "wb") as stream, temporary.open("rb") as file:
                shutil.copyfileobj(file, stream)


def temporary_beside(path: Path) -> Path:
    """A new name beside ``path``, for what is to take its place."""
    owner = f"{machine()}.{os.getpid()}.{secrets.token_hex(4)}"
    return path.with_name(f"{beginning(path)}{owner}.tmp")


def beginning(path: Path) -> str:
    """The beginning of names of what is to take the place of ``path``."""
    return f".{os.fsdecode(os.fsencode(path.name)[:80])}."  # file systems count bytes


def is_abandoned(temporary: Path) -> bool:
    """Whether the process that wrote this has ended, or nothing was written to it for a day.

    False for what has a name of another form.
    """
    owner = TEMPORARY.fullmatch(temporary.name)
    if owner is None or is_gone(owner[1], int(owner[2])):
        return owner is not None
    times = [place.stat().st_mtime for place in (temporary, *temporary.glob("*"))]
    return _now_in(temporary.parent) - max(times) > ABANDONED


def _now_in(folder: Path) -> float:
    """The time by the clock that files in a folder get: this machine's own may be a day ahead."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


@cache
def machine() -> str:
    """This machine, or the container on it, within which processes have their numbers."""
    facts = [name := socket.gethostname()]
    with suppress(OSError):  # a name alone may be that of many machines
        facts.append(str(os.stat("/proc/self/ns/pid").st_ino))
        facts.append(Path("/etc/machine-id").read_text())
    return f"{re.sub('[^A-Za-z0-9-]', '-', name)}-{seal(facts)[:8]}"


def is_gone(of_machine: str, process: int) -> bool:
    """Whether this process has certainly ended. Of other machines nothing is certain."""
    if of_machine != machine():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # or a number that no process has
        return True
    except OSError:  # another user's
        pass
    return False


@cache
def _sweep(folder: Path) -> None:
    """Removes, once a process, the files that others had begun to write in a folder."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):  # another process removes it too
            if is_abandoned(path):
                path.unlink()


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, on disk when this returns."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    above = new[-1].parent if new else folder
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{above} is not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    for place in new:
        sync(place.parent)


def sync(place: Path) -> None:
    """Returns when a file, or the list of names in a folder, is on disk."""
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems can't do it with a folder, and need not.
        if error.errno != errno.EINVAL or not place.is_dir():
            raise
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """Returns when all that is in a folder, and the folder, is on disk."""
    for place in (*folder.rglob("*"), folder):
        sync(place)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError in the block into a UserError with the file's name."""
    try:
        yield
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror or error}") from error


def write_bytes(path: str | Path, content: bytes) -> None:
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | Path, content: Any) -> None:
    write_bytes(path, f"{json.dumps(content, indent=2)}\n".encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError if there is none."""
    text = read_bytes(path, LONGEST_JSON)
    try:
        content = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object {{...}}: repair it, or move it away")
    return content


def seal(content: Any) -> str:
    """SHA-256 in hexadecimal of a content as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_sealed(path: str | Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object, and in it a seal: the hash of all else."""
    as_read = json.loads(json.dumps(content))
    write_json(path, {**as_read, SEAL: seal(as_read)})


def unsealed(content: Mapping[str, Any], *names: str) -> dict[str, Any] | None:
    """The content without its seal, if it has one; None if it is not as it was sealed.

    The seal is that of the rest, and of ``names`` before it. One whose own name was damaged is
    found by its value.
    """
    for key in [SEAL] if SEAL in content else content:
        rest = {other: value for other, value in content.items() if other != key}
        if content[key] == seal([*names, rest] if names else rest):
            return rest if key == SEAL else None
    return None if SEAL in content else dict(content)


def read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file, without its seal, if it has one.

    Raises UserError if there is none, or with the ``remedy`` if the seal is not that of the rest.
    """
    content = unsealed(read_json(path))
    if content is None:
        raise UserError(f"{path} is not as it was written: {remedy}")
    return content


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    # To an open file, since numpy appends .npz to the name of any other.
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **cast(Any, arrays))


def write_array(path: Path, name: str, array: np.ndarray, levels: int | None) -> None:
    """Writes one array: by its name, with its grey levels, into a .npz; or as a .npy."""
    if path.suffix.lower() == ".npz":
        write_npz(path, {name: array} | ({} if levels is None else {"levels": np.asarray(levels)}))
        return
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Writes a table, whose rows have a text for some columns of the header."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, header)
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def read_npz(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file; None if there is none, or none that can be read without unpickling."""
    try:
        with opened(path, MAX_FILE) as file:
            return read_arrays(file, path)
    except MemoryError:
        raise
    except Exception:
        # Damaged files come out of zipfile, zlib and numpy as every kind of exception.
        return None
