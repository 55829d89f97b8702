"""Notebooks: each becomes a page, with what its cells printed and drew."""

import json
import re
from pathlib import Path

from mkdocs.structure.files import File

DOCS = Path(__file__).parents[1]
FORMULA = re.compile(r"^\$\$\s*(.*?)\s*\$\$$", re.MULTILINE | re.DOTALL)
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def on_files(files, config):
    for path in sorted((DOCS / "notebooks").glob("*.ipynb")):
        content = page(json.loads(path.read_text()), path.name)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=content))
    return files


def page(notebook, name):
    """A notebook as Markdown."""
    cells = [part for cell in notebook["cells"] for part in in_markdown(cell)]
    cells.insert(1, f"A notebook: [{name}]({name}). The tests run it.")
    return "\n\n".join(cells)


def in_markdown(cell):
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [FORMULA.sub(r"```math\n\1\n```", text)]
    return [f"```python\n{text}\n```", *map(output, cell["outputs"])]


def output(out):
    """What a cell printed, or the richest form of what it gave."""
    if out["output_type"] == "stream":
        return fenced("".join(out["text"]))
    data = {kind: "".join(found) for kind, found in out["data"].items()}
    if "image/png" in data:
        words = "What the cell above draws"
        png = data["image/png"].replace("\n", "")
        return f'<p><img alt="{words}" src="data:image/png;base64,{png}"></p>'
    return f"<div>{data['text/html']}</div>" if "text/html" in data else fenced(data["text/plain"])


def fenced(text):
    return f"```text\n{ANSI.sub('', text).rstrip()}\n```"
