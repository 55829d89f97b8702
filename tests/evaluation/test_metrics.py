"""Evaluation over a data set: every image once, whatever interrupts it; honest errors."""

import re
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoremle import devices
from scoremle.core.keys import draw, image_keys
from scoremle.evaluation import metrics as module
from scoremle.evaluation.metrics import evaluate
from scoremle.evaluation.statistics import means, profile, summary
from scoremle.resumable import fingerprint

IMAGES = np.arange(23, dtype=np.uint8)[:, None, None, None]


def metric(params, x, keys):
    """The image itself, and noise that depends on all that it may depend on."""
    place = x[:, 0, 0, 0].astype(jnp.float32)
    return {"bpd": params * place, "noise": draw(jax.random.uniform, keys, ())}


def run(folder, images=IMAGES, *, batch_size=5, repeats=2, metric=metric):
    values, _ = evaluate(
        metric,
        3.0,
        images,
        batch_size=batch_size,
        repeats=repeats,
        seed=1,
        parts=folder,
        label="l",
    )
    return values


@pytest.fixture
def measured(monkeypatch):
    """Positions of the batches that were measured, not read."""
    calls = []
    timed = module._timed

    def counting(measure, params, batch, keys):
        calls.append(np.unique(batch).tolist())  # the last batch is filled up with its last
        return timed(measure, params, batch, keys)

    monkeypatch.setattr(module, "_timed", counting)
    return calls


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_every_image_once_a_pass_in_order(tmp_path, batch_size, measured):
    values = run(tmp_path, batch_size=batch_size)
    np.testing.assert_array_equal(values["bpd"], [3.0 * np.arange(23)] * 2)
    assert [*chain(*measured)] == [*range(23)] * 2
    assert len(np.unique(values["noise"])) == 46  # fresh for every image of every pass


def test_noise_belongs_to_an_image_and_a_pass(tmp_path):
    values = run(tmp_path)
    for repeat in (0, 1):
        keys = image_keys(jax.random.fold_in(jax.random.key(1), repeat), np.arange(23))
        np.testing.assert_array_equal(values["noise"][repeat], draw(jax.random.uniform, keys, ()))
    for batch_size in (1, 7, 23):
        same(run(tmp_path / str(batch_size), batch_size=batch_size), values)


def test_one_program_for_all_batches(tmp_path):
    compiled = []

    def counting(params, x, keys):
        compiled.append(x.shape)
        return metric(params, x, keys)

    run(tmp_path, metric=jax.jit(counting))
    assert compiled == [(5, 1, 1, 1)]


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 9])
def test_an_interrupted_run_ends_with_the_same_values(tmp_path, stop, measured, monkeypatch):
    whole = run(tmp_path / "whole")
    del measured[:]
    counting = module._timed

    def stopping(*arguments):
        if len(measured) == stop:
            raise KeyboardInterrupt
        return counting(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_timed", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts")
    same(run(tmp_path / "parts"), whole)
    assert [*chain(*measured)] == [*range(23)] * 2  # none twice, none left out


def test_lost_and_unreadable_batches_alone_are_measured_again(tmp_path, measured):
    whole = run(tmp_path)
    del measured[:]
    (tmp_path / "pass0_image5.npz").unlink()
    (tmp_path / "pass1_image20.npz").write_bytes(b"")
    damaged = tmp_path / "pass1_image0.npz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    same(run(tmp_path), whole)
    assert measured == [[5, 6, 7, 8, 9], [0, 1, 2, 3, 4], [20, 21, 22]]


@pytest.mark.parametrize("batch_size", [2, 8, 23])
def test_a_run_goes_on_with_another_batch_size(tmp_path, batch_size, measured):
    """And with parts of several sizes that lie in a folder, of which some were lost."""
    whole = run(tmp_path)
    for name in ("pass0_image5", "pass0_image10", "pass1_image0", "pass1_image20"):
        (tmp_path / f"{name}.npz").unlink()
    del measured[:]
    same(run(tmp_path, batch_size=batch_size), whole)
    assert [*chain(*measured)] == [*range(5, 15), *range(5), *range(20, 23)]
    assert max(map(len, measured)) <= batch_size
    del measured[:]
    same(run(tmp_path, batch_size=3), whole)
    assert not measured


def test_a_part_carries_its_own_place(tmp_path, measured):
    """Shares of a run that were measured apart are put together by laying them in one folder."""
    whole = run(tmp_path / "a")
    for part in sorted((tmp_path / "a").iterdir()):
        part.rename(part.with_name(f"{part.stem}_of_another.npz"))
    del measured[:]
    same(run(tmp_path / "a"), whole)
    assert not measured


def test_more_passes_are_added_to_those_there_are(tmp_path, measured):
    run(tmp_path, repeats=1)
    del measured[:]
    values = run(tmp_path, repeats=2)
    assert [*chain(*measured)] == [*range(23)]
    same(values, run(tmp_path / "at once"))


def test_progress_tells_the_mean_and_its_error_over_images(tmp_path, capsys):
    for repeats in (1, 3):
        images = run(tmp_path / str(repeats), repeats=repeats)["bpd"].mean(axis=0)
        told = f"bpd {images.mean():.4f} +- {images.std(ddof=1) / np.sqrt(23):.4f}"
        total = 23 * repeats
        compiling, line = capsys.readouterr().out.splitlines()
        assert compiling.startswith("l  compiling")
        assert line.startswith(f"l  image {total}/{total}  {told}  ") and line.endswith("  ETA 0s")
        run(tmp_path / str(repeats), repeats=repeats)  # again: nothing is measured
        again = capsys.readouterr().out
        assert again == f"l  image {total}/{total}  {told}  ETA 0s\n"


def test_the_mean_so_far_takes_each_image_once():
    rows = {"bpd": np.array([[1.0, 2.0, 6.0, 0.0], [3.0, 0.0, 0.0, 0.0]], np.float32)}
    done = np.array([[True, True, True, False], [True, False, False, False]])
    error = np.std([2, 2, 6], ddof=1) / np.sqrt(3)
    assert module._mean_so_far(rows, done) == f"bpd {10 / 3:.4f} +- {error:.4f}"


def test_seconds_an_image_leave_compilation_out(tmp_path, monkeypatch):
    seconds = iter([60.0, 0.5])

    def timed(metric, params, batch, keys):
        return {"bpd": np.zeros(len(batch)), "seconds": np.full(len(batch), next(seconds))}

    monkeypatch.setattr(module, "_timed", timed)
    settings = {"batch_size": 12, "repeats": 1, "seed": 1}
    values, pace = evaluate(metric, 3.0, IMAGES, **settings)
    assert pace == 0.5 and values.keys() == {"bpd"}


def test_fingerprints():
    facts = {"a": 1, "b": "x"}
    assert fingerprint(facts) == fingerprint({"b": "x", "a": 1})
    assert (
        len({fingerprint(facts | more) for more in ({}, {"a": 2}, {"b": "y"}, {"c": None})}) == 4
    )


def test_columns_with_more_axes_keep_their_order(tmp_path):
    def split(params, x, key):
        place = x[:, 0, 0, 0].astype(jnp.float32)
        return {"bpd": place, "profile": jnp.stack([place, 2 * place], axis=1)}

    values = run(tmp_path, metric=split)
    expected = np.arange(23)[:, None] * np.array([1.0, 2.0])
    np.testing.assert_array_equal(values["profile"], [expected, expected])


def wide(params, x, keys):
    """The same values, by way of 64 kilobytes for each image."""
    more = jnp.sin(jnp.arange(2.0**14) * x.reshape(-1, 1))
    return metric(params, x, keys) | {"more": jnp.sort(more, axis=1)[:, 1000]}


def test_a_batch_that_memory_does_not_hold_is_halved(tmp_path, monkeypatch, caplog):
    """On a CPU before it is computed; no value changes."""
    settings = {"metric": jax.jit(wide), "batch_size": 16}
    whole = run(tmp_path / "whole", **settings)
    monkeypatch.setattr(devices, "memory", lambda: devices.Memory(2**30, 10 * 2**16))
    same(whole, run(tmp_path / "parts", **settings))
    (told,) = caplog.messages
    assert re.fullmatch(
        r"16 images at once are too many for memory \(0.00\d+ GiB are needed, 0.00061 GiB are"
        r" free\): going on with 8 at once", told
    )  # fmt: skip
    parts = [len([*(tmp_path / name).glob("*.npz")]) for name in ("whole", "parts")]
    assert parts == [2 * 2, 2 * 3]
    monkeypatch.setattr(devices, "memory", lambda: devices.Memory(2**30, 2**10))
    with pytest.raises(MemoryError, match=r"are needed, 9.54e-07 GiB are free"):
        run(tmp_path / "none", **settings)


def test_profile_by_hand():
    # Two passes over two images: their means are 2, 8 and 4, 6 in bins of width 2 and 4.
    values = {"profile": np.array([[[1.0, 8.0], [4.0, 5.0]], [[3.0, 8.0], [4.0, 7.0]]])}
    assert profile(values, np.array([-1.0, 1.0, 5.0])) == {
        "log_snr_edges": [-1.0, 1.0, 5.0],
        "bits_per_dim": [1.5, 1.75],
        "stderr": [0.5, 0.25],
    }
    assert profile({"profile": np.ones((1, 1, 2))}, np.arange(3.0))["stderr"] == []


# Errors


def test_summary_by_hand():
    values = {"bpd": np.array([[1.0, 2.0, 6.0], [3.0, 2.0, 4.0]])}
    # Means over passes 2, 2, 5: variance 3. Variances over passes 2, 0, 2: mean 4/3.
    assert summary(values, "bpd") == {
        "mean": 3.0,
        "stderr": pytest.approx(np.sqrt(3 / 3)),
        "noise_stderr": pytest.approx(np.sqrt(4 / 3 / 6)),
        "images": 3,
        "passes": 2,
    }


def test_what_cannot_be_told_is_none():
    assert summary({"loss": np.array([[1.0, 3.0]])}, "loss")["noise_stderr"] is None
    assert summary({"loss": np.array([[1.0], [3.0]])}, "loss")["stderr"] is None
    found = means({"bpd": np.ones((1, 2)), "probe_stderr": np.array([[0.1, np.nan]])})
    assert found == {"mean_probe_stderr": None, "probe_stderr_of_mean": None}


def test_errors_of_the_mean_by_hand():
    found = means(
        {"draw_stderr": np.array([[0.3, 0.4], [0.0, 0.0]]), "prior": np.array([[1.0, 3.0]])}
    )
    assert found["mean_prior"] == 2.0
    assert found["draw_stderr_of_mean"] == pytest.approx(0.5 / 4)  # of four independent values


def test_stated_errors_are_those_over_repeated_experiments():
    """Of 4000 evaluations, 68 % of the means lie within one error, 95 % within two."""
    rng = np.random.default_rng(0)
    trials, n, repeats, mean = 4000, 40, 3, 2.0
    inside = np.zeros((trials, 2))
    noise_only = np.zeros((trials, 2))
    for trial in range(trials):
        images = mean + rng.normal(size=n)
        values = images + 0.7 * rng.normal(size=(repeats, n))
        found = summary({"bpd": values}, "bpd")
        inside[trial] = abs(found["mean"] - mean) < found["stderr"] * np.array([1, 2])
        error = abs(found["mean"] - images.mean())
        noise_only[trial] = error < found["noise_stderr"] * np.array([1, 2])
    np.testing.assert_allclose(inside.mean(axis=0), [0.683, 0.954], atol=0.025)
    np.testing.assert_allclose(noise_only.mean(axis=0), [0.683, 0.954], atol=0.025)
