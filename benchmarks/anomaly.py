"""Does a detector find what does not belong? AUROC and FPR at 95 % TPR of each statistic.

    python benchmarks/anomaly.py --quick                          # the shipped model of digits
    python benchmarks/anomaly.py
    python benchmarks/anomaly.py --model=MODEL --images=FILE.npz  # any model, images of its kind
    python benchmarks/anomaly.py --left-out    # Fashion-MNIST at 14x14: trains without a class

Normal images are test images of the model. Statistics are fitted to a part of them and judged on
the others. What does not belong is made of those others (inverted, upside down, mirrored, blurred,
made smaller and larger again, with noise, shuffled) or comes from elsewhere: Fashion-MNIST, digits
and textures (brick, grass and gravel of scikit-image, if it is installed; pieces that overlap by
half). All are brought to size alike, by means over blocks or, where they are smaller, by bilinear
interpolation. What a resizing alone does is shown twice: *made smaller and larger again*, and
Fashion-MNIST by single pixels, where it is made smaller.

``near`` are images of one class, where the statistic is fitted to the others. The model of digits
was trained on all ten; with ``--left-out``, each of three models was trained without its class.
Beside these, ``features``: a density of 32 hidden units of a small classifier that was trained on
the labels of the other classes (of training images).

AUROC: how often an image that does not belong scores higher than a normal one; 0.5 is chance. FPR:
the share of images that do not belong and pass, where 95 % of normal ones pass. Errors are
standard deviations of 500 bootstrap samples of images. Seconds are of an image, without what is
compiled.
"""

import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import answer, parser_of, run, train
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata

import scoremle
from scoremle.anomaly.normality import Density
from scoremle.anomaly.statistics import STATISTICS, Examples, numbers_of
from scoremle.data.readers.arrays import read_array_files
from scoremle.data.readers.base import Options
from scoremle.data.registry import DATASETS
from scoremle.errors import UserError
from scoremle.likelihood.image_model import pixels_of

Images = UInt8[np.ndarray, "n h w c"]
SAMPLES, RNG = 500, np.random.default_rng(0)
RESIZE = Image.Resampling
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
        "3/4 and back": np.stack([there_and_back(image) for image in images]),
        "with noise": np.clip(np.round(images + noise), 0, top),
        "shuffled": shuffled.reshape(images.shape),
    }


def there_and_back(image: UInt8[np.ndarray, "h w c"]) -> np.ndarray:
    """An image that was made smaller by a quarter and larger again."""
    h, w = image.shape[:2]
    channels = [
        Image.fromarray(channel).resize((3 * w // 4, 3 * h // 4), RESIZE.BOX)
        for channel in np.moveaxis(image, 2, 0)
    ]
    return np.stack([np.asarray(one.resize((w, h), RESIZE.BILINEAR)) for one in channels], axis=2)


def elsewhere(shape: tuple[int, ...], levels: int, count: int) -> dict[str, Images]:
    """Grey images of other sources in this size."""
    found = {"textures": textures(count)}
    if shape != (8, 8, 1):
        found["digits"] = labelled("digits", Options()).test[:count, ..., 0] * 15.9375
    try:
        fashion = labelled("fashion_mnist", Options()).test[:count, ..., 0]
        found["fashion"] = np.pad(fashion, ((0, 0), (2, 2), (2, 2)))
    except UserError as error:
        print(f"not run: Fashion-MNIST ({error})")
    made = {name: sized(each, shape, levels) for name, each in found.items() if len(each)}
    if "fashion" in made and shape[0] < 32:
        made["fashion, by pixels"] = sized(found["fashion"], shape, levels, RESIZE.NEAREST)
    return made


def textures(count: int) -> np.ndarray:
    """Pieces of 128x128 of three photographs of surfaces, or none without scikit-image."""
    try:
        from skimage import data
    except ImportError:
        print("not run: textures (pip install scikit-image)")
        return np.empty(0)
    pieces = [
        image[top : top + 128, left : left + 128]
        for image in (data.brick(), data.grass(), data.gravel())
        for top in range(0, 385, 64) for left in range(0, 385, 64)
    ]  # fmt: skip
    return RNG.permutation(np.stack(pieces))[:count]


def sized(
    images: np.ndarray, shape: tuple[int, ...], levels: int, way: RESIZE | None = None
) -> Images:
    """Grey images of 256 levels in another size, with as many channels and levels."""
    if way is None:
        way = RESIZE.BOX if images.shape[1] > shape[0] else RESIZE.BILINEAR
    pictures = map(Image.fromarray, images.astype(np.uint8))
    made = np.stack([np.asarray(picture.resize(shape[1::-1], way)) for picture in pictures])
    return np.repeat(np.round(made * ((levels - 1) / 255))[..., None], shape[2], axis=3)


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
    model: scoremle.ScoreModel, sets: Mapping[str, Images]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, float]]:
    """Features of each statistic and set, and the seconds of an image."""
    found: dict[str, dict[str, np.ndarray]] = {}
    seconds, sizes = {}, np.cumsum([len(images) for images in sets.values()])[:-1]
    images = np.concatenate(list(sets.values())).astype(np.uint8)
    numbers = numbers_of(images)
    for name in dict.fromkeys(SHARED.get(name, name) for name in STATISTICS):
        # One batch first, so that the program is compiled.
        STATISTICS[name].features(Examples(model, images[:256], numbers[:256], 0, name))
        began = time.monotonic()
        values = STATISTICS[name].features(Examples(model, images, numbers, 0, name))
        seconds[name] = (time.monotonic() - began) / len(images)
        found[name] = dict(zip(sets, np.split(values, sizes), strict=True))
    for name, other in SHARED.items():
        found[name] = {key: values[:, :1] for key, values in found[other].items()}
        seconds[name] = seconds[other]
    return {name: found[name] for name in STATISTICS}, seconds


class Labelled(NamedTuple):
    """Images of a data set, and their labels."""

    train: Images
    train_labels: np.ndarray
    test: Images
    test_labels: np.ndarray


def labelled(name: str, options: Options) -> Labelled:
    """A data set that has labels."""
    found = DATASETS[name].find("", options)
    parts = (part for of in ("train", "test") for part in (found.images(of), found.labels(of)))
    return Labelled(*map(np.asarray, parts))


def encoder(of: Labelled, left_out: int, levels: int, images: Images) -> np.ndarray:
    """Hidden units of a classifier of all classes but one."""
    from sklearn.neural_network import MLPClassifier

    kept = np.flatnonzero(of.train_labels != left_out)[:10_000]
    x, y = of.train[kept].reshape(len(kept), -1) / (levels - 1), of.train_labels[kept]
    network = MLPClassifier((HIDDEN,), max_iter=400, random_state=0).fit(x, y)
    hidden = images.reshape(len(images), -1) / (levels - 1) @ network.coefs_[0]
    return np.maximum(hidden + network.intercepts_[0], 0)


def without(left_out: int, of: Labelled, folder: Path) -> scoremle.ScoreModel:
    """A model of Fashion-MNIST at 14x14 that was trained without a class, a few minutes."""
    folder.mkdir(parents=True, exist_ok=True)
    data, workdir = folder / "data", folder / "model"
    if not data.exists():
        arrays = folder / "images.npz"
        kept = of.train[of.train_labels != left_out]
        np.savez(arrays, train=kept[:-1000], test=kept[-1000:])
        run("data", "prepare", str(arrays), f"--into={data}")
    train(
        (
            "--config=configs/fashion_mnist.py", "--config.data.dataset=images",
            f"--config.data.path={data}", "--config.data.image_size=14",
            "--config.model.ch_mult=(1, 2)", "--config.training.snapshot_sampling=False",
            "--config.training.n_iters=1500", "--config.training.snapshot_freq=1500",
            "--config.model.ema_rate=0.995",
        ),
        workdir,
    )  # fmt: skip
    return scoremle.load(workdir)


class Report:
    """Rows of the table, and what its last line sums up."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, ...]] = []
        self.aurocs: dict[str, list[float]] = defaultdict(list)
        self.seconds: dict[str, float] = {}

    def add(
        self, of: str, name: str, fit: np.ndarray, inside: np.ndarray, outside: np.ndarray
    ) -> None:
        """Judges a statistic by one set."""
        normality = (STATISTICS[name].fit if name in STATISTICS else Density.fit)(fit)
        auroc, fpr = judged(normality(inside), normality(outside))
        self.aurocs[name].append(auroc[0])
        in_words = f"{auroc[0]:.3f} +- {auroc[1]:.3f}", f"{fpr[0]:.2f} +- {fpr[1]:.2f}"
        self.rows.append((of, name, *in_words))

    def print(self) -> None:
        means = {name: round(float(np.mean(each)), 3) for name, each in self.aurocs.items()}
        seconds = {name: round(each, 4) for name, each in self.seconds.items()}
        answer(
            ("does not belong", "statistic", "AUROC", "FPR at 95 % TPR"), self.rows,
            {"mean_auroc": means, "seconds_per_image": seconds},
        )  # fmt: skip


def far(model: scoremle.ScoreModel, normal: Images, count: int, report: Report) -> None:
    """Judges each statistic by images that do not belong to these; ``count`` of each kind."""
    levels = pixels_of(model).levels
    sets = {"normal": normal, **others(normal[-count:], levels)}
    sets |= elsewhere(model.shape, levels, count)
    features, report.seconds = features_of(model, sets)
    for of in list(sets)[1:]:
        for name, values in features.items():
            normal = values["normal"]
            report.add(of, name, normal[:-count], normal[-count:], values[of])


def near(
    model: scoremle.ScoreModel, of: Labelled, left_out: int, count: int, report: Report
) -> None:
    """Judges each statistic by images of a class, fitted to images of the others."""
    levels = pixels_of(model).levels
    kept, own = of.test[of.test_labels != left_out], of.test[of.test_labels == left_out]
    sets = {"normal": kept[: 3 * count], "own": own[:count]}
    features, report.seconds = features_of(model, sets)
    features["features"] = {
        key: encoder(of, left_out, levels, images) for key, images in sets.items()
    }
    for name, values in features.items():
        normal = values["normal"]
        fit, judged = normal[: 2 * len(normal) // 3], normal[2 * len(normal) // 3 :]
        report.add(f"near: {left_out}", name, fit, judged, values["own"])


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--quick", action="store_true", help="few images")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--images", type=Path, help="of the model's kind, that it has not seen")
    parser.add_argument("--left-out", action="store_true", help="train without a class")
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmark_anomaly"))
    options = parser.parse_args()
    count, report = 50 if options.quick else 120, Report()
    if options.left_out:
        fashion = labelled("fashion_mnist", Options(size=14, fit="resize"))
        for left_out in NEAR:
            model = without(left_out, fashion, options.workdir / str(left_out))
            near(model, fashion, left_out, count, report)
    else:
        model = scoremle.load(options.model)
        if options.images:
            chunks = read_array_files(options.images, Options()).chunks
            normal = np.concatenate([chunk.images for chunk in chunks])
            far(model, normal[: 3 * count], count, report)
        else:
            digits = labelled("digits", Options())
            far(model, digits.test[: 3 * count], count, report)
            for digit in NEAR:
                near(model, digits, digit, count, report)
    report.print()


if __name__ == "__main__":
    main()
