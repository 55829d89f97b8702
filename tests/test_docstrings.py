"""Each public name has an example that runs, and says what each of its arguments is.

Examples may use ``scoremle``, ``jax``, ``jnp``, ``np`` and ``dataclasses`` without importing them.
"""

import dataclasses
import doctest
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scoremle
from scoremle import anomaly, weights
from scoremle.likelihood.profile import Profile
from scoremle.nn.flowpp import FlowPP
from scoremle.zoo.adm import ADM
from scoremle.zoo.unet2d import UNet2D

IMPORTED = {"scoremle": scoremle, "jax": jax, "jnp": jnp, "np": np, "dataclasses": dataclasses}
# Those whose methods users call on what they hold.
RECORDS = (scoremle.ScoreModel, scoremle.Scores, Profile)


def methods(record: type) -> dict[str, object]:
    """The public methods and properties of a class."""
    found = {}
    for name, value in vars(record).items():
        if isinstance(value, property | classmethod) or inspect.isfunction(value):
            found[f"{record.__name__}.{name}"] = getattr(value, "fget", getattr(record, name))
    return {name: value for name, value in found.items() if "._" not in name}


NAMES = {name: getattr(scoremle, name) for name in scoremle.__all__ if name != "__version__"}
NAMES |= {f"weights.{name}": getattr(weights, name) for name in weights.__all__}
NAMES |= {f"anomaly.{name}": getattr(anomaly, name) for name in anomaly.__all__}
PUBLIC = NAMES | {name: value for record in RECORDS for name, value in methods(record).items()}
NETWORKS = {network.__name__: network for network in (ADM, FlowPP, UNet2D)}
every_name = pytest.mark.parametrize("name", PUBLIC)


@every_name
def test_an_example_runs(name):
    text = inspect.getdoc(PUBLIC[name])
    example = doctest.DocTestParser().get_doctest(text, dict(IMPORTED), name, None, 0)
    assert example.examples, f"{name} has no example"
    told = []
    doctest.DocTestRunner().run(example, out=told.append)
    assert not told, "".join(told)


@pytest.mark.parametrize("name", sorted(set(PUBLIC | NETWORKS) - {"UserError"}))
def test_each_argument_has_its_line(name):
    public = (PUBLIC | NETWORKS)[name]
    lacking = [
        parameter
        for parameter in inspect.signature(public).parameters
        if parameter not in ("self", "parent", "name", "args", "kwargs")
        and not re.search(rf"\b{parameter}\b", inspect.getdoc(public))
    ]
    assert not lacking, f"{name} does not say what {', '.join(lacking)} are"
