"""Several processes that share one run, each with devices of its own.

All run the same program on the same numbers. The first writes files and prints. They agree on the
step to stop at.
"""

import itertools
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from scoremle.devices import replicated, split_rows
from scoremle.errors import Stopped, UserError, first_line
from scoremle.files import leave_writing_to_others
from scoremle.terminal import mute

# Timeout of heartbeats in seconds: a silent process counts as dead, and all others end.
HEARTBEAT = 30
# JAX's flag for the devices of a process. Under a cluster its default is one GPU by number.
VISIBLE = ("jax_cuda_visible_devices", "jax_rocm_visible_devices")
# Number of facts that a line names, and characters of each.
SHOWN, LONGEST = 3, 60
# Seconds for the other processes to print their line, before the first ends.
LAST_WORDS = 1.0

_parts = itertools.count()


def join(coordinator: str = "", processes: int | None = None, process: int | None = None) -> None:
    """Makes this process one of a run; to be called before anything else of JAX.

    Args:
        coordinator: HOST:PORT of the first process; '': from the cluster (SLURM, Open MPI,
            Kubernetes, cloud TPU).
        processes: how many there are; None: from the cluster.
        process: which of them this is, from 0; None: from the cluster.

    A task of SLURM that is alone on its machine has all GPUs that it sees.

    Raises UserError where the cluster does not set it, if SLURM hides from each task the GPUs of
    the others, and if the others can't be reached.
    """
    tasks = _tasks_of_slurm() if "JAX_LOCAL_DEVICE_IDS" not in os.environ else None
    if tasks and tasks > 1:
        _check_gpus_of_slurm(tasks)
    jax.config.update("jax_enable_preemption_service", True)
    try:
        jax.distributed.initialize(
            coordinator or None, processes, process, heartbeat_timeout_seconds=HEARTBEAT
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes of this run can't be joined: {first_line(error)}; give"
            " coordinator=HOST:PORT, processes=N and process=I, or start them by a cluster that"
            " JAX supports"
        ) from None
    if tasks == 1:
        for name in VISIBLE:
            jax.config.update(name, "all")
    # All devices meet now. Later, one that still compiles would keep the others waiting too long.
    with stdout_aside():
        _meet()
    if jax.process_index():
        leave_writing_to_others()
        mute()


@contextmanager
def stdout_aside() -> Iterator[None]:
    """Redirects stdout of C++ to stderr in the block: gloo, which connects CPUs, prints there."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(own, 1)
        os.close(own)


def _meet() -> None:
    """Returns when all devices have met. Raises UserError if they can't on CPUs."""
    try:
        ones = split_rows(np.ones(jax.device_count(), np.float32))
        jax.block_until_ready(jax.jit(jnp.sum, out_shardings=replicated())(ones))
    except RuntimeError as error:
        if "gloo" not in str(error):
            raise
        name, text = socket.gethostname(), first_line(error)[:300]
        raise UserError(
            f"the processes of this run can't reach each other: {text}; on CPUs a machine is"
            f" reached by its own name, which must lead to an address that the others see: {name}"
            f" leads to {_address(name)} here (see /etc/hosts)"
        ) from None


def _address(name: str) -> str:
    """Address of a machine by name, in words."""
    try:
        return socket.gethostbyname(name)
    except OSError:
        return "no address"


def _tasks_of_slurm() -> int | None:
    """Most tasks of a SLURM step on one machine, from a form such as 2(x3),1; None if not set."""
    counts = re.findall(r"(\d+)(?:\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return max(map(int, counts), default=None)


def _check_gpus_of_slurm(tasks: int) -> None:
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if "SLURM_GPUS_PER_TASK" in os.environ or 0 < len(seen) < tasks:
        raise UserError(
            "SLURM hides from each task the GPUs of the others (gpus-per-task), and JAX can't find"
            " its own then: start one task on each machine with all its GPUs (ntasks-per-node=1,"
            " gpus-per-node=N)"
        )


def asked_to_stop(call: int) -> bool:
    """Whether any process of a run got SIGTERM. All processes get the same answer at a call.

    Each process counts its calls: all stop at the first call that none has made yet. False for a
    process alone.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(call)


def stop_if_asked() -> None:
    """Raises Stopped where all processes agree to stop; all call it after each part of a work."""
    if asked_to_stop(next(_parts)):
        raise Stopped(signal.SIGTERM)


def of_the_first(tree: Any) -> Any:
    """Gives the arrays of process 0 to all processes, whose own may differ by rounding."""
    return multihost_utils.broadcast_one_to_all(tree) if jax.process_count() > 1 else tree


def check_agreed(facts: Mapping[str, Any]) -> None:
    """Raises UserError in all processes of a run if they disagree about facts (of JSON).

    To be called by all, before work in which a disagreement would deadlock.
    """
    if jax.process_count() == 1:
        return
    known = [json.loads(text) for text in _of_all(json.dumps(facts).encode())]
    if words := disagreement(known):
        if not jax.process_index():  # JAX ends the others as soon as the first has ended
            time.sleep(LAST_WORDS)
        raise UserError(
            f"the processes of this run do not agree: {words}; start all again, with one command,"
            " one version, the same data and one folder, on machines of one kind"
        )


def _of_all(text: bytes) -> list[bytes]:
    """Gathers a text from each process: all processes get all texts."""
    with stdout_aside():
        lengths = np.ravel(multihost_utils.process_allgather(np.int32(len(text))))
        padded = np.frombuffer(text.ljust(max(lengths)), np.uint8)
        rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row.tobytes()[:length] for row, length in zip(rows, lengths, strict=True)]


def disagreement(known: Sequence[Mapping[str, Any]]) -> str:
    """The facts in which another process differs from the first, in words; "" if there are none.

    ``known`` are the facts of each process.
    """
    found = []
    for name in dict.fromkeys(name for facts in known for name in facts):
        first, *others = (json.dumps(f[name]) if name in f else "unknown" for f in known)
        for i, value in enumerate(others, 1):
            if value != first:
                values = f"{first[:LONGEST]} in process 0 and {value[:LONGEST]} in process {i}"
                found.append(f"{name} is {values}")
                break
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return ", ".join([*found[:SHOWN], *more])


def together(what: str) -> None:
    """Waits until all processes of a run are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
