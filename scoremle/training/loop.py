"""The loop around a training step: what happens when, and how a run that was stopped goes on.

The steps of one call are always those between two multiples of ``n_jitted_steps``, and everything
else happens at such a boundary. A resumed run therefore executes the same compiled programs on the
same numbers as an uninterrupted one, and ends with the same bits.
"""

import contextlib
import dataclasses
import logging
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scoremle import devices, processes
from scoremle.errors import Stopped, UserError
from scoremle.numerics import not_finite
from scoremle.terminal import say
from scoremle.training.checkpoints import Checkpoints
from scoremle.training.checksums import hash_of, named_leaves, part_axes
from scoremle.training.saving import Saving
from scoremle.training.step import Batches, Step, TrainState
from scoremle.training.writers import Writer

__all__ = ["Intervals", "Loop", "OnEval", "OnSnapshot"]

logger = logging.getLogger(__name__)

# Numbers that must be finite at every step; each row has their largest value beside the mean.
CHECKED = ("loss", "grad_norm")
# In the record of a checkpoint: numbers of the steps since the last row that was written.
UNWRITTEN = "since_the_last_row"
# A loss so many times its median over the rows before gets a warning.
SPIKE, REMEMBERED = 10, 10
# What gives the images of a step, or what they are made from.
Batch = Callable[[int], Any]
OnEval = Callable[[TrainState, int], dict[str, float]]
OnSnapshot = Callable[[TrainState, int], None]
# Of some steps, by name: arrays on the device or fetched from it.
Numbers = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Number of steps, steps in a call, and intervals of the regular actions, in steps.

    An action falls on the first boundary between calls at or after each multiple.

    Args:
        n_iters: steps of the training.
        n_jitted_steps: steps in a call.
        log_freq: steps between rows of numbers.
        eval_freq: steps between evaluations.
        snapshot_freq: steps between snapshots.
        snapshot_freq_for_preemption: steps between checkpoints to go on from.

    Raises UserError for a number below 1.
    """

    n_iters: int
    n_jitted_steps: int
    log_freq: int
    eval_freq: int
    snapshot_freq: int
    snapshot_freq_for_preemption: int

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise UserError(f"training.{name} must be at least 1, not {value}")

    def group(self, step: int) -> range:
        """The steps of the call that begins with ``step``."""
        boundary = (step // self.n_jitted_steps + 1) * self.n_jitted_steps
        return range(step, min(boundary, self.n_iters))

    def due(self, group: range) -> set[str]:
        """Names of the actions after these steps; after the last steps, all.

        Args:
            group: the steps of a call.
        """
        every = {
            "log": self.log_freq,
            "eval": self.eval_freq,
            "snapshot": self.snapshot_freq,
            "preemption": self.snapshot_freq_for_preemption,
        }
        if group.stop == self.n_iters:
            return set(every)
        return {name for name, f in every.items() if group.stop // f > group.start // f}


class Diverged(UserError):
    """A loss, a gradient or a parameter is not a finite number."""


@dataclasses.dataclass
class Loop:
    """Trains to ``n_iters`` steps, and goes on where an earlier run stopped.

    A checkpoint (JSON) holds ``note`` beside the step. Training goes on while one is written. At
    SIGTERM or Ctrl-C the call at work is finished and saved.

    Args:
        step: makes the steps of a call.
        batches: gives the batches after the k-th time that it goes back: the same images in
            another order. The 0-th are those to begin with.
        schedule: when what is done.
        writers: take the rows of numbers.
        note: what is written into each checkpoint.
        snapshots: the store of checkpoints to evaluate; None: none are saved.
        preemption: the store of those to go on from; None: none are saved.
        on_eval: gives numbers of a state and its step, which are logged; must not keep the state.
        on_snapshot: is called with a state and its step; must not keep the state.
        limit: how often, at most, it goes back to the last good checkpoint where the loss, its
            gradient or a parameter is not finite.
    """

    step: Step
    batches: Callable[[int], Batch]
    schedule: Intervals
    writers: Sequence[Writer]
    note: dict[str, Any]
    snapshots: Checkpoints | None = None
    preemption: Checkpoints | None = None
    on_eval: OnEval | None = None
    on_snapshot: OnSnapshot | None = None
    limit: int = 0

    # While it runs: at so many steps, the last of them since a row not fetched yet.
    state: TrainState = dataclasses.field(init=False)
    at: int = dataclasses.field(init=False, default=0)
    # The checkpoint to go on from, which may still be written.
    newest: int | None = dataclasses.field(init=False, default=None)
    rollbacks: int = dataclasses.field(init=False, default=0)
    ended: bool = dataclasses.field(init=False, default=False)
    saves: Saving = dataclasses.field(init=False, default_factory=Saving)
    pending: list[Numbers] = dataclasses.field(init=False, default_factory=list)
    watch: "_Watch" = dataclasses.field(init=False, default_factory=lambda: _Watch())

    def run(self, state: TrainState, places: Any = None) -> TrainState:
        """Trains from the newest whole checkpoint for pre-emption, or else from ``state``.

        Args:
            state: the beginning, which is used up. Where there is a checkpoint, its shapes are
                enough.
            places: the shardings of its arrays; None: whole on each device.

        Returns the state at the end, when all is on disk. Raises Stopped after a signal, when the
        step is saved; UserError, and saves nothing, when numbers are not finite and it can't go
        back.
        """
        places = places or devices.shardings(state, sharded=False)
        template = jax.tree.map(
            lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
            state, places,
        )  # fmt: skip
        self.state = state
        if self.preemption and self.preemption.latest() is not None:
            self.restore(self.preemption, template)
            say(f"resuming from step {self.at}, {self.saved}")
        else:
            self.at = int(state.step)
        self.state = devices.put(self.state, places)
        if jax.process_count() > 1:  # a hash takes seconds
            named = named_leaves(self.state)
            begin = {"step": self.at, "hash of the state": hash_of(named, part_axes(named))}
            processes.check_agreed({**self.note, **begin})
        with _signals() as signals, contextlib.ExitStack() as ends, self.saves:
            for writer in self.writers:
                ends.callback(writer.close)
            while not self.ended:
                try:
                    self.go_on(signals)
                except Diverged as error:
                    self.go_back(error, template)
        if self.finished:
            return self.state
        if self.preemption:
            say(f"saved step {self.at} to {self.saved}; run the same command to resume")
        raise Stopped(signals[0])

    @property
    def finished(self) -> bool:
        return self.at >= self.schedule.n_iters

    @property
    def saved(self) -> Path | None:
        """The newest checkpoint to go on from, when it is on disk."""
        self.saves.wait()
        if self.preemption is None or self.newest is None:
            return None
        return self.preemption.path(self.newest)

    def restore(self, store: Checkpoints, template: TrainState) -> None:
        """Goes to the newest pre-emption checkpoint that is whole and has finite numbers alone.

        Raises UserError where no checkpoint is so.
        """
        self.state, meta, number = store.restore(template)
        while where := not_finite(self.state):
            earlier = [n for n in store.numbers() if n < number]
            path = store.path(number)
            if not earlier:
                raise UserError(f"{path} has numbers that are not finite ({where}): move it away")
            logger.warning(
                "%s has numbers that are not finite (%s): trying the one before", path, where
            )
            self.state, meta, number = store.restore(template, earlier[-1])
        self.state = devices.put(self.state, jax.tree.map(lambda leaf: leaf.sharding, template))
        self.at, self.newest = int(self.state.step), number
        unwritten = {k: np.asarray(v, np.float32) for k, v in meta.get(UNWRITTEN, {}).items()}
        if unwritten and not all(len(unwritten.get(name, ())) for name in (*CHECKED, *unwritten)):
            raise UserError(f"{store.path(number)}: {UNWRITTEN} lacks a number")
        self.pending = [unwritten] if unwritten else []
        self.rollbacks = max(self.rollbacks, meta.get("rollbacks", 0))

    def go_back(self, error: Diverged, template: TrainState) -> None:
        """Rolls back to the last good checkpoint; raises the error without one or at the limit.

        Args:
            error: what was not finite.
            template: a state of the same structure.
        """
        if not self.preemption or not self.saved or self.rollbacks >= self.limit:
            raise error
        self.rollbacks += 1
        self.restore(self.preemption, template)
        say(
            f"{str(error).partition(':')[0]}: back to step {self.at}, {self.saved}, with another"
            f" order of the images ({self.rollbacks} of at most {self.limit} times)"
        )

    def go_on(self, signals: list[int]) -> None:
        """Trains to the end, or to the first boundary after a signal.

        Args:
            signals: numbers of those that came; it is filled while it runs.
        """
        for writer in self.writers:
            writer.rewind(self.at)
        batch = self.batches(self.rollbacks)
        while not self.finished and not self.ended:
            group = self.schedule.group(self.at)
            self.state, metrics = self.step(self.state, _stack(batch, group))
            # One call computes while the next is prepared: no further ahead, nothing fetched yet.
            jax.block_until_ready(self.pending[-1:])
            if self.pending:
                self._report(group.start)
            self.pending.append(metrics)
            self.at = group.stop
            # Settled once: what is saved below is what is checked below, whatever signals come.
            if processes.asked_to_stop(group.start // self.schedule.n_jitted_steps):
                signals.append(signal.SIGTERM)
            self.ended = bool(signals)
            self._act(self.schedule.due(group))
        if self.finished and not self._has_snapshot():
            # Resumed at or beyond an end that was moved to here.
            self._act({"snapshot"})
        self.ended = True

    def _report(self, step: int, doing: str = "") -> None:
        for writer in self.writers:
            writer.at(step, doing)

    def _act(self, due: set[str]) -> None:
        """Does what is due; a run that stops leaves its row to the one that goes on."""
        if self.pending and (due or self.ended):
            self.pending = [self._fetch()]
        if saves := due & {"snapshot", "preemption"} or self.ended:
            self._check_parameters()
        if due and self.pending:
            self._write_row(due)
        if saves:
            self._save(due)

    def _write_row(self, due: set[str]) -> None:
        (columns,) = self.pending
        row = {name: float(column.mean(dtype=np.float64)) for name, column in columns.items()}
        row |= {f"{name}_max": float(columns[name].max()) for name in CHECKED}
        self.watch(self.at, row["loss"])
        if self.on_eval and "eval" in due:
            self._report(self.at, "measuring test images")
            row |= {f"eval_{k}": value for k, value in self.on_eval(self.state, self.at).items()}
        for writer in self.writers:
            writer.write(self.at, row)
        self.pending = []

    def _save(self, due: set[str]) -> None:
        copy, note = self.saves.copy(self.state), {**self.note, "step": self.at}
        if self.snapshots and "snapshot" in due:
            self._report(self.at, "writing a snapshot")
            self.saves.save(self.snapshots, self.at // self.schedule.snapshot_freq, copy, note)
            if self.on_snapshot:
                self.on_snapshot(self.state, self.at)
        if self.preemption and ("preemption" in due or self.ended):
            note = {**note, "rollbacks": self.rollbacks}
            if self.pending:
                (columns,) = self.pending
                note[UNWRITTEN] = {name: column.tolist() for name, column in columns.items()}
            self.saves.save(self.preemption, self.at, copy, note)
            self.newest = self.at

    def _has_snapshot(self) -> bool:
        """Whether the snapshot of this step is saved, if any is to be."""
        self.saves.wait()
        number, store = self.at // self.schedule.snapshot_freq, self.snapshots
        if store is None:
            return True
        return number in store.numbers() and store.meta(number).get("step") == self.at

    def _fetch(self) -> Numbers:
        """The numbers of the steps since the last row, as one; checked.

        The first that is not finite is named: those after it follow from it.
        """
        calls = devices.to_numpy(self.pending)
        names = [name for name in calls[-1] if all(name in call for call in calls)]
        columns = {name: np.concatenate([call[name] for call in calls]) for name in names}
        bad = {name: ~np.isfinite(columns[name]) for name in CHECKED}
        wrong = [(int(places.argmax()), name) for name, places in bad.items() if places.any()]
        if wrong:
            first, name = min(wrong, key=lambda place: place[0])
            step = self.at - len(bad[name]) + first
            raise self._diverged(name, columns[name][first], step)
        return columns

    def _check_parameters(self) -> None:
        if where := not_finite(self.state):
            raise self._diverged(f"{where} of the state", "not finite", self.at - 1)

    def _diverged(self, name: str, value: object, step: int) -> Diverged:
        saved = self.saved
        kept = f"the last good checkpoint is {saved}" if saved else "there is no checkpoint yet"
        return Diverged(
            f"{name} is {value} at step {step}: stopped, nothing saved; {kept}. "
            "Try a lower learning rate, a longer warm-up or a larger smallest time"
        )


class _Watch:
    """Warns of a loss that is finite, and many times what it was in the rows before."""

    def __init__(self) -> None:
        self._before: deque[float] = deque(maxlen=REMEMBERED)
        self._high = False

    def __call__(self, step: int, loss: float) -> None:
        usual = float(np.median(self._before)) if self._before else loss
        # A log-density may be of either sign: times as much means something above zero alone.
        high = loss > SPIKE * usual > 0
        if high and not self._high:
            logger.warning(
                "loss %.4g up to step %d is more than %d times what it was (%.4g): a lower"
                " learning rate or a longer warm-up may help", loss, step, SPIKE, usual,
            )  # fmt: skip
        self._high = high
        self._before.append(loss)


def _stack(batch: Batch, steps: range) -> Batches:
    """Batches of some steps, each split over all devices of all processes."""
    batches = jax.tree.map(lambda *each: np.stack(each), *[batch(i) for i in steps])
    size = jax.tree.leaves(batches)[0].shape[1]
    if size % jax.device_count():
        raise UserError(f"batch_size={size} does not divide over {jax.device_count()} devices")
    return devices.split_rows(batches, axis=1)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that fills with the signals SIGTERM and SIGINT, in place of their usual effect.

    The second of a kind has its usual effect again: whoever presses Ctrl-C twice means it. A
    signal that is ignored stays so.
    """
    arrived: list[int] = []
    # Python lets only the main thread handle signals; several processes agree on them
    # (processes.asked_to_stop).
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield arrived
        return
    both = (signal.SIGTERM, signal.SIGINT)
    usual: dict[int, Any] = {number: signal.getsignal(number) for number in both}

    def handle(number: int, _: Any) -> None:
        arrived.append(number)
        signal.signal(number, usual[number])

    for number in usual:
        if usual[number] is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield arrived
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
