"""The arguments of each command: all that a person can type, in one place.

Nothing of JAX is imported: help, and what is wrong with arguments, come at once.
"""

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scoremle.cli.commands import Parser

__all__ = ["ANY_FITS", "DATASETS", "FITS", "PARSERS", "SAMPLERS"]

# The names in scoremle.data and in experiment/samplers.py, whose import brings JAX.
SAMPLERS = ("ode", "ddim", "dpm_solver", "pc", "euler")
FITS = ("crop", "resize")
ANY_FITS = (*FITS, "pad")
# Those of scoremle.experiment.scoring, likewise.
ESTIMATORS = ("ode", "bound", "steps")
DATASETS = (
    "digits", "synthetic", "mnist", "fashion_mnist", "emnist", "cifar10", "cifar100", "imagenet",
    "svhn", "celeba", "celebahq", "ffhq", "lsun", "images", "photos",
)  # fmt: skip
NAMES = ", ".join(DATASETS)


# Of experiments ----------------------------------------------------------------------------------


class ModeParser(Parser):
    """Help by argparse; the flags are read by ``flags.py``, which knows the config's fields."""

    def __init__(self, command: str, words: str, **settings: Any) -> None:
        prog = f"scoremle {command}"
        usage = f"{prog} {words} [--config.FIELD=VALUE ...] [FLAGS]"
        super().__init__(prog=prog, usage=usage, **settings)
        self._mode = command.replace("-", "_")
        self.add_argument(
            "--config.FIELD", metavar="VALUE",
            help="set a field of the config; scoremle help config lists them",
        )  # fmt: skip
        self.add_argument(
            "--distributed", action="store_true",
            help="one of several processes of a run, as the cluster says; elsewhere"
            " --coordinator=HOST:PORT --processes=N --process=I",
        )  # fmt: skip
        self.add_argument(
            "--print-config", action="store_true",
            help="print the config, flags included, and do nothing else (--json: as JSON)",
        )  # fmt: skip

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        if {"-h", "-help", "--help"} & set(args):
            return super().parse_args(["--help"])
        from scoremle.cli import flags  # absl and ml_collections, which help has no need of

        return flags.parse(args, self._mode)


WORKDIR = "the folder of its checkpoints and results"
OWN_CONFIG = "another config than that of the workdir, by name or as a file"


def _train() -> Parser:
    parser = ModeParser(
        "train", "CONFIG WORKDIR",
        examples=(
            "scoremle train digits runs/digits",
            "scoremle train fashion_mnist runs/fashion --config.training.batch_size=64",
        ),
        description="Trains a model. Ctrl-C saves and stops; the same command goes on.",
    )  # fmt: skip
    parser.add_argument(
        "CONFIG", nargs="?",
        help="what to train on what: a name that scoremle --help lists, or a Python file with"
        " get_config(). Not needed to go on: the workdir knows it",
    )  # fmt: skip
    parser.add_argument("WORKDIR", help=WORKDIR)
    return parser


def _eval() -> Parser:
    parser = ModeParser(
        "eval", "WORKDIR",
        examples=(
            "scoremle eval runs/digits",
            "scoremle eval runs/digits --config.eval.bound --config.eval.num_images=100",
        ),
        description="Measures bits/dim of a whole test set: the exact likelihood, or the bound.",
    )  # fmt: skip
    parser.add_argument("WORKDIR", help=f"{WORKDIR}; it knows the config")
    parser.add_argument("--config", help=OWN_CONFIG)
    parser.add_argument("--eval-folder", metavar="NAME", help="folder in WORKDIR to write (eval)")
    parser.add_argument("--deq-folder", metavar="NAME", help=FLOW_FOLDER)
    parser.add_argument("--json", action="store_true", help="the results as JSON, on stdout")
    return parser


FLOW_FOLDER = "folder in WORKDIR of the flow dequantizer (flowpp_dequantizer)"


def _train_deq() -> Parser:
    parser = ModeParser(
        "train-deq", "WORKDIR",
        examples=(
            "scoremle train-deq runs/digits",
            "scoremle train-deq runs/digits --config.deq.n_iters=2000 --deq-folder=long",
        ),
        description="Trains a flow dequantizer for the newest checkpoint of a model. Then"
        " scoremle eval WORKDIR --config.eval.dequantizer measures with it.",
    )  # fmt: skip
    parser.add_argument("WORKDIR", help=f"{WORKDIR}; it knows the config")
    parser.add_argument("--config", help=OWN_CONFIG)
    parser.add_argument("--deq-folder", metavar="NAME", help=FLOW_FOLDER)
    return parser


class PlanParser(ModeParser):
    """Beside the flags of a config, what there is to compute on."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        from scoremle.cli.flags import split

        memory, rest = split("memory", args)
        devices, rest = split("devices", rest)
        settings = super().parse_args(rest)
        try:
            return argparse.Namespace(
                settings=settings, json=settings.json, memory=memory and _bytes(memory),
                devices=_at_least(1)(devices or "1"),
            )  # fmt: skip
        except argparse.ArgumentTypeError as error:
            self.error(str(error))


def _plan() -> Parser:
    parser = PlanParser(
        "plan", "CONFIG",
        examples=(
            "scoremle plan digits",
            "scoremle plan vp/cifar10_ddpmpp_continuous --memory=24GB --devices=8",
        ),
        description="What a training, its evaluation and 50,000 samples will take: parameters,"
        " FLOPs, memory, the largest batch, time. It compiles and runs a few steps on this"
        " machine: some minutes for a large network.",
    )  # fmt: skip
    parser.add_argument(
        "CONFIG", help="a name that scoremle --help lists, a Python file, or a workdir"
    )
    parser.add_argument("--memory", help="of a device, as 24GB (default: what this one has)")
    parser.add_argument(
        "--devices", metavar="K", help="that share the work, by an ideal split (1)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON, on stdout")
    return parser


SIZES = {"": 1, "MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([\d.]+) ?([A-Za-z]*)", text)
    if not match or match[2].upper() not in SIZES or match[1].count(".") > 1 or match[1] == ".":
        raise argparse.ArgumentTypeError(f"--memory: {text} is no size such as 24GB or 500MB")
    return int(float(match[1]) * SIZES[match[2].upper()])


# Of models ---------------------------------------------------------------------------------------

MODEL = (
    "digits (it ships with the package), a working directory, a folder of diffusers,"
    " hf:OWNER/NAME, a .pt of improved- or guided-diffusion, a .safetensors of scoremle export"
    " or of EDM, or FILE.py:function"
)


def _sample() -> Parser:
    parser = Parser(
        prog="scoremle sample",
        examples=(
            "scoremle sample digits -n 64 -o grid.png",
            "scoremle sample runs/digits -n 1000 -o many.npy --sampler=ddim --steps=100",
        ),
        description="Draws samples of a model.",
    )
    parser.add_argument("model", help=MODEL)
    parser.add_argument("-n", type=_at_least(1), default=64, help="how many (64)")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("samples.png"), metavar="FILE",
        help="a picture of all (.png), or an array (.npy, .npz) (samples.png)",
    )  # fmt: skip
    parser.add_argument("--seed", type=_at_least(0), default=0, help="of everything random (0)")
    parser.add_argument("--sampler", choices=SAMPLERS, default="ode", help=SAMPLER)
    parser.add_argument("--steps", type=_at_least(1), help="of the sampler; unset: its own number")
    parser.add_argument(
        "--label", default="",
        help="of a class-conditional model: a number, or all to draw one for each sample",
    )  # fmt: skip
    parser.add_argument("--checkpoint", type=int, help="its number; unset: the newest")
    return parser


SAMPLER = "of the flow: ode, ddim, dpm_solver; of the reverse SDE: pc, euler (ode)"


def _at_least(least: int) -> Callable[[str], int]:
    """The type of an integer that is not below ``least``."""

    def integer(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is no integer from {least}")
        return int(text)

    return integer


def _shard(text: str) -> tuple[int, int]:
    """A share and the number of shares: I/N, or the numbers of a task of SLURM's array."""
    if text == "slurm":
        names = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "COUNT")]
        found = [os.environ.get(name, "") for name in names]
        if not all(map(str.isdecimal, found)):
            raise argparse.ArgumentTypeError(f"this is no array job of SLURM: no {names[0]}")
        number, least, count = map(int, found)
        return number - least + 1, count
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text} is no I/N with I from 1 to N, such as 3/10")
    return int(match[1]), int(match[2])


def _score() -> Parser:
    parser = Parser(
        prog="scoremle score",
        examples=(
            "scoremle score digits my_pictures --fit=resize --page=scores.html",
            "scoremle score runs/digits images.npy --repeats=8 --out=scores.csv",
        ),
        description="The likelihood of each of your own images, as a CSV of one line a file, in"
        " their order. Ctrl-C loses little: the same command goes on.",
    )
    parser.add_argument("model", help=MODEL)
    parser.add_argument(
        "images", type=Path,
        help="a picture, a folder or archive of pictures, or a .npy or .npz of uint8",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("scores.csv"), help="(scores.csv)")
    parser.add_argument(
        "--page", type=Path, metavar="FILE",
        help="a page of HTML to write: the images in the order of their bits/dim",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="write over --out and --page")
    parser.add_argument(
        "--repeats", type=_at_least(1), default=4,
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
    parser.add_argument("--fit", choices=ANY_FITS, default="", help=ANY_FIT)
    parser.add_argument(
        "--skip-bad", action="store_true",
        help="go on without files that can't be scored: they are rows with a reason, and the exit"
        " code is 3",
    )  # fmt: skip
    parser.add_argument("--checkpoint", type=int, help="its number; unset: the newest")
    parser.add_argument("--seed", type=int, default=0, help="of dequantization and probes (0)")
    parser.add_argument("--json", action="store_true", help="the summary as JSON, on stdout")
    parser.add_argument(
        "--shard", type=_shard, metavar="I/N",
        help="score the I-th of N shares, or slurm for that of an array job; the command without"
        " it then puts them together",
    )  # fmt: skip
    parser.add_argument(
        "--engine", choices=("ray",), default="",
        help="ray: workers of a cluster write Parquet files into the folder --out",
    )  # fmt: skip
    parser.add_argument("--workers", type=_at_least(1), help="of Ray; unset: one a GPU")
    parser.add_argument("--address", default="", help="of a Ray cluster that runs; unset: here")
    return parser


ANY_FIT = (
    "bring pictures of other sizes to the model's: crop the centre, resize the largest centred"
    " part, or pad all of it with black"
)


def _report() -> Parser:
    parser = Parser(
        prog="scoremle report",
        examples=(
            "scoremle report runs/digits",
            "scoremle report runs/digits runs/other --out=comparison.html",
        ),
        description="A page about a training and its evaluation, to look at: one file of HTML that"
        " needs no network. Its charts are also written beside it, as SVG and PNG.",
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


def _compare() -> Parser:
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


# Of data -----------------------------------------------------------------------------------------


def _data() -> Parser:
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
        command.add_argument("--channels", type=int, default=0, choices=(0, 1, 3))
        command.add_argument("--fit", default="", choices=FITS, help=FIT)
        command.add_argument("--levels", type=int, default=0, help="grey levels: 2**bits")
        command.add_argument("--test-fraction", type=_fraction, default=0.1, help=FRACTION)
        command.add_argument("--skip-corrupt", action="store_true", help=SKIP)
        if what == "prepare":
            command.add_argument("--into", type=Path, help="a new folder; else in the cache")
        else:
            command.add_argument("--split", default="train", choices=("train", "test"))
            command.add_argument("--picture", type=Path, help="file to draw to: NAME.png")
        command.add_argument("--json", action="store_true", help="its facts as JSON, on stdout")
    return parser


FIT = "bring images of other sizes to --size: crop the centre, or resize the centred square"
FRACTION = "share of the images to test on, where the source does not say (default: 0.1)"
SKIP = "leave out images that can't be used, and count them"


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _stats() -> Parser:
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
    parser.add_argument("--split", choices=("train", "test"), default="train")
    parser.add_argument("--image_size", type=int, help="pad with zeros, as data.image_size")
    return parser


# Of files of others ------------------------------------------------------------------------------

PUBLISHED = "cifar10_deep_vp_likelihood_iw_flip"


def _import() -> Parser:
    parser = Parser(
        prog="scoremle import",
        examples=(
            f"scoremle import {PUBLISHED}",
            f"scoremle import checkpoint_21 --name={PUBLISHED}",
            "scoremle import ddpm-cifar10-32/ runs/ddpm --dataset=cifar10",
        ),
        description="Says what a published model is, and makes a workdir of it.",
    )
    parser.add_argument(
        "path", type=Path,
        help="a folder or file of score_flow or score_sde, or a model of another family that"
        " scoremle score takes",
    )  # fmt: skip
    parser.add_argument(
        "workdir", type=Path, nargs="?", help="to write; runs/NAME if left out"
    )
    parser.add_argument("--out", type=Path, help="the same")
    parser.add_argument(
        "--dataset", default="",
        help="of another family: what scoremle eval measures on, a name or the path of own images",
    )  # fmt: skip
    parser.add_argument("--name", help=f"name that the folder had, such as {PUBLISHED}")
    return parser


def _export() -> Parser:
    parser = Parser(
        prog="scoremle export",
        examples=(
            "scoremle export runs/digits digits.safetensors --card",
            "scoremle export runs/digits published/checkpoint_1 --checkpoint=1",
        ),
        description="Writes a checkpoint in the published format, or as safetensors.",
    )
    parser.add_argument("workdir", type=Path, help="where the checkpoint is")
    parser.add_argument(
        "path", type=Path,
        help="file to write: NAME.safetensors gets the averaged parameters, which scoremle score"
        " takes; another name, such as checkpoint_1, the whole training state, which scoremle"
        " import takes",
    )  # fmt: skip
    parser.add_argument("--checkpoint", type=int, help="its number; the newest if left out")
    parser.add_argument(
        "--card", action="store_true", help="write a model card too, from the results: PATH.md"
    )
    return parser


def _convert_inception() -> Parser:
    parser = Parser(
        prog="scoremle convert-inception",
        examples=(
            "scoremle convert-inception pt_inception-2015-12-05-6726825d.pth fid.npz",
            "scoremle convert-inception weights-inception-2015-12-05-6726825d.pth fid.npz",
        ),
        description="The Inception weights of PyTorch's FID packages, as the npz that eval and"
        " stats take. Needs the extra torch.",
    )
    parser.add_argument("weights", type=Path, help="the state dict, a .pth file")
    parser.add_argument("out", type=Path, help="the npz to write")
    return parser


# Of the program ----------------------------------------------------------------------------------


def _env() -> Parser:
    parser = Parser(
        prog="scoremle env",
        examples=("scoremle env", "scoremle env --json"),
        description="Versions, devices, memory and cache folders: what a report of a fault needs.",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _completion() -> Parser:
    parser = Parser(
        prog="scoremle completion",
        examples=("scoremle completion bash", "scoremle completion fish"),
        description="Prints a script that completes commands, flags and fields of the config. For"
        " bash, into this shell: source <(scoremle completion bash)",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that it is for")
    return parser


def _verify() -> Parser:
    parser = Parser(
        prog="scoremle verify",
        examples=("scoremle verify runs/digits", "scoremle verify ~/.cache/scoremle"),
        description="Reads all that lies in a place (a workdir, a prepared data set, checkpoints,"
        " results, a model) and compares it with the checksums that it has. What is damaged is a"
        " line: what, where, what to do. The exit code is then 2, else 0.",
    )
    parser.add_argument("path", type=Path, help="a folder, with all below it, or a file")
    return parser


PARSERS: dict[str, Callable[[], Parser]] = {
    "train": _train,
    "eval": _eval,
    "train-deq": _train_deq,
    "plan": _plan,
    "sample": _sample,
    "score": _score,
    "report": _report,
    "compare": _compare,
    "data": _data,
    "stats": _stats,
    "import": _import,
    "export": _export,
    "convert-inception": _convert_inception,
    "verify": _verify,
    "env": _env,
    "completion": _completion,
}
