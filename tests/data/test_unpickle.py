"""Pickles of batches give the arrays that were pickled; anything else is one line, and no harm."""

import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.places import ROOT
from numpy._core.numeric import _frombuffer

from scoremle.data import unpickle as unpickling
from scoremle.data.readers.cifar import unpickle_rows
from scoremle.data.unpickle import unpickle
from scoremle.errors import UserError

WORKER = ROOT / "tests/helpers/hostile_worker.py"
ROWS = np.random.default_rng(0).integers(0, 256, (2, 3 * 32 * 32), np.uint8)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_protocol_can_be_unpickled(protocol):
    batch = {"data": ROWS, b"labels": [1, np.int64(2)], "name": "é", "none": (None, 1.5, b"\xff")}
    found = unpickle(pickle.dumps(batch, protocol), "here")
    np.testing.assert_array_equal(found["data"], ROWS)
    assert [found[k] for k in (b"labels", "name", "none")] == [[1, 2], "é", (None, 1.5, b"\xff")]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["|u1", "|i1", "<i4", ">i4", "<i8", ">i8", "<f4", "<f8"])
def test_types_orders_and_shapes(kind, protocol):
    numbers = np.arange(-24, 24).reshape(2, 4, 6).astype(kind)
    # The second names the type of the first; the third is stored column by column.
    arrays = [numbers, numbers[0], np.asfortranarray(numbers), numbers[1, 1, 1]]
    found = unpickle(pickle.dumps(tuple(arrays), protocol), "here")
    for one, array in zip(found, arrays, strict=True):
        assert np.shape(one) == array.shape
        np.testing.assert_array_equal(one, array)
    assert [one.dtype for one in found[:3]] == [numbers.dtype] * 3


def python2(rows: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 wrote it, command by command: text and arrays are both of bytes."""
    shape = b"".join(b"M" + struct.pack("<H", n) for n in rows.shape) + b"\x86q\x0b"
    content = rows.tobytes()
    return (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03"
        + b"U\x06labelsq\x04]q\x05("
        + b"".join(b"K" + bytes([label]) for label in labels)
        + b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00"
        b"\x85U\x01b\x87Rq\x09(K\x01" + shape + b"cnumpy\ndtype\nq\x0cU\x02u1K\x00K\x01\x87Rq\x0d"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", len(content)) + content
        + b"tbU\x09filenamesq\x0e]q\x0f(U\x05a.pngq\x10U\x05b.pngq\x11eu."
    )  # fmt: skip


def test_batches_of_python_2():
    content = python2(ROWS, [3, 9])
    # The stream is a true one: Python's own reader agrees.
    assert pickle.loads(content, encoding="bytes").keys() == unpickle(content, "here").keys()
    assert unpickle(content, "here")[b"filenames"] == [b"a.png", b"b.png"]
    images, labels = unpickle_rows(content, "here")
    np.testing.assert_array_equal(images, ROWS.reshape(2, 3, 32, 32).transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(labels, [3, 9])


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_of_old_numpy_name_another_module(protocol):
    batch = {"data": ROWS, "labels": [np.int64(7), 5], "mean": ROWS.mean(0)}
    content = pickle.dumps(batch, protocol)
    # Without frames, whose lengths another name changes.
    old = pickle.dumps(batch, 2).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy._core" in content and b"numpy._core" not in old
    for found in (unpickle(content, "here"), unpickle(old, "here")):
        np.testing.assert_array_equal(found["data"], ROWS)
        np.testing.assert_array_equal(found["mean"], ROWS.mean(0))
        assert found["labels"] == [7, 5]


# Hostile ones


class Calls:
    """Pickled as a call of a function, and the state that its result is given."""

    def __init__(self, function, *arguments, state=None):
        self._call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self._call


def kind_of(code: str, *state: object) -> Calls:
    return Calls(np.dtype, code, False, True, state=state or (3, "|", None, None, None, -1, -1, 0))


def numbers_of(kind: Calls, content: bytes, count: int) -> Calls:
    return Calls(_frombuffer, content, kind, (count,), "C")


# A field that is an object, which the flags (the last number) deny; one far out of the buffer.
OBJECTS = kind_of("V8", 3, "|", None, ("f",), {"f": (kind_of("O8"), 0)}, 8, 1, 0)
FAR = kind_of("V8", 3, "|", None, ("f",), {"f": (kind_of("u8"), 1 << 30)}, 8, 1, 0)
NUMBER_WITH = kind_of("i8", 3, "<", None, ("f",), {"f": (kind_of("i8"), 1 << 30)}, 8, 1, 0)
ATTACKS = {
    "objects": {"labels": numbers_of(OBJECTS, b"ABCDEFG\0" * 2, 2)},
    "far": {"labels": numbers_of(FAR, b"ABCDEFG\0" * 2, 2)},
    "a number with fields": {"labels": numbers_of(NUMBER_WITH, b"ABCDEFG\0" * 2, 2)},
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_types_whose_state_lies(attack, protocol):
    content = pickle.dumps({"data": ROWS} | ATTACKS[attack], protocol)
    with pytest.raises(UserError) as error:
        unpickle(content, "here")
    assert str(error.value) == "here: refused: it has an array of something else than numbers"


PICKLED = pickle.dumps(ROWS, 2)
STATE = b"K\x02M\x00\x0c\x86"
NUMBER = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
NO_NUMBERS = "refused: it has an array of something else than numbers"
HOSTILE = {
    # True functions: what allows them runs them.
    "runs numpy": (
        b"\x80\x02cnumpy.testing\nrunstring\nU\x1f__import__('os').mkdir('pwned')}\x86R.",
        "refused: it names numpy.testing.runstring, which could run code; only arrays are read",
    ),
    "runs numpy, by protocol 4": (
        pickle.dumps(Calls(np.testing.runstring, "__import__('os').mkdir('pwned')", {}), 4),
        "refused: it names numpy.testing._private.utils.runstring, which could run code",
    ),
    "runs a command": (
        pickle.dumps(Calls(os.system, "touch pwned"), 2),
        "refused: it names posix.system, which could run code; only arrays are read",
    ),
    "an attribute of an attribute": (
        b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.tobytes\x93.".replace(b"\x0dnd", b"\x0fnd"),
        "refused: it names numpy.ndarray.tobytes, which could run code",
    ),
    "a name of many lines": (
        b"\x80\x04\x8c\x05o\n\x1b[m\x8c\x03a\nb\x93.",
        r"refused: it names o\n\x1b[m.a\nb, which could run code",
    ),
    "another codec": (
        b"\x80\x02c_codecs\nencode\nX\x01\0\0\0xX\x04\0\0\0zlib\x86R.",
        "not a pickle, or a damaged one (no batch of arrays calls encode so); fetch it again",
    ),
    "an array that is called": (
        b"\x80\x02cnumpy\nndarray\nK\x01\x85R.",
        "not a pickle, or a damaged one (no batch of arrays calls ndarray so); fetch it again",
    ),
    "an object": (
        b"\x80\x02cnumpy\ndtype\n)\x81.",
        "refused: it uses the command NEWOBJ, which no batch of arrays needs",
    ),
    "another pickle's object": (b"\x80\x02U\x01xQ.", "refused: it names something outside"),
    "an extension": (b"\x80\x02\x82\x01.", "refused: it uses the command EXT1"),
    "protocol 0": (b"(I1\nI2\nl.", "refused: it uses the command INT"),
    "objects": (PICKLED.replace(b"u1", b"O8"), NO_NUMBERS),
    "object, not in an array": (pickle.dumps(np.array([{}]), 2), NO_NUMBERS),
    "records": (pickle.dumps(np.zeros(2, "u1, i4"), 2), NO_NUMBERS),
    "a type made of anything": (b"\x80\x02cnumpy\ndtype\n(]K\x00K\x01tR.", "not a pickle, or a d"),
    "state for a list": (b"\x80\x02](K\x01tb.", "not a pickle, or a damaged one"),
    "another length": (
        PICKLED.replace(STATE, b"K\x03M\x00\x0c\x86"),
        "not a pickle, or a damaged one (an array has 6144 bytes, which its shape contradicts)",
    ),
    "a negative length": (
        PICKLED.replace(STATE, b"J\xfe\xff\xff\xffJ\x00\xf4\xff\xff\x86"),
        "not a pickle, or a damaged one (a shape is not a short list of whole numbers)",
    ),
    "a number of other length": (
        b"\x80\x02cnumpy.core.multiarray\nscalar\n" + NUMBER + b"U\x02ab\x86R.",
        "not a pickle, or a damaged one (an array has 2 bytes, which its shape contradicts)",
    ),
    "less than a command takes": (
        b"\x80\x02K\x01\x86.",
        "not a pickle, or a damaged one (a command lacks what it works on); fetch it again",
    ),
    "forty axes": (
        pickle.dumps(np.zeros((1,) * 40, np.uint8), 2),
        "not a pickle, or a damaged one (a shape is not a short list of whole numbers)",
    ),
    "no number": (b"I" + b"x" * 1000 + b"\n.", "not a pickle, or a damaged one (invalid literal"),
    "keys that take for ever": (
        b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
        "not a pickle, or a damaged one (a tuple where a batch has something else)",
    ),
    "no end": (b"\x80\x02]", "not a pickle, or a damaged one (pickle exhausted before"),
    "nothing on the stack": (b"\x80\x02.", "not a pickle, or a damaged one (pop from empty list)"),
    "less than it claims": (b"\x80\x03B\xff\xff\xff\xffab.", "not a pickle, or a damaged one"),
    "far more than it claims": (b"\x80\x04\x8e" + b"\xff" * 8 + b"ab.", "not a pickle, or a dam"),
    "empty": (b"", "not a pickle, or a damaged one (pickle exhausted before seeing STOP)"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE[name]
    with pytest.raises(UserError) as error:
        unpickle(content, "here")
    assert str(error.value).startswith(f"here: {message}")
    assert str(error.value).isprintable() and len(str(error.value)) < 200
    assert not list(tmp_path.iterdir())


def test_what_hostile_pickles_would_do(tmp_path, monkeypatch):
    """The first of them are not straw men: Python's own reader runs them."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs numpy", "runs numpy, by protocol 4", "runs a command"):
        pickle.loads(HOSTILE[name][0])
        made = Path("pwned")
        made.rmdir() if made.is_dir() else made.unlink()


def test_texts_named_again_and_again_are_not_copied_again_and_again():
    text = b"X\xe8\x03\0\0" + b"a" * 1000
    call = b"c_codecs\nencode\nh\x00X\x06\0\0\0latin1\x86R"
    assert unpickle(b"\x80\x02" + text + b"q\x00" + call + b".", "here") == b"a" * 1000
    with pytest.raises(UserError, match="more text"):
        unpickle(b"\x80\x02" + text + b"q\x00" + call * 30 + b".", "here")


def test_commands_are_counted(monkeypatch):
    monkeypatch.setattr(unpickling, "MAX_COMMANDS", 1000)
    # Lists are 56 times as large as their command.
    assert unpickle(b"\x80\x02" + b"]" * 997 + b".", "here") == []
    with pytest.raises(UserError, match="1000 commands"):
        unpickle(b"\x80\x02" + b"]" * 5000 + b".", "here")


@pytest.mark.parametrize(
    "labels",
    [[1, [2]], [1, None], [1, True], [1, -1], [1, 1 << 31], 3, ROWS, np.array([1.0, 2.0])],
)
def test_labels_are_whole_numbers(labels):
    content = pickle.dumps({"data": ROWS, "labels": labels}, 2)
    with pytest.raises(UserError, match="its labels"):
        unpickle_rows(content, "here")


def test_labels_that_name_more_than_fits_anywhere():
    labels: list = [1, 2]
    for _ in range(40):
        labels = [labels, labels]
    with pytest.raises(UserError, match="its labels"):
        unpickle_rows(pickle.dumps({"data": ROWS, "labels": labels}, 4), "here")


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited on Linux")
def test_ten_thousand_mutations(tmp_path):
    """In a process of little memory: each is read or refused in one line."""
    few = {"data": ROWS[:, :12], "labels": [1, 2]}
    seeds = [
        python2(ROWS[:, :12], [1, 2]),
        *(pickle.dumps(few | {"mean": np.arange(3.0)}, protocol) for protocol in (2, 3, 4, 5)),
        pickle.dumps({"data": ROWS[:, :12], "labels": [np.int64(1), np.int32(2)]}, 2),
        *(pickle.dumps(few | attack, 2) for attack in ATTACKS.values()),
        *(pickle.dumps(few | attack, 5) for attack in ATTACKS.values()),
    ]
    paths = [tmp_path / str(i) for i in range(len(seeds))]
    for path, content in zip(paths, seeds, strict=True):
        path.write_bytes(content)
    done = subprocess.run(
        [sys.executable, WORKER, "fuzz", "10000", "0", *paths],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr)
    read, refused = map(int, done.stdout.split())
    assert read + refused == 20_000 and read > 300
