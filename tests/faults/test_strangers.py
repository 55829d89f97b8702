"""Whatever stands in the place of a file of a workdir or data set: links, pipes, circles.

Nothing outside of the folder is read or changed, and nothing is waited for.
"""

import os
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from helpers.small_places import READERS, TEMPLATE, make
from PIL import Image

from scoremle.cli.commands.verify import verify
from scoremle.data.archive import Source
from scoremle.data.readers.arrays import read_array_files
from scoremle.data.readers.base import Options
from scoremle.errors import UserError
from scoremle.experiment.lock import locked
from scoremle.experiment.results import RESULTS, read_results
from scoremle.experiment.workdir import Workdir
from scoremle.files import inside, named, opened, read_json
from scoremle.report.subject import Subject
from scoremle.report.write import MADE_BY, check_own
from scoremle.training.writers import JsonLines

SECONDS = 60
# A file of each kind, and the folders that they are in.
PLACES = (
    "workdir/config.json", "workdir/data.json", "workdir/checkpoints",
    "workdir/checkpoints/checkpoint_2", "workdir/checkpoints/checkpoint_2/record/metadata",
    "workdir/checkpoints/checkpoint_2/state/d", "workdir/checkpoints-meta/checkpoint_20/state",
    "workdir/checkpoints-meta/checkpoint_20/state/_METADATA", "workdir/eval",
    "workdir/eval/results.json", "data/meta.json", "data/train.npy", "data/test_labels.npy",
)  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_waited_for():
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return make(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def places(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "places")


def link_out(place, away):
    """To the same thing, so that it is seen whether it is followed."""
    place.symlink_to(away)


def pipe(place, away):
    os.mkfifo(place)


def circle(place, away):
    place.symlink_to(f"{place.name}.2")
    place.with_name(f"{place.name}.2").symlink_to(place.name)


def outcome(places, name):
    """What the reader of a file gives: its truth is that of the file as it was."""
    readers = {
        "workdir/eval": lambda folder: read_results(inside(folder / "workdir", "eval", RESULTS)),
        **READERS,
    }
    reader = next(r for r in readers if name.startswith(r) or r == f"{name}/")
    try:
        return repr(readers[reader](places))
    except UserError as error:
        assert "\n" not in str(error)
        return "refused"


@pytest.mark.parametrize("name", PLACES)
def test_what_is_no_file_of_the_folder_is_not_read(name, places, tmp_path):
    truth = outcome(places, name)
    place = places / name
    for harm in (link_out, pipe, circle):
        place.rename(tmp_path / "away")
        harm(place, tmp_path / "away")
        assert outcome(places, name) != truth, harm
        lines = [line for line in verify(places) if isinstance(line, str)]
        assert all("\n" not in line for line in lines)
        assert lines or harm is pipe  # which is none of the program's files
        place.with_name(f"{place.name}.2").unlink(missing_ok=True)
        place.unlink()
        (tmp_path / "away").rename(place)
    assert outcome(places, name) == truth


@pytest.mark.parametrize("name", PLACES)
def test_links_that_stay_in_the_folder_are_followed(name, places):
    truth, place = outcome(places, name), places / name
    in_a_store = "checkpoint_" in name  # which is a folder of its own
    top = place.parent if in_a_store else places / name.split("/")[0]
    place.rename(top / "kept")
    place.symlink_to(os.path.relpath(top / "kept", place.parent))
    # What is in a checkpoint is opened by Orbax, and so it is files alone.
    assert (outcome(places, name) == truth) == ("/record" not in name and "/state" not in name)


def test_what_the_user_names_may_be_a_link(places, tmp_path):
    (tmp_path / "link").symlink_to(places / "workdir")
    assert Workdir(tmp_path / "link").levels() == 17
    assert [*verify(tmp_path / "link")] == [*verify(places / "workdir")]
    (tmp_path / "record").symlink_to(places / "workdir/data.json")
    assert read_json(named(tmp_path / "record"))["levels"] == 17
    with pytest.raises(UserError, match="is a link"):
        read_json(tmp_path / "record")


def test_the_files_of_the_hub_are_in_its_blobs(tmp_path):
    cache = tmp_path / "models--one--model"
    for place in (cache / "blobs", tmp_path / "blobs/ab", cache / "snapshots/0123/unet"):
        place.mkdir(parents=True)
    (cache / "blobs/ab12").write_text("{}")
    (tmp_path / "blobs/ab/ab34").write_text("{}")
    (cache / "blobs/ab34").symlink_to("../../blobs/ab/ab34")
    (tmp_path / "secret").write_text("{}")
    (cache / "blobs/ab56").symlink_to(tmp_path / "secret")
    snapshot = cache / "snapshots/0123"
    for blob in ("ab12", "ab34", "ab56"):
        (snapshot / "unet" / blob).symlink_to(f"../../../blobs/{blob}")
    for folder, *names in ((snapshot, "unet"), (snapshot / "unet",)):
        assert read_json(inside(folder, *names, "ab12")) == {}
        assert read_json(inside(folder, *names, "ab34")) == {}
        with pytest.raises(UserError, match="link to"):
            inside(folder, *names, "ab56")


def test_names_that_lead_out_of_a_folder(tmp_path):
    for names in (("..", "a"), ("/etc/passwd",), ("a", "../../b")):
        with pytest.raises(UserError, match="is not in"):
            inside(tmp_path / "folder", *names)


# Writing -----------------------------------------------------------------------------------------


@pytest.fixture
def theirs(tmp_path):
    """A folder of somebody's, which must stay as it is."""
    folder = tmp_path / "theirs"
    for name in ("checkpoint_1.old/kept", "checkpoint_1.new/kept", "file", "step_1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("theirs")
    before = sorted(folder.rglob("*"))
    yield folder
    assert sorted(folder.rglob("*")) == before
    assert all(place.read_text() == "theirs" for place in before if place.is_file())


def test_a_lock_and_a_log_that_are_links_are_not_written_to(places, theirs):
    (places / "workdir/.training.lock").symlink_to(theirs / "file")
    with pytest.raises(UserError, match=r"lock .*link"), Workdir(places / "workdir").locked():
        pass
    lock = places / "workdir/.training.lock"
    with pytest.raises(UserError, match="is a link"), locked(lock, ""):
        pass
    (places / "log").symlink_to(theirs / "file")
    for write in (lambda log: log.rewind(1), lambda log: log.write(2, {"loss": 1.0})):
        with pytest.raises(UserError, match=r"log .*link"):
            write(JsonLines(places / "log"))


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints-meta", "samples", "tensorboard"])
def test_a_training_does_not_write_through_links(name, places, theirs):
    shutil.rmtree(places / "workdir" / name, ignore_errors=True)
    (places / "workdir" / name).symlink_to(theirs)
    itself = pytest.raises(UserError, match=f"is .*{theirs} itself")
    with itself, Workdir(places / "workdir").locked():
        pass
    (places / "workdir" / name).unlink()
    circle(places / "workdir" / name, theirs)
    with pytest.raises(UserError, match="leads to itself"), Workdir(places / "workdir").locked():
        pass


def test_nor_where_they_stay_in_the_folder(places):
    (places / "workdir/samples").rename(places / "workdir/pictures")
    (places / "workdir/samples").symlink_to("pictures")
    assert len(Subject(Workdir(places / "workdir"), "eval").sample_pictures()) == 1
    with pytest.raises(UserError, match=r"samples .*link"), Workdir(places / "workdir").locked():
        pass


def test_a_checkpoint_is_not_swept_through_a_link(places, theirs):
    """As a training does before it saves."""
    shutil.rmtree(places / "workdir/checkpoints")
    (places / "workdir/checkpoints").symlink_to(theirs)
    with pytest.raises(UserError, match="is a link"):
        Workdir(places / "workdir").snapshots.save(3, TEMPLATE, {})


# What is shown, and taken as images --------------------------------------------------------------


def test_a_report_shows_no_file_of_elsewhere(places, tmp_path):
    (tmp_path / "id_rsa").write_text("secret")
    (places / "workdir/samples/step_99.png").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(UserError, match=r"step_99\.png .*link"):
        Subject(Workdir(places / "workdir"), "eval").sample_pictures()


def test_images_are_those_of_the_folder(tmp_path, caplog):
    images = np.zeros((3, 4, 4, 1), np.uint8)
    folder = tmp_path / "images"
    folder.mkdir()
    np.save(tmp_path / "secret.npy", images)
    (folder / "train.npy").symlink_to(tmp_path / "secret.npy")
    os.mkfifo(folder / "pipe.npy")
    np.save(folder / "kept.npy", images)
    (folder / "test.npy").symlink_to("kept.npy")
    (folder / "a.npy").symlink_to("b.npy")
    (folder / "b.npy").symlink_to("a.npy")
    (folder / "around").symlink_to(".")
    chunks = read_array_files(folder, Options()).chunks
    assert [chunk.split for chunk in chunks] == ["test"]
    assert "'train.npy'" in caplog.text or "..." in caplog.text
    Image.new("L", (4, 4)).save(folder / "kept.png")
    (folder / "in.png").symlink_to("kept.png")
    (folder / "out.png").symlink_to(tmp_path / "secret.npy")
    names = [name for name, _ in Source(folder).files(lambda name: name.endswith("png"))]
    assert names == ["in.png", "kept.png"]


def test_a_file_of_holes_is_not_read(tmp_path):
    """Long, and on the disk almost nothing but its ends."""
    with (tmp_path / "x").open("wb") as file:
        file.write(b"{")
        file.seek((1 << 31) - 1)
        file.write(b"}")
    with pytest.raises(UserError, match="holes"):
        opened(tmp_path / "x", 1 << 40)
    with (tmp_path / "x").open("r+b") as file:
        for place in range(0, 1 << 31, 1 << 26):
            file.seek(place)
            file.write(bytes(1 << 19))
    opened(tmp_path / "x", 1 << 40).close()


def test_a_log_that_is_longer_than_any_is_not_read(places):
    with (places / "workdir/metrics.jsonl").open("ab") as file:
        file.truncate((512 << 20) + 1)
    for read in (lambda: Subject(Workdir(places / "workdir"), "eval").log,
                 lambda: JsonLines(places / "workdir/metrics.jsonl").rewind(20)):  # fmt: skip
        with pytest.raises(UserError, match=r"metrics\.jsonl: refused"):
            read()


def test_a_report_takes_the_place_of_a_report_alone(tmp_path):
    out = tmp_path / "site/index.html"
    (tmp_path / "site/index_charts").mkdir(parents=True)
    with pytest.raises(UserError, match="charts is there"):
        check_own(out)
    for text, own in (("<p>My own page", False), (f"<p>{MADE_BY}1.0 on Monday", True)):
        out.write_text(text)
        with nullcontext() if own else pytest.raises(UserError, match="not a report"):
            check_own(out)
    check_own(tmp_path / "other/index.html")
    check_own(tmp_path / "site/another.html")
    (tmp_path / "site/another_charts").mkdir()
    with pytest.raises(UserError, match="charts is there"):
        check_own(tmp_path / "site/another.html")
    check_own(Path("/dev/null"))
