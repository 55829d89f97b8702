"""Features of image after image, through kills; files of them say whose they are."""

import numpy as np
import pytest
from helpers.extractors import stand_in

from scoremle.cli import main as cli
from scoremle.errors import UserError
from scoremle.quality import features


def images(n, channels=1, levels=256):
    return np.random.default_rng(n).integers(0, levels, (n, 4, 4, channels)).astype(np.uint8)


def extract(x, folder, *, levels=256, batches=None):
    return features.extract(stand_in(batches), x, levels, folder=folder, label="features")


# Images


def test_all_images_in_order_in_batches_of_one_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(features, "PICTURES_AT_ONCE", 4)
    batches = []
    x = images(10, 3)
    found = extract(x, tmp_path, batches=batches)
    assert [batch.shape for batch in batches] == [(4, 4, 4, 3)] * 3
    np.testing.assert_allclose(found["pool_3"][:, 0], x.mean((1, 2, 3)), rtol=1e-6)
    assert found["logits"].shape == (10, 2)
    (last,) = capsys.readouterr().out.splitlines()
    assert last.startswith("features  image 10/10  ")


def test_grey_images_are_repeated_and_their_levels_spread(tmp_path):
    batches = []
    x = images(6, levels=17)
    extract(x, tmp_path, levels=17, batches=batches)
    (batch,) = batches
    for channel in range(3):
        np.testing.assert_array_equal(batch[..., channel], np.round(x[..., 0] * (255 / 16)))
    assert batch.max() == 255


def test_colours_of_256_levels_stay_as_they_are(tmp_path):
    batches = []
    extract(images(6, 3), tmp_path, batches=batches)
    np.testing.assert_array_equal(batches[0], images(6, 3))


# Files


def test_a_file_of_features_says_whose_they_are(tmp_path, caplog):
    path = tmp_path / "stats.npz"
    pool = np.random.default_rng(0).random((5, 3), np.float32)
    features.write_reference(path, pool, stand_in(), {"dataset": "digits", "split": "train"})
    found = features.read_reference(path, stand_in())
    np.testing.assert_array_equal(found.pool, pool)
    assert found.facts == {
        "path": str(path),
        "images": 5,
        "origin": {"features": "stand-in of three moments", "weights_sha256": "stand-in"},
        "dataset": "digits",
        "split": "train",
    }
    assert not caplog.records
    other = features.Extractor(stand_in().apply, "another", 3, "another")
    with pytest.raises(UserError, match=r"network .*stand-in"):
        features.read_reference(path, other)


def test_a_file_of_score_flow_is_taken_with_a_warning(tmp_path, caplog):
    path = tmp_path / "cifar10_stats.npz"
    np.savez(path, pool_3=np.ones((5, 3), np.float32))
    found = features.read_reference(path, stand_in())
    assert len(found.pool) == 5 and found.facts["origin"].startswith("unknown: pool_3 alone")
    assert "each other alone" in caplog.text


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "no pool_3"),
        ({"pool_3": np.array([{}])}, "no pool_3"),  # pickled
        ({"pool_3": np.ones((5, 4))}, r"\(5, 4\)"),
        ({"pool_3": np.ones(5)}, "pool_3 has shape"),
        ({"pool_3": np.full((5, 3), np.nan)}, "not finite numbers"),
        ({"pool_3": np.full((5, 3), "1")}, "not finite numbers"),
        ({"pool_3": np.ones((5, 3)), "record": np.asarray("{")}, "record can't"),
        ({"pool_3": np.ones((5, 3)), "record": np.asarray("5")}, "record must"),
        ({"pool_3": np.ones((5, 3)), "record": np.asarray("{}".ljust(8 << 20))}, "record can't"),
    ],
)
def test_files_that_are_no_features(arrays, words, tmp_path):
    path = tmp_path / "stats.npz"
    with pytest.raises(UserError, match="reference statistics"):
        features.read_reference(path, stand_in())
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=words):
        features.read_reference(path, stand_in())


# The command


@pytest.fixture
def no_inception(monkeypatch):
    monkeypatch.setattr("scoremle.quality.features.load_inception", lambda path: stand_in())


def test_stats_of_a_data_set(no_inception, tmp_path, capsys):
    path = tmp_path / "digits.npz"
    command = ["stats", "Digits", "--weights=w.npz", f"--out={path}", "--split=test"]
    assert cli.main([*command, "--image_size=10"]) == 0
    told = capsys.readouterr().out
    assert f"{path}: features of 360 test images of digits (stand-in" in told
    flags = f"--config.eval.inception=w.npz --config.eval.stats={path}\n"
    assert told.endswith(f"next: scoremle eval WORKDIR --config.eval.enable_sampling {flags}")
    assert [file.name for file in tmp_path.iterdir()] == ["digits.npz"]  # the parts are gone
    found = features.read_reference(path, stand_in())
    facts = {"dataset": "digits", "split": "test", "shape": [10, 10, 1], "images": 360}
    assert {name: found.facts[name] for name in facts} == facts
    assert (found.pool[:, 2] == 0).all()  # the corner is padding


def test_killed_stats_go_on(no_inception, tmp_path, monkeypatch):
    done = []

    def interrupted(batch, levels):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(batch)
        return colour(batch, levels)

    colour = features._colour
    path = tmp_path / "digits.npz"
    command = ["stats", "digits", "--weights=w.npz", f"--out={path}", "--split=test"]
    with monkeypatch.context() as patch:
        patch.setattr(features, "_colour", interrupted)
        assert cli.main(command) == 130
    parts = {part: part.stat().st_mtime_ns for part in tmp_path.rglob("pass*.npz")}
    assert len(parts) == 3 and not path.exists()
    folder = next(iter(parts)).parent
    folder.rename(tmp_path / "theirs")
    folder.symlink_to("theirs")
    assert cli.main(command) == 2 and not path.exists()  # nothing is written through a link
    folder.unlink()
    (tmp_path / "theirs").rename(folder)
    monkeypatch.setattr("shutil.rmtree", lambda folder, **options: None)
    assert cli.main(command) == 0
    assert {part: part.stat().st_mtime_ns for part in parts} == parts
    assert len(features.read_reference(path, stand_in()).pool) == 360


def test_stats_that_another_process_wrote_meanwhile_stay(no_inception, tmp_path, monkeypatch):
    path, colour = tmp_path / "digits.npz", features._colour

    def meanwhile(batch, levels):
        path.write_text("another's")
        return colour(batch, levels)

    monkeypatch.setattr(features, "_colour", meanwhile)
    command = ["stats", "digits", "--weights=w.npz", f"--out={path}", "--split=test"]
    assert cli.main(command) == 2 and path.read_text() == "another's"
    monkeypatch.setattr(features, "_colour", lambda *batch: pytest.fail("computed again"))
    assert cli.main([*command, "--force"]) == 0


def test_mistakes_in_stats(tmp_path, capsys):
    def mistake(*command):
        assert cli.main(["stats", *command]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    absent = f"--weights={tmp_path / 'absent.npz'}"
    assert "arguments are required" in mistake("digits")
    assert "no Inception weights" in mistake("digits", absent, "--out=o.npz")
    assert "end in .npz" in mistake("digits", absent, "--out=o")


def test_stats_of_an_unknown_data_set(no_inception, capsys):
    assert cli.main(["stats", "digit", "--weights=w.npz", "--out=o.npz"]) == 2
    assert "mean digits?" in capsys.readouterr().err
