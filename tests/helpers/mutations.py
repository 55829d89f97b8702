"""Reads mutations of true files: ``mutations.py EXAMPLES SEED [SUBJECT ...]``.

A mutation of bytes puts other bytes in the place of some; one of JSON puts another value in the
place of one, or removes it. What may come of it: a UserError of one line, or what the file
declares. Each subject is read in a process of its own, which has little memory and time. A line
says how often which came, or what else did, and how the process ended. With the seed 0 the
mutations are always the same.
"""

import copy
import gc
import json
import logging
import os
import signal
import struct
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint  # noqa: F401  # once, before processes are forked
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from helpers.hostile_worker import limit
from helpers.subjects import SUBJECTS, Subject
from scoremle import devices
from scoremle.cli.commands.verify import verify
from scoremle.errors import UserError

# Of computing, for one reading.
SECONDS = 20
# Lengths and counts as files have them, and numbers and texts that few expect.
COUNTS = [0, 1, 2, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]
PIECES = [struct.pack(order + "I", n) for order in "<>" for n in COUNTS]
PIECES += [b"", b"\0", b"\n", b"-1", b"'", b"\xff" * 8, b"1e999", b"[" * 100_000]
VALUES = [
    None, True, False, -1, 0, 1, 2, 3, 17, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"),
    float("-inf"), 2**31, 2**32, 2**63, 2**64, 10**30, 10**400, "", "a", "0", "1.5", "nan", "\n",
    "\ud800", "x" * 300, [], [0], [[]], {}, {"a": 0}, [10**30], [0.5, None], [1] * 40,
]  # fmt: skip


def mutations(content: Any) -> st.SearchStrategy:
    if not isinstance(content, bytes):
        places = st.sampled_from(list(paths(content)))
        values = st.sampled_from(VALUES) | places.map(lambda path: at(content, path))
        edits = st.lists(st.tuples(places, st.none() | st.tuples(values)), min_size=1, max_size=3)
        return edits.map(lambda edits: altered(content, edits))
    place = st.integers(0, len(content) - 1)
    others = place.map(lambda start: content[start : start + 12])
    pieces = st.binary(min_size=1, max_size=3) | st.sampled_from(PIECES) | others
    # As many bytes make way as come, or so many.
    lengths = st.none() | st.integers(0, 40) | st.just(len(content))
    edits = st.lists(st.tuples(place, lengths, pieces), min_size=1, max_size=3)
    return edits.map(lambda edits: spliced(content, edits))


def spliced(content: bytes, edits: list) -> bytes:
    for start, length, piece in edits:
        stop = start + (len(piece) if length is None else length)
        content = content[:start] + piece + content[stop:]
    return content


def paths(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """The ways to every value in a JSON content."""
    yield path
    inside = content.items() if isinstance(content, dict) else ()
    inside = enumerate(content) if isinstance(content, list) else inside
    for name, value in inside:
        yield from paths(value, (*path, name))


def at(content: Any, path: tuple) -> Any:
    for name in path:
        content = content[name]
    return content


def altered(content: Any, edits: list) -> Any:
    """With values put at places, or removed (None); what an earlier edit took away stays away."""
    whole = [copy.deepcopy(content)]
    for path, new in edits:
        try:
            *above, last = (0, *path)
            inside = at(whole, tuple(above))
            if new is None and path:
                del inside[last]
            elif new is not None:
                inside[last] = copy.deepcopy(new[0])
        except (LookupError, TypeError):
            continue
    return whole[0]


def outcome(subject: Subject, content: Any) -> str:
    """"refused" or "read"; anything else is raised."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "source").mkdir()
        subject.put(Path(folder) / "source", content)
        for line in verify(Path(folder) / "source"):
            assert isinstance(line, bool) or "\n" not in line, line
        try:
            subject.read(Path(folder))
        except UserError as error:
            text = str(error)
            assert text and "\n" not in text and text.encode(), text
            while error := error.__cause__ or error.__context__:
                assert not isinstance(error, MemoryError), error
            return "refused"
        return "read"


def battery(subject: Subject, examples: int, number: int) -> Counter | str:
    """How many mutations were refused, and how many read; or the library that is not there."""
    counts: Counter = Counter()
    try:
        content = subject.content()
        assert outcome(subject, content) == "read"
    except ImportError as error:
        return f"needs {error.name}"
    limit()
    devices.LEAST_ROOM = 0  # what is read of a file takes less than XLA, which is refused too

    @settings(
        max_examples=max(3, int(examples * subject.share)), derandomize=not number,
        database=None, deadline=None, suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )  # fmt: skip
    @given(mutations(content))
    def holds(mutated: Any) -> None:
        counts[outcome(subject, mutated)] += 1

    (seed(number)(holds) if number else holds)()
    return counts


def said_of(name: str, examples: int, number: int) -> str:
    """On one line, whatever it is."""
    try:
        return json.dumps(battery(SUBJECTS[name], examples, number))
    except BaseException:
        return ascii(traceback.format_exc())[1:-1]


def main(examples: int, number: int, names: list[str]) -> None:
    logging.disable()
    gc.freeze()  # of what is imported nothing is garbage
    os.fsync = lambda handle: None  # that the disk is asked, tests/test_files.py tests
    for name in names or SUBJECTS:
        print(name, end="\t", flush=True)
        child = os.fork()
        if not child:
            print(said_of(name, examples, number), end="", flush=True)
            os._exit(0)
        print(f"\t{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
