"""A working directory, and whether it belongs to an experiment.

config.json        the resolved config
data.json          name, number of levels and hashes of the data set
metrics.jsonl      a row of numbers for every logged step
samples/           a grid of samples for every snapshot
checkpoints/       snapshots, for evaluation
checkpoints-meta/  where training goes on after pre-emption
<deq_folder>/      all of this of a flow dequantizer; score_model.json says for which checkpoint
<eval_folder>/     results.json, per-image values, pictures

config.json, data.json and score_model.json are sealed, and each checkpoint has in its own sealed
notes the fields that it was trained with: what disagrees with them is named and not used.

published/        where a model of a published family was imported: its files
published.json    and what they are

A folder as published has nothing but published files in the folders of checkpoints, and is a
working directory like any other.
"""

import json
import logging
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypedDict

import jax
from ml_collections import ConfigDict

from scoremle.data.prepared import is_prepared
from scoremle.errors import UserError, in_short
from scoremle.experiment import record
from scoremle.experiment.config import CONFIG_RECORD, REMEDY, flat, recorded_config
from scoremle.experiment.folders import PREEMPTION, SNAPSHOTS, WRITTEN
from scoremle.experiment.imported import Imported, ImportedCheckpoints
from scoremle.experiment.lock import locked
from scoremle.experiment.record import DataFacts, Recorded, data_facts, of_the_network
from scoremle.files import inside, listed, read_json, read_sealed, write_sealed
from scoremle.numerics import check_finite
from scoremle.processes import check_agreed
from scoremle.published import PublishedCheckpoints, origin
from scoremle.records import check_record
from scoremle.terminal import say
from scoremle.training.checkpoints import Checkpoints, Restored
from scoremle.training.step import TrainState

__all__ = ["Workdir"]

logger = logging.getLogger(__name__)

PREEMPTION_KEEP = 2
DIFFERENCES_SHOWN = 4
# Seconds between two checks whether there is a new checkpoint.
WAIT_SECONDS = 10.0


class _Notes(TypedDict):
    """Notes of a checkpoint: earlier versions wrote the step alone."""

    step: int


@dataclass(frozen=True)
class Workdir:
    """The folder of an experiment.

    Args:
        folder: its path.

    Raises UserError for a path that is a file.
    """

    folder: Path

    def __post_init__(self) -> None:
        for place in (self.folder, *self.folder.parents):
            if (place.exists() or place.is_symlink()) and not place.is_dir():
                what = "a file" if place.exists() else "a link that leads nowhere"
                raise UserError(f"--workdir={self.folder}: {place} is {what}, not a folder")

    @property
    def imported(self) -> Imported | None:
        """The model of a published family, if that is what is here."""
        found = Imported(self.folder)
        return found if found.is_there else None

    @property
    def snapshots(self) -> PublishedCheckpoints:
        if self.imported:
            return ImportedCheckpoints(self.imported)
        return PublishedCheckpoints(self.inside(SNAPSHOTS), keep=None)

    @property
    def preemption(self) -> PublishedCheckpoints:
        return PublishedCheckpoints(self.inside(PREEMPTION), keep=PREEMPTION_KEEP)

    def inside(self, *names: str, writing: bool = False) -> Path:
        """A place in the folder, as ``files.inside``.

        Args:
            names: of the folders on the way, and the last one.
            writing: whether it is to be written.
        """
        return inside(self.folder, *names, writing=writing)

    def locked(self, doing: str = "training there") -> AbstractContextManager[None]:
        """Locks the folder for one training or import at a time.

        Args:
            doing: what the process does there, in words.

        Raises UserError if another process has it, and where a link takes the place of a folder
        that is written to.
        """
        for name in WRITTEN:
            self.inside(name, writing=True)
        return locked(self.folder / ".training.lock", doing)

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint."""
        return bool(self.snapshots.numbers() or self.preemption.numbers())

    def check_seen_alike(self, experiment: Recorded) -> None:
        """Raises UserError if the processes of a run see other data or checkpoints.

        Args:
            experiment: what runs.
        """
        stores = self.snapshots, self.preemption
        numbers = {store.folder.name: store.numbers() for store in stores}
        check_agreed({**data_facts(experiment), **numbers})

    @property
    def config_path(self) -> Path:
        return self.inside(CONFIG_RECORD)

    @property
    def data_path(self) -> Path:
        return self.inside("data.json")

    def config(self) -> ConfigDict:
        """The config that the experiment was begun with.

        Raises UserError where there is no config.
        """
        if not self.config_path.exists():
            hint = f"; scoremle import {self.folder} makes one of it"
            raise UserError(
                f"{self.folder} is not a working directory of a training: it has no config.json"
                + hint * bool(self.snapshots.published())
            )
        return recorded_config(self.folder)

    def training(self, *, flow: bool = False) -> dict[str, Any] | None:
        """The number of steps of the training, the newest saved one, and whether it is finished.

        None if there was none.

        Args:
            flow: whether it is the dequantizer's.
        """
        newest = max(self.preemption.own(), default=None)  # their numbers are steps
        if newest is None:
            return None
        config = self.config()
        steps = config.deq.n_iters if flow else config.training.n_iters
        return {"steps": steps, "newest_step": newest, "finished": newest >= steps}

    def levels(self) -> int:
        """Grey levels of the images that the experiment is about.

        Raises UserError where the number of levels is not stated.
        """
        levels = self.data_facts().get("levels")
        if levels is None:
            raise UserError(f"{self.data_path} doesn't say the number of grey levels (levels)")
        return levels

    def restore(self, template: Any, number: int | None = None) -> Restored:
        """A snapshot, this one or the newest that is whole; the average alone is on a device.

        Raises UserError as ``Checkpoints.restore``, if config.json or data.json differs from the
        checkpoint, and for an average that is not finite.
        """
        restored = self.snapshots.restore(template, number)
        path = self.snapshots.path(restored.number)
        check_record(restored.meta, _Notes, path)
        self._compared([(path, restored.meta)])
        if not self.imported:
            state = restored.tree
            restored = restored._replace(tree=state._replace(ema=jax.device_put(state.ema)))
        check_finite(restored.tree.ema, path)
        return restored

    def check_records(self) -> None:
        """Raises UserError if config.json or data.json is altered, or not of the checkpoints.

        And if an imported model is.
        """
        if self.imported:
            self.imported.check()
        self._compared(self._notes())

    def snapshot_state(self, template: TrainState) -> TrainState | None:
        """The newest snapshot, where there is no checkpoint for pre-emption to go on from.

        That is so in a folder as published, and in one that was imported. To be called before
        ``describe``: raises UserError if what is there belongs to another network.

        Args:
            template: a state of the same structure.
        """
        if self.preemption.numbers():
            if not self.config_path.exists():  # as published: nothing has compared them yet
                self.preemption.restore(template)
            return None
        if not self.snapshots.numbers():
            return None
        state, meta, number = self.snapshots.restore(template)
        say(f"resuming from step {meta['step']}, {self.snapshots.path(number)}")
        return state

    def check_vacant(self, experiment: Recorded | None = None, but: Container[str] = ()) -> None:
        """Raises UserError where something is in the folder: nothing of it may be overwritten.

        Args:
            experiment: whose records may be there, as ``describe`` writes them.
            but: names that may be there, too: of what was left when the same work was stopped.
        """
        left = {}
        if experiment:
            left = {self.config_path: experiment.config, self.data_path: data_facts(experiment)}
        others = [
            path.name for path in listed(self.folder)
            if not (path.name.startswith(".") or path.name in but)
            and not (path in left and _has(path, left[path]))
        ]  # fmt: skip
        if others:
            raise UserError(
                f"{self.folder} has {in_short(others, DIFFERENCES_SHOWN)} already: choose another"
            )

    def describe(self, experiment: Recorded) -> None:
        """Writes what the experiment is.

        Args:
            experiment: what runs.
        """
        write_sealed(self.config_path, experiment.config)
        write_sealed(self.data_path, data_facts(experiment))

    def check(self, experiment: Recorded, what: str) -> None:
        """Raises UserError if the files here are not of the experiment.

        Args:
            experiment: whose network, or training, it may be.
            what: is to be gone on with, one of ``record.KINDS``. A model that was imported is
                measured on whatever images it is made for.
        """
        if self.imported:
            return
        if is_prepared(self.folder):
            raise UserError(f"{self.folder} is a prepared data set: name another --workdir")
        if not self.begun:  # what could be mixed up are results alone
            self._check_own_records()
            self._check_no_results(what)
            return
        differs = {n: v for n, v in self._stated().items() if _field(experiment, n) != v}
        if flags := [f"{n}={v}" for n, v in differs.items() if of_the_network(n)]:
            raise UserError(
                f"{self.folder} holds a model of {', '.join(flags)}, as its name says, and the "
                f"config says otherwise: set --config.{' --config.'.join(flags)}"
            )
        self._check_record(experiment, what)
        if what in ("training", "flow"):
            self._check_numbers(experiment.config, "deq" if what == "flow" else "training")
        for name, value in differs.items() if what == "training" else ():
            logger.warning(
                "%s was trained with %s=%s, as its name says, and continues with %s",
                self.folder, name, value, _field(experiment, name),
            )  # fmt: skip

    def _check_no_results(self, what: str) -> None:
        """Raises UserError if a training would begin beside the results of an earlier one."""
        from scoremle.experiment.results import RESULTS  # not for a model that is loaded

        if what == "training" and (left := next(self.folder.glob(f"*/{RESULTS}"), None)):
            raise UserError(
                f"{left.parent} has results of a training whose checkpoints are gone: move it"
                " away, or use another --workdir"
            )

    def _check_record(self, experiment: Recorded, what: str) -> None:
        """Raises UserError if fields or facts that matter differ from those of the record."""
        matters, of_data = record.KINDS[what]
        path, meta = next(self._notes(), (self.folder, {}))
        fields, facts = self._compared([(path, meta)])
        old = meta.get(record.CONFIG, {}) | fields
        new = flat(experiment.config)
        # A field that is not in the record is newer than the record.
        known = [n for n in sorted(new) if matters(n) and n in old]
        different = [n for n in known if record.disagree(n, old[n], new[n])]
        if not different:
            old = meta.get(record.DATA, {}) | facts
            new = data_facts(experiment)
            different = [name for name in of_data if name in old and old[name] != new.get(name)]
        if different:
            changes = [f"{n} was {old.get(n)!r} and is now {new.get(n)!r}" for n in different]
            raise UserError(
                f"{self.folder} holds another experiment: {in_short(changes, DIFFERENCES_SHOWN)}; "
                "use another --workdir, or the config it was begun with"
            )

    def _check_own_records(self) -> None:
        """Raises UserError for a file of somebody's own where a record is to be written."""
        for path, names in ((self.config_path, {"training", "model"}), (self.data_path, {"name"})):
            try:
                own = not path.exists() or names <= read_json(path).keys()
            except UserError:
                own = False
            if not own:
                raise UserError(
                    f"{path} is not a record of a training: move it away, or use another --workdir"
                )

    def _check_numbers(self, config: Mapping[str, Any], section: str) -> None:
        """Raises UserError if a snapshot to come could take the place of one that is there.

        Warns of the last one, if the training that the section has ends before the next number.
        """
        store, freq = self.snapshots, config["training"]["snapshot_freq"]
        end = config[section]["n_iters"]
        newest = max(store.own(), default=None)
        try:
            step = None if newest is None else store.meta(newest).get("step")
        except UserError:  # damaged: named when it is restored
            step = None
        if newest is None or step is None:
            return
        if step // freq < newest:
            raise UserError(
                f"{store.path(newest)} is of step {step}: the numbers of snapshots, step /"
                f" training.snapshot_freq, would begin anew with {freq}; set"
                f" {max(1, step // newest)} or less, or move {store.folder} away"
            )
        if step < end and end // freq == newest:
            logger.warning(
                "%s is of step %d, and will be replaced by step %d: the number of a snapshot is"
                " step / training.snapshot_freq", store.path(newest), step, end,
            )  # fmt: skip

    def _stated(self) -> dict[str, object]:
        """Fields that the name of a published folder states."""
        published = self.snapshots.published() or self.preemption.published()
        known = origin(self.folder.resolve()) if published else None
        return flat(known.sections) if known else {}

    def _notes(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The notes of our own checkpoints, each kind from the newest on.

        First those to resume from, then snapshots.
        """
        for store in (self.preemption, self.snapshots):
            for number in reversed(store.own()):
                try:
                    meta = store.meta(number)
                except UserError:  # damaged: named when it is restored
                    continue
                yield store.path(number), meta

    def _compared(
        self, notes: Iterable[tuple[Path, dict[str, Any]]]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields in config.json, and the facts in data.json.

        Raises UserError if one of the files differs from the notes of a checkpoint.
        """
        config = read_sealed(self.config_path, REMEDY) if self.config_path.exists() else {}
        fields, facts = flat(config), self.data_facts()
        files = (
            (self.config_path, fields, record.CONFIG), (self.data_path, facts, record.DATA),
        )  # fmt: skip
        for (path, meta), (file, stated, key) in product(notes, files):
            for name, value in meta.get(key, {}).items():
                if record.disagree(name, value, stated.get(name, value)):
                    raise UserError(
                        f"{file} says {name}={stated[name]!r}, but {path} was trained with"
                        f" {value!r}: {REMEDY}"
                    )
        return fields, facts

    def data_facts(self) -> dict[str, Any]:
        """Facts on the data set in data.json, if it is there. Raises UserError if altered."""
        if not self.data_path.exists():
            return {}
        found = read_sealed(self.data_path, REMEDY)
        check_record(found, DataFacts, self.data_path)
        return found

    def has_measured(self, facts: Mapping[str, Any]) -> bool:
        """Whether a result is of the data set here, and not of another, as far as that is known.

        Args:
            facts: those of the result, by their names in results.json.
        """
        own = self.data_facts()
        known, found = own.get("train_sha256"), facts.get("train_sha256")
        if known and found:
            return bool(known == found)
        names = {own.get("name"), facts.get("dataset")} - {None, ""}
        path = facts.get("data_flags", {}).get("path")
        known = self.config().data.path if path else ""
        return len(names) < 2 and not (known and Path(known).absolute() != Path(path))


def _has(path: Path, content: Mapping[str, Any]) -> bool:
    """Whether a sealed record is there with such content."""
    try:
        return read_sealed(path, REMEDY) == json.loads(json.dumps(content))
    except UserError:
        return False


def _field(experiment: Recorded, name: str) -> Any:
    value = flat(experiment.config)[name]
    return value.lower() if isinstance(value, str) else value


def chosen_checkpoints(
    store: Checkpoints, begin: int | None, end: int | None, *, wait: bool = False
) -> Iterable[int] | list[None]:
    """The numbers from ``begin`` to ``end`` that are there; None is the newest.

    Without an end it is the newest; without a beginning, the end alone is meant. With ``wait``
    they are all the numbers, each given when it is there.
    """
    if wait and end is not None:
        first = end if begin is None else begin
        return (_await(store, number) for number in range(first, end + 1))
    numbers = store.numbers()
    if not numbers:
        raise UserError(f"no checkpoint in {store.folder}: train first")
    if begin is None and end is None:
        return [None]
    last = numbers[-1] if end is None else end
    first = last if begin is None else begin
    if chosen := [number for number in numbers if first <= number <= last]:
        return chosen
    wanted = first if None in (begin, end) else f"{first} to {last}"
    raise UserError(
        f"no checkpoint {wanted} in {store.folder}, only {', '.join(map(str, numbers))}; "
        "set --config.eval.begin_ckpt and end_ckpt, or neither for the newest"
    )


def _await(store: Checkpoints, number: int) -> int:
    if number not in store.numbers():
        say(f"waiting for {store.path(number)}")
    while number not in store.numbers():
        time.sleep(WAIT_SECONDS)
    return number
