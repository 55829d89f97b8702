"""Scores by workers of Ray: the values of one machine, whatever is killed in between."""

import functools
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import scoremle
from scoremle.cli.commands import score_on_ray as score_on_ray_command
from scoremle.data.pieces import ImageKind, pieces_of
from scoremle.errors import UserError
from scoremle.experiment import on_ray
from scoremle.experiment.on_ray import Table, _workers, score_on_ray
from scoremle.experiment.scorer import Scorer

IMAGES = scoremle.data.load("digits").test[:20]
BAD = 7
DIGITS = (ImageKind((8, 8, 1)), "")


class Mortal(Scorer):
    """A worker that dies in its second batch, once."""

    def __init__(self, marker: Path):
        super().__init__("digits", batch_size=4)
        self.marker, self.calls = marker, 0

    def __call__(self, batch):
        self.calls += 1
        if self.calls == 2 and not self.marker.exists():
            self.marker.touch()
            os._exit(1)
        return super().__call__(batch)


class Serial:
    """Ray's data in this process, where one worker does all."""

    exceptions = SimpleNamespace(RayError=ZeroDivisionError)

    @property
    def data(self):
        return self

    def ActorPoolStrategy(self, size):
        return size

    def from_items(self, items, **_):
        self.batches = [{"item": np.fromiter([item], object)} for item in items]
        return self

    def map_batches(self, work, *, batch_size, fn_args=(), fn_constructor_args=(), **_):
        if not fn_constructor_args:
            self.batches = [found for batch in self.batches for found in work(batch, *fn_args)]
            return self
        names = self.batches[0]
        rows = {name: np.concatenate([batch[name] for batch in self.batches]) for name in names}
        work, starts = work(*fn_constructor_args), range(0, len(rows["index"]), batch_size)
        self.batches = [work({name: rows[name][i : i + batch_size] for name in rows})
                        for i in starts]  # fmt: skip
        return self

    def iter_batches(self, **_):
        return self.batches


@pytest.fixture
def serial(monkeypatch, tmp_path):
    monkeypatch.setattr(on_ray, "ray_data", Serial)
    monkeypatch.setattr(on_ray, "_running", lambda *_: nullcontext((1, 0)))
    (tmp_path / "died").touch()  # and will not again: it would be the death of the test


@pytest.fixture
def ray():
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers find no tests


@pytest.mark.parametrize("engine", ["serial", pytest.param("ray", marks=pytest.mark.long)])
def test_killed_and_stopped(engine, request, tmp_path):
    request.getfixturevalue(engine)
    for i, pixels in enumerate(IMAGES):
        Image.fromarray(pixels[..., 0]).save(tmp_path / f"{i:02}.png")
    (tmp_path / f"{BAD:02}.png").write_bytes(b"no picture")
    pieces, table = pieces_of(tmp_path), Table(tmp_path / "out")
    run = functools.partial(
        score_on_ray, functools.partial(Mortal, tmp_path / "died"), pieces, DIGITS, table,
        workers=1, batch_size=4,
    )  # fmt: skip
    run()
    assert (tmp_path / "died").exists()  # and was replaced
    expected = scoremle.load("digits").score(IMAGES)
    good = np.arange(20) != BAD

    def check():
        np.testing.assert_array_equal(table.column("index"), np.arange(20))
        np.testing.assert_allclose(table.column("bpd")[good], expected.bpd[good], rtol=1e-5)
        assert np.isnan(table.column("bpd")[BAD])
        assert "can't be decoded" in table.column("reason")[BAD]
        assert table.column("name")[3] == "03.png"

    check()
    files = sorted(table.folder.glob("*.parquet"))
    left = {file.name: file.stat().st_mtime_ns for file in files[1:]}
    files[0].unlink()
    run()
    check()
    now = {file.name: file.stat().st_mtime_ns for file in table.folder.glob("*.parquet")}
    assert {name: now[name] for name in left} == left  # nothing was worked on again
    run()  # nothing is left: Ray is not even started
    files[0].write_bytes(b"damage")
    with pytest.raises(UserError, match="is damaged"):
        run()


class Failing(Mortal):
    def __call__(self, batch):
        raise self.error("unlucky")


@pytest.mark.long
@pytest.mark.parametrize(
    "error, reason", [(ValueError, "ValueError: unlucky"), (UserError, "unlucky")]
)
def test_the_reason_of_a_worker_is_named(error, reason, ray, tmp_path, monkeypatch):
    monkeypatch.setattr(Failing, "error", error, raising=False)
    Image.fromarray(IMAGES[0, ..., 0]).save(tmp_path / "a.png")
    scorer = functools.partial(Failing, tmp_path / "died")
    with pytest.raises(UserError, match=f"failed: {reason}$"):
        score_on_ray(scorer, pieces_of(tmp_path), DIGITS, Table(tmp_path / "out"), batch_size=4)


def test_names_that_are_not_utf8(serial, tmp_path):
    Image.fromarray(IMAGES[0, ..., 0]).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", bytes(tmp_path) + b"/\xff.png")
    table, scorer = Table(tmp_path / "out"), functools.partial(Mortal, tmp_path / "died")
    score_on_ray(scorer, pieces_of(tmp_path), DIGITS, table, batch_size=4)
    assert table.column("name").tolist() == [r"\udcff.png"]


@pytest.mark.parametrize("address", ["", "10.0.0.1:6379"])
def test_a_ray_that_does_not_begin_is_a_line(address):
    def init(**_):
        raise Exception("timed out")

    ray = SimpleNamespace(init=init)
    with pytest.raises(UserError, match="timed out"), on_ray._running(ray, address, 1):
        pass


def test_workers():
    assert _workers(None, gpus=2, cpus=8) == 2
    assert _workers(None, gpus=0, cpus=8) == 2
    assert _workers(3, gpus=0, cpus=4) == 3
    with pytest.raises(UserError, match="4 CPU cores"):
        _workers(4, gpus=0, cpus=4)


def test_scores_of_other_settings(tmp_path):
    table = Table(tmp_path)
    table.begin({"seed": 0, "passes": 4})
    table.begin({"seed": 0, "passes": 4})
    with pytest.raises(UserError, match="seed 0, not"):
        table.begin({"seed": 1, "passes": 4})


def test_a_flipped_bit_gives_no_other_value(tmp_path):
    table, values = Table(tmp_path), np.random.default_rng(0).normal(size=64)
    table.write({"index": np.arange(64, dtype=np.uint64), "bpd": values})
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            found = table.column("bpd")
        except UserError:
            continue
        np.testing.assert_array_equal(found, values)


def test_a_file_of_other_columns_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, index = Table(tmp_path), np.arange(3, dtype=np.uint64)
    table.write({"index": index, "name": index.astype(str)})
    np.testing.assert_array_equal(table.column("index"), index)
    for column in (["a"], [0.5], [None], [[1]], [-1]):
        pq.write_table(pa.table({"index": column}), tmp_path / "other.parquet")
        with pytest.raises(UserError, match=r"other\.parquet is damaged"):
            table.column("index")


def test_the_summary_has_the_mean_of_what_was_scored_and_the_first_reason(unchecked, capsys):
    bpd, reason = np.array([1.0, np.nan, 2.0, np.nan]), np.array(["", "too small", "", "no file"])
    table = SimpleNamespace(
        column={"bpd": bpd, "reason": reason}.get, folder=Path("t"), COLUMNS=Table.COLUMNS
    )
    found = score_on_ray_command._summary(
        table, SimpleNamespace(title="exact"), SimpleNamespace(model="digits")
    )
    assert (found["mean"], found["images"], found["left_out"]) == (1.5, 2, 2)
    assert "2 images could not be scored; the first: too small" in capsys.readouterr().out
    table.column = {"bpd": bpd[::2], "reason": reason[::2]}.get
    score_on_ray_command._summary(
        table, SimpleNamespace(title="exact"), SimpleNamespace(model="digits")
    )
    assert "could not" not in capsys.readouterr().out


def test_the_first_images_are_those_that_can_be_scored(tmp_path):
    def first():
        return score_on_ray_command._first(
            pieces_of(tmp_path), DIGITS[0], SimpleNamespace(fit="")
        )

    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1 images .*a\.png:"):
        first()
    Image.fromarray(np.full((8, 8), 170, np.uint8)).save(tmp_path / "b.png")
    assert first().shape == (1, 8, 8, 1) and (first() == first()[0, 0, 0, 0]).all()


def test_a_worker_has_the_model_of_the_pilot_and_its_label(monkeypatch):
    model = scoremle.load("digits")
    monkeypatch.setattr(score_on_ray_command, "load", lambda *place: {("digits", 3): model}[place])
    solver = scoremle.Multistep(7)
    found = score_on_ray_command._model("digits", 3, solver, 0.25, "")
    assert (found.solver, found.decoder_scale, found.noise) == (solver, 0.25, model.noise)
    under = score_on_ray_command._model("digits", 3, solver, None, "2")
    assert under.noise is not model.noise
