"""Counts what faults, damage and kills do, for as long as one likes; also between two machines.

    python benchmarks/faults.py [--minutes=10 | --long] [--seed=1]
    python benchmarks/faults.py --hosts [FAULT ...]   # needs Linux, root, iproute2 and util-linux

The tests of ``tests/faults`` are run again and again: faults at operations on files, damage to
every file, mutations of true files, and kills of the program at random moments, also of one of
several processes that share a run, which may hang, too. Each round has a seed of its own, from
which all that is random follows. After so many minutes (--long: at Ctrl-C) nothing new is begun,
and a table says what came how often.

With ``--hosts`` two machines share a training, as network namespaces of this one. Each has an
address, a name and an /etc/hosts of its own, and both see one folder. In each training something
happens at step 25: nothing, SIGTERM to one, a process is killed, or the network between them is
gone, in three ways, or for ten seconds. Then the network is mended, and the same command goes on.
A table says how the two ended, after how many seconds, and by how much the parameters at the end
differ from those without a fault.

The exit code is 1, and what was found is printed, if anything came that docs/reliability.md does
not allow.
"""

import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, parser_of

from helpers.several import Run, parameters  # isort: skip
from helpers.tiny_runs import TINY  # isort: skip

# Of tests/faults, the quickest first.
TESTS = ("saves", "mutations", "faults", "damage", "kills", "several")
# Mutations of models, too: all else that takes long does the same at each seed.
MARKS = {"mutations": ""}
FORBIDDEN = "not allowed"
# A line of helpers.faults.report.
COUNTS = re.compile(r"^([\w, ]+): (\{.*\})$", re.MULTILINE)
EXAMPLES = "40"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--long", action="store_true", help="until Ctrl-C")
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    parser.add_argument("--hosts", nargs="*", metavar="FAULT", choices=list(FAULTS)[1:],
                         help="between two machines; none is named: all")  # fmt: skip
    options = parser.parse_args()
    if options.hosts is None:
        good = of_tests(options.seed, math.inf if options.long else 60 * options.minutes)
    else:
        good = of_hosts(options.hosts or list(FAULTS)[1:])
    sys.exit(not good)


def of_tests(first: int, seconds: float) -> bool:
    """Whether all that came in so long is allowed."""
    end, counts = time.monotonic() + seconds, Counter[tuple[str, str]]()
    with suppress(KeyboardInterrupt):
        for seed in itertools.count(first):
            for test in TESTS:
                if time.monotonic() < end:
                    counts += _tried(seed, test)
            if time.monotonic() > end:
                break
    print("| what | outcome | times |\n|---|---|---|")
    for (what, outcome), times in sorted(counts.items()):
        print(f"| {what} | {outcome} | {times:,} |")
    return not any(outcome == FORBIDDEN for _, outcome in counts)


def _tried(seed: int, test: str) -> Counter[tuple[str, str]]:
    """What a test says that it counted; says how it failed if it did."""
    file = f"tests/faults/test_{test}.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-xqs", "-m", MARKS.get(test, "not long"),
         "--timeout=0", "-p", "no:cacheprovider", file], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "SCOREMLE_SEED": str(seed), "SCOREMLE_EXAMPLES": EXAMPLES},
    )  # fmt: skip
    found = Counter[tuple[str, str]]()
    for what, counts in COUNTS.findall(done.stdout):  # of one test there may be several lines
        found += Counter({(what, outcome): times for outcome, times in json.loads(counts).items()})
    print(f"seed {seed}, {test}: {found.total()}", flush=True)
    if done.returncode:
        print(done.stdout, flush=True)
        found[test, FORBIDDEN] += 1
    return found


# --- two machines -----------------------------------------------------------------------------

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


def after(fault: str, folder: Path) -> tuple[list[int], float, np.ndarray]:
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


def of_hosts(faults: list[str]) -> bool:
    """Whether all that came of these is allowed."""
    good = True
    with tempfile.TemporaryDirectory() as place, network():
        *_, whole = after(NOTHING, Path(place, "whole"))
        print("| what | exit codes | after | difference |\n|---|---|---|---|", flush=True)
        for i, fault in enumerate(faults):
            codes, seconds, found = after(fault, Path(place, f"hit{i}"))
            difference = np.abs(found - whole).max()
            print(f"| {fault} | {codes} | {seconds:.0f} s | {difference:.0e} |", flush=True)
            good = good and codes == FAULTS[fault][1] and difference == 0
    return good


if __name__ == "__main__":
    main()
