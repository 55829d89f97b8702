"""Data sets: read, checked and prepared once, then opened; and the batches of training."""

from scoremle.data.dataset import Dataset
from scoremle.data.feed import feed
from scoremle.data.fetch import fetch
from scoremle.data.image_set import ImageSet
from scoremle.data.prepared import Prepared, is_prepared
from scoremle.data.readers.base import Options
from scoremle.data.registry import DATASETS, load, lookup

__all__ = [
    "DATASETS", "Dataset", "ImageSet", "Options", "Prepared", "feed", "fetch", "is_prepared",
    "load", "lookup",
]  # fmt: skip
