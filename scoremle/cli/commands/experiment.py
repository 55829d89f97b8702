"""``scoremle train``, ``eval``, ``train-deq``, and the published form ``scoremle --mode=``."""

from argparse import SUPPRESS
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from scoremle.cli.flags import FLOW_FOLDER, ConfigParser, fields_of
from scoremle.cli.guarded import guarded
from scoremle.cli.parser import Parser, at_least
from scoremle.cli.signals import answered
from scoremle.errors import UserError
from scoremle.terminal import passing

__all__ = ["parser", "print_config", "run"]

MODES = ("train", "eval", "train_deq")
WORKDIR = "the folder of its checkpoints and results"
WORDS = {"workdir": f"{WORKDIR}; it knows the config"}
TEXTS: dict[str, dict[str, Any]] = {
    "": {"words": {}, "examples": ("--config=digits --workdir=runs/digits --mode=train",)},
    "train": {
        "words": {
            "config": "what to train on what: a name that scoremle --help lists, or a Python file"
            " with get_config(). Not needed to go on: the workdir knows it",
            "workdir": WORKDIR,
        },
        "examples": (
            "digits runs/digits",
            "fashion_mnist runs/fashion --config.training.batch_size=64",
        ),
        "description": "Trains a model. Ctrl-C saves and stops; the same command goes on.",
    },
    "eval": {
        "words": WORDS,
        "examples": (
            "runs/digits",
            "runs/digits --config.eval.bound --config.eval.num_images=100",
        ),
        "description": "Measures bits/dim of a whole test set: the exact likelihood, or the"
        " bound.",
    },
    "train-deq": {
        "words": WORDS,
        "examples": ("runs/digits", "runs/digits --config.deq.n_iters=2000 --deq-folder=long"),
        "description": "Trains a flow dequantizer for the newest checkpoint of a model. Then"
        " scoremle eval WORKDIR --config.eval.dequantizer measures with it.",
    },
}
# Flags that only the help of these commands lists.
LISTED = {"--eval-folder": ("eval",), "--deq-folder": ("eval", "train-deq")}


def parser(name: str) -> Parser:
    parser = ConfigParser(name, run=run, **TEXTS[name])

    def add(flag: str, help: str = SUPPRESS, **settings: Any) -> None:
        listed = name in LISTED.get(flag, (name,))
        parser.add_argument(flag, help=help if listed else SUPPRESS, **settings)

    if not name:
        add("--mode", choices=MODES)
    add("--eval-folder", "folder in WORKDIR to write (eval)", metavar="NAME", default="eval")
    flow = f"folder in WORKDIR of the flow dequantizer ({FLOW_FOLDER})"
    add("--deq-folder", flow, metavar="NAME", default=FLOW_FOLDER)
    add(
        "--distributed", "one of several processes of a run, as the cluster says; elsewhere"
        " --coordinator=HOST:PORT --processes=N --process=I", action="store_true",
    )  # fmt: skip
    add("--coordinator", default="")
    add("--processes", type=at_least(0))
    add("--process", type=at_least(0))
    return parser


def run(options: Any) -> dict[str, Any]:
    """Prints the config, or runs the mode; returns the config, or what was measured."""
    if options.print_config:
        return print_config(options)
    if options.json and options.mode != "eval":
        raise UserError("--json is for eval, and for --print-config")
    if not (options.distributed or options.coordinator or options.processes or options.process):
        return _run_alone(options, answered)
    with guarded(options.process) as has_met:
        from scoremle.processes import check_agreed, join, stdout_aside

        join(options.coordinator, options.processes, options.process)
        has_met()
        check_agreed(_facts(options))
        with stdout_aside() if options.json else nullcontext():
            # Of several processes JAX takes the signals, and all stop at the same step.
            return _run_alone(options, nullcontext)


def print_config(options: Any) -> dict[str, Any]:
    """Prints the config, flags included, and returns it."""
    for name, (_, value) in fields_of(options.config).items():
        print(f"{name} = {'unset' if value is None else repr(value)}")
    return options.config.to_dict()


def _facts(options: Any) -> dict[str, Any]:
    """Facts that all processes of a run must be given."""
    import jax
    import jaxlib

    import scoremle
    from scoremle.experiment.record import PLACES, flat

    fields = {n: v for n, v in flat(options.config.to_dict()).items() if n not in PLACES}
    versions = {module.__name__: module.__version__ for module in (scoremle, jax, jaxlib)}
    return {**versions, "mode": options.mode, **fields}


def _run_alone(
    options: Any, signals: Callable[[], AbstractContextManager[None]]
) -> dict[str, Any]:
    with passing("loading"):
        from scoremle.experiment import run as experiment

    try:
        with signals():
            return experiment.run(
                options.mode, options.config, options.workdir, options.eval_folder,
                options.deq_folder,
            )  # fmt: skip
    except KeyboardInterrupt:
        if options.mode != "eval":
            raise
        raise KeyboardInterrupt("the same command goes on where it was") from None
