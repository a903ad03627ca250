"""Plain data come out of pickles as they went in; a pickle that asks for anything else is refused, and nothing runs."""

from __future__ import annotations

import os
import pickle
import pickletools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import Call, attack, python2

from fedbench.data import DataError
from fedbench.sources import safe_pickle


def test_the_attack_would_work(tmp_path: Path) -> None:
    pickle.loads(attack(tmp_path / "canary"))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("write", [python2, lambda v: pickle.dumps(v, 3), lambda v: pickle.dumps(v, 4)])
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4", "f4", "<f8", "?"])
def test_plain_data_comes_back(write: Callable[[Any], bytes], dtype: str) -> None:
    matrix = np.arange(6).reshape(2, 3).astype(dtype)
    columns = np.asfortranarray(matrix)
    content = {"data": matrix, "columns": columns, "names": ["a", "b"], "nested": [(1, 2.5, None, True, matrix)]}
    read = safe_pickle.load_pickle(write(content), "file")
    assert list(read) == list(content)
    for array in (read["data"], read["columns"], read["nested"][0][4]):
        assert array.dtype == matrix.dtype
        assert (array == matrix).all()
    assert read["nested"][0][:4] == (1, 2.5, None, True)
    assert read["names"] == ["a", "b"]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("dtype", ["U", "S", object])
def test_lists_of_names_come_back(dtype: Any, protocol: int) -> None:
    names = ["clipart/bird/clipart_029_000014.jpg", "ä"] if dtype != "S" else ["clipart", "b"]
    read = safe_pickle.load_pickle(pickle.dumps((np.array(names, dtype=dtype), names), protocol), "file")
    assert [name.decode() if isinstance(name, bytes) else str(name) for name in read[0]] == names
    assert read[1] == names


def test_the_old_form_is_the_old_form() -> None:
    codes = {code.name for code, _, _ in pickletools.genops(python2({"data": np.zeros(300, np.uint8), "n": ["x"]}))}
    assert {"SHORT_BINSTRING", "BINSTRING", "GLOBAL", "REDUCE", "BUILD"} <= codes
    assert not codes & {"BINUNICODE", "BINBYTES", "SHORT_BINBYTES"}


HOSTILE: dict[str, Callable[[Path], bytes]] = {
    "system, protocol 0": lambda canary: attack(canary, 0),
    "system, protocol 2": lambda canary: attack(canary, 2),
    "system, protocol 5": lambda canary: attack(canary, 5),
    "eval": lambda canary: pickle.dumps(Call(eval, f"open({str(canary)!r}, 'w')")),
    "open": lambda canary: pickle.dumps(Call(open, str(canary), "w")),
    "getattr": lambda canary: pickle.dumps(Call(getattr, 1, "real")),
    "numpy.load": lambda canary: b"cnumpy\nload\n(S'x'\ntR.",
    "dotted name": lambda canary: b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.",
    "another of numpy": lambda canary: b"cnumpy.core.multiarray\nfromfile\n.",
    "instance": lambda canary: b"(S'touch " + str(canary).encode() + b"'\nios\nsystem\n.",
    "a type as data": lambda canary: b"cnumpy\ndtype\n.",
    "state of a type": lambda canary: b"cnumpy\ndtype\n(dS'text'\nS'x'\nsb.",
    "array without state": lambda canary: b"cnumpy.core.multiarray\n_reconstruct\n(I1\nI1\nI1\ntR.",
    "new without init": lambda canary: b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)\x81.",
    "another codec": lambda canary: b"c_codecs\nencode\n(Vx\nVidna\ntR.",
    "a function as data": lambda canary: b"c_codecs\nencode\n.",
    "persistent": lambda canary: b"Pname\n.",
    "extension": lambda canary: b"\x80\x02\x82\x01.",
    "objects": lambda canary: pickle.dumps(np.array([Call(os.system, f"touch '{canary}'")], object), 2),
    "records": lambda canary: pickle.dumps(np.zeros(2, [("a", "i4"), ("b", "f4")]), 5),
    "objects beside text": lambda canary: pickle.dumps(np.array(["a", 1], object), 4),
    "dates": lambda canary: pickle.dumps(np.array(["2020-01-01"], "datetime64[D]"), 2),
    "cut off": lambda canary: python2({"data": np.zeros(300, np.uint8)})[:-30],
    "empty": lambda canary: b"",
    "not a pickle": lambda canary: b"\x1f\x8b some gzip",
    "too small for its shape": lambda canary: python2(np.zeros(100, np.uint8)).replace(b"Kd\x85", b"Ke\x85"),
    "of negative shape": lambda canary: python2(np.zeros(100, np.uint8)).replace(b"Kd\x85", b"J\xff\xff\xff\xff\x85"),
    "huge": lambda canary: python2(np.zeros(100, np.uint8)).replace(b"Kd\x85", b"J\xff\xff\xff\x7f\x85"),
    "endless": lambda canary: b"(lp0\ng0\na.",
}


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_hostile_pickles_are_refused(kind: str, tmp_path: Path) -> None:
    content = HOSTILE[kind](tmp_path / "canary")
    if kind in ("too small for its shape", "huge"):
        assert content != python2(np.zeros(100, np.uint8)), "the test has to change something"
    with pytest.raises(DataError, match=r"^some file: expected a pickle of plain data and NumPy arrays, found "):
        safe_pickle.load_pickle(content, "some file")
    assert not (tmp_path / "canary").exists()


def test_a_pickle_cannot_grow_without_end() -> None:
    nested: list[Any] = []
    for _ in range(60):
        nested = [nested, nested]  # 2 ** 60 lists if each were copied where it occurs
    begin = time.monotonic()
    safe_pickle.load_pickle(pickle.dumps(nested), "file")
    assert time.monotonic() - begin < 5
