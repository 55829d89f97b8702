"""Two evaluations of the same images, compared image by image.

    python benchmarks/paired.py FIRST.npz SECOND.npz

Prints the mean difference in bits/dim (second less first) over the images that both have. With
``--solver`` also how often the first's stated error of the solver covers the difference: for two
numbers of nodes, with the same seed, and so the same noise, and probes that make little.
"""

import argparse

import numpy as np

from scoremle.evaluation.statistics import difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs=2, metavar="FILE.npz", help="values of each image")
    parser.add_argument("--solver", action="store_true", help="judge the first's stated error")
    options = parser.parse_args()
    first, second = (np.load(path, allow_pickle=False) for path in options.files)
    n = min(first["bpd"].shape[1], second["bpd"].shape[1])
    a, b = first["bpd"][0, :n], second["bpd"][0, :n]
    found = difference(a, b)
    print(f"difference {found.mean:+.4f} +- {found.stderr:.4f} bits/dim over {n} images")
    if options.solver:
        stated = first["solver_error"][0, :n]
        covered = np.mean(np.abs(b - a) <= stated)
        ratio = np.median(stated / np.abs(b - a))
        print(f"stated error covers {covered:.1%}, in the median {ratio:.1f} times the difference")


if __name__ == "__main__":
    main()
