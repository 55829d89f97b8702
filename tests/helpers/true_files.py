"""True files of every kind that the program reads, small, and what a reader may give of them.

A subject has a content to be altered: bytes, or what a JSON file says. ``put`` writes it into a
folder, with all that lies beside it; it may pack it, so that an alteration lies below a checksum.
``read`` reads the folder as the program does, and asserts that what comes is of the shape and type
that the file declares. ``share`` is less than one where a reading takes long.

The module is imported before processes are forked: so nothing is computed by JAX until then.
"""

import functools
import gzip
import io
import json
import pickle
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from PIL import Image

import scoremle
from helpers.places import GOLDEN
from helpers.published_folder import FOLDER
from helpers.weights import drawn
from scoremle import data, published
from scoremle.experiment.build import build
from scoremle.experiment.results import add_results, read_results
from scoremle.experiment.workdir import Workdir
from scoremle.files import SEAL, seal
from scoremle.nn.unet2d import UNet2D
from scoremle.published import safetensors, state_dict
from scoremle.resumable import in_parts
from scoremle.training.writers import JsonLines

__all__ = ["SUBJECTS", "Subject"]

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 32, 32, 3), np.uint8)
LABELS = np.array([1, 0, 2])
ROWS = IMAGES.transpose(0, 3, 1, 2).reshape(3, -1)


class Subject(NamedTuple):
    content: Callable[[], Any]
    put: Callable[[Path, Any], None]
    read: Callable[[Path], None]
    share: float = 1.0


# Ways of writing -------------------------------------------------------------------------------


def write(files: dict[str, bytes]) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    return run


def file(name: str, beside: Callable[[], dict[str, bytes]] = dict, pack: Callable = bytes):
    """The content as the file of this name, packed in this way, and others beside it."""

    def put(folder: Path, content: Any) -> None:
        write({**beside(), name: pack(content)})(folder)

    return put


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode()


def sealed(content: Any) -> bytes:
    """As if it had been written so."""
    whole = isinstance(content, dict)
    return as_json({**content, SEAL: seal(content)} if whole else content)


def in_npz(member: bytes) -> bytes:
    return packed_zip({"train.npy": member, "test.npy": npy(IMAGES)})


def in_tar_gz(name: str, files: Callable[[], dict[str, bytes]]) -> Callable[[bytes], bytes]:
    return lambda content: gzip.compress(packed_tar({**files(), name: content}), 1)


def with_checksums(png: bytes) -> bytes:
    """Each chunk of a PNG with the checksum of what it has."""
    parts, place = [png[:8]], 8
    while place + 8 <= len(png):
        (length,) = struct.unpack_from(">I", png, place)
        if place + 12 + length > len(png):
            break
        body = png[place + 4 : place + 8 + length]
        parts.append(struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body)))
        place += 12 + length
    return b"".join([*parts, png[place:]])


def in_safetensors(header: Any) -> bytes:
    """A header before the bytes that it tells of."""
    return struct.pack("<Q", len(as_json(header))) + as_json(header) + bytes(24)


def in_part(values: bytes) -> bytes:
    """A part as earlier versions wrote it."""
    rest = {"nfe": np.full(4, 6), "place": np.zeros(2, int)}
    return packed_zip({"bpd.npy": values} | {f"{name}.npy": npy(a) for name, a in rest.items()})


# True contents ---------------------------------------------------------------------------------


def picture(kind: str, image: np.ndarray = IMAGES[0]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def packed_zip(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def packed_tar(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def pictures() -> dict[str, bytes]:
    return {f"{split}/{i}.png": picture("PNG", IMAGES[i]) for split in ("train", "test")
            for i in range(2)}  # fmt: skip


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 | array.ndim, *array.shape) + array.tobytes()


def idx_files() -> dict[str, bytes]:
    grey, labels = IMAGES[..., 0], LABELS.astype(np.uint8)
    return {f"{split}-{kind}-ubyte": idx(array) for split in ("train", "t10k")
            for kind, array in (("images-idx3", grey), ("labels-idx1", labels))}  # fmt: skip


def cifar_batch() -> bytes:
    return pickle.dumps({b"data": ROWS, b"labels": LABELS.tolist()}, 2)


def cifar_files() -> dict[str, bytes]:
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return {f"cifar/{name}": cifar_batch() for name in names}


def cifar_records() -> bytes:
    return np.concatenate([LABELS[:, None], ROWS], axis=1).astype(np.uint8).tobytes()


def imagenet_batch() -> bytes:
    return pickle.dumps({"data": ROWS, "labels": [1, 2, 3], "mean": ROWS.mean(0)}, 4)


def imagenet_npz() -> bytes:
    return packed_zip({"data.npy": npy(ROWS), "labels.npy": npy(LABELS + 1)})


def mat(packed: bool) -> bytes:
    from scipy.io import savemat

    stream = io.BytesIO()
    content = {"X": IMAGES.transpose(1, 2, 3, 0), "y": LABELS[:, None].astype(np.uint8)}
    savemat(stream, content, do_compression=packed)
    return stream.getvalue()


def parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": picture("PNG", image)} for image in IMAGES]
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": LABELS}), stream)
    return stream.getvalue()


def faces() -> dict[str, bytes]:
    large = np.zeros((150, 150, 3), np.uint8)
    return {f"img_align_celeba/{i}.jpg": picture("JPEG", large) for i in range(3)}


def tensors() -> bytes:
    return written(lambda path: safetensors.write(
        path, {"a": np.arange(6.0), "b": np.ones((2, 3), np.float16)}, {"step": "1"}
    ))  # fmt: skip


def tensors_header() -> Any:
    return {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
            "b": {"dtype": "U8", "shape": [8], "data_offsets": [16, 24]}}  # fmt: skip


def flax_state() -> bytes:
    from helpers import small_places

    tree = published.published_tree(small_places.state(10), lr=1e-2, ema_rate=0.99, rng=[0, 42])
    return written(lambda path: state_dict.write(path, tree))


def torch_state() -> bytes:
    import torch

    from helpers.golden_networks import golden
    from helpers.pytorch_checkpoints import as_checkpoint, as_tensors

    config, params, _ = golden("ncsnpp_ve")
    stream = io.BytesIO()
    torch.save(as_tensors(as_checkpoint(config, params), torch), stream)
    return stream.getvalue()


def written(writer: Callable[[Path], None]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        writer(Path(folder) / "file")
        return (Path(folder) / "file").read_bytes()


UNET = {
    "_class_name": "UNet2DModel", "_diffusers_version": "0.30", "sample_size": 4, "in_channels": 1,
    "out_channels": 1, "block_out_channels": [4, 4], "layers_per_block": 1, "norm_num_groups": 2,
    "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2,
    "add_attention": False, "time_embedding_dim": None, "act_fn": "silu", "norm_eps": 1e-5,
}  # fmt: skip
SCHEDULER = {
    "num_train_timesteps": 20, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear",
    "trained_betas": None, "prediction_type": "epsilon", "variance_type": "fixed_small",
    "clip_sample": True, "clip_sample_range": 1.0, "thresholding": False,
    "rescale_betas_zero_snr": False,
}  # fmt: skip


@functools.cache
def unet_tensors() -> bytes:
    """Under the names, and in the layouts, of PyTorch."""
    inputs = np.zeros((1, 4, 4, 1), np.float32), np.zeros(1, np.float32)
    shapes = jax.eval_shape(UNet2D.from_config(UNET).init, jax.random.key(0), *inputs)["params"]
    arrays = {}
    for path, leaf in flatten_dict(shapes).items():
        shape, kernel = leaf.shape, path[-1] == "kernel"
        name = ".".join([*path[:-1], "bias" if path[-1] == "bias" else "weight"])
        arrays[name] = np.zeros((*shape[:-3:-1], *shape[:-2]) if kernel else shape, np.float32)
    return written(lambda path: safetensors.write(path, arrays, {}))


def of_diffusers() -> dict[str, bytes]:
    return {
        "model_index.json": as_json({"_class_name": "DDPMPipeline", "_diffusers_version": "0.30"}),
        "unet/config.json": as_json(UNET),
        "unet/diffusion_pytorch_model.safetensors": unet_tensors(),
        "scheduler/scheduler_config.json": as_json(SCHEDULER),
    }


@functools.cache
def of_edm() -> dict[str, Any]:
    with np.load(GOLDEN / "edm_ddpmpp_vp.npz") as saved:
        return {name: json.loads(str(saved[name])) for name in ("fields", "shapes")}


def edm_tensors() -> dict[str, bytes]:
    arrays = drawn(of_edm()["shapes"])
    return {"model.safetensors": written(lambda path: safetensors.write(path, arrays, {}))}


@functools.cache
def of_openai() -> dict[str, Any]:
    with np.load(GOLDEN / "adm_guided.npz") as saved:
        return {name: json.loads(str(saved[name])) for name in ("flags", "shapes")}


def openai_flags() -> Any:
    return of_openai()["flags"] | {"diffusion_steps": 8, "noise_schedule": "cosine"}


def openai_tensors() -> dict[str, bytes]:
    import torch

    stream = io.BytesIO()
    torch.save({n: torch.from_numpy(a) for n, a in drawn(of_openai()["shapes"]).items()}, stream)
    return {"model.pt": stream.getvalue()}


DATA = {"name": "digits", "levels": 17, "train_sha256": "0123456789abcdef"}


@functools.cache
def tiny_config() -> Any:
    """What config.json says of a published network, very small."""
    return json.loads((FOLDER / "config.json").read_bytes())


@functools.cache
def our_files() -> dict[str, bytes]:
    """A prepared data set and finished parts."""
    from helpers import small_places

    with tempfile.TemporaryDirectory() as folder:
        small_places.prepare(Path(folder) / "data")
        in_parts(small_places.work, 11, size=4, passes=2, folder=Path(folder) / "up" / "source")
        return {str(path.relative_to(folder)): path.read_bytes()
                for path in Path(folder).rglob("*") if path.is_file()}  # fmt: skip


def prepared_files() -> dict[str, bytes]:
    return {name.removeprefix("data/"): content for name, content in our_files().items()
            if name.startswith("data/")}  # fmt: skip


def unsealed(name: str) -> Callable[[], Any]:
    """What a record says beside its seal."""
    return lambda: {k: v for k, v in json.loads(prepared_files()[name]).items() if k != SEAL}


def results() -> Any:
    return {"exact_test_ckpt_2": {"mean": 1.25, "stderr": 0.03125, "solver": {"nodes": 6}},
            "bound": [{"mean": 1.5}, {"mean": 2.5}]}  # fmt: skip


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
