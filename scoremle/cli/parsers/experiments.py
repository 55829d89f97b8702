"""Arguments of ``train``, ``train-deq``, ``eval`` and ``plan``: a config, and its flags."""

import argparse
import re
from typing import Any

from scoremle.cli.commands import Parser
from scoremle.cli.parsers.words import at_least

__all__ = ["ModeParser", "eval_parser", "plan_parser", "train_deq_parser", "train_parser"]


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


def train_parser() -> Parser:
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


def eval_parser() -> Parser:
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


def train_deq_parser() -> Parser:
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
                devices=at_least(1)(devices or "1"),
            )  # fmt: skip
        except argparse.ArgumentTypeError as error:
            self.error(str(error))


def plan_parser() -> Parser:
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
