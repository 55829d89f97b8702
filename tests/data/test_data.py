"""Batches are a function of (seed, step), however they get to the device; idx files; names."""

import gzip
import hashlib
import importlib.util
import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from helpers import resume_worker as worker

from scoremle import data
from scoremle.data.image_set import ImageSet, pad_to
from scoremle.data.readers import arrays, celeba, imagenet
from scoremle.data.readers.base import Chunk, Options, as_labels
from scoremle.data.readers.digits import stratified_split
from scoremle.errors import UserError
from scoremle.training.loop import Intervals, Loop
from scoremle.training.program import make_program
from scoremle.training.step import init_state
from scoremle.training.writers import Writer

feeds = importlib.import_module("scoremle.data.feed")  # data.feed is the function

# The first epoch of ten images and two images of the second.
GOLDEN_ORDERS = {
    42: [4, 8, 1, 9, 3, 6, 0, 7, 2, 5, 1, 2],
    43: [2, 1, 5, 7, 8, 9, 4, 0, 6, 3, 1, 5],
}
# Hashes of the images and of batches, plain and with flips, at steps 0, 1, 22, 23, 5000 (of 64
# images, seed 42). What a resumed run or a comparison relies on: they may never change.
GOLDEN_BATCHES = {
    "digits": (
        "c37d81919aebcc18 0f08003749ba625a",
        "0591af4ed7290e28 b5b94b6669a45567 d4e6af190d067178 8b27665e5ac8e72e c6d2fecd18c00ed3",
        "168f2210727ea41b 0b415231827030cd 4bf0c57fe3edb425 b027338ba0da2fc7 55bfd5a7c02f7afc",
    ),
    "fashion_mnist": (
        "2e487a6c89124f78 c867c93ff9536059",
        "64cd8f174975bec3 a5c4f14377d6d607 1c3bdbcdba00f3c7 b28c425e8c801fbe 1f41f27edd19dbe8",
        "e8d1872ffe2cd0a5 ce7a79d85c0dd506 eff729b63468cc2b 1f747297bb8bafd4 1b0ee35400eea004",
    ),
}
FASHION = Path(data.DATASETS["fashion_mnist"].place)
needs_fashion = pytest.mark.skipif(
    not FASHION.is_dir(), reason="needs Debian's dataset-fashion-mnist"
)


def numbered(size: int, **fields) -> ImageSet:
    """Images of 2x2 that hold their own number, so that an order can be read off a batch."""
    images = np.broadcast_to(np.arange(size, dtype=np.uint8)[:, None, None, None], (size, 2, 2, 1))
    return ImageSet(name="numbered", train=images, test=images[:3], **fields)


def load(name: str, **fields) -> ImageSet:
    settings = {"image_size": 28, "num_channels": 1, "batch_size": 4, "seed": 0} | fields
    return data.load(name, **settings)


# The order of batches


def test_the_order_of_a_seed_never_changes():
    # A resumed run must see the images that an uninterrupted one would have seen.
    for seed, order in GOLDEN_ORDERS.items():
        assert numbered(10, batch_size=12, seed=seed).indices(0).tolist() == order


@pytest.mark.parametrize("name", ["digits", pytest.param("fashion_mnist", marks=needs_fashion)])
def test_images_and_batches_never_change(name):
    def short(array):
        return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:16]

    found = []
    for random_flip in (False, True):
        images = data.load(name, batch_size=64, seed=42, random_flip=random_flip)
        found.append(" ".join(short(images.batch(step)) for step in (0, 1, 22, 23, 5000)))
    whole = f"{short(images.train)} {short(images.test)}"
    assert (whole, *found) == GOLDEN_BATCHES[name]


@pytest.mark.parametrize("batch_size", [1, 3, 10, 23])
def test_every_epoch_is_a_permutation_across_batch_boundaries(batch_size):
    images = numbered(10, batch_size=batch_size, seed=1)
    steps = range(-(-50 // batch_size))
    stream = np.concatenate([images.batch(step)[:, 0, 0, 0] for step in steps])[:50]
    epochs = stream.reshape(5, 10)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (5, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_a_batch_depends_on_seed_and_step_alone():
    first, second = numbered(50, batch_size=8, seed=3), numbered(50, batch_size=8, seed=3)
    for step in (7, 0, 100_000, 7):
        np.testing.assert_array_equal(first.batch(step), second.batch(step))
    assert (first.batch(0) != numbered(50, batch_size=8, seed=4).batch(0)).any()


def test_batches_are_copies():
    images = numbered(10, batch_size=4)
    images.batch(0)[:] = 99
    assert images.train.max() == 9


def test_flips_mirror_about_half_and_are_deterministic():
    ramp = np.arange(3, dtype=np.uint8)[:, None]
    plain = np.broadcast_to(ramp, (1000, 2, 3, 1))
    images = ImageSet(plain, plain, name="ramp", batch_size=1000, seed=5, random_flip=True)
    batch = images.batch(2)
    flipped = batch[:, 0, 0, 0] == 2
    assert 400 < flipped.sum() < 600
    np.testing.assert_array_equal(batch[flipped], plain[flipped][:, :, ::-1])
    np.testing.assert_array_equal(batch[~flipped], plain[~flipped])
    np.testing.assert_array_equal(batch, images.batch(2))
    assert (batch != images.batch(3)).any()


# How images get to the device

SETTINGS = {"batch_size": 4, "seed": 5, "random_flip": True}


def mapped(tmp_path: Path) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (50, 2, 2, 1), np.uint8)
    np.save(tmp_path / "x.npy", images)
    return np.load(tmp_path / "x.npy", mmap_mode="r")


def trained(images: ImageSet, on_device: str, folder: Path):
    """The bits of a training's end, and what it logged."""
    feed = data.feed(images, on_device)
    step = make_program(
        worker.loss, worker.optimizer(), 0.9, seed=5, resident=feed.resident, gather=feed.gather
    )
    state, rows = init_state(worker.init_params(), worker.optimizer()), []

    class Kept(Writer):
        def write(self, step, row):
            rows.append(row)

    training = Loop(
        step, lambda k: feed.batch_of(images.reordered(k)), Intervals(15, 3, 3, 100, 100, 100),
        snapshots=worker.Checkpoints(folder / "a", keep=None),
        preemption=worker.Checkpoints(folder / "b", keep=2), writers=[Kept()],
        on_eval=lambda state, step: {}, on_snapshot=lambda state, step: None, note={},
    )  # fmt: skip
    return worker.tree_hash(training.run(state)), rows


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_training_is_the_same_to_the_last_bit_wherever_its_images_lie(
    backend, tmp_path, monkeypatch
):
    # What other devices do, several steps in one scan, runs on a CPU as well.
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    train = mapped(tmp_path)
    on_disk, in_memory = (ImageSet(t, t[:3], **SETTINGS) for t in (train, np.array(train)))
    ends = [
        trained(on_disk, "false", tmp_path / "1"),
        trained(on_disk, "true", tmp_path / "2"),
        trained(in_memory, "auto", tmp_path / "3"),
    ]
    assert ends[0] == ends[1] == ends[2]
    plain = ImageSet(train, train[:3], **SETTINGS | {"random_flip": False})
    assert trained(plain, "true", tmp_path / "4") != ends[0]


def test_images_lie_on_the_device_if_they_fit_and_are_wanted(monkeypatch):
    images = numbered(10, **SETTINGS)
    assert isinstance(data.feed(images, "false").batch_of(images), feeds.Prefetch)
    assert data.feed(images, "auto").resident is images.train
    monkeypatch.setattr(feeds, "USUAL_MEMORY", 159)  # of which the images need more than 1/4
    assert isinstance(data.feed(images, "auto").batch_of(images), feeds.Prefetch)
    assert data.feed(images, "true").resident is images.train
    for mode in ("true", "false"):
        feed = data.feed(images, mode)
        for step in (0, 7):
            for ordered in (images, images.reordered(1)):
                found = feed.gather(feed.resident, feed.batch_of(ordered)(step))
                np.testing.assert_array_equal(found, ordered.batch(step))


def test_another_order_of_the_same_images():
    images = numbered(10, **SETTINGS)
    orders = [images.reordered(times).indices(0).tolist() for times in range(4)]
    assert orders[0] == images.indices(0).tolist()
    assert len({tuple(order) for order in orders}) == 4
    assert images.reordered(1).train is images.train


def test_batches_are_read_ahead_for_any_step():
    made = []

    def batch(step):
        made.append(step)
        return np.full(2, step)

    ahead = feeds.Prefetch(batch, ahead=2)
    for step in (0, 1, 2, 10, 11, 3):
        np.testing.assert_array_equal(ahead(step), [step, step])
    assert len(made) == len(set(made)) + made.count(3) - 1
    assert {0, 1, 2, 10, 11, 3} <= set(made)

    def broken(step):
        raise UserError("the disk is gone")

    with pytest.raises(UserError, match="disk is gone"):
        feeds.Prefetch(broken)(0)


PROCESS = """
import sys, hashlib, jax, numpy as np
number, count, port = map(int, sys.argv[1:])
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, number)
from scoremle import data, devices
from scoremle.training import loop
images = np.random.default_rng(0).integers(0, 256, (50, 2, 2, 1), np.uint8)
images = data.ImageSet(images, images, batch_size=4, seed=5, random_flip=True)
everywhere = devices.replicated()
assert jax.device_count() == 2 and jax.process_count() == count
for mode in ("true", "false"):
    feed = data.feed(images, mode)
    batches = loop._stack(feed.batch_of(images), range(9, 12))
    one_by_one = jax.jit(jax.vmap(feed.gather, (None, 0)), out_shardings=everywhere)
    found = one_by_one(jax.device_put(feed.resident, everywhere), batches)
    print(hashlib.sha256(np.asarray(found)).hexdigest())
"""


@pytest.mark.long
def test_the_global_batch_is_the_same_for_any_number_of_processes():
    expected = np.random.default_rng(0).integers(0, 256, (50, 2, 2, 1), np.uint8)
    images = ImageSet(expected, expected, **SETTINGS)
    batches = np.stack([images.batch(step) for step in range(9, 12)])
    digest = hashlib.sha256(batches).hexdigest()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(Path(data.__file__).parents[2])}

    def start(number, count):
        devices = f"--xla_force_host_platform_device_count={2 // count}"
        flags = f"{os.environ['XLA_FLAGS']} {devices}"
        return subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(number), str(count), port],
            env={**environment, "XLA_FLAGS": flags},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    processes = [start(0, 1), start(0, 2), start(1, 2)]
    for out, err in [process.communicate(timeout=300) for process in processes]:
        # Gloo writes there too.
        assert [line for line in out.splitlines() if len(line) == 64] == [digest] * 2, err


def test_padding_is_centred_and_never_crops():
    images = np.ones((2, 3, 3, 1), np.uint8)
    padded = pad_to(images, 6)
    np.testing.assert_array_equal(padded[0, :, :, 0].any(axis=0), [0, 1, 1, 1, 0, 0])
    assert padded.sum() == images.sum()
    assert padded.dtype == np.uint8
    with pytest.raises(UserError, match="image_size"):
        pad_to(images, 2)


# Digits


@pytest.mark.parametrize(("size", "line"), [(0, ""), (8, ""), (11, r"digits: .* 8x8 .* 11x11 ")])
def test_padding_is_stated_where_there_is_some(size, line, capsys):
    found = data.load("digits", image_size=size)
    assert found.train.shape[1:] == found.test.shape[1:] == (size or 8, size or 8, 1)
    told = capsys.readouterr().out
    assert re.match(line, told) and bool(told) == bool(line)


def test_no_padding_is_stated_of_images_that_are_larger(capsys):
    with pytest.raises(UserError, match="image_size is 4"):
        data.load("digits", image_size=4)
    assert "padded" not in "".join(capsys.readouterr())


def test_digits_are_split_for_good():
    digits = load("digits", image_size=8)
    assert digits.shape == (8, 8, 1)
    assert (len(digits.train), len(digits.test), digits.levels) == (1437, 360, 17)
    assert digits.train.dtype == np.uint8
    assert (digits.train.min(), digits.train.max()) == (0, 16)
    assert digits.test.sum(dtype=int) == 112_811


def test_digits_are_stratified():
    from sklearn.datasets import load_digits

    images, labels = load_digits().images, load_digits().target
    train, test = stratified_split(labels)
    np.testing.assert_array_equal(load("digits", image_size=8).test[..., 0], images[test])
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(1797))
    fifths = np.bincount(labels) / 5
    assert np.abs(np.bincount(labels[test]) - fifths).max() <= 1


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install 'scoremle\[digits\]'"):
        load("digits")


@pytest.mark.parametrize("content", [None, b"", b"1,2\n3,4", b"a,b"])
def test_digits_that_scikit_learn_has_otherwise(content, tmp_path, monkeypatch):
    (tmp_path / "datasets/data").mkdir(parents=True)
    if content is not None:
        (tmp_path / "datasets/data/digits.csv.gz").write_bytes(gzip.compress(content))
    found = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(UserError, match=r"digits\.csv"):
        load("digits")


def test_digits_have_no_path():
    with pytest.raises(UserError, match="leave it empty"):
        load("digits", path="/somewhere")


# idx files


def idx_bytes(count: int, side: int = 28, magic: int = 0x803, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, count * side * side, np.uint8)
    return struct.pack(">4I", magic, count, side, side) + pixels.tobytes()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(9))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(5, seed=1)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 9) + bytes(9))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 5) + bytes(5))
    return tmp_path


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "Fashion_MNIST"])
def test_idx_files_plain_or_gzipped(folder, name):
    images = load(name, path=str(folder))
    assert (images.train.shape, images.test.shape) == ((9, 28, 28, 1), (5, 28, 28, 1))
    assert (images.levels, images.name) == (256, name.lower())
    assert images.test.tobytes() == idx_bytes(5, seed=1)[16:]


def test_idx_images_can_be_padded_to_32(folder):
    images = load("mnist", path=str(folder), image_size=32)
    assert images.shape == (32, 32, 1)
    np.testing.assert_array_equal(
        images.train[:, 2:-2, 2:-2], load("mnist", path=str(folder)).train
    )


DAMAGED = {
    "truncated: its header": idx_bytes(9)[:-1],
    "within its header": idx_bytes(9)[:10],
    "inconsistent: .*9 images": idx_bytes(9) + b"\0",
    "promises 0 images": idx_bytes(0),
    "images of 0x0": idx_bytes(9, side=0),
    "is 0x00000801": idx_bytes(9, magic=0x801),
    "images are 14x14": idx_bytes(9, side=14),
}


@pytest.mark.parametrize("message", DAMAGED)
def test_damaged_idx_file(folder, message):
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(DAMAGED[message])
    with pytest.raises(UserError, match=message) as error:
        load("mnist", path=str(folder))
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack(">2I", 0x801, 8) + bytes(8), "8 labels"),
        (struct.pack(">2I", 0x801, 10) + bytes(10), "10 labels"),
        (struct.pack(">2I", 0x803, 9) + bytes(9), "file of labels"),
        (struct.pack(">2I", 0x801, 9) + bytes(8), "9 labels"),
    ],
)
def test_damaged_labels(folder, content, message):
    (folder / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load("mnist", path=str(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(idx_bytes(5))[:-20], "damaged gzip"),
        (gzip.compress(idx_bytes(5))[:50] + b"\xff" * 200, "damaged"),
        (idx_bytes(5), "damaged gzip"),
    ],
)
def test_damaged_gzip(folder, content, message):
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load("mnist", path=str(folder))


def test_missing_file_says_where_it_looked(folder):
    (folder / "train-images-idx3-ubyte").unlink()
    with pytest.raises(UserError) as error:
        load("mnist", path=str(folder))
    assert "train-images-idx3-ubyte.gz" in str(error.value)
    assert str(folder) in str(error.value)


def test_missing_folder_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOREMLE_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"absent.*dataset-fashion-mnist"):
        load("fashion_mnist", path=str(tmp_path / "absent"))
    with pytest.raises(UserError, match="default place"):
        load("mnist")


@needs_fashion
def test_real_fashion_mnist():
    images = load("fashion_mnist")
    assert (len(images.train), len(images.test)) == (60_000, 10_000)
    assert images.shape == (28, 28, 1)
    # The published mean of the training pixels is 0.2860 of 255.
    assert images.train.mean() / 255 == pytest.approx(0.2860, abs=5e-5)


# The registry


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("digitz", {}, "mean digits"),
        ("CIFAR10", {}, "cifar-10-binary"),
        ("ImageNet", {}, "and the val"),
        ("digits", {"fit": "crop"}, "'crop', but digits"),
        ("digits", {"levels": 18}, "levels is 18"),
        ("digits", {"num_channels": 3, "image_size": 8}, "num_channels is"),
        ("digits", {"image_size": 4}, "image_size is"),
        ("digits", {"batch_size": 0}, "batch_size must"),
        ("digits", {"seed": -1}, "seed must"),
    ],
)
def test_what_cannot_be_loaded(name, fields, message):
    with pytest.raises(UserError, match=message):
        load(name, **fields)


OF_SIZE, OF_ANY = {"size", "fit"}, {"size", "channels", "fit"}
# Of each data set: the options that it takes, how many images its versions have, and what it
# comes with.
REGISTERED = {
    "digits": (set(), {}, "scikit-learn"), "synthetic": (set(), {}, "scoremle"),
    "mnist": (OF_SIZE, {}, ""), "fashion_mnist": (OF_SIZE, {}, ""), "emnist": (OF_SIZE, {}, ""),
    "cifar10": (set(), {"": (50_000, 10_000)}, ""),
    "cifar100": (set(), {"": (50_000, 10_000)}, ""),
    "imagenet": (set(), {"old": (1_281_149, 49_999), "new": (1_281_167, 50_000)}, ""),
    "svhn": (set(), {}, ""), "celeba": ({"size"}, {}, ""), "celebahq": (OF_ANY, {}, ""),
    "ffhq": (OF_ANY, {}, ""), "lsun": (OF_ANY, {}, ""), "images": (OF_ANY, {}, ""),
    "photos": ({"size", "channels"}, {}, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", data.DATASETS)
def test_a_data_set_is_registered_with_what_it_takes(name):
    dataset = data.DATASETS[name]
    assert dataset.name == name
    assert (dataset.options, dataset.counts, dataset.packaged) == REGISTERED[name]
    assert bool(dataset.needs) != bool(dataset.packaged)
    assert bool(dataset.place) == (name == "fashion_mnist")
    options = Options(size=1, channels=3, fit="crop", levels=4, test_fraction=0.2, skip_bad=True)
    kept = dataset._of_use(options)
    for option, unset in (("size", 0), ("channels", 0), ("fit", "")):
        taken = option in REGISTERED[name][0]
        assert getattr(kept, option) == (getattr(options, option) if taken else unset)
    assert (kept.levels, kept.test_fraction, kept.skip_bad) == (4, 0.2, True)


def labelled(number):
    return as_labels([0, number], 2, "here")


def stating(levels):
    return arrays._levels(np.asarray(levels), Path("here"))


def of_imagenet(side):
    chunk = Chunk(np.zeros((1, side, side, 3), np.uint8), "train", 1.0)
    return [*imagenet._of_one_size(iter([chunk]), Path("here"))]


def of_celeba(size):
    try:
        celeba.read_celeba(Path(__file__).parent, Options(size=size))
    except UserError as error:
        if "no list_eval_partition.txt" not in str(error):  # it looks for that with a fine size
            raise


def with_channels(count):
    return arrays.check_images(np.zeros((2, 4, 4, count), np.uint8), "here")


# What readers take, and what is just beyond.
ENDS = {
    labelled: ((2**31 - 1, -(2**31)), (2**31, -(2**31) - 1)),
    stating: ((2, 256), (1, 257, 0, [4])),
    of_imagenet: ((32, 64), (31, 33, 63, 65, 16)),
    of_celeba: ((1, 140), (0, 141)),
    with_channels: ((1, 3), (0, 2, 4)),
}


@pytest.mark.parametrize("take", ENDS, ids=lambda take: take.__name__)
def test_readers_take_the_ends_of_a_range_and_nothing_beyond(take):
    fine, bad = ENDS[take]
    for value in fine:
        take(value)
    for value in bad:
        with pytest.raises(UserError):
            take(value)


@pytest.mark.parametrize(("memory", "fits"), [(4 * 192, True), (4 * 192 - 1, False)])
def test_images_may_take_a_quarter_of_a_device(memory, fits, monkeypatch):
    images = ImageSet(np.zeros((3, 8, 8, 1), np.uint8), np.zeros((0, 8, 8, 1), np.uint8))
    device = Mock(memory_stats=lambda: {"bytes_limit": memory})
    monkeypatch.setattr("jax.local_devices", lambda: [device])
    assert isinstance(data.feed(images).batch_of(images), feeds.Prefetch) != fits
    for wanted, there in (("true", True), ("false", False)):
        batches = data.feed(images, wanted).batch_of(images)
        assert isinstance(batches, feeds.Prefetch) != there
    monkeypatch.setattr("jax.local_devices", lambda: [Mock(memory_stats=lambda: None)])
    monkeypatch.setattr(feeds, "USUAL_MEMORY", memory)
    assert isinstance(data.feed(images).batch_of(images), feeds.Prefetch) != fits
