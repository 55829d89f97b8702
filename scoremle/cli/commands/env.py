"""Versions, devices, memory and cache folders: what a report of a fault needs.

    scoremle env
    scoremle env --json
"""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import scoremle
from scoremle.cli.cache import FOLDER
from scoremle.cli.parser import Parser
from scoremle.errors import UserError
from scoremle.evaluation.tables import table
from scoremle.terminal import say

NEEDS = "jax"
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml-collections", "numpy", "scipy",
    "pillow", "scikit-learn", "matplotlib", "torch", "diffusers",
)  # fmt: skip
# How variables begin that change what a command does.
SETTINGS = ("JAX_", "XLA_", "SCOREMLE_", "XDG_CACHE", "CUDA_VISIBLE", "TF_CPP")


def arguments(parser: Parser) -> None:
    parser.add("--json", "print the result as JSON", action="store_true")
    # Before JAX and the cache of programs add settings of their own.
    settings = {name: v for name, v in sorted(os.environ.items()) if name.startswith(SETTINGS)}
    parser.set_defaults(settings=settings)


def run(options: Any) -> dict[str, str | int]:
    """Prints them, a line each, and gives them."""
    facts, settings = _facts(), options.settings
    rows = [(name, str(value)) for name, value in facts.items()]
    say(*table(("what", "value"), rows).splitlines())
    say("", "settings:", *(f"  {name}={value}" for name, value in settings.items()))
    return facts | settings


def version() -> str:
    """Versions and devices, in three lines."""
    libraries = ", ".join(f"{name} {_version(name)}" for name in ("jax", "jaxlib", "flax"))
    return (
        f"scoremle {scoremle.__version__}\nPython {platform.python_version()}, {libraries}\n"
        f"{'; '.join(f'{name}: {device}' for name, device in _devices().items())}"
    )


def _facts() -> dict[str, str | int]:
    return {
        "scoremle": scoremle.__version__,
        "installed at": str(Path(scoremle.__file__).parent),
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: _version(name) for name in PACKAGES},
        **_devices(),
        "cores": os.cpu_count() or 0,
        "memory": _memory(),
        "compiled programs": _programs(),
        "prepared data sets": str(scoremle.data.prepared.cache_folder()),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> dict[str, str]:
    import jax

    try:
        scoremle.devices.check_devices()
    except UserError as error:  # a driver that does not answer is what the report is about
        return {"devices": f"none: {error}"}
    found = {}
    for i, device in enumerate(jax.devices()):
        limit = (device.memory_stats() or {}).get("bytes_limit")
        memory = f", {scoremle.devices.in_gib(limit)} for JAX" if limit else ""
        found[f"device {i}"] = f"{device.platform}, {device.device_kind}{memory}"
    return found


def _memory() -> str:
    if (found := scoremle.devices.memory_of_machine()) is None:
        return "unknown"
    whole, free = map(scoremle.devices.in_gib, found)
    return f"{whole}, {free} free"


def _programs() -> str:
    import jax

    config: Any = jax.config  # its fields have no types
    folder = config.jax_compilation_cache_dir
    if not (folder and config.jax_enable_compilation_cache):
        return f"not kept: switched off, or the folder can't be written ({FOLDER} names another)"
    files = [path for path in Path(folder).glob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    return f"{folder} ({len(files)} files, {size:.1f} MiB)"
