"""Where the numbers of a training go, and what stays of them when it goes on.

The libraries of trackers are stand-ins that keep what they are told; test_trackers.py has the true
ones.
"""

import json
import struct
import sys
from types import SimpleNamespace

import pytest

from scoremle.errors import UserError
from scoremle.training.writers import TRACKERS, Run

LIBRARIES = ("wandb", "trackio", "mlflow")


class Library:
    """A stand-in: runs by what they are known by, each with its rows (step, name, value)."""

    def __init__(self):
        self.runs, self.now = {}, None
        self.MlflowClient = lambda: self
        self.entities = SimpleNamespace(Metric=lambda name, value, now, step: (step, name, value))

    # wandb and trackio
    def init(self, *, name, id="", **_):
        self.now = id or name
        self.runs.setdefault(self.now, [])

    def log(self, row, step):
        self.runs[self.now] += [(step, name, value) for name, value in row.items()]

    def finish(self):
        self.now = None

    # MLflow
    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return "1"

    def create_run(self, experiment, run_name):
        self.runs[f"run{len(self.runs)}"] = []
        return SimpleNamespace(info=SimpleNamespace(run_id=f"run{len(self.runs) - 1}"))

    def log_param(self, run, name, value):
        assert run in self.runs

    def update_run(self, run, status):
        assert run in self.runs

    def log_batch(self, run, metrics):
        self.runs[run] += metrics

    def set_terminated(self, run):
        assert run in self.runs


def of_tensorboard(folder):
    """The rows in event files, without those that a later file says are to be forgotten."""
    from tensorboardX.proto.event_pb2 import Event

    rows = []
    for path in sorted(folder.glob("events.out.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):  # a length and its checksum, the event and its checksum
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            if event.HasField("session_log"):
                rows = [row for row in rows if row[0] < event.step]
            rows += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return rows


def test_each_tracker_goes_on_with_its_own_run(tmp_path, monkeypatch):
    """All of them at once, and a training that is gone on with twice."""
    there = {name: Library() for name in LIBRARIES}
    for name, library in there.items():
        monkeypatch.setitem(sys.modules, name, library)
    for steps in ((1, 2), (3,), (4,)):
        run = Run(tmp_path, "run digits", {"seed": 42})
        for writer in [TRACKERS[name](run) for name in LIBRARIES]:
            writer.rewind(steps[0] - 1)
            for step in steps:
                writer.write(step, {"loss": 0.5 * step, "norm": 1.0})
            writer.close()
    rows = [row for step in (1, 2, 3, 4) for row in ((step, "loss", 0.5 * step),
                                                     (step, "norm", 1.0))]  # fmt: skip
    for library in there.values():
        assert list(library.runs.values()) == [rows] and library.now is None  # it was finished
    assert set(json.loads((tmp_path / "logged.json").read_text())) == set(LIBRARIES)


def test_tensorboard_keeps_the_rows_up_to_the_step_that_it_goes_on_from(tmp_path):
    pytest.importorskip("tensorboardX")
    for begin, value in ((0, 1.0), (2, 2.0)):
        writer = TRACKERS["tensorboard"](Run(tmp_path, "digits", {}))
        folder = tmp_path / "tensorboard"
        writer.rewind(begin)
        for step in range(begin + 1, 5):
            writer.write(step, {"loss": value * step})
        writer.close()
        for path in folder.glob("events.out.tf*"):  # which the next would have in one second
            path.rename(folder / f"events.out.{begin}")
    rows = [(1, "loss", 1), (2, "loss", 2), (3, "loss", 6), (4, "loss", 8)]
    assert of_tensorboard(folder) == rows


def test_tensorboard_that_is_not_installed_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match="pip install tensorboardX"):
        TRACKERS["tensorboard"](Run(tmp_path, "digits", {}))
