"""A script of tests on several processes, each with several devices of the CPU."""

import os
import socket
import subprocess
import sys

from helpers.places import ROOT


def run(name, *words, processes=1, devices=1, timeout=300):
    """Runs ``helpers.NAME WORDS [PORT PROCESSES I]``; what each process printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']}"
        f" --xla_force_host_platform_device_count={devices}",
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-m", f"helpers.{name}", *map(str, words),
             *(map(str, (port, processes, i)) if processes > 1 else ())],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(processes)
    ]  # fmt: skip
    ended = [(*process.communicate(timeout=timeout), process.returncode) for process in started]
    assert [code for *_, code in ended] == [0] * processes, ended
    return [told for told, *_ in ended]
