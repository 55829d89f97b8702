"""A page of HTML in one file: it asks nothing of any server, and opens from a disk.

Text is escaped here, and nowhere else: what is given is plain text, but for a chart's SVG.
"""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from scoremle.files import write_atomically
from scoremle.report.charts import Chart

__all__ = ["Page", "Picture"]

STYLE = (Path(__file__).parent / "page.css").read_text()


@dataclass(frozen=True)
class Picture:
    """A PNG, with a caption and with words for those who can't see it."""

    png: bytes
    caption: str
    words: str


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

    def section(self, title: str, text: str = "") -> None:
        """Begins a section."""
        anchor = f"section-{len(self._contents) + 1}"
        self._contents.append((anchor, title))
        self._body.append(f'<h2 id="{anchor}">{escape(title)}</h2>')
        if text:
            self.text(text)

    def text(self, text: str) -> None:
        """A paragraph."""
        self._body.append(f"<p>{escape(text)}</p>")

    def code(self, text: str) -> None:
        """Lines that stay as they are: a command, a citation."""
        self._body.append(f"<pre><code>{escape(text)}</code></pre>")

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> None:
        """A table with its caption."""
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        self._body.append(
            f'<div class="wide"><table><caption>{escape(caption)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def charts(self, charts: Iterable[Chart]) -> None:
        """Charts beside each other where there is room."""
        figures = (
            f'<figure id="{escape(chart.name)}"><h3>{escape(chart.title)}</h3>'
            f'<div role="img" aria-label="{escape(chart.words)}">{chart.svg()}</div>'
            f"<figcaption>{escape(chart.caption)}</figcaption></figure>"
            for chart in charts
        )
        self._body.append(f'<div class="charts">{"".join(figures)}</div>')

    def pictures(self, pictures: Iterable[Picture], size: str) -> None:
        """Pictures in rows; ``size``: small, or large."""
        figures = (
            f'<figure><img alt="{escape(picture.words)}" src="data:image/png;base64,'
            f'{base64.b64encode(picture.png).decode()}">'
            f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
            for picture in pictures
        )
        self._body.append(f'<div class="pictures {size}">{"".join(figures)}</div>')

    def write(self, path: Path) -> None:
        """Writes the page."""
        links = "".join(f'<a href="#{a}">{escape(title)}</a>' for a, title in self._contents)
        text = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head><body><main>"
            f"<h1>{escape(self.title)}</h1><p>{escape(self.subtitle)}</p><nav>{links}</nav>"
            f"{''.join(self._body)}</main></body></html>\n"
        )
        with write_atomically(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
