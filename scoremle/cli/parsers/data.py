"""Arguments of ``data`` and ``stats``: a data set."""

import argparse
from pathlib import Path

from scoremle.cli.commands import Parser
from scoremle.cli.parsers.words import FITS, NAMES

__all__ = ["data_parser", "stats_parser"]


def data_parser() -> Parser:
    parser = Parser(
        prog="scoremle data",
        examples=(
            "scoremle data prepare photos/ --size=32 --fit=crop",
            "scoremle data show digits --picture=digits.png",
        ),
        description="Prepare data sets, and look at them.",
    )
    commands = parser.add_subparsers(dest="what", required=True, parser_class=Parser)
    for what, help_text, examples in (
        (
            "prepare", "turn any source into arrays, checked, once",
            ("photos/ --size=32 --fit=crop", "cifar10 --path=cifar-10-binary.tar.gz"),
        ),
        (
            "show", "print the facts of a data set and draw some images",
            ("digits --picture=digits.png", "photos/ --size=32 --fit=crop"),
        ),
    ):  # fmt: skip
        command = commands.add_parser(
            what, help=help_text, description=help_text,
            examples=tuple(f"scoremle data {what} {words}" for words in examples),
        )  # fmt: skip
        command.add_argument(
            "name", metavar="NAME|PATH", help=f"your own images by their path, or one of {NAMES}"
        )
        command.add_argument("--path", default="", help="files of NAME; an own PATH needs none")
        command.add_argument("--size", type=int, default=0, help="height and width; 0: as it is")
        command.add_argument("--channels", type=int, default=0, choices=(0, 1, 3), help=CHANNELS)
        command.add_argument("--fit", default="", choices=FITS, help=FIT)
        command.add_argument("--levels", type=int, default=0, help="grey levels: 2**bits")
        command.add_argument("--test-fraction", type=_fraction, default=0.1, help=FRACTION)
        command.add_argument("--skip-bad", action="store_true", help=SKIP)
        if what == "prepare":
            command.add_argument("--into", type=Path, help="a new folder; else in the cache")
        else:
            command.add_argument("--split", default="train", choices=SPLITS, help=SPLIT)
            command.add_argument("--picture", type=Path, help="file to draw to: NAME.png")
        command.add_argument("--json", action="store_true", help="its facts as JSON, on stdout")
    return parser


CHANNELS = "1: grey, 3: RGB; 0: as the images are"
SPLITS, SPLIT = ("train", "test"), "which images (train)"
FIT = "bring other sizes to --size: crop the centre, resize the centred square, or pad with black"
FRACTION = "share of the images to test on, where the source does not say (default: 0.1)"
SKIP = "leave out images that can't be used, and count them"


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def stats_parser() -> Parser:
    parser = Parser(
        prog="scoremle stats",
        examples=(
            "scoremle stats cifar10 --weights=inception.npz --out=cifar10.npz",
            "scoremle stats digits --weights=inception.npz --out=digits.npz --image_size=32",
        ),
        description="Inception features of a data set's images, to compare samples with. A run"
        " that was killed goes on where it was.",
    )
    parser.add_argument("dataset", help=f"one of {NAMES}")
    parser.add_argument("--weights", type=Path, required=True, help="from convert-inception")
    parser.add_argument("--out", type=Path, required=True, help="the npz to write, for eval.stats")
    parser.add_argument("--path", default="", help="folder of the data set, as data.path")
    parser.add_argument("--split", choices=SPLITS, default="train", help=SPLIT)
    parser.add_argument("--image_size", type=int, help="pad with zeros, as data.image_size")
    return parser
