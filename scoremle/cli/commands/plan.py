"""``scoremle plan CONFIG``: what a training, an evaluation and samples will take."""

from typing import Any

from scoremle import devices
from scoremle.cli.commands.experiment import print_config
from scoremle.cli.flags import Settings
from scoremle.devices import in_gib
from scoremle.errors import UserError
from scoremle.evaluation.tables import table, wrapped
from scoremle.experiment.build import Experiment, build
from scoremle.experiment.plan import Plan
from scoremle.terminal import say

__all__ = ["run"]

# Test images of a data set that is not here.
IMAGES = 10_000


def run(options: Any) -> dict[str, Any]:
    """Prints it, and gives it."""
    settings: Settings = options.settings
    if settings.print_config:
        return print_config(settings)
    experiment, images, note = _experiment(settings.config)
    memory = options.memory or _memory()
    say("compiling and timing: a training step, and the network with and without its derivative")
    found = Plan(experiment, memory, options.devices).facts(images)
    say(*table(("what", "takes"), _rows(found)).splitlines())
    for line in (*_notes(found), *note):
        say(*wrapped(line))
    return found


def _experiment(config: Any) -> tuple[Experiment, int, list[str]]:
    """What to plan for, how many test images, and what must be said of them."""
    try:
        experiment = build(config)
    except UserError as error:
        missing = str(error)
    else:
        images = len(experiment.data.test)
        return experiment, config.eval.num_images or images, []
    experiment = build(config, levels=config.data.levels or 256)  # raises what is not of the data
    note = f"the data set is not here, so that {IMAGES:,} test images are taken: {missing}"
    return experiment, config.eval.num_images or IMAGES, [note]


def _memory() -> int:
    there = devices.memory()
    if there is None:
        raise UserError("this device does not say how much memory it has: name it, --memory=24GB")
    return there.whole


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    over = f", on {found['devices']} devices" * (found["devices"] > 1)
    batch, memory = found["batch"], in_gib(found["memory_bytes"])
    copy = found["copy_bytes"]
    passes = f"{found['evaluation_images']:,} images, passes: {found['evaluation_passes']}"
    return [
        ("parameters", f"{found['parameters']:,}"),
        ("FLOPs of a step", f"{found['flops_step']:.3g}; of an image {found['flops_image']:.3g}"),
        ("memory of the state", in_gib(found["state_bytes"])),
        *[(f"the same with devices.fsdp{over}", _split(found))] * (found["devices"] > 1),
        *[("its copy, while that is saved", in_gib(copy))] * (copy > 0),
        (f"memory of a step of {batch}", f"{in_gib(found['work_bytes'])} beside the state"),
        (f"largest batch in {memory}{over}", f"{found['largest_batch']:,}"),
        (f"a step of {batch}{over}", _time(found["step_seconds"])),
        (f"{found['training_steps']:,} steps{over}", _time(found["training_seconds"])),
        (f"evaluation, {passes}{over}", _time(found["evaluation_seconds"])),
        (f"{found['samples']:,} samples{over}", _time(found["samples_seconds"])),
    ]


def _split(found: dict[str, Any]) -> str:
    """The state of a device where it is split over all, and what that saves."""
    saved = found["state_bytes"] - found["split_state_bytes"]
    return f"{in_gib(found['split_state_bytes'])}: {in_gib(saved)} less"


def _notes(found: dict[str, Any]) -> list[str]:
    """What the numbers are."""
    whole = found["step_measured_with"] == found["batch"]
    how = "" if whole else f" by the pace of {found['step_measured_with']} images at a time"
    pilot = " (a pilot may choose other numbers)" * found["pilot"]
    likelihood = f"a likelihood takes {found['likelihood_evaluations']} evaluations{pilot}, "
    lines = [
        f"measured on {found['device']}{how}; FLOPs and memory are XLA's account of the program",
        f"{likelihood * bool(found['likelihood_evaluations'])}a sample takes"
        f" {found['sample_evaluations']} evaluations of the network",
    ]
    if found["devices"] > 1:
        lines.append(
            f"{found['devices']} devices: the time of one over {found['devices']}, an ideal split;"
            " what they tell each other comes on top"
        )
    return lines


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not known before: the solver takes as many evaluations as an image needs"
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} seconds"
