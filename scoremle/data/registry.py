"""The data sets there are, by name, and :func:`load`, which opens one for an experiment.

Any source is prepared once (``prepare.py``): read by its reader, checked, and written as arrays
into a folder. ``load`` opens such a folder, which it makes in the cache on first use.
"""

import tempfile
from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from scoremle.core.arguments import check_count, check_kind, check_seed
from scoremle.data.archive import is_archive
from scoremle.data.dataset import ANY_SIZE, Dataset
from scoremle.data.image_set import ImageSet, pad_to
from scoremle.data.prepared import Prepared, is_prepared
from scoremle.data.readers.arrays import read_array_files
from scoremle.data.readers.base import Options, Reading
from scoremle.data.readers.celeba import read_celeba
from scoremle.data.readers.cifar import read_cifar10, read_cifar100
from scoremle.data.readers.digits import read_digits
from scoremle.data.readers.idx import read_idx
from scoremle.data.readers.imagenet import read_imagenet
from scoremle.data.readers.parquet import is_parquet, read_parquet
from scoremle.data.readers.photos import read_photos
from scoremle.data.readers.pictures import read_pictures
from scoremle.data.readers.svhn import read_svhn
from scoremle.data.readers.synthetic import read_synthetic
from scoremle.errors import UserError, by, choose, named_as
from scoremle.files import for_this_process
from scoremle.terminal import say


def _read_images(path: Path, options: Options) -> Reading:
    """Images of one's own, in whatever form they are."""
    ending = path.suffix.lower()
    if ending in (".npy", ".npz") or (path / "train.npy").is_file():
        return read_array_files(path, options)
    if any(is_parquet(file.name) for file in chain([path], path.rglob("*"))):
        return read_parquet(path, options)
    if path.is_dir() or is_archive(path):
        return read_pictures(path, options)
    raise UserError(
        f"{path} is not a folder of images, a .zip or .tar of them, a .npy, .npz or .parquet"
    )


IDX = "the folder with train-images-idx3-ubyte[.gz] and t10k-images-idx3-ubyte[.gz]"
IMAGES = "a folder, .zip or .tar of images, a .npy or .npz of uint8, or .parquet files"
CIFAR = "cifar-{}-binary.tar.gz or cifar-{}-python.tar.gz, or the folder that it unpacks to"
CIFAR_COUNTS = {"": (50_000, 10_000)}
OTHER_SIZE = frozenset({"size", "fit"})
# Options by their names in ``load``.
NAMES = {"size": "image_size", "channels": "num_channels"}

# Under the names of the published configs, in lower case.
DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset("digits", read_digits, packaged="scikit-learn"),
        Dataset("synthetic", read_synthetic, packaged="scoremle"),
        Dataset("mnist", read_idx, IDX, options=OTHER_SIZE),
        Dataset("fashion_mnist", read_idx, f"Debian's package dataset-fashion-mnist installed, or"
                f" {IDX}", place="/usr/share/datasets/fashion-mnist", options=OTHER_SIZE),
        Dataset("emnist", partial(read_idx, transposed=True), "the folder with one set, such as"
                " emnist-balanced-train-images-idx3-ubyte.gz and"
                " emnist-balanced-test-images-idx3-ubyte.gz", options=OTHER_SIZE),
        Dataset("cifar10", read_cifar10, CIFAR.format(10, 10), counts=CIFAR_COUNTS),
        Dataset("cifar100", read_cifar100, CIFAR.format(100, 100), counts=CIFAR_COUNTS),
        Dataset("imagenet", read_imagenet, "a folder with the train and the valid part, as folders"
                " or archives: PNG files (old, as published) or batches as .npz or pickles (new)",
                counts={"old": (1_281_149, 49_999), "new": (1_281_167, 50_000)}),
        Dataset("svhn", read_svhn, "the folder with train_32x32.mat and test_32x32.mat"),
        Dataset("celeba", read_celeba,
                "the folder with list_eval_partition.txt and img_align_celeba[.zip]",
                options=frozenset({"size"})),
        *(Dataset(name, _read_images, IMAGES, options=ANY_SIZE)
          for name in ("celebahq", "ffhq", "lsun", "images")),
        Dataset("photos", read_photos, "a folder, .zip or .tar of two or more photographs",
                options=frozenset({"size", "channels"})),
    )
}  # fmt: skip


@for_this_process()
def load(
    name: str,
    *,
    path: str = "",
    image_size: int = 0,
    num_channels: int = 0,
    fit: str = "",
    levels: int = 0,
    batch_size: int = 128,
    seed: int = 0,
    random_flip: bool = False,
) -> ImageSet:
    """The named data set, padded with zeros to ``image_size`` if that is larger than its own.

    Args:
        name: of the data set, such as "digits".
        path: of its files, or of a prepared folder; "": in the cache, where the system installs
            them, or within a library.
        image_size: height and width; 0: those of the images.
        num_channels: 1 or 3; 0: those of the images.
        fit: "crop", "resize" or "pad" for images of other sizes, which "" refuses.
        levels: grey levels to which the images are reduced, from 2 on; 0: as they are.
        batch_size: images of a training batch.
        seed: of the order of training images.
        random_flip: whether half of the training images are mirrored, by chance.

    Raises UserError for another name, files that are missing or damaged, and options that this
    data set has no use for.

    Example:
        >>> images = scoremle.data.load("digits")
        >>> print(images.train.shape, images.test.shape, images.levels)
        (1437, 8, 8, 1) (360, 8, 8, 1) 17
    """
    check_kind("name", name, str, "'digits'")
    check_kind("path", path, str | Path, "'pictures/'")
    check_count("batch_size", batch_size)
    check_seed(seed)
    check_count("image_size", image_size, least=0)
    dataset = lookup(name)
    if fit and "fit" not in dataset.options:
        raise UserError(f"fit is {fit!r}, but {name} has no images of other sizes")
    # Without fit, images of any size keep their own, and so do those that are prepared.
    keeps = "fit" in dataset.options or (path and is_prepared(Path(path)))
    size = 0 if keeps and not fit else image_size
    with named_as(NAMES.__getitem__, NAMES):
        options = Options(size, num_channels, fit, levels)
    if dataset.packaged and not path:
        with tempfile.TemporaryDirectory() as temporary:
            prepared = Prepared(Path(temporary) / dataset.name)
            dataset.prepare(None, options, prepared.folder)
            train, test = (np.array(prepared.images(split)) for split in ("train", "test"))
    else:
        with named_as(NAMES.__getitem__, NAMES):
            prepared = dataset.find(path, options)
        train, test = (prepared.images(split) for split in ("train", "test"))
    if num_channels and num_channels != train.shape[3]:
        raise UserError(f"num_channels is {num_channels}, but {name} has {train.shape[3]}")
    own = train.shape[1:3]
    if image_size:
        train, test = pad_to(train, image_size), pad_to(test, image_size)
    if train.shape[1:3] != own:
        say(f"{name}: images of {by(own)} are padded with zeros to {by(train.shape[1:3])}"
            " (image_size); bits/dim are of the padded images, whose border costs next to nothing")
    return ImageSet(
        name=dataset.name,
        train=train,
        test=test,
        levels=prepared.meta["levels"],
        batch_size=batch_size,
        seed=seed,
        random_flip=random_flip,
        facts=_facts(prepared.meta),
    )


def _facts(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Version and hashes of the data, recorded with each number measured on them."""
    version = {"data_version": meta["version"]} if meta["version"] else {}
    return version | {
        "source": Path(meta["source"]).name,
        "source_sha256": meta["source_sha256"],
        "train_sha256": meta["sha256"]["train"],
    }


def lookup(name: str) -> Dataset:
    """The data set of a name. Raises UserError for another.

    Args:
        name: in upper or lower case.
    """
    return choose(DATASETS, name, "data set")
