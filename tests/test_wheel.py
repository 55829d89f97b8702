"""What is installed is the product: a wheel in an empty folder; a clone seen from above it."""

import json
import os
import runpy
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest
from helpers.places import ROOT
from helpers.printed import assert_printed, column

pytest.importorskip("hatchling")
pytestmark = pytest.mark.slow

SMALL = [
    f"--config.{field}"
    for field in (
        "model.nf=4", "model.ch_mult=(1,)", "model.attn_resolutions=(1,)", "training.n_iters=10",
        "training.snapshot_freq=10", "training.batch_size=32", "training.snapshot_sampling=False",
        "eval.batch_size=20", "eval.num_images=20", "eval.solver=multistep", "eval.nodes=6",
    )
]  # fmt: skip

# Two of the demo's commands, then scores of the same images in two ways.
JOB = """
import json, sys
import numpy as np
import scoremle
from scoremle.cli.main import main

common = ["--config=digits", "--workdir=w", *sys.argv[1:]]
assert main([*common, "--mode=train"]) == 0
assert main([*common, "--mode=eval"]) == 0
images = scoremle.data.load("digits").test[:8]
np.save("images.npy", images)
assert main(["score", "w", "images.npy", "--repeats=1"]) == 0
bpd = scoremle.load("w").score(images).bpd.tolist()
with open("told.json", "w") as file:
    json.dump({"bpd": bpd, "file": scoremle.__file__, "path": sys.path}, file)
"""


def done(*command: str | Path, cwd: Path) -> str:
    """What a command printed, run where no setting points to this clone."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def pip(*arguments: str | Path, cwd: Path) -> None:
    done(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=cwd)


def installed(folder: Path, *what: str | Path) -> Path:
    """A fresh environment's folder of programs; what is installed needs is that of this one."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = next(folder.glob("[bS]*/python*"))
    site = done(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    Path(site.strip(), "needed.pth").write_text(sysconfig.get_path("purelib"))
    alone = ("--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed")
    pip("--python", python, "install", *alone, *what, cwd=folder)
    return python.parent


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The source distribution, unpacked into a folder of the package's name."""
    folder = tmp_path_factory.mktemp("source")
    code = f"from hatchling.build import build_sdist; print(build_sdist({str(folder)!r}))"
    archive = folder / done(sys.executable, "-c", code, cwd=ROOT).strip()
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return (folder / archive.name.removesuffix(".tar.gz")).rename(folder / "scoremle")


def test_the_source_holds_the_package_and_little_else(clone):
    beside = {path.name for path in clone.iterdir()} - {"scoremle", ".gitignore", "PKG-INFO"}
    assert beside == {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"}
    there, ours = (
        {path.relative_to(root) for path in root.glob("scoremle/**/*") if path.is_file()}
        for root in (clone, ROOT)
    )
    assert there == {path for path in ours if path.suffix != ".pyc"}


@pytest.mark.long
@pytest.mark.long
def test_a_wheel_does_the_whole_job_from_an_empty_folder(clone, tmp_path):
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, clone, cwd=tmp_path)
    programs = installed(tmp_path / "venv", *tmp_path.glob("*.whl"))
    (empty := tmp_path / "empty").mkdir()
    assert "fields of vp/imagenet32" in done(
        programs / "scoremle", "--help", "--config=vp/imagenet32_ddpmpp_continuous", cwd=empty
    )
    done(programs / "python", "-c", JOB, *SMALL, cwd=empty)

    told = json.loads((empty / "told.json").read_text())
    assert Path(told["file"]).is_relative_to(tmp_path / "venv")
    assert not {str(ROOT), str(empty)} & set(told["path"])
    assert (Path(told["file"]).parent / "py.typed").exists()
    results = json.loads((empty / "w" / "eval" / "results.json").read_text())
    assert results.keys() == {"exact_test_ckpt_1"}
    assert_printed(column(empty / "scores.csv"), told["bpd"])


@pytest.mark.long
def test_an_editable_install_is_found_from_the_folder_above_the_clone(clone, tmp_path):
    programs = installed(tmp_path / "venv", "--editable", clone)
    code = "import scoremle; print(scoremle.__file__, scoremle.VP.__name__)"
    found = done(programs / "python", "-c", code, cwd=clone.parent)
    assert found.split() == [str(clone / "scoremle" / "__init__.py"), "VP"]


def test_what_a_release_is_tried_by_runs(tmp_path, monkeypatch):
    """In the checkout, as later of the wheel in a new environment."""
    monkeypatch.chdir(tmp_path)
    exec(runpy.run_path(str(ROOT / ".ci" / "release"))["SMOKE"], {})
    assert (tmp_path / "grid.png").exists()
