"""Samples of a checkpoint and their quality, from the command line, with a stand-in for Inception.

The stand-in's numbers mean nothing, and no output may call them FID.
"""

import json
import re
import shutil
from itertools import chain, repeat

import numpy as np
import pytest
from helpers.extractors import stand_in
from helpers.marks import some
from helpers.tiny_runs import TINY

from scoremle import devices
from scoremle.cli import main as cli
from scoremle.evaluation.quality import quality_table
from scoremle.experiment.run_sampling import Judge, SamplingRun
from scoremle.quality import features, metrics
from scoremle.quality.features import PUBLISHED_SHA256, Extractor, Reference, load_inception

SETTINGS = (
    "--config.eval.enable_sampling",
    "--config.eval.enable_bpd=False",
    "--config.eval.num_samples=50",
    "--config.eval.batch_size=16",
)


def run(workdir, *flags):
    return cli.main([*TINY, f"--workdir={workdir}", "--mode=eval", *SETTINGS, *flags])


def npz(path):
    with np.load(path) as saved:
        return dict(saved)


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def stats(patch, tmp_path_factory):
    """Reference features of the digits by the stand-in, which takes the place of Inception."""
    for module in ("scoremle.quality.features", "scoremle.experiment.run_sampling"):
        patch.setattr(f"{module}.load_inception", lambda path: stand_in())
    patch.setattr(features, "PICTURES_AT_ONCE", 20)
    path = tmp_path_factory.mktemp("stats") / "digits.npz"
    assert cli.main(["stats", "digits", "--weights=w.npz", f"--out={path}"]) == 0
    return path


@pytest.fixture(scope="module")
def judged(tiny, stats):
    """The folder of an evaluation, and its flags."""
    flags = ("--config.eval.inception=w.npz", f"--config.eval.stats={stats}")
    assert run(tiny.workdir, "--eval_folder=judged", *flags) == 0
    return tiny.workdir / "judged", flags


def test_results_are_those_of_the_samples_that_were_kept(judged, stats, tmp_path):
    folder, _ = judged
    samples = npz(folder / "samples_ckpt_2.npz")["samples"]
    assert samples.shape == (50, 8, 8, 1) and samples.dtype == np.uint8
    assert (folder / "samples_ckpt_2.png").exists()
    (result,) = json.loads((folder / "results.json").read_text()).values()
    found = features.extract(stand_in(), samples, 17, folder=tmp_path, label="")
    reference = npz(stats)["pool_3"]
    measures = result["measures"]
    assert list(measures) == [
        "Fréchet distance", "kernel distance", "class score", "precision", "recall"
    ]  # fmt: skip
    distance = metrics.frechet_distance(found["pool_3"], reference)
    assert measures["Fréchet distance"] == {
        "value": pytest.approx(distance.value), "stderr": pytest.approx(distance.stderr),
        "samples": 50, "reference_images": 1437,
    }  # fmt: skip
    kernel = metrics.kernel_distance(found["pool_3"], reference)
    assert (measures["kernel distance"]["value"], measures["kernel distance"]["stderr"]) == kernel
    score = metrics.class_score(found["logits"])
    assert (measures["class score"]["value"], measures["class score"]["stderr"]) == score
    shares = metrics.precision_recall(found["pool_3"], reference)
    for name in ("precision", "recall"):
        found = measures[name]
        assert (found["value"], found["stderr"]) == pytest.approx(getattr(shares, name))


def test_results_state_what_they_were_measured_with(judged, stats):
    (result,) = json.loads((judged[0] / "results.json").read_text()).values()
    facts = {
        "kind": "quality",
        "features": "stand-in of three moments",
        "weights_sha256": "stand-in",
        "checkpoint": 2,
        "step": 20,
        "dataset": "digits",
        "seed": 42,
    }
    assert {name: result[name] for name in facts} == facts
    assert result["sampling"]["method"] == "ode"
    reference = result["reference"]
    facts = {"path": str(stats), "split": "train", "images": 1437, "shape": [8, 8, 1]}
    assert {name: reference[name] for name in facts} == facts


def test_a_second_run_prints_the_table_and_draws_nothing(tiny, judged, capfd, monkeypatch):
    folder, flags = judged
    monkeypatch.setattr("scoremle.resumable.write_npz", None)
    assert run(tiny.workdir, "--eval_folder=judged", *flags) == 0
    out, err = capfd.readouterr()
    assert err == ""
    measured = r"^quality_ckpt_2  Fréchet distance  [\d.]+ +[\d.]+ +50 +1437$"
    assert re.search(measured, out, re.MULTILINE)
    assert re.search(r"^quality_ckpt_2  class score  .* 50$", out, re.MULTILINE)
    assert "features: stand-in of three moments; reference: " in out
    assert out.endswith(f"written to {folder}: results.json, arrays and pictures beside it\n")


def test_numbers_of_other_features_are_never_called_by_the_published_names(judged, tiny, capfd):
    folder, flags = judged
    run(tiny.workdir, "--eval_folder=judged", *flags)
    for text in (capfd.readouterr().out, (folder / "results.json").read_text()):
        assert not re.search("FID|KID|IS|Inception", text)


def test_the_published_weights_have_the_right_to_the_names():
    extractor = Extractor(stand_in().apply, "Inception-2015", 3, PUBLISHED_SHA256)
    pool = np.random.default_rng(0).normal(size=(40, 3))
    judge = Judge(extractor, Reference(pool, {"path": "cifar10.npz", "origin": "unknown"}))
    measures = judge.measures(pool, pool)
    assert list(measures) == ["FID", "KID", "IS", "precision", "recall"]
    assert abs(measures["FID"]["value"]) < 1e-9
    result = {"measures": measures, **extractor.identity, "reference": judge.reference.facts}
    result["step"] = 20
    table = quality_table({"quality_ckpt_1": result})
    assert re.search(r"^quality_ckpt_1  KID .* 40 +40$", table, re.MULTILINE)
    assert "reference: cifar10.npz, origin unknown" in table


@pytest.mark.parametrize("finished", [2, 5])
def test_a_killed_run_goes_on_where_it_was(tiny, judged, finished, monkeypatch):
    """Four rounds of samples, then three batches of features."""
    folder, flags = judged
    killed = tiny.workdir / "killed"
    shutil.rmtree(killed, ignore_errors=True)
    written = []

    def until(path, arrays):
        if len(written) == finished:
            raise KeyboardInterrupt
        written.append(path)
        features.write_npz(path, arrays)

    with monkeypatch.context() as patch:
        patch.setattr("scoremle.resumable.write_npz", until)
        assert run(tiny.workdir, "--eval_folder=killed", *flags) == 130
    assert not (killed / "results.json").exists()
    times = {path: path.stat().st_mtime_ns for path in written}
    assert run(tiny.workdir, "--eval_folder=killed", *flags) == 0
    assert {path: path.stat().st_mtime_ns for path in written} == times
    assert len(list(killed.rglob("pass*.npz"))) == 4 + 3
    for name in ("samples_ckpt_2.npz", "samples_ckpt_2.png", "results.json"):
        assert (killed / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.long
def test_samples_do_not_depend_on_the_size_of_a_round(tiny, judged, monkeypatch, capfd):
    """A round is halved where memory does not suffice. Steps of another sampler do not count."""
    free = chain([0], repeat(2**40))
    monkeypatch.setattr(devices, "memory", lambda: devices.Memory(2**40, next(free)))
    flags = ("--eval_folder=rounds_of_9", "--config.eval.batch_size=18",
             "--config.model.num_scales=77")  # fmt: skip
    assert run(tiny.workdir, *flags) == 0
    assert "18 samples" in capfd.readouterr().err
    parts = tiny.workdir / "rounds_of_9/parts"
    assert [p.name for p in parts.iterdir()] == [p.name for p in (judged[0] / "parts").iterdir()]
    one, other = (
        npz(folder / "samples_ckpt_2.npz")["samples"].astype(int)
        for folder in (judged[0], tiny.workdir / "rounds_of_9")
    )
    assert (one != other).mean() < 1e-3  # where rounding takes it to the next integer
    assert len(np.unique(one, axis=0)) == 50


@pytest.mark.long
def test_the_langevin_corrector_mixes_a_round_and_says_so(tiny):
    flags = (
        "--eval_folder=langevin", "--config.sampling.method=PC", "--config.model.num_scales=25",
        "--config.sampling.corrector=Langevin", "--config.eval.num_samples=5",
    )  # fmt: skip
    for size in (5, 4):
        assert run(tiny.workdir, *flags, f"--config.eval.batch_size={size}") == 0
    assert len([*(tiny.workdir / "langevin/parts").iterdir()]) == 2


@pytest.mark.long
def test_more_samples_keep_those_there_are(tiny, judged):
    folder, flags = judged
    few, more = tiny.workdir / "few", (*flags, "--eval_folder=few")
    assert run(tiny.workdir, *more, "--config.eval.num_samples=33") == 0
    rounds = {path: path.stat().st_mtime_ns for path in few.glob("parts/*/pass*.npz")}
    assert len(rounds) == 3 and len(npz(few / "samples_ckpt_2.npz")["samples"]) == 33
    assert run(tiny.workdir, *more) == 0
    assert {path: path.stat().st_mtime_ns for path in rounds} == rounds
    assert (few / "results.json").read_text() == (folder / "results.json").read_text()


@some(
    "other", ["seed=43", "sampling.smallest_time=1e-2", "eval.begin_ckpt=1"], quick=["seed=43"]
)
def test_other_settings_share_no_samples(tiny, judged, other, monkeypatch):
    def drawn(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("scoremle.resumable.write_npz", drawn)
    flags = (*judged[1], "--eval_folder=judged", f"--config.{other}")
    assert run(tiny.workdir, *flags) == 130


def test_without_weights_samples_alone_and_no_claim(tiny, judged, capfd):
    assert run(tiny.workdir, "--eval_folder=alone") == 0
    alone = tiny.workdir / "alone"
    assert (alone / "samples_ckpt_2.npz").exists() and not (alone / "results.json").exists()
    assert "quality" not in capfd.readouterr().out


def test_bits_per_dim_alone_never_touch_inception(tiny, monkeypatch, capfd):
    def touched(*_):
        raise AssertionError

    for name in ("judge", "SamplingRun.run"):
        monkeypatch.setattr(f"scoremle.experiment.run_eval.{name}", touched)
    flags = ("--config.eval.inception=absent.npz", "--config.eval.stats=absent.npz")
    loss = ("--config.eval.enable_loss", "--noconfig.eval.enable_sampling")
    assert run(tiny.workdir, "--eval_folder=loss_alone", *flags, *loss) == 0
    assert capfd.readouterr().err == ""


# Mistakes


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["inception=absent.npz"], "eval.inception needs eval.stats, .* stats digits --weights"),
        (["stats=absent.npz"], "eval.stats needs eval.inception"),
        (["inception=a.npz", "stats=b.npz"], "no Inception weights at a.npz; make it with"),
        (["inception=a.npz", "stats=b.npz", "num_samples=19"], "num_samples of at least 20"),
    ],
)
def test_what_is_missing_is_named_before_sampling_begins(tiny, flags, words, capfd):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scoremle.experiment.run_sampling.load_inception", load_inception)
        mistaken(tiny, [f"--config.eval.{flag}" for flag in flags], words, capfd)


def test_missing_statistics(tiny, judged, capfd):
    flags = [judged[1][0], "--config.eval.stats=absent.npz"]
    words = "no reference statistics at absent.npz; make it with: scoremle stats"
    mistaken(tiny, flags, words, capfd)


def test_statistics_of_another_size(tiny, judged, tmp_path, capfd):
    path = tmp_path / "padded.npz"
    command = ["stats", "digits", "--weights=w.npz", f"--out={path}", "--image_size=9"]
    assert cli.main(command) == 0
    capfd.readouterr()
    words = r"shape \[9, 9, 1\], but the samples have \[8, 8, 1\]"
    mistaken(tiny, [judged[1][0], f"--config.eval.stats={path}"], words, capfd)


def test_statistics_of_other_grey_levels(tiny, judged, tmp_path, capfd):
    path = tmp_path / "fewer.npz"
    facts = {"shape": [8, 8, 1], "levels": 16}
    features.write_reference(path, np.ones((20, 3)), stand_in(), facts)
    flags = [judged[1][0], f"--config.eval.stats={path}"]
    mistaken(tiny, flags, "levels 16, but the samples have 17", capfd)


def test_statistics_of_too_few_images(tiny, judged, tmp_path, capfd):
    path = tmp_path / "few.npz"
    features.write_reference(path, np.ones((19, 3)), stand_in(), {})
    flags = [judged[1][0], f"--config.eval.stats={path}"]
    mistaken(tiny, flags, f"{path} has fewer than 20 images", capfd)


def test_statistics_of_unknown_origin_get_a_warning(tiny, judged, tmp_path, stats, capfd):
    path = tmp_path / "theirs.npz"
    np.savez(path, pool_3=npz(stats)["pool_3"])
    flags = (judged[1][0], f"--config.eval.stats={path}", "--eval_folder=theirs")
    assert run(tiny.workdir, *flags) == 0
    out, err = capfd.readouterr()
    assert re.fullmatch(r"scoremle: warning: [^\n]+ compare the numbers [^\n]+\n", err)
    assert "origin unknown: pool_3 alone, as in score_flow's assets/stats" in out
    (result,) = json.loads((tiny.workdir / "theirs/results.json").read_text()).values()
    assert result["reference"]["origin"].startswith("unknown")


def mistaken(tiny, flags, words, capfd):
    assert run(tiny.workdir, "--eval_folder=mistaken", *flags) == 2
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert re.search(words, err), err
    assert not (tiny.workdir / "mistaken").exists()


def test_samples_that_are_not_finite_are_refused(tiny, capsys, monkeypatch):
    def draw(run):
        return lambda params, keys: (
            np.zeros((len(keys), 8, 8, 1), np.uint8), np.arange(len(keys)) != 3
        )  # fmt: skip

    monkeypatch.setattr(SamplingRun, "_draw", property(draw))
    assert run(tiny.workdir, "--eval_folder=broken") == 2
    assert "sample 3 is not" in capsys.readouterr().err
    assert not list((tiny.workdir / "broken").rglob("*.npz"))
