"""Markup, paths and ends of lines in every text that a stranger's folder has: they stay text.

The battery walks the records, so that a new field is in it. A text is refused in a line, or it is
shown: on the page as text, on a terminal and in a table within its line, on a card without a mark
of Markdown. Nothing is written beside what was asked for.
"""

import copy
import csv
import json
import re
import shutil
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
from helpers.reported import Reader, make
from helpers.small_places import prepare
from markdown_it import MarkdownIt

from scoremle.cli.main import main
from scoremle.data import Prepared, lookup
from scoremle.errors import UserError
from scoremle.experiment.build import build
from scoremle.experiment.card import card
from scoremle.experiment.config import published_config
from scoremle.experiment.results import measured
from scoremle.experiment.score_table import ScoreRow, write_csv
from scoremle.experiment.workdir import Workdir
from scoremle.files import SEAL
from scoremle.report.scores import write_page
from scoremle.report.subject import Subject
from scoremle.training.checkpoints import Restored

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

MARKUP = '"><script>a()</script><img src=x onerror=a()> **b** [a](http://c.d) $\\frac$ | <!--'
PATH = "../../../../../outside"
LINES = "here\n12 as written, 0 readable (no checksum), 0 damaged\r\x1b[2J\u2028\udce9"
# One result stays bits/dim of the same images, so that there are charts.
KEPT = {("exact_test_ckpt_2", name) for name in ("unit", "metric", "data_hash")}


def texts(content, path=()):
    """The ways to every text in a JSON content, and to names of fields, as ("", the name)."""
    if isinstance(content, str):
        yield path
    for name in content if isinstance(content, dict) else ():
        yield (*path, ("", name))
        yield from texts(content[name], (*path, name))
    for i, each in enumerate(content if isinstance(content, list) else ()):
        yield from texts(each, (*path, i))


def poisoned(content, path, text):
    """The content with this text there; a field of this name comes beside another."""
    content = inside = copy.deepcopy(content)
    *above, last = path
    for name in above:
        inside = inside[name]
    if isinstance(last, tuple):
        inside[text] = inside[last[1]]
    else:
        inside[last] = text
    return content


def read(path):
    text = path.read_text()
    of_lines = path.suffix == ".jsonl"
    return [json.loads(line) for line in text.splitlines()] if of_lines else json.loads(text)


def put(path, content):
    rows = content if path.suffix == ".jsonl" else [content]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def poison(path, text, use):
    """Puts the text wherever in a record ``use`` takes it. Where it does not, that is a line."""
    whole = read(path)
    whole.pop(SEAL, None) if isinstance(whole, dict) else None
    for place in sorted(texts(whole), key=lambda place: isinstance(place[-1], tuple)):
        # Of the many rows of a log the first stands for all.
        if place in KEPT or (path.suffix == ".jsonl" and place[0]):
            continue
        altered = poisoned(whole, place, text)
        put(path, altered)
        try:
            use()
            whole = altered
        except UserError as error:
            assert str(error).isprintable(), place
    put(path, whole)
    return json.dumps(whole).count(json.dumps(text)[1:-1])


# What a report reads of each record.
RECORDS = {
    "config.json": lambda folder: Subject(Workdir(folder), "eval").config,
    "data.json": lambda folder: Subject(Workdir(folder), "eval").workdir.levels(),
    "eval/results.json": lambda folder: attrgetter("results", "checks")(
        Subject(Workdir(folder), "eval")
    ),
    "metrics.jsonl": lambda folder: Subject(Workdir(folder), "eval").log,
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(MARKUP, id="markup"),
        pytest.param(PATH, id="path", marks=pytest.mark.long),
        pytest.param(LINES, id="lines", marks=pytest.mark.long),
    ],
)
def text(request):
    return request.param


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean") / "run"
    make(folder)
    (folder / "eval/damaged.png").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def stranger(clean, tmp_path_factory, text):
    """A folder of somebody else, with the text as its name, in it, and in all that it says."""
    name = "a" + text.replace("/", "|")
    folder = tmp_path_factory.mktemp("stranger") / "deep/down/in/some" / name
    shutil.copytree(clean, folder)
    (folder / "eval/damaged.png").rename(folder / f"eval/{name}.png")
    shutil.copy(folder / "samples/step_9.png", folder / f"eval/samples_{name}.png")
    taken = [poison(folder / name, text, partial(use, folder)) for name, use in RECORDS.items()]
    assert sum(taken) > 20
    return folder


def tree(folder):
    return set(folder.rglob("*"))


def check_page(path, clean):
    """It has no element and no attribute that a clean page has not, and the same script."""
    page, known = Reader(path.read_text()), Reader(clean.read_text())
    assert page.attributes.keys() <= known.attributes.keys()
    assert page.tags <= known.tags and page.scripts == known.scripts
    assert all(re.fullmatch(r"[\w.-]+", name, re.ASCII) for name in page.attributes["id"])
    links = [page.attributes.get(name, []) for name in ("src", "href", "xlink:href")]
    assert all(link.startswith(("#", "data:image/png;base64,")) for of in links for link in of)
    check_visible(path.read_text())
    return page.text


def check_visible(text):
    assert all(c.isprintable() or c == "\n" for c in text)


@pytest.fixture(scope="module")
def known(clean, tmp_path_factory):
    """Pages about one clean folder and about two."""
    place = tmp_path_factory.mktemp("known")
    for count in (1, 2):
        assert main(["report", *[str(clean)] * count, f"--out={place / str(count)}.html"]) == 0
    return place


def test_a_report(clean, stranger, known, tmp_path, capsys, text):
    above, out = stranger.parents[len(Path("deep/down/in/some").parts)], tmp_path / "page/a.html"
    before = tree(above)
    for folders in ([stranger], [clean, stranger]):
        assert main(["report", *map(str, folders), f"--out={out}"]) == 0
        said = capsys.readouterr()
        assert said.out.count("\n") == 1 and not said.err
        shown = check_page(out, known / f"{len(folders)}.html")
        assert text.partition("\n")[0].replace("/", "|") in shown
        drawn = out.parent.glob("*_charts/*.svg")
        assert all("<script" not in chart.read_text() for chart in drawn)
    assert tree(above) == before
    assert tree(tmp_path) == {out.parent, *tree(out.parent)}


@pytest.mark.parametrize(
    ("command", "place", "times"),
    [("verify", ".", 1), ("report", "samples", 1), ("compare", "eval/exact_test_ckpt_2.npz", 2),
     ("plan", "config.json", 1), ("export", ".", 2)],
)  # fmt: skip
def test_a_terminal(command, place, times, clean, stranger, capsys):
    """As many lines as of a clean folder, and in them nothing that a terminal obeys."""
    lines = []
    for folder in (clean, stranger):
        main([command, *[str(folder / place)] * times])
        said = capsys.readouterr()
        check_visible(said.out + said.err)
        lines.append((said.out.count("\n"), said.err.count("\n")))
    assert lines[0] == lines[1] and sum(lines[0]) > 0


def test_a_data_set(tmp_path, capsys, text):
    """As many lines as with words that are harmless."""
    lines = []
    for name, words in (("one", "word"), ("two", text)):
        folder = tmp_path / name
        prepare(folder)
        taken = poison(folder / "meta.json", words, partial(verified, folder))
        assert main(["data", "show", str(folder), f"--picture={tmp_path / name}.png"]) == 0
        said = capsys.readouterr().out
        check_visible(said)
        lines.append(said.count("\n"))
        assert taken > 5
    assert lines[0] == lines[1]


def verified(folder):
    prepared = Prepared(folder)
    prepared.verify()
    lookup(prepared.meta["name"])


def test_a_card(clean, stranger, text):
    """A reader of Markdown finds in it what it finds in a clean one: no more marks than there."""
    found = []
    for folder, name in ((clean, "x.bin"), (stranger, text.replace("/", "|"))):
        experiment = build(published_config("digits", {}), levels=17)
        restored = Restored(experiment.training.template, {"step": 10}, 2)
        results = measured(folder, "eval")
        made = card(Workdir(folder), experiment, restored, results, Path(name))
        check_visible(made)
        tokens = MarkdownIt("commonmark").enable("table").parse(made)
        found.append([
            (token.type, [each.type for each in token.children or ()]) for token in tokens
        ])  # fmt: skip
    assert found[0] == found[1]


def test_scores(tmp_path, text):
    """A page of them, and a table: a row for each file, and no cell that is a formula."""
    image = np.zeros((8, 8, 1), np.uint8)
    for page, word in (("clean.html", "a"), ("page.html", text)):
        scored = ScoreRow(f"={word}", "", (word,), image, 2.5, 0.25, -9.0, 0.5, 3.0)
        rows = [scored, ScoreRow(word, word)]
        write_page(tmp_path / page, word, word, rows, word, [word], levels=17, reference=360)
    found = check_page(tmp_path / "page.html", tmp_path / "clean.html")
    assert " ".join(text.partition("\n")[0].split()) in found
    path = tmp_path / "t.csv"
    write_csv(path, rows, dims=64, reference=9, estimator="exact")
    check_visible(path.read_text().replace("\r\n", "\n"))
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 2 == path.read_text().count("\n") - 1 and found[0]["file"][0] == "'"
