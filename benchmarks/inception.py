"""How many images a second the Inception network takes, and what the first batch costs.

    python benchmarks/inception.py --batches=4

The weights are random, which changes nothing in the time. Prints a line of JSON. The seconds of
the processor say more than those of the clock where others use the machine.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from scoremle.quality import features, inception


def extractor() -> features.Extractor:
    """Inception with random weights, loaded as from a user's file."""
    rng = np.random.default_rng(0)
    params = {
        name: rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)
        for name, shape in inception.shapes().items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npz"
        features.write_inception(path, params, "random")
        return features.load_inception(path)


def seconds(network: features.Extractor, images: np.ndarray) -> tuple[float, float]:
    """Of one batch, until its features are on the host: by the clock, and of the processor."""
    began = time.perf_counter(), time.process_time()
    jax.device_get(network.apply(images))
    return time.perf_counter() - began[0], time.process_time() - began[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--side", type=int, default=32, help="height and width of the images")
    options = parser.parse_args()
    network, size = extractor(), features.BATCH_SIZE
    shape = (size, options.side, options.side, 3)
    images = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    (first, _), *others = (seconds(network, images) for _ in range(options.batches + 1))
    clock, processor = np.median(others, axis=0) / size
    result = {
        "device": jax.devices()[0].device_kind,
        "batch": size,
        "images_per_second": round(1 / clock, 2),
        "processor_seconds_per_image": round(processor, 3),
        "first_batch_seconds": round(first, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
