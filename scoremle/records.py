"""Checks of JSON that others wrote: a value of the wrong kind is a UserError of one line."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from itertools import chain
from types import NoneType, UnionType
from typing import Any, NewType, NotRequired, Union, get_args, get_origin, is_typeddict

from scoremle.errors import UserError

# Texts that may be a part of a file's name, and names of files within a folder.
Name = NewType("Name", str)
FileName = NewType("FileName", str)
Count = NewType("Count", int)
Size = NewType("Size", int)
GreyLevels = NewType("GreyLevels", int)  # of grey
# A standard error; a number that need not be finite, as all others must.
Error = NewType("Error", float)
Number = NewType("Number", float)

WORDS = {
    int: "a whole number", float: "a finite number", str: "text", bool: "true or false",
    list: "a list", dict: "an object", NoneType: "null",
    Name: "a name of letters, digits, '_', '-' and '.'",
    FileName: "the name of a file in the folder", Count: "a whole number of at least 0",
    Size: "a whole number of at least 1", GreyLevels: "a whole number from 2 to 256",
    Error: "a finite number of at least 0", Number: "a number",
}  # fmt: skip
# Whole numbers beyond these are of no use, and overflow what they are given to.
LARGEST = {int: 1 << 32, float: 1 << 53}
# What values of these kinds are beside what their supertype is.
NAME = r"\w[\w.+-]{0,199}"
MORE: dict[Any, Callable[[Any], object]] = {
    float: math.isfinite,
    Name: re.compile(NAME, re.ASCII).fullmatch,
    FileName: re.compile(rf"{NAME}(/{NAME})*", re.ASCII).fullmatch,
    Count: lambda value: value >= 0,
    Size: lambda value: value >= 1,
    GreyLevels: lambda value: 2 <= value <= 256,
    Error: lambda value: 0 <= value < math.inf,
}


def check_record(record: Any, form: Any, where: object) -> None:
    """Raises UserError for a field that is missing or of another kind than the form has.

    Args:
        record: as JSON gives it. Fields that the form does not have are left alone.
        form: a TypedDict, of which fields may not be missing unless it says so; a dataclass, of
            which those without a default may not; or the type of an object, such as
            ``dict[Name, int]``. A tuple is a list in JSON, and a whole number is a number.
            Numbers are finite.
        where: the file.
    """
    if wrong := _wrong(record, form, where):
        raise UserError(wrong)


def _wrong(value: Any, kind: Any, where: object) -> str:
    """The first mistake in a value, in words; "" if it is of this kind."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is NotRequired:
        return _wrong(value, inside[0], where)
    if origin in (Union, UnionType):
        found = [(_wrong(value, each, where), get_origin(each) or each) for each in inside]
        if not all(words for words, _ in found):
            return ""
        within = [words for words, of in found if of is type(value) or _has_fields(value, of)]
        return (within or [_must(value, kind, where)])[0]
    if _has_fields(value, kind):
        return _wrong_field(value, kind, where)
    if origin is type(value) and origin in (dict, list):
        pairs = value.items() if origin is dict else enumerate(value, 1)
        names = value if origin is dict else ()
        keys = (_wrong(name, inside[0], f"{where}: a name in it") for name in names)
        values = (_wrong(each, inside[-1], f"{where}: {name}") for name, each in pairs)
        return next(filter(None, chain(keys, values)), "")
    return "" if _fits(value, kind) else _must(value, kind, where)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind without fields and names."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = inside[:1] * len(value) if inside[-1] is ... else inside
        pairs = zip(value, kinds, strict=False)
        return len(value) == len(kinds) and not any(_wrong(each, of, "") for each, of in pairs)
    if kind is Any or origin or is_typeddict(kind):
        return kind is Any
    of = getattr(kind, "__supertype__", kind)
    return is_of(value, of) and bool(MORE.get(kind, lambda value: True)(value))


def _wrong_field(record: Mapping[str, Any], form: Any, where: object) -> str:
    """The first mistake in the fields of a form."""
    required = getattr(form, "__required_keys__", ())
    if is_dataclass(form):
        required = [f.name for f in fields(form) if f.default is f.default_factory is MISSING]
    for name, kind in form.__annotations__.items():
        if name in record:
            if words := _wrong(record[name], kind, f"{where}: {name}"):
                return words
        elif name in required:
            return f"{where}: it lacks {name}; repair it, or make it again"
    return ""


def _has_fields(value: Any, kind: Any) -> bool:
    return isinstance(value, Mapping) and (is_typeddict(kind) or is_dataclass(kind))


def _must(value: Any, kind: Any, where: object) -> str:
    shown = repr(value)
    shown = shown if len(shown) < 40 else WORDS.get(type(value), shown[:40])
    return f"{where} must be {_words(kind)}, not {shown}"


def is_of(value: Any, kind: type) -> bool:
    """Whether a value is of this type. A whole number is a number, too; true and false are not."""
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
