"""Every reader of the program, each with a true file that is to be altered.

The module is imported before processes are forked: so nothing is computed by JAX until then.
"""

import contextlib
import functools
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

import scoremle
from helpers.run_subjects import RUN_SUBJECTS, Subject, check_prepared
from helpers.true_files import (
    IMAGES,
    LABELS,
    SCHEDULER,
    UNET,
    Files,
    as_json,
    cifar_batch,
    cifar_files,
    cifar_records,
    edm_tensors,
    faces,
    file,
    flax_state,
    idx,
    idx_files,
    imagenet_batch,
    imagenet_npz,
    in_npz,
    in_safetensors,
    in_tar_gz,
    npy,
    of_diffusers,
    of_edm,
    openai_flags,
    openai_tensors,
    packed_tar,
    packed_zip,
    parquet,
    picture,
    pictures,
    tensors,
    tensors_header,
    torch_state,
    with_checksums,
)  # fmt: skip
from scoremle import data, published
from scoremle.data.pieces import ImageKind, piece_images, pieces_of
from scoremle.experiment.own_images import read_images
from scoremle.published import safetensors

__all__ = ["SUBJECTS", "Subject"]


# Readers ---------------------------------------------------------------------------------------


def dataset(name: str, place: str = "", **options: Any) -> Callable[[Path], None]:
    """Prepares and opens what lies at the place, as a set of any number of images."""

    def read(folder: Path) -> None:
        found = data.Prepared(folder / "prepared")
        any_number = replace(data.DATASETS[name], counts={})
        any_number.prepare(folder / "source" / place, data.Options(**options), found.folder)
        check_prepared(found.folder)
        assert all(found.images(split).max() < found.meta["levels"] for split in ("train", "test"))

    return read


def check_pieces(folder: Path) -> None:
    """Every image of a source has pixels as a model takes them, or a reason."""
    for piece in pieces_of(folder / "source"):
        for _, image in piece_images(piece, ImageKind((32, 32, 3)), "crop"):
            check_taken(image.pixels, image.reason)


def check_own(folder: Path) -> None:
    """The same of the pictures of a folder that nobody has tidied."""
    with contextlib.redirect_stdout(io.StringIO()):
        source = folder / "source"
        reports, images = read_images(source, (32, 32, 3), 256, fit="crop", skip_bad=True)
    for report in reports:
        check_taken(report.pixels, report.reason)
    assert len(images) == sum(report.pixels is not None for report in reports)


def check_taken(pixels: np.ndarray | None, reason: str) -> None:
    if pixels is None:
        assert reason and "\n" not in reason
    else:
        assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8 and not reason


def check_tensors(folder: Path) -> None:
    """Arrays are those that the header declares, by another reading of it."""
    path = folder / "source" / "model.safetensors"
    found = safetensors.read(path)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    for name, array in found.items():
        assert safetensors.KINDS[header[name]["dtype"]] == array.dtype
        assert list(array.shape) == header[name]["shape"]
        array.tobytes()


def check_state(folder: Path) -> None:
    (path,) = (folder / "source").glob("checkpoint_1*")
    found = published.read(path)
    assert 0 <= found.step < 2**31 and 0 <= found.updates < 2**31
    assert isinstance(found.lr, float) and isinstance(found.ema_rate, float)
    for tree in (found.params, found.ema, found.mu, found.nu):
        for array in jax.tree.leaves(tree):
            assert isinstance(array, np.ndarray) and array.dtype.kind in "biufcV"
            array.tobytes()


def check_model(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        model = scoremle.load(folder / "source" / name)
        assert len(model.shape) == 3 and all(type(n) is int and n > 0 for n in model.shape)
        assert 0 < model.eps < 1 and model.pixels is not None
        x = jax.ShapeDtypeStruct((1, *model.shape), np.float32)
        label = jax.ShapeDtypeStruct((1,), np.int32) if model.origin.classes else None
        noise = model.condition_on(np.zeros(1, int)).noise if label else model.noise
        assert jax.eval_shape(noise, x, jax.ShapeDtypeStruct((1,), np.float32)).shape == x.shape

    return read


def heic() -> bytes:
    import pillow_heif

    pillow_heif.register_heif_opener()
    return picture("HEIF", np.repeat(np.repeat(IMAGES[0], 8, axis=0), 8, axis=1))


def own_pictures() -> Files:
    return {"1.bmp": picture("BMP", IMAGES[1])}


# The table -------------------------------------------------------------------------------------

CIFAR = in_tar_gz("cifar/data_batch_2", cifar_files)
MNIST, LABELLED = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"

SUBJECTS = {
    # Pictures, loose and packed
    **{
        f"a {kind}": Subject(
            functools.partial(picture, kind), file("train/0.png", pictures), dataset("images")
        )
        for kind in ("PNG", "JPEG", "WEBP", "BMP")
    },
    "a PNG with its checksums": Subject(
        lambda: picture("PNG"), file("train/0.png", pictures, with_checksums), dataset("images")
    ),
    "a picture that is fitted": Subject(
        lambda: picture("BMP"), file("train/0.png", pictures),
        dataset("images", size=16, fit="resize", channels=1, skip_bad=True),
    ),
    "a tar": Subject(lambda: packed_tar(pictures()), file("x.tar"), dataset("images", "x.tar")),
    "a tar.gz": Subject(
        lambda: packed_tar(pictures()), file("x.tar.gz", pack=gzip.compress),
        dataset("images", "x.tar.gz"),
    ),
    "a zip": Subject(lambda: packed_zip(pictures()), file("x.zip"), dataset("images", "x.zip")),
    "a photograph": Subject(lambda: picture("PNG"), file("a.png", pictures), dataset("photos")),
    "a parquet": Subject(
        parquet, file("train.parquet", lambda: {"test.parquet": parquet()}), dataset("images")
    ),
    **{
        f"a {kind} of one's own": Subject(
            functools.partial(picture, kind), file(f"0.{kind}", own_pictures), check_own
        )
        for kind in ("GIF", "TIFF", "PNG")
    },
    "a HEIC of one's own": Subject(heic, file("0.heic", own_pictures), check_own),
    "a shard": Subject(lambda: packed_tar(pictures()), file("x.tar"), check_pieces),
    "a shard of parquet": Subject(parquet, file("x.parquet"), check_pieces),
    "a shard of arrays": Subject(lambda: npy(IMAGES), file("x.npy"), check_pieces),
    "CelebA's partition": Subject(
        lambda: b"0.jpg 0\n1.jpg 1\n2.jpg 2\n", file("list_eval_partition.txt", faces),
        dataset("celeba", size=2),
    ),
    # Arrays and batches
    "a .npy": Subject(lambda: npy(IMAGES), file("x.npy"), dataset("images", "x.npy")),
    "a .npz": Subject(
        lambda: packed_zip({"train.npy": npy(IMAGES), "test.npy": npy(IMAGES)}), file("x.npz"),
        dataset("images", "x.npz"),
    ),
    "an array in a .npz": Subject(
        lambda: npy(IMAGES), file("x.npz", pack=in_npz), dataset("images", "x.npz")
    ),
    "idx images": Subject(lambda: idx(IMAGES[..., 0]), file(MNIST, idx_files), dataset("mnist")),
    "idx labels": Subject(
        lambda: idx(LABELS.astype(np.uint8)), file(LABELLED, idx_files), dataset("mnist")
    ),
    "an idx.gz": Subject(
        lambda: gzip.compress(idx(IMAGES[..., 0])),
        file(f"{MNIST}.gz", lambda: {n: c for n, c in idx_files().items() if n != MNIST}),
        dataset("emnist"),
    ),
    "a CIFAR pickle": Subject(
        cifar_batch, file("x.tar.gz", pack=CIFAR), dataset("cifar10", "x.tar.gz")
    ),
    "CIFAR records": Subject(
        cifar_records,
        file("test_batch.bin", lambda: {f"data_batch_{i}.bin": cifar_records()
                                        for i in range(1, 6)}),
        dataset("cifar10"),
    ),
    "an ImageNet pickle": Subject(
        imagenet_batch, file("val_data", lambda: {"train_data_batch_1": imagenet_batch()}),
        dataset("imagenet"),
    ),
    "an ImageNet .npz": Subject(
        imagenet_npz, file("val_data.npz", lambda: {"train_data_batch_1.npz": imagenet_npz()}),
        dataset("imagenet"),
    ),
    # What we wrote ourselves, sealed again
    **RUN_SUBJECTS,
    # Models of others
    "a .safetensors": Subject(tensors, file("model.safetensors"), check_tensors),
    "the header of a .safetensors": Subject(
        tensors_header, file("model.safetensors", pack=in_safetensors), check_tensors
    ),
    "a state of Flax": Subject(flax_state, file("checkpoint_1"), check_state),
    "a .pth": Subject(torch_state, file("checkpoint_1.pth"), check_state, share=0.5),
    "diffusers: the network": Subject(
        lambda: UNET, file("unet/config.json", of_diffusers, as_json), check_model(""), share=0.1
    ),
    "diffusers: the scheduler": Subject(
        lambda: SCHEDULER, file("scheduler/scheduler_config.json", of_diffusers, as_json),
        check_model(""), share=0.1,
    ),
    "diffusers: the index": Subject(
        lambda: json.loads(of_diffusers()["model_index.json"]),
        file("model_index.json", of_diffusers, as_json), check_model(""), share=0.05,
    ),
    "EDM: the fields": Subject(
        lambda: of_edm()["fields"], file("model.json", edm_tensors, as_json),
        check_model("model.safetensors"), share=0.1,
    ),
    "OpenAI: the flags": Subject(
        openai_flags, file("model.json", openai_tensors, as_json), check_model("model.pt"),
        share=0.1,
    ),
}  # fmt: skip
