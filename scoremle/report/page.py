"""A page of HTML in one file, which needs no server and opens from a disk.

Text is escaped here, and nowhere else: what is given is plain text, but for a chart's SVG. If ever
some were not, the page's policy has a browser run this page's own script alone, and fetch nothing.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scoremle.files import write_bytes
from scoremle.report.charts import Chart
from scoremle.terminal import html_table, in_html

STYLE = (Path(__file__).parent / "page.css").read_text()
# Shows the cards of a gallery whose name has what was typed, or of these the marked ones alone.
SEARCH = """
for (const form of document.querySelectorAll('.search')) form.oninput = () => {
  const [name, marked] = form.querySelectorAll('input');
  const wanted = name.value.toLowerCase();
  let shown = 0;
  for (const card of form.closest('section').querySelectorAll('figure')) {
    card.hidden = !card.dataset.name.includes(wanted)
      || marked?.checked && !card.classList.contains('marked');
    shown += !card.hidden;
  }
  form.querySelector('span').textContent = `${shown} shown`;
};
"""
SEARCH_SHA256 = base64.b64encode(hashlib.sha256(SEARCH.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; script-src 'sha256-{SEARCH_SHA256}'; style-src 'unsafe-inline';"
    " img-src data:; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Picture:
    """A PNG, with a caption and an alternative text for those who can't see it."""

    png: bytes
    caption: str
    alt: str


@dataclass(frozen=True)
class Strip:
    """Bars from -1 to 1 beside each other, and a picture, each with a text."""

    bars: Sequence[float]
    alt: str
    picture: Picture

    def html(self) -> str:
        """A line in the middle, the bars above and below it, and the picture beside them."""
        bars = "".join(
            f'<rect x="{i}" y="{1 - max(bar, 0):.3f}" width=".9" height="{abs(bar):.3f}"/>'
            for i, bar in enumerate(self.bars)
        )
        count = len(self.bars)
        return (
            f'<div class="strip"><svg viewBox="0 0 {count} 2" preserveAspectRatio="none"'
            f' role="img" aria-label="{in_html(self.alt)}"><path d="M0 1H{count}"/>{bars}</svg>'
            f"{_image(self.picture)}</div>"
        )


@dataclass(frozen=True)
class Card:
    """A picture with its name, and a value from 0 to 1 with the ends of its interval.

    Args:
        picture: with its caption.
        name: by which it is found.
        low, value, high: from 0 to 1; an interval of no length is not drawn.
        strip: below the value, if there is one.
        marked: it stands out.
    """

    picture: Picture
    name: str
    low: float
    value: float
    high: float
    strip: "Strip | None" = None
    marked: bool = False

    def html(self) -> str:
        """The picture, the value in its interval, the strip, and the caption."""
        ends = f"left:{self.low:.1%};right:{1 - self.high:.1%}"
        kind = ' class="marked"' * self.marked
        interval = f'<i style="{ends}"></i>' * (self.high > self.low)
        return (
            f'<figure{kind} data-name="{in_html(self.name.lower())}">'
            f'{_image(self.picture)}<div class="bar">{interval}<b style="left:{self.value:.1%}">'
            f"</b></div>{self.strip.html() if self.strip else ''}"
            f"<figcaption><strong>{in_html(self.name)}</strong> {in_html(self.picture.caption)}"
            "</figcaption></figure>"
        )


@dataclass
class Page:
    """A page that is written from its top to its end.

    Args:
        title: of the page.
        subtitle: one sentence below it.
    """

    title: str
    subtitle: str
    _body: list[str] = field(default_factory=list)
    _contents: list[tuple[str, str]] = field(default_factory=list)

    def section(self, title: str, *texts: str) -> None:
        """Begins a section, with paragraphs."""
        anchor = f"section-{len(self._contents) + 1}"
        self._contents.append((anchor, title))
        self._body.append(f'<h2 id="{anchor}">{in_html(title)}</h2>')
        self.text(*texts)

    def text(self, *texts: str) -> None:
        """Paragraphs, but for those without text; what a terminal shows as +- is ±."""
        self._body += [f"<p>{in_html(text.replace(' +- ', ' ± '))}</p>" for text in texts if text]

    def code(self, *lines: str) -> None:
        """Lines that stay as they are: a command, a citation."""
        text = "\n".join(map(in_html, lines))
        self._body.append(f"<pre><code>{text}</code></pre>")

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> None:
        """A table with its caption."""
        table = html_table(header, rows, caption)
        self._body.append(f'<div class="wide" tabindex="0">{table}</div>')  # to scroll by keys

    def charts(self, charts: Iterable[Chart]) -> None:
        """Charts beside each other where there is room."""
        figures = (
            f'<figure id="{in_html(chart.name)}"><h3>{in_html(chart.title)}</h3>'
            f'<div role="img" aria-label="{in_html(chart.alt)}">{chart.svg()}</div>'
            f"<figcaption>{in_html(chart.caption)}</figcaption></figure>"
            for chart in charts
        )
        self._body.append(f'<div class="charts">{"".join(figures)}</div>')

    def pictures(self, pictures: Iterable[Picture], size: str) -> None:
        """Pictures in rows; ``size``: small, or large."""
        figures = (
            f"<figure>{_image(picture)}<figcaption>{in_html(picture.caption)}</figcaption></figure>"
            for picture in pictures
        )
        self._body.append(f'<div class="pictures {size}">{"".join(figures)}</div>')

    def gallery(self, cards: Sequence[Card], scale: str, marked: str) -> None:
        """Cards that can be searched by name.

        Args:
            cards: in their order.
            scale: what the bar of a card says.
            marked: what marked cards have in common.
        """
        count = sum(card.marked for card in cards)
        only = (
            f'<label><input type="checkbox"> only the {count:,} that {in_html(marked)}</label>'
        ) * bool(count)
        self._body.append(
            '<section><div class="search"><label>Search by name <input type="search"></label>'
            f'{only}<span role="status">{len(cards)} shown</span></div><p>{in_html(scale)}</p>'
            f'<div class="pictures cards">{"".join(card.html() for card in cards)}</div></section>'
            f"<script>{SEARCH}</script>"
        )

    def left_out(self, files: Sequence[tuple[str, str]], total: int) -> None:
        """A section of the files without a score, each with its reason, if there are any."""
        if files:
            self.section("Not scored")
            self.table(("file", "reason"), files, f"{len(files)} of {total} files.")

    def write(self, path: Path) -> None:
        """Writes the page."""
        links = "".join(f'<a href="#{a}">{in_html(title)}</a>' for a, title in self._contents)
        text = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{in_html(self.title)}</title><style>{STYLE}</style></head><body><main>"
            f"<h1>{in_html(self.title)}</h1><p>{in_html(self.subtitle)}</p><nav>{links}</nav>"
            f"{''.join(self._body)}</main></body></html>\n"
        )
        write_bytes(path, text.encode())


def _image(picture: Picture) -> str:
    content = base64.b64encode(picture.png).decode()
    return f'<img alt="{in_html(picture.alt)}" src="data:image/png;base64,{content}">'
