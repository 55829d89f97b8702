"""Extractors of features for tests: Inception with weights from a seed, and a small stand-in."""

import numpy as np

from scoremle.quality.features import Extractor
from scoremle.quality.inception import Features, shapes

STATISTICS = (
    ("weight", 0.7, 1.3),
    ("bias", -0.3, 0.3),
    ("running_mean", -0.3, 0.3),
    ("running_var", 0.5, 1.5),
)


def state_dict(seed: int = 0) -> dict[str, np.ndarray]:
    """He-uniform convolutions; batch normalisation with means, variances, scales and shifts.

    Signals keep their size from layer to layer, so that a fault anywhere reaches the features
    (torch's default initialisation lets them fade, and hides faults).
    """
    # The one generator whose stream numpy promises to keep.
    random = np.random.RandomState(seed)
    state = {}
    for name, shape in sorted(shapes().items()):
        layer, _, part = name.replace("/", ".").rpartition(".")
        if part == "kernel":
            bound = np.sqrt(6 / np.prod(shape[:-1]))
            weight = random.uniform(-bound, bound, shape).astype(np.float32)
            if layer == "fc":
                state["fc.weight"] = weight.T
            else:
                state[f"{layer}.conv.weight"] = weight.transpose(3, 2, 0, 1)
        else:
            for array, low, high in STATISTICS:
                state[f"{layer}.bn.{array}"] = random.uniform(low, high, shape).astype(np.float32)
    return state


def images() -> np.ndarray:
    """Two coarse random pictures, uint8 [2 32 32 3]."""
    coarse = np.random.RandomState(1).randint(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def stand_in(batches: list[np.ndarray] | None = None) -> Extractor:
    """Three features and two classes by hand; keeps the images that it is given."""

    def apply(images: np.ndarray) -> Features:
        assert images.dtype == np.uint8 and images.shape[3] == 3
        if batches is not None:
            batches.append(images)
        x = images.reshape(len(images), -1).astype(np.float32)
        pool = np.stack([x.mean(axis=1), x.std(axis=1), x[:, 0]], axis=1)
        return Features(pool, pool[:, :2] / 255)

    return Extractor(apply, "stand-in of three moments", 3, "stand-in")
