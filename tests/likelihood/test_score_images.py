"""The one loop over images: every image once, whatever interrupts it; honest errors."""

import re
from dataclasses import dataclass, field
from itertools import chain
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoremle import VP, ByOde, Multistep, Pixels, ScoreModel, devices
from scoremle.core.keys import image_keys, per_example
from scoremle.errors import UserError
from scoremle.evaluation.statistics import profile
from scoremle.likelihood import score_images as module
from scoremle.likelihood.images import OdeDifference
from scoremle.likelihood.levels import StepLevels
from scoremle.likelihood.mean import Mean
from scoremle.likelihood.score_images import score_images
from scoremle.resumable import fingerprint

IMAGES = np.arange(23, dtype=np.uint8)[:, None, None, None]
MODEL: Any = 3.0  # of which the estimator here takes a multiple


def column_of(params, x, keys):
    """The image itself, and noise that depends on all that it may depend on."""
    place = x[:, 0, 0, 0].astype(jnp.float32)
    return {"bpd": params * place, "noise": per_example(jax.random.uniform, keys, ())}


@jax.tree_util.register_static
@dataclass(frozen=True)
class Toy:
    """An estimator of these values; on the host each batch that is measured is noted."""

    metric: Any = column_of
    on_host: bool = True
    stop: int | None = None
    title: str = "toy"
    dequantizes: bool = True
    batches: list = field(default_factory=list, compare=False)

    def describe(self):
        return {}

    def __call__(self, model, dequantizer, x, keys):
        if self.on_host:
            if len(self.batches) == self.stop:
                raise KeyboardInterrupt
            self.batches.append(np.unique(x).tolist())  # the last is filled up with its last
        return self.metric(model, x, keys)


def run(folder, images=IMAGES, *, batch_size=5, passes=2, toy=None, **more):
    return score_images(
        MODEL, toy or Toy(), images, batch_size=batch_size, passes=passes, seed=1, parts=folder,
        label="l", **more,
    ).values  # fmt: skip


@pytest.fixture
def toy():
    return Toy()


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_every_image_once_a_pass_in_order(tmp_path, batch_size, toy):
    values = run(tmp_path, batch_size=batch_size, toy=toy)
    np.testing.assert_array_equal(values["bpd"], [3.0 * np.arange(23)] * 2)
    assert [*chain(*toy.batches)] == [*range(23)] * 2
    assert len(np.unique(values["noise"])) == 46  # fresh for every image of every pass


def test_noise_belongs_to_an_image_and_a_pass(tmp_path):
    values = run(tmp_path)
    for repeat in (0, 1):
        keys = image_keys(jax.random.fold_in(jax.random.key(1), repeat), np.arange(23))
        expected = per_example(jax.random.uniform, keys, ())
        np.testing.assert_array_equal(values["noise"][repeat], expected)
    for batch_size in (1, 7, 23):
        same(run(tmp_path / str(batch_size), batch_size=batch_size), values)


def test_one_program_for_all_batches(tmp_path):
    compiled = []

    def counting(params, x, keys):
        compiled.append(x.shape)
        return column_of(params, x, keys)

    run(tmp_path, toy=Toy(counting, on_host=False))
    assert compiled == [(5, 1, 1, 1)]


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 9])
def test_an_interrupted_run_ends_with_the_same_values(tmp_path, stop):
    whole, stopped, rest = run(tmp_path / "whole"), Toy(stop=stop), Toy()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", toy=stopped)
    same(run(tmp_path / "parts", toy=rest), whole)
    # none twice, none left out
    assert [*chain(*stopped.batches, *rest.batches)] == [*range(23)] * 2


def test_lost_and_unreadable_batches_alone_are_measured_again(tmp_path, toy):
    whole = run(tmp_path)
    (tmp_path / "pass0_image5.npz").unlink()
    (tmp_path / "pass1_image20.npz").write_bytes(b"")
    damaged = tmp_path / "pass1_image0.npz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    same(run(tmp_path, toy=toy), whole)
    assert toy.batches == [[5, 6, 7, 8, 9], [0, 1, 2, 3, 4], [20, 21, 22]]


@pytest.mark.parametrize("batch_size", [2, 8, 23])
def test_a_run_goes_on_with_another_batch_size(tmp_path, batch_size, toy):
    """And with parts of several sizes that lie in a folder, of which some were lost."""
    whole = run(tmp_path)
    for name in ("pass0_image5", "pass0_image10", "pass1_image0", "pass1_image20"):
        (tmp_path / f"{name}.npz").unlink()
    same(run(tmp_path, batch_size=batch_size, toy=toy), whole)
    assert [*chain(*toy.batches)] == [*range(5, 15), *range(5), *range(20, 23)]
    assert max(map(len, toy.batches)) <= batch_size
    again = Toy()
    same(run(tmp_path, batch_size=3, toy=again), whole)
    assert not again.batches


def test_a_part_carries_its_own_place(tmp_path, toy):
    """Shares of a run that were measured apart are put together by laying them in one folder."""
    whole = run(tmp_path / "a")
    for part in sorted((tmp_path / "a").iterdir()):
        part.rename(part.with_name(f"{part.stem}_of_another.npz"))
    same(run(tmp_path / "a", toy=toy), whole)
    assert not toy.batches


def test_more_passes_are_added_to_those_there_are(tmp_path, toy):
    run(tmp_path, passes=1)
    values = run(tmp_path, passes=2, toy=toy)
    assert [*chain(*toy.batches)] == [*range(23)]
    same(values, run(tmp_path / "at once"))


def test_progress_shows_the_mean_and_its_error_over_images(tmp_path, capsys):
    for passes, label in ((1, "l"), (3, "l, 3 passes of 23")):
        images = run(tmp_path / str(passes), passes=passes)["bpd"].mean(axis=0)
        told = f"bpd {images.mean():.4f} +- {images.std(ddof=1) / np.sqrt(23):.4f}"
        total = 23 * passes
        line = capsys.readouterr().out.splitlines()[-1]  # before it, if it takes long: compiling
        assert line.startswith(f"{label}  image {total}/{total}  {told}  ")
        assert "  elapsed " in line
        run(tmp_path / str(passes), passes=passes)  # again: nothing is measured
        again = capsys.readouterr().out
        assert again == f"{label}  image {total}/{total}  {told}  elapsed 0s\n"


def test_the_mean_so_far_takes_each_image_once():
    rows = {"bpd": np.array([[1.0, 2.0, 6.0, 0.0], [3.0, 0.0, 0.0, 0.0]], np.float32)}
    done = np.array([[True, True, True, False], [True, False, False, False]])
    error = np.std([2, 2, 6], ddof=1) / np.sqrt(3)
    assert module._mean_so_far(rows, done) == f"bpd {10 / 3:.4f} +- {error:.4f}"


def test_seconds_an_image_leave_compilation_out(monkeypatch):
    moments = iter([0.0, 60.0 * 12, 1000.0, 1000.0 + 0.5 * 12])
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    found = score_images(MODEL, Toy(), IMAGES, batch_size=12)
    assert found.seconds == 0.5 and "seconds" not in found.values


def test_differences_with_and_without_the_last_halving_are_kept_apart(tmp_path):
    """As levels ask for that were chosen for another tolerance, and for fewer images."""
    model = ScoreModel(lambda x, t: jnp.tanh(2 * x), VP(), 1e-3, (1, 1, 1), Pixels(23))

    def differences(folder):
        by_ode = ByOde(solver=Multistep(4))
        return score_images(model, by_ode, IMAGES, parts=folder, batch_size=8).differences

    expected = differences(None)(4, 8, True, 16)
    for halved, size in ((False, 16), (True, 8), (True, 16), (False, 16)):
        found = differences(tmp_path)(4, 8, halved, size)
        wanted = {name: expected[name][:, :size] for name in ("bpd", "halving")[: 1 + halved]}
        assert found.keys() == wanted.keys()
        for name, column in wanted.items():
            np.testing.assert_allclose(found[name], column, atol=1e-6)


def test_a_share_is_given_back_alone_and_kept_for_the_whole(tmp_path, toy):
    whole = run(tmp_path / "whole")
    for share in (slice(0, 7), slice(7, 23)):
        same(run(tmp_path / "parts", share=share), {k: v[:, share] for k, v in whole.items()})
    same(run(tmp_path / "parts", toy=toy), whole)
    assert not toy.batches


def test_the_mean_is_over_images_whose_values_are_finite(tmp_path):
    def some(params, x, keys):
        place = x[:, 0, 0, 0].astype(jnp.float32)
        return {"bpd": jnp.where(place == 3, jnp.nan, place)}

    found = score_images(MODEL, Toy(some), IMAGES[:6], passes=2)
    assert found.finite.tolist() == [True, True, True, False, True, True]
    assert (found.mean.mean, found.mean.images, found.mean.passes) == (2.4, 5, 2)
    assert score_images(MODEL, Toy(some), IMAGES[3:4]).mean is None


def test_a_mean_that_no_levels_correct_stays_as_it_is():
    several, one = (score_images(MODEL, Toy(), IMAGES[:n]) for n in (4, 1))
    assert several.corrected(None, 0.01) is several
    assert one.corrected(StepLevels((8, 16), (0.1,), 0.0), 0.01) is one


def test_corrected_values_have_the_corrected_mean(monkeypatch):
    """Those of images whose values are finite, whatever the order of the differences."""
    changes = np.array([0.5, 0.1, 0.3, 0.2])

    def measured(model, estimator, images, *_, **__):
        if isinstance(estimator, OdeDifference):
            n = len(images)
            return {"bpd": changes[None, :n], "halving": changes[None, :n]}, 0.0
        return {"bpd": np.array([[1.0, np.nan, 3.0, 4.0, 6.0], [2.0, 2.0, 3.0, 5.0, 7.0]])}, 0.0

    monkeypatch.setattr(module, "_measured", measured)
    plain = score_images(MODEL, Toy(), IMAGES[:5], passes=2)
    np.testing.assert_allclose(plain.corrected_values, [1.5, np.nan, 3, 4.5, 6.5])
    found = plain.corrected(StepLevels((8, 16), (0.1,), 0.0), 0.01)
    values = found.corrected_values[found.finite]
    assert found.mean.mean == pytest.approx(15.5 / 4 + changes.mean())
    assert values.mean() == pytest.approx(found.mean.mean)
    assert values.std(ddof=1) / 2 == pytest.approx(found.mean.stderr)
    assert np.isnan(found.corrected_values[1])


def test_a_difference_of_levels_is_finite(monkeypatch):
    bad = []

    def measured(model, estimator, images, *_, **__):
        wrong = isinstance(estimator, OdeDifference) and len(bad) > 0
        return {"bpd": np.full((1, len(images)), np.nan if wrong else 1.0)}, 0.0

    monkeypatch.setattr(module, "_measured", measured)
    found = score_images(MODEL, Toy(), IMAGES[:4])
    assert found.differences(8, 16, False, 2)["bpd"].tolist() == [[1, 1]]
    bad.append(True)
    with pytest.raises(UserError, match="8 to 16:"):
        found.differences(8, 16, False, 2)


def test_fingerprints():
    facts = {"a": 1, "b": "x"}
    assert fingerprint(facts) == fingerprint({"b": "x", "a": 1})
    assert (
        len({fingerprint(facts | more) for more in ({}, {"a": 2}, {"b": "y"}, {"c": None})}) == 4
    )


def test_columns_with_more_axes_keep_their_order(tmp_path):
    def split(params, x, keys):
        place = x[:, 0, 0, 0].astype(jnp.float32)
        return {"bpd": place, "profile": jnp.stack([place, 2 * place], axis=1)}

    values = run(tmp_path, toy=Toy(split))
    expected = np.arange(23)[:, None] * np.array([1.0, 2.0])
    np.testing.assert_array_equal(values["profile"], [expected, expected])


def wide(params, x, keys):
    """The same values, by way of 64 kilobytes for each image."""
    more = jnp.sin(jnp.arange(2.0**14) * x.reshape(-1, 1))
    return column_of(params, x, keys) | {"more": jnp.sort(more, axis=1)[:, 1000]}


def test_a_batch_that_memory_does_not_hold_is_halved(tmp_path, monkeypatch, caplog):
    """On a CPU before it is computed; no value changes."""
    settings = {"toy": Toy(wide, on_host=False), "batch_size": 16}
    whole = run(tmp_path / "whole", **settings)
    monkeypatch.setattr(devices, "memory", lambda: devices.Memory(2**30, 10 * 2**16))
    same(whole, run(tmp_path / "parts", **settings))
    (told,) = caplog.messages
    assert re.fullmatch(
        r"16 images at once are too many for memory \(0.00\d+ GiB are needed, 0.00061 GiB are"
        r" free\): continuing with 8 at once", told
    )  # fmt: skip
    parts = [len([*(tmp_path / name).glob("*.npz")]) for name in ("whole", "parts")]
    assert parts == [2 * 2, 2 * 3]
    monkeypatch.setattr(devices, "memory", lambda: devices.Memory(2**30, 2**10))
    with pytest.raises(MemoryError, match=r"9.54e-07 GiB"):
        run(tmp_path / "none", **settings)


def test_profile_by_hand():
    # Two passes over four images: their means are thrice 2, 8 and 6, 4 in bins of width 2 and 4.
    first, second = [[1, 8], [2, 7], [2, 8], [5, 3]], [[3, 8], [2, 9], [2, 8], [7, 5]]
    values = {"profile": np.array([first, second], float)}
    assert profile(values, np.array([-1.0, 1.0, 5.0])) == {
        "log_snr_edges": [-1.0, 1.0, 5.0],
        "bits_per_dim": [1.5, 1.75],
        "stderr": [0.5, 0.25],
    }
    assert profile({"profile": np.ones((1, 1, 2))}, np.arange(3.0))["stderr"] == []


# Errors


def of(values):
    (column,) = {"bpd", "loss"} & set(values)
    return Mean.of(values, column)


def test_a_mean_by_hand():
    found = of({"bpd": np.array([[1.0, 2.0, 6.0], [3.0, 2.0, 4.0]])})
    # Means over passes 2, 2, 5: variance 3. Variances over passes 2, 0, 2: mean 4/3.
    assert found.to_json() == {
        "mean": 3.0,
        "stderr": pytest.approx(np.sqrt(3 / 3)),
        "noise_stderr": pytest.approx(np.sqrt(4 / 3 / 6)),
        "images": 3,
        "passes": 2,
    }


def test_an_unknown_error_is_none():
    assert of({"loss": np.array([[1.0, 3.0]])}).noise_stderr is None
    assert of({"loss": np.array([[1.0], [3.0]])}).stderr is None
    found = of({"bpd": np.ones((1, 2)), "probe_stderr": np.array([[0.1, np.nan]])})
    assert found.columns == {"mean_probe_stderr": None, "probe_stderr_of_mean": None}


def test_errors_of_the_mean_by_hand():
    values = {"draw_stderr": np.array([[0.3, 0.4], [0.0, 0.0]]), "prior": np.array([[1.0, 3.0]])}
    found = of(values | {"bpd": np.ones((2, 2))}).columns
    assert found["mean_prior"] == 2.0
    assert found["draw_stderr_of_mean"] == pytest.approx(0.5 / 4)  # of four independent values


def test_stated_errors_are_those_over_repeated_experiments():
    """Of 4000 evaluations, 68 % of the means lie within one error, 95 % within two."""
    rng = np.random.default_rng(0)
    trials, n, passes, mean = 4000, 40, 3, 2.0
    inside = np.zeros((trials, 2))
    noise_only = np.zeros((trials, 2))
    for trial in range(trials):
        images = mean + rng.normal(size=n)
        found = of({"bpd": images + 0.7 * rng.normal(size=(passes, n))})
        inside[trial] = abs(found.mean - mean) < found.stderr * np.array([1, 2])
        error = abs(found.mean - images.mean())
        noise_only[trial] = error < found.noise_stderr * np.array([1, 2])
    np.testing.assert_allclose(inside.mean(axis=0), [0.683, 0.954], atol=0.025)
    np.testing.assert_allclose(noise_only.mean(axis=0), [0.683, 0.954], atol=0.025)


@pytest.mark.parametrize(
    ("n", "dims", "most", "size"),
    [
        (1000, 64, None, 256), (1000, 1024, None, 256), (1000, 1025, None, 128),
        (1000, 2048, None, 128), (1000, 1 << 18, None, 1), (1000, 1 << 20, None, 1),
        (3, 64, None, 4), (4, 64, None, 4), (5, 64, None, 8), (1, 64, None, 1),
        (1000, 64, 100, 100), (3, 64, 100, 4), (100, 1 << 20, 7, 7),
    ],
)  # fmt: skip
def test_a_batch_has_256_images_or_so_many_numbers(n, dims, most, size):
    assert module._size(n, dims, most) == size
