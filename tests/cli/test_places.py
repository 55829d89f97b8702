"""Places and numbers that commands refuse before any work, and what of the user's files stays."""

import argparse
import io

import numpy as np
import pytest
from PIL import Image

from scoremle.cli import main as cli
from scoremle.cli.commands import COMMANDS, parser_of


def arguments(parser):
    """Yields all arguments, also those of the commands of a command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from arguments(each)
        elif action.type:
            yield action


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_no_place_is_empty_and_no_count_without_end(name):
    for action in arguments(parser_of(name)):
        if "path" in repr(action.type).lower() or "_place" in repr(action.type):
            with pytest.raises(argparse.ArgumentTypeError, match="empty"):
                action.type("")
        if "at_least" in repr(action.type):
            with pytest.raises(argparse.ArgumentTypeError, match="not below"):
                action.type("9" * 20)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("import scoremle\n")
    (tmp_path / "pictures").mkdir()
    picture = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture, "png")
    (tmp_path / "pictures/a.png").write_bytes(picture.getvalue())
    return tmp_path


@pytest.mark.parametrize("out", ["mine.py", "pictures/a.png"])
@pytest.mark.parametrize(
    "words",
    [
        "score mine.py:model pictures", "compress mine.py:model pictures",
        "anomaly fit gaussian pictures --encoder=mine.py:features",
        "anomaly fit mine.py:m pictures",
        "anomaly score detector pictures --model=mine.py:model",
    ],
)  # fmt: skip
def test_force_writes_over_nothing_that_is_read(words, out, files, capsys):
    (files / "detector").write_text("{}")
    before = (files / out).read_bytes()
    assert cli.main([*words.split(), "--force", f"--out={out}"]) == 2
    told = capsys.readouterr().err
    assert out in told and "name another" in told
    assert (files / out).read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        "stats images --weights=w.npz --path=a.npz --out=a.npz", "convert-inception a.npz a.npz",
        "sample a.npz --out=a.npz", "export w w/config", "export w w/../w/data",
    ],
)  # fmt: skip
def test_what_a_command_reads_is_not_written_over(words, files, capsys):
    (files / "w").mkdir()
    own = [files / name for name in ("a.npz", "w/config.json", "w/data.json")]
    for path in own:
        path.write_bytes(b"mine")
    assert cli.main([*words.split(), "--force"]) == 2
    assert "two files" in capsys.readouterr().err
    assert all(path.read_bytes() == b"mine" for path in own)


def test_standard_output_that_is_a_file_is_named_by_its_own_name(files, capfd):
    """The shell holds it open, and would write into what is written there."""
    assert cli.main(["score", "digits", "pictures", "--out=/dev/stdout"]) == 2
    assert "leads to a file" in capfd.readouterr().err


@pytest.mark.parametrize("target", ["loop", "nowhere"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("score digits loop", "no folder or file"),
        ("score digits pictures --out=loop", "is a link"),
        ("score digits pictures --out=loop/a.csv", "can't be written"),
        ("score digits pictures --out=loop --engine=ray", "can't be written"),
        ("compress digits pictures --out=loop", "is a link"),
        ("export pictures loop", "is a link"),
        ("train digits loop", "leads nowhere"),
        ("import pictures loop/a", "leads nowhere"),
    ],
)
def test_links_that_lead_nowhere_are_named_before_any_work(target, words, said, files, capsys):
    (files / "loop").symlink_to(target)
    assert cli.main(words.split()) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and (files / "loop").is_symlink()


@pytest.mark.long
def test_what_is_said_is_not_in_what_goes_to_standard_output(files, monkeypatch, capsys):
    monkeypatch.setattr(cli, "is_stdout", lambda path: path.suffix == ".csv")
    words = ["score", "digits", "pictures", "--out=x.csv"]
    assert cli.main([*words, "--json"]) == 2 and "--json" in capsys.readouterr().err
    assert cli.main(words) == 0
    told = capsys.readouterr()
    assert not told.out and "bits/dim" in told.err


def test_a_hyphen_is_no_file(files, capsys):
    assert cli.main(["score", "digits", "pictures", "--out=-"]) == 2
    assert "/dev/stdout" in capsys.readouterr().err and not (files / "-").exists()


@pytest.mark.parametrize(
    "folder",
    ["", ".", "x/..", "..", "../w", "/w", "//w", "checkpoints", "checkpoints-meta/x", "samples"],
)
@pytest.mark.parametrize("words", ["eval w --eval-folder=", "train-deq w --deq-folder=",
                                   "eval w --deq-folder=", "report w --eval-folder="])  # fmt: skip
def test_a_folder_of_results_is_one_of_its_own_in_the_working_directory(words, folder, capsys):
    assert cli.main([*words.split()[:-1], words.split()[-1] + folder]) == 2
    assert "of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [("score", "", "pictures"), ("sample", ""), ("compress", "", "pictures", "-o", "x"),
              ("anomaly", "fit", "", "pictures", "-o", "x")],
)  # fmt: skip
def test_no_model_is_the_current_folder(words, files, capsys):
    (files / "config.json").write_text("{}")
    assert cli.main([*words]) == 2
    assert "no model of that name" in capsys.readouterr().err
