"""Pickles of CIFAR and ImageNet batches, read without what makes pickles dangerous.

A pickle is a program: it calls what it names, and gives objects a state that they trust. It is not
run here. Its commands are taken one by one, and those that batches are made of are carried out:
they make numbers, text, lists, tuples, dicts and arrays of numbers. An array is a view of bytes
that the file holds, of one of the types below, made when their count is right. Any other command
or name is refused, and so is a pickle whose commands would make far more than a batch has.
"""

import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from scoremle.bounded import MAX_COMMANDS, File, array_bytes
from scoremle.errors import UserError, damaged

__all__ = ["KNOWN_NAMES", "PickleReader", "PickledName", "of"]

# Numbers alone: an array of them can't point anywhere.
TYPES = ("u1", "i1", "i4", "i8", "f4", "f8")
# The state of a numpy dtype after its byte order, if it has no fields.
PLAIN = (None, None, None, -1, -1, 0)
SHOWN = 80


@dataclass
class _Type:
    """Stands for a dtype."""

    code: str
    order: str = "="


@dataclass(frozen=True)
class PickledName:
    """Stands for a function or class; as ``numpy.ndarray`` it is named and never called.

    Args:
        name: that of the function or class.
    """

    name: str


# Stands for the empty array that numpy pickles first, and whose state follows.
_EMPTY = PickledName("array")

KNOWN_NAMES = {
    **{
        f"numpy.{core}.{name}": PickledName(name.split(".")[1])
        for core in ("core", "_core")
        for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
    },
    "numpy.ndarray": PickledName("ndarray"),
    "numpy.dtype": PickledName("dtype"),
    "_codecs.encode": PickledName("encode"),
}

# Commands that put their own argument on the stack.
VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def unpickle(content: bytes, where: str) -> Any:
    """Reads a pickle of arrays and plain containers; text of Python 2 becomes bytes.

    Raises UserError, which begins with ``where``, for anything else.
    """
    with damaged(where, "not a pickle, or a damaged one"):
        try:
            return PickleReader(len(content)).read(content)
        except UserError as error:
            raise UserError(f"{where}: refused: {error}") from None


class PickleReader:
    """Carries out the commands of one pickle of ``size`` bytes.

    ``names``: the names that it may contain, and their replacements.
    """

    names: ClassVar[Mapping[str, Any]] = KNOWN_NAMES

    def __init__(self, size: int) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        # A pickle may refer to one text many times. What is made of texts must not exceed the
        # file.
        self._to_encode = size

    def read(self, content: bytes | File) -> Any:
        """The content of the pickle. Raises UserError for one that would do more than make it.

        Args:
            content: bytes, or an open file.
        """
        for count, (command, value, _) in enumerate(pickletools.genops(content)):
            if count == MAX_COMMANDS:
                raise UserError(f"it has more than {MAX_COMMANDS} commands, which no batch has")
            self._do(command.name, value)
        return self._stack.pop()

    def _do(self, command: str, value: Any) -> None:
        stack = self._stack
        if command in VALUES:
            stack.append(value)
        elif command in CONSTANTS:
            stack.append(CONSTANTS[command])
        elif command in ("BINSTRING", "SHORT_BINSTRING"):
            stack.append(value.encode("latin1"))
        elif command == "BYTEARRAY8":
            stack.append(bytes(value))
        elif command == "EMPTY_LIST":
            stack.append([])
        elif command == "EMPTY_DICT":
            stack.append({})
        elif command in TUPLES:
            stack.append(tuple(self._last(TUPLES[command])))
        elif command == "MARK":
            self._marks.append(len(stack))
        elif command == "TUPLE":
            stack.append(tuple(self._marked()))
        elif command in ("APPEND", "APPENDS"):
            items = self._marked() if command == "APPENDS" else self._last(1)
            of(list, stack[-1]).extend(items)
        elif command in ("SETITEM", "SETITEMS"):
            items = self._marked() if command == "SETITEMS" else self._last(2)
            # No others: a tuple of tuples may take for ever to hash.
            keys = [of((str, bytes, int), key) for key in items[::2]]
            of(dict, stack[-1]).update(zip(keys, items[1::2], strict=True))
        elif command in ("BINPUT", "LONG_BINPUT"):
            self._memo[value] = stack[-1]
        elif command == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif command in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[value])
        elif command == "GLOBAL":
            stack.append(self._named(*value.split(" ", 1)))
        elif command == "STACK_GLOBAL":
            stack.append(self._named(*self._last(2)))
        elif command == "REDUCE":
            name, arguments = self._last(2)
            stack.append(self.called(of(PickledName, name).name, *of(tuple, arguments)))
        elif command == "BUILD":
            stack.append(self.with_state(*self._last(2)))
        elif command == "BINPERSID":
            stack.append(self.stored(stack.pop()))
        elif command not in ("PROTO", "FRAME", "STOP"):
            raise UserError(f"it uses the command {command}, which no batch of arrays needs")

    def _last(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        if len(items) < count:
            raise ValueError("a command lacks what it works on")
        del self._stack[-count:]
        return items

    def _marked(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def called(self, name: str, *arguments: Any) -> Any:
        """Returns the result of a call that is known here.

        Args:
            name: of the function.
            arguments: of the call.

        Raises ValueError for a call that no batch makes.
        """
        match name, *arguments:
            case "_reconstruct", _, _, _:
                return _EMPTY
            case "dtype", code, _, _:
                return _Type(_one_of(TYPES, code))
            case "_frombuffer", content, of_type, shape, ("C" | "F" as order):
                return _array(content, of_type, shape, order)
            case "scalar", of_type, content:
                return _array(content, of_type, (), "C").item()
            case "encode", str(text), ("latin1" | b"latin1"):
                # How Python 3 writes bytes by protocol 2.
                self._to_encode -= len(text)
                if self._to_encode < 0:
                    raise UserError("it makes more text than it holds")
                return text.encode("latin1")
        raise ValueError(f"no batch of arrays calls {name} so")

    def _named(self, module: Any, name: Any) -> Any:
        full = f"{of(str, module)}.{of(str, name)}"
        if full not in self.names:
            shown = ascii(full[:SHOWN])[1:-1]
            raise UserError(f"it names {shown}, which could run code; only arrays are read")
        return self.names[full]

    def with_state(self, target: Any, state: Any) -> Any:
        """An empty array filled, or a type with its byte order.

        Args:
            target: what the pickle made.
            state: what it sets in it.

        Raises UserError for an array of objects, and ValueError for another state.
        """
        if target is _EMPTY:
            _, shape, of_type, fortran, content = of(tuple, state)
            return _array(content, of_type, shape, "F" if fortran else "C")
        _, order, *rest = of(tuple, state)
        if tuple(rest) != PLAIN:
            raise UserError("it has an array of something else than numbers")
        # In place: the next array names the same type again.
        of(_Type, target).order = _one_of("|<>=", order)
        return target

    def stored(self, key: Any) -> Any:
        """The thing outside of the pickle that it names by a key.

        Args:
            key: the pickle's name for it.

        Raises UserError: a batch names nothing outside of its file.
        """
        raise UserError("it names something outside of it, which no batch of arrays does")


def _array(content: Any, of_type: Any, shape: Any, order: str) -> np.ndarray:
    kind = np.dtype(of(_Type, of_type).order + of_type.code)
    if array_bytes(of(tuple, shape), kind.itemsize) != len(of(bytes, content)):
        raise ValueError(f"an array has {len(content)} bytes, which its shape contradicts")
    return np.ndarray(shape, kind, content, order="F" if order == "F" else "C")


def of(kind: type | tuple[type, ...], value: Any) -> Any:
    """Returns the value if it is of this kind.

    Args:
        kind: a type, or several.
        value: what a pickle gave.

    Raises ValueError for a value of another type.
    """
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} where a batch has something else")
    return value


def _one_of(allowed: Any, value: Any) -> str:
    text = value.decode("ascii") if isinstance(value, bytes) else of(str, value)
    if text not in tuple(allowed):
        raise UserError("it has an array of something else than numbers")
    return text
