"""What runs leave, as subjects of mutations: records, parts, tables, logs, locks and exports.

The module is imported before processes are forked: so nothing is computed by JAX until then.
"""

import contextlib
import functools
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

import scoremle
from helpers import small_places
from helpers.true_files import (
    DATA,
    RECORD_OF_CHECKPOINT,
    Files,
    as_json,
    checkpoint_record,
    edm_tensors,
    file,
    in_part,
    in_values,
    npy,
    of_edm,
    our_checkpoint,
    our_files,
    packed_zip,
    prepared_files,
    results,
    sealed,
    tiny_arrays,
    tiny_config,
    unsealed,
    written,
)  # fmt: skip
from scoremle import data
from scoremle.cli.commands import compare
from scoremle.experiment import exported, imported, lock, run_train
from scoremle.experiment.build import build
from scoremle.experiment.results import add_results, read_results
from scoremle.experiment.workdir import Workdir
from scoremle.files import machine
from scoremle.published import safetensors
from scoremle.quality import inception
from scoremle.quality.features import Extractor, load_inception, read_reference
from scoremle.report.subject import Subject as Reported
from scoremle.resumable import resumable_map
from scoremle.training.checksums import tree_hash
from scoremle.training.writers import KEPT, JsonLines, KnownRun, Run

__all__ = ["RUN_SUBJECTS", "Subject", "check_images", "check_prepared"]


class Subject(NamedTuple):
    """What is read in a way of its own.

    ``content`` is to be altered: bytes, or what a JSON file says. ``put`` writes it into a folder,
    with all that lies beside it; it may pack it, so that an alteration lies below a checksum.
    ``read`` reads the folder as the program does, and asserts that what comes has the shape and
    type that the file declares. ``share`` is less than one where a reading takes long.
    """

    content: Callable[[], Any]
    put: Callable[[Path, Any], None]
    read: Callable[[Path], None]
    share: float = 1.0


def check_images(images: np.ndarray, labels: np.ndarray | None, meta: Any, split: str) -> None:
    assert images.dtype == np.uint8 and images.flags.c_contiguous
    assert images.shape == (meta["counts"][split], *meta["shape"])
    if labels is not None:
        assert labels.dtype == np.int32 and labels.shape == images.shape[:1]


def check_prepared(folder: Path) -> None:
    found = data.Prepared(folder)
    for split in ("train", "test"):
        check_images(found.images(split), found.labels(split), found.meta, split)


def check_workdir(folder: Path) -> None:
    place = Workdir(folder / "source")
    experiment = build(place.config(), levels=place.levels())
    assert 2 <= experiment.model.pixels.levels <= 256
    assert len(experiment.data.shape) == 3


def check_checkpoint(folder: Path) -> None:
    place = Workdir(folder / "source")
    tree, meta, number = place.restore(small_places.TEMPLATE)
    place.check_records()
    assert number == 1 and int(tree.step) == 10 and isinstance(meta["step"], int)


def check_arrays(folder: Path) -> None:
    """They are what was saved, or not read."""
    tree = Workdir(folder / "source").restore(small_places.TEMPLATE)[0]
    assert tree_hash(tree) == small_places.hash_at(10)


def check_score_model(folder: Path) -> None:
    """What a flow was begun for is what it is asked for, or refused."""
    run_train._check_score_model(Workdir(folder / "source"), SCORE_MODEL)
    assert json.loads((folder / "source" / "score_model.json").read_text()).items() >= (
        SCORE_MODEL.items()
    )


def check_inception(folder: Path) -> None:
    with mock.patch.object(inception, "shapes", lambda: {"fc/kernel": POOL.shape}):
        found = load_inception(folder / "source" / "weights.npz")
    kernel = found.apply.args[0]["params"]["fc"]["kernel"]
    assert found.size == len(POOL) and kernel.dtype == np.float32 and np.isfinite(kernel).all()


def check_results(folder: Path) -> None:
    found = read_results(folder / "source" / "results.json")
    add_results(folder / "source" / "results.json", {"another": {"mean": 1.0}})
    assert isinstance(found, dict)


def check_compared(folder: Path) -> None:
    """The two are compared; an extreme value is a number, too."""
    name = "scores.csv" if (folder / "source" / "scores.csv").exists() else VALUES
    place = folder / "source" / name
    with contextlib.redirect_stdout(io.StringIO()):
        found = compare.run(SimpleNamespace(first=place, second=place))
    for facts in found.values():
        assert facts["difference"] == 0 and np.isfinite([facts["a"], facts["b"]]).all()


def check_parts(folder: Path) -> None:
    rows = resumable_map(small_places.work, 11, size=4, passes=2, folder=folder / "source")
    assert rows["bpd"].shape == rows["nfe"].shape == (2, 11)
    np.testing.assert_array_equal(rows["nfe"], 6)


def check_rows(folder: Path) -> None:
    path = folder / "source" / "metrics.jsonl"
    JsonLines(path).rewind(20)
    assert all(json.loads(line)["step"] <= 20 for line in path.read_text().splitlines())


def check_reported(folder: Path) -> None:
    for row in Reported(Workdir(folder / "source"), "eval").log:
        numbers = [value for value in row.values() if value is not None]
        assert np.isfinite(np.asarray(numbers, float)).all() and type(row["step"]) is int


def check_lock(folder: Path) -> None:
    with (
        mock.patch.multiple(lock, BEAT=0.01, WATCH=0.02),
        contextlib.redirect_stdout(io.StringIO()),
        lock.locked(folder / "source" / ".lock", "reading"),
    ):
        owner = json.loads((folder / "source" / ".lock").read_text())
        assert owner["doing"] == "reading"


class _Books(KnownRun):
    """A library that knows what it was told."""

    def _begin(self, known: str | None) -> str:
        self.known = known
        return known or "new"

    def _log(self, step: int, row: Any) -> None: ...

    def _finish(self) -> None: ...


def check_books(folder: Path) -> None:
    books = _Books("json", Run(folder / "source", "run", {}))
    books.rewind(0)
    assert isinstance(books.known, str | None)
    assert json.loads((folder / "source" / KEPT).read_text())["json"]


def check_features(folder: Path) -> None:
    found = read_reference(folder / "source" / "stats.npz", EXTRACTOR)
    assert found.pool.ndim == 2 and found.pool.shape[1] == 3 and found.pool.dtype.kind == "f"
    assert found.facts["images"] == len(found.pool) and np.isfinite(found.pool).all()


def check_export(folder: Path) -> None:
    model = scoremle.load(folder / "source" / "model.safetensors")
    x = jax.ShapeDtypeStruct((1, *model.shape), np.float32)
    t = jax.ShapeDtypeStruct((1,), np.float32)
    assert jax.eval_shape(model.noise, x, t).shape == x.shape and type(model.origin.step) is int


def check_exported_record(folder: Path) -> None:
    file = folder / "source" / "checkpoint_1"
    file.touch()
    config, facts = exported.read_record(file)
    assert isinstance(facts["levels"], int) and config.model.name


def check_imported(folder: Path) -> None:
    model = imported.Imported(folder / "source").load()
    assert len(model.shape) == 3 and model.pixels is not None


# Contents ----------------------------------------------------------------------------------------

EXTRACTOR = Extractor(lambda images: images, "a stand-in", 3, "abc")
POOL = np.arange(12, dtype=np.float32).reshape(4, 3)
VALUES = "exact_test_ckpt_2.npz"
TABLE = b"""\
bpd,log_prob,file,stderr,probe_stderr,solver_error,note
3.25,-144.2,a.png,0.1,0.05,0.002,
,,notes.txt,,,,not scored: no picture
"3.5",-155.3,"b, c.png",0.1,0.05,0.002,shrunk
"""
OWNER = {"doing": "training", "machine": machine(), "process": 2**31 - 1, "since": "today"}


def of_features(pool: bytes, record: Any) -> bytes:
    return packed_zip({"pool_3.npy": pool, "record.npy": npy(np.asarray(json.dumps(record)))})


def with_notes(content: Any) -> bytes:
    """An export with these notes, which are texts."""
    told = content.items() if isinstance(content, dict) else ()
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in told}
    return written(lambda path: safetensors.write(path, tiny_arrays(), texts))


SCORE_MODEL = {"score_checkpoint": 1, "score_step": 10, "score_hash": "abc"}


STATE = "checkpoints/checkpoint_1/state"


def of_checkpoint(name: str) -> bytes:
    return our_checkpoint()[f"{STATE}/{name}"]


def arrays_of_checkpoint() -> str:
    """The file that has most of them; its name is another each time."""
    files = our_checkpoint()
    return max((name for name in files if "/state/d/" in name), key=lambda name: len(files[name]))


def put_arrays(folder: Path, content: bytes) -> None:
    file(arrays_of_checkpoint(), our_checkpoint)(folder, content)


def put_checkpoint(folder: Path, record: Any) -> None:
    """With this record in the place of its own."""
    for name, content in our_checkpoint().items():
        file(name)(folder, content)
    file(RECORD_OF_CHECKPOINT)(folder, sealed(record))


def published_record() -> Any:
    hashes = {name.partition("/")[2]: hashlib.sha256(content).hexdigest()
              for name, content in imported_files().items()}  # fmt: skip
    return {"family": "edm", "origin": "here", "files": hashes}


def imported_files() -> Files:
    files = {"model.json": as_json(of_edm()["fields"]), **edm_tensors()}
    return {f"published/{name}": content for name, content in files.items()}


RUN_SUBJECTS = {
    "meta.json": Subject(
        unsealed("meta.json"), file("meta.json", prepared_files, sealed),
        lambda folder: check_prepared(folder / "source"),
    ),
    "a prepared array": Subject(
        lambda: prepared_files()["train.npy"], file("train.npy", prepared_files),
        lambda folder: check_prepared(folder / "source"),
    ),
    "what of prepared data was verified": Subject(
        lambda: {"train.npy": [608, 1, 2, "abc"]},
        file(".verified.json", prepared_files, as_json),
        lambda folder: check_prepared(folder / "source"),
    ),
    "config.json": Subject(
        tiny_config, file("config.json", lambda: {"data.json": as_json(DATA)}, sealed),
        check_workdir, share=0.1,
    ),
    "data.json": Subject(
        lambda: DATA, file("data.json", lambda: {"config.json": as_json(tiny_config())}, sealed),
        check_workdir, share=0.1,
    ),
    "the record of a checkpoint": Subject(checkpoint_record, put_checkpoint, check_checkpoint),
    "the arrays of a checkpoint": Subject(
        lambda: our_checkpoint()[arrays_of_checkpoint()], put_arrays, check_arrays
    ),
    **{
        f"{name} of a checkpoint": Subject(
            functools.partial(of_checkpoint, name), file(f"{STATE}/{name}", our_checkpoint),
            check_arrays,
        )
        for name in ("_METADATA", "manifest.ocdbt")
    },
    "score_model.json": Subject(
        lambda: SCORE_MODEL, file("score_model.json", our_checkpoint, sealed), check_score_model
    ),
    "weights of Inception": Subject(
        lambda: npy(POOL),
        file("weights.npz", pack=lambda kernel: packed_zip({
            "fc/kernel.npy": kernel, "source_sha256.npy": npy(np.asarray("abc"))})),
        check_inception,
    ),
    "results.json": Subject(results, file("results.json", pack=as_json), check_results),
    "results.json, compared": Subject(
        results,
        file("results.json", lambda: {VALUES: in_values(npy(POOL[:2] + 0.5))}, as_json),
        check_compared,
    ),
    "values of an evaluation": Subject(
        lambda: npy(POOL[:2] + 0.5),
        file(VALUES, lambda: {"results.json": as_json(results())}, in_values), check_compared,
    ),
    "a table of scores": Subject(lambda: TABLE, file("scores.csv"), check_compared),
    "a part": Subject(
        lambda: our_files()["up/source/pass0_image0.npz"], file("pass0_image0.npz"), check_parts
    ),
    "an array of a part without a seal": Subject(
        lambda: npy(np.full(4, 3.5)), file("pass0_image0.npz", pack=in_part), check_parts
    ),
    "metrics.jsonl": Subject(
        lambda: b'{"step": 10, "loss": 0.5}\n{"step": 20, "loss": null}\n',
        file("metrics.jsonl"), check_rows,
    ),
    "a row of metrics.jsonl": Subject(
        lambda: {"step": 10, "loss": 0.5, "grad_norm": None},
        file("metrics.jsonl", pack=as_json), check_rows,
    ),
    "a row of metrics.jsonl, reported": Subject(
        lambda: {"step": 10, "loss": 0.5, "grad_norm": None},
        file("metrics.jsonl", pack=as_json), check_reported,
    ),
    "a lock": Subject(lambda: OWNER, file(".lock", pack=as_json), check_lock),
    "what libraries know a run by": Subject(
        lambda: {"json": "abc", "mlflow": "def"}, file(KEPT, pack=as_json), check_books
    ),
    "features": Subject(
        lambda: npy(POOL), file("stats.npz", pack=lambda pool: of_features(pool, {
            "origin": EXTRACTOR.identity, "dataset": "digits"})), check_features,
    ),
    "the record of features": Subject(
        lambda: {"origin": EXTRACTOR.identity, "dataset": "digits"},
        file("stats.npz", pack=lambda record: of_features(npy(POOL), record)), check_features,
    ),
    "the notes of an export": Subject(
        lambda: {"step": "3", "config": tiny_config(), "data": DATA},
        file("model.safetensors", pack=with_notes), check_export, share=0.1,
    ),
    "the record of an export": Subject(
        lambda: {
            "config": tiny_config(), "data": DATA, "sha256": hashlib.sha256(b"").hexdigest()
        },
        file("checkpoint_1.json", pack=sealed), check_exported_record, share=0.5,
    ),
    "published.json": Subject(
        published_record, file("published.json", imported_files, sealed), check_imported,
        share=0.1,
    ),
}  # fmt: skip
