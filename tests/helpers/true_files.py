"""True files of every kind that the program reads, small: their contents, and ways to write them.

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
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from PIL import Image

from helpers import small_places
from helpers.places import GOLDEN
from helpers.published_folder import FOLDER
from helpers.weights import drawn
from scoremle import published
from scoremle.experiment.build import build
from scoremle.experiment.config import config_of
from scoremle.experiment.record import record_of
from scoremle.experiment.workdir import Workdir
from scoremle.files import SEAL, seal
from scoremle.published import safetensors, state_dict
from scoremle.resumable import resumable_map
from scoremle.zoo.unet2d import UNet2D

Files = dict[str, bytes]

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 32, 32, 3), np.uint8)
LABELS = np.array([1, 0, 2])
ROWS = IMAGES.transpose(0, 3, 1, 2).reshape(3, -1)


# Ways of writing -------------------------------------------------------------------------------


def file(
    name: str, beside: Callable[[], Files] = dict, pack: Callable[[Any], bytes] = bytes
) -> Callable[[Path, Any], None]:
    """Writes a content as the file of this name, packed in this way, and others beside it."""

    def put(folder: Path, content: Any) -> None:
        for each, its in {**beside(), name: pack(content)}.items():
            (folder / each).parent.mkdir(parents=True, exist_ok=True)
            (folder / each).write_bytes(its)

    return put


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode()


def sealed(content: Any) -> bytes:
    """As if it had been written so."""
    whole = isinstance(content, dict)
    return as_json({**content, SEAL: seal(content)} if whole else content)


def in_npz(member: bytes) -> bytes:
    return packed_zip({"train.npy": member, "test.npy": npy(IMAGES)})


def in_tar_gz(name: str, files: Callable[[], Files]) -> Callable[[bytes], bytes]:
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


def in_values(values: bytes) -> bytes:
    """Values of an evaluation, a row a pass."""
    return packed_zip({"bpd.npy": values})


# True contents ---------------------------------------------------------------------------------


def picture(kind: str, image: np.ndarray = IMAGES[0]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def packed_zip(files: Files) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def packed_tar(files: Files) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def pictures() -> Files:
    return {f"{split}/{i}.png": picture("PNG", IMAGES[i]) for split in ("train", "test")
            for i in range(2)}  # fmt: skip


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 | array.ndim, *array.shape) + array.tobytes()


def idx_files() -> Files:
    grey, labels = IMAGES[..., 0], LABELS.astype(np.uint8)
    return {f"{split}-{kind}-ubyte": idx(array) for split in ("train", "t10k")
            for kind, array in (("images-idx3", grey), ("labels-idx1", labels))}  # fmt: skip


def cifar_batch() -> bytes:
    return pickle.dumps({b"data": ROWS, b"labels": LABELS.tolist()}, 2)


def cifar_files() -> Files:
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return {f"cifar/{name}": cifar_batch() for name in names}


def cifar_records() -> bytes:
    return np.concatenate([LABELS[:, None], ROWS], axis=1).astype(np.uint8).tobytes()


def imagenet_batch() -> bytes:
    return pickle.dumps({"data": ROWS, "labels": [1, 2, 3], "mean": ROWS.mean(0)}, 4)


def imagenet_npz() -> bytes:
    return packed_zip({"data.npy": npy(ROWS), "labels.npy": npy(LABELS + 1)})


def parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": picture("PNG", image)} for image in IMAGES]
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": LABELS}), stream)
    return stream.getvalue()


def faces() -> Files:
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


def of_diffusers() -> Files:
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


def edm_tensors() -> Files:
    arrays = drawn(of_edm()["shapes"])
    return {"model.safetensors": written(lambda path: safetensors.write(path, arrays, {}))}


@functools.cache
def of_openai() -> dict[str, Any]:
    with np.load(GOLDEN / "adm_guided.npz") as saved:
        return {name: json.loads(str(saved[name])) for name in ("flags", "shapes")}


def openai_flags() -> Any:
    diffusion = {"diffusion_steps": 8, "noise_schedule": "cosine", "rescale_timesteps": False}
    return of_openai()["flags"] | diffusion


def openai_tensors() -> Files:
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
def our_files() -> Files:
    """A prepared data set and finished parts."""
    with tempfile.TemporaryDirectory() as folder:
        small_places.prepare(Path(folder) / "data")
        source = Path(folder) / "up" / "source"
        resumable_map(small_places.work, 11, size=4, passes=2, folder=source)
        return files_below(Path(folder))


def files_below(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}  # fmt: skip


def prepared_files() -> Files:
    return {name.removeprefix("data/"): content for name, content in our_files().items()
            if name.startswith("data/")}  # fmt: skip


def unsealed(name: str) -> Callable[[], Any]:
    """What a record says beside its seal."""
    return lambda: {k: v for k, v in json.loads(prepared_files()[name]).items() if k != SEAL}


def results() -> Any:
    protocol = {
        "kind": "exact", "metric": "bpd", "unit": "bits/dim", "estimator": "exact by the ODE",
        "checkpoint": 2, "step": 20, "split": "test", "images": 3, "passes": 2, "full_pass": True,
        "augmentation": "none", "eps": 1e-5,
    }  # fmt: skip
    return {"exact_test_ckpt_2": {"mean": 1.25, "stderr": 0.03125, "solver": {"nodes": 6},
                                  **protocol},
            "checks_test_ckpt_2": [
                {"words": words, "holds": True, "difference": 0.5, "stderr": 0.25, "meaning": ""}
                for words in ("a <= b", "a == c")
            ]}  # fmt: skip


RECORD_OF_CHECKPOINT = "checkpoints/checkpoint_1/record/metadata"


@functools.cache
def our_checkpoint() -> Files:
    """A workdir with one checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        place = Workdir(Path(folder))
        place.describe(small_places.EXPERIMENT)
        meta = {**record_of(small_places.EXPERIMENT, "training"), "step": 10}
        place.snapshots.save(1, small_places.state(10), meta)
        return files_below(Path(folder))


def checkpoint_record() -> Any:
    record = json.loads(our_checkpoint()[RECORD_OF_CHECKPOINT])
    return {name: value for name, value in record.items() if name != SEAL}


@functools.cache
def tiny_arrays() -> dict[str, np.ndarray]:
    """Parameters of the network that ``tiny_config`` says."""
    template = build(config_of(tiny_config(), FOLDER), levels=DATA["levels"]).training.template
    return {".".join(path): np.zeros(leaf.shape, leaf.dtype)
            for path, leaf in flatten_dict(template.ema).items()}  # fmt: skip
