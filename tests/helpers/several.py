"""Several processes of the program at once, on the CPU; what each prints is in files."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np

from helpers.places import ROOT
from scoremle import load

# Seconds that a process may take, on a busy machine.
LONGEST = 600


class Run:
    """One process for each of these commands, with so many devices each.

    ``on``: the words before each command, which run it elsewhere. ``program``: what Python runs.
    """

    def __init__(self, commands, logs, *, devices=1, on=None, program=("-m", "scoremle"), **more):
        count = f"--xla_force_host_platform_device_count={devices}"
        flags = f"{os.environ.get('XLA_FLAGS', '')} {count}"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | more
        logs.mkdir(exist_ok=True)
        self.said = [logs / f"out{i}" for i in range(len(commands))]
        self.errors = [logs / f"err{i}" for i in range(len(commands))]
        self.processes = []
        places = on or [()] * len(commands)
        for place, words, out, err in zip(places, commands, self.said, self.errors, strict=True):
            with out.open("w") as stdout, err.open("w") as stderr:
                command = [*place, sys.executable, *program, *map(str, words)]
                self.processes.append(
                    subprocess.Popen(
                        command, cwd=ROOT, env=environment, stdout=stdout, stderr=stderr
                    )
                )

    def worker(self, i):
        """The process that works, whose parent is the one that was started."""
        pid = self.processes[i].pid
        return int(next(iter(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()), pid))

    def until(self, there, what):
        """Returns when a condition holds, or when a process has ended."""
        end = time.monotonic() + LONGEST
        while not there() and all(process.poll() is None for process in self.processes):
            assert time.monotonic() < end, f"not {what}: {self.texts()}"
            time.sleep(0.05)

    def until_connected(self):
        self.until(lambda: all("Gloo" in path.read_text() for path in self.errors), "connected")

    def until_step(self, step):
        self.until(lambda: _steps(self.said[0].read_text()) >= step, f"at step {step}")

    def codes(self, timeout=LONGEST):
        """Exit codes, when all have ended."""
        return [process.wait(timeout) for process in self.processes]

    def last(self, i):
        """The last line of stderr."""
        return next(reversed(self.errors[i].read_text().strip().splitlines()), "")

    def texts(self):
        return [path.read_text()[-2000:] for path in (*self.said, *self.errors)]

    def end(self):
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()


def together(words, logs, processes=2, *, last=None, **more):
    """One run of so many processes. The ``last`` may have words of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = (f"--coordinator=127.0.0.1:{port}", f"--processes={processes}")
    each = [*[words] * (processes - 1), last or words]
    commands = [(*own, *joined, f"--process={i}") for i, own in enumerate(each)]
    return Run(commands if processes > 1 else [words], logs, **more)


def _steps(text):
    lines = [line.split()[1] for line in text.splitlines() if line.startswith("step ")]
    return max((int(word.partition("/")[0]) for word in lines), default=0)


def parameters(workdir):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(load(workdir))])
