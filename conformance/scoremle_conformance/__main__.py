"""``python -m scoremle_conformance LIBRARY``: a table, and JSON. Exit code 1: something is wrong.

2 means that nothing could be examined.
"""

import argparse
import sys
from pathlib import Path

from scoremle_conformance.adapters import ADAPTERS, adapter_class
from scoremle_conformance.report import Report, as_markdown, as_table, examined, write_json

EXAMPLES = """examples:
  python -m scoremle_conformance torchdiffeq --json torchdiffeq.json
  python -m scoremle_conformance my_adapter:MyAdapter
  python -m scoremle_conformance sample --setting clipped
"""


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
    add("--list", action="store_true", help="list the adapters, their versions and settings")
    add("--all", action="store_true", help="examine every library that is installed")
    add("--markdown", action="store_true", help="print one table of all, in Markdown")
    return parser


def _list() -> None:
    for name in ADAPTERS:
        try:
            adapter = adapter_class(name)()
            told = f"{adapter.version:<14} {', '.join(adapter.settings)}"
        except ImportError as error:
            told = f"not installed ({error})"
        print(f"{name:<14} {told}")


def _reports(library: str, setting: str | None, quick: bool) -> list[Report]:
    kind = adapter_class(library)
    settings = [setting] if setting else list(kind.settings)
    if library == "sample" and not setting:
        settings = ["honest"]
    return [examined(kind(name), quick=quick) for name in settings]


def main(arguments: list[str] | None = None) -> int:
    """Examines what the arguments name. Returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        _list()
        return 0
    if options.all == (options.library is not None):
        parser.error("name one library, or --all; --list tells their names")
    reports = []
    for library in ADAPTERS if options.all else [options.library]:
        try:
            found = _reports(library, options.setting, options.quick)
        except (ImportError, ValueError) as error:
            print(f"{library}: {error}", file=sys.stderr)
            if not options.all:
                return 2
            continue
        if not options.markdown:
            print("\n\n".join(as_table(report) for report in found), flush=True)
        reports += found
    if options.markdown:
        print(as_markdown(reports))
    if options.json:
        write_json(reports, options.json)
    return int(any(report.failed for report in reports))


if __name__ == "__main__":
    sys.exit(main())
