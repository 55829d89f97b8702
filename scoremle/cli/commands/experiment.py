"""``scoremle train``, ``eval``, ``train-deq``, and the published form ``scoremle --mode=``."""

from argparse import SUPPRESS
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from scoremle.cli.child import run_in_child
from scoremle.cli.flags import FLOW_FOLDER, ConfigParser
from scoremle.cli.parser import Parser, adder, at_least
from scoremle.cli.signals import answered, going_on
from scoremle.errors import UserError, as_flag, named_as
from scoremle.terminal import passing

MODES = ("train", "eval", "train_deq")
WORKDIR = "the folder of its checkpoints and results"
CONFIG = (
    "what to train on what: a name that scoremle --help lists, or a Python file with get_config()."
    " Not needed to go on: the workdir knows it"
)
KNOWN = {"workdir": f"{WORKDIR}; it knows the config"}
OF_TRAIN = {"config": CONFIG, "workdir": WORKDIR}
WORDS: dict[str, dict[str, str]] = {"": {}, "train": OF_TRAIN, "eval": KNOWN, "train-deq": KNOWN}
TEXTS = {
    "": """

    scoremle --config=digits --workdir=runs/digits --mode=train
""",
    "train": """Trains a model. Ctrl-C saves and stops; the same command goes on.

    scoremle train digits runs/digits
    scoremle train fashion_mnist runs/fashion --config.training.batch_size=64
""",
    "eval": """Measures bits/dim of a whole test set: the exact likelihood, or the bound.

    scoremle eval runs/digits
    scoremle eval runs/digits --config.eval.bound --config.eval.num_images=100
""",
    "train-deq": """Trains a flow dequantizer for the newest checkpoint of a model. Then
scoremle eval WORKDIR --config.eval.dequantizer measures with it.

    scoremle train-deq runs/digits
    scoremle train-deq runs/digits --config.deq.n_iters=2000 --deq-folder=long
""",
}


def parser(name: str) -> Parser:
    parser = ConfigParser(name, TEXTS[name], WORDS[name], run=run)
    add = adder(parser)
    if not name:
        add("--mode", SUPPRESS, choices=MODES)
    folder = "folder in WORKDIR to write (eval)" if name == "eval" else SUPPRESS
    add("--eval-folder", folder, metavar="NAME", default="eval")
    flow = f"folder in WORKDIR of the flow dequantizer ({FLOW_FOLDER})" * (name != "train")
    add("--deq-folder", flow or SUPPRESS, metavar="NAME", default=FLOW_FOLDER)
    add("--distributed", "one of several processes of a run, as the cluster says; elsewhere"
        " --coordinator=HOST:PORT --processes=N --process=I", action="store_true")  # fmt: skip
    add("--coordinator", SUPPRESS, default="")
    add("--processes", SUPPRESS, type=at_least(0))
    add("--process", SUPPRESS, type=at_least(0))
    return parser


def run(options: Any) -> dict[str, Any]:
    """Runs the mode; returns what was measured."""
    if options.json and options.mode != "eval":
        raise UserError("--json is for eval, and for --print-config")
    if not (options.distributed or options.coordinator or options.processes or options.process):
        return _run_alone(options, answered)
    with run_in_child(options.process) as has_met:
        from scoremle.processes import check_agreed, join, stdout_aside

        with named_as(as_flag, ("coordinator", "processes", "process")):
            join(options.coordinator, options.processes, options.process)
        has_met()
        check_agreed(_facts(options))
        with stdout_aside() if options.json else nullcontext():
            # Of several processes JAX takes the signals, and all stop at the same step.
            return _run_alone(options, nullcontext)


def _facts(options: Any) -> dict[str, Any]:
    """Facts that all processes of a run must be given."""
    import jax
    import jaxlib

    import scoremle
    from scoremle.experiment.config import flat
    from scoremle.experiment.record import PLACE_FIELDS

    fields = {n: v for n, v in flat(options.config.to_dict()).items() if n not in PLACE_FIELDS}
    versions = {module.__name__: module.__version__ for module in (scoremle, jax, jaxlib)}
    return {**versions, "mode": options.mode, **fields}


def _run_alone(
    options: Any, signals: Callable[[], AbstractContextManager[None]]
) -> dict[str, Any]:
    with passing("loading"):
        from scoremle.experiment.build import build
        from scoremle.experiment.run_eval import run_eval
        from scoremle.experiment.run_train import run_train, run_train_deq
        from scoremle.experiment.workdir import Workdir

    mode, place = options.mode, Workdir(Path(options.workdir))
    again = "the same command goes on where it was"
    goes_on = going_on(again) if mode == "eval" else nullcontext()
    with goes_on, signals():
        if place.imported and mode != "eval":
            raise UserError(
                f"{place.folder} holds a model that was imported: it can't be trained on here"
            )
        experiment = build(options.config, imported=place.imported)
        if mode == "eval":
            return run_eval(experiment, place, options.eval_folder, options.deq_folder)
        if mode == "train":
            run_train(experiment, place)
        else:
            run_train_deq(experiment, place, options.deq_folder)
        return {}
