"""The command that scores one's own images: the values of the library, in a table."""

import csv
import json
import os

import numpy as np
import pytest
from PIL import Image

import scoremle
from scoremle.cli import main as cli
from scoremle.data.readers.digits import load_digits

IMAGES = load_digits("")[1][:5]


def score(capfd, *arguments):
    """Exit code, and what is printed on either side."""
    code = cli.main(["score", *map(str, arguments)])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def model(tiny):
    """The model, whose config says how many nodes to take: no pilot chooses."""
    return scoremle.load(tiny.workdir)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_an_array(tiny, model, tmp_path, capfd):
    np.save(tmp_path / "x.npy", IMAGES)
    out = tmp_path / "mine.csv"
    code, told, _ = score(
        capfd, tiny.workdir, tmp_path / "x.npy", f"--out={out}", "--repeats=2", "--seed=3"
    )
    assert code == 0 and f"written to {out}" in told
    expected = model.score(IMAGES, seed=3, repeats=2)
    found = rows(out)
    assert [row["image"] for row in found] == ["0", "1", "2", "3", "4"]
    for column in ("log_prob", "bpd", "stderr", "solver_error"):
        values = [float(row[column]) for row in found]
        np.testing.assert_allclose(values, getattr(expected, column), rtol=1e-5)
    error = expected.bpd.std(ddof=1) / np.sqrt(5)
    assert f"mean {expected.bpd.mean():.4f} +- {error:.4f} (over images) bits/dim" in told


def test_pictures(tiny, model, tmp_path, capfd):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate(IMAGES):  # 17 levels, spread to 256
        Image.fromarray(np.round(image[..., 0] * (255 / 16)).astype(np.uint8)).save(
            folder / f"digit{i}.png"
        )
    (folder / "notes.txt").write_text("left out")
    out = tmp_path / "s.csv"
    code, told, _ = score(capfd, tiny.workdir, folder, f"--out={out}", "--repeats=1")
    assert code == 0 and "their 256 grey levels become the model's 17" in told
    expected = model.score(IMAGES)
    found = rows(out)
    assert [row["image"] for row in found] == [f"digit{i}.png" for i in range(5)]
    values = [float(row["bpd"]) for row in found]
    np.testing.assert_allclose(values, expected.bpd, rtol=1e-5)
    assert {row["stderr"] for row in found} == {"nan"}  # one pass can't tell

    line = (tiny.workdir, folder / "digit2.png", f"--out={out}", "--json")
    code, told, _ = score(capfd, *line)
    (row,) = rows(out)
    assert code == 0 and row["image"] == "digit2.png"
    summary = json.loads(told)
    assert (summary["images"], summary["stderr"]) == (1, None)
    assert summary["mean"] == pytest.approx(float(row["bpd"]))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.npy", np.zeros((2, 9, 9, 1), np.uint8), "images must be uint8 of shape (n, 8, 8, 1)"),
        ("x.npy", np.zeros((2, 8, 8, 1)), "is float64, not uint8"),
        ("missing", None, "no file or folder"),
        ("a/x.txt", b"text", "holds no picture"),
        ("x.npz", {"x": IMAGES, "levels": "many"}, "levels is many, but must be one whole number"),
        ("a/x.png", b"text", "x.png: can't be decoded"),
    ],
)
def test_mistakes_are_one_line(name, content, words, tiny, tmp_path, capfd):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
        path = path.parent
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        np.save(path, content)
    code, _, told = score(capfd, tiny.workdir, path, f"--out={tmp_path / 'scores.csv'}")
    assert code == 2 and words in told and told.count("\n") == 1
    assert not (tmp_path / "scores.csv").exists()


def test_names_of_any_kind(tiny, tmp_path, capfd):
    """No name is lost or does harm, and none fails when all the work is done."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = [b"=1+1.png", b"a\xff.png", b"b\x1b[2J.png"]
    for name in names:
        picture = Image.fromarray(np.zeros((8, 8), np.uint8))
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            picture.save(file, "PNG")
    out = tmp_path / "s.csv"
    code, told, _ = score(capfd, tiny.workdir, folder, f"--out={out}", "--repeats=1")
    assert code == 0 and "\x1b" not in told and r"b\x1b[2J.png" in told
    found = [row["image"] for row in rows(out)]
    assert found == ["'=1+1.png", r"a\udcff.png", r"b\x1b[2J.png"]


def test_places_are_looked_at_first(tmp_path, capfd):
    """Before the model, which is not there."""
    np.save(tmp_path / "x.npy", IMAGES)
    (tmp_path / "file").write_text("kept")
    for images, out, words in [
        ("absent", "s.csv", "no file or folder"),
        ("x.npy", ".", "it is a folder; name a file to write"),
        ("x.npy", "file/s.csv", "file is none that can be written to"),
    ]:
        code, _, told = score(capfd, "no-model", tmp_path / images, f"--out={tmp_path / out}")
        assert code == 2 and words in told and told.count("\n") == 1, told


def test_what_is_changed_is_said(tiny, tmp_path, capfd):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "colour.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "grey.png")
    out = f"--out={tmp_path / 's.csv'}"
    code, told, _ = score(capfd, tiny.workdir, folder, out, "--repeats=1")
    assert code == 0 and "1 of 2 pictures were made grey, though they had colours\n" in told

    np.savez(tmp_path / "x.npz", train=IMAGES[:3], test=IMAGES[3:])
    code, told, _ = score(capfd, tiny.workdir, tmp_path / "x.npz", out, "--repeats=1")
    assert code == 0 and "one after the other: 3 of train, 2 of test\n" in told
    names = [row["image"] for row in rows(tmp_path / "s.csv")]
    assert names == ["train 0", "train 1", "train 2", "test 0", "test 1"]
