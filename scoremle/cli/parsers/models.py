"""Arguments of ``sample``, ``score``, ``report`` and ``compare``: a model, or its results."""

from pathlib import Path

from scoremle.cli.commands import Parser
from scoremle.cli.parsers.words import ESTIMATORS, FITS, SAMPLERS, at_least, seed, shard
from scoremle.cli.places import check_samples, check_scores, exist

__all__ = ["compare_parser", "report_parser", "sample_parser", "score_parser"]

MODEL = (
    "digits (it ships with the package), a working directory, a folder of diffusers,"
    " hf:OWNER/NAME, a .pt of improved- or guided-diffusion, a .safetensors of scoremle export"
    " or of EDM, or FILE.py:function"
)


def sample_parser() -> Parser:
    parser = Parser(
        prog="scoremle sample",
        examples=(
            "scoremle sample digits -n 64 -o grid.png",
            "scoremle sample runs/digits -n 1000 -o many.npy --sampler=ddim --steps=100",
        ),
        description="Draws samples of a model.",
        check=check_samples,
    )
    parser.add_argument("model", help=MODEL)
    parser.add_argument("-n", type=at_least(1), default=64, help="how many (64)")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("samples.png"), metavar="FILE",
        help="a picture of all (.png), or an array (.npy, .npz) (samples.png)",
    )  # fmt: skip
    parser.add_argument("--seed", type=seed, default=0, help="of everything random (0)")
    parser.add_argument("--sampler", choices=SAMPLERS, default="ode", help=SAMPLER)
    parser.add_argument("--steps", type=at_least(1), help="of the sampler; unset: its own number")
    parser.add_argument(
        "--label", default="",
        help="of a class-conditional model: a number, or all to draw one for each sample",
    )  # fmt: skip
    parser.add_argument("--checkpoint", type=int, help="its number; unset: the newest")
    return parser


SAMPLER = "of the flow: ode, ddim, dpm_solver; of the reverse SDE: pc, euler (ode)"


def score_parser() -> Parser:
    parser = Parser(
        prog="scoremle score",
        examples=(
            "scoremle score digits my_pictures --fit=resize --page=scores.html",
            "scoremle score runs/digits images.npy --repeats=8 --out=scores.csv",
        ),
        description="The likelihood of each of your own images, as a CSV of one line a file, in"
        " their order. Ctrl-C loses little: the same command goes on.",
        check=check_scores,
    )
    parser.add_argument("model", help=MODEL)
    parser.add_argument(
        "images", type=Path,
        help="a picture, a folder or archive of pictures, or a .npy or .npz of uint8; a .npy of"
        " reals [n d] for a model without pixels, whose log p is in nats",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("scores.csv"), help="the table to write (scores.csv)"
    )
    parser.add_argument(
        "--page", type=Path, metavar="FILE",
        help="a page of HTML to write: the images in the order of their bits/dim",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="write over --out and --page")
    parser.add_argument(
        "--repeats", type=at_least(1), default=4,
        help="passes over each image, whose spread tells its error; each costs the same (4)",
    )  # fmt: skip
    parser.add_argument(
        "--estimator", choices=ESTIMATORS, default="ode",
        help="the ODE, the variational bound, or the bound of the model's own steps as its authors"
        " report it (ode)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=int,
        help="of --estimator=steps: some of the model's own, or a chain as VDM has it; unset: all"
        " of its own",
    )  # fmt: skip
    parser.add_argument(
        "--label", default="",
        help="of a class-conditional model: a number, or all for the mean over its labels",
    )  # fmt: skip
    parser.add_argument(
        "--correct", action="store_true",
        help="then take the solver's error off the mean, by more steps on some images: it may take"
        " longer than the scores",
    )  # fmt: skip
    parser.add_argument("--fit", choices=FITS, default="", help=ANY_FIT)
    parser.add_argument(
        "--skip-bad", action="store_true",
        help="go on without files that can't be scored: they are rows with a reason, and the exit"
        " code is 3",
    )  # fmt: skip
    parser.add_argument("--checkpoint", type=int, help="its number; unset: the newest")
    parser.add_argument("--seed", type=seed, default=0, help="of dequantization and probes (0)")
    parser.add_argument("--json", action="store_true", help="the summary as JSON, on stdout")
    cluster = parser.add_argument_group("on a cluster")
    shares = cluster.add_mutually_exclusive_group()
    shares.add_argument(
        "--shard", type=shard, metavar="I/N", nargs="?", const="",
        help="score the I-th of N shares; without I/N, that of a task of an array or of a cluster",
    )  # fmt: skip
    shares.add_argument(
        "--merge", action="store_true",
        help="make the table of what shares left; no image may be missing",
    )  # fmt: skip
    cluster.add_argument(
        "--engine", choices=("ray",), default="",
        help="ray: workers of a cluster write Parquet files into the folder --out",
    )  # fmt: skip
    cluster.add_argument("--workers", type=at_least(1), help="of Ray; unset: one a GPU")
    cluster.add_argument("--address", default="", help="of a Ray cluster that runs; unset: here")
    return parser


ANY_FIT = (
    "bring pictures of other sizes to the model's: crop the centre, resize the largest centred"
    " part, or pad all of it with black"
)


def report_parser() -> Parser:
    parser = Parser(
        prog="scoremle report",
        examples=(
            "scoremle report runs/digits",
            "scoremle report runs/digits runs/other --out=comparison.html",
        ),
        description="A page about a training and its evaluation, to look at: one file of HTML that"
        " needs no network. Its charts are also written beside it, as SVG and PNG.",
        check=exist("workdirs"),
    )
    parser.add_argument(
        "workdirs", metavar="WORKDIR", nargs="+", type=Path,
        help="the folder of a training and its results; several are compared with the first",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="the page to write (WORKDIR/report/index.html)")
    parser.add_argument(
        "--eval-folder", metavar="NAME", default="eval", help="folder in WORKDIR to read (eval)"
    )
    return parser


def compare_parser() -> Parser:
    parser = Parser(
        prog="scoremle compare",
        examples=(
            "scoremle compare runs/vp runs/subvp",
            "scoremle compare before.csv after.csv --json",
        ),
        description="The difference of bits/dim between two models, image by image, with its"
        " error: B less A.",
    )
    for name, metavar in (("first", "A"), ("second", "B")):
        parser.add_argument(
            name, metavar=metavar, type=Path,
            help="a working directory that was evaluated, its folder of an evaluation, a .npz in"
            " that, or a .csv of scoremle score",
        )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser
