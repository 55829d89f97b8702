"""scoremle anomaly: a detector of normal images, and the list of what does not belong."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import scoremle
from scoremle.anomaly import Anomalies, Detector
from scoremle.cli import main as cli
from scoremle.cli.commands import anomaly as command
from scoremle.errors import UserError
from scoremle.experiment import seen

DIGITS = scoremle.data.load("digits")
TRAIN, TEST = DIGITS.train, DIGITS.test
NORMAL, OTHERS = TEST[:160], TEST[160:169]
NOISE = np.random.default_rng(0).integers(0, 17, (3, 8, 8, 1), np.uint8)


# A Gaussian of each pixel of the training digits, in closed form.
MODEL = """
import scoremle

sde, pixels = scoremle.VP(), scoremle.Pixels(17, -1, 1)
points = pixels.points[scoremle.data.load("digits").train]
mean, variance = points.mean(axis=0), points.var(axis=0) + 0.02

def noise(x, t):
    alpha, sigma = (c[:, None, None, None] for c in (sde.alpha(t), sde.sigma(t)))
    return sigma * (x - alpha * mean) / (alpha**2 * variance + sigma**2)

def model():
    return scoremle.ScoreModel(noise, sde, 1e-3, (8, 8, 1), pixels)

def of_reals():
    return scoremle.ScoreModel(noise, sde, 1e-3, (8, 8, 1))
"""


def anomaly(capfd, *words):
    """Exit code, and what was printed on both streams."""
    code = cli.main(["anomaly", *map(str, words)])
    told = capfd.readouterr()
    return code, " ".join(told.out.split()), told.err


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Images, a model in closed form, and a detector."""
    folder = tmp_path_factory.mktemp("anomaly")
    (folder / "digits.py").write_text(MODEL)
    mixed = np.concatenate([OTHERS, NOISE])
    for name, images in {"normal": NORMAL, "mixed": mixed, "trained": TRAIN[:60]}.items():
        np.savez(folder / f"{name}.npz", test=images, levels=17)
    np.save(folder / "reals.npy", NOISE / 17)
    model = f"{folder / 'digits.py'}:model"
    words = "fit", model, folder / "normal.npz", f"--out={folder / 'detector'}"
    assert cli.main(["anomaly", *map(str, words)]) == 0
    return folder


def test_noise_among_digits_is_listed(places, tmp_path, capfd):
    out, page = tmp_path / "a.csv", tmp_path / "a.html"
    named = f"--model={places / 'digits.py'}:model"
    words = ("score", places / "detector", places / "mixed.npz", f"--out={out}", f"--page={page}",
             named)  # fmt: skip
    code, told, _ = anomaly(capfd, *words)
    assert code == 0
    detector = Detector.read(places / "detector")
    found = detector.score(scoremle.load(detector.facts["model"]), np.concatenate([OTHERS, NOISE]))
    table = rows(out)
    np.testing.assert_allclose([float(row["p"]) for row in table], found.p, rtol=1e-5)
    np.testing.assert_allclose([float(row["adjusted"]) for row in table], found.adjusted, 1e-5)
    listed = [row["suspect"] == "yes" for row in table]
    assert listed == found.suspects(0.1).tolist() and all(listed[-3:])
    assert f"{sum(listed)} of 12 stand out at a rate of false discoveries of 0.1: " in told
    text = page.read_text()
    assert text.count("<figure") == 12 and text.index("p 0.012; suspect") < text.index("p 0.5")
    code, told, _ = anomaly(capfd, *words, "--force", "--fail-on-suspects", "--json")
    summary = json.loads(told)
    assert (code, summary["suspects"], summary["references"]) == (4, sum(listed), 80)
    assert "stand out" in summary["facts"][0]
    few = places / "normal.npz"
    code, told, _ = anomaly(capfd, "score", places / "detector", few, f"--out={out}", "--force",
                            "--rate=0.001", "--fail-on-suspects", named)  # fmt: skip
    assert code == 0 and "0 of 160 stand out" in told and "for one it takes 159999" in told


def test_it_says_which_normal_ones_the_model_has_seen(places, tiny, capfd, tmp_path, monkeypatch):
    words = "fit", tiny.workdir, places / "trained.npz", f"--out={tmp_path / 'd'}"
    warning = "60 of 60 normal images were trained on"
    assert warning in anomaly(capfd, *words)[1]
    page = tmp_path / "p.html"
    of = "score", tmp_path / "d", places / "mixed.npz", f"--out={tmp_path / 'a.csv'}"
    assert warning in anomaly(capfd, *of, f"--page={page}")[1] and warning in page.read_text()
    for again in (words, of):
        facts = json.loads(anomaly(capfd, *again, "--force", "--json")[1])["facts"]
        assert any(warning in line for line in facts)
    others = replace(DIGITS, facts={"train_sha256": "of other images at the same place"})
    monkeypatch.setattr(seen, "images_of", lambda config: others)
    assert seen.seen_in_training(str(tiny.workdir), TRAIN[:60]) is None

    def gone(config):
        raise UserError("no such images")

    monkeypatch.setattr(seen, "images_of", gone)
    assert seen.seen_in_training(str(tiny.workdir), TRAIN[:60]) is None
    assert seen.seen_in_training(str(tmp_path), TRAIN[:60]) is None  # of no config
    exported = tmp_path / "model.safetensors"
    assert cli.main(["export", str(tiny.workdir), str(exported)]) == 0
    words = "fit", exported, places / "normal.npz", f"--out={tmp_path / 'e'}"
    code, told, said = anomaly(capfd, *words)
    assert code == 0 and "which images" in told, said


def test_a_detector_knows_its_checkpoint(places, tiny, capfd, tmp_path):
    """A table is made by that one, and not by the newest."""
    out, detector = f"--out={tmp_path / 'a.csv'}", tmp_path / "d"
    words = tiny.workdir, places / "normal.npz", f"--out={detector}"
    assert anomaly(capfd, "fit", *words, "--checkpoint=1", "--statistic=likelihood")[0] == 0
    score = "score", detector, places / "mixed.npz", out
    assert anomaly(capfd, *score)[0] == 0
    code, _, said = anomaly(capfd, *score, "--force", "--checkpoint=2")
    assert code == 2 and "at checkpoint 1" in said


ENCODER = """
def means(images):
    return images.reshape(len(images), 4, -1).mean(axis=2).astype("float32")
"""


def test_features_of_one_s_own_come_from_an_array_or_an_encoder(tmp_path, capfd):
    rng = np.random.default_rng(1)
    normal = rng.normal(100, 20, (99, 6, 6, 3)).clip(0, 255).astype(np.uint8)
    (tmp_path / "mine.py").write_text(ENCODER)
    (tmp_path / "pictures").mkdir()
    for name, image in {"black": 0 * normal[0], "usual": normal[3][::-1]}.items():
        Image.fromarray(image).save(tmp_path / "pictures" / f"{name}.png")
    np.save(tmp_path / "x.npy", normal)
    out, encoder = tmp_path / "a.csv", f"{tmp_path / 'mine.py'}:means"
    detector, table = f"--out={tmp_path / 'd'}", f"--out={out}"
    fit = "fit", "gaussian", tmp_path / "x.npy", detector, f"--encoder={encoder}"
    assert anomaly(capfd, *fit)[0] == 0  # arrays have their size
    assert anomaly(capfd, *fit, "--size=6", "--force")[0] == 0
    score = "score", tmp_path / "d", tmp_path / "pictures", table, "--force"
    code, _, said = anomaly(capfd, *score)  # a detector may be a stranger's
    assert code == 2 and f"--encoder={encoder}" in said
    score = *score, fit[4]
    assert anomaly(capfd, *score, f"--page={tmp_path / 'p.html'}")[0] == 0
    black, usual = (float(row["p"]) for row in rows(out))
    assert black == pytest.approx(1 / 51, 1e-5) and usual > 0.05
    code, _, told = anomaly(capfd, "fit", "gaussian", tmp_path / "pictures", *fit[3:], "--force")
    assert code == 2 and "--size" in told
    (tmp_path / "pictures" / "notes.txt").touch()
    page = tmp_path / "q.html"
    code, told, _ = anomaly(capfd, *score, "--skip-bad", f"--page={page}")
    for text in (told, page.read_text()):
        assert code == 3 and "1 of 3 files" in text
    (tmp_path / "pictures" / "notes.txt").unlink()
    np.save(tmp_path / "y.npy", normal[[*range(99), 0, 0]])
    again = "fit", "gaussian", tmp_path / "y.npy", f"--out={tmp_path / 'e'}", fit[4]
    assert "2 of 101 normal ones are equal" in anomaly(capfd, *again)[1]
    features = normal.reshape(99, 4, -1).mean(axis=2).astype(np.float32)
    np.save(tmp_path / "f.npy", features)
    assert anomaly(capfd, "fit", "gaussian", tmp_path / "f.npy", detector, "--force")[0] == 0
    np.save(tmp_path / "g.npy", np.zeros((1, 4), np.float32))
    code, _, said = anomaly(capfd, "score", tmp_path / "d", tmp_path / "g.npy", table, "--force",
                            fit[4])  # fmt: skip
    assert code == 2 and "has no encoder" in said
    assert anomaly(capfd, "score", tmp_path / "d", tmp_path / "g.npy", table, "--force")[0] == 0
    assert float(rows(out)[0]["p"]) == black
    code, _, told = anomaly(capfd, "score", tmp_path / "d", tmp_path / "g.npy", table, "--force",
                            f"--page={tmp_path / 'v.html'}")  # fmt: skip
    assert code == 2 and "these are vectors" in told
    (tmp_path / "mine.py").write_text(ENCODER.replace("float32", "int32"))
    code, _, told = anomaly(capfd, *fit, "--size=6", "--force")
    assert code == 2 and "must give reals [99 d]" in told
    (tmp_path / "mine.py").write_text(ENCODER)
    # The encoder is another one now.
    assert anomaly(capfd, *fit, "--size=6", "--force")[0] == 0
    (tmp_path / "mine.py").write_text(ENCODER + "\n")
    code, _, told = anomaly(capfd, *score)
    assert code == 2 and "as it was" in told


def test_what_another_process_wrote_meanwhile_stays(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(3).normal(size=(40, 3)))
    assert anomaly(capfd, "fit", "gaussian", "x.npy", "--out=d")[0] == 0

    def meanwhile(*arguments, **named):
        Path("mine").write_text("another's")
        return np.load("x.npy")

    monkeypatch.setattr("scoremle.anomaly.detector._features", meanwhile)
    for words in (("fit", "gaussian"), ("score", "d")):
        Path("mine").unlink(missing_ok=True)
        code, _, said = anomaly(capfd, *words, "x.npy", "--out=mine")
        assert code == 2 and "--force writes" in said and Path("mine").read_text() == "another's"


def test_an_encoder_that_reads_other_weights_is_refused(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = "import numpy as np", "W = np.load('w.npy')", "def vectors(images):"
    code = "    return (images.reshape(len(images), -1) @ W).astype(np.float32)"
    (tmp_path / "mine.py").write_text("\n".join([*lines, code]))
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(25, 3))
    np.save("w.npy", weights)
    np.save("x.npy", rng.integers(0, 256, (40, 5, 5, 1), np.uint8))
    encoder = "--encoder=mine.py:vectors"
    assert anomaly(capfd, "fit", "gaussian", "x.npy", "--out=d", encoder)[0] == 0
    score = "score", "d", "x.npy", encoder, "--force"
    assert anomaly(capfd, *score)[0] == 0
    np.save("w.npy", 1.000001 * weights)  # rounding
    assert anomaly(capfd, *score)[0] == 0
    np.save("w.npy", rng.normal(size=(25, 3)))
    code, _, said = anomaly(capfd, *score)
    assert code == 2 and "other vectors" in said
    detector = Detector.read("d")
    del detector.facts["encoder_outputs"]
    detector.write("d")
    assert "are missing" in anomaly(capfd, *score)[2]


# Places of models that detectors name, which no user did.
OF_OTHERS = {"of_code": "my model.py:images", "of_hub": "hf:a/b", "moved": "runs/elsewhere"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("score", "detector", "mixed.npz", "--rate=2"), "--rate"),
        (("score", "detector", "mixed.npz", "--rate=1e-320"), "--rate"),
        (("score", "detector", "mixed.npz", "--rate="), "not between"),
        (("score", "mixed.npz", "mixed.npz"), "JSON"),
        (("score", "nowhere", "mixed.npz"), "folder or file"),
        (("score", "placeless", "mixed.npz"), "--model=MODEL"),
        (("score", "of_code", "mixed.npz"), "--model='my model.py:images'"),
        (("score", "of_hub", "mixed.npz"), "--model=hf:a/b"),
        (("score", "moved", "mixed.npz"), "not there: --model="),
        *((("score", f"size{size}", "mixed.npz", "--encoder=e.py:f"), told)
          for size, told in (("abc", "fit it anew"), ("60000", "4096"), ("", "fit it anew"))),
        (("score", "detector", "mixed.npz", "--model=digits"), "not the model"),
        (("fit", "digits", "normal.npz", "--out=detector"), "--force"),
        (("fit", "digits", "normal.npz", "--out=x", "--encoder=mine"), "FILE.py:function"),
        (("fit", "gaussian", "normal.npz", "--out=x"), "of reals"),
        (("fit", "digits", "normal.npz", "--out=x", "--size=9"), "--encoder"),
        (("fit", "gaussian", "normal.npz", "--out=x", "--checkpoint=0"), "--checkpoint"),
        (("fit", "gaussian", "reals.npy", "--out=x", "--fit=crop"), "--fit"),
        (("fit", "gaussian", "reals.npy", "--out=x", "--skip-bad"), "--skip-bad"),
        (("fit", "digits", "normal.npz", "--out=x", "--skip-bad"), "--skip-bad"),
        (("fit", "digits", "normal.npz", "--out=x", "--fit=crop"), "--fit=crop"),
        (("score", "detector", "reals.npy", "--model=digits.py:of_reals", "--page=y"), "--page"),
        (("fit", "digits", "normal.npz", "--out=normal.npz", "--force"), "two files"),
        (("score", "detector", "mixed.npz", "--out=x.csv", "--page=./x.csv"), "two files"),
    ],
)
def test_mistakes_are_one_line(words, told, places, capfd, monkeypatch):
    monkeypatch.chdir(places)
    detector = Detector.read("detector")
    replace(detector, facts={}).write("placeless")
    for name, place in OF_OTHERS.items():
        replace(detector, facts={"model": place}).write(name)
    for size in ("abc", "60000", ""):
        facts = dict.fromkeys(("encoder_sha256", "encoder_outputs"), "")
        facts |= {"model": "gaussian", "encoder": "e.py:f", "size": size}
        replace(detector, facts=facts).write(f"size{size}")
    code, _, said = anomaly(capfd, *words)
    assert code == 2 and told in said and len(said.splitlines()) == 1


def test_ten_suspects_are_named_the_most_unusual_first():
    p, names = np.linspace(0.11, 0.01, 11), [*"abcdefghijk"]
    found = Anomalies(-p, p)
    told = command._verdict(names, found, np.ones(11, bool), 0.05)
    assert told.startswith("11 of 11 stand out at a rate of false discoveries of 0.05: k (p 0.01)")
    assert told.endswith("b (p 0.1) and 1 more")
    told = command._verdict(names[:10], Anomalies(-p[:10], p[:10]), np.arange(10) < 1, 0.1)
    assert told.endswith("of 0.1: a (p 0.11)") and told.startswith("1 of 10 ")
    none = command._verdict(names, found, np.zeros(11, bool), 0.1)
    assert none.endswith("of 0.1: the least p-value is 0.01")
    tied = Anomalies(np.array([1.0, 9.0, 5.0]), np.full(3, 0.01))
    told = command._verdict(["a", "b", "c"], tied, np.ones(3, bool), 0.1)
    assert told.endswith("of 0.1: b (p 0.01), c (p 0.01), a (p 0.01)")
