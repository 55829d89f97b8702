"""The bound's control variate, as an experiment fits it: on which images, and where it is kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from scoremle.core.dequantize import Uniform
from scoremle.core.keys import key_of
from scoremle.data import ImageSet
from scoremle.errors import UserError
from scoremle.files import SEAL, read_npz, write_npz
from scoremle.likelihood.control_variate import Control, FittedGaussian, most_examples
from scoremle.likelihood.control_variate_fit import fit_control
from scoremle.likelihood.image_model import pixels_of
from scoremle.model import ScoreModel
from scoremle.numerics import permutation
from scoremle.processes import of_the_first
from scoremle.resumable import content_hash, fingerprint
from scoremle.training.checksums import tree_hash
from scoremle.types import Images, IntImages, PRNGKey

# Folded into the seed's key in place of a step: a number that no step has.
CONTROL = 2**32 - 2
# Images that are encoded at once.
BATCH = 1000
# The arrays of a control's Gaussian, among all that are kept of a control.
GAUSSIAN = ("mean", "axes", "variances", "rest")


@dataclass(frozen=True)
class ControlRun:
    """A fit of the control variate, and of the density of the bound's times, on training images.

    ``matching`` is that of the bound, and the seed draws the images.
    """

    model: ScoreModel
    matching: str
    data: ImageSet
    seed: int

    @cached_property
    def images(self) -> UInt8[np.ndarray, "n h w c"]:
        order = permutation(len(self.data.train), self.seed, CONTROL)
        return self.data.train[order[: most_examples(self.model.dims)]]

    def describe(self) -> dict[str, Any]:
        """Facts recorded with a bound that was measured with it."""
        return {
            "control": "shrunk Gaussian and powers of pixels, checked coefficients by log-SNR",
            "control_images": len(self.images),
            "control_hash": content_hash(self.images),
        }

    def fit(self) -> Control:
        """The control variate of the model."""
        pixels = pixels_of(self.model)
        key = jax.random.fold_in(key_of(self.seed), CONTROL)
        key_u, key_fit = jax.random.split(key)

        @jax.jit
        def encode(x: IntImages, key: PRNGKey) -> Images:
            return pixels.encode(x, Uniform()(key, x)[0])

        x = np.concatenate([
            encode(self.images[i : i + BATCH], jax.random.fold_in(key_u, i))
            for i in range(0, len(self.images), BATCH)
        ])  # fmt: skip
        return fit_control(
            self.model.noise, self.model.sde, jnp.asarray(x), key_fit,
            eps=self.model.eps, matching=self.matching, label="fit of the control variate",
        )  # fmt: skip

    def kept(self, folder: Path, identity: Mapping[str, Any]) -> Control:
        """The control variate of the model, kept in a folder.

        ``identity`` is the model's but for its parameters. A run that goes on reads it there, so
        that all batches are measured with the same; and so does another bound of the same network.
        """
        own = {"matching": self.matching, "seed": self.seed, "params": tree_hash(self.model)}
        facts = {**self.describe(), **own, "model": identity}
        path = folder / f"control_{fingerprint(facts)}.npz"
        found = read_npz(path)
        if found is None or str(found.pop(SEAL, "")) != tree_hash(found):
            control = self.fit()
            fitted = {**vars(control.gaussian), **vars(control)}
            del fitted["gaussian"]
            found = jax.device_get(fitted)
            if not all(np.isfinite(array).all() for array in found.values()):
                raise UserError(
                    "the network's output is not finite on training images, to which the bound's"
                    " control variate is fitted"
                )
            write_npz(path, {**found, SEAL: np.asarray(tree_hash(found))})
        arrays = {name: jnp.asarray(array) for name, array in of_the_first(found).items()}
        gaussian = FittedGaussian(**{name: arrays.pop(name) for name in GAUSSIAN})
        return Control(gaussian, **arrays)
