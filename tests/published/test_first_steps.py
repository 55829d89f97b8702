"""The first steps of a published training beside PyTorch's, of the same draws."""

import json
import sys

import pytest
from helpers.places import ROOT

pytest.importorskip("torch")
sys.path.append(str(ROOT / "benchmarks"))

import first_steps


@pytest.mark.long
@pytest.mark.parametrize("sde", ["vp", "subvp"])
def test_losses_gradients_parameters_and_averages_are_those_of_pytorch(sde, capsys):
    config = f"--config={sde}/cifar10_ddpmpp_continuous"
    first_steps.main(["--quick", "--warmup=0", "--steps=3", "--batch=3", config])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(found["steps"]) == 3
    for loss, gradient, theirs, of_theirs in found["steps"]:
        assert loss == pytest.approx(theirs, rel=1e-6)
        assert gradient == pytest.approx(of_theirs, rel=1e-5)
    # The average moves by little more than single precision resolves.
    for name, limit in {"parameters": 1e-4, "average": 5e-3}.items():
        moved, distance = found[name]
        assert moved > 1e-6 and distance < limit
