"""The precision of the matrix products of a program."""

from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params

HIGHEST = (jax.lax.Precision.HIGHEST,) * 2


def precisions(function: Any, *inputs: Any) -> list[Any]:
    """Those of both factors of each product, convolutions too, wherever in the program it is."""
    return list(_of(jax.make_jaxpr(function)(*inputs).jaxpr))


def _of(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation.params["precision"]
        for inner in jaxprs_in_params(equation.params):
            yield from _of(inner)
