"""Several processes that share one run, each with devices of its own.

All run the same program on the same numbers. The first writes files and talks. They agree at which
step to stop.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from scoremle.devices import in_any_process, replicated, split_rows
from scoremle.errors import Stopped, UserError
from scoremle.files import leave_writing_to_others
from scoremle.terminal import mute, printable

__all__ = [
    "asked_to_stop", "check_agreed", "ends_for_all", "join", "of_the_first", "together",
]  # fmt: skip

# Seconds without a sign of life, after which a process is taken for dead and all others end.
HEARTBEAT = 30


def join(coordinator: str = "", processes: int | None = None, process: int | None = None) -> None:
    """Makes this process one of a run; to be called before anything else of JAX.

    Args:
        coordinator: HOST:PORT of the first process; '': as the cluster says (SLURM, Open MPI,
            Kubernetes, cloud TPU).
        processes: how many there are; None: as the cluster says.
        process: which of them this is, from 0; None: as the cluster says.

    Raises UserError where the cluster does not say it, and if the others can't be reached.
    """
    jax.config.update("jax_enable_preemption_service", True)
    try:
        jax.distributed.initialize(
            coordinator or None, processes, process, heartbeat_timeout_seconds=HEARTBEAT
        )
    except (ValueError, RuntimeError) as error:
        text = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"the processes of this run can't be joined: {text}; say --coordinator=HOST:PORT,"
            " --processes=N and --process=I, or start them by a cluster that JAX knows"
        ) from None
    # All devices meet now. Later, one that still compiles would keep the others waiting too long.
    ones = split_rows(np.ones(jax.device_count(), np.float32))
    jax.block_until_ready(jax.jit(jnp.sum, out_shardings=replicated())(ones))
    if jax.process_index():
        leave_writing_to_others()
        mute()


@contextmanager
def ends_for_all() -> Iterator[None]:
    """What ends one process of a run ends all, each with a line.

    A process that fails ends at once: at its usual end it would wait for the others. They fail
    when they wait for it in vain, within seconds, or after ``HEARTBEAT`` if its machine is gone.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if jax.process_count() == 1 or isinstance(error, Stopped):
            raise
        text = str(error)
        if isinstance(error, jax.errors.JaxRuntimeError):
            text = (
                "another process of this run has ended, or can't be reached: start all of them"
                f" again, and they go on from what is saved ({text.splitlines()[0][:200]})"
            )
        line = f"scoremle: error: process {jax.process_index()}: {text or type(error).__name__}"
        print(printable(line), file=sys.stderr, flush=True)
        os._exit(2)


def asked_to_stop(call: int) -> bool:
    """Has any process of a run been asked to end (SIGTERM)? All get the same answer at a call.

    Each gives the number of its call, one more each time: they stop at the first call that none
    has made yet. A process alone has no others to ask.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(call)


def of_the_first(tree: Any) -> Any:
    """The first process's arrays, in all: what each computed alone may differ by rounding."""
    return multihost_utils.broadcast_one_to_all(tree) if jax.process_count() > 1 else tree


def check_agreed(what: str, value: bytes) -> None:
    """Raises UserError where a process knows other than the first: it would wait in vain."""
    seen = np.frombuffer(hashlib.sha256(value).digest(), np.uint8)
    if in_any_process(seen != of_the_first(seen)).any():
        raise UserError(
            f"the processes of this run do not agree on {what}: do all see the same folder, on"
            " machines of one kind? start them again"
        )


def together(what: str) -> None:
    """Waits until all processes of a run are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
