"""Numbers in wandb, trackio and MLflow, read back as these libraries keep them without a server.

Each library runs in processes of its own: it reads its settings when it is imported.
"""

import importlib.util
import json
import os
import struct
import subprocess
import sys

import pytest
from helpers.places import ROOT

from scoremle.errors import UserError
from scoremle.training.writers import TRACKERS, Run

CONFIG = {"seed": 42, "model.ch_mult": [1, 2]}
# One training, stopped after step 1 and gone on with.
TRAIN = f"""
import sys
from pathlib import Path
from scoremle.training.writers import TRACKERS, Run
tracker = TRACKERS[sys.argv[1]](Run(Path("run"), "digits", {CONFIG}))
step = int(sys.argv[2])
tracker.rewind(step - 1)
tracker.write(step, {{"loss": 1.5 * step}})
tracker.close()
"""
OF_MLFLOW = """
import json, mlflow
client = mlflow.MlflowClient()
(run,) = client.search_runs([client.get_experiment_by_name("scoremle").experiment_id])
rows = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")]
print(json.dumps([run.info.run_name, run.data.params["seed"], run.info.status, rows]))
"""
OF_TRACKIO = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage as Kept
(run,) = trackio.Api().runs("scoremle")
rows = [(r["step"], r["loss"]) for r in Kept.get_logs("scoremle", run.name, run_id=run.id)]
print(json.dumps([run.name, run.config["seed"], rows]))
"""
OFFLINE = {"WANDB_MODE": "offline", "TRACKIO_DIR": "trackio",
           "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}  # fmt: skip


def python(folder, *arguments):
    environment = os.environ | OFFLINE | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def trained(request, tmp_path):
    """The folder of a training under the library that a test is of, and its id there."""
    library = request.param
    if not importlib.util.find_spec(library):
        pytest.skip(f"{library} is not installed")
    (tmp_path / "run").mkdir()
    kept = []
    for step in ("1", "2"):
        python(tmp_path, TRAIN, library, step)
        kept.append(json.loads((tmp_path / "run/logged.json").read_text()))
    assert kept[0] == kept[1] and list(kept[0]) == [library]
    return tmp_path, kept[0][library]


@pytest.mark.parametrize("trained", ["mlflow"], indirect=True)
def test_mlflow_has_one_run_with_all_rows(trained):
    found = json.loads(python(trained[0], OF_MLFLOW))
    assert found == ["run digits", "42", "FINISHED", [[1, 1.5], [2, 3.0]]]


@pytest.mark.parametrize("trained", ["trackio"], indirect=True)
def test_trackio_has_one_run_with_all_rows(trained):
    folder, mark = trained
    found = json.loads(python(folder, OF_TRACKIO))
    assert found == [f"run digits {mark}", 42, [[1, 1.5], [2, 3.0]]]


@pytest.mark.long
@pytest.mark.parametrize("trained", ["wandb"], indirect=True)
def test_wandb_has_one_run_with_all_rows(trained):
    from wandb.proto.wandb_internal_pb2 import Record

    folder, mark = trained
    ids, rows = set(), []
    for path in sorted(folder.glob("run/wandb/offline-run-*/*.wandb")):
        for data in records_of(path.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add((record.run.run_id, record.run.display_name, record.run.project))
            rows += [
                (record.history.step.num, json.loads(item.value_json))
                for item in record.history.item
                if "loss" in (item.key, *item.nested_key)
            ]
    assert ids == {(mark, "run digits", "scoremle")}
    assert rows == [(1, 1.5), (2, 3.0)]


def records_of(content):
    """Of wandb's file: after 7 bytes, a checksum, a length and a kind before each record."""
    at = 7
    while at + 7 <= len(content):
        length, kind = struct.unpack_from("<HB", content, at + 4)
        assert kind == 1  # whole: a file this short has no record in two blocks
        yield content[at + 7 : at + 7 + length]
        at += 7 + length


@pytest.mark.parametrize("library", ["wandb", "trackio", "mlflow"])
def test_a_library_that_is_missing_is_a_line(library, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f"pip install {library}"):
        TRACKERS[library](Run(tmp_path, "", {}))


class Refusing:
    """A library in which nobody is logged in."""

    def init(self, **_):
        raise RuntimeError("no API key")


def test_what_a_library_says_against_it_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Refusing())
    with pytest.raises(UserError, match="API key"):
        TRACKERS["wandb"](Run(tmp_path, "", {})).rewind(0)
    assert not list(tmp_path.iterdir())


def test_a_run_is_named_after_its_folder_and_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    assert Run(tmp_path / "a", "digits", {}).name == "a digits"
    assert Run(tmp_path / "a" / "..", "digits", {}).name == f"{tmp_path.name} digits"
