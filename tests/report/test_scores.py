"""The page of scores: images in their order, errors, a search; nothing from elsewhere."""

import io
import re
import shutil
import subprocess
from base64 import b64encode
from hashlib import sha256
from unittest.mock import Mock

import numpy as np
import pytest
from helpers.marks import some
from PIL import Image
from scipy import ndimage

from scoremle.experiment.score_table import ScoreRow
from scoremle.likelihood.profile import Profile
from scoremle.report.scores import strips_of, write_page

RNG = np.random.default_rng(0)
BPD = {"b\n.png": 2.5, "a <i>.png": 2.0, "c.png": 4.0}
FACTS = "1 stands out", ["mean 2.8 bits/dim +- 0.1", "each image: 4 passes"]
OF = {"levels": 17, "reference": 360}
TITLE = "Scores of my <b>pictures</b>"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    rows = [
        ScoreRow(name, "", ("made grey of colours",), RNG.integers(0, 17, (8, 8, 1), np.uint8),
                 bpd, error=0.25, log_prob=-99.0, rank=1.0 if bpd == 4 else 0.5, png_bpd=3.0)
        for name, bpd in BPD.items()
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("scores") / "page.html"
    rows = [*rows, ScoreRow("notes.txt", "no <picture>")]
    write_page(path, TITLE, "digits", rows, *FACTS, **OF)
    return path


def test_images_are_in_the_order_of_their_bits(page):
    text = page.read_text()
    names = re.findall(r'<figure.*? data-name="(.*?)">', text)
    assert names == ["a &lt;i&gt;.png", r"b\n.png", "c.png"]
    facts = "as PNG 3.00 bits/dim; made grey of colours"
    assert f"2.00 ± 0.25 bits/dim; rank 0.500; {facts}" in text
    assert f"4.00 ± 0.25 bits/dim; rank 1.000, stands out; {facts}" in text
    answer, mean = text.index("1 stands out"), text.index("mean 2.8 bits/dim ± 0.1")
    assert answer < mean < text.index("Search by name") < text.index("each image: 4 passes")
    assert "no &lt;picture&gt;" in text and "1 of 4 files." in text
    # The scale goes two errors beyond both ends, from 1.5 to 4.5.
    assert "from 1.50 to 4.50 bits/dim" in text
    places = re.findall(r'left:([\d.]+)%;right:([\d.]+)%"></i><b style="left:([\d.]+)%', text)
    expected = [[100 * (b - 0.5 - 1.5) / 3, 100 * (4.5 - b - 0.5) / 3, 100 * (b - 1.5) / 3]
                for b in sorted(BPD.values())]  # fmt: skip
    np.testing.assert_allclose(np.array(places, float), expected, atol=0.06)


def test_it_loads_nothing_from_a_server_and_escapes_names(page):
    text = page.read_text()
    links = re.findall(r'(?:src|href)="(.*?)"', text)
    assert links and all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert "<i>.png" not in text and "<b>pictures" not in text and "<picture>" not in text
    assert "url(" not in text and "@import" not in text and "fetch" not in text


def test_a_value_without_a_known_error_has_no_bar(tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    row = ScoreRow("a.png", "", (), image, 2.0, log_prob=-9.0, probe_stderr=0.1, solver_error=0.0)
    write_page(tmp_path / "p.html", TITLE, "digits", [row], *FACTS, **OF)
    text = (tmp_path / "p.html").read_text()
    assert "nan bits" not in text and ": 2.00 bits/dim" in text
    assert "±" not in text.split("Search by name")[1] and "<i style" not in text


def test_a_strip_has_bars_beside_the_median_and_where_the_bits_lie():
    """Three like images and one of other bits in its first bin, at its first pixel."""
    bits = np.array([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0], [9.0, 5.0]])
    where = np.zeros((4, 2, 2, 3))
    where[3, 0, 0] = 7.0
    profiles = [
        Mock(spec=Profile, bits=row[None], where=place[None])
        for row, place in zip(bits, where, strict=True)
    ]
    strips = strips_of(profiles)
    # Of 1 2 3 9 the median is 2.5, and half the range between quartiles 1.375; of 4 5 6 5 0.25.
    assert strips[0].bars == pytest.approx([-1.5 / 1.375 / 3, -1.0])
    assert strips[3].bars == pytest.approx([1.0, 0.0])
    picture = np.asarray(Image.open(io.BytesIO(strips[3].picture.png)))
    assert picture.tolist() == [[255, 0], [0, 0]]
    assert 'y="0.000" width=".9" height="1.000"' in strips[3].html()


def test_a_strip_of_images_that_hold_no_bits_anywhere_is_black():
    profile = Mock(spec=Profile, bits=np.zeros((1, 2)), where=np.zeros((1, 2, 2, 3)))
    (strip,) = strips_of([profile])
    assert not np.asarray(Image.open(io.BytesIO(strip.picture.png))).any()


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
FOUND = """
const box = document.querySelector('input[type=search]');
box.value = 'A <I>';
box.dispatchEvent(new Event('input', {bubbles: true}));
"""
MARKED = "document.querySelector('input[type=checkbox]').click();"


@pytest.mark.skipif(not BROWSER, reason="needs the browser chromium")
@some("width", [400, 1200], quick=[400])
def test_a_browser_shows_it_and_finds_by_name(page, tmp_path, width):
    """Bars in their colours, nothing wider than the page; and what is searched for alone.

    By a script that the page's policy is told of. Without that, it does not run.
    """
    shown = {}
    for name, script in (("all", ""), ("found", FOUND), ("marked", MARKED)):
        place, picture = tmp_path / f"{name}.html", tmp_path / f"{name}.png"
        ours = f"script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}' "
        text = page.read_text().replace("script-src ", ours)
        place.write_text(f"{text}<script>{script}</script>")
        subprocess.run(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={picture}",
             f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000",
             "--hide-scrollbars", place.as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        shown[name] = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    orange = [np.abs(s - (0xD5, 0x5E, 0)).max(axis=2) < 8 for s in shown.values()]
    assert [ndimage.label(each)[1] for each in orange] == [3, 1, 1]  # a line for each card
    margin = shown["all"][:, -4:].reshape(-1, 3)
    assert (margin == margin[0]).all()
