"""Two machines that share a training, as network namespaces of this one: faults between them.

    python benchmarks/hosts.py [FAULT ...]     # needs Linux, root, iproute2 and util-linux

Each host has an address, a name and an /etc/hosts of its own, and both see one folder. In each
training something happens at step 25: nothing, SIGTERM to one, a process is killed, or the network
between them is gone, in three ways, or for ten seconds. Then the network is mended, and the same
command goes on. A table says how the two ended, after how many seconds, and by how much the
parameters at the end differ from those without a fault. The exit code is 1 if anything came that
docs/reliability.md does not allow.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from helpers.several import Run, parameters
from helpers.tiny_runs import TINY

HOSTS = ("scoremle0", "scoremle1")
HUB = "scoremlehub"  # the switch between them
FIELDS = (
    "--config.training.n_iters=60", "--config.training.snapshot_sampling=False",
    "--config.training.eval_freq=60", "--config.training.snapshot_freq_for_preemption=20",
)  # fmt: skip


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def network() -> Iterator[None]:
    """Two hosts at a switch, of which nothing is left."""
    names = [f"10.77.0.{i + 1} {host}" for i, host in enumerate(HOSTS)]
    folders = [Path("/etc/netns", host) for host in HOSTS]
    try:
        ip("netns", "add", HUB)
        ip("-n", HUB, "link", "add", "switch", "up", "type", "bridge")
        for i, (host, folder) in enumerate(zip(HOSTS, folders, strict=True)):
            ip("netns", "add", host)
            ip("-n", HUB, "link", "add", f"port{i}", "type", "veth",
               "peer", "name", "card", "netns", host)  # fmt: skip
            ip("-n", HUB, "link", "set", f"port{i}", "master", "switch", "up")
            ip("-n", host, "link", "set", "lo", "up")
            ip("-n", host, "addr", "add", f"10.77.0.{i + 1}/24", "dev", "card")
            ip("-n", host, "link", "set", "card", "up")
            folder.mkdir(parents=True)
            (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
        yield
    finally:
        for place in (*HOSTS, HUB):
            with suppress(subprocess.CalledProcessError):
                ip("netns", "del", place)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def on(host: str) -> tuple[str, ...]:
    """A command that runs another on a host, under its name."""
    named = ("unshare", "--uts", "sh", "-c", f'hostname {host}; exec "$@"', "sh")
    return "ip", "netns", "exec", host, *named


def start(folder: Path, logs: Path) -> Run:
    words = (*TINY, *FIELDS, "--mode=train", f"--workdir={folder}", "--processes=2")
    commands = [(*words, f"--coordinator={HOSTS[0]}:12345", f"--process={i}") for i in (0, 1)]
    return Run(commands, logs, on=[on(host) for host in HOSTS])


def silent() -> None:
    ip("-n", HUB, "link", "set", "port1", "nomaster")


def mend() -> None:
    ip("-n", HOSTS[1], "link", "set", "card", "up")
    ip("-n", HUB, "link", "set", "port1", "master", "switch", "up")


def for_ten_seconds() -> None:
    silent()
    time.sleep(10)
    mend()


NOTHING = "nothing"
# What happens, to the run, and the exit codes that are allowed.
FAULTS: dict[str, tuple[Callable[[Any], object], list[int]]] = {
    NOTHING: (lambda run: None, [0, 0]),
    "SIGTERM to the second": (lambda run: run.processes[1].terminate(), [143, 143]),
    "kill -9 of the first": (lambda run: os.kill(run.worker(0), signal.SIGKILL), [2, 2]),
    "kill -9 of the second": (lambda run: os.kill(run.worker(1), signal.SIGKILL), [2, 2]),
    "its card is down": (lambda run: ip("-n", HOSTS[1], "link", "set", "card", "down"), [2, 2]),
    "its cable is out": (lambda run: ip("-n", HUB, "link", "set", "port1", "down"), [2, 2]),
    "its packets are lost": (lambda run: silent(), [2, 2]),
    "the same for 10 s": (lambda run: for_ten_seconds(), [0, 0]),
}


def tried(fault: str, folder: Path) -> tuple[list[int], float, np.ndarray]:
    """Exit codes, seconds from the fault to the last end, and the parameters at the end."""
    happens, _ = FAULTS[fault]
    run = start(folder, folder.parent / "logs")
    try:
        run.until_step(25)
        happens(run)
        begun = time.monotonic()
        codes = run.codes()
        seconds = time.monotonic() - begun
        said = all(run.last(i).startswith("scoremle: error: ") for i in (0, 1))
        assert said or 2 not in codes, run.texts()
        mend()
        if any(codes):
            run = start(folder, folder.parent / "logs")
            assert run.codes() == [0, 0], run.texts()
    finally:
        run.end()
    assert not list(folder.rglob(".*")), "what is unfinished was left"
    return codes, seconds, parameters(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    faults = [fault for fault in FAULTS if fault != NOTHING]
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"{', '.join(faults)}; all")
    chosen = parser.parse_args().faults or faults
    if unknown := set(chosen) - set(faults):
        parser.error(f"no faults: {', '.join(unknown)}")
    good = True
    with tempfile.TemporaryDirectory() as place, network():
        *_, whole = tried(NOTHING, Path(place, "whole"))
        print("| what | exit codes | after | difference |\n|---|---|---|---|", flush=True)
        for i, fault in enumerate(chosen):
            codes, seconds, found = tried(fault, Path(place, f"hit{i}"))
            difference = np.abs(found - whole).max()
            print(f"| {fault} | {codes} | {seconds:.0f} s | {difference:.0e} |", flush=True)
            good = good and codes == FAULTS[fault][1] and difference == 0
    sys.exit(not good)


if __name__ == "__main__":
    main()
