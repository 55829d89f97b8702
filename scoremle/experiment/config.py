"""Configs: Python modules with ``get_config()``, named by ``--config`` and run here.

ml_collections could load them, but a mistake in one would be a traceback. Here it is one line.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from scoremle.errors import UserError, choose, named_as, nearest
from scoremle.experiment import defaults
from scoremle.experiment.configs import NAMED_CONFIGS
from scoremle.experiment.own_code import imports_from, mistakes, run_file
from scoremle.records import LARGEST, is_of

__all__ = [
    "CONFIG_RECORD", "Resolve", "check_types", "fields_of", "flat", "load_config",
    "nearest_field", "published_config", "recorded_config",
]  # fmt: skip

Resolve = Callable[[ConfigDict], None]

# The file of a working directory that says what its experiment is.
CONFIG_RECORD = "config.json"
# Where what it says was changed.
REMEDY = "put its copy back, or move it away and run the training's command, which writes it anew"


def load_config(place: str) -> tuple[ConfigDict, Resolve]:
    """The config that ``--config=place`` means, and what fills the fields that flags leave unset.

    Args:
        place: one of ``NAMED_CONFIGS``, or a Python file with ``get_config()``, whose name ends
            in .py. If it has a ``resolve()`` too, that replaces the one of ``defaults``. The
            path at which a named config was published, such as configs/vp/..., is a name for it
            where there is no such file.

    Raises:
        UserError: there is no such file or name, or the file has a mistake.
    """
    published = place.rpartition("configs/")[2].removesuffix(".py")
    # A name never means a file, so that none in the working folder is run by chance.
    if not place.endswith(".py") or (published in NAMED_CONFIGS and not Path(place).exists()):
        named = choose(NAMED_CONFIGS, published, "config")
        return named.get_config(), named.resolve
    # The published form, ``from configs import default``, means the checkout of the file.
    above = (folder for folder in Path(place).absolute().parents if (folder / "configs").is_dir())
    checkout = next(above, None)
    with mistakes(Path(place)), imports_from(checkout) if checkout else nullcontext():
        module = run_file(Path(place))
        if not hasattr(module, "get_config"):
            raise UserError(f"config file {place} has no function get_config")
        config = module.get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(f"config file {place}: get_config must return a ConfigDict")
    if isinstance(config, FrozenConfigDict):  # which can't take flags
        config = ConfigDict(config)
    _check_fields(config, place)
    resolve = getattr(module, "resolve", defaults.resolve)
    if not callable(resolve):
        raise UserError(f"config file {place}: resolve must be a function")
    return config, resolve


def _check_fields(config: ConfigDict, place: str) -> None:
    """Raises UserError for a field that is missing, or that nothing reads: it may be misspelt."""
    given, known = fields_of(config), fields_of(defaults.get_config())
    for name in given:
        if name not in known:
            hint = nearest_field(name, known)
            raise UserError(f"config file {place}: unknown field {name}{hint}")
    if missing := [name for name in known if name not in given]:
        raise UserError(
            f"config file {place} lacks the field {missing[0]};"
            " start from scoremle.experiment.defaults.get_config()"
        )


def fields_of(config: ConfigDict, prefix: str = "") -> dict[str, tuple[type, Any]]:
    """Type and value of every field, by its dotted name.

    Args:
        config: any.
        prefix: of the names.
    """
    found: dict[str, tuple[type, Any]] = {}
    for name in config:
        if isinstance(config[name], ConfigDict):
            found |= fields_of(config[name], f"{prefix}{name}.")
        else:
            found[prefix + name] = (config.get_type(name), config[name])
    return found


def as_fields(group: str) -> AbstractContextManager[None]:
    """In the block a mistake names arguments as fields of a group of the config: ``data.fit``."""
    return named_as(lambda argument: f"{group}.{argument}", defaults.get_config()[group])


def flat(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """The fields of a config by their dotted names.

    Args:
        config: of fields by section.
    """
    fields: dict[str, Any] = {}
    for section, value in config.items():
        inside = value if isinstance(value, dict | ConfigDict) else {}
        fields |= {f"{section}.{name}": each for name, each in inside.items()} or {section: value}
    return fields


def nearest_field(name: str, known: Iterable[str]) -> str:
    """A question for the field or group that is most like this one; "" if none is.

    The last part of its name decides: a group is often left out, or another is named.

    Args:
        name: that is not known.
        known: names of fields.
    """
    known = list(known)
    ends = {field: field.rpartition(".")[2] for field in known}
    ends |= {group: group for field in known if (group := field.rpartition(".")[0])}
    last = nearest(name.rpartition(".")[2], ends.values())
    meant = [field for field, end in ends.items() if end == last]
    near = nearest(name, meant) if "." in name else ""
    near = near or " or ".join(meant)
    return f"; did you mean {near}?" if near else ""


def published_config(name: str, fields: Mapping[str, Any]) -> ConfigDict:
    """One of the package's own configs, resolved, with fields set by their dotted names.

    Args:
        name: of the config.
        fields: values by dotted names.
    """
    config, resolve = load_config(name)
    config.update_from_flattened_dict(fields)
    resolve(config)
    return config


def recorded_config(folder: Path) -> ConfigDict:
    """The resolved config in a working directory. Raises UserError if it can't be read.

    Args:
        folder: the working directory.
    """
    from scoremle.files import inside, read_sealed  # import numpy, which --help has no need of

    path = inside(folder, CONFIG_RECORD)
    return config_of(read_sealed(path, REMEDY), path)


def config_of(content: Mapping[str, Any], where: Path) -> ConfigDict:
    """The resolved config that a record holds. Raises UserError if it is not a config."""
    try:
        return with_defaults(_with_tuples(content))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def with_defaults(content: Mapping[str, Any]) -> ConfigDict:
    """A resolved config of an earlier version, with defaults for the fields it does not have."""
    complete = defaults.get_config().to_dict()
    for name, value in content.items():
        complete[name] = {**complete.get(name, {}), **value} if isinstance(value, dict) else value
    check_types(ConfigDict(complete))
    config = defaults.get_config()  # it has the types of the fields that are unset
    config.update(complete)
    defaults.resolve(config)
    return config


def _with_tuples(content: Any) -> Any:
    """Makes tuples of lists, which configs lack. Raises UserError for a name that no field has."""
    if isinstance(content, dict):
        if wrong := [name for name in content if not name.isidentifier()]:
            raise UserError(f"{wrong[0][:60]!r} is not the name of a field")
        return {name: _with_tuples(value) for name, value in content.items()}
    return tuple(content) if isinstance(content, list) else content


def check_types(config: ConfigDict, known: ConfigDict | None = None, prefix: str = "") -> None:
    """Raises UserError for a value of another type than the default's.

    A scalar is not a tuple of one, nor text a number: only a whole number is a number too.

    Args:
        config: or a group of its fields.
        known: the defaults of these fields; None: of all.
        prefix: of their names, for the error.
    """
    known = defaults.get_config() if known is None else known
    for name in known:
        value, default, where = config[name], known[name], prefix + name
        if isinstance(default, ConfigDict):
            if not isinstance(value, ConfigDict):
                raise UserError(f"{where} is a group of fields, not {_shown(value)}")
            check_types(value, default, f"{where}.")
            continue
        kind = known.get_type(name)
        inside = value if isinstance(value, tuple) else ()
        if default is None and value is None:  # unset
            continue
        if not is_of(value, kind) or not all(is_of(item, type(default[0])) for item in inside):
            of = f" of {type(default[0]).__name__}, such as {default}" if kind is tuple else ""
            of = f" of at most {LARGEST[int]}" if kind is type(value) is int else of
            raise UserError(f"{where} must be {kind.__name__}{of}, not {_shown(value)}")


def _shown(value: Any) -> str:
    """A value in a line."""
    return "a group of fields" if isinstance(value, ConfigDict) else repr(value)[:60]
