"""Does a detector find what does not belong? AUROC and FPR at 95 % TPR of each statistic.

    python benchmarks/anomaly.py --quick                          # the shipped model of digits
    python benchmarks/anomaly.py
    python benchmarks/anomaly.py --model=MODEL --images=FILE.npz  # any model, images of its kind

Normal images are test images of the model. Statistics are fitted to a part of them and judged on
the others. What does not belong is made of those others (inverted, upside down, mirrored, blurred,
with noise, shuffled) or comes from elsewhere: Fashion-MNIST, brought to size as the digits were,
by means over blocks; and again by taking single pixels, which shows what a resizing alone does.

``near`` are digits of one class, where the statistic is fitted to the nine others: the model was
trained on all ten. Beside these, ``features``: a density of 32 hidden units of a small classifier
that was trained on the labels of the nine (of a training split).

AUROC: how often an image that does not belong scores higher than a normal one; 0.5 is chance. FPR:
the share of images that do not belong and pass, where 95 % of normal ones pass. Errors are
standard deviations of 500 bootstrap samples of images. Seconds are of an image, without what is
compiled.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from common import answer, parser_of
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata

import scoremle
from scoremle.anomaly.normality import Density
from scoremle.anomaly.statistics import STATISTICS, Examples, numbers_of
from scoremle.data.readers.arrays import read_array_files
from scoremle.data.readers.base import Chunk, Options
from scoremle.data.readers.digits import read_digits
from scoremle.errors import UserError

Images = UInt8[np.ndarray, "n h w c"]
SAMPLES, RNG = 500, np.random.default_rng(0)
NEAR = (1, 4, 7)
HIDDEN = 32
# Statistics that share their features.
SHARED = {"likelihood": "complexity", "typicality": "complexity"}


def others(images: Images, levels: int) -> dict[str, Images]:
    """Images that do not belong, made of some that do."""
    top, noise = levels - 1, RNG.normal(0, 0.1 * levels, images.shape)
    pixels = RNG.permutation(images[0, ..., 0].size)
    shuffled = images.reshape(len(images), -1, images.shape[3])[:, pixels]
    return {
        "inverted": top - images,
        "upside down": images[:, ::-1],
        "mirrored": images[:, :, ::-1],
        "blurred": np.round(gaussian_filter(images.astype(float), (0, 0.7, 0.7, 0))),
        "with noise": np.clip(np.round(images + noise), 0, top),
        "shuffled": shuffled.reshape(images.shape),
    }


def fashion(shape: tuple[int, ...], levels: int, count: int) -> dict[str, Images]:
    """Test images of Fashion-MNIST in this size, by means over blocks and by single pixels."""
    try:
        images = scoremle.data.load("fashion_mnist").test[:count, ..., 0]
    except UserError as error:
        print(f"not run: Fashion-MNIST ({error})")
        return {}
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    ways = {"fashion": Image.Resampling.BOX, "fashion, by pixels": Image.Resampling.NEAREST}
    found = {}
    for name, way in ways.items():
        sized = [np.asarray(Image.fromarray(image).resize(shape[1::-1], way)) for image in padded]
        grey = np.round(np.stack(sized) * ((levels - 1) / 255))[..., None]
        found[name] = np.repeat(grey, shape[2], axis=3)
    return found


def judged(
    normal: Float[np.ndarray, " n"], other: Float[np.ndarray, " m"]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """AUROC and FPR at 95 % TPR, each with its bootstrap error."""

    def both(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
        ranks = rankdata(np.concatenate([a, b]))[len(a) :].sum() - len(b) * (len(b) + 1) / 2
        return ranks / (len(a) * len(b)), float(np.mean(b <= np.quantile(a, 0.95)))

    drawn = ((RNG.choice(normal, len(normal)), RNG.choice(other, len(other)))
             for _ in range(SAMPLES))  # fmt: skip
    errors = np.std([both(*sample) for sample in drawn], axis=0)
    auroc, fpr = both(normal, other)
    return (auroc, errors[0]), (fpr, errors[1])


def features_of(
    model: scoremle.ScoreModel, sets: Mapping[str, Images], names: list[str], *, timed: bool
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, float]]:
    """Features of each statistic and set, and, if they are timed, seconds of an image."""
    found: dict[str, dict[str, np.ndarray]] = {}
    seconds, sizes = {}, np.cumsum([len(images) for images in sets.values()])[:-1]
    images = np.concatenate(list(sets.values())).astype(np.uint8)
    numbers = numbers_of(images)
    for name in dict.fromkeys(SHARED.get(name, name) for name in names):
        examples = Examples(model, images, numbers, 0, name)
        values = STATISTICS[name].features(examples)
        if timed:  # now that it is compiled
            began = time.monotonic()
            STATISTICS[name].features(examples)
            seconds[name] = (time.monotonic() - began) / len(images)
        found[name] = dict(zip(sets, np.split(values, sizes), strict=True))
    for name in names:
        if name in SHARED:
            found[name] = {key: values[:, :1] for key, values in found[SHARED[name]].items()}
            seconds |= {name: seconds[SHARED[name]]} if timed else {}
    return found, seconds


def digits() -> tuple[Chunk, Chunk]:
    """Training and test digits with their labels."""
    train, test = read_digits(Path(), Options()).chunks
    return train, test


def encoder(digit: int, images: Images) -> np.ndarray:
    """Hidden units of a classifier of the nine other digits."""
    from sklearn.neural_network import MLPClassifier

    train = digits()[0]
    kept = train.labels != digit
    x, y = train.images[kept].reshape(kept.sum(), -1) / 16, train.labels[kept]
    network = MLPClassifier((HIDDEN,), max_iter=400, random_state=0).fit(x, y)
    hidden = images.reshape(len(images), -1) / 16 @ network.coefs_[0] + network.intercepts_[0]
    return np.maximum(hidden, 0)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--quick", action="store_true", help="few images, and no times")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--images", type=Path, help="of the model's kind, that it has not seen")
    options = parser.parse_args()
    model = scoremle.load(options.model)
    labels = None
    if options.images:
        chunks = read_array_files(options.images, Options()).chunks
        normal = np.concatenate([chunk.images for chunk in chunks])
    else:
        test = digits()[1]
        normal, labels = test.images, test.labels
    count = 50 if options.quick else 120
    normal = normal[: 3 * count]
    sets = {"normal": normal, **others(normal[-count:], model.pixels.levels)}
    sets |= fashion(model.shape, model.pixels.levels, count)
    names = list(STATISTICS)
    features, seconds = features_of(model, sets, names, timed=not options.quick)
    rows, means = [], {name: [] for name in names}

    def tell(of: str, name: str, fit: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> None:
        normality = (STATISTICS[name].fit if name in STATISTICS else Density.fit)(fit)
        auroc, fpr = judged(normality(inside), normality(outside))
        means.setdefault(name, []).append(auroc[0])
        in_words = f"{auroc[0]:.3f} +- {auroc[1]:.3f}", f"{fpr[0]:.2f} +- {fpr[1]:.2f}"
        rows.append((of, name, *in_words))

    for of in list(sets)[1:]:
        for name in names:
            values = features[name]
            tell(of, name, values["normal"][:-count], values["normal"][-count:], values[of])
    for digit in NEAR if labels is not None else ():
        own, kept = labels[: 3 * count] == digit, labels[: 3 * count] != digit
        half = 2 * kept.sum() // 3
        for name in names:
            values = features[name]["normal"]
            tell(f"near: {digit}", name, values[kept][:half], values[kept][half:], values[own])
        units = encoder(digit, normal)
        tell(f"near: {digit}", "features", units[kept][:half], units[kept][half:], units[own])
    answer(
        ("does not belong", "statistic", "AUROC", "FPR at 95 % TPR"), rows,
        {
            "mean_auroc": {name: round(float(np.mean(v)), 3) for name, v in means.items()},
            "seconds_per_image": {name: round(s, 4) for name, s in seconds.items()},
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
