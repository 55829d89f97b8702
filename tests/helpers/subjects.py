"""Every reader of the program, each with a true file that is to be altered.

The module is imported before processes are forked: so nothing is computed by JAX until then.
"""

import functools
import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import scoremle
from helpers.true_files import (
    DATA,
    IMAGES,
    LABELS,
    SCHEDULER,
    UNET,
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
    in_part,
    in_safetensors,
    in_tar_gz,
    mat,
    npy,
    of_diffusers,
    of_edm,
    openai_flags,
    openai_tensors,
    our_files,
    packed_tar,
    packed_zip,
    parquet,
    picture,
    pictures,
    prepared_files,
    results,
    sealed,
    tensors,
    tensors_header,
    tiny_config,
    torch_state,
    unsealed,
    with_checksums,
)  # fmt: skip
from scoremle import data, published
from scoremle.experiment.build import build
from scoremle.experiment.results import add_results, read_results
from scoremle.experiment.workdir import Workdir
from scoremle.published import safetensors
from scoremle.resumable import in_parts
from scoremle.training.writers import JsonLines

__all__ = ["SUBJECTS", "Subject"]


class Subject(NamedTuple):
    """What is read in a way of its own.

    ``content`` is to be altered: bytes, or what a JSON file says. ``put`` writes it into a folder,
    with all that lies beside it; it may pack it, so that an alteration lies below a checksum.
    ``read`` reads the folder as the program does, and asserts that what comes has the shape and
    type that the file declares. ``share`` is less than one where a reading takes long.
    """

    content: Callable[[], Any]
    put: Callable[[Path, Any], None]
    read: Callable[[Path], None]
    share: float = 1.0


# Readers ---------------------------------------------------------------------------------------


def check_images(images: np.ndarray, labels: np.ndarray | None, meta: Any, split: str) -> None:
    assert images.dtype == np.uint8 and images.flags.c_contiguous
    assert images.shape == (meta["counts"][split], *meta["shape"])
    if labels is not None:
        assert labels.dtype == np.int32 and labels.shape == images.shape[:1]


def dataset(name: str, place: str = "", **options: Any) -> Callable[[Path], None]:
    """Prepares and opens what lies at the place, as a set of any number of images."""

    def read(folder: Path) -> None:
        found = data.Prepared(folder / "prepared")
        any_number = replace(data.DATASETS[name], counts={})
        any_number.prepare(folder / "source" / place, data.Options(**options), found.folder)
        check_prepared(found.folder)
        assert all(found.images(split).max() < found.meta["levels"] for split in ("train", "test"))

    return read


def check_prepared(folder: Path) -> None:
    found = data.Prepared(folder)
    for split in ("train", "test"):
        check_images(found.images(split), found.labels(split), found.meta, split)


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
        label = jax.ShapeDtypeStruct((1,), np.int32) if getattr(model, "classes", 0) else None
        noise = model.given(np.zeros(1, int)).noise if label else model.noise
        assert jax.eval_shape(noise, x, jax.ShapeDtypeStruct((1,), np.float32)).shape == x.shape

    return read


def check_workdir(folder: Path) -> None:
    place = Workdir(folder / "source")
    experiment = build(place.config(), levels=place.levels())
    assert 2 <= experiment.model.pixels.levels <= 256
    assert len(experiment.data.shape) == 3


def check_results(folder: Path) -> None:
    found = read_results(folder / "source" / "results.json")
    add_results(folder / "source" / "results.json", {"another": {"mean": 1.0}})
    assert isinstance(found, dict)


def check_parts(folder: Path) -> None:
    from helpers import small_places

    rows = in_parts(small_places.work, 11, size=4, passes=2, folder=folder / "source")
    assert rows["bpd"].shape == rows["nfe"].shape == (2, 11)
    np.testing.assert_array_equal(rows["nfe"], 6)


def check_rows(folder: Path) -> None:
    path = folder / "source" / "metrics.jsonl"
    JsonLines(path).rewind(20)
    assert all(json.loads(line)["step"] <= 20 for line in path.read_text().splitlines())


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
        dataset("images", size=16, fit="resize", channels=1, skip_corrupt=True),
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
    **{
        f"a .mat, {'packed' if packed else 'plain'}": Subject(
            functools.partial(mat, packed),
            file("train_32x32.mat", lambda: {"test_32x32.mat": mat(True)}), dataset("svhn"),
        )
        for packed in (False, True)
    },
    # What we wrote ourselves, sealed again
    "meta.json": Subject(
        unsealed("meta.json"), file("meta.json", prepared_files, sealed),
        lambda folder: check_prepared(folder / "source"),
    ),
    "a prepared array": Subject(
        lambda: prepared_files()["train.npy"], file("train.npy", prepared_files),
        lambda folder: check_prepared(folder / "source"),
    ),
    "config.json": Subject(
        tiny_config, file("config.json", lambda: {"data.json": as_json(DATA)}, sealed),
        check_workdir, share=0.1,
    ),
    "data.json": Subject(
        lambda: DATA, file("data.json", lambda: {"config.json": as_json(tiny_config())}, sealed),
        check_workdir, share=0.1,
    ),
    "results.json": Subject(results, file("results.json", pack=as_json), check_results),
    "a part": Subject(
        lambda: our_files()["up/source/pass0_image0.npz"], file("pass0_image0.npz"), check_parts
    ),
    "an array of a part without a seal": Subject(
        lambda: npy(np.full(4, 3.5)), file("pass0_image0.npz", pack=in_part), check_parts
    ),
    "metrics.jsonl": Subject(
        lambda: b'{"step": 10, "loss": 0.5}\n{"step": 20, "loss": null}\n',
        file("metrics.jsonl"), check_rows,
    ),
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
