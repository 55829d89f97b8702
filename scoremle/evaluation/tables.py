"""Tables of results, as text, no wider than the screen where there is one."""

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

from scoremle.terminal import in_a_line

__all__ = [
    "mean_in_parts", "quality_table", "results_table", "screen_width", "solver_of_mean", "table",
    "wrapped",
]  # fmt: skip

# What is left out first where there is no room; it stands in results.json.
SPARE = ("s/image", "NFE", "from draws", "reference images", "samples")
# Of the error of a corrected mean, as they are printed.
PARTS = ("images", "probes", "draws", "solver")
UPPER = "* an upper estimate, from few draws: it is a part of the standard error"


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, spare: Sequence[str] = ()
) -> str:
    """Columns of text, aligned.

    On a screen that is too narrow, columns of ``spare`` are left out, the first of them first, and
    a line says which.
    """
    lines = [[in_a_line(cell) for cell in line] for line in (header, *rows)]
    widths = {name: max(len(line[i]) for line in lines) for i, name in enumerate(header)}
    left_out = _too_much(widths, spare)
    kept = [i for i, name in enumerate(header) if name not in left_out]
    text = ["  ".join(line[i].ljust(widths[header[i]]) for i in kept) for line in lines]
    rule = "  ".join("-" * widths[header[i]] for i in kept)
    note = [f"no room for: {', '.join(left_out)}"] if left_out else []
    return "\n".join(line.rstrip() for line in [text[0], rule, *text[1:], *note])


def _too_much(widths: Mapping[str, int], spare: Sequence[str]) -> list[str]:
    """The columns that there is no room for."""
    left_out: list[str] = []
    room = screen_width()
    for name in spare:
        kept = [width + len("  ") for other, width in widths.items() if other not in left_out]
        if room is None or sum(kept) - len("  ") <= room:
            break
        left_out.append(name)
    return left_out


def screen_width() -> int | None:
    """Columns of the terminal; None where the output is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrapped(text: str) -> list[str]:
    """A line of text as lines that fit the screen, cut between words, the later ones set in."""
    line, width = in_a_line(text), screen_width()
    return [line] if width is None else textwrap.wrap(line, width, subsequent_indent="  ")


def _number(value: float | None, digits: int = 4) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"


def _what(r: Mapping[str, Any]) -> str:
    """What a number is: estimator, its form, noise, images."""
    facts = [r["estimator"]]
    if "matching" in r:
        facts.append(f"{r['matching']} score matching")
    if "divergence" in r:
        probes = r["probes"]
        facts.append("exact trace" if probes is None else _counted(probes, "probe"))
    if choice := r.get("solver_choice"):
        bias = f"{choice['solver_bias']:+.4f} +- {choice['solver_bias_stderr']:.4f}"
        where = f"in the mean of {choice['images']} images"
        facts.append(f"solver: estimate minus truth {bias} {where}")
    if "dequantizer" in r:  # a loss has a dequantization of its own, that of training
        kind = r["dequantizer"]
        facts.append(f"{'no' if kind == 'none' else kind} dequantization")
    part = "" if r["full_pass"] else " (not the whole split)"
    facts.append(f"{r['images']} {r['split']} images{part}, {_counted(r['passes'], 'pass')}")
    facts.append(_steps(r))
    return "; ".join(facts)


def _steps(r: Mapping[str, Any]) -> str:
    """Which step of the trainings it is of, and which of them isn't finished."""
    words = [_step(r["step"], r.get("training"))]
    if "dequantizer_step" in r:
        words.append("flow at " + _step(r["dequantizer_step"], r.get("dequantizer_training")))
    return ", ".join(words)


def _step(step: int, training: Mapping[str, Any] | None) -> str:
    if not training or step >= training["steps"]:
        return f"step {step}"
    unfinished = "" if training["finished"] else ": training is not finished"
    return f"step {step} of {training['steps']}{unfinished}"


def _counted(count: int, word: str) -> str:
    plural = "es" if word.endswith("s") else "s"
    return f"{count} {word}{plural * (count != 1)}"


def _from_draws(r: Mapping[str, Any]) -> float | None:
    random = r.get("probe_stderr_of_mean", r.get("draw_stderr_of_mean"))
    return r.get("noise_stderr") if random is None else random


def _is_upper(r: Mapping[str, Any]) -> bool:
    random, whole = _from_draws(r), r["stderr"]
    return random is not None and whole is not None and random > whole


def solver_of_mean(r: Mapping[str, Any]) -> float | None:
    """What covers the solver's error of the mean, or as far as known of an image."""
    if errors := r.get("errors"):
        return 2 * errors["solver"] + errors["finest_bias"]
    return r.get("mean_solver_error")


def mean_in_parts(r: Mapping[str, Any]) -> list[str]:
    """How a corrected mean is made, and the parts of its error; nothing of another."""
    if not (errors := r.get("errors")):
        return []
    nodes, images = r["level_nodes"], r["level_images"]
    differences = ", ".join(
        f"{coarse} to {fine} nodes on {m} images"
        for m, (coarse, fine) in zip(images[1:], pairwise(nodes), strict=True)
    )
    known = [name for name in PARTS if errors[name] is not None]
    parts = [f"{name} {errors[name]:.5f}" for name in known]
    parts.append(f"all together {_number(errors['all'], 5)}")
    if errors["this_set"] is not None:
        parts.append(f"without that of the images {errors['this_set']:.5f}")
    unknown = " and ".join(name for name in PARTS if name not in known)
    corrected = (
        f"mean over images {r['mean']:.5f} = {r['uncorrected_mean']:.5f} at {nodes[0]} nodes"
        f" {r['correction']:+.5f} of correction, by differences of {differences}"
    )
    uncorrected = f"mean over images {r['mean']:.5f}, all at {nodes[0]} nodes"
    return [
        corrected if nodes[1:] else uncorrected,
        f"standard error of this mean by source: {', '.join(parts)}"
        + f"; the parts of {unknown} can't be told from so few passes" * bool(unknown),
        f"the solver's error with {nodes[-1]} nodes comes on top: at most"
        f" {errors['finest_bias']:.5f} bits/dim",
    ]


def _precision_cost(r: Mapping[str, Any]) -> list[str]:
    """What a network that computes in less than float32 costs; nothing of another."""
    if not (cost := r.get("precision_cost")):
        return []
    images, error = _counted(cost["images"], "image"), _number(cost["stderr"], 5)
    return [
        f"in {r['precision']} bits/dim of {images} are off from those in float32, of the same"
        f" noise, by {cost['mean']:+.5f} in the mean, with a standard error of {error}, and by"
        f" {cost['largest']:+.5f} at most"
    ]


def results_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for each result: its value and errors; and under them, what each of them is.

    The standard error is over images; "from draws" is the part of it that comes from probes or
    Monte-Carlo draws. The solver's error is the mean over images of what covers it: it has a sign
    of its own and does not shrink with their number. Of a corrected mean it is twice its standard
    error and what the finest level may be off.
    """
    header = (
        "result", "value", "std. error", "from draws", "solver, 95%", "NFE", "s/image",
    )  # fmt: skip
    rows = []
    for name, r in results.items():
        nfe = r.get("mean_nfe")
        rows.append(
            (
                name,
                _number(r["mean"]) + (" bits/dim" if r["unit"] == "bits/dim" else ""),
                _number(r["stderr"]),
                _number(_from_draws(r), 5) + "*" * _is_upper(r),
                "" if "mean_solver_error" not in r else _number(solver_of_mean(r), 5),
                "" if nfe is None else f"{nfe:.0f}",
                f"{seconds:.2g}" if (seconds := r.get("seconds_per_image")) else "",
            )
        )
    footnotes = [UPPER] if any(map(_is_upper, results.values())) else []
    told = (
        (name, text)
        for name, r in results.items()
        for text in (_what(r), *mean_in_parts(r), *_precision_cost(r))
    )
    what = (line for name, text in told for line in wrapped(f"{name}: {text}"))
    return "\n".join([table(header, rows, spare=SPARE), *footnotes, *what])


def quality_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for each measure of sample quality, and under them what they are measured with."""
    header = ("result", "measure", "value", "std. error", "samples", "reference images")
    rows = [
        (
            name,
            measure,
            f"{m['value']:.5g}",
            "" if m["stderr"] is None else f"{m['stderr']:.2g}",
            str(m["samples"]),
            str(m["reference_images"] or ""),
        )
        for name, r in results.items()
        for measure, m in r["measures"].items()
    ]
    what = dict.fromkeys(map(_measured_with, results.values()))
    return "\n".join([table(header, rows, spare=SPARE), *chain.from_iterable(map(wrapped, what))])


def _measured_with(r: Mapping[str, Any]) -> str:
    reference = r["reference"]
    what = f"origin {reference['origin']}"
    if "dataset" in reference:
        what = f"{reference['split']} images of {reference['dataset']}"
    return f"features: {r['features']}; reference: {reference['path']}, {what}; {_steps(r)}"
