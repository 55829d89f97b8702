"""Two evaluations of the same images with the same noise, compared image by image.

    python benchmarks/paired.py COARSE.npz FINE.npz

Prints the mean difference in bits/dim (fine less coarse) over the images that both have, and how
often the solver's stated error of the coarse one covers the difference. The same seed and
eval.batch_size give the same dequantization noise and probes, so what differs is the solver.
"""

import sys

import numpy as np


def main() -> None:
    coarse, fine = (np.load(path, allow_pickle=False) for path in sys.argv[1:3])
    n = min(coarse["bpd"].shape[1], fine["bpd"].shape[1])
    difference = fine["bpd"][0, :n] - coarse["bpd"][0, :n]
    stated = coarse["solver_error"][0, :n]
    stderr = difference.std(ddof=1) / np.sqrt(n)
    covered = np.mean(np.abs(difference) <= stated)
    ratio = np.median(stated / np.abs(difference))
    print(f"difference {difference.mean():+.4f} +- {stderr:.4f} bits/dim over {n} images")
    print(f"stated error covers {covered:.1%}, in the median {ratio:.1f} times the difference")


if __name__ == "__main__":
    main()
