"""Every reader on small files laid out as the real ones; every hostile file is one clear line."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scoremle import data, files
from scoremle.data import archive as sources
from scoremle.data.fetch import ORIGINS
from scoremle.data.readers import pictures as reading_pictures
from scoremle.data.readers.base import Options
from scoremle.data.readers.celeba import _face
from scoremle.data.readers.cifar import rows_and_labels
from scoremle.data.readers.decoding import GREY, TURNED, UNPALETTED, decode_image
from scoremle.data.readers.fits import fitted
from scoremle.data.readers.pictures import ImageDecoder, split_of
from scoremle.errors import UserError

RNG = np.random.default_rng(0)


def pictures(count: int, height: int = 32, width: int = 32, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (count, height, width, channels), np.uint8)


def rows(images: np.ndarray) -> np.ndarray:
    """As CIFAR and ImageNet store them: red, green, blue."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


@pytest.fixture(autouse=True)
def any_number(monkeypatch):
    """Small sets in the place of whole ones."""
    for name, dataset in data.DATASETS.items():
        monkeypatch.setitem(data.DATASETS, name, replace(dataset, counts={}))


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Prepares what is at a path, and gives the folder; the shares that were read end at one."""
    shares = []
    told = contextlib.nullcontext(shares.append)
    monkeypatch.setattr("scoremle.data.prepare.progress", lambda *_: told)

    def run(name, path, **options):
        shares.clear()
        folder = tmp_path / f"prepared{len(list(tmp_path.glob('prepared*')))}"
        data.DATASETS[name].prepare(Path(path), Options(**options), folder)
        assert shares == sorted(shares) and 0.9 < shares[-1] <= 1
        return data.Prepared(folder)

    return run


def encoded(picture: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    image = picture
    if isinstance(picture, np.ndarray):
        image = Image.fromarray(picture.squeeze())
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def write_tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    modes = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz", ".tar": "w"}
    mode = modes[path.suffix]
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def packed(how: str, tmp_path: Path, files: dict[str, bytes]) -> Path:
    """The files as a folder, or as an archive with this suffix."""
    if how == "folder":
        return write_tree(tmp_path / "files", files)
    return write_archive(tmp_path / f"files{how}", files)


def with_sums(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files, and a checksum beside each, which is none of them."""
    return files | {f"{name}.md5": b"0" for name in files}


# CIFAR

CIFAR10 = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def cifar(images, labels, kind, *, hundred=False):
    """All files of CIFAR-10 or 100, a batch of images and labels each."""
    names = ["train", "test"] if hundred else CIFAR10
    files = {}
    for name, x, y in zip(names, images, labels, strict=True):
        if kind == "binary":
            coarse = [y // 5] if hundred else []
            records = np.concatenate([*(c[:, None] for c in coarse), y[:, None], rows(x)], axis=1)
            files[f"cifar/{name}.bin"] = records.astype(np.uint8).tobytes()
        else:
            key = b"fine_labels" if hundred else b"labels"
            batch = {b"data": rows(x), key: y.tolist(), b"filenames": [b"a.png"] * len(x)}
            files[f"cifar/{name}"] = pickle.dumps(batch, protocol=2)
    # An archive has them in any order, with other files between.
    return dict(sorted(files.items(), reverse=True)) | {"cifar/readme.html": b"<html>"}


@pytest.mark.parametrize("hundred", [False, True])
@pytest.mark.parametrize("kind", ["binary", "python"])
@pytest.mark.parametrize("how", ["folder", ".tar.gz"])
def test_cifar(kind, how, hundred, tmp_path, prepare):
    count = 2 if hundred else 6
    images = pictures(2 * count).reshape(count, 2, 32, 32, 3)
    labels = RNG.integers(0, 100 if hundred else 10, (count, 2))
    files = cifar(images, labels, kind, hundred=hundred)
    path = packed(how, tmp_path, with_sums(files))
    found = prepare("cifar100" if hundred else "cifar10", path)
    np.testing.assert_array_equal(found.images("train"), np.concatenate(images[:-1]))
    np.testing.assert_array_equal(found.images("test"), images[-1])
    np.testing.assert_array_equal(found.labels("train"), np.concatenate(labels[:-1]))
    np.testing.assert_array_equal(found.labels("test"), labels[-1])


def six(content: bytes, name: str, kind: str = "binary") -> dict[str, bytes]:
    """A small CIFAR-10 with one of its files replaced."""
    files = cifar(pictures(6).reshape(6, 1, 32, 32, 3), np.zeros((6, 1), int), kind)
    return files | {f"cifar/{name}": content}


class Evil:
    """Runs a command when it is unpickled in the ordinary way."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


class Sneaky:
    def __reduce__(self):
        return eval, ("1",)


ROWS = rows(pictures(2))
BAD_CIFAR = {
    "CIFAR batch: 3000": six(b"\0" * 3000, "test_batch.bin"),
    "no data_batch_3.bin": {k: v for k, v in six(b"", "x").items() if "3" not in k},
    "names posix.system": six(
        pickle.dumps(Evil()), "data_batch_2", "python"
    ),
    "names builtins.eval": six(
        pickle.dumps({"data": Sneaky()}), "data_batch_2", "python"
    ),
    "pickle of list": six(pickle.dumps([1]), "test_batch", "python"),
    "not a pickle": six(
        pickle.dumps({"data": ROWS, "labels": [1, 2]}, 2)[:-4000], "test_batch", "python"
    ),
    "3 labels": six(
        pickle.dumps({"data": ROWS, "labels": [1, 2, 3]}, 2), "test_batch", "python"
    ),
    "it lacks data": six(pickle.dumps({"labels": [1]}), "test_batch", "python"),
    "data is float64": six(
        pickle.dumps({"data": ROWS / 255, "labels": [1, 2]}, 2), "test_batch", "python"
    ),
}


@pytest.mark.parametrize("message", BAD_CIFAR)
def test_bad_cifar(message, tmp_path, prepare, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        prepare("cifar10", packed(".tar.gz", tmp_path, BAD_CIFAR[message]))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("label", [-1, 1 << 31, 1 << 70, True, 1.0, [1]])
def test_a_label_of_cifar_is_a_whole_number_below_2_to_the_31(label):
    rows = np.zeros((1, 12), np.uint8)
    with pytest.raises(UserError, match="its labels"):
        rows_and_labels({"data": rows, "labels": [label]}, "batch")
    _, labels = rows_and_labels({"data": rows, "labels": [(1 << 31) - 1]}, "batch")
    assert labels.tolist() == [(1 << 31) - 1]


# ImageNet


def imagenet(version: str, size: int = 32) -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    train, val = pictures(4, size, size), pictures(2, size, size)
    files = {}
    if version == "old":
        for part, images in ((f"train_{size}x{size}", train), (f"valid_{size}x{size}", val)):
            files |= {f"{part}/{i:05}.png": encoded(x) for i, x in enumerate(images)}
        return files, train, val
    for name, x in (("train_data_batch_1", train[:2]), ("train_data_batch_2", train[2:]),
                    ("val_data", val)):  # fmt: skip
        batch = {"data": rows(x), "labels": [i + 1 for i in range(len(x))]}
        if version == "npz":
            stream = io.BytesIO()
            np.savez(stream, **{k: np.asarray(v) for k, v in batch.items()})
            files[f"{name}.npz"] = stream.getvalue()
        else:
            files[name] = pickle.dumps(batch | {"mean": rows(x).mean(0)}, 2)
    return files, train, val


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("version", ["old", "npz", "pickle"])
def test_imagenet_says_which_it_is(version, size, tmp_path, prepare):
    files, train, val = imagenet(version, size)
    found = prepare("imagenet", write_tree(tmp_path / "files", with_sums(files)))
    np.testing.assert_array_equal(found.images("train"), train)
    np.testing.assert_array_equal(found.images("test"), val)
    assert found.meta["version"] == ("old" if version == "old" else "new")
    assert (found.labels("train") is None) == (version == "old")


def test_imagenet_from_archives_in_a_folder(tmp_path, prepare):
    files, train, val = imagenet("old")
    folder = tmp_path / "files"
    folder.mkdir()
    for part in ("train", "valid"):
        chosen = {name: content for name, content in files.items() if name.startswith(part)}
        write_archive(folder / f"{part}_32x32.tar", chosen)
    found = prepare("imagenet", folder)
    np.testing.assert_array_equal(found.images("train"), train)
    np.testing.assert_array_equal(found.images("test"), val)


def test_imagenets_do_not_mix(tmp_path, prepare):
    both = imagenet("old")[0] | imagenet("npz")[0]
    with pytest.raises(UserError, match="both the old"):
        prepare("imagenet", write_tree(tmp_path / "files", both))
    with pytest.raises(UserError, match="no ImageNet"):
        prepare("imagenet", write_tree(tmp_path / "empty", {"a.txt": b""}))
    other, _, _ = imagenet("old", 40)
    with pytest.raises(UserError, match="of 40x40"):
        prepare("imagenet", write_tree(tmp_path / "forty", other))
    nowhere = {"images/1.png": encoded(pictures(1)[0])}
    with pytest.raises(UserError, match=r"images/1\.png .*val"):
        prepare("imagenet", write_tree(tmp_path / "nowhere", nowhere))


# SVHN and CelebA


def svhn(x: np.ndarray, y: np.ndarray) -> bytes:
    from scipy.io import savemat

    stream = io.BytesIO()
    savemat(stream, {"X": x.transpose(1, 2, 3, 0), "y": y[:, None]}, do_compression=True)
    return stream.getvalue()


@pytest.fixture
def publish(monkeypatch):
    """Takes files for those that are published as SVHN."""

    def publish(files):
        known = ORIGINS["svhn"].files
        for name, content in files.items():
            monkeypatch.setitem(known, name, (len(content), sha256(content).hexdigest()))
        return files

    return publish


def test_svhn(tmp_path, prepare, publish):
    train, test = pictures(3), pictures(2)
    labels = np.array([10, 1, 9], np.uint8)
    files = {"train_32x32.mat": svhn(train, labels), "test_32x32.mat": svhn(test, labels[:2])}
    found = prepare("svhn", write_tree(tmp_path / "files", with_sums(publish(files))))
    np.testing.assert_array_equal(found.images("train"), train)
    np.testing.assert_array_equal(found.labels("train"), [0, 1, 9])
    np.testing.assert_array_equal(found.images("test"), test)


def test_of_svhn_the_published_files_alone_are_read(tmp_path, prepare):
    packed = svhn(pictures(2), np.ones(2, np.uint8))
    with pytest.raises(UserError, match="not the published"):
        prepare("svhn", write_tree(tmp_path / "others", {"test_32x32.mat": packed}))


def test_a_file_of_svhn_is_missing(tmp_path, prepare, publish):
    files = publish({"train_32x32.mat": svhn(pictures(2), np.ones(2, np.uint8))})
    with pytest.raises(UserError, match=r"no test_32x32\.mat"):
        prepare("svhn", write_tree(tmp_path / "one", files))


def test_a_file_of_svhn_is_there_twice(tmp_path, prepare, publish):
    files = publish({"test_32x32.mat": svhn(pictures(2), np.ones(2, np.uint8))})
    copies = {f"more/{name}": content for name, content in files.items()}
    with pytest.raises(UserError, match=r"remove more/test_32x32\.mat"):
        prepare("svhn", write_tree(tmp_path / "two", files | copies))


@pytest.mark.parametrize("zipped", [False, True])
def test_celeba_is_cropped_as_published(zipped, tmp_path, prepare):
    # The crop, columns 19 to 158 and rows 39 to 178, has one colour in each quarter.
    quarters = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 0]]], np.uint8)
    colours = np.stack([quarters - np.minimum(quarters, 60 * i) for i in range(4)])
    faces = np.zeros((4, 218, 178, 3), np.uint8)
    faces[:, 39:179, 19:159] = colours.repeat(70, 1).repeat(70, 2)
    names = [f"{i:06}.jpg" for i in range(1, 5)]
    # JPEG would blur colours: the format is told by the content, not by the name.
    files = {
        f"img_align_celeba/{name}": encoded(face) for name, face in zip(names, faces, strict=True)
    }
    partition = "".join(f"{name} {part}\n" for name, part in zip(names, "0012", strict=True))
    folder = tmp_path / "celeba"
    folder.mkdir()
    if zipped:
        write_archive(folder / "img_align_celeba.zip", files)
    else:
        write_tree(folder, files)
    (folder / "list_eval_partition.txt").write_text(partition)
    found = prepare("celeba", folder, size=2)
    # Triangles of 70 pixels to each side, cut off at the border, are 6/7 and 1/7 on the quarters.
    weights = np.array([[6, 1], [1, 6]]) / 7
    expected = np.einsum("ij,njkc,lk->nilc", weights, colours, weights)
    np.testing.assert_allclose(found.images("train"), expected[:2], rtol=0, atol=1)
    np.testing.assert_allclose(found.images("test"), expected[2:3], rtol=0, atol=1)  # partition 1
    assert found.meta["counts"] == {"train": 2, "test": 1}
    assert "140x140" in found.meta["crop"]


def test_celeba_needs_its_partition_and_a_size(tmp_path, prepare):
    folder = write_tree(tmp_path / "celeba", {"1.jpg": encoded(pictures(1)[0])})
    with pytest.raises(UserError, match=r"no list_eval_partition.txt"):
        prepare("celeba", folder, size=64)
    with pytest.raises(UserError, match="1 to 140"):
        prepare("celeba", folder)
    for number in ("nine", "01"):
        (folder / "list_eval_partition.txt").write_text(f"1.jpg {number}\n")
        with pytest.raises(UserError, match="file's name"):
            prepare("celeba", folder, size=64)
    (folder / "list_eval_partition.txt").write_text("2.jpg 0\n")
    with pytest.raises(UserError, match="list_eval_partition"):
        prepare("celeba", folder, size=64)


# idx files (damage: tests/test_data.py)


def test_emnist_is_set_upright(tmp_path, prepare):
    images, labels = pictures(3, 28, 28, 1)[..., 0], np.array([1, 0, 2], np.uint8)
    files = {}
    for split in ("train", "test"):
        x = struct.pack(">4I", 0x803, 3, 28, 28) + images.swapaxes(1, 2).tobytes()
        y = struct.pack(">2I", 0x801, 3) + labels.tobytes()
        files[f"emnist-letters-{split}-images-idx3-ubyte.gz"] = gzip.compress(x)
        files[f"emnist-letters-{split}-labels-idx1-ubyte.gz"] = gzip.compress(y)
    folder = write_tree(tmp_path / "files", with_sums(files))
    found = prepare("emnist", folder)
    np.testing.assert_array_equal(found.images("test")[..., 0], images)
    np.testing.assert_array_equal(found.labels("train"), labels)
    write_tree(folder, {"emnist-digits-train-images-idx3-ubyte.gz": b""})
    with pytest.raises(UserError, match="several sets"):
        prepare("emnist", folder)


# Pictures


@pytest.mark.parametrize("how", ["folder", ".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_a_folder_or_archive_of_pictures(how, tmp_path, prepare):
    images = pictures(6, 5, 7)
    kinds = ["PNG", "BMP", "WEBP", "PNG", "PNG", "PNG"]
    folders = ["train/cat", "train/cat", "train/dog", "test/cat", "test/dog", "test/dog"]
    exact = {"WEBP": {"lossless": True, "exact": True}}
    files = {
        f"./mine/{folder}/{i}.{kind.lower()}": encoded(x, kind, **exact.get(kind, {}))
        for i, (x, kind, folder) in enumerate(zip(images, kinds, folders, strict=True))
    }
    files |= {"mine/readme.txt": b"hello", "mine/.DS_Store": b"", "__MACOSX/._0.png": b"\0"}
    found = prepare("images", packed(how, tmp_path, files))
    np.testing.assert_array_equal(found.images("train"), images[:3])
    np.testing.assert_array_equal(found.images("test"), images[3:])
    np.testing.assert_array_equal(found.labels("train"), [0, 0, 1])
    assert found.meta["classes"] == ["cat", "dog"]
    assert (found.meta["split"], found.meta["shape"]) == ("given", [5, 7, 3])
    assert found.meta["notes"] == {"files that are not pictures, left out": 1}


def test_validation_images_are_for_testing_if_there_are_no_others(tmp_path, prepare):
    files = {f"{s}/{i}.png": encoded(pictures(1)[0]) for i, s in enumerate(["train", "val"])}
    folder = write_tree(tmp_path / "files", files)
    val = prepare("images", folder).images("test")
    write_tree(folder, {"test/1.png": encoded(pictures(1)[0])})
    both = prepare("images", folder)
    assert (both.images("test") != val).any()
    assert both.meta["notes"] == {"validation images, left out beside the test split": 1}
    assert {p.name for p in both.folder.glob("[!.]*")} == {"meta.json", "test.npy", "train.npy"}


def test_names_that_only_begin_like_splits_are_none():
    splits = ["train", "Train_32x32", "training", "test-00000", "val", "validation", "valid_32x32"]
    assert [split_of(f"a/{name}") for name in splits] == [
        "train", "train", "train", "test", "val", "val", "val",
    ]  # fmt: skip
    for name in ("valley", "trains", "testimonials", "a", "latest"):
        assert split_of(name) is None


def one_and(tmp_path: Path, content: bytes, name: str = "b.png", **first) -> Path:
    """A folder with some sound pictures and one to be tested."""
    files = {f"a{i}.png": encoded(x) for i, x in enumerate(pictures(20, **first))}
    return write_tree(tmp_path / "files", files | {name: content})


def png16() -> bytes:
    """A colour PNG with 16 bits, which Pillow can't write."""
    import zlib

    def block(kind: bytes, content: bytes) -> bytes:
        return (struct.pack(">I", len(content)) + kind + content
                + struct.pack(">I", zlib.crc32(kind + content)))  # fmt: skip

    lines = b"".join(b"\0" + bytes(6 * 32) for _ in range(32))
    return (b"\x89PNG\r\n\x1a\n" + block(b"IHDR", struct.pack(">2I5B", 32, 32, 16, 2, 0, 0, 0))
            + block(b"IDAT", zlib.compress(lines)) + block(b"IEND", b""))  # fmt: skip


def animation() -> bytes:
    frames = [Image.fromarray(x) for x in pictures(2)]
    return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])


def bomb() -> bytes:
    """Ten thousand by ten thousand pixels in a few kilobytes."""
    return encoded(Image.new("1", (10_000, 10_000)))


X = pictures(1)[0]
RGBA = np.concatenate([X, np.full((32, 32, 1), 128, np.uint8)], axis=2)
UNUSABLE = {
    "not PNG": b"<html>not found</html>",
    "file is truncated": encoded(X)[:-900],
    "a decompression bomb": bomb(),
    "it is empty": b"",
}


@pytest.mark.parametrize("message", UNUSABLE)
def test_pictures_that_cannot_be_used_are_named_and_skipped_only_on_request(
    message, tmp_path, prepare
):
    folder = one_and(tmp_path, UNUSABLE[message])
    with pytest.raises(UserError) as error:
        prepare("images", folder)
    text = str(error.value)
    assert "b.png (" in text and message in text and "\n" not in text
    found = prepare("images", folder, skip_bad=True, test_fraction=0.5)
    assert found.meta["skipped"] == ["b.png"]
    assert sum(found.meta["counts"].values()) == 20


def test_a_folder_that_can_not_be_read_is_not_left_out(tmp_path, monkeypatch):
    for name in ("a", ".a"):
        (tmp_path / name).mkdir()
    scan = os.scandir

    def refuse(place):
        if place == str(shut):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)
    shut = tmp_path / "a"
    with pytest.raises(UserError, match="Permission denied"):
        sources.listing(tmp_path)
    shut = tmp_path / ".a"  # what a system hides may be its own
    assert sources.listing(tmp_path) == {}


TAKEN = {
    "cut to 8 bits": png16(),
    "put on white where": encoded(RGBA),
    "made RGB of CMYK": encoded(Image.fromarray(X).convert("CMYK"), "JPEG"),
    "first of several frames": animation(),
}


@pytest.mark.parametrize("change", TAKEN)
def test_pictures_are_changed_as_score_changes_them_and_counted(change, tmp_path, prepare):
    folder = one_and(tmp_path, TAKEN[change])
    found = prepare("images", folder, test_fraction=0.5)
    assert sum(found.meta["counts"].values()) == 21 and not found.meta["skipped"]
    (count,) = [count for note, count in found.meta["notes"].items() if change in note]
    assert count == 1
    wanted = decode_image("b.png", TAKEN[change], (32, 32, 3)).pixels
    taken = np.concatenate([found.images(split) for split in ("train", "test")])
    assert any((image == wanted).all() for image in taken)


def test_many_unusable_pictures_are_counted(tmp_path, prepare):
    folder = write_tree(tmp_path / "files", {f"{i}.png": b"no" for i in range(9)})
    with pytest.raises(UserError, match=r"0\.png .*4 more"):
        prepare("images", folder)


def both_splits(picture: bytes, tmp_path: Path, suffix: str) -> Path:
    return write_tree(tmp_path / "files", {f"{s}/1{suffix}": picture for s in ("train", "test")})


def test_palettes_and_opaque_alpha_are_written_out(tmp_path, prepare):
    palette = Image.fromarray(X).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    for suffix in (".png", ".gif"):
        content = encoded(palette, suffix[1:].upper())
        found = prepare("images", both_splits(content, tmp_path / suffix[1:], suffix))
        np.testing.assert_array_equal(found.images("train")[0], expected)
        assert found.meta["notes"] == {UNPALETTED: 2}
    opaque = np.concatenate([X, np.full((32, 32, 1), 255, np.uint8)], axis=2)
    found = prepare("images", both_splits(encoded(opaque), tmp_path / "a", ".png"))
    np.testing.assert_array_equal(found.images("train")[0], X)


def test_pictures_are_turned_upright(tmp_path, prepare):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    content = encoded(pictures(1, 20, 30)[0], "PNG", exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(content)))
    found = prepare("images", both_splits(content, tmp_path, ".png"))
    np.testing.assert_array_equal(found.images("train")[0], np.rot90(stored, -1))
    assert found.meta["notes"] == {TURNED: 2}


def test_colours_that_are_changed_are_counted(tmp_path):
    for name, shape in (("train/a", (8, 8, 3)), ("train/b", (8, 8)), ("test/c", (8, 8, 3))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    found = data.lookup("images").find(str(tmp_path), Options(channels=1))
    assert found.meta["notes"] == {GREY: 2}


def test_sizes_and_channels_are_never_changed_in_silence(tmp_path, prepare):
    folder = one_and(tmp_path, encoded(pictures(1, 40, 30)[0]))
    with pytest.raises(UserError, match=r"40x30 RGB.+one size"):
        prepare("images", folder)
    with pytest.raises(UserError, match="not 32x32"):
        prepare("images", folder, size=32)
    (folder / "b.png").write_bytes(encoded(pictures(1, channels=1)[0]))
    with pytest.raises(UserError, match=r"32x32 grey.+3 channels"):
        prepare("images", folder)
    for channels in (1, 3):
        found = prepare("images", folder, channels=channels, test_fraction=0.5)
        assert found.meta["shape"] == [32, 32, channels]
    with pytest.raises(UserError, match=r"21 images .*enlarged"):
        prepare("images", folder, size=48, fit="resize", channels=1)


def test_crop_and_resize(tmp_path, prepare):
    picture = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8, 1) * 5
    folder = both_splits(encoded(picture), tmp_path, ".png")
    cropped = prepare("images", folder, size=2, fit="crop").images("train")[0]
    np.testing.assert_array_equal(cropped, picture[2:4, 3:5])
    resized = prepare("images", folder, size=3, fit="resize").images("train")[0, ..., 0]
    # The triangle of two pixels' width on each side, in the middle of the 6x6 square.
    rows_ = picture[:, 1:7, 0].astype(float)
    weights = np.array([1, 3, 3, 1]) / 8
    middle = weights @ rows_[1:5, 1:5] @ weights
    assert resized.shape == (3, 3) and abs(resized[1, 1] - middle) <= 1


def test_arrays_are_fitted_as_pictures_are():
    images, options = pictures(3, 6, 9, 1), Options(size=4, channels=1, fit="crop")
    found = fitted(images, options)
    alone = [ImageDecoder(options)("a", encoded(image)).pixels for image in images]
    np.testing.assert_array_equal(found, alone)
    np.testing.assert_array_equal(found, images[:, 1:5, 2:6])


@pytest.mark.parametrize("fit", ["crop", "resize"])
@pytest.mark.parametrize("shape", [(3, 9), (9, 3)])
def test_one_side_that_is_too_small_is_enough(fit, shape):
    """For a picture, a face of CelebA and an array: else it would get black borders."""
    options, image = Options(size=4, channels=1, fit=fit), np.full((*shape, 1), 9, np.uint8)
    assert "enlarged" in ImageDecoder(options)("a", encoded(image)).reason
    with pytest.raises(UserError, match="smaller"):
        fitted(image[None], options)
    face = image.repeat(45, axis=0).repeat(45, axis=1)  # a side of 135 or 405; 140 are cropped
    assert "enlarged" in _face("a", encoded(face), 4).reason


# Archives and folders that are hostile


def member(name: str, **fields) -> bytes:
    """A tar of one member with this name."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo(name)
        for field, value in fields.items():
            setattr(info, field, value)
        archive.addfile(info, io.BytesIO(b"\0" * info.size))
    return stream.getvalue()


@pytest.mark.parametrize(
    "name",
    ["../x.png", "a/../../x.png", "/etc/x.png", "C:/x.png", "..\\x.png", "a\\..\\..\\x.png",
     "\\x.png", "a\\../..\\x.png", "C:\\x.png"],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_names_that_point_out_of_an_archive(name, suffix, tmp_path, prepare):
    path = write_archive(tmp_path / f"x{suffix}", {name: encoded(X)})
    with pytest.raises(UserError, match="points out"):
        prepare("images", path)


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_a_colon_in_a_name_is_no_drive(suffix, tmp_path, prepare):
    files = {f"2024-01-01 12:{i}.png": encoded(each) for i, each in enumerate(pictures(40))}
    files |= {"a:b/c.png": encoded(255 - X)}
    found = prepare("images", write_archive(tmp_path / f"x{suffix}", files))
    assert sum(found.meta["counts"].values()) == 41


def test_links_are_not_followed_and_pipes_not_read(tmp_path, prepare, caplog):
    secret = write_tree(tmp_path / "secret", {"s.png": encoded(X), "d/t.png": encoded(X)})
    folder = one_and(tmp_path, encoded(X), "sub/b.png")
    (folder / "out.png").symlink_to(secret / "s.png")
    (folder / "outside").symlink_to(secret / "d")
    (folder / "inside.png").symlink_to(folder / "sub" / "b.png")
    os.mkfifo(folder / "pipe.png")
    found = prepare("images", folder, test_fraction=0.5)
    assert sum(found.meta["counts"].values()) == 22
    words = "links that are not followed, and what is not a plain file, are not read: "
    assert words + "'out.png', 'outside', 'pipe.png'\n" in caplog.text
    link = tmp_path / "link.tar"
    link.write_bytes(member("a\n.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"))
    with pytest.raises(UserError, match="no images"):
        prepare("images", link)
    assert f"link.tar: {words}'a\\n.png'\n" in caplog.text
    (report,), _ = reading_pictures.decode_folder(link, (4, 4, 3), "", lambda share: None)
    assert report.name == "a\n.png" and "not followed" in report.reason  # where each is listed
    packed = zipfile.ZipInfo("b.png")
    packed.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(packed, "/etc/passwd")
    with pytest.raises(UserError, match="no images"):
        prepare("images", tmp_path / "link.zip")
    assert f"link.zip: {words}'b.png'\n" in caplog.text


def test_bombs(tmp_path, prepare, monkeypatch):
    zeros = b"\0" * (65 << 20)
    for suffix in (".zip", ".tar.gz"):
        path = write_archive(tmp_path / f"bomb{suffix}", {"a.bin": zeros, "a.png": b""})
        with pytest.raises(UserError, match="200 times"):
            prepare("images", path)
    np.savez_compressed(tmp_path / "bomb.npz", train=np.zeros((20_000, 64, 64), np.uint8))
    with pytest.raises(UserError, match="200 times"):
        prepare("images", tmp_path / "bomb.npz")
    # What each member may have: a picture, and in a tar also what is passed over.
    monkeypatch.setattr(reading_pictures, "MAX_PICTURE", 1000)
    for suffix in (".tar", ".tar.xz", ".zip"):
        path = write_archive(tmp_path / f"large{suffix}", {"a.png": b"\0" * 1001})
        with pytest.raises(UserError, match="1001 bytes"):
            prepare("images", path)
    monkeypatch.setattr(sources.bounded, "MAX_FILE", 2000)
    path = write_archive(tmp_path / "other.tar", {"a.bin": b"\0" * 2001, "a.png": b""})
    with pytest.raises(UserError, match="2001 bytes"):
        prepare("images", path)


def test_a_gzip_bomb_is_not_unpacked(tmp_path, prepare):
    header = struct.pack(">4I", 0x803, 2, 28, 28)
    for name in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"):
        (tmp_path / name).write_bytes(gzip.compress(header + b"\0" * (100 << 20)))
    with pytest.raises(UserError, match="1584 bytes"):
        prepare("mnist", tmp_path)


def test_what_is_hashed_without_being_read(tmp_path):
    contents = {"a.npy": b"one", "b/c.npy": b"two", "b/d.txt": b"three", ".e.npy": b"four"}
    folder = write_tree(tmp_path / "files", contents)
    parts = [n.encode() + b"\0" + sha256(contents[n]).digest() for n in ("a.npy", "b/c.npy")]
    found = sources.Source(folder).hash(lambda name: name.endswith(".npy"))
    assert found == sha256(b"".join(parts)).hexdigest()
    read = sources.Source(folder)
    assert len(list(read.files(lambda name: name.endswith(".npy")))) == 2
    assert read.sha256() == found


def test_long_names_and_several_streams(tmp_path, prepare):
    """What is refused at 2 GiB is read at the lengths that are real."""
    images = pictures(2)
    folder = "/".join("b" * 200 for _ in range(20))
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
            for split, image in zip(("train", "test"), images, strict=True):
                info = tarfile.TarInfo(f"{split}/{folder}/a.png")
                info.size = len(content := encoded(image))
                archive.addfile(info, io.BytesIO(content))
        whole = stream.getvalue()
        path = tmp_path / "x.tar.gz"
        path.write_bytes(gzip.compress(whole[:5000]) + gzip.compress(whole[5000:]))
        found = prepare("images", path)
        np.testing.assert_array_equal(found.images("train"), images[:1])
        np.testing.assert_array_equal(found.images("test"), images[1:])


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_header_that_is_too_long_is_refused(form, tmp_path, prepare, monkeypatch):
    name = "/".join("b" * 200 for _ in range(200))
    monkeypatch.setattr(sources.bounded, "MAX_HEADER", 30_000)  # tarfile reads 10,240 at once
    with tarfile.open(tmp_path / "x.tar", mode="w", format=form) as archive:
        archive.addfile(tarfile.TarInfo(f"{name}/a.png"))
    with pytest.raises(UserError, match="header of a"):
        prepare("images", tmp_path / "x.tar")


@pytest.mark.parametrize("suffix, packer", [("gz", gzip), ("bz2", bz2), ("xz", lzma)])
def test_archives_of_several_streams(suffix, packer, tmp_path, prepare):
    """Programs that pack by several processors write a stream for each block."""
    images = pictures(4)
    files = {f"{i}.png": encoded(x) for i, x in enumerate(images)}
    tar = write_archive(tmp_path / "x.tar", files).read_bytes()
    parts, zeros = (tar[:700], tar[700:5000], b"", tar[5000:]), bytes(8) * (packer is lzma)
    packed = tmp_path / f"x.tar.{suffix}"
    packed.write_bytes(b"".join(packer.compress(part) + zeros for part in parts))
    found = prepare("images", packed)
    assert len(found.images("train")) + len(found.images("test")) == len(images)


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_damaged_archives(suffix, tmp_path, prepare):
    files = {f"{i}.png": encoded(x) for i, x in enumerate(pictures(9))}
    path = write_archive(tmp_path / f"x{suffix}", files)
    for content in (path.read_bytes()[:15_000], b"no archive", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged archive"):
            prepare("images", path)


def test_archives_that_cannot_be_read(tmp_path, prepare, monkeypatch):
    path = write_archive(tmp_path / "x.zip", {"a.png": encoded(X)})

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "handle_of", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        prepare("images", path)


# Arrays


def test_arrays(tmp_path, prepare):
    images, labels = pictures(40, 4, 6, 1), np.arange(40) % 3
    np.save(tmp_path / "x.npy", images[..., 0])
    by_content = prepare("images", tmp_path / "x.npy")
    both = np.concatenate([by_content.images(s) for s in ("train", "test")])
    np.testing.assert_array_equal(np.unique(both, axis=0), np.unique(images, axis=0))
    arrays = {
        "train": images[:30], "test": images[30:], "levels": np.array(256),
        "train_labels": labels[:30], "test_labels": labels[30:],
    }  # fmt: skip
    np.savez(tmp_path / "x.npz", **arrays)
    (tmp_path / "folder").mkdir()
    for name in arrays.keys() - {"levels"}:
        np.save(tmp_path / "folder" / f"{name}.npy", arrays[name])
    for path in (tmp_path / "x.npz", tmp_path / "folder"):
        found = prepare("images", path)
        np.testing.assert_array_equal(found.images("train"), images[:30])
        np.testing.assert_array_equal(found.images("test"), images[30:])
        np.testing.assert_array_equal(found.labels("test"), labels[30:])


BAD_ARRAYS = [
    (np.ones((3, 4, 4)) / 2, r"255 \* array"),
    (np.linspace(-1, 1, 48).reshape(3, 4, 4), r"127\.5"),
    (np.full((3, 4, 4), 200), r"save array\.round"),
    (np.full((3, 4, 4), 4000), r"0\.\.255"),
    (np.zeros((3, 4, 4), bool), "bool, not uint8"),
    (np.zeros((3, 3, 8, 8), np.uint8), "channels come first"),
    (np.zeros((8, 8), np.uint8), r"shape \(8, 8\)"),
    (np.zeros((0, 8, 8), np.uint8), "no images"),
    (np.zeros((8, 8, 1), np.uint8), r"array\[None\]"),
    (np.zeros((8, 9, 3), np.uint8), r"array\[None\]"),
    (np.array([{}]), "pickled objects"),
]


@pytest.mark.parametrize(("array", "message"), BAD_ARRAYS)
def test_arrays_that_are_no_images(array, message, tmp_path, prepare):
    for kind, save in ((".npy", np.save), (".npz", np.savez)):
        path = tmp_path / f"x{kind}"
        save(path, array, allow_pickle=True)
        with pytest.raises(UserError, match=message) as error:
            prepare("images", path)
        assert "\n" not in str(error.value)


def test_more_bad_arrays(tmp_path, prepare):
    path = tmp_path / "x.npz"
    images = pictures(4, 8, 8, 1)
    np.savez(path, train=images, test=images, levels=17)
    with pytest.raises(UserError, match="17 levels"):
        prepare("images", path)
    np.savez(path, a=images, b=images)
    with pytest.raises(UserError, match="arrays a, b"):
        prepare("images", path)
    np.savez(path, train=images, train_labels=np.zeros(3, int), test=images)
    with pytest.raises(UserError, match="3 labels"):
        prepare("images", path)
    np.savez(path, train=images, test=images)
    with pytest.raises(UserError, match="fit=crop"):
        prepare("images", path, size=4, fit="crop")
    with pytest.raises(UserError, match="8x8x1"):
        prepare("images", path, size=4)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="as an array"):
        prepare("images", path)
    np.save(tmp_path / "x.npy", images)
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-1])
    with pytest.raises(UserError, match="as an array"):
        prepare("images", tmp_path / "x.npy")


# Photographs


def test_photographs_are_split_whole(tmp_path, prepare):
    photos = [np.full((70, 100, 3), 20 * i, np.uint8) for i in range(1, 11)]
    photos[0] = np.arange(70 * 100 * 3).reshape(70, 100, 3).astype(np.uint8)
    files = {f"{i}.png": encoded(x) for i, x in enumerate(photos)}
    found = prepare("photos", write_tree(tmp_path / "files", files), test_fraction=0.3)
    assert found.meta["counts"] == {"train": 7 * 6, "test": 3 * 6}
    assert found.meta["notes"] == {"photographs for training": 7, "photographs for testing": 3}
    colours = [set(found.images(s)[:, 0, 0, 0].tolist()) for s in ("train", "test")]
    assert not colours[0] & colours[1] & {20 * i for i in range(2, 11)}
    # The grid of 2x3 patches, centred: 3 rows and 2 columns are cut off before it.
    everything = np.concatenate([found.images(s) for s in ("train", "test")])
    patch = photos[0][3 + 32 : 3 + 64, 2 + 64 : 2 + 96]
    assert (everything == patch).all(axis=(1, 2, 3)).sum() == 1


def test_photographs_that_give_no_patches_are_named(tmp_path, prepare):
    files = {f"{i}.png": encoded(pictures(1, 8, 8, 1)[0]) for i in range(12)}
    small = {"small.png": encoded(pictures(1, 3, 9, 1)[0]), "text.png": b"text"}
    folder = write_tree(tmp_path / "files", files | small)
    with pytest.raises(UserError, match=r"small\.png \(it .*4x4"):
        prepare("photos", folder, size=4, test_fraction=0.5)
    found = prepare("photos", folder, size=4, test_fraction=0.5, skip_bad=True)
    assert len(found.images("train")) + len(found.images("test")) == 12 * 4
    assert found.meta["skipped"] == ["small.png", "text.png"]
    write_tree(folder, {"zz.png": encoded(pictures(1, 8, 8, 3)[0])})
    with pytest.raises(UserError, match="channels, others"):
        prepare("photos", folder, size=4, test_fraction=0.5, skip_bad=True)


def test_one_photograph_cannot_be_split(tmp_path, prepare):
    files = {"a.png": encoded(X), "copy.png": encoded(X)}
    with pytest.raises(UserError, match="different photographs"):
        prepare("photos", write_tree(tmp_path / "files", files))


def test_real_photographs(tmp_path, prepare):
    images = pytest.importorskip("sklearn.datasets").load_sample_images().images
    files = {f"{i}.png": encoded(x) for i, x in enumerate(images)}
    found = prepare("photos", write_tree(tmp_path / "files", files))
    assert found.meta["counts"] == {"train": 13 * 20, "test": 13 * 20}
    whole = {image[5:421].sum() for image in images}  # the 416 rows of whole patches
    assert {found.images(s).sum() for s in ("train", "test")} == whole


# Parquet


def test_parquet_without_pyarrow(tmp_path, prepare, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'scoremle\[hf\]'"):
        prepare("images", write_tree(tmp_path / "f", {"a.parquet": b""}))


def test_parquet(tmp_path, prepare):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    images, labels = pictures(5), [3, 1, 2, 0, 1]
    folder = tmp_path / "data"
    folder.mkdir()
    halves = ("train", slice(0, 3), "PARQUET"), ("test", slice(3, 5), "parquet")
    for split, chosen, ending in halves:
        cells = [{"bytes": encoded(x), "path": "x.png"} for x in images[chosen]]
        table = pa.table({"img": cells, "label": labels[chosen]})
        pq.write_table(table, folder / f"{split}-00000-of-00001.{ending}")
    found = prepare("images", folder)
    np.testing.assert_array_equal(found.images("train"), images[:3])
    np.testing.assert_array_equal(found.images("test"), images[3:])
    np.testing.assert_array_equal(found.labels("train"), labels[:3])
    pq.write_table(table.drop_columns("label"), folder / "test-2.parquet")
    assert prepare("images", folder).labels("train") is None  # some lack them
    pq.write_table(pa.table({"text": ["a"]}), folder / "test-2.parquet")
    with pytest.raises(UserError, match="encoded pictures"):
        prepare("images", folder)
    twice = pa.Table.from_arrays([pa.array([b"x"]), pa.array([b"y"])], names=["img", "img"])
    pq.write_table(twice, folder / "test-2.parquet")
    with pytest.raises(UserError, match="the same name"):
        prepare("images", folder)
    (folder / "test-2.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="no parquet file"):
        prepare("images", folder)
    pq.write_table(pa.table({"img": [{"bytes": None, "path": "x"}]}), folder / "test-2.parquet")
    with pytest.raises(UserError, match=r"is empty|no column"):
        prepare("images", folder)


def test_anything_else(tmp_path, prepare):
    with pytest.raises(UserError, match="folder of images"):
        prepare("images", write_tree(tmp_path / "f", {"a.txt": b""}) / "a.txt")
    with pytest.raises(UserError, match="no images"):
        prepare("images", tmp_path / "f")
