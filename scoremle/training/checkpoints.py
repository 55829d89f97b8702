"""Checkpoints: written whole or not at all, verified when read.

A store is a folder of ``checkpoint_N`` folders. Each holds the arrays of a tree (Orbax) and a
JSON record: the caller's notes, the name, shape and dtype of every leaf, and a SHA-256 over the
bytes of all leaves. Orbax gives back flipped bits without a word, so the hash is checked on every
read; the record carries a hash of itself. Arrays that are split over several processes are written
by all of them, each its parts, and the hashes of the parts lie beside.
"""

import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import jax
import numpy as np

from scoremle import files
from scoremle.bounded import LONGEST_JSON, MAX_MODEL, array_bytes, check_ratio
from scoremle.devices import part_axis
from scoremle.errors import UserError, out_of_memory
from scoremle.records import Count, Number, check_record
from scoremle.training import checksums
from scoremle.training.checksums import named_leaves
from scoremle.training.tracebacks import hide_tracebacks

__all__ = ["Checkpoints", "Damaged", "Restored", "first_difference", "leaves"]

logger = logging.getLogger(__name__)

OS_ERROR = re.compile(r"os_error_code='(\d+)'")
# Names of what is half written, or was replaced.
HALF = re.compile(r"checkpoint_\d+\.(new|old)(\.orbax-checkpoint-tmp.*)?")

# Of the hashes of parts.
SHA256 = "sha256"
# A place where processes meet has a name of its own.
_saves = itertools.count()


class Restored(NamedTuple):
    """A tree as it was saved, the notes saved with it, and the number of the checkpoint.

    Args:
        tree: of arrays.
        meta: notes in values of JSON.
        number: of the checkpoint.
    """

    tree: Any
    meta: dict[str, Any]
    number: int


class _Notes(TypedDict, total=False):
    """Fields of a caller's notes that are read anywhere."""

    step: Count
    rng: tuple[Count, Count] | None
    rollbacks: Count
    since_the_last_row: dict[str, list[Number]]
    config: dict[str, Any]
    data: dict[str, Any]


class _Record(TypedDict):
    meta: _Notes
    leaves: dict[str, tuple[list[int], str]]
    tree_hash: str


class _RecordOfParts(_Record, total=False):
    """Record of sharded leaves: the axis of each, and the number of devices."""

    axes: dict[str, int]
    devices: int


class Damaged(Exception):
    """A checkpoint that cannot be trusted; the text has the reason."""


class Checkpoints:
    """The checkpoints in one folder, by number; the newest ``keep`` of them, or all if None.

    One process writes to a folder at a time; others may read.

    Args:
        folder: of the checkpoints.
        keep: how many of the newest; None: all.
    """

    def __init__(self, folder: Path, *, keep: int | None) -> None:
        # Orbax refuses relative paths.
        self.folder = Path(folder).absolute()
        self.keep = keep

    def path(self, number: int) -> Path:
        """Path of a checkpoint, whether it exists or not.

        Args:
            number: of the checkpoint.
        """
        return self._own_path(number)

    def numbers(self) -> list[int]:
        """Numbers of the complete checkpoints, ascending."""
        return self.own()

    def own(self) -> list[int]:
        """Numbers of those that were saved here.

        Raises UserError for a folder that can't be read.
        """
        found = (
            (path, re.fullmatch(r"checkpoint_(\d+)(\.old)?", path.name))
            for path in files.listed(self.folder)
            if path.is_dir()
        )
        return sorted(
            int(name[1]) for path, name in found if name and path == self._own_path(int(name[1]))
        )

    def latest(self) -> int | None:
        """The highest number, or None if there is no checkpoint."""
        return max(self.numbers(), default=None)

    def save(self, number: int, tree: Any, meta: dict[str, Any]) -> None:
        """Writes ``tree`` and ``meta`` (JSON) as this number, in place of one that has it already.

        All processes of a run call it. Those that have parts of arrays write them, and the first
        all else. It returns there when everything is on disk. Killed at any moment, or without
        power, it leaves the other checkpoints, and of this number the old one or the new one.

        Args:
            number: of the checkpoint.
            tree: of arrays.
            meta: notes in values of JSON.
        """
        if not (files.is_writer() or checksums.part_axes(named_leaves(tree))):
            return
        place = self._place(number)
        new = place.with_suffix(".new")
        with files.writing(place):
            if files.is_writer():
                files.make_folder(self.folder)
                self._sweep()
            _write(new, jax.tree.map(_as_saved, tree), meta)
            if files.is_writer():
                files.sync_all(new)
                self._put(new, place)

    def _put(self, new: Path, place: Path) -> None:
        """Gives a checkpoint its place, and removes those that are too many."""
        self._make_way(place)
        new.rename(place)
        files.sync(self.folder)
        for number in self.own()[: -self.keep] if self.keep else []:
            # Renamed first: a deletion cut short must not look like a damaged checkpoint.
            self._make_way(self._place(number))
        self._sweep()

    def restore(self, template: Any, number: int | None = None) -> Restored:
        """Reads a checkpoint: this number, or the newest that is whole.

        A damaged one is named, and the one before it taken.

        Args:
            template: of the structure, shapes and dtypes expected: arrays, or what
                ``jax.eval_shape`` gives. What is read goes to the devices of its arrays, of
                sharded ones each part to its device; without a place, they are arrays of numpy.
            number: of the checkpoint; None: the newest.

        Raises UserError if there is nothing to read, or if it belongs to another network.
        """
        numbers = self.numbers()
        if number is not None and number not in numbers:
            raise UserError(f"no checkpoint {number} in {self.folder}, only {numbers or 'none'}")
        if not numbers:
            raise UserError(f"no checkpoint in {self.folder}")
        for chosen in reversed(numbers) if number is None else [number]:
            try:
                return self._restore(template, chosen)
            except Damaged as error:
                if number is not None:
                    raise UserError(f"{self.path(number)} is damaged ({error})") from None
                logger.warning(
                    "%s is damaged (%s): trying the one before", self.path(chosen), error
                )
        raise UserError(
            f"every checkpoint in {self.folder} is damaged: move the folder away to begin anew"
        )

    def meta(self, number: int) -> dict[str, Any]:
        """The notes saved with a checkpoint, without reading its arrays.

        Args:
            number: of the checkpoint.

        Raises UserError for a checkpoint that is damaged.
        """
        try:
            return self._read_record(number)["meta"]
        except Damaged as error:
            raise UserError(f"{self.path(number)} is damaged ({error})") from None

    def verify(self, number: int) -> None:
        """Reads a checkpoint, of whatever network. Raises UserError if it is damaged.

        Args:
            number: of the checkpoint.
        """
        path = self.path(number)
        try:
            record, shapes = self._read_record(number), _read_shapes(path)
            if first_difference(record["leaves"], leaves(shapes)):
                raise Damaged("its arrays are not those of its record")
            _check_shapes(path, shapes)
            found = dict(named_leaves(_read_tree(path, shapes)))
            # Without its template a tree has another order of leaves.
            _check_sums(path, [(name, found[name]) for name in record["leaves"]], record)
        except Damaged as error:
            raise UserError(f"{path} is damaged ({error})") from None

    def _restore(self, template: Any, number: int) -> Restored:
        path, record = self.path(number), self._read_record(number)
        if words := first_difference(record["leaves"], leaves(template)):
            raise UserError(f"{path} {words}: it belongs to another configuration")
        tree = _read_tree(path, template)
        _check_sums(path, named_leaves(tree), record)
        return Restored(tree, record["meta"], number)

    def _read_record(self, number: int) -> dict[str, Any]:
        """The record of a checkpoint. Raises Damaged for one that can't be trusted."""
        path = self.path(number)
        _check_plain(files.inside(self.folder, path.name))
        with _damage():
            record = json.loads(files.read_bytes(path / "record" / "metadata", LONGEST_JSON))
        if not isinstance(record, dict) or record.pop(files.SEAL, None) != files.seal(record):
            raise Damaged("its record has been altered")
        try:
            check_record(record, _RecordOfParts, "its record")
        except UserError as error:
            raise Damaged(str(error)) from None
        return record

    def _place(self, number: int) -> Path:
        return self.folder / f"checkpoint_{number}"

    def _own_path(self, number: int) -> Path:
        """The path of a checkpoint; that of the old one beside it, while it is replaced."""
        place = self._place(number)
        old, new = place.with_suffix(".old"), place.with_suffix(".new")
        replaced = not place.is_dir() and old.is_dir() and new.is_dir()
        return old if replaced else place

    def _make_way(self, place: Path) -> None:
        """Moves aside what is at this place."""
        if place.is_dir():
            place.rename(place.with_suffix(".old"))

    def _sweep(self) -> None:
        """Removes what is half written or being deleted; puts back what was being replaced."""
        for number in self.own():
            if (path := self._own_path(number)) != self._place(number):
                path.rename(self._place(number))
        for path in self.folder.glob("checkpoint_*.*"):
            if HALF.fullmatch(path.name) and path.is_dir():  # others are somebody else's
                shutil.rmtree(path)


def leaves(tree: Any) -> dict[str, list[Any]]:
    """Name -> [shape, dtype], in a form that JSON gives back unchanged.

    Args:
        tree: of arrays.
    """
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in named_leaves(tree)}


def first_difference(saved: dict[str, list[Any]], needed: dict[str, list[Any]]) -> str | None:
    """The first leaf in which a checkpoint is not what the program needs, in words.

    Args:
        saved: leaves of the checkpoint.
        needed: leaves of the program.
    """
    for name, (shape, dtype) in needed.items():
        if name not in saved:
            return f"has no {name}, which the network needs"
        saved_shape, saved_dtype = saved[name]
        if saved_shape != shape:
            return f"has {name} of shape {tuple(saved_shape)}, the network needs {tuple(shape)}"
        if saved_dtype != dtype:
            return f"has {name} in {saved_dtype}, the network needs {dtype}"
    extra = next((name for name in saved if name not in needed), None)
    return extra and f"has {extra}, which the network lacks"


def _as_saved(leaf: Any) -> Any:
    return np.asarray(leaf) if part_axis(leaf) is None else leaf


def _write(path: Path, tree: Any, meta: dict[str, Any]) -> None:
    import orbax.checkpoint as ocp  # slow to import, and not needed to look at a folder
    from orbax.checkpoint.options import MultiprocessingOptions

    hide_tracebacks()
    named = named_leaves(tree)
    axes = checksums.part_axes(named)
    record: dict[str, Any]
    record = {"meta": meta, "leaves": leaves(tree), "tree_hash": checksums.hash_of(named, axes)}
    items = {"state": ocp.args.StandardSave(_by_name(tree))}
    if axes:
        record |= {"axes": axes, "devices": jax.device_count()}
        items["parts"] = ocp.args.StandardSave({SHA256: checksums.part_hashes(named, axes)})
    record = json.loads(json.dumps(record))  # as it will be read: the seal is taken of that
    items["record"] = ocp.args.JsonSave({**record, files.SEAL: files.seal(record)})
    if axes:
        _meet()
    this = jax.process_index()
    who = MultiprocessingOptions(
        primary_host=0 if axes else this,
        active_processes=set(range(jax.process_count())) if axes else {this},
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=who)
    )
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=who) as checkpointer:
            checkpointer.save(path, args=ocp.args.Composite(**items))
    except ValueError as error:
        # TensorStore puts the system's error into the text of a ValueError.
        if code := OS_ERROR.search(str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
        raise


def _meet() -> None:
    """Waits until all processes of a run are here, without work on the devices."""
    from orbax.checkpoint import multihost

    everyone = set(range(jax.process_count()))
    multihost.sync_global_processes(f"checkpoint {next(_saves)}", processes=everyone)


def _check_plain(path: Path) -> None:
    """Raises Damaged unless a checkpoint is plain files, since Orbax opens whatever is there.

    Its records are JSON, and folders of the name d hold the numbers.
    """
    try:
        for place in path.rglob("*"):
            if place.is_symlink() or not place.is_dir():
                most = MAX_MODEL if place.parent.name == "d" else LONGEST_JSON
                files.opened(place, most).close()
    except (OSError, UserError) as error:
        raise Damaged(str(error)) from None


def _check_shapes(path: Path, shapes: Any) -> None:
    """Raises UserError for arrays that are far larger than the files that hold them."""
    declared = sum(array_bytes(a.shape, a.dtype.itemsize) for a in jax.tree.leaves(shapes))
    check_ratio(path, declared, sum(place.stat().st_size for place in path.rglob("*")))


def _read(path: Path, name: str, arrays: Any) -> Any:
    """An item of a checkpoint, of arrays like these."""
    import orbax.checkpoint as ocp

    wanted = ocp.args.Composite(**{name: ocp.args.StandardRestore(arrays)})
    with _damage(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path, args=wanted)[name]


@contextmanager
def _damage() -> Iterator[None]:
    """Damaged files come out of Orbax, TensorStore and json as every kind of exception."""
    hide_tracebacks()
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            raise
        raise Damaged(f"unreadable: {type(error).__name__}") from error


def _read_tree(path: Path, template: Any) -> Any:
    found = _read(path, "state", jax.tree.map(_as_wanted, _by_name(template)))
    return found if _by_name(template) is template else template._replace(**found)


def _by_name(tree: Any) -> Any:
    """The fields of a record, without those that are (): an earlier version may lack them."""
    if not hasattr(tree, "_asdict"):
        return tree
    fields = tree._asdict().items()
    return {name: each for name, each in fields if type(each) is not tuple or each}


def _check_sums(path: Path, named: list[tuple[str, Any]], record: dict[str, Any]) -> None:
    """Raises Damaged if the arrays are not what was saved."""
    axes = record.get("axes", {})
    if checksums.hash_of(named, axes) != record["tree_hash"]:
        raise Damaged("checksum differs")
    if not axes:
        return
    wanted = {SHA256: np.broadcast_to(np.uint8(), (record["devices"], len(axes), 32))}
    hashes = _read(path, "parts", wanted)
    with _damage():
        same = checksums.same_parts(named, axes, hashes[SHA256])
    if not same:
        raise Damaged("checksum of a part differs")


def _as_wanted(leaf: Any) -> Any:
    """Placeholder of an array with the template's sharding, or else of one of numpy."""
    if sharding := getattr(leaf, "sharding", None):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)  # it takes no memory


def _read_shapes(path: Path) -> Any:
    """The tree as Orbax has it, with shapes and dtypes in place of arrays."""
    import orbax.checkpoint as ocp

    handler = ocp.CompositeCheckpointHandler(
        state=ocp.StandardCheckpointHandler(),
        parts=ocp.StandardCheckpointHandler(),
        record=ocp.JsonCheckpointHandler(),
    )
    with _damage(), ocp.Checkpointer(handler) as checkpointer:
        known = checkpointer.metadata(path).item_metadata["state"].tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), known)
