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
        from scoremle.processes import join, stdout_aside

        join(settings.coordinator, settings.processes, settings.process)
        has_met()
        with stdout_aside() if settings.json else nullcontext():
            return _run_alone(settings)


def _run_alone(settings: "Settings") -> dict[str, Any]:
    with passing("loading"):
        from scoremle.experiment import run as experiment

    try:
        with answered():
            return experiment.run(
                settings.mode, settings.config, settings.workdir, settings.eval_folder,
                settings.deq_folder,
            )  # fmt: skip
    except KeyboardInterrupt:
        if settings.mode != "eval":
            raise
        raise KeyboardInterrupt("the same command goes on where it was") from None
