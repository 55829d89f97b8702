"""The benchmark for a GPU, on whatever is here: a tiny network."""

import json
import sys

import pytest
from helpers.places import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import gpu


@pytest.mark.long
def test_it_prints_each_part(capsys, monkeypatch):
    here = gpu.jax.devices()[0].device_kind
    monkeypatch.setitem(gpu.PEAKS, here, {"float32": 1e12, "bfloat16": 2e12})
    gpu.main(["--quick"])
    out = capsys.readouterr().out.splitlines()
    assert here in out[0]
    found = json.loads(out[-1])
    single, half, exact, bound = found.values()
    for row in found.values():
        assert row["images/s"] > 0 and f"{row['images/s']:.4g}" in "\n".join(out)
    # Of the network's FLOPs, at the pace of each: the same network.
    assert single["TFLOP/s"] / single["images/s"] == pytest.approx(
        half["TFLOP/s"] / half["images/s"], rel=0.05
    )
    assert single["utilisation"] == pytest.approx(single["TFLOP/s"])
    assert half["utilisation"] == pytest.approx(half["TFLOP/s"] / 2)
    for row in (exact, bound):
        assert row["s for 10,000"] * row["images/s"] == pytest.approx(10_000)
        assert 0 < row["error"] < 0.1 < row["bits/dim"]


def test_no_part_begins_too_late(capsys):
    gpu.main(["--quick", "--minutes=0"])
    assert set(map(str, json.loads(capsys.readouterr().out.splitlines()[-1]).values())) == {"{}"}
