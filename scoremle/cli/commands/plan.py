"""Measures the cost of a training, its evaluation and 50,000 samples: parameters, FLOPs, memory,
the largest batch, time. It compiles and runs a few steps on this machine, which takes some minutes
for a large network.

    scoremle plan digits
    scoremle plan vp/cifar10_ddpmpp_continuous --memory=24GB --devices=8
"""

import argparse
import re
from typing import Any

import scoremle
from scoremle.cli import checks
from scoremle.cli.flags import ConfigParser
from scoremle.errors import UserError
from scoremle.evaluation.tables import table, wrapped
from scoremle.terminal import say

PARSER, NEEDS = ConfigParser, "scoremle.experiment.plan"
# Test images of a data set that is not here.
IMAGES = 10_000
SIZES = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}


def arguments(parser: ConfigParser) -> None:
    parser.add_config(
        "plan", config="a name that scoremle --help lists, a Python file, or a workdir"
    )
    parser.add("--memory", "memory of a device, such as 24GB; unset: that of the device here",
               type=_bytes)  # fmt: skip
    parser.add("--devices", "number of devices that share the work, by an ideal split (1)",
               metavar="K", type=checks.at_least(1), default=1)  # fmt: skip


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+) ?([A-Za-z]*)", text)
    size = int(float(match[1]) * SIZES.get(match[2].upper(), 0)) if match else 0
    if not size:
        raise argparse.ArgumentTypeError(f"{text} is not a size such as 24GB or 500MB")
    return size


def run(options: Any) -> dict[str, Any]:
    """Prints it, and gives it."""
    from scoremle.experiment.plan import Plan

    experiment, images, notes = _experiment(options.config)
    room = scoremle.devices.memory()
    if not (memory := options.memory or (room and room.whole)):
        raise UserError("the memory of this device is not known: give it, --memory=24GB")
    say("compiling and timing: a training step, and the network with and without its derivative")
    found = Plan(experiment, memory, options.devices).costs(images)
    say(*table(("what", "takes"), _rows(found)).splitlines())
    say(*wrapped(*_notes(found), *notes))
    return found


def _experiment(config: Any) -> tuple[Any, int, list[str]]:
    """The experiment, how many images an evaluation takes, and notes about these."""
    from scoremle.experiment.build import build

    try:
        experiment = build(config)
        images = len(getattr(experiment.data, config.eval.dataset))
        return experiment, min(config.eval.num_images or images, images), []
    except UserError as error:
        missing = str(error)
    experiment = build(config, levels=config.data.levels or 256)  # raises what is not of the data
    note = f"the data set is not here, so that {IMAGES:,} test images are taken: {missing}"
    return experiment, config.eval.num_images or IMAGES, [note]


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    in_gib = scoremle.devices.in_gib
    over = f", on {found['devices']} devices" * (found["devices"] > 1)
    batch, memory = found["batch"], in_gib(found["memory_bytes"])
    copy, state, split = (found[f"{name}bytes"] for name in ("copy_", "state_", "split_state_"))
    split_saves = f"{in_gib(split)}: {in_gib(state - split)} less"
    passes = f"{found['evaluation_images']:,} images, passes: {found['evaluation_passes']}"
    return [
        ("parameters", f"{found['parameters']:,}"),
        ("FLOPs of a step", f"{found['flops_step']:.3g}; of an image {found['flops_image']:.3g}"),
        ("memory of the state", in_gib(state)),
        *[(f"the same with devices.fsdp{over}", split_saves)] * (found["devices"] > 1),
        *[("its copy, while that is saved", in_gib(copy))] * (copy > 0),
        (f"memory of a step of {batch}", f"{in_gib(found['work_bytes'])} beside the state"),
        (f"largest batch in {memory}{over}", f"{found['largest_batch']:,}"),
        (f"a step of {batch}{over}", _time(found["step_seconds"])),
        (f"{found['training_steps']:,} steps{over}", _time(found["training_seconds"])),
        (f"evaluation, {passes}{over}", _time(found["evaluation_seconds"])),
        (f"{found['samples']:,} samples{over}", _time(found["samples_seconds"])),
    ]


def _notes(found: dict[str, Any]) -> list[str]:
    """Lines that say how the numbers were found."""
    how = f" by the pace of {found['step_measured_with']} images at a time"
    how *= found["step_measured_with"] != found["batch"]
    pilot = " (a pilot may choose other numbers)" * found["pilot"]
    likelihood = f"a likelihood takes {found['likelihood_evaluations']} evaluations{pilot}, "
    likelihood *= bool(found["likelihood_evaluations"])
    lines = [
        f"measured on {found['device']}{how}; FLOPs and memory are XLA's account of the program",
        f"{likelihood}a sample takes {found['sample_evaluations']} evaluations of the network",
    ]
    several = (
        f"{found['devices']} devices: the time of one over {found['devices']}, an ideal split;"
        " their communication comes on top"
    )
    return lines + [several] * (found["devices"] > 1)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not known before: the solver takes as many evaluations as an image needs"
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} seconds"
