"""Published checkpoints become workdirs, and workdirs published checkpoints, bit for bit."""

import json
import shutil
import struct
from pathlib import Path

import flax
import jax
import numpy as np
import pytest
from helpers.golden_networks import golden
from helpers.published_folder import DEQUANTIZER, FILE, FOLDER, NAME, expected, restore
from helpers.pytorch_checkpoints import as_checkpoint, as_tensors
from helpers.tiny_runs import evaluate, params_of
from helpers.true_files import of_diffusers

import scoremle
from scoremle import published
from scoremle.cli import main as cli
from scoremle.errors import UserError
from scoremle.experiment import card
from scoremle.experiment.build import build
from scoremle.experiment.results import add_results
from scoremle.experiment.workdir import Workdir
from scoremle.files import SEAL, read_json, write_json
from scoremle.published import PublishedCheckpoints, safetensors
from scoremle.training.checksums import tree_hash


def built(workdir):
    place = Workdir(workdir)
    return build(place.config(), levels=place.levels())


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported") / "w"
    assert cli.main(["import", str(FOLDER), f"--out={folder}"]) == 0
    return folder


@pytest.mark.long
def test_import_prints_what_it_found(tmp_path, capsys):
    assert cli.main(["import", str(FOLDER), f"--out={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(FILE)
    for words in (
        "step        3",
        "parameters  12,539 in 154 arrays",
        "nf 4, ch_mult (1, 2), num_res_blocks 1, attention at levels (1,), resblock_type biggan",
        "data set    CIFAR10, 32x32",
        "subvpsde, likelihood weighting on, importance sampling on, flips on",
        f"written to  {tmp_path}/checkpoints/checkpoint_1",
        "parameters  177,016 in",
        "dequantizer variant cifar10, filters 4, components 2, blocks 1, couplings 4, image_size",
    ):
        assert any(words in line for line in lines), words


@pytest.mark.long
def test_an_imported_model_is_a_trained_one(imported):
    model = scoremle.load(imported)
    experiment = built(imported)
    network = experiment.model.network
    assert (model.origin.step, network.nf, network.ch_mult) == (3, 4, (1, 2))
    assert network.attn_resolutions == (16,)  # of images that the name says are 32x32
    config = experiment.config
    assert (config["optim"]["lr"], config["model"]["ema_rate"]) == (0.002, 0.9)
    assert config["training"]["sde"] == "subvpsde" and config["training"]["smallest_time"] == 1e-2
    assert config["training"]["likelihood_weighting"] and config["data"]["random_flip"]
    assert tree_hash(params_of(model)) == tree_hash(restore()[0].ema)
    assert tree_hash(Workdir(imported).snapshot_state(experiment.training.template).params)


def test_an_imported_dequantizer_is_the_published_one(imported):
    store = PublishedCheckpoints(imported / "flowpp_dequantizer" / "checkpoints", keep=None)
    assert (store.own(), store.meta(1)["rng"]) == ([1], expected()["dequantizer/rng"].tolist())


def test_export_gives_the_same_file(imported, tmp_path, capsys):
    path = tmp_path / "checkpoints" / "checkpoint_1"
    assert cli.main(["export", str(imported), str(path)]) == 0
    told = f"checkpoint 1, step 3: written to {path}; what it is, to {path}.json\n"
    assert capsys.readouterr().out == told
    assert path.read_bytes() == FILE.read_bytes()


def test_a_training_of_our_own_is_exported_and_read_again(tiny, tmp_path):
    path = tmp_path / "checkpoint_2"
    assert cli.main(["export", str(tiny.workdir), str(path)]) == 0
    template = built(tiny.workdir).training.template
    ours = Workdir(tiny.workdir).snapshots.restore(template).tree
    again = PublishedCheckpoints(tmp_path, keep=None).restore(template).tree
    assert tree_hash(again) == tree_hash(ours)
    tree = flax.serialization.msgpack_restore(path.read_bytes())
    assert tree["optimizer"]["target"]["GroupNorm_0"]["scale"].shape == (1, 1, 1, 4)
    assert tree["rng"].tolist() == [0, 42]


@pytest.mark.parametrize(
    "fields",
    [
        {"model.name": "vdm", "model.attn_resolutions": ()},
        {"training.time_density": "learned", "training.importance_weighting": False},
        {"training.sde": "vdm", "model.schedule": "scalar", "data.bin_middles": True,
         "data.uniform_dequantization": False, "training.importance_weighting": False},
    ],
)  # fmt: skip
def test_what_the_published_format_has_no_place_for_is_not_exported(
    tiny, tmp_path, capsys, fields
):
    workdir = Workdir(shutil.copytree(tiny.workdir, tmp_path / "w"))
    config = workdir.config()
    config.update_from_flattened_dict(fields)
    write_json(workdir.config_path, config.to_dict())
    assert "no place" in one_line(capsys, "export", workdir.folder, tmp_path / "checkpoint_2")


def test_an_export_is_imported_as_the_training_that_it_was(tiny, tmp_path, capsys):
    """The same state, config and data, to the last bit; and exported again, the same file."""
    path, out = tmp_path / "mine" / "checkpoint_2", tmp_path / "back"
    assert cli.main(["export", str(tiny.workdir), str(path)]) == 0
    assert cli.main(["import", str(path), f"--out={out}"]) == 0
    assert "digits, 8x8 (by checkpoint_2.json)" in capsys.readouterr().out
    ours, back = (Workdir(folder) for folder in (tiny.workdir, out))
    template = built(out).training.template
    assert tree_hash(back.restore(template).tree) == tree_hash(ours.restore(template).tree)
    for name in ("config.json", "data.json"):
        assert read_json(out / name) == read_json(tiny.workdir / name)
    again = tmp_path / "again"
    assert cli.main(["export", str(out), str(again)]) == 0
    assert again.read_bytes() == path.read_bytes()
    record = path.with_name("checkpoint_2.json")
    other = path.with_name("checkpoint_1")
    assert cli.main(["export", str(tiny.workdir), str(other), "--checkpoint=1"]) == 0
    shutil.copy(record, other.with_name("checkpoint_1.json"))
    assert "of another file" in one_line(capsys, "import", other, f"--out={tmp_path / 'other'}")
    record.write_text(record.read_text().replace('"nf": 4', '"nf": 8'))
    err = one_line(capsys, "import", path, f"--out={tmp_path / 'other'}")
    assert "checkpoint_2.json" in err


def test_an_exported_safetensors_is_a_model(tiny, tmp_path, capsys):
    path = tmp_path / "digits.safetensors"
    assert cli.main(["export", str(tiny.workdir), str(path), "--card"]) == 0
    model, ours = scoremle.load(path), scoremle.load(tiny.workdir)
    assert repr(model) == repr(ours) and model.eps == ours.eps and model.solver == ours.solver
    assert tree_hash(params_of(model)) == tree_hash(params_of(ours))
    err = one_line(capsys, "import", path, f"--out={tmp_path / 'w'}")
    assert "as it is" in err and not (tmp_path / "w").exists()
    notes, arrays = read_safetensors(path)
    config = json.loads(notes["config"]) | {"seed": 1}
    config["model"]["ch_mult"] = [2]
    safetensors.write(path, arrays, notes | {"config": json.dumps(config)})
    with pytest.raises(UserError, match="notes name"):
        scoremle.load(path)
    safetensors.write(path, arrays, notes | {"config": "["})
    with pytest.raises(UserError, match="notes are damaged"):
        scoremle.load(path)


@pytest.mark.parametrize(("name", "levels"), [("ncsnpp", True), ("vdm", False), ("VDM", False)])
def test_a_card_has_the_sizes_that_its_network_reads(name, levels):
    sizes = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": ()}
    fields = {"name": name, **sizes}
    assert ("ch_mult (1, 2)" in card._network(fields)) == levels


def test_a_card_says_what_was_measured_of_the_checkpoint(tiny, tmp_path, capsys):
    loss = {"eval__enable_bpd": False, "eval__enable_loss": True, "eval__num_images": 30}
    (result,) = evaluate(tiny, "card", **loss)[1].values()
    result.pop(SEAL)
    workdir = shutil.copytree(tiny.workdir, tmp_path / "w")
    results = {"a": result, "b": result | {"checkpoint": 1}, "c": result | {"step": 7}}
    add_results(workdir / "eval" / "results.json", results)
    path = tmp_path / "x.safetensors"
    assert cli.main(["export", str(workdir), str(path), "--card"]) == 0
    text = (tmp_path / "x.safetensors.md").read_text()
    assert f"its card: {path}.md" in capsys.readouterr().out
    row = f"{result['mean']:.4f} loss | {result['stderr']:.4f} |  | 30 test images (not the whole"
    assert text.count(row) == 1
    assert "| data | digits: 8x8x1, 17 grey levels |" in text and "scoremle score x.saf" in text
    again = ["export", str(workdir), str(path), "--card", "--checkpoint=1"]
    assert cli.main(again) == 2 and f"{path} is there" in capsys.readouterr().err
    path.unlink()
    assert cli.main(again) == 2 and f"{path}.md is there" in capsys.readouterr().err
    assert cli.main([*again, "--force"]) == 0 and path.exists()
    assert cli.main(["export", str(workdir), "/dev/null"]) == 0
    assert not Path("/dev/null.json").exists()


def test_a_name_that_the_file_contradicts_is_refused(tiny, tmp_path, capsys):
    path, out = tmp_path / "checkpoint_2", tmp_path / "out"
    assert cli.main(["export", str(tiny.workdir), str(path)]) == 0
    assert cli.main(["import", str(path), "--name=cifar10_vp_likelihood_iw", f"--out={out}"]) == 2
    line = "has num_channels 1, and cifar10 has 3: it is not the model of that name"
    assert line in capsys.readouterr().err
    assert not out.exists()


def read_safetensors(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    data = content[8 + length :]
    notes = header.pop("__metadata__")
    ends = [end for entry in header.values() for end in entry["data_offsets"]]
    assert length % 8 == 0 and max(ends) == len(data)
    return notes, {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
        for name, entry in header.items()
        if entry["dtype"] == "F32"
    }


def test_safetensors_have_the_averaged_parameters(imported, tmp_path):
    path = tmp_path / "model.safetensors"
    assert cli.main(["export", str(imported), str(path), "--checkpoint=1"]) == 0
    notes, arrays = read_safetensors(path)
    assert notes["step"] == "3" and json.loads(notes["config"])["model"]["nf"] == 4
    tree = flax.traverse_util.unflatten_dict(arrays, sep=".")
    assert tree_hash(tree) == tree_hash(restore()[0].ema)


def test_a_checkpoint_of_pytorch_is_imported(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    config, params, _ = golden("ncsnpp_ve")
    path = tmp_path / "checkpoint_24.pth"
    torch.save(as_tensors(as_checkpoint(config, params), torch), path)
    out = tmp_path / "out"
    name = "--name=ve/cifar10_ncsnpp_continuous"
    assert cli.main(["import", str(path), name, f"--out={out}"]) == 0, capsys.readouterr().err
    model = scoremle.load(out)
    assert model.origin.step == 7 and (out / "checkpoints/checkpoint_24").is_dir()
    want = jax.tree.map(lambda a: 2 * a, params)
    want["GaussianFourierProjection_0"] = params["GaussianFourierProjection_0"]
    assert tree_hash(params_of(model)) == tree_hash(want)
    network = built(out).model.network
    assert network.fir and network.scale_by_sigma and not network.centered and network.log_labels
    assert network.progressive_input == "residual" and network.embedding_type == "fourier"


def one_line(capsys, *arguments):
    assert cli.main([str(argument) for argument in arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_mistakes_are_one_line(imported, tmp_path, capsys):
    err = one_line(capsys, "import", tmp_path)
    assert "checkpoint_N.pth" in err and "from_module" in err
    err = one_line(capsys, "import", imported)
    assert "directory already" in err
    shutil.copy(FILE, tmp_path / "mine")
    err = one_line(capsys, "import", tmp_path / "mine")
    assert "SDE and data" in err and "--name=cifar10_deep_vp" in err
    assert "already" in one_line(capsys, "import", FOLDER, f"--out={imported}")
    assert "of a DDPM++" in one_line(capsys, "import", DEQUANTIZER)
    folder = shutil.copytree(FOLDER, tmp_path / "twice" / NAME)
    shutil.copy(FILE, folder / "flowpp_dequantizer" / "checkpoints")
    err = one_line(capsys, "import", folder, f"--out={tmp_path / 'out'}")
    assert "of a Flow++" in err
    (tmp_path / "mine").write_bytes(FILE.read_bytes()[:1000])
    err = one_line(capsys, "import", tmp_path / "mine")
    assert "mine can't" in err and "another family" in err
    assert "no checkpoint 9" in one_line(capsys, "export", imported, "x", "--checkpoint=9")
    err = one_line(capsys, "export", FOLDER.parent, "x")
    assert "no config.json" in err
    err = one_line(capsys, "export", imported, tmp_path / "x.pth")
    assert "a .safetensors" in err
    assert not (tmp_path / "x.pth").exists()
    shutil.copytree(FOLDER / "checkpoints", tmp_path / NAME / "checkpoints")
    err = one_line(capsys, "export", tmp_path / NAME, "x")
    assert f"; scoremle import {tmp_path / NAME} makes one of it" in err
    assert not Path("x").exists()
    assert published.checkpoint_files(tmp_path) == {}


def write_pipeline(folder):
    for name, content in of_diffusers().items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


@pytest.mark.parametrize(
    "there", ["another training", "a file of one's own", "pictures", "a flow of another"]
)
def test_an_import_overwrites_nothing(there, imported, tiny, tmp_path, capsys):
    place = tmp_path / "w"
    if there == "another training":
        shutil.copytree(tiny.workdir, place)
    else:
        names = {"pictures": "a.png", "a flow of another": "flowpp_dequantizer/checkpoints/x"}
        file = place / names.get(there, "config.json")
        file.parent.mkdir(parents=True)
        file.write_text("hello")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    pipeline = write_pipeline(tmp_path / "pipeline")
    for source in (FOLDER, pipeline):
        assert "already" in one_line(capsys, "import", source, f"--out={place}")
    assert before == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_an_import_that_is_interrupted_says_that_it_may_be_complete(tmp_path, monkeypatch, capsys):
    def interrupted(path, name, workdir):
        raise KeyboardInterrupt

    monkeypatch.setattr("scoremle.cli.commands.import_checkpoint._import_checkpoint", interrupted)
    assert cli.main(["import", str(FOLDER), f"--out={tmp_path / 'w'}"]) == 130
    assert f"unless {tmp_path / 'w'} is complete" in capsys.readouterr().err


def test_one_import_at_a_time_writes_to_a_folder(tmp_path, capsys):
    pipeline = write_pipeline(tmp_path / "pipeline")
    with Workdir(tmp_path / "w").locked("importing a model into it"):
        for source in (FOLDER, pipeline):
            assert "is importing" in one_line(capsys, "import", source, f"--out={tmp_path / 'w'}")
    assert [*(tmp_path / "w").iterdir()] == []
