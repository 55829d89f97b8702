"""Records that others wrote, as JSON: a value of another kind than it is taken for is a line."""

import sys
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, is_typeddict

from scoremle.errors import UserError

__all__ = ["LARGEST", "check_record", "is_of"]

WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false",
         list: "a list", dict: "an object", NoneType: "null"}  # fmt: skip
# Whole numbers beyond these are of no use, and overflow what they are given to.
LARGEST = {int: 1 << 32, float: sys.float_info.max}


def check_record(record: Mapping[str, Any], form: Any, where: object) -> None:
    """Raises UserError for a field that is missing or of another kind than the form has.

    Args:
        record: as JSON gives it. Fields that the form does not have are left alone.
        form: a class with annotated fields. Those of a TypedDict may not be missing, unless it
            says so. A tuple is a list in JSON, and a whole number is a number.
        where: the file.
    """
    for name, kind in form.__annotations__.items():
        if name not in record:
            if name in getattr(form, "__required_keys__", ()):
                raise UserError(f"{where}: it lacks {name}; mend it, or make it anew")
        elif is_typeddict(kind) and isinstance(record[name], dict):
            check_record(record[name], kind, f"{where}: {name}")
        elif not _fits(record[name], kind):
            shown = repr(record[name])
            raise UserError(
                f"{where}: {name} must be {_words(kind)}, not"
                f" {shown if len(shown) < 40 else WORDS.get(type(record[name]), shown[:40])}"
            )


def _fits(value: Any, kind: Any) -> bool:
    origin, inside = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if is_typeddict(kind):
        return isinstance(value, dict)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inside)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        kinds = inside[:1] * len(value) if inside[-1] is ... else inside
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(each, inside[1]) for each in value.values())
    if origin is list:
        return isinstance(value, list) and all(_fits(each, inside[0]) for each in value)
    return is_of(value, kind)


def is_of(value: Any, kind: type) -> bool:
    """Is a value of this type? A whole number is a number, too; true and false are none."""
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, int) and kind in LARGEST:
        return abs(value) <= LARGEST[kind]
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, inside))
    if origin is tuple:
        return f"a list of {_words(inside[0]).removeprefix('a ')}s"
    return WORDS.get(dict if is_typeddict(kind) else origin or kind, str(kind))
