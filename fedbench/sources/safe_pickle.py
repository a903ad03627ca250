"""Reads pickles of plain data (containers, text, numbers, arrays of them) without running code in them.

A pickle is a program that may call anything it can import. Here it can import four names, and gets substitutes for them.
NumPy's own unpickling is not used; `numpy.frombuffer` makes arrays from checked bytes.
"""

from __future__ import annotations

import io
import pickle
import re
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedbench.data import DataError

PLAIN_DTYPE = re.compile(r"[<>|=]?([biuf][1248]|b1|[SU][1-9][0-9]{0,4})")
OBJECT_DTYPE = re.compile(r"\|?O[48]?")  # for text only: columns of names from pandas


def load_pickle(content: bytes, source: str) -> Any:
    """The object in a pickle; its byte strings become text in Latin-1 (one character per byte).

    Also reads files of Python 2. Raises DataError, which names `source`, if the pickle is broken or asks for anything
    else. No code of the pickle has run then.
    """
    try:
        return _finish(_Unpickler(io.BytesIO(content), encoding="latin1").load(), {})
    except Exception as error:  # a hostile file can make the unpickler raise any error
        raise DataError(
            f"{source}: expected a pickle of plain data and NumPy arrays, found {type(error).__name__}: {error}"
        ) from error


class _DType:
    """A substitute for numpy.dtype."""

    __slots__ = ("order", "text")

    def __init__(self, text: object, align: object = False, copy: object = False) -> None:
        self.text, self.order = text, ""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, subarray, names, fields = state[:5]  # a version, and the parts of compound types
        if order not in ("<", ">", "|", "=") or any(part is not None for part in (subarray, names, fields)):
            raise pickle.UnpicklingError("only arrays of plain numbers and text are admitted")
        self.order = order

    def real(self) -> np.dtype[Any]:
        if not isinstance(self.text, str) or not PLAIN_DTYPE.fullmatch(self.text):
            raise pickle.UnpicklingError(f"only arrays of plain numbers and text are admitted, not {self.text!r:.40}")
        dtype = np.dtype(self.text)
        return dtype.newbyteorder("<" if self.order == "<" else ">") if self.order in ("<", ">") else dtype


class _Array:
    """A substitute for the function that rebuilds a numpy.ndarray."""

    __slots__ = ("state",)

    def __init__(self, kind: object, shape: object, code: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def real(self) -> NDArray[Any]:
        _, shape, dtype, fortran, content = self.state
        if not isinstance(dtype, _DType):
            raise pickle.UnpicklingError("an array without a type")
        if isinstance(dtype.text, str) and OBJECT_DTYPE.fullmatch(dtype.text):
            if not (isinstance(content, list) and all(type(item) is str for item in content)):
                raise pickle.UnpicklingError("an array of objects that are not all text")
            flat = np.array(content, dtype=np.str_)
        else:
            if isinstance(content, str):
                content = content.encode("latin1")  # a string of Python 2
            flat = np.frombuffer(content, dtype.real())
        if not (isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)):
            raise pickle.UnpicklingError(f"an array of shape {shape!r:.40}")
        return flat.reshape(shape, order="F" if fortran else "C")


def _encode(text: object, codec: object) -> bytes:
    """A substitute for _codecs.encode, which Python 3 uses to write bytes in protocol 2."""
    if not isinstance(text, str) or codec != "latin1":
        raise pickle.UnpicklingError("bytes that are not written as Latin-1")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    # Python 2 and NumPy 1 say numpy.core, NumPy 2 says numpy._core.
    ADMITTED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): "ndarray",  # only named as an argument
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return self.ADMITTED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"a call of {module_name}.{global_name}, which is not admitted") from None


def _finish(value: Any, done: dict[int, Any]) -> Any:
    """`value` with real arrays for the substitutes, at any depth; `done` keeps a shared part from being converted twice."""
    if id(value) in done:
        return done[id(value)]
    result = value
    if isinstance(value, _Array | _DType):
        result = value.real()
    elif isinstance(value, dict):
        result = {key: _finish(item, done) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        result = type(value)(_finish(item, done) for item in value)
    elif isinstance(value, type) or value is _encode:
        raise pickle.UnpicklingError("a type where data was expected")
    done[id(value)] = result
    return result
