"""``scoremle train``, ``eval``, ``train-deq``, and the published form ``scoremle --mode=``."""

import json
import sys
from contextlib import nullcontext, redirect_stdout
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scoremle.cli.flags import Settings

__all__ = ["run"]


def run(settings: "Settings") -> None:
    """Prints the config, or runs the mode. As JSON, the result is all that goes to stdout."""
    if settings.print_config:
        _print_config(settings)
        return
    with redirect_stdout(sys.stderr) if settings.json else nullcontext():
        results = _run_mode(settings)
    if settings.json:
        print(json.dumps(results, indent=2))


def _print_config(settings: "Settings") -> None:
    if settings.json:
        print(settings.config.to_json(indent=2))
        return
    from scoremle.cli.flags import fields_of

    for name, (_, value) in fields_of(settings.config).items():
        print(f"{name} = {'unset' if value is None else repr(value)}")


def _run_mode(settings: "Settings") -> dict[str, object]:
    from scoremle.experiment import run as experiment

    try:
        return experiment.run(
            settings.mode, settings.config, settings.workdir, settings.eval_folder,
            settings.deq_folder,
        )  # fmt: skip
    except KeyboardInterrupt:
        if settings.mode != "eval":
            raise
        raise KeyboardInterrupt("the same command goes on where it was") from None
