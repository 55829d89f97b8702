"""Where the numbers of a training go, and what stays of them when it goes on.

The libraries of trackers are stand-ins that keep what they are told; test_trackers.py has the true
ones.
"""

import json
import re
import struct
import sys
from types import SimpleNamespace
from unittest.mock import Mock, call

import pytest

from scoremle.errors import UserError
from scoremle.training.writers import TRACKERS, Console, Run

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


@pytest.mark.parametrize("library", ["wandb", "trackio"])
def test_what_a_library_is_told_of_a_run(library, tmp_path, monkeypatch):
    module = Mock()
    monkeypatch.setitem(sys.modules, library, module)
    for marks in (1, 2):
        writer = TRACKERS[library](Run(tmp_path, "digits", {"seed": 42}))
        writer.rewind(0)
        writer.rewind(0)  # it has begun
        writer.write(3, {"loss": 0.5})
        writer.close()
        writer.close()
        assert (module.init.call_count, module.finish.call_count) == (marks, marks)
    mark = json.loads((tmp_path / "logged.json").read_text())[library]
    assert re.fullmatch("[0-9a-f]{8}", mark)
    name, more = f"{tmp_path.name} digits", {"id": mark, "dir": str(tmp_path)}
    named = {"name": name, **more} if library == "wandb" else {"name": f"{name} {mark}"}
    told = call(project="scoremle", resume="allow", config={"seed": 42}, **named)
    assert module.init.call_args_list == [told, told]
    assert module.log.call_args_list == [call({"loss": 0.5}, step=3)] * 2


@pytest.mark.parametrize("experiment", [None, "5"])
def test_what_mlflow_is_told_of_a_run(experiment, tmp_path, monkeypatch):
    module = Mock()
    client = module.MlflowClient.return_value
    there = experiment and SimpleNamespace(experiment_id=experiment)
    client.get_experiment_by_name.return_value = there
    client.create_experiment.return_value = "7"
    client.create_run.return_value.info.run_id = "mine"
    module.entities.Metric.side_effect = lambda *fields: fields
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setattr("time.time", lambda: 12.5)
    for _ in range(2):
        writer = TRACKERS["mlflow"](Run(tmp_path, "digits", {"seed": 42, "lr": 0.1}))
        writer.rewind(0)
        writer.write(3, {"loss": 0.5, "norm": 1.0})
        writer.close()
    name = f"{tmp_path.name} digits"
    metrics = [("loss", 0.5, 12500, 3), ("norm", 1.0, 12500, 3)]
    row = [call.log_batch("mine", metrics=metrics), call.set_terminated("mine")]
    assert client.method_calls == [
        call.get_experiment_by_name("scoremle"),
        *([] if experiment else [call.create_experiment("scoremle")]),
        call.create_run(experiment or "7", run_name=name),
        call.log_param("mine", "seed", 42), call.log_param("mine", "lr", 0.1),
        *row, call.update_run("mine", status="RUNNING"), *row,
    ]  # fmt: skip


def test_bits_that_are_uniform_s_own_come_too_early(capsys):
    console = Console(100, uniform=4.0)
    console.rewind(0)
    for step, bpd in ((1, 4.0), (2, 3.999), (3, None)):
        row = {"loss": 0.12345} | ({"eval_bpd": bpd} if bpd else {})
        console.write(step, row | ({"eval_bpd_stderr": 0.0126} if step == 2 else {}))
    console.close()
    first, second, third = capsys.readouterr().out.splitlines()
    assert "loss 0.1235  bpd 4.000 (too early: above uniform)  " in first
    assert "loss 0.1235  bpd 3.999 +- 0.013  " in second and "(step" not in second
    assert "bpd 3.999 +- 0.013  (step 2)" in third
