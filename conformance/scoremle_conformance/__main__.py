"""``python -m scoremle_conformance LIBRARY``: a table, and JSON. Exit code 1: something is wrong.

2 means that nothing could be examined.
"""

import argparse
import os
import sys
from pathlib import Path

# Each question is compiled anew, and run once.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

from scoremle_conformance.adapters import ADAPTERS, adapter_class
from scoremle_conformance.report import (
    Report,
    as_issue,
    as_markdown,
    as_table,
    examined,
    write_json,
)

EXAMPLES = """examples:
  python -m scoremle_conformance torchdiffeq --json torchdiffeq.json
  python -m scoremle_conformance my_adapter:MyAdapter
  python -m scoremle_conformance sample --setting clipped
"""


# Of what is examined in other settings on purpose.
SETTINGS = {"sample": ["honest"]}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scoremle_conformance",
        description="Compares log p of a diffusion or flow library with closed forms.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("library", nargs="?", help="a name that --list prints, or module:Class of your adapter")
    add("--setting", help="one of the adapter's settings (default: all; of sample, honest)")
    add("--quick", action="store_true", help="leave out 3,072 dimensions and some repetitions")
    add("--json", type=Path, metavar="FILE", help="write what was found as JSON, too")
    add("--issue", action="store_true", help="then print the text of a report to the maintainers")
    add("--list", action="store_true", help="list the adapters, their versions and settings")
    add("--all", action="store_true", help="examine every library that is installed")
    add("--markdown", type=Path, nargs="+", metavar="JSON", help="print such files as a page")
    return parser


def _list() -> None:
    for name in ADAPTERS:
        try:
            adapter = adapter_class(name)()
            line = f"{adapter.version:<14} {', '.join(adapter.settings)}"
        except ImportError as error:
            line = f"not installed ({error})"
        print(f"{name:<14} {line}")


def _page(files: list[Path]) -> int:
    try:
        print(as_markdown(files))
    except (OSError, ValueError, KeyError) as error:
        print(f"--markdown wants files that --json wrote: {error!r}", file=sys.stderr)
        return 2
    return 0


def _examined(library: str, setting: str | None, quick: bool) -> list[Report]:
    """Reports of a library in its settings, printed as they come."""
    kind, reports = adapter_class(library), []
    for name in [setting] if setting else SETTINGS.get(library, kind.settings):
        reports.append(examined(kind(name), quick=quick))
        print(as_table(reports[-1]), end="\n\n", flush=True)
    return reports


def main(arguments: list[str] | None = None) -> int:
    """Examines what the arguments name. Returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        _list()
        return 0
    if options.markdown:
        return _page(options.markdown)
    if options.all == (options.library is not None):
        parser.error("name one library, or --all; --list prints their names")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json {options.json}: there is no such folder")
    reports = []
    for library in ADAPTERS if options.all else [options.library]:
        try:
            reports += _examined(library, options.setting, options.quick)
        except (ImportError, ValueError) as error:
            print(f"{library}: {error}", file=sys.stderr)
    if options.json and reports:
        write_json(reports, options.json)
    if not reports:
        return 2
    if options.issue:
        print(*filter(None, map(as_issue, reports)), sep="\n\n")
    return int(any(report.failed for report in reports))


if __name__ == "__main__":
    sys.exit(main())
