"""Simple densities on a data set: what bits/dim a model of it must beat.

    python benchmarks/baselines.py fashion_mnist [FOLDER]
"""

import sys

import numpy as np

from scoremle import baselines, data, report


def main() -> None:
    name, path = (*sys.argv[1:], "", "")[:2]
    images = data.load(name, path=path)
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
    print(report.table((f"{name}, {len(test)} test images", "bits/dim", "std. error"), rows))


if __name__ == "__main__":
    main()
