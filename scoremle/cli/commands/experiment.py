"""Trains and evaluates: ``train``, ``eval``, ``train-deq``, and the published form.

    scoremle --config=digits --workdir=runs/digits --mode=train
"""

from argparse import SUPPRESS
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from scoremle.cli import checks
from scoremle.cli.child import run_in_child
from scoremle.cli.flags import ConfigParser
from scoremle.cli.signals import answered, going_on
from scoremle.errors import UserError, as_flag, named_as
from scoremle.experiment.folders import FLOW_FOLDER
from scoremle.terminal import passing

PARSER = ConfigParser
WORKDIR = "the folder of its checkpoints and results"
CONFIG = (
    "the network, its training and its data: a name that scoremle --help lists, or a Python file"
    " with get_config(). Not needed to resume: the workdir contains it"
)


def arguments(parser: ConfigParser) -> None:
    mode = parser.prog.removeprefix("scoremle").strip().replace("-", "_")
    if mode == "train":
        parser.add_config(mode, config=CONFIG, workdir=WORKDIR)
    elif mode:
        parser.add_config(mode, workdir=f"{WORKDIR}; it contains the config")
    else:
        parser.add_config(mode)
        parser.add("--mode", SUPPRESS, choices=[*MODES])
    if mode:
        parser.describe(MODES[mode].__doc__)
    folder = "folder in WORKDIR to write (eval)" if mode == "eval" else SUPPRESS
    parser.add("--eval-folder", folder, metavar="NAME", default="eval", type=checks.folder_name)
    flow = f"folder in WORKDIR of the flow dequantizer ({FLOW_FOLDER})" * (mode != "train")
    parser.add("--deq-folder", flow or SUPPRESS, metavar="NAME", default=FLOW_FOLDER,
               type=checks.folder_name)  # fmt: skip
    parser.add("--distributed", "run as one of several processes, numbered by the cluster, or by"
               " --coordinator=HOST:PORT --processes=N --process=I",
               action="store_true")  # fmt: skip
    parser.add("--coordinator", SUPPRESS, default="")
    parser.add("--processes", SUPPRESS, type=checks.at_least(1))
    parser.add("--process", SUPPRESS, type=checks.at_least(0))


def run(options: Any) -> dict[str, Any] | None:
    """Runs the mode; returns what was measured."""
    evaluates = options.mode == "eval"
    if options.json and not evaluates:
        raise UserError("--json is for eval, and for --print-config")
    numbers = options.processes, options.process
    several = options.distributed or options.coordinator or numbers != (None, None)
    goes_on = going_on("the same command resumes it") if evaluates else nullcontext()
    with goes_on, _one_of_several(options) if several else answered():
        with passing("loading"):
            from scoremle.experiment.build import build
            from scoremle.experiment.workdir import Workdir

        workdir = Workdir(Path(options.workdir))
        if workdir.imported and not evaluates:
            raise UserError(
                f"{workdir.folder} holds a model that was imported: it can't be trained on here"
            )
        experiment = build(options.config, imported=workdir.imported)
        return MODES[options.mode](experiment, workdir, options)


@contextmanager
def _one_of_several(options: Any) -> Iterator[None]:
    """In the block this is one process of a run. JAX takes the signals: all stop together."""
    with run_in_child(options.process) as has_met:
        from scoremle.processes import check_agreed, join, stdout_aside

        with named_as(as_flag, ("coordinator", "processes", "process")):
            join(options.coordinator, options.processes, options.process)
        has_met()
        check_agreed(_facts(options))
        with stdout_aside() if options.json else nullcontext():
            yield


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


def _train(experiment: Any, workdir: Any, options: Any) -> None:
    """Trains a model. Ctrl-C saves and stops; the same command resumes.

        scoremle train digits runs/digits
        scoremle train fashion_mnist runs/fashion --config.training.batch_size=64
    """
    from scoremle.experiment.run_train import run_train

    run_train(experiment, workdir)


def _eval(experiment: Any, workdir: Any, options: Any) -> dict[str, Any]:
    """Measures bits/dim of a whole test set: the exact likelihood, or the bound.

        scoremle eval runs/digits
        scoremle eval runs/digits --config.eval.bound --config.eval.num_images=100
    """
    from scoremle.experiment.run_eval import PARTS, run_eval
    from scoremle.files import is_writer

    folder = workdir.folder / options.eval_folder
    if is_writer():
        checks.takes_files(folder, folder / PARTS)
    return run_eval(experiment, workdir, options.eval_folder, options.deq_folder)


def _train_deq(experiment: Any, workdir: Any, options: Any) -> None:
    """Trains a flow dequantizer for the newest checkpoint of a model. Then
    scoremle eval WORKDIR --config.eval.dequantizer measures with it.

        scoremle train-deq runs/digits
        scoremle train-deq runs/digits --config.deq.n_iters=2000 --deq-folder=long
    """
    from scoremle.experiment.run_train import run_train_deq

    run_train_deq(experiment, workdir, options.deq_folder)


MODES = {"train": _train, "eval": _eval, "train_deq": _train_deq}
