"""The documents build as a site that asks nothing of any server, with formulas and search."""

import json
import re
from html.parser import HTMLParser

import pytest
from helpers.places import ROOT

import scoremle

pytest.importorskip("mkdocs")
pytest.importorskip("latex2mathml")
from mkdocs.commands.build import build
from mkdocs.config import load_config

# What a browser fetches by itself, by the attribute that names its place.
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "srcset"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder)))
    return folder


def test_nothing_is_fetched_from_elsewhere(site):
    class Fetches(HTMLParser):
        def handle_starttag(self, tag, attributes):
            place = dict(attributes).get(FETCHED.get(tag, ""))
            assert not re.match(r"(https?:)?//", place or ""), place

    for page in site.rglob("*.html"):
        Fetches().feed(page.read_text())
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text())


def test_scripts_of_the_theme_find_what_they_ask_for(site):
    """An anchor that begins with a digit is an invalid selector, and ends them."""
    for page in {*site.rglob("*.html")} - {site / "404.html"}:
        text = page.read_text()
        assert not re.search(r'id="\d|href="[^":]*#\d', text), page
        assert "colours.js" in text and "darkmode.js" not in text


def test_every_formula_is_drawn_by_the_browser_itself(site):
    formulas = (ROOT / "docs/math.md").read_text().count("```math")
    page = (site / "math.html").read_text()
    assert page.count("<math ") == formulas > 40
    assert "merror" not in page and "```" not in page


def test_every_name_has_its_entry(site):
    page = (site / "api.html").read_text()
    for name in {*scoremle.__all__} - {"__version__"}:
        assert f'id="{name.lower()}"' in page
    assert "<p>:::" not in page
    assert "predictor" in page and " at 0x" not in page  # a default is named, not its place


def test_search_finds_pages(site):
    index = json.loads((site / "search/search_index.json").read_text())
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {"quickstart.html", "math.html", "api.html", "benchmarks.html"} <= found
    assert any("Hutchinson" in entry["text"] for entry in index["docs"])
    assert (site / "search/main.js").exists()
