"""``scoremle train``, ``eval``, ``train-deq``, and the published form ``scoremle --mode=``."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from scoremle.cli.guarded import guarded
from scoremle.cli.signals import answered
from scoremle.terminal import passing

if TYPE_CHECKING:
    from scoremle.cli.flags import Settings

__all__ = ["print_config", "run"]


def run(settings: "Settings") -> dict[str, Any]:
    """Prints the config, or runs the mode; gives the config, or what was measured."""
    return print_config(settings) if settings.print_config else _run_mode(settings)


def print_config(settings: "Settings") -> dict[str, Any]:
    """Prints the config, flags included, and gives it."""
    from scoremle.cli.flags import fields_of

    for name, (_, value) in fields_of(settings.config).items():
        print(f"{name} = {'unset' if value is None else repr(value)}")
    return settings.config.to_dict()


def _run_mode(settings: "Settings") -> dict[str, Any]:
    if not settings.distributed:
        return _run_alone(settings)
    with guarded(settings.process) as has_met:
        from scoremle.processes import check_agreed, join, stdout_aside

        join(settings.coordinator, settings.processes, settings.process)
        has_met()
        check_agreed(_facts(settings))
        with stdout_aside() if settings.json else nullcontext():
            return _run_alone(settings)


def _facts(settings: "Settings") -> dict[str, Any]:
    """Facts that all processes of a run must be given."""
    import jax
    import jaxlib

    import scoremle
    from scoremle.experiment.record import PLACES, flat

    fields = {n: v for n, v in flat(settings.config.to_dict()).items() if n not in PLACES}
    versions = {module.__name__: module.__version__ for module in (scoremle, jax, jaxlib)}
    return {**versions, "mode": settings.mode, **fields}


def _run_alone(settings: "Settings") -> dict[str, Any]:
    with passing("loading"):
        from scoremle.experiment import run as experiment

    try:
        # Of several processes JAX takes the signals, and all stop at the same step.
        with nullcontext() if settings.distributed else answered():
            return experiment.run(
                settings.mode, settings.config, settings.workdir, settings.eval_folder,
                settings.deq_folder,
            )  # fmt: skip
    except KeyboardInterrupt:
        if settings.mode != "eval":
            raise
        raise KeyboardInterrupt("the same command goes on where it was") from None
