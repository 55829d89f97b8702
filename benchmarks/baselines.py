"""Simple densities on a data set: what bits/dim a model of it must beat.

    python benchmarks/baselines.py fashion_mnist
    python benchmarks/baselines.py fashion_mnist --image_size=14 --fit=resize
"""

import argparse

import numpy as np

from scoremle import data
from scoremle.evaluation import baselines, tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=data.DATASETS, metavar="name")
    parser.add_argument("--path", default="", help="its files, as data.path")
    parser.add_argument("--image_size", type=int, default=0, help="as data.image_size")
    parser.add_argument("--fit", default="", help="as data.fit")
    options = parser.parse_args()
    images = data.load(**vars(options))
    train, test, levels = images.train, images.test, images.levels
    columns = {
        "uniform": baselines.uniform_bpd(test, levels),
        "histogram of each pixel": baselines.histogram_bpd(train, test, levels),
        "Gaussian, full covariance": baselines.gaussian_bpd(train, test),
    }
    rows = [
        (density, f"{bits.mean():.4f}", f"{bits.std(ddof=1) / np.sqrt(len(bits)):.4f}")
        for density, bits in columns.items()
    ]
    header = (f"{options.name}, {len(test)} test images", "bits/dim", "std. error")
    print(tables.table(header, rows))


if __name__ == "__main__":
    main()
