"""Do models that others trained get their published numbers here?

    python benchmarks/foreign.py FOLDER                   # some minutes; needs the extra torch
    python benchmarks/foreign.py FOLDER --images=10000    # whole test sets: days on a CPU

The folder has files of public repositories, by their names there:

    MNISTFlow_simple.ckpt MNISTFlow_vardeq.ckpt           phlippe/saved_models, tutorial11
    ddpm_fashion.pt                                       BrianPulfer/PapersReimplementations, ddpm
    gaussian-moons_cfm_v1-2560dd1.pt
    gaussian-moons_flow_matching_v1-f5bfaf2.pt            atong01/conditional-flow-matching
    mnist-t10k-images-idx3-ubyte.gz                       MNIST's test images

and Fashion-MNIST as ``scoremle data`` prepares it. Their networks are in foreign_nets.py.

An image's value is of one pass. That of a flow is of eight draws of its dequantization noise in
one bound, as published. The DDPM reads its step from a table, and is interpolated
between two steps. Its last noise hides the levels: to the integers it takes the informed decoder.
Its chain of 1,000 steps has the least variance, and clips.

Columns: the mean over images, with its standard error over them; what the solver may add, in the
mean; the published value; seconds. Rows of the plane are integrals over points drawn twice in each
cell of a grid, whose differences give the error.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from common import KEY, answer, parser_of
from foreign_nets import Dequantization, FashionUNet, ImageFlow, filled, planar

import scoremle
from scoremle import Pixels
from scoremle.core.keys import example_keys, per_example
from scoremle.data.readers.idx import read_idx_images
from scoremle.experiment.own_measurement import prepared
from scoremle.interop.torch import from_module, from_velocity
from scoremle.weights import from_flow

PARTS = ("flows", "ddpm", "plane")
SHAPE, DRAWS = (28, 28, 1), 8
# File of a flow of MNIST: its couplings for the dequantization, and the published bits/dim.
FLOWS = {"MNISTFlow_simple.ckpt": (0, 1.0784), "MNISTFlow_vardeq.ckpt": (4, 1.0431)}
PLANES = ("gaussian-moons_cfm_v1-2560dd1.pt", "gaussian-moons_flow_matching_v1-f5bfaf2.pt")
# The part of the plane that has all of their mass, and the cells along an axis.
PLANE, CELLS = (-6.0, 7.0), 192
ESTIMATORS = {"ode": "ODE", "bound": "bound", "steps": "chain of 1,000 steps"}

Row = tuple[str, ...]


def first_channel(x: Any) -> torch.Tensor:
    """Images of one channel, as PyTorch has them."""
    return torch.as_tensor(np.array(x)).permute(0, 3, 1, 2).float()


def last_channel(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)


@jax.tree_util.register_static
class Learned:
    """The dequantizer of a flow, for ``score``."""

    start = None

    def __init__(self, flow: Dequantization) -> None:
        self.flow = flow

    @torch.no_grad()
    def __call__(self, keys: Any, x: Any) -> tuple[jax.Array, jax.Array]:
        u = per_example(jax.random.uniform, example_keys(keys, len(x)), x.shape[1:])
        u, log_q = self.flow(first_channel(u), first_channel(x))
        u = u.clamp(0, 1)  # the published map ends up to MARGIN / 2 beyond
        return jnp.asarray(last_channel(u).numpy()), jnp.asarray(log_q.numpy())


@torch.no_grad()
def of_flow(folder: Path, file: str, images: np.ndarray) -> Row:
    """bits/dim of MNIST under a flow."""
    couplings, published = FLOWS[file]
    flow = filled(ImageFlow(couplings), folder / file)
    assert isinstance(flow, ImageFlow)
    model = from_flow(
        lambda y: flow.log_prob(first_channel(y)),
        inverse=lambda y: flow.latents(first_channel(y))[0],
        forward=lambda z: last_channel(flow.data(z)),
        shape=SHAPE, pixels=Pixels(256, 0, 1),
    )  # fmt: skip
    dequantizer = Learned(flow.flows[0]) if couplings else None
    began = time.monotonic()
    scores = model.score(images, draws=DRAWS, dequantizer=dequantizer, batch_size=64)
    return _row(f"{file}, MNIST", scores, f"{published}", began)


def of_ddpm(folder: Path, data: str, images: np.ndarray, estimator: str) -> Row:
    """bits/dim of images under the DDPM of Fashion-MNIST, by one estimator."""
    pixels = Pixels.of_points(256, -1, 1)
    model = from_module(
        filled(FashionUNet(), folder / "ddpm_fashion.pt"), schedule="linear", shape=SHAPE,
        pixels=pixels, between="interpolate",
    )  # fmt: skip
    began = time.monotonic()
    how = prepared(model, images, estimator, steps=1000 if estimator == "steps" else None)
    scores = how.model.score(images, estimator=how.estimator, batch_size=64)
    return _row(f"ddpm_fashion.pt, {data}, {ESTIMATORS[estimator]}", scores, "none", began)


def _row(what: str, scores: scoremle.Scores, published: str, began: float) -> Row:
    n = len(scores)
    value = f"{scores.bpd.mean():.4f} ± {scores.bpd.std(ddof=1) / n**0.5:.4f} bits/dim"
    solver = scores.solver_error
    of_solver = f"{solver.mean():.1g}" if solver.any() else ""
    seconds = f"{time.monotonic() - began:.0f}"
    return what, f"{n} images", value, of_solver, published, seconds


def of_plane(folder: Path, file: str) -> Iterator[Row]:
    """The integral of a density of the plane, which is one, and its entropy."""
    model = from_velocity(planar(folder / file), data_at=1, shape=(2,))
    low, high = PLANE
    side, began = (high - low) / CELLS, time.monotonic()
    corners = np.stack(np.meshgrid(*[np.arange(CELLS)] * 2), axis=-1).reshape(-1, 2)
    inner = np.random.default_rng(0).random((2, *corners.shape))
    points = (low + side * (corners + inner)).reshape(-1, 2)
    found = model.log_prob(jnp.asarray(points, jnp.float32), KEY)
    log_p = np.asarray(found.log_prob, np.float64).reshape(2, -1)
    p, seconds = np.exp(log_p), f"{time.monotonic() - began:.0f}"
    for what, values, published in (("integral", p, "1"), ("entropy, nats", -p * log_p, "none")):
        area = (high - low) ** 2
        error = np.sqrt(np.square(values[0] - values[1]).sum()) / values.size
        value = f"{area * values.mean():.4f} ± {area * error:.4f}"
        yield f"{file}, {what}", f"{len(points)} points", value, "", published, seconds


def some(images: np.ndarray, count: int) -> np.ndarray:
    """Images from all over a set."""
    return images[np.arange(count) * len(images) // count]


def rows(folder: Path, count: int, parts: Sequence[str]) -> Iterator[Row]:
    """The rows of the table, each when it is measured."""
    mnist = some(read_idx_images(folder / "mnist-t10k-images-idx3-ubyte.gz"), count)
    if "flows" in parts:
        for file in FLOWS:
            yield of_flow(folder, file, mnist)
    if "ddpm" in parts:
        fashion = some(scoremle.data.load("fashion_mnist").test, count)
        for estimator in ESTIMATORS:
            yield of_ddpm(folder, "Fashion-MNIST", fashion, estimator)
        yield of_ddpm(folder, "MNIST", mnist, "ode")
    if "plane" in parts:
        for file in PLANES:
            yield from of_plane(folder, file)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path, help="the files of others")
    parser.add_argument("--images", type=int, default=32, help="of each test set (32)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="(all)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # several wait for one another by spinning
    found = []
    for row in rows(options.folder, options.images, options.parts):
        print(*filter(None, row), sep="  ", flush=True)
        found.append(row)
    answer(("model and data", "of", "value", "solver", "published", "seconds"), found)


if __name__ == "__main__":
    main()
