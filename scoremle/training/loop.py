"""The loop around a training step: what happens when, and how a run that was stopped goes on.

The steps of one call are always those between two multiples of ``n_jitted_steps``, and everything
else happens at such a boundary. A resumed run therefore executes the same compiled programs on the
same numbers as an uninterrupted one, and ends with the same bits.
"""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from scoremle import devices
from scoremle.errors import UserError
from scoremle.training.checkpoints import Checkpoints
from scoremle.training.step import Batches, Metrics, Step, TrainState
from scoremle.training.writers import Row, Writer

__all__ = ["Outcome", "Schedule", "run"]


class Outcome(NamedTuple):
    """The state at the end, and whether training is complete (else a signal stopped it)."""

    state: TrainState
    finished: bool


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How many steps, how many in a call, and every how many steps what is done.

    An action falls on the first boundary between calls at or after each multiple.
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
        """What is to be done after these steps; after the last ones, everything."""
        every = {
            "log": self.log_freq,
            "eval": self.eval_freq,
            "snapshot": self.snapshot_freq,
            "preemption": self.snapshot_freq_for_preemption,
        }
        if group.stop == self.n_iters:
            return set(every)
        return {name for name, f in every.items() if group.stop // f > group.start // f}

    def snapshot_number(self, step: int) -> int:
        return step // self.snapshot_freq


def run(
    state: TrainState,
    step: Step,
    batch: Callable[[int], Any],
    schedule: Schedule,
    *,
    snapshots: Checkpoints,
    preemption: Checkpoints,
    writer: Writer,
    on_eval: Callable[[TrainState, int], dict[str, float]],
    on_snapshot: Callable[[TrainState, int], None],
    note: dict[str, Any],
) -> Outcome:
    """Train to ``n_iters`` steps, from the newest whole pre-emption checkpoint if there is one.

    ``state`` is the beginning otherwise, and is used up. Callbacks get the state and its step and
    must not keep the state; what ``on_eval`` returns is logged. ``note`` (JSON) is written into
    each checkpoint beside the step. At SIGTERM or Ctrl-C the call at work is finished and saved.
    Raises UserError, and saves nothing, when the loss or its gradient is not finite.
    """
    state, saved = _resume(state, preemption)
    at = int(state.step)
    pending: list[Metrics] = []
    stopping = False
    with _signals() as signals, contextlib.closing(writer):
        writer.rewind(at)
        while at < schedule.n_iters and not stopping:
            group = schedule.group(at)
            state, metrics = step(state, _stack(batch, group))
            # One call computes while the next is prepared: no further ahead, nothing fetched yet.
            jax.block_until_ready(pending[-1:])
            pending.append(metrics)
            at = group.stop
            # Settled once: what is saved below is what is checked below, whatever signals come.
            stopping = bool(signals)
            due = schedule.due(group) | ({"preemption"} if stopping else set())
            if due:
                row = _fetch(pending, at, saved)
                if "eval" in due:
                    row |= {f"eval_{name}": value for name, value in on_eval(state, at).items()}
                writer.write(at, row)
            if "snapshot" in due:
                _snapshot(state, at, schedule, snapshots, on_snapshot, note)
            if "preemption" in due:
                preemption.save(at, state, {**note, "step": at})
                saved = preemption.path(at)
        finished = at >= schedule.n_iters
        if finished and not _holds(snapshots, schedule.snapshot_number(at), at):
            # Resumed at or beyond an end that was moved to here.
            _snapshot(state, at, schedule, snapshots, on_snapshot, note)
    if not finished:
        print(f"saved step {at} to {saved}; run the same command to go on", flush=True)
    return Outcome(state, finished)


def _resume(state: TrainState, preemption: Checkpoints) -> tuple[TrainState, Path | None]:
    """The state to go on from, on all devices, and the checkpoint it came from if it did."""
    saved = None
    if preemption.latest() is not None:
        state, _, number = preemption.restore(state)
        saved = preemption.path(number)
        print(f"going on from step {int(state.step)}, {saved}", flush=True)
    return devices.replicate(state), saved


def _stack(batch: Callable[[int], Any], steps: range) -> Batches:
    """Batches of some steps, each split over all devices of all processes."""
    batches = jax.tree.map(lambda *each: np.stack(each), *[batch(i) for i in steps])
    size = jax.tree.leaves(batches)[0].shape[1]
    if size % jax.device_count():
        raise UserError(
            f"training.batch_size {size} does not divide over {jax.device_count()} devices"
        )
    return devices.split_rows(batches, axis=1)


def _fetch(pending: list[Metrics], end: int, saved: Path | None) -> Row:
    """Means over the steps since the last fetch, the last of them ``end - 1``; checks each."""
    calls = jax.device_get(pending)
    pending.clear()
    columns = {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}
    for name in ("loss", "grad_norm"):
        bad = ~np.isfinite(columns[name])
        if bad.any():
            first, value = int(bad.argmax()), float(columns[name][bad][0])
            raise UserError(_diverged(name, value, end - len(bad) + first, saved))
    return {name: float(column.mean(dtype=np.float64)) for name, column in columns.items()}


def _diverged(name: str, value: float, step: int, saved: Path | None) -> str:
    kept = f"the last good checkpoint is {saved}" if saved else "there is no checkpoint yet"
    return (
        f"{name} is {value} at step {step}: stopped, nothing saved; {kept}. "
        "Try a lower optim.lr, a longer optim.warmup or a larger training.smallest_time"
    )


def _snapshot(
    state: TrainState,
    at: int,
    schedule: Schedule,
    snapshots: Checkpoints,
    on_snapshot: Callable[[TrainState, int], None],
    note: dict[str, Any],
) -> None:
    snapshots.save(schedule.snapshot_number(at), state, {**note, "step": at})
    on_snapshot(state, at)


def _holds(store: Checkpoints, number: int, step: int) -> bool:
    return number in store.numbers() and store.meta(number)["step"] == step


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that fills with the signals SIGTERM and SIGINT, in place of their usual effect.

    The second of a kind has its usual effect again: whoever presses Ctrl-C twice means it.
    """
    arrived: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield arrived  # Python lets only the main thread handle signals
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, _: Any) -> None:
        arrived.append(number)
        signal.signal(number, usual[signal.Signals(number)])

    for number in usual:
        signal.signal(number, handle)
    try:
        yield arrived
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
