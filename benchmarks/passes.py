"""How many passes tell the error of an image? Coverage of its stated error, and the cost.

    python benchmarks/passes.py

Digits by the model that ships with the package. All passes but those at hand give an image's true
mean. Columns: how often twice the spread of an image's own passes covers it, how often twice the
``error`` of ``scoremle score`` does, of many images and of each alone; the size of the error; and
the network evaluations of an image.
"""

import argparse

import numpy as np

import scoremle
from scoremle.data.readers.digits import load_digits
from scoremle.evaluation.statistics import error_of_few
from scoremle.evaluation.tables import table

PASSES = (2, 3, 4, 6, 8)


def values(images: int, passes: int) -> tuple[np.ndarray, int]:
    """bits/dim [passes images], and the network evaluations of each."""
    model, choice = scoremle.load("digits").calibrated(load_digits("")[1])
    x = np.tile(load_digits("")[1][:images], (passes, 1, 1, 1))  # each copy has noise of its own
    return model.score(x, label="scores").bpd.reshape(passes, images), choice.solver.nodes + 1


def row(bpd: np.ndarray, passes: int, evaluations: int) -> tuple[str, ...]:
    """What so many passes tell, over all disjoint groups of them."""
    groups = bpd[: len(bpd) // passes * passes].reshape(-1, passes, bpd.shape[1])
    hits, sizes = [], []
    for group in groups:
        truth = (bpd.sum(axis=0) - group.sum(axis=0)) / (len(bpd) - passes)
        gap = abs(group.mean(axis=0) - truth)
        own = group.std(axis=0, ddof=1) / np.sqrt(passes)
        together = error_of_few(own, passes)
        alone = np.concatenate([error_of_few(own[i : i + 1], passes) for i in range(len(own))])
        hits.append([(gap <= 2 * error).mean() for error in (own, together, alone)])
        sizes.append(np.median(together))
    shares = (f"{share:.0%}" for share in np.mean(hits, axis=0))
    return (str(passes), *shares, f"{np.mean(sizes):.3f}", str(passes * evaluations))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--passes", type=int, default=96)
    options = parser.parse_args()
    bpd, evaluations = values(options.images, options.passes)
    header = ("passes", "own spread", "error", "error, one image", "size", "evaluations")
    print(table(header, [row(bpd, passes, evaluations) for passes in PASSES]))


if __name__ == "__main__":
    main()
