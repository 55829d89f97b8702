"""Arrays and prepared folders that are odd in one thing: one line each, before any work."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest

from scoremle.cli import main as cli
from scoremle.data.prepared import Prepared
from scoremle.data.readers.arrays import load_npz
from scoremle.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
HALVES = np.repeat([0, 1], 20)


def member(array):
    if isinstance(array, bytes):
        return array
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def prepare(folder, **arrays):
    """Exit code of preparing a .npz with these members, into ``folder / "made"``."""
    path = folder / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", member(array))
    return cli.main(["data", "prepare", str(path), f"--into={folder / 'made'}"])


def npy(header, length=117):
    return b"\x93NUMPY\x01\x00" + (length + 1).to_bytes(2, "little") + header.ljust(length) + b"\n"


FIELDS = b"{'descr': '|u1', 'fortran_order': False, 'shape': %s, }"


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"levels": np.array("many")}, "levels is many"),
        ({"levels": np.arange(3)}, "[0 1 2]"),
        ({"levels": np.array(16.5)}, "levels is 16.5"),
        ({"levels": np.array(np.nan)}, "levels is nan"),
        ({"levels": np.zeros(0)}, "whole number"),
        ({"levels": np.array(257)}, "levels is 257"),
        ({"labels": np.linspace(0, 1, 40)}, "labels of float64"),
        ({"labels": np.zeros((40, 2), int)}, "(40, 2)"),
        ({"labels": np.array(3)}, "shape ()"),
        ({"labels": np.zeros(40, complex)}, "labels of complex128"),
        ({"labels": np.zeros(40, "M8[D]")}, "labels of datetime64[D]"),
        ({"labels": np.full(40, b"\xff")}, "labels of |S1"),
        ({"labels": np.full(40, 2**40)}, "label is beyond"),
        ({"labels": np.full(40, 2**63, np.uint64)}, "label is beyond"),
        ({"labels": np.full(40, -(2**31) - 1)}, "label is beyond"),
        ({"labels": np.zeros(39, int)}, "39 labels"),
        ({"x": np.array(3, np.uint8)}, "has shape ()"),
        ({"x": np.where(np.arange(256).reshape(4, 8, 8) == 70, np.nan, 0.5)}, "nan at [1, 0, 6]"),
        ({"x": npy(FIELDS % b"(-1, 8, 8, 1)") + bytes(64)}, "as an array"),
        ({"x": npy(FIELDS % b"(99999999999999999999, 0, 8, 1)")}, "as an array"),
        ({"x": npy(FIELDS % (b"(" + b"1," * 99 + b")"), 500) + b"a"}, "as an array"),
        ({"x": npy(b"(" * 2400 + b")" * 2400, 5000)}, "as an array"),
        ({"x": npy(b"-" * 4000 + b"1", 5000)}, "as an array"),
        ({"x": b""}, "as an array"),
        ({"x": npy(FIELDS.replace(b"|u1", b"|S0") % b"(4, 536870912)")}, "as an array"),
    ],
)
def test_an_odd_member(arrays, words, tmp_path, capfd):
    assert prepare(tmp_path, **{"x": IMAGES, **arrays}) == 2
    err = capfd.readouterr().err
    assert words in err and err.count("\n") == 1, err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [(HALVES, [0, 1]), (HALVES == 1, [0, 1]), (HALVES + 2**31 - 2, [2**31 - 2, 2**31 - 1]),
     (np.array(["b", "a"])[HALVES], [0, 1])],
)  # fmt: skip
def test_labels_that_are_kept(labels, numbers, tmp_path):
    assert prepare(tmp_path, x=IMAGES, labels=labels) == 0
    prepared = Prepared(tmp_path / "made")
    found = np.concatenate([prepared.labels("train"), prepared.labels("test")])
    assert np.unique(found).tolist() == numbers and len(found) == 40


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_a_version_of_numpys_format(version, tmp_path):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, IMAGES, version=version)
    assert prepare(tmp_path, x=stream.getvalue()) == 0
    prepared = Prepared(tmp_path / "made")
    found = np.concatenate([prepared.images("train"), prepared.images("test")])
    assert sorted(map(bytes, found)) == sorted(map(bytes, IMAGES))


def test_an_array_in_the_order_of_fortran(tmp_path):
    np.savez(tmp_path / "x.npz", train=np.asfortranarray(IMAGES), test=IMAGES)
    with (tmp_path / "x.npz").open("rb") as file:
        found = load_npz(file, "x.npz")
    np.testing.assert_array_equal(found["train"], IMAGES)
    assert prepare(tmp_path, train=np.asfortranarray(IMAGES), test=IMAGES) == 0
    np.testing.assert_array_equal(Prepared(tmp_path / "made").images("train"), IMAGES)


def test_integers_of_samples_are_taken(tmp_path):
    reals = IMAGES / 255
    assert prepare(tmp_path, x=reals, log_prob=reals[:, 0, 0, 0], integers=IMAGES) == 0
    prepared = Prepared(tmp_path / "made")
    assert len(prepared.images("train")) + len(prepared.images("test")) == 40


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    assert prepare(folder, x=IMAGES) == 0
    return folder / "made"


def altered(meta, *path, value):
    """A copy of nested records with one value set; None: left out."""
    name, *rest = path
    changed = {**meta, name: altered(meta[name], *rest, value=value) if rest else value}
    return {k: v for k, v in changed.items() if v is not None}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["counts"], [1, 2], "counts must"),
        (["counts"], None, "it lacks counts"),
        (["counts", "train"], "x", "train must"),
        (["levels"], 16.5, "levels must"),
        (["levels"], 999, "2 to 256"),
        (["levels"], None, "it lacks levels"),
        (["options"], [], "options must"),
        (["shape"], "abc", "shape must"),
        (["sha256"], [], "sha256 must"),
        (["source"], 3, "source must"),
        (["version"], [[]], "version must"),
        (["notes"], "x", "notes must"),
        (["duplicates"], 3, "duplicates must"),
        (["skipped"], 3, "skipped must"),
        (["labels"], "no", "labels must"),
    ],
)
def test_a_record_with_a_value_of_another_kind(path, value, words, made, tmp_path, capfd):
    folder = tmp_path / "odd"
    shutil.copytree(made, folder)
    meta = json.loads((folder / "meta.json").read_text())
    meta.pop("seal", None)
    (folder / "meta.json").write_text(json.dumps(altered(meta, *path, value=value)))
    with pytest.raises(UserError, match=words):
        Prepared(folder).images("train")
    assert cli.main(["data", "show", str(folder), f"--picture={tmp_path / 'p.png'}"]) == 2
    err = capfd.readouterr().err
    assert words in err and err.count("\n") == 1 and not (tmp_path / "p.png").exists()
