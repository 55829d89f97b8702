"""Prepared folders: whole or absent, true to their source, and what the command says of them."""

import hashlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.places import ROOT
from helpers.tiny_runs import TINY
from PIL import Image

from scoremle import data
from scoremle.cli import main as cli
from scoremle.cli.commands import parser_of
from scoremle.core.pixels import Pixels, bits_per_dim
from scoremle.data import prepare as preparing
from scoremle.data import prepared as folders
from scoremle.data.image_set import pad_to
from scoremle.data.readers.base import Chunk, ImageReport, Options, Reading
from scoremle.errors import UserError
from scoremle.evaluation import baselines
from scoremle.evaluation.pictures import STRIP
from scoremle.experiment.build import build, images_of
from scoremle.experiment.run_eval import EvaluationRun
from scoremle.experiment.workdir import Workdir
from scoremle.files import read_sealed

# Which of twenty images of one colour are for testing.
GOLDEN_TEST = [0, 1, 4, 11, 15, 17, 19]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test."""
    monkeypatch.setenv("SCOREMLE_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pictures(count: int, seed: int = 0, size: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 1), np.uint8)


def prepared(folder: Path, *chunks: Chunk, **options) -> data.Prepared:
    reading = Reading(iter(chunks), lambda: "abc")
    preparing.prepare(reading, folder, name="x", source="here", options=Options(**options))
    return data.Prepared(folder)


def scoremle_data(*arguments: object) -> int:
    return cli.main(["data", *map(str, arguments)])


# The split


def test_the_split_depends_on_each_image_alone(tmp_path):
    images = pictures(1000)
    a = prepared(tmp_path / "a", Chunk(images, None, 1.0), test_fraction=0.2)
    assert 150 < a.meta["counts"]["test"] < 250
    assert a.meta["split"] == "by content: a fraction of 0.2 is for testing"
    # Another order, other images beside them, in other chunks: the same images are for testing.
    more = np.concatenate([pictures(500, seed=1), images[::-1]])
    b = prepared(
        tmp_path / "b", Chunk(more[:7], None, 0.1), Chunk(more[7:], None, 1.0), test_fraction=0.2
    )
    for split, other in (("train", "test"), ("test", "train")):
        of_b = {image.tobytes() for image in b.images(split)}
        assert {image.tobytes() for image in a.images(split)} <= of_b
        assert not of_b & {image.tobytes() for image in a.images(other)}


def test_the_split_of_an_image_never_changes(tmp_path):
    images = np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None, None, None], (20, 4, 4, 1))
    found = prepared(tmp_path / "a", Chunk(images, None, 1.0), test_fraction=0.4)
    assert found.images("test")[:, 0, 0, 0].tolist() == GOLDEN_TEST


def test_what_was_counted(tmp_path):
    train, test = pictures(6), pictures(4, seed=1)
    train[1] = train[0]
    test[0] = test[1] = train[2]
    test[2] = 7
    notes = [ImageReport("broken.png", reason="it is")]
    found = prepared(
        tmp_path / "a",
        Chunk(train, "train", 0.5, unusable=notes, notes={"odd": 1}),
        Chunk(test, "test", 1.0, notes={"odd": 2}),
        skip_bad=True,
    )
    assert found.meta["duplicates"] == {
        "within train": 1, "within test": 1, "of train in test": 2,
    }  # fmt: skip
    assert found.meta["constant_images"] == 1
    assert (found.meta["skipped"], found.meta["notes"]) == (["broken.png"], {"odd": 3})
    assert found.meta["source_sha256"] == "abc"


@pytest.mark.parametrize("split", ["test", "val"])
def test_names_of_classes_become_their_places_in_order(split, tmp_path):
    """Though they come in another; and validation images that stand for testing keep theirs."""
    train, test = pictures(3), pictures(2, seed=1)
    test[1] = train[0]
    found = prepared(
        tmp_path / "a",
        Chunk(train, "train", 0.5, ["dog", "cat", "dog"]),
        Chunk(test, split, 1.0, ["eel", "ant"]),
    )
    assert found.meta["classes"] == ["ant", "cat", "dog", "eel"]
    np.testing.assert_array_equal(found.labels("train"), [2, 1, 2])
    np.testing.assert_array_equal(found.labels("test"), [3, 0])
    assert found.meta["duplicates"]["of train in test"] == 1


@pytest.mark.parametrize(
    ("train", "test"),
    [([3, 1], ["", ""]), (["", ""], [3, 1]), (["a", "b"], [3, 1]), ([3, ""], [1, 2]),
     ([-1, "a"], ["a", "b"]), (None, [3, 1])],
)  # fmt: skip
def test_labels_that_some_images_lack_or_of_two_kinds_are_none(train, test, tmp_path):
    chunks = Chunk(pictures(2), "train", 0.5, train), Chunk(pictures(2), "test", 1.0, test)
    found = prepared(tmp_path / "a", *chunks)
    assert found.labels("train") is None and found.meta["classes"] == []
    found.verify()


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([], "no images in"),
        ([Chunk(pictures(3), "train", 1.0)], "images for testing"),
        ([Chunk(pictures(3), "train", 1), Chunk(pictures(3), None, 1)], "others are not"),
        ([Chunk(pictures(3), "train", 1), Chunk(pictures(3, size=5), "test", 1)], "4x4x1 and 5x5"),
        ([Chunk(np.zeros((3, 0, 4, 1), np.uint8), "train", 1)], "no pixels"),
    ],
)
def test_what_cannot_be_prepared_leaves_nothing(chunks, message, tmp_path):
    with pytest.raises(UserError, match=message):
        prepared(tmp_path / "a", *chunks)
    assert list(tmp_path.iterdir()) == []


def test_a_set_that_is_not_whole_is_refused(tmp_path, monkeypatch):
    cifar10 = data.DATASETS["cifar10"]
    assert cifar10.counts == {"": (50_000, 10_000)}
    monkeypatch.setitem(data.DATASETS, "cifar10", replace(cifar10, counts={"": (50, 10)}))
    files = tmp_path / "files"
    files.mkdir()
    for i in range(1, 6):
        (files / f"data_batch_{i}.bin").write_bytes(bytes(3073 * 10))
    (files / "test_batch.bin").write_bytes(bytes(3073 * 9))
    with pytest.raises(UserError, match="50 and 10"):
        data.load("CIFAR10", path=str(files), image_size=32, num_channels=3)
    (files / "test_batch.bin").write_bytes(bytes(3073 * 10))
    assert len(data.load("CIFAR10", path=str(files), image_size=32, num_channels=3).train) == 50


def test_images_are_not_made_larger_than_a_model_takes():
    assert Options(size=4096).size == 4096
    with pytest.raises(UserError, match="size"):
        Options(size=4097)


# Grey levels


@pytest.mark.parametrize(("largest", "code"), [(16, 0), (17, 2)])
def test_a_pixel_is_below_the_number_of_levels(largest, code, tmp_path, capsys):
    images = np.full((2, 4, 4), largest, np.uint8)
    np.savez(tmp_path / "x.npz", train=images, test=images // 2, levels=17)
    assert scoremle_data("prepare", tmp_path / "x.npz") == code
    assert ("pixel is 17" in capsys.readouterr().err) == (code == 2)


@pytest.mark.parametrize("levels", [8, 16])
def test_levels_of_which_one_or_two_would_be_left_are_not_reduced(levels, tmp_path, capsys):
    images = np.arange(17, dtype=np.uint8).repeat(4).reshape(17, 2, 2)
    np.savez(tmp_path / "x.npz", train=images, test=images)
    assert scoremle_data("prepare", tmp_path / "x.npz", f"--levels={levels}") == 2
    assert "already" in capsys.readouterr().err


@pytest.mark.parametrize(("stated", "code"), [({}, 2), ({"levels": 17}, 0)])
def test_images_that_have_so_many_levels_already_are_not_reduced(stated, code, tmp_path, capsys):
    images = np.arange(17, dtype=np.uint8).repeat(4).reshape(17, 2, 2)
    np.savez(tmp_path / "x.npz", train=images, test=images, **stated)
    into = tmp_path / "p"
    assert scoremle_data("prepare", tmp_path / "x.npz", "--levels=17", f"--into={into}") == code
    assert ("already" in capsys.readouterr().err) == (code == 2)
    assert code or np.load(into / "train.npy").max() == 16


@pytest.mark.parametrize("levels", [2, 4, 8, 16, 32, 64, 128, 256])
def test_levels_are_the_upper_bits_and_uniform_models_need_exactly_their_bits(levels, tmp_path):
    bits = int(math.log2(levels))
    images = pictures(300)
    images[0].flat[:2] = 0, 255
    chunk = Chunk(images, "train", 1.0)
    reduced = prepared(tmp_path / "a", chunk, chunk._replace(split="test"), levels=levels)
    np.testing.assert_array_equal(reduced.images("train"), images >> (8 - bits))
    assert reduced.meta["levels"] == levels
    # The uniform density on [-1, 1) has log p = -log 2 for each dimension.
    pixels, dims = Pixels(levels), images[0].size
    log_prob = jnp.full(3, -dims * math.log(2.0))
    np.testing.assert_allclose(bits_per_dim(log_prob, pixels, dims), bits, rtol=1e-6)
    np.testing.assert_array_equal(baselines.uniform_bpd(reduced.images("test"), levels), bits)


def test_with_fewer_levels_what_is_kept_is_divided_and_counted(tmp_path):
    images = pictures(60)
    images[0] = images[1] = 8
    images[0, :2] = 9  # which 128 levels don't tell from 8
    alike = np.concatenate([images, images ^ 1])
    found = prepared(tmp_path / "a", Chunk(alike, None, 1.0), test_fraction=0.5, levels=128)
    assert found.meta["duplicates"]["of train in test"] == 0
    train, test = ({x.tobytes() for x in found.images(split)} for split in ("train", "test"))
    assert min(len(train), len(test)) > 20 and not train & test
    assert sum(found.meta["duplicates"].values()) == 120 - len(train | test) == 61
    assert found.meta["constant_images"] == 4


def test_one_bit_digits_from_the_config_to_the_network(cache):
    config = parser_of("").checked([
        *TINY, "--workdir=w", "--mode=train", "--config.data.levels=2",
    ]).config  # fmt: skip
    experiment = build(config)
    images = experiment.data
    whole = data.load("digits")
    np.testing.assert_array_equal(images.train, whole.train > 8)
    assert experiment.model.pixels == Pixels(levels=2)
    y = experiment.model.pixels.encode_grid(jnp.asarray(images.train[:9]))
    assert set(np.unique(y)) == {-1.0, 1.0}
    # 0 and 1 with their noise fill the halves of [-1, 1).
    u = jnp.full((9, 8, 8, 1), 0.5)
    assert set(np.unique(experiment.model.pixels.encode(images.train[:9], u))) == {-0.5, 0.5}


# Folders


def idx_folder(tmp_path: Path, count: int = 5) -> Path:
    folder = tmp_path / "mnist"
    folder.mkdir(exist_ok=True)
    for name, seed in (("train", 0), ("t10k", 1)):
        header = np.array([0x803, count, 4, 4], ">u4").tobytes()
        path = folder / f"{name}-images-idx3-ubyte"
        path.write_bytes(header + pictures(count, seed).tobytes())
    return folder


def test_first_use_prepares_and_later_uses_open(tmp_path, cache, capsys, monkeypatch):
    folder = idx_folder(tmp_path)
    first = data.load("mnist", path=str(folder))
    (made,) = cache.iterdir()
    assert capsys.readouterr().out == f"prepared mnist, once and for all: {made}\n"
    np.testing.assert_array_equal(first.train, pictures(5))
    assert isinstance(first.train, np.memmap)
    assert first.facts["source_sha256"] == data.Prepared(made).meta["source_sha256"]

    def never(*_):
        raise AssertionError("read again")

    monkeypatch.setitem(data.DATASETS, "mnist", data.Dataset("mnist", never))
    # By its files, by the prepared folder, and by its name alone.
    for path in (str(folder), str(made), ""):
        np.testing.assert_array_equal(data.load("mnist", path=path).train, first.train)
    assert capsys.readouterr().out == ""
    monkeypatch.undo()
    monkeypatch.setenv("SCOREMLE_DATA", str(cache))
    with pytest.raises(UserError, match=r"not cifar10"):
        data.load("cifar10", path=str(made))
    with pytest.raises(UserError, match="prepared with 256"):
        data.load("mnist", path=str(made), levels=4)
    with pytest.raises(UserError, match="image_size is 9"):
        data.load("mnist", path=str(made), image_size=9, fit="pad")
    # Other files or options are another folder; then the name alone says too little.
    idx_folder(tmp_path, 6)
    assert len(data.load("mnist", path=str(folder)).train) == 6
    assert data.load("mnist", path=str(folder), levels=4).levels == 4
    assert len(list(cache.iterdir())) == 3
    with pytest.raises(UserError, match="more than once"):
        data.load("mnist")


def test_a_set_of_fewer_levels_of_the_version_before_is_taken_by_its_place_alone(
    tmp_path, cache, monkeypatch
):
    """It was divided by images of all levels."""
    folder = str(idx_folder(tmp_path))
    monkeypatch.setattr(folders, "FEWER_LEVELS", folders.FORMAT)
    data.load("mnist", path=folder, levels=4)
    monkeypatch.undo()
    monkeypatch.setenv("SCOREMLE_DATA", str(cache))
    (old,) = cache.iterdir()
    with pytest.raises(UserError, match="no default place"):
        data.load("mnist", levels=4)
    assert data.load("mnist", path=str(old), levels=4).levels == 4
    data.load("mnist", path=folder, levels=4)
    assert data.load("mnist", levels=4).levels == 4 and len(list(cache.iterdir())) == 2


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert folders.cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("SCOREMLE_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert folders.cache_folder() == Path("/somewhere/scoremle/data")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/me")
    assert folders.cache_folder() == Path("/home/me/.cache/scoremle/data")


@pytest.mark.parametrize("other", [False, True])
def test_two_at_once_and_the_second_finds_it_done(other, tmp_path):
    refused = pytest.raises(UserError, match="another process") if other else nullcontext()
    with refused, folders.made_whole(tmp_path / "a") as first:
        (first / folders.META).write_text("other" if other else "the same")
        (first / "x").touch()
        with folders.made_whole(tmp_path / "a") as second:
            (second / folders.META).write_text("the same")
        # The inner one was quicker.
    assert (tmp_path / "a" / folders.META).read_text() == "the same"
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and not (tmp_path / "a/x").exists()


KILLED = """
import sys, time
from scoremle.data import prepare as preparing
from scoremle.data.readers.base import Chunk, Options, Reading
import numpy as np, pathlib
def chunks():
    yield Chunk(np.zeros((3, 4, 4, 1), np.uint8), "train", 0.5)
    yield Chunk(np.ones((3, 4, 4, 1), np.uint8), "test", 0.9)
    print("half", flush=True)
    time.sleep(60)
preparing.prepare(Reading(chunks(), lambda: ""), pathlib.Path(sys.argv[1]), name="x", source="",
                  options=Options())
"""


def test_killed_on_the_way_it_leaves_nothing_that_is_taken_for_whole(tmp_path):
    target = tmp_path / "cache" / "x-1"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout.readline() == "half\n"
    process.kill()
    process.communicate()
    (left,) = (tmp_path / "cache").iterdir()
    assert not folders.is_prepared(target) and not folders.is_prepared(left)
    # Of a process on another machine, that may still be at work.
    elsewhere = left.with_name(".x-1.other-1.7.0123abcd.tmp")
    shutil.copytree(left, elsewhere)
    # The next one makes it, and clears away what is of a process that is gone.
    chunk = Chunk(pictures(3), "train", 1.0)
    found = prepared(target, chunk, chunk._replace(split="test"))
    assert len(found.images("train")) == 3
    assert sorted((tmp_path / "cache").iterdir()) == [elsewhere, target]
    # And what has lain there for a day.
    others = [left.with_name(name) for name in (".x-1.csv.parts", ".x-1.raw", ".x-2.tmp")]
    for other in others:  # not one that this makes
        other.mkdir()
    for file in (*elsewhere.iterdir(), elsewhere, *others):
        os.utime(file, (time.time() - 1e5,) * 2)
    with pytest.raises(RuntimeError), folders.made_whole(target):
        raise RuntimeError
    assert sorted((tmp_path / "cache").iterdir()) == [*others, target]


def labelled(folder: Path) -> data.Prepared:
    chunk = Chunk(pictures(30), "train", 1.0, np.arange(30))
    return prepared(folder, chunk, chunk._replace(split="test"))


@pytest.mark.parametrize("name", ["train.npy", "test.npy", "train_labels.npy", "test_labels.npy"])
def test_an_array_that_was_altered_is_refused(tmp_path, name):
    """Wherever a bit is flipped: in the header, in the first image, in the last."""
    found = labelled(tmp_path / "a")
    read = found.labels if "labels" in name else found.images
    split = name.split("_")[0].removesuffix(".npy")
    file = found.folder / name
    whole = file.read_bytes()
    for place in (20, 130, len(whole) // 2, len(whole) - 1):
        assert len(read(split)) == 30
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=rf"{name} is damaged"):
            read(split)
        with pytest.raises(UserError, match=rf"{name} is damaged"):
            found.verify()
        file.write_bytes(whole)
    found.verify()
    time = file.stat().st_mtime_ns
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(file, ns=(time, time))
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        found.verify()


def test_an_array_is_read_once_a_version_or_always(tmp_path, monkeypatch):
    found, hashed, sha256 = labelled(tmp_path / "a"), [], hashlib.sha256

    def counted(content):
        if isinstance(content, memoryview):  # of an array, not of meta.json
            hashed.append(len(content))
        return sha256(content)

    monkeypatch.setattr("scoremle.data.prepared.hashlib.sha256", counted)
    for _ in range(3):
        for split in ("train", "test"):
            data.Prepared(found.folder).images(split)
    assert len(hashed) == 2  # one does not forget the other
    del hashed[1:]
    monkeypatch.setenv("SCOREMLE_VERIFY", "always")
    found.images("train")
    assert len(hashed) == 2
    monkeypatch.delenv("SCOREMLE_VERIFY")
    os.utime(found.folder / "train.npy", (1, 1))
    found.images("train")
    assert len(hashed) == 3
    (found.folder / folders.VERIFIED).write_text("damaged")
    found.images("train")
    assert len(hashed) == 4


def test_a_folder_that_can_not_be_written_to_is_read_each_time(tmp_path, monkeypatch):
    found = labelled(tmp_path / "a")

    def refused(*_):
        raise UserError("can't write: Read-only file system")

    monkeypatch.setattr("scoremle.data.prepared.files.write_json", refused)
    assert len(found.images("train")) == 30 and not (found.folder / folders.VERIFIED).exists()


def test_a_folder_of_an_earlier_version_is_opened(tmp_path):
    """Its meta.json has no seal, and no hashes of labels."""
    found = labelled(tmp_path / "a")
    meta = json.loads((found.folder / folders.META).read_text())
    del meta["seal"], meta["sha256"]["train_labels"], meta["sha256"]["test_labels"]
    (found.folder / folders.META).write_text(json.dumps(meta))
    again = data.Prepared(found.folder)
    assert len(again.images("train")) == len(again.labels("test")) == 30
    (found.folder / folders.META).write_text(json.dumps(meta | {"seal": "0"}))
    with pytest.raises(UserError, match=r"meta\.json .*written"):
        data.Prepared(found.folder).images("train")


def test_missing_memory_is_no_damage(tmp_path, monkeypatch):
    chunk = Chunk(pictures(3), "train", 1.0)
    found = prepared(tmp_path / "a", chunk, chunk._replace(split="test"))

    def short(path):
        raise MemoryError

    monkeypatch.setattr("scoremle.data.prepared.map_npy", short)
    with pytest.raises(MemoryError):
        found.images("train")


def test_damaged_folders(tmp_path):
    chunk = Chunk(pictures(30), "train", 1.0)
    found = prepared(tmp_path / "a", chunk, chunk._replace(split="test"))
    (found.folder / "train.npy").write_bytes((found.folder / "train.npy").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train\.npy is damaged"):
        found.images("train")
    np.save(found.folder / "test.npy", pictures(4))
    with pytest.raises(UserError, match=r"test\.npy holds uint8"):
        found.images("test")
    (found.folder / "meta.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="this version"):
        data.load("images", path=str(found.folder))


# The command


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (10, 8)) -> Path:
    folder.mkdir()
    for i in range(count):
        x = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(x).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("share", [0, 1.0, 1.5, -0.1, float("nan")])
def test_a_share_of_test_images_is_between_0_and_1(share):
    with pytest.raises(UserError, match="test_fraction must be"):
        data.Options(test_fraction=share)


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", -8), ("channels", -8), ("channels", 2), ("levels", -8), ("fit", "stretch")],
)
def test_an_option_that_there_is_not_is_refused(name, value):
    with pytest.raises(UserError, match=f"{name} must be"):
        data.Options(**{name: value})
    of_load = {"size": "image_size", "channels": "num_channels"}.get(name, name)
    with pytest.raises(UserError, match=f"{of_load} must be"):
        data.load("images", path="none", **{of_load: value})


def test_prepare_and_show(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_pictures(tmp_path / "holiday", 30)
    options = ("--size=4", "--fit=resize", "--test-fraction=0.3", "--levels=32")
    assert scoremle_data("prepare", folder, *options, "--into=mine") == 0
    out = capsys.readouterr().out
    for line in (
        r"data set +images",
        r"images +\d\d for training, \d+ for testing",
        r"shape +4x4x3",
        r"levels +32 \(5 bits\), from 256",
        r"split +by content: a fraction of 0\.3 is for testing",
        r"duplicates within train +0",
        r"made with +size=4, fit=resize, levels=32, test_fraction=0\.3",
        r"source sha256 +[0-9a-f]{64}",
    ):
        assert re.search(f"^{line}$", out, re.MULTILINE), line
    words = re.search(r"^next: scoremle train (own_images runs/images .*)$", out, re.MULTILINE)[1]
    config = parser_of("train").checked([*words.split(), *TINY[1:]]).config
    assert build(config).data.shape == (4, 4, 3)
    assert scoremle_data("show", "mine", "--split=test", "--picture=grid.png") == 0
    with Image.open("grid.png") as picture:
        assert picture.mode == "RGB" and min(picture.size) > 100
    for words, told in {
        (folder, *options, "--into=mine"): "--into=mine exists",
        ("mine", "--into=other"): "prepared already",
        ("mine", "--size=8"): "--size is 8",
        ("mine", "--channels=1"): "--channels is 1",
        ("digits", "--size=16"): "--size is not for digits",
        (folder, "--size=-8", "--fit=crop"): "-8 is not an integer",
    }.items():
        assert scoremle_data("prepare", *words) == 2
        assert told in capsys.readouterr().err
    assert scoremle_data("prepare", "mine", "--size=4", "--channels=3", "--levels=32") == 0


def test_a_folder_with_the_name_of_a_data_set_can_be_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "digits", 30, (8, 8))
    assert scoremle_data("prepare", "digits", "--fit=crop") == 2
    assert capsys.readouterr().err.endswith("; for the folder give digits/\n")
    assert scoremle_data("prepare", "digits/", "--size=4", "--fit=crop", "--into=made") == 0


@pytest.mark.parametrize(
    "arguments", [["pictures", "--size=4", "--fit=crop"], ["pictures"], ["digits"]]
)
def test_the_command_that_comes_next_takes_what_was_prepared(
    arguments, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures", 30, (8, 8))
    assert scoremle_data("prepare", *arguments, "--into=made") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    command = shlex.split(line.removeprefix("next: scoremle train "))
    found = images_of(parser_of("train").checked(command).config)
    np.testing.assert_array_equal(found.train, data.Prepared(Path("made")).images("train"))


@pytest.mark.parametrize(("size", "words"), [
    ((7, 5), ["pictures"]), ((6, 6), ["pictures"]),
    ((10, 9), ["pictures", "--size=6", "--fit=resize"]),
    ((12, 13), ["photos", "--path=pictures", "--size=6"]),
])  # fmt: skip
def test_the_command_that_comes_next_builds_whatever_the_size(
    size, words, tmp_path, monkeypatch, capsys
):
    """They are padded to a size that its network can halve."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures", 30, size)
    assert scoremle_data("prepare", *words, "--into=made") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    command = shlex.split(line.removeprefix("next: scoremle train "))
    found = build(parser_of("train").checked(command).config).data
    made = pad_to(data.Prepared(Path("made")).images("train"), 8)
    np.testing.assert_array_equal(found.train, made)


def test_show_draws_the_images(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert scoremle_data("show", "digits") == 0
    assert "64 of its train images: digits.png" in capsys.readouterr().out
    grid = np.asarray(Image.open("digits.png"))
    assert grid[:STRIP].min() < 100, "the caption"
    grid = grid[STRIP:]
    factor = grid.shape[0] // (8 * 9 + 1)
    first = data.load("digits").train[0, ..., 0]
    shown = grid[factor : 9 * factor : factor, factor : 9 * factor : factor]
    np.testing.assert_array_equal(shown, np.round(first * (255 / 16)))
    for words in ((), ("--picture=digits.png",)):
        assert scoremle_data("show", "digits", *words) == 2
        told = capsys.readouterr()
        assert "digits.png is there" in told.err and not told.out  # before any work
    assert scoremle_data("show", "digits", "--json", "--picture=other.png") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["counts"] == {"train": 1437, "test": 360} and facts["shape"] == [8, 8, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepare", "digts"), "mean digits?"),
        (("prepare", "./nothing"), "file nothing"),
        (("prepare", "mnist"), "--path=PLACE"),
        (("prepare", "mnist", "--into=x"), "default place"),
        (("prepare", "mnist", "--path=nowhere"), "data folder"),
        (("prepare", "nope"), "data set 'nope'"),
        (("show", "digits", "--picture=f.jpg"), "end in .png"),
        (("prepare",), "required: NAME|PATH"),
        (("prepare", "digits", "--levels=1"), "--levels"),
        (("prepare", "digits", "--test-fraction=2"), "between 0"),
        (("fly",), "invalid choice: 'fly'"),
    ],
)
def test_mistakes(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert scoremle_data(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# What results say


def test_results_and_workdirs_have_hashes_of_their_images(tiny, tmp_path):
    facts = read_sealed(tiny.workdir / "data.json", "")
    digits = data.load("digits")
    assert facts == {"name": "digits", "levels": 17, **digits.facts}
    assert facts["source"] == "scikit-learn" and len(facts["source_sha256"]) == 64
    for name, other in (("levels", 2), ("train_sha256", "0"), ("data_version", "new")):
        (tmp_path / name).mkdir()
        store = Workdir(tmp_path / name).snapshots
        store.save(1, {"a": np.zeros(1)}, {})  # of a version that says nothing of the data
        shutil.copy(tiny.workdir / "config.json", tmp_path / name)
        (tmp_path / name / "data.json").write_text(json.dumps(facts | {name: other}))
        place = Workdir(tmp_path / name)
        experiment = build(place.config())
        with pytest.raises(UserError, match=f"{name} was '?{other}'?"):
            place.check(experiment, "training")
        if name != "train_sha256":
            with pytest.raises(UserError, match="another experiment"):
                place.check(experiment, "evaluation")
    # The same facts are in results.json.
    run = EvaluationRun(experiment, tmp_path, Workdir(tmp_path), Workdir(tmp_path))
    assert digits.facts.items() <= run._facts.items()


def test_two_versions_of_imagenet_say_which_they_are_in_every_result(tmp_path):
    chunk = Chunk(pictures(3), "train", 1.0)
    for version in ("old", "new"):
        reading = Reading(iter([chunk, chunk._replace(split="test")]), lambda: "", version=version)
        preparing.prepare(
            reading, tmp_path / version, name="imagenet", source="x", options=Options()
        )
        found = data.load("ImageNet", path=str(tmp_path / version))
        assert (found.name, found.facts["data_version"]) == ("imagenet", version)


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").touch()
    with pytest.raises(UserError, match="can't write"), folders.made_whole(tmp_path / "a"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "mine"]
