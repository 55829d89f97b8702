"""How large is the package? Lines of code by room, the longest import chain, exported names.

    python benchmarks/size.py [REVISION]

A line of code is one that is not blank, nor a comment, nor of a docstring. A chain is a row of
modules of which each imports the next at its top: neither in a function nor under TYPE_CHECKING.
Exported names are the entries of ``__all__`` in every module; the names of other modules that the
package itself repeats do not count twice. REVISION: of git; without one, the files as they are.
"""

import io
import json
import subprocess
import tarfile
from collections.abc import Mapping

from common import ROOT, parser_of

from helpers.source import SOURCES, exported, lines_of_code, longest_chain  # isort: skip


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("revision", nargs="?", default="", help="of git")
    revision = parser.parse_args().revision
    sources = of_revision(revision) if revision else SOURCES
    rooms: dict[str, dict[str, str]] = {}
    for file, text in sources.items():
        rooms.setdefault(room(file), {})[file] = text
    print("| room | modules | lines of code | exported names |\n|---|---|---|---|")
    for name, files in sorted(rooms.items()):
        print(f"| {name} | {len(files)} | {lines(files):,} | {names(files)} |")
    print(f"| all | {len(sources)} | {lines(sources):,} | {names(sources)} |")
    chain = longest_chain(sources)
    print(f"\nlongest import chain: {' -> '.join(chain)}")
    found = {"lines": lines(sources), "chain": len(chain), "exported": names(sources)}
    print(json.dumps(found))


def room(file: str) -> str:
    """The folder of a module below the package."""
    return f"`{file.split('/')[1]}`" if file.count("/") > 1 else "beside the rooms"


def lines(files: Mapping[str, str]) -> int:
    return sum(map(lines_of_code, files.values()))


def names(files: Mapping[str, str]) -> int:
    return sum(map(exported, files.values()))


def of_revision(revision: str) -> dict[str, str]:
    """The text of each module of the package at a revision of git, by its file."""
    archive = subprocess.run(
        ["git", "archive", revision, "scoremle"], cwd=ROOT, check=True, stdout=subprocess.PIPE
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {member.name: tar.extractfile(member) for member in tar}
        return {
            name: file.read().decode() for name, file in files.items()
            if file and name.endswith(".py")
        }  # fmt: skip


if __name__ == "__main__":
    main()
