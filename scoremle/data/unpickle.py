"""Pickles of CIFAR and ImageNet batches, without what makes pickles dangerous.

A pickle is a program that calls what it names. Here the names stand for the five functions below,
which can make an array of numbers and nothing else; any other name is refused before it is called.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from scoremle.errors import UserError

__all__ = ["unpickle"]


def _reconstruct(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """What numpy pickles first: an empty array, whose state follows."""
    return np.ndarray((0,), np.uint8)


def _frombuffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """What numpy pickles by protocol 5."""
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _scalar(dtype: Any, content: bytes) -> Any:
    return np.frombuffer(content, dtype, count=1)[0]


def _dtype(code: Any, *_: Any) -> np.dtype:
    return np.dtype(code)


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes by protocol 2."""
    if encoding != "latin1":
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")


_NUMPY: dict[str, Any] = {
    "multiarray._reconstruct": _reconstruct,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _frombuffer,
}
ALLOWED: dict[str, Callable[..., Any]] = {
    **{f"numpy.{core}.{name}": f for core in ("core", "_core") for name, f in _NUMPY.items()},
    # Named as the kind that _reconstruct should make, and never called.
    "numpy.ndarray": _reconstruct,
    "numpy.dtype": _dtype,
    "_codecs.encode": _latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise UserError(
                f"it names {module}.{name}, which could run code; only arrays are read"
            ) from None


def unpickle(content: bytes, where: str) -> Any:
    """What a pickle of arrays and plain containers holds; text of Python 2 is given as bytes.

    Raises UserError, which begins with ``where``, for anything else.
    """
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except UserError as error:
        raise UserError(f"{where}: refused: {error}") from None
    except Exception as error:  # a damaged pickle may raise anything
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{where}: not a pickle, or a damaged one ({text}); fetch it again"
        ) from error
