"""The program from end to end: train, evaluate, resume."""

import contextlib
import io
import json
import re
import shutil
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.marks import some
from helpers.tiny_runs import (
    IMAGES,
    PROTOCOL,
    digest,
    evaluate,
    flags,
    npz,
    run,
    start,
)
from PIL import Image

from scoremle.cli import main as cli
from scoremle.files import SEAL
from scoremle.likelihood.levels import bias_bound, contributions
from scoremle.likelihood.score_images import DIFFERENCES
from scoremle.numerics import permutation
from scoremle.training.checkpoints import Checkpoints
from scoremle.training.checksums import tree_hash
from scoremle.training.writers import JsonLines

# Training


def test_training_leaves_its_config_numbers_checkpoints_and_pictures(tiny):
    config = json.loads((tiny.workdir / "config.json").read_text())
    assert config["model"]["nf"] == 4
    assert config["training"]["smallest_time"] == 1e-5  # resolved
    rows = [json.loads(line) for line in (tiny.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert rows[1]["eval_bpd"] > 0 and "eval_bpd" not in rows[0]
    assert rows[1]["eval_windows"] == 360 / 32
    assert Checkpoints(tiny.workdir / "checkpoints", keep=None).numbers() == [1, 2]
    for step in (10, 20):
        with Image.open(tiny.workdir / "samples" / f"step_{step}.png") as picture:
            assert picture.mode == "L" and min(picture.size) >= 64


def test_training_prints_its_progress_and_nothing_else(tiny):
    phases = ("measuring test images", "writing a snapshot")
    first, making, *lines = tiny.stdout.splitlines()
    lines = [line for line in lines if not line.startswith("compiling")]  # if that took long
    assert making == "making the first parameters"
    named = [line for line in lines if line.startswith(phases)]
    assert [line.partition(" (")[0] for line in named] == list(phases)
    lines = [line for line in lines if line not in named]
    assert re.match(r"digits: 1,437 training images of 8x8x1; [\d,]+ parameters; VP\(", first)
    assert len(lines) == 6
    early = r"  bpd [\d.]+ \+- [\d.]+ \(too early: above uniform\)"
    for step, line in zip((5, 10, 15, 20), lines, strict=False):
        # What compiles is not part of the speed: first steps, the first measurement and snapshot.
        bits = {5: "", 10: early, 15: rf"{early}  \(step 10\)", 20: early}[step]
        pace = r"  [\d.]+ steps/s" if step == 20 else ""
        pattern = rf"step {step}/20  loss [\d.]+{bits}{pace}  elapsed \d+s"
        assert re.fullmatch(pattern, line), line
    assert lines[-2:] == [
        f"trained 20 steps: {tiny.workdir}, numbers in metrics.jsonl, pictures in samples/",
        f"next: scoremle eval {tiny.workdir}",
    ]
    assert tiny.stderr == ""


def test_training_goes_on_and_ends_with_the_same_parameters(tiny, tmp_path, capsys):
    workdir = tmp_path / "workdir"
    shutil.copytree(tiny.workdir, workdir)
    for newest in ("checkpoints/checkpoint_2", "checkpoints-meta/checkpoint_20"):
        shutil.rmtree(workdir / newest)
    assert run("train", workdir, training__snapshot_sampling=False) == 0
    out = capsys.readouterr().out
    assert "resuming from step 10" in out
    assert "making the first parameters" not in out  # they would be thrown away
    hashes = [
        json.loads((folder / "checkpoints/checkpoint_2/record/metadata").read_text())["tree_hash"]
        for folder in (workdir, tiny.workdir)
    ]
    assert hashes[0] == hashes[1]
    rows = [(folder / "metrics.jsonl").read_text() for folder in (workdir, tiny.workdir)]
    assert rows[0] == rows[1]


@pytest.mark.long
def test_a_training_that_was_stopped_says_so_to_the_end(tmp_path, monkeypatch, capsys):
    """By its exit code; and what is measured of the snapshot before says that there is more."""
    write = JsonLines.write

    def interrupted(self, step, row):
        write(self, step, row)
        if step == 15:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(JsonLines, "write", interrupted)
    long = {"training__n_iters": 1_000_000, "training__snapshot_sampling": False}
    assert run("train", tmp_path, **long) == 130
    out, err = capsys.readouterr()
    assert re.fullmatch(r"(scoremle: stopping [^\n]+\n)?", err)  # where the step takes long
    step = int(re.search(r"^saved step (\d+) to .* command to resume$", out, re.M)[1])
    loss = {"eval__enable_bpd": False, "eval__enable_loss": True, "eval__num_images": 30}
    place = SimpleNamespace(workdir=tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as told:
        _, results = evaluate(place, "eval", training__n_iters=7, **loss)
    (result,) = results.values()
    snapshot = result["step"]
    of_training = {"steps": 1_000_000, "newest_step": step, "finished": False}
    assert result["training"] == of_training and snapshot <= step
    assert f"; step {snapshot} of 1000000: training is not finished\n" in told.getvalue()
    older = f"checkpoint_{result['checkpoint']} is of step {snapshot}: the newest snapshot;"
    assert (older in told.getvalue()) == (snapshot < step)


# Evaluation


def test_a_workdir_has_its_config(tiny, capfd):
    """The same results by the short command, as JSON, and in the file."""
    loss = flags(eval__enable_bpd=False, eval__enable_loss=True, eval__num_images=30)
    line = ["eval", str(tiny.workdir), "--eval-folder=short", "--json", *loss]
    assert cli.main(line) == 0
    told = json.loads(capfd.readouterr().out)
    assert told == json.loads((tiny.workdir / "short/results.json").read_text())
    assert evaluate(tiny, "long", **{"eval__enable_bpd": False, "eval__enable_loss": True,
        "eval__num_images": 30})[1].keys() == told.keys()  # fmt: skip
    (result,) = told.values()
    assert result["training"] == {"steps": 20, "newest_step": 20, "finished": True}
    capfd.readouterr()
    before = digest(tiny.workdir)
    assert cli.main([*line, "--config.model.nf=8"]) == 2
    err = capfd.readouterr().err
    assert "model.nf was" in err and err.count("\n") == 1
    assert digest(tiny.workdir) == before


@pytest.fixture(scope="module")
def exact(tiny):
    return evaluate(tiny, "exact", eval__num_repeats=2)


def test_exact_likelihood_of_the_whole_split(exact):
    folder, results = exact
    values = npz(folder / "exact_test_ckpt_2.npz")
    assert {name: v.shape for name, v in values.items()} == dict.fromkeys(
        ("bpd", "probe_stderr", "solver_error", "nfe", "latent_square", "latent_neighbours"),
        (2, IMAGES),
    )
    assert np.isfinite(values["bpd"]).all()
    assert (values["bpd"][0] != values["bpd"][1]).all()  # each pass has noise of its own
    (result,) = results.values()
    assert result["mean"] == values["bpd"].mean()
    assert result["values_hash"] == tree_hash(values)
    assert (folder / "exact_test_ckpt_2_likeliest_then_unlikeliest.png").exists()


def test_results_state_the_whole_reporting_protocol(exact):
    (result,) = exact[1].values()
    facts = PROTOCOL | {"kind": "exact", "model": "ODE", "probes": 1}
    assert {name: result[name] for name in facts} == facts
    assert result["solver"]["nodes"] == 6 and result["mean_nfe"] >= 6
    assert result["divergence"]["distribution"] == "rademacher"
    assert 0 < result["noise_stderr"] < result["stderr"]
    assert all(re.fullmatch(r"[0-9a-f]{16}", result[name]) for name in ("ema_hash", "data_hash"))


def test_bound(tiny, capsys):
    folder, results = evaluate(tiny, "bound", eval__bound=True, eval__num_repeats=2)
    assert "fit of the control variate" in capsys.readouterr().out
    result = results["bound_test_ckpt_2"]
    facts = PROTOCOL | {"kind": "bound", "model": "SDE", "draws": 4, "matching": "denoising"}
    assert {name: result[name] for name in facts} == facts
    values = npz(folder / "bound_test_ckpt_2.npz")
    constant = values["bpd"] - values["prior"] - values["diffusion"] - values["reconstruction"]
    np.testing.assert_allclose(constant, np.log2(17 / 2), atol=1e-4)
    np.testing.assert_allclose(values["profile"].sum(axis=2), values["diffusion"], rtol=1e-5)
    profile = result["profile"]
    whole = np.dot(profile["bits_per_dim"], np.diff(profile["log_snr_edges"]))
    assert whole == pytest.approx(values["diffusion"].mean(), rel=1e-4)
    assert (result["times"], result["stratified"]) == ("learned", True)
    assert result["control_images"] == 1437

    # A run that goes on takes the control that the batches before it were measured with.
    (fitted,) = (folder / "parts").glob("control_*.npz")
    next((folder / "parts").glob("*/pass1_image300.npz")).unlink()
    control = {name: array for name, array in npz(fitted).items() if name != SEAL}
    control["levels"] = 1e6 * control["levels"]
    np.savez(fitted, **control, **{SEAL: tree_hash(control)})
    evaluate(tiny, "bound", eval__bound=True, eval__num_repeats=2)
    assert "fit of the control variate" not in capsys.readouterr().out
    other = npz(folder / "bound_test_ckpt_2.npz")["bpd"]
    np.testing.assert_array_equal(other[0], values["bpd"][0])
    assert (other[1, 300:] != values["bpd"][1, 300:]).all()


@pytest.mark.long
def test_bound_as_published(tiny):
    """Independent times, uniform in log-SNR, no control; the stated errors say what that costs."""
    _, results = evaluate(
        tiny, "bound_published", eval__bound=True, eval__bound_times="log_snr",
        eval__bound_stratified=False, eval__num_images=100, eval__bound_draws=32,
    )  # fmt: skip
    (result,) = results.values()
    assert (result["times"], result["stratified"], result["control"]) == ("log_snr", False, None)
    _, results = evaluate(
        tiny, "bound_learned", eval__bound=True, eval__num_images=100, eval__bound_draws=32
    )
    (ours,) = results.values()
    assert ours["mean_draw_stderr"] < result["mean_draw_stderr"] / 4
    both = np.hypot(ours["draw_stderr_of_mean"], result["draw_stderr_of_mean"])
    assert abs(ours["mean"] - result["mean"]) < 4 * both


def test_loss(tiny):
    _, results = evaluate(tiny, "loss", eval__enable_bpd=False, eval__enable_loss=True)
    assert list(results) == ["loss_test_ckpt_2"]
    result = results["loss_test_ckpt_2"]
    assert result["unit"] == "loss" and result["importance_weighting"] is True
    assert 0.1 < result["mean"] < 10


@some("method", ["ode", "euler", "ddim", "dpm_solver"], quick=["euler", "dpm_solver"])
def test_sampling(tiny, method):
    folder = tiny.workdir / f"samples_{method}"
    code = run(
        "eval", tiny.workdir, f"--eval_folder={folder.name}", eval__enable_sampling=True,
        eval__enable_bpd=False, eval__num_samples=7, eval__batch_size=5, sampling__method=method,
        model__num_scales=3,
    )  # fmt: skip
    assert code == 0
    samples = npz(folder / "samples_ckpt_2.npz")["samples"]
    assert samples.shape == (7, 8, 8, 1) and samples.dtype == np.uint8 and samples.max() <= 16
    assert (folder / "samples_ckpt_2.png").exists()
    assert not (folder / "results.json").exists()


def test_sampling_by_predictor_and_corrector(tiny):
    """A published command line: the SDE's, with the ratio and the steps of the corrector."""
    folder = tiny.workdir / "samples_pc"
    code = run(
        "eval", tiny.workdir, f"--eval_folder={folder.name}", eval__enable_sampling=True,
        eval__enable_bpd=False, eval__num_samples=5, eval__batch_size=5, sampling__method="pc",
        sampling__predictor="reverse_diffusion", sampling__corrector="langevin",
        sampling__snr=0.075, sampling__n_steps_each=2, sampling__noise_removal=False,
        model__num_scales=25,
    )  # fmt: skip
    assert code == 0
    assert npz(folder / "samples_ckpt_2.npz")["samples"].shape == (5, 8, 8, 1)


def test_the_training_split_under_either_name(tiny):
    loss = {"eval__enable_bpd": False, "eval__enable_loss": True, "eval__batch_size": 479}
    _, one = evaluate(tiny, "train", eval__dataset="train", **loss)
    _, other = evaluate(tiny, "train", eval__bpd_dataset="train", **loss)
    assert one == other
    result = one["loss_train_ckpt_2"]
    assert (result["images"], result["split"], result["full_pass"]) == (1437, "train", True)


def test_a_range_of_checkpoints(tiny, capsys):
    settings = {"eval__enable_bpd": False, "eval__enable_loss": True, "eval__num_images": 30}
    _, results = evaluate(tiny, "range", eval__begin_ckpt=1, eval__end_ckpt=2, **settings)
    first, second = results["loss_test_ckpt_1"], results["loss_test_ckpt_2"]
    assert (first["step"], second["step"]) == (10, 20)
    assert first["ema_hash"] != second["ema_hash"]
    assert first["full_pass"] is False
    told = capsys.readouterr().out
    assert len(re.findall("loss_test_ckpt_1  (?!compiling)", told)) == 2  # progress and a table


def test_the_newest_checkpoint_is_evaluated_whatever_n_iters_says(tiny):
    settings = {"eval__enable_bpd": False, "eval__enable_loss": True, "eval__num_images": 30}
    _, results = evaluate(tiny, "newest", training__n_iters=5000, **settings)
    assert list(results) == ["loss_test_ckpt_2"]


@pytest.mark.long
def test_auto_says_what_it_chose_corrects_the_mean_and_states_its_errors(
    tiny, capfd, monkeypatch
):
    monkeypatch.setattr("scoremle.likelihood.levels.FEWEST_DIFFERENCES", 16)
    few = {"eval__solver": "auto", "eval__num_images": 21, "eval__num_repeats": 2}
    few["training__smallest_time"] = 0.05  # which takes few steps
    folder, results = evaluate(tiny, "levels", **few)
    result = results["exact_test_ckpt_2"]
    steps, images, errors = (result[k] for k in ("level_nodes", "level_images", "errors"))
    assert images == [21, 16] and steps[0] == result["solver_choice"]["nodes"] < steps[1]
    kept = npz(folder / "exact_test_ckpt_2.npz")
    values = kept["bpd"].mean(axis=0)
    order = permutation(21, 42, DIFFERENCES)
    apart = f"steps {steps[0]} to {steps[1]}"
    (part,) = (folder / "parts").glob(f"exact*/{apart}, halved/pass0_image0.npz")
    difference, halving = (npz(part)[k].astype(np.float64) for k in ("bpd", "halving"))
    assert errors["finest_bias"] == pytest.approx(bias_bound(halving))
    corrected = values.mean() + difference.mean()
    assert result["mean"] == pytest.approx(corrected, abs=1e-9)
    assert result["uncorrected_mean"] == pytest.approx(values.mean(), abs=1e-6)
    of_images = contributions([difference], order)
    assert kept["correction"] == pytest.approx(np.stack([of_images] * 2))
    stderr = (values + of_images).std(ddof=1) / np.sqrt(21)
    assert result["stderr"] == errors["all"] == pytest.approx(stderr)
    assert errors["solver"] == pytest.approx(difference.std(ddof=1) / 4)
    assert errors["probes"] < errors["this_set"] == pytest.approx(
        np.hypot(result["noise_stderr"], errors["solver"])
    )
    choice = result["solver_choice"]
    assert result["solver"]["nodes"] == choice["nodes"] and choice["images"] == 8
    assert choice["solver_error"] <= max(0.005, choice["solver_error"] * (not choice["met"]))
    assert choice["calibration"] > 0 and result["mean_solver_error"] > 0
    assert [choice["nodes"], choice["solver_error"]] in choice["tried"]
    # The pilot, of other images with other noise, saw the same.
    gap = result["correction"] + choice["solver_bias"]
    assert abs(gap) < 4 * np.hypot(choice["solver_bias_stderr"], errors["solver"])
    told = capfd.readouterr().out
    assert f"{steps[0]} steps: on 8 images" in told
    assert f"of correction, by differences of {steps[0]} to {steps[1]} steps on 16 images" in told
    part.unlink()
    evaluate(tiny, "levels", **few)
    assert f"{apart}  image 16/16" in capfd.readouterr().out
    again = npz(part)["bpd"]
    np.testing.assert_array_equal(again, difference)


@pytest.mark.long
def test_the_published_solver_is_there_to_compare_with(tiny):
    _, results = evaluate(tiny, "published", eval__solver="rk45_reference", eval__num_images=8)
    result = results["exact_test_ckpt_2"]
    assert result["solver"] == {"type": "PublishedRK45", "rtol": 1e-5, "atol": 1e-5}
    assert result["batch_size"] == 100  # its norm mixes the images of a batch
    assert result["mean_nfe"] > 50 and result["mean_solver_error"] is None


@pytest.mark.slow
@pytest.mark.long
def test_the_suite_measures_everything_and_judges_it(tiny, capfd, monkeypatch):
    """A difference is that of the means, which are corrected for their solvers."""
    monkeypatch.setattr("scoremle.likelihood.levels.FEWEST_DIFFERENCES", 16)
    few = {"eval__num_images": 21, "eval__num_repeats": 2, "eval__bound_draws": 8}
    few |= {"eval__solver": "auto", "training__smallest_time": 0.05}  # which takes few steps
    _, results = evaluate(tiny, "suite", eval__suite=True, **few)
    kinds = {name.partition("_test_ckpt_2")[0] for name in results}
    assert kinds == {
        "exact", "exact_truncated_normal", "exact_k10", "exact_trace", "bound", "bound_none",
        "bound_sliced", "checks",
    }  # fmt: skip
    found = {check["words"]: check["difference"] for check in results["checks_test_ckpt_2"]}
    assert set(found) == {"exact_k10 <= exact", "bound_sliced == bound", "exact_trace == exact"}
    assert results["exact_test_ckpt_2"]["correction"] != 0
    for words, difference in found.items():
        first, second = (results[f"{kind}_test_ckpt_2"]["mean"] for kind in words.split()[::2])
        assert difference == pytest.approx(first - second, abs=1e-6)
    assert "exact_trace == exact: difference" in capfd.readouterr().out



def test_evaluation_prints_the_result_and_where_it_lies(tiny, exact, capfd):
    evaluate(tiny, "exact", eval__num_repeats=2)  # again: nothing is measured twice
    out, err = capfd.readouterr()
    mean = exact[1]["exact_test_ckpt_2"]["mean"]
    assert out.startswith("exact_test_ckpt_2, 2 passes of 360  image 720/720  bpd")
    assert f"{mean:.4f} bits/dim" in out
    assert f"written to {exact[0]}: results.json, arrays and pictures beside it\nnext: " in out
    assert err == ""


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "scoremle: interrupted; the same command resumes it\n"),
        (signal.SIGTERM, 143, "scoremle: stopped; the same command resumes it\n"),
    ],
)
def test_an_evaluation_that_is_stopped_says_so(number, code, said, tiny, capsys, monkeypatch):
    """As it would in a process of its own, whose signals are those of this one."""
    monkeypatch.setattr(
        "scoremle.experiment.run_eval.score_images",
        lambda *_, **__: signal.raise_signal(number),
    )
    before = signal.getsignal(signal.SIGTERM)
    assert run("eval", tiny.workdir, "--eval_folder=stopped") == code
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err == said
    assert not (tiny.workdir / "stopped" / "results.json").exists()


@pytest.mark.parametrize("refusing", ["eval", "eval/parts"])
def test_a_folder_that_takes_no_results_is_named_before_any_are_made(
    refusing, tiny, tmp_path, capsys, monkeypatch
):
    workdir = shutil.copytree(tiny.workdir, tmp_path / "w")
    (workdir / refusing).mkdir(parents=True, exist_ok=True)

    def made(dir):
        if dir == workdir / refusing:
            raise PermissionError
        return io.BytesIO()

    monkeypatch.setattr("scoremle.cli.checks.tempfile.TemporaryFile", made)
    monkeypatch.setattr("scoremle.experiment.run_eval.run_eval", None)
    assert run("eval", workdir) == 2
    assert f"{workdir / refusing} can't be written to" in capsys.readouterr().err


@pytest.mark.long
def test_a_killed_evaluation_goes_on_where_it_was(tiny, exact):
    process = start(
        f"--workdir={tiny.workdir}", "--mode=eval", "--eval_folder=killed",
        *flags(eval__num_repeats=99),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(parts := sorted((tiny.workdir / "killed").rglob("pass*.npz"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.communicate()[1] == ""
    assert not (tiny.workdir / "killed/results.json").exists()
    written = {part: part.stat().st_mtime_ns for part in parts}

    folder, _ = evaluate(tiny, "killed", eval__num_repeats=2)
    assert {part: part.stat().st_mtime_ns for part in parts} == written  # none is redone
    resumed, whole = (npz(path / "exact_test_ckpt_2.npz") for path in (folder, exact[0]))
    assert resumed.keys() == whole.keys()
    for name in whole:
        np.testing.assert_array_equal(resumed[name], whole[name])


@pytest.mark.parametrize(
    "other",
    [
        {},
        pytest.param({"eval__probes": 2}, marks=pytest.mark.long),
        {"seed": 43},
        {"eval__begin_ckpt": 1, "eval__end_ckpt": 1},
        {"eval__nodes": 7},
        pytest.param({"eval__num_images": 350}, marks=pytest.mark.long),
        pytest.param({"eval__divergence": "gaussian"}, marks=pytest.mark.long),
        pytest.param({"training__smallest_time": 1e-4}, marks=pytest.mark.long),
        pytest.param({"eval__dtype": "bfloat16"}, marks=pytest.mark.long),
    ],
)
def test_other_settings_share_no_finished_batches(tiny, exact, other, monkeypatch):
    def measured(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("scoremle.likelihood.score_images.to_numpy", measured)
    folder = f"--eval_folder={exact[0].name}"
    assert run("eval", tiny.workdir, folder, **other) == (130 if other else 0)


@pytest.mark.parametrize("batch_size", [90, 1000])
def test_another_batch_size_measures_nothing_again(tiny, exact, batch_size, monkeypatch):
    monkeypatch.setattr("scoremle.likelihood.score_images.to_numpy", None)
    other = {"eval__batch_size": batch_size, "eval__num_repeats": 2}
    assert evaluate(tiny, exact[0].name, **other)[1] == exact[1]


def test_an_interrupted_evaluation_says_that_it_goes_on(tiny, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("scoremle.experiment.run_eval.score_images", interrupted)
    assert run("eval", tiny.workdir, "--eval_folder=interrupted") == 130
    line = "scoremle: interrupted; the same command resumes it\n"
    assert capsys.readouterr().err == line
