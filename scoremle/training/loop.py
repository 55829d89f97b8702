"""Training: one step of maximum likelihood, fused k at a time, and the loop around it.

Step i (from 0) draws its images from ``batch(i)`` and its randomness from
``fold_in(key(seed), i)``, so a state is four things and to resume needs nothing else:

    g = grad loss(p);  g <- g clip / max(|g|, clip);  p <- p - lr min(i / warmup, 1) Adam(g)
    e <- r e + (1 - r) p

The averaged parameters e begin at the initial ones, without bias correction, as published.

The steps of one call are always those between two multiples of ``n_jitted_steps``, and everything
else happens at such a boundary. A resumed run therefore executes the same compiled programs on the
same numbers as an uninterrupted one, and ends with the same bits.
"""

import contextlib
import dataclasses
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from scoremle.errors import UserError
from scoremle.training.checkpoints import Checkpoints
from scoremle.training.writers import Row, Writer
from scoremle.types import IntImages, PRNGKey

__all__ = [
    "Loss",
    "Metrics",
    "Outcome",
    "Schedule",
    "Step",
    "TrainState",
    "init_state",
    "make_optimizer",
    "make_step",
    "run",
]

Params = Any
Metrics = dict[str, Float[Array, "*k"]]
# Parameters, images and a key give the scalar to be minimised, alone or with further scalars to be
# logged.
Scalar = Float[Array, ""]
Loss = Callable[[Params, IntImages, PRNGKey], Scalar | tuple[Scalar, dict[str, Scalar]]]


class TrainState(NamedTuple):
    """All that training changes; ``step`` counts the updates made."""

    step: Int[Array, ""]
    params: Params
    ema: Params
    opt_state: optax.OptState


# The images of k steps, or whatever ``gather`` makes them from: arrays [k b ...].
Batches = Any
Step = Callable[[TrainState, Batches], tuple[TrainState, Metrics]]
# What lies on the device, and one batch, give the images of a step.
Gather = Callable[[Any, Any], IntImages]


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


def make_optimizer(
    *,
    lr: float,
    beta1: float,
    eps: float,
    warmup: int,
    grad_clip: float,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Clipping by global norm (none if ``grad_clip`` < 0), Adam, linear warm-up.

    With warm-up the very first update has rate 0, but Adam's moments take it in.
    """
    rate = (lambda i: lr * jnp.minimum(i / warmup, 1.0)) if warmup > 0 else lr
    clip = optax.clip_by_global_norm(grad_clip) if grad_clip >= 0 else optax.identity()
    adam = optax.adamw(rate, b1=beta1, b2=0.999, eps=eps, weight_decay=weight_decay)
    return optax.chain(clip, adam)


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    # A copy, since a step reuses the memory of the state that it is given, each array once.
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))


# The seed's key, the loss with what it holds, and arrays that stay on the device.
Fixed = tuple[PRNGKey, Any, Any]


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    ema_rate: float,
    *,
    seed: int = 0,
    resident: Any = (),
    gather: Gather | None = None,
) -> Step:
    """Compile ``step(state, images)``: one step for a batch [b h w c], k for batches [k b h w c].

    ``loss`` may be a ``jax.tree_util.Partial`` that holds arrays, such as a network that is not
    trained. The metrics are ``loss``, ``grad_norm`` before clipping, and what the loss adds:
    scalars of a batch, arrays [k] of k. The state given is used up: its memory becomes that of the
    state returned. With ``gather``, a step makes its images from the ``resident`` arrays and its
    batch, such as numbers of images; then batches are always k, stacked. Raises ValueError for
    images of another number of axes.
    """

    # Arguments, not constants: the compiled program is the same for every seed and all images, and
    # does not hold the arrays of the loss.
    held = loss if isinstance(loss, Partial) else Partial(loss)
    fixed = (jax.random.key(seed), *jax.device_put((held, resident), _placement()))

    def one(
        fixed: Fixed, state: TrainState, batch: Any
    ) -> tuple[TrainState, dict[str, Array]]:
        key, loss, resident = fixed
        # A barrier: however images come, what is computed from them is the same, to the last bit.
        images = jax.lax.optimization_barrier(gather(resident, batch) if gather else batch)
        step_key = jax.random.fold_in(key, state.step)
        (value, more), grads = jax.value_and_grad(_with_more(loss), has_aux=True)(
            state.params, images, step_key
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = jax.tree.map(lambda e, p: ema_rate * e + (1 - ema_rate) * p, state.ema, params)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), **more}
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    def fused(
        fixed: Fixed, state: TrainState, batches: Batches
    ) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(functools.partial(one, fixed), state, batches)

    on_cpu = jax.default_backend() == "cpu"
    # The result is where the argument was, so that the next call is the same program.
    jitted = jax.jit(
        one if on_cpu else fused, donate_argnums=1, out_shardings=_placement()
    )
    compiled = functools.partial(jitted, fixed)
    stacked = _one_by_one(compiled) if on_cpu else compiled
    return stacked if gather else _of_images(stacked)


def _with_more(loss: Loss) -> Callable[..., tuple[Scalar, dict[str, Scalar]]]:
    """The loss with what it logs, which is nothing if it gives a scalar alone."""

    def both(*arguments: Any) -> tuple[Scalar, dict[str, Scalar]]:
        found = loss(*arguments)
        return found if isinstance(found, tuple) else (found, {})

    return both


def _of_images(stacked: Step) -> Step:
    """The same for one batch of images, which is a stack of one, or for a stack of them."""

    def step(state: TrainState, images: IntImages) -> tuple[TrainState, Metrics]:
        if (axes := np.ndim(images)) not in (4, 5):
            raise ValueError(
                "images must be [b h w c], for one step, or [k b h w c], for k steps, not of shape"
                f" {np.shape(images)}"
            )
        state, metrics = stacked(state, images if axes == 5 else images[None])
        return state, metrics if axes == 5 else {name: m[0] for name, m in metrics.items()}

    return step


def _one_by_one(single: Callable[..., Any]) -> Step:
    """The same as a fused step, a call for each step.

    On a CPU a call costs nothing beside a step, and XLA runs the gradients of convolutions twenty
    times slower inside a loop (measured with 0.10.2).
    """

    def step(state: TrainState, batches: Batches) -> tuple[TrainState, Metrics]:
        rows = []
        for i in range(len(jax.tree.leaves(batches)[0])):
            state, row = single(state, jax.tree.map(lambda array, i=i: array[i], batches))
            rows.append(row)
        return state, {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}

    return step


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
    return jax.device_put(state, _placement()), saved


def _placement(*axes: str | None) -> NamedSharding:
    """All devices: axes named "data" are split over them, everything else is on each."""
    return NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec(*axes))


def _stack(batch: Callable[[int], Any], steps: range) -> Batches:
    """Batches of some steps, each split over all devices of all processes."""
    batches = jax.tree.map(lambda *each: np.stack(each), *[batch(i) for i in steps])
    size = jax.tree.leaves(batches)[0].shape[1]
    if size % jax.device_count():
        raise UserError(
            f"training.batch_size {size} does not divide over {jax.device_count()} devices"
        )
    return jax.tree.map(_split, batches)


def _split(array: np.ndarray) -> Array:
    """Every process knows the whole array [k b ...], and sends its own devices their rows."""
    placement = _placement(None, "data")
    return jax.make_array_from_callback(array.shape, placement, lambda index: array[index])


def _fetch(pending: list[Metrics], end: int, saved: Path | None) -> Row:
    """Means over the steps since the last fetch, the last of them ``end - 1``; checks each."""
    calls = jax.device_get(pending)
    pending.clear()
    columns = {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}
    for name in ("loss", "grad_norm"):
        bad = ~np.isfinite(columns[name])
        if bad.any():
            first = int(bad.argmax())
            raise UserError(_diverged(name, columns[name][first], end - len(bad) + first, saved))
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
