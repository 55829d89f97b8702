"""Checkpoints come back as they were, or say what is wrong."""

import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.places import ROOT

from scoremle import bounded
from scoremle.errors import UserError
from scoremle.files import SEAL, seal
from scoremle.published import checkpoint_files
from scoremle.training.checkpoints import Checkpoints, leaves
from scoremle.training.checksums import tree_hash


def make_tree(fill=1.0, width=64, dtype=jnp.float32):
    params = {"conv": {"kernel": jnp.full((3, 3, 1, width), fill, dtype)}, "bias": jnp.arange(5)}
    return {"params": params, "opt": optax.adam(1e-3).init(params), "step": jnp.array(7)}


@pytest.fixture
def store(tmp_path):
    """Two checkpoints, 1 and 2, filled with their numbers."""
    store = Checkpoints(tmp_path / "store", keep=2)
    for number in (1, 2):
        store.save(number, make_tree(number), {"step": 10 * number})
    return store


def kernel(restored):
    return float(restored.tree["params"]["conv"]["kernel"][0, 0, 0, 0])


def test_round_trip(store):
    template = jax.eval_shape(make_tree)
    tree, meta, number = store.restore(template)
    assert (number, meta) == (2, {"step": 20})
    assert jax.tree.structure(tree) == jax.tree.structure(template)
    assert tree_hash(tree) == tree_hash(make_tree(2))
    assert kernel(store.restore(template, 1)) == 1
    assert store.meta(1) == {"step": 10}


def test_a_state_that_compresses_well_is_no_bomb(store, monkeypatch):
    """Its shapes are those of the template, whatever its files have."""
    monkeypatch.setattr(bounded, "SMALL", 0)
    monkeypatch.setattr(bounded, "MAX_RATIO", 0)
    assert kernel(store.restore(jax.eval_shape(make_tree))) == 2


@pytest.mark.parametrize("mixed", ["parts", "state"])
def test_what_devices_hold_in_parts_is_compared_with_the_hashes_of_the_parts(
    tmp_path, monkeypatch, mixed, caplog
):
    """As a tree is saved that is split over devices, here over one: each half of another save."""
    for module in ("checkpoints", "checksums"):
        monkeypatch.setattr(
            f"scoremle.training.{module}.part_axis",
            lambda leaf: 0 if isinstance(leaf, jax.Array) else None,
        )
    store = Checkpoints(tmp_path, keep=2)
    for number in (1, 2):
        store.save(number, {"a": jnp.full(4, number)}, {})
    template = {"a": jnp.zeros(4, int)}
    assert store.restore(template, 2).tree["a"].tolist() == [2] * 4
    store.verify(2)
    assert not caplog.text  # Orbax knows the items of a checkpoint
    shutil.rmtree(store.path(2) / mixed)
    shutil.copytree(store.path(1) / mixed, store.path(2) / mixed)
    for read in (store.verify, lambda number: store.restore(template, number)):
        with pytest.raises(UserError, match="of a part"):
            read(2)


class Earlier(NamedTuple):
    step: Any
    params: Any


class Now(NamedTuple):
    step: Any
    params: Any
    memory: Any = ()


@pytest.mark.parametrize(("before", "after"), [(Earlier, Now), (Now, Now), (Now, Earlier)])
def test_versions_may_differ_in_a_field_that_is_empty(tmp_path, before, after):
    store, values = Checkpoints(tmp_path, keep=2), (jnp.array(7), {"bias": jnp.arange(5.0)})
    store.save(1, before(*values), {})
    found = store.restore(jax.eval_shape(lambda: after(*values))).tree
    assert type(found) is after and tree_hash(found) == tree_hash(before(*values))


def test_keeps_the_newest_and_sweeps(store):
    for name in ("checkpoint_9.new.orbax-checkpoint-tmp", "checkpoint_1.best"):
        (store.folder / name).mkdir()
    assert store.numbers() == [1, 2]
    store.save(3, make_tree(3), {})
    kept = ["checkpoint_1.best", "checkpoint_2", "checkpoint_3"]  # the first is the user's own
    assert sorted(p.name for p in store.folder.iterdir()) == kept


def test_keeps_all_and_replaces(tmp_path):
    store = Checkpoints(tmp_path, keep=None)
    assert store.latest() is None
    for number, fill in [(1, 1), (10, 2), (2, 3), (10, 4)]:
        store.save(number, make_tree(fill), {})
    assert (store.numbers(), store.latest()) == ([1, 2, 10], 10)
    assert kernel(store.restore(make_tree())) == 4


def test_a_failed_save_leaves_what_was(store):
    with pytest.raises(TypeError):
        store.save(2, make_tree(5), {"not JSON": object()})
    assert kernel(store.restore(make_tree())) == 2


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_byte(folder):
    file = largest(folder / "state")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def alter_a_value(folder):
    """What Orbax itself gives back without a word: sound files, another value."""
    other = Checkpoints(folder.parent.parent / "other", keep=None)
    other.save(1, make_tree(1.5), {})
    shutil.rmtree(folder / "state")
    shutil.copytree(other.path(1) / "state", folder / "state")


def truncate(folder):
    file = largest(folder / "state")
    file.write_bytes(file.read_bytes()[:20])


def delete_metadata(folder):
    (folder / "state" / "_METADATA").unlink()


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def edit_record(folder):
    file = folder / "record" / "metadata"
    record = json.loads(file.read_text())
    record["meta"]["step"] = 21
    file.write_text(json.dumps(record))


def cut_record(folder):
    file = folder / "record" / "metadata"
    file.write_text(file.read_text()[:30])


DAMAGES = [flip_a_byte, alter_a_value, truncate, delete_metadata, empty, edit_record, cut_record]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest(store, damage, caplog):
    damage(store.path(2))
    with caplog.at_level(logging.WARNING, "scoremle"):
        restored = store.restore(make_tree())
    assert (restored.number, kernel(restored)) == (1, 1)
    (text,) = [r.getMessage() for r in caplog.records if r.name == "scoremle.training.checkpoints"]
    assert f"{store.path(2)} is damaged" in text
    with pytest.raises(UserError, match="checkpoint_2 is damaged"):
        store.restore(make_tree(), 2)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: out of memory")], ids=str
)
def test_memory_that_does_not_suffice_is_no_damage(store, error, monkeypatch):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("orbax.checkpoint.Checkpointer.restore", fails)
    with pytest.raises(type(error)):
        store.restore(make_tree())


def test_every_byte_counts(store):
    """Wherever in the arrays' files a byte is flipped, wrong values are not given back."""
    rng = np.random.default_rng(0)
    files = [p for p in (store.path(2) / "state" / "ocdbt.process_0").rglob("*") if p.is_file()]
    for file in files:
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        file.write_bytes(flipped)
        restored = store.restore(make_tree())
        assert kernel(restored) == restored.number
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (make_tree(width=32), "of shape"),
        (make_tree(dtype=jnp.bfloat16), "needs bfloat16"),
        ({**make_tree(), "more": jnp.ones(2)}, "no more"),
        ({"params": make_tree()["params"]}, "opt/0/count"),
    ],
)
def test_another_configuration(store, template, message):
    with pytest.raises(UserError, match=f"checkpoint_2 .*{message}") as error:
        store.restore(template)
    assert "\n" not in str(error.value)


def test_nothing_there(tmp_path, store):
    with pytest.raises(UserError, match=f"{tmp_path}/none"):
        Checkpoints(tmp_path / "none", keep=None).restore(make_tree())
    with pytest.raises(UserError, match="no checkpoint 5"):
        store.restore(make_tree(), 5)
    empty(store.path(1))
    empty(store.path(2))
    with pytest.raises(UserError, match="every checkpoint"):
        store.restore(make_tree())


def test_hash_sees_names_shapes_and_types():
    trees = [
        {"a": np.zeros(4)},
        {"b": np.zeros(4)},
        {"a": np.zeros((2, 2))},
        {"a": np.zeros(4, int)},
    ]
    assert len({tree_hash(tree) for tree in trees}) == len(trees)
    assert tree_hash(trees[0]) == tree_hash({"a": np.zeros(4)})


def sealed_anew(folder, **changes):
    file = folder / "record" / "metadata"
    record = json.loads(file.read_text()) | changes
    del record[SEAL]
    file.write_text(json.dumps(record | {SEAL: seal(record)}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"meta": {"step": "20"}}, "meta: step"),
        ({"leaves": leaves(make_tree(width=32))}, "not those of its record"),
    ],
)
def test_a_record_of_another_kind_or_checkpoint_is_damage(store, changes, words):
    store.verify(2)
    sealed_anew(store.path(2), **changes)
    with pytest.raises(UserError, match=f"checkpoint_2.*{words}"):
        store.verify(2)


def test_a_replacement_that_was_cut_off_is_put_back(store):
    """The one before has made way, and the new one has not got its name."""
    one, two = store.path(1), store.path(2)
    two.rename(two.with_suffix(".old"))
    shutil.copytree(one, two.with_suffix(".new"))
    assert store.numbers() == [1, 2] and kernel(store.restore(make_tree())) == 2
    store.save(3, make_tree(3), {})
    assert sorted(p.name for p in store.folder.iterdir()) == ["checkpoint_2", "checkpoint_3"]
    assert kernel(store.restore(make_tree(), 2)) == 2


def test_a_process_that_leaves_writing_to_others_saves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("scoremle.files.is_writer", lambda: False)
    Checkpoints(tmp_path / "store", keep=2).save(1, make_tree(), {})
    assert not [*tmp_path.iterdir()]


def test_an_error_of_another_kind_stays_as_it_is(tmp_path, monkeypatch):
    def wrong(*_, **__):
        raise ValueError("a bug")

    monkeypatch.setattr("orbax.checkpoint.Checkpointer.save", wrong)
    with pytest.raises(ValueError, match="a bug"):
        Checkpoints(tmp_path, keep=None).save(1, {"a": np.zeros(1)}, {})


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise ValueError("Failed writing: No space left on device [os_error_code='28']")

    monkeypatch.setattr("orbax.checkpoint.Checkpointer.save", full)
    store = Checkpoints(tmp_path, keep=None)
    with pytest.raises(UserError, match="No space left"):
        store.save(1, {"a": np.zeros(1)}, {})
    assert store.numbers() == []


FAILING = """
import gc, resource, sys
from pathlib import Path
import numpy as np
from scoremle.errors import UserError
from scoremle.training.checkpoints import Checkpoints

tree = {f"a{i}": np.random.default_rng(i).random((100, 100), np.float32) for i in range(10)}
for limit in (0, 100, 1000, 3000, 50_000):
    # Each in its place, since threads of the one before may still be at work.
    store = Checkpoints(Path(sys.argv[1]) / str(limit), keep=None)
    store.save(1, tree, {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    try:
        store.save(2, tree, {})
    except UserError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    print(store.restore(tree).number)
store = Checkpoints(Path(sys.argv[1]) / "damaged", keep=None)
for number in (1, 2):
    store.save(number, tree, {})
for file in (store.path(2) / "state").rglob("d/*"):
    content = bytearray(file.read_bytes())
    content[20::50] = bytes(byte ^ 1 for byte in content[20::50])
    file.write_bytes(content)
print(store.restore(tree).number)
gc.collect()
"""


def test_what_orbax_can_not_write_or_read_is_a_line_and_no_traceback(tmp_path):
    """Of ten arrays that it writes and reads at once. The system refuses files beyond a size."""
    done = subprocess.run(
        # -B: a module that is compiled under the limit would be kept, cut short.
        [sys.executable, "-B", "-c", FAILING, str(tmp_path)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300,
    )  # fmt: skip
    line = r"can't write \S*/checkpoint_2: File too large\n1\n"
    assert re.fullmatch(f"({line}){{5}}1\n", done.stdout), done.stderr
    assert re.fullmatch(r"\S*checkpoint_2 is damaged \(.*\): trying the one before\n", done.stderr)


@pytest.mark.parametrize(
    "listing", [lambda folder: Checkpoints(folder, keep=2).numbers(), checkpoint_files]
)
def test_a_folder_that_can_not_be_read_is_not_empty(listing, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "none", tmp_path / "file" / "none"):
        assert not listing(folder)

    def refused(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(UserError, match="can't be read"):
        listing(tmp_path)
