"""Two evaluations of the same images, compared image by image.

    python benchmarks/paired.py FIRST.npz SECOND.npz

Prints the mean difference in bits/dim (second less first) over the images that both have. With the
same seed and eval.batch_size, two numbers of nodes have the same dequantization noise: how often
the solver's stated error of the first covers the difference is printed too.
"""

import sys

import numpy as np


def main() -> None:
    first, second = (np.load(path, allow_pickle=False) for path in sys.argv[1:3])
    n = min(first["bpd"].shape[1], second["bpd"].shape[1])
    difference = second["bpd"][0, :n] - first["bpd"][0, :n]
    stderr = difference.std(ddof=1) / np.sqrt(n)
    print(f"difference {difference.mean():+.4f} +- {stderr:.4f} bits/dim over {n} images")
    if "solver_error" in first:
        stated = first["solver_error"][0, :n]
        covered = np.mean(np.abs(difference) <= stated)
        ratio = np.median(stated / np.abs(difference))
        print(f"stated error covers {covered:.1%}, in the median {ratio:.1f} times the difference")


if __name__ == "__main__":
    main()
