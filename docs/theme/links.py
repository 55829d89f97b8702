"""Places: the same Markdown reads on a forge and as a site.

Anchors are made as a forge makes them, but for those that begin with a digit. Documents that lie
outside of docs/ become pages, and other files that documents link to become files of the site. A *
in the navigation means all pages that have no place of their own.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
# Those with a README of their own, such as benchmarks.
FOLDERS = [path.parent.name for path in ROOT.glob("[!.]*/README.md")]
# Documents outside of docs/, by the pages that they become.
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "SECURITY.md": "security.md",
    **{f"{name}/README.md": f"{name}.md" for name in FOLDERS},
}
# Their pages, where they are linked to.
STANDS_FOR = {**PAGES, "README.md": "index.md"}
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?\)")
# The theme's script ends at an anchor that begins with a digit: as a selector that is invalid.
DIGIT, LETTER = re.compile(r"(?<=\]\()([^)\s]*#)(?=\d)"), "s-"


def slug(text, separator):
    """The anchor of a heading, as a forge makes it; a digit gets a letter before it."""
    found = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", separator)
    return LETTER * found[:1].isdigit() + found


def on_config(config):
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} | {*PAGES.values()}
    named = re.findall(r"'([^']*\.md)'", str(config.nav))
    config.nav = _expanded(config.nav, sorted(pages - {*named}))
    return config


def _expanded(nav, free):
    """The navigation with the pages of that folder that have no place in place of a *."""
    found = []
    for item in nav:
        if isinstance(item, dict):
            ((title, under),) = item.items()
            found.append({title: _expanded(under, free) if isinstance(under, list) else under})
        elif item.endswith("*.md"):
            folder = posixpath.dirname(item)
            found += [page for page in free if posixpath.dirname(page) == folder]
        else:
            found.append(item)
    return found


def on_files(files, config):
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links out of docs/ lead to the pages or files that these are in the site."""
    back = {page_uri: source for source, page_uri in PAGES.items()}
    source = back.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def replaced(match):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        inside = STANDS_FOR.get(target, target.removeprefix("docs/"))
        if page.file.src_uri != inside.replace(".ipynb", ".md"):  # a notebook offers itself
            inside = inside.replace(".ipynb", ".md")
        if not files.get_file_from_path(inside) and (ROOT / target).is_file():
            files.append(File.generated(config, inside, abs_src_path=str(ROOT / target)))
        if files.get_file_from_path(inside) is None:
            return match[0]
        here = posixpath.dirname(page.file.src_uri) or "."
        return f"{match[1]}{posixpath.relpath(inside, here)}{match[3] or ''})"

    return DIGIT.sub(rf"\g<1>{LETTER}", LINK.sub(replaced, markdown))
