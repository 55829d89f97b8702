"""Config files: Python files with ``get_config()``, found and run; a mistake in one is one line.

ml_collections could load them, but a mistake would be a traceback.
"""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ml_collections import ConfigDict

from scoremle.errors import UserError

__all__ = ["get_config", "load_configs", "published_config", "with_defaults"]

T = TypeVar("T")


def load_configs(path: str | None) -> tuple[ModuleType, ModuleType]:
    """configs/default.py and the config file, the same module if ``path`` is None."""
    if path is not None and not Path(path).is_file():
        raise UserError(f"no config file {path} (looked for {Path(path).absolute()})")
    root = str(_configs_root(path))
    # A console script does not put the working directory on the path, as python main.py does.
    if root not in sys.path:
        sys.path.insert(0, root)
    default = _guarded("configs/default.py", lambda: importlib.import_module("configs.default"))
    if path is None:
        return default, default
    return default, _guarded(path, lambda: _load_file(path))


def with_defaults(content: Mapping[str, Any]) -> ConfigDict:
    """A resolved config of an earlier version, with defaults for the fields it does not have."""
    try:
        default = load_configs(None)[0]
    except UserError:  # an installation without configs/ has none to add
        return ConfigDict(content)
    complete = default.get_config().to_dict()
    for name, value in content.items():
        complete[name] = {**complete.get(name, {}), **value} if isinstance(value, dict) else value
    config = ConfigDict(complete)
    default.resolve(config)
    return config


def _configs_root(path: str | None) -> Path:
    """The folder that holds the package ``configs``: the file's own, this one, the checkout."""
    above = Path(path).absolute().parents if path else ()
    places = [*above, Path.cwd(), Path(__file__).absolute().parents[1]]
    for place in places:
        if (place / "configs" / "default.py").is_file():
            return place
    raise UserError(f"no configs/default.py in {places[-2]} or {places[-1]}, nor above {path}")


def _load_file(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("scoremle_config_file", path)
    if spec is None or spec.loader is None:
        raise UserError(f"config file {path}: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def get_config(module: ModuleType, path: str) -> ConfigDict:
    if not hasattr(module, "get_config"):
        raise UserError(f"config file {path} has no function get_config")
    config = _guarded(path, module.get_config)
    if not isinstance(config, ConfigDict):
        raise UserError(f"config file {path}: get_config must return a ConfigDict")
    return config


def _guarded(path: str, action: Callable[[], T]) -> T:
    """Run code of a config file; whatever goes wrong in it becomes one line that says where."""
    try:
        return action()
    except UserError:
        raise
    except SyntaxError as error:
        place = f"{error.filename}, line {error.lineno}"
        raise UserError(f"config file {place}: {error.msg}") from error
    except Exception as error:
        here = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in here if Path(frame.filename).name == Path(path).name]
        place = f", line {lines[-1]}" if lines else ""
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"config file {path}{place}: {text}") from error


def published_config(name: str, fields: Mapping[str, Any]) -> ConfigDict:
    """A config of the project by its path in it, resolved, with fields set by dotted names."""
    path = str(_configs_root(None) / name)
    default, module = load_configs(path)
    config = get_config(module, path)
    config.update_from_flattened_dict(fields)
    getattr(module, "resolve", default.resolve)(config)
    return config
