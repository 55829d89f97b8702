"""The notebooks run: their own asserts hold, and they draw as many pictures as they show."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.places import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
NEEDED = {"pytorch": "torch", "digits": "sklearn"}


def outputs(path: Path) -> list[dict]:
    cells = json.loads(path.read_text())["cells"]
    return [out for cell in cells if cell["cell_type"] == "code" for out in cell["outputs"]]


def pictures(path: Path) -> int:
    return sum("image/png" in out.get("data", {}) for out in outputs(path))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    for library in ("nbclient", "ipykernel", "matplotlib", NEEDED.get(path.stem, "scipy")):
        pytest.importorskip(library)
    copy = shutil.copy(path, tmp_path)
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/theme/execute.py"), copy],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert pictures(Path(copy)) == pictures(path) >= 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_kept_is_whole_and_small(path):
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in cells]
    assert counts == list(range(1, len(cells) + 1)), "run it: make notebooks"
    assert not any(out["output_type"] == "error" for out in outputs(path))
    assert path.stat().st_size < 200_000
