"""Data sets: read, checked and prepared once, then opened; and the batches of training."""

from scoremle.data.dataset import Dataset
from scoremle.data.feed import Feed, feed
from scoremle.data.fetch import fetch
from scoremle.data.image_set import ImageSet, pad_to
from scoremle.data.prepared import Prepared, is_prepared
from scoremle.data.readers.base import Options
from scoremle.data.readers.fits import FITS
from scoremle.data.registry import DATASETS, load, lookup

__all__ = [
    "DATASETS",
    "FITS",
    "Dataset",
    "Feed",
    "ImageSet",
    "Options",
    "Prepared",
    "feed",
    "fetch",
    "is_prepared",
    "load",
    "lookup",
    "pad_to",
]
