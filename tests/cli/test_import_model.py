"""Models of published families as working directories: the values of the files themselves."""

import contextlib
import csv
import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from helpers.small_song import write_song
from helpers.true_files import of_diffusers
from helpers.weights import drawn

import scoremle
from scoremle.cli import main as cli
from scoremle.errors import UserError
from scoremle.experiment.imported import FOLDER, RECORD, Imported
from scoremle.experiment.reference import how_to_get, reference_of
from scoremle.files import write_sealed
from scoremle.likelihood.decoders import InformedDecoder
from scoremle.likelihood.images import ByOde
from scoremle.likelihood.labels import ByLabels
from scoremle.published import safetensors
from scoremle.zoo import families, hub, openai

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
QUICK = (
    "--config.eval.solver=multistep", "--config.eval.nodes=4", "--config.eval.num_images=3",
    "--config.eval.num_repeats=2", "--config.eval.batch_size=3",
)  # fmt: skip
STEPS = 96


def of_openai(folder, arrays):
    (folder / "net.pt").write_bytes(b"tensors, in place of which others are read")
    families.flags_beside(folder / "net.pt").write_text(str(arrays["flags"]))
    return folder / "net.pt"


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, IMAGES)
    return path


@pytest.fixture(scope="module")
def imported(tmp_path_factory, images):
    """A model whose last noise hides the levels: its files, and the working directory.

    Places are named from a folder in which nothing that uses it is run.
    """
    folder = tmp_path_factory.mktemp("model")
    file = write_song(folder, "VEPrecond")
    with contextlib.chdir(folder):
        assert run("import", file.name, "run", f"--dataset={os.path.relpath(images)}") == 0
    return file, folder / "run"


@pytest.fixture(scope="module")
def evaluated(imported):
    """The working directory, its test images measured, and the facts of that."""
    file, workdir = imported
    whole = (flag for flag in QUICK if "num_images" not in flag)
    # Ranks are among values whose solver's error is small.
    assert run("eval", workdir, *whole, "--config.seed=5", f"--config.eval.nodes={STEPS}") == 0
    (result,) = json.loads((workdir / "eval/results.json").read_text()).values()
    return file, workdir, result


def same(one, other):
    for mine, others in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_array_equal(mine, others)


@pytest.mark.parametrize("family", ["edm", "openai", "diffusers"])
def test_each_family_is_the_same_model_afterwards(
    family, golden, tmp_path, monkeypatch, request, capsys
):
    if family == "edm":
        place = write_song(tmp_path, "EDMPrecond", classes=10)
    elif family == "openai":
        arrays = golden("adm_guided")
        tensors = drawn(json.loads(str(arrays["shapes"])))
        monkeypatch.setattr(openai.pytorch, "load_pth", lambda path: tensors)
        place = of_openai(tmp_path, arrays)
    else:
        place = tmp_path / "folder"
        for name, content in of_diffusers().items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
    assert run("import", place, tmp_path / "run") == 0
    told, found = capsys.readouterr().out, scoremle.load(tmp_path / "run")
    same(found, scoremle.load(place))
    assert bool(found.origin.classes) == (family != "diffusers")
    by_label = f"score {tmp_path / 'run'} IMAGES --label=all\n" in told
    assert by_label == bool(found.origin.classes)
    err = one_line(capsys, "import", tmp_path / "run", tmp_path / "again")
    assert "directory already" in err


def test_it_is_scored_as_the_file_is(imported, images, tmp_path, capsys):
    tables = []
    np.save(tmp_path / "few.npy", IMAGES[:3])
    for place in imported:
        out = tmp_path / "scores.csv"
        flags = ("--estimator=steps", "--steps=5", "--repeats=1", "--force", f"--out={out}")
        assert run("score", place, tmp_path / "few.npy", *flags) == 0
        tables.append(out.read_text())
    assert tables[0] == tables[1]


@pytest.mark.long
@pytest.mark.slow
def test_an_evaluation_has_the_values_of_the_model_and_a_report(evaluated):
    file, workdir, result = evaluated
    assert result["kind"] == "ode_bound" and result["checkpoint"] == 0
    assert result["estimator"] == "ODE bound, informed decoder, 1 draw"
    model, data = scoremle.load(file), scoremle.data.load(
        "images", path=result_path(workdir), image_size=8, num_channels=3
    )
    decoder = InformedDecoder(model.pixels.points, result["decoder_scale"])
    by_ode = ByOde(solver=scoremle.Multistep(STEPS), decoder=decoder)
    expected = model.score(data.test, estimator=by_ode, passes=2, seed=5)
    with np.load(workdir / "eval/ode_bound_test_ckpt_0.npz") as found:
        np.testing.assert_allclose(found["bpd"].mean(axis=0), expected.bpd, rtol=1e-5)
    scale = model.fit_decoder(data.train).decoder_scale
    assert 0.5 < result["decoder_scale"] / scale < 2
    assert run("report", workdir) == 0
    page = (workdir / "report/index.html").read_text()
    assert "a .safetensors of EDM" in page and "nearest of the package" not in page
    assert run("verify", workdir) == 0


def result_path(workdir):
    return json.loads((workdir / "config.json").read_text())["data"]["path"]


@pytest.mark.long
def test_scores_of_an_evaluated_model_have_ranks_by_the_decoder_of_the_evaluation(
    evaluated, tmp_path
):
    _, workdir, result = evaluated
    place, out, model = str(workdir), tmp_path / "s.csv", scoremle.load(workdir)
    found = reference_of(place, model, "ode")
    assert found.as_measured(model).decoder.scale == result["decoder_scale"]
    for estimator, label in (("bound", ""), ("steps", ""), ("ode", "1")):
        assert not len(reference_of(place, model, estimator, label).values)
    np.save(tmp_path / "few.npy", IMAGES[:4])
    assert run("score", place, tmp_path / "few.npy", "--repeats=1", f"--out={out}") == 0
    with out.open(newline="") as table:
        rows = [(float(row["rank"]), float(row["bpd"])) for row in csv.DictReader(table)]
    for rank, bpd in rows:
        assert rank == pytest.approx((found.values < bpd).mean(), abs=0.5 / len(found.values))


def test_what_gets_ranks_is_stated_for_every_model(imported):
    file, workdir = imported
    model = scoremle.load(file)
    told = how_to_get(str(file), model, "bound", "all")
    assert f"scoremle import {file} FOLDER --dataset=IMAGES and then scoremle eval FOLDER" in told
    informed = "--config.eval.dequantization=informed"
    assert f"FOLDER --config.eval.bound {informed} --config.eval.label=all measure" in told
    told = how_to_get(str(workdir), scoremle.load(workdir), "ode")
    assert f"no ranks: scoremle eval {workdir} {informed} measures" in told
    assert "score such images too" in how_to_get(str(workdir), model, "steps")


@pytest.mark.long
def test_an_evaluation_by_a_chain_of_steps(imported):
    file, workdir = imported
    flags = ("--config.eval.bound_steps=6", "--eval-folder=chain", "--config.seed=5")
    assert run("eval", workdir, *QUICK, *flags) == 0
    (result,) = json.loads((workdir / "chain/results.json").read_text()).values()
    assert "a chain of 6 steps, fixed small variance" in result["estimator"]
    model = scoremle.load(file)
    data = scoremle.data.load("images", path=result_path(workdir), image_size=8, num_channels=3)
    chain = scoremle.likelihood.steps.chain_of(6, model.sde, model.eps, model.pixels)
    expected = model.score(data.test[:3], estimator=chain, passes=2, seed=5)
    with np.load(workdir / "chain/bound_steps_test_ckpt_0.npz") as found:
        np.testing.assert_allclose(found["bpd"].mean(axis=0), expected.bpd, rtol=1e-5)


def test_it_is_sampled(imported, tmp_path):
    file, workdir = imported
    arrays = []
    for place in (file, workdir):
        out = tmp_path / "x.npy"
        assert run("sample", place, "-n", 2, "--steps=3", "-o", out, "--force") == 0
        arrays.append(np.load(out))
    np.testing.assert_array_equal(*arrays)
    assert arrays[0].shape == (2, 8, 8, 3)


@pytest.fixture(scope="module")
def of_classes(tmp_path_factory):
    """A model of 10 classes, imported without a data set."""
    folder = tmp_path_factory.mktemp("classes")
    file = write_song(folder, "EDMPrecond", classes=10)
    assert run("import", file, folder / "run") == 0
    return file, folder / "run"


@pytest.mark.long
@pytest.mark.parametrize("label", ["7", "all"])
def test_an_evaluation_under_a_label_or_the_mean_over_all(label, of_classes, images, capsys):
    file, workdir = of_classes
    data = ("--config.data.dataset=images", f"--config.data.path={images}")
    flags = (*QUICK, *data, f"--config.eval.label={label}", "--config.seed=5")
    assert run("eval", workdir, *flags) == 0
    told, name = capsys.readouterr().out, f"exact_label_{label}_test_ckpt_0"
    words = "mean over 10 labels" if label == "all" else "label 7"
    assert f"{name}: exact by the ODE, {words}, uniform dequantization; 1 probe;" in told
    result = json.loads((workdir / "eval/results.json").read_text())[name]
    assert result["label"] == label and result["kind"] == f"exact_label_{label}"
    model = scoremle.load(file)
    test = scoremle.data.load("images", path=str(images), image_size=8, num_channels=3).test
    by = ByOde(solver=scoremle.Multistep(4))
    options = {"passes": 2, "seed": 5}
    if label == "all":
        expected = model.score(test[:3], estimator=ByLabels(by, 10), **options)
    else:
        expected = model.score(test[:3], condition=np.array([7]), estimator=by, **options)
    with np.load(workdir / f"eval/{name}.npz") as found:
        np.testing.assert_allclose(found["bpd"].mean(axis=0), expected.bpd, rtol=1e-5)
    assert run("report", workdir) == 0
    assert "--config.eval.label=" in (workdir / "report/index.html").read_text()


def test_the_label_and_the_data_set_must_be_said(of_classes, imported, images, capsys):
    _, workdir = of_classes
    err = one_line(capsys, "eval", workdir)
    assert "--config.data.dataset" in err
    data = ("--config.data.dataset=images", f"--config.data.path={images}")
    for flags, words in (
        ([], "is one of 10 classes of images: use --config.eval.label=N, N from 0 to 9,"),
        (["--config.eval.label=10"], "--config.eval.label=10 is not one of the model's"),
        (["--config.eval.label=1", "--config.eval.suite"], "eval.suite does not take eval.label"),
        (["--config.eval.label=all", "--config.eval.solver=rk45_reference"], "takes one label"),
    ):
        assert words in one_line(capsys, "eval", workdir, *data, *flags)
    err = one_line(capsys, "eval", imported[1], "--config.eval.label=1")
    assert "no class labels" in err


def test_a_family_that_is_not_known_here_is_named(tmp_path):
    write_sealed(tmp_path / RECORD, {"family": "of later", "origin": "/x", "files": {}})
    with pytest.raises(UserError, match="family 'of later'"):
        Imported(tmp_path).check()


def test_a_file_that_was_not_imported_is_not_loaded(tmp_path):
    """A family might choose it in place of another."""
    (tmp_path / FOLDER).mkdir()
    write_sealed(tmp_path / RECORD, {"family": "edm", "origin": "/x", "files": {}})
    Imported(tmp_path).check()
    (tmp_path / FOLDER / "more.bin").touch()
    with pytest.raises(UserError, match="was not imported"):
        Imported(tmp_path).check()


def test_models_on_the_hub_and_of_images_that_are_not_square(tmp_path, monkeypatch, capsys):
    files = of_diffusers()
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(hub, "download", {"hf:someone/ddpm": tmp_path}.get)
    assert run("import", "hf:someone/ddpm", tmp_path / "run") == 0
    same(scoremle.load(tmp_path / "run"), scoremle.load(tmp_path))
    config = json.loads(files["unet/config.json"]) | {"sample_size": [4, 8]}
    (tmp_path / "unet/config.json").write_text(json.dumps(config))
    assert "not of 4x8" in one_line(capsys, "import", tmp_path, tmp_path / "again")


def one_line(capsys, *arguments):
    assert run(*arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_a_model_that_takes_another_condition_than_a_class_is_not_imported(
    imported, tmp_path, monkeypatch, capsys
):
    def noise(x, t):
        raise UserError("condition= gives it")

    file, _ = imported
    model = dataclasses.replace(scoremle.load(file), noise=noise)
    monkeypatch.setattr(scoremle, "load", lambda _: model)
    assert "condition=" in one_line(capsys, "import", file, tmp_path / "a")
    assert not (tmp_path / "a" / "config.json").exists()


def test_mistakes_are_one_line(imported, images, golden, tmp_path, capsys):
    file, workdir = imported
    assert "has config.json" in one_line(capsys, "import", file, workdir)
    own = tmp_path / "own.safetensors"
    safetensors.write(own, {}, {"config": "{}", "data": "{}"})
    err = one_line(capsys, "import", own, tmp_path / "a")
    assert "as it is" in err
    err = one_line(capsys, "report", workdir, file)
    assert f"import {file} WORKDIR" in err
    for model in ("digits", "mine.py:model"):
        err = one_line(capsys, "report", model)
        assert f"score {model} IMAGES" in err
    assert f"{images} is a" in one_line(capsys, "report", images)
    err = one_line(capsys, "import", file, tmp_path / "a", f"--out={tmp_path / 'b'}")
    assert "of the two" in err
    err = one_line(capsys, "import", images.parent, tmp_path / "a", "--dataset=digits")
    assert "other families" in err
    for nowhere, words in (("cifar1", "did you mean cifar10"), ("nowhere/", "no folder or file")):
        err = one_line(capsys, "import", file, tmp_path / "a", f"--dataset={nowhere}")
        assert words in err and not (tmp_path / "a").exists()
    assert "trained on" in one_line(capsys, "train", workdir)
    assert "no checkpoint 3" in one_line(
        capsys, "sample", workdir, "--checkpoint=3", "-o", tmp_path / "x.npy"
    )
    assert "scored and sampled" in one_line(capsys, "export", workdir, tmp_path / "x")
    err = one_line(capsys, "eval", workdir, "--config.data.dataset=digits",
                   "--config.data.path=", "--config.data.num_channels=1")  # fmt: skip
    assert "8x8x1 with 17" in err
    assert "in float32" in one_line(capsys, "eval", workdir, "--config.eval.dtype=bfloat16")
    copy = workdir / "published/model.json"
    content = copy.read_text()
    try:
        copy.write_text(content + " ")
        err = one_line(capsys, "sample", workdir, "-o", tmp_path / "x.npy")
        assert f"{copy} is not" in err
        assert run("verify", workdir) == 2 and str(copy) in capsys.readouterr().out
    finally:
        copy.write_text(content)
