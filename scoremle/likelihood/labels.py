"""The likelihood of images whose class is not known: the mean over a model's labels.

    log P(x) = log 1/C sum_c P(x | c)

Every label has the same dequantization noise, times and probes, so that the mean is the
model's own for each draw of these. Errors are those of the labels, weighted by their shares
P(c | x). The noise that probes leave in log P(x | c) goes through a logarithm of a sum, which
makes the mean too large by less than half its variance, in nats: by the part in which labels of
like shares differ, and by nothing where one label has it all.
"""

import math
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from scoremle.core.arguments import check_count
from scoremle.core.condition import Conditioned
from scoremle.core.dequantize import Dequantizer
from scoremle.core.pytree import frozen_pytree, static
from scoremle.errors import UserError
from scoremle.likelihood.image_model import ImageModel
from scoremle.likelihood.images import Estimator, ImageValues
from scoremle.types import IntImages

__all__ = ["ByLabels"]

ERRORS = ("probe_stderr", "solver_error", "draw_stderr")


@frozen_pytree
class ByLabels(Estimator):
    """Estimator by the mean over a class-conditional model's labels; each costs as much as one.

    Args:
        of_one: how images are measured under a label: one that can be compiled.
        labels: how many there are, from 0.

    Values: ``bpd``, its errors and ``nfe``. Raises UserError for an estimator on the host, and no
    labels.
    """

    of_one: Estimator
    labels: int = static()

    def __post_init__(self) -> None:
        if self.of_one.on_host:
            raise UserError("ByLabels is compiled, and this estimator can't be")
        check_count("labels", self.labels)

    @property
    def dequantizes(self) -> bool:
        return self.of_one.dequantizes

    @property
    def title(self) -> str:
        return f"{self.of_one.title}, mean over {self.labels} labels"

    def describe(self) -> dict[str, Any]:
        return {**self.of_one.describe(), "estimator": self.title}

    def __call__(
        self, model: ImageModel, dequantizer: Dequantizer, x: IntImages, keys: Key[Array, " b"]
    ) -> ImageValues:
        def under(label: Array) -> ImageValues:
            given = replace(cast(Any, model), noise=Conditioned(model.noise, label[None]))
            return self.of_one(given, dequantizer, x, keys)

        found = jax.lax.map(under, jnp.arange(self.labels))
        bits = x[0].size * jnp.log(2.0)
        log_prob = -found["bpd"] * bits
        shares = jax.nn.softmax(log_prob, axis=0)
        errors = {name: jnp.sum(shares * found[name], 0) for name in ERRORS if name in found}
        mean = jax.nn.logsumexp(log_prob, axis=0) - math.log(self.labels)
        return {"bpd": -mean / bits, **errors, "nfe": jnp.sum(found["nfe"], axis=0)}
