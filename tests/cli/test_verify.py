"""scoremle verify: all that is damaged is named, with what to do; all else is not."""

import json
import os
import re
import shutil
import zipfile

import numpy as np
import pytest
from helpers.small_places import PARTS, make

from scoremle.anomaly import Detector
from scoremle.cli import main as cli
from scoremle.coding.codec import Coded, CodedBlock
from scoremle.coding.file import write_coded
from scoremle.files import SEAL, read_json, write_sealed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make(tmp_path_factory.mktemp("places"))


@pytest.fixture
def places(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "places")
    return tmp_path / "places"


def verify(path, capsys):
    """The exit code, the lines of damage, and the last lines of output and of errors."""
    code = cli.main(["verify", str(path)])
    out, err = capsys.readouterr()
    *lines, total = out.splitlines() or [""]
    return code, lines, total, err


def test_whole_places(whole, capsys):
    total = f"{whole}: 17 as written, 3 readable (no checksum), 0 damaged"
    assert verify(whole, capsys) == (0, [], total, "")
    total = f"{whole}/data: 1 as written, 0 readable (no checksum), 0 damaged"
    assert verify(whole / "data", capsys) == (0, [], total, "")


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


RECORD = "put its copy back, or move it away and run the training's command, which writes it anew"


@pytest.mark.parametrize(
    ("name", "place", "words"),
    [
        ("workdir/config.json", 0.95, rf"config\.json is not as it was written: {RECORD}"),
        ("workdir/data.json", 0.95, rf"data\.json is not as it was written: {RECORD}"),
        (
            "workdir/checkpoints/checkpoint_1/record/metadata", 0.5,
            r"checkpoint_1 is damaged \(.*\); put a copy back, or remove it: the one before .*",
        ),
        (
            "workdir/checkpoints-meta/checkpoint_20/state/manifest.ocdbt", 0.5,
            r"checkpoint_20 is damaged \(.*\); put a copy back, or remove it.*",
        ),
        (
            f"workdir/{PARTS}/pass1_image4.npz", 0.15,
            r"pass1_image4\.npz: its arrays can't be read.*; remove it: its images .*",
        ),
        (
            "workdir/eval/results.json", 0.9,
            r"results\.json: exact_test_ckpt_2 is not as it was written: move the file away .*",
        ),
        ("workdir/eval/exact_test_ckpt_2.npz", 0.3, r"its arrays can't be read.*; remove .*"),
        ("workdir/metrics.jsonl", 0, r"metrics\.jsonl, line 1 is not a row .*: continue .*"),
        ("workdir/samples/step_20.png", 0.5, r"step_20\.png: it can't be read .*; remove it, .*"),
        ("workdir/samples/step_20.png", 0, r"step_20\.png: it can't be read \(its [^<]*\); .*"),
        ("data/train.npy", 0.9, r"train\.npy is damaged \(its .*\); remove \S*data and prep.*"),
        ("data/test_labels.npy", 0.9, r"test_labels\.npy is damaged .*prepare it again"),
        ("data/meta.json", 0.5, r"meta\.json .*[;:] .*prepare it again"),
        ("theirs/checkpoint_1", 0, r"checkpoint_1 can't be read .*; put a copy back"),
        ("weights.safetensors", 0, r"weights\.safetensors: not a complete.*put a copy .*"),
    ],
)  # fmt: skip
def test_damage_is_a_line_with_a_remedy(places, capsys, name, place, words):
    flip(places / name, place)
    code, lines, total, err = verify(places, capsys)
    assert code == 2 and total.endswith(", 1 damaged")
    assert err == f"scoremle: error: {places}: 1 damaged, as listed\n"
    (line,) = lines
    assert line.startswith(str(places)) and re.search(f"/?{words}$", line), line


def test_config_and_checkpoints_that_do_not_belong_together(places, capsys):
    """Each is as it was written."""
    path = places / "workdir" / "config.json"
    content = read_json(path)
    content["model"]["beta_max"] = 10.0
    write_sealed(path, without_seal(content))
    code, (line,), _, _ = verify(places / "workdir", capsys)
    assert code == 2
    assert re.search(r"config\.json says model\.beta_max=10\.0, but .* trained with 20\.0", line)


def test_an_emptied_checkpoint_and_several_damages(places, capsys):
    checkpoint = places / "workdir/checkpoints/checkpoint_2"
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()
    flip(places / "data" / "test.npy", 0.9)
    code, lines, _, err = verify(places, capsys)
    assert code == 2 and len(lines) == 2 and "2 damaged" in err


def test_what_is_no_plain_file_is_named(places, capsys):
    names = (
        "workdir/config.json", "workdir/data.json", "workdir/metrics.jsonl",
        "workdir/eval/exact_test_ckpt_2.npz", "workdir/eval/results.json",
        "workdir/samples/step_20.png", "weights.safetensors", "theirs/checkpoint_1",
    )  # fmt: skip
    for name in names:
        (places / name).unlink()
        os.mkfifo(places / name)
    code, lines, _, _ = verify(places, capsys)
    assert code == 2 and len(lines) == len(names)
    for name in names:
        assert any(line.startswith(str(places / name)) for line in lines), (name, lines)
    assert cli.main(["eval", str(places / "workdir")]) == 2
    assert "config.json is not a plain file" in capsys.readouterr().err


def test_files_of_pytorch_have_checksums_of_their_own(tmp_path, capsys):
    """What torch.save writes is a zip without compression."""
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", np.arange(100.0).tobytes())
    assert verify(path, capsys)[0] == 0
    flip(path)
    _, (line,), _, _ = verify(path, capsys)
    assert "be read" in line and line.endswith("; put a copy back")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10_000_000))
    _, (line,), _, _ = verify(path, capsys)
    assert "compressed" in line
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    assert verify(path, capsys)[0] == 0
    path.write_bytes(path.read_bytes()[:-1])
    _, (line,), _, _ = verify(path, capsys)
    assert "cut off" in line


def test_compressed_images_and_detectors_are_known_whatever_their_names(tmp_path, capsys):
    coded = Coded((CodedBlock(1, 0),), np.ones(3, np.uint32), b"", 0)
    record = {"place": "", "model": "", "program": "", "steps": 2, "lanes": 1, "shape": [1],
              "names": []}  # fmt: skip
    write_coded(tmp_path / "photos", record, coded)
    Detector.fit(None, np.random.default_rng(0).normal(size=(40, 2))).write(tmp_path / "detector")
    (tmp_path / "notes").write_text("{")
    np.savez(tmp_path / "passport.npz", x=np.ones(3))  # no part of work on images
    code, lines, total, _ = verify(tmp_path, capsys)
    assert (code, lines) == (0, []) and "3 as written" in total
    for name in ("photos", "detector"):
        flip(tmp_path / name)
    _, lines, _, _ = verify(tmp_path, capsys)
    assert [line.partition(": ")[0].split()[0] for line in lines] == [
        str(tmp_path / "detector"), str(tmp_path / "photos"),
    ]  # fmt: skip


def test_what_may_not_be_read_is_not_to_be_removed(places, capsys, monkeypatch):
    """And it hides no other damage."""
    shut = [places / "data", next(places.rglob("*.npz"))]
    flip(places / "workdir/data.json", 0.95)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, how: path not in shut and access(path, how))
    code, lines, _, _ = verify(places, capsys)
    assert code == 2 and len(lines) == 3
    for path in shut:
        assert f"{path}: you may not read it: change its permissions" in lines


def without_seal(content):
    return {name: value for name, value in content.items() if name != SEAL}


def test_places_of_an_earlier_version_are_readable(places, capsys):
    """Without seals."""
    for name in ("config.json", "data.json", "eval/results.json"):
        path = places / "workdir" / name
        path.write_text(json.dumps(json.loads(path.read_text(), object_hook=without_seal)))
    code, lines, total, _ = verify(places / "workdir", capsys)
    assert (code, lines) == (0, []) and ", 0 damaged" in total and " 4 readable" in total


def test_a_number_is_no_name_of_a_checkpoint(places, capsys):
    """Folders of classes have such names."""
    (places / "7").mkdir()
    (places / "7" / "1.txt").write_text("another's")
    (places / "12").write_text("another's")
    code, lines, _, _ = verify(places, capsys)
    assert (code, lines) == (0, [])


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda p: None, "folder or file"), (lambda p: p.mkdir(), "holds nothing that")],
)
def test_nothing_to_verify(tmp_path, capsys, make, words):
    make(tmp_path / "place")
    code, _, _, err = verify(tmp_path / "place", capsys)
    assert code == 2 and words in err


def test_help(capsys):
    assert cli.main(["verify", "--help"]) == 0
    screen = " ".join(capsys.readouterr().out.split())
    assert "exit code is 2 if a file is damaged, else 0" in screen
