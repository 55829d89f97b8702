"""Runs notebooks and keeps what they print and draw:  python docs/theme/execute.py NOTEBOOK ..."""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in an empty kernel, without what differs by run."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = nbformat.read(path, as_version=4)
    # In its own folder, as where it is opened.
    where = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources=where, coalesce_streams=True
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [out for out in map(as_shown, cell.outputs) if out is not None]
    notebook.metadata.language_info = {"name": "python"}  # without the version of this Python
    return notebook


def as_shown(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """What a browser shows of an output: of a line that is written over, its last text."""
    if output.output_type != "stream":
        return output
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in output.text.split("\n")]
    output.text = "\n".join(lines)
    return output if output.text.strip() else None


if __name__ == "__main__":
    for name in sys.argv[1:]:
        nbformat.write(execute(Path(name)), name)
