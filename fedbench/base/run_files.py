"""The small JSON files of a run's folder. Readers check a file's checksum and shape, and report an odd file instead of failing.

A reader takes a list `problems`, to which it adds a sentence for each odd file or line; the file or line itself is ignored.
A file or line has a checksum of its own, since a flipped bit may leave valid JSON that names another process. Versions up
to 0.1 wrote none, so a file without one is checked by its shape alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import types
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from fedbench.base import record_schema

JOB_ID = re.compile(r"\d+(_\d+)?")  # a Slurm job, or a task of a job array
CHECKSUM = "checksum"  # the key of a file's own checksum
LARGEST = 1 << 100  # far above all counts here, and small enough for a float in every reader's tools


@dataclass(frozen=True)
class Field:
    """A key of a file: which values fit, how the message describes them, and whether the key may be absent."""

    fits: Callable[[Any], bool]
    expected: str
    required: bool = False


Shape = Mapping[str, Field]


def _is_number(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < LARGEST
    return isinstance(value, float) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_nonempty(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_checksum(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64


def _or_null(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


TEXT, NUMBER = Field(_is_text, "text"), Field(_is_number, "a finite number")
COUNT = Field(_is_count, "a whole number from 0 on")
REQUIRED_TEXT = Field(_is_nonempty, "a text that is not empty", required=True)
ANY_TEXT = Field(_is_text, "text", required=True)
REQUIRED_COUNT = Field(_is_count, "a whole number from 0 on", required=True)
TEXT_OR_NULL = Field(_or_null(_is_text), "text or null")

PROGRESS: Shape = {
    "round": REQUIRED_COUNT,
    "rounds": REQUIRED_COUNT,
    "time": NUMBER,
    "seconds": NUMBER,
    "images_per_second": Field(_or_null(_is_number), "a finite number or null"),
    "device": TEXT,
}
NOTE: Shape = {
    "kind": REQUIRED_TEXT,
    "reason": REQUIRED_TEXT,
    "time": NUMBER,
    "round": COUNT,
    "pid": COUNT,
    "started": TEXT,
}
FAILURE: Shape = {"kind": REQUIRED_TEXT, "reason": REQUIRED_TEXT, "log": REQUIRED_TEXT, "round": COUNT}
OWNER: Shape = {
    "host": REQUIRED_TEXT,
    "pid": Field(lambda value: _is_count(value) and value > 0, "a whole number from 1 on", required=True),
    "started": ANY_TEXT,  # empty of a process that ended at once
    "job": TEXT,
}
JOB: Shape = {
    "scheduler": Field(lambda value: value in ("inline", "local", "slurm"), "inline, local or slurm", required=True),
    "log": REQUIRED_TEXT,
    "sweep": REQUIRED_TEXT,
    "id": Field(lambda value: _is_text(value) and bool(JOB_ID.fullmatch(value)), "the id of a Slurm job"),
    "cluster": TEXT,
    "owners": Field(
        lambda value: isinstance(value, list) and bool(value) and not any(misfit(owner, OWNER) for owner in value),
        "a list of processes",
    ),
}
ENVIRONMENT: Shape = {
    **dict.fromkeys(("python", "torch", "timm", "numpy", "command", "code"), REQUIRED_TEXT),
    **dict.fromkeys(("platform", "hostname", "device"), ANY_TEXT),
    **dict.fromkeys(("commit", "job", "node", "sweep_command"), TEXT_OR_NULL),
    "threads": REQUIRED_COUNT,
    "dirty": Field(_or_null(lambda value: isinstance(value, bool)), "true, false or null"),
    "pack": COUNT,
    "compile": Field(lambda value: isinstance(value, bool), "true or false"),
    "processor": TEXT,
    "packages": Field(
        lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
        "a mapping of names to versions",
        required=True,
    ),
}
SEAL: Shape = {
    name: Field(_is_checksum, "a SHA-256 checksum", required=True)
    for name in ("run.yaml", "records.jsonl", "clients.parquet")
}


@cache
def record_shape() -> Shape:
    """The shape of a line of records.jsonl, from the typed columns of `record_schema`."""
    shape = {}
    for name, column in record_schema.columns().items():
        kinds = set(get_args(column.type)) if isinstance(column.type, types.UnionType) else {column.type}
        # Trials of a tuning read no test data; versions up to 0.1 wrote null for their test metrics.
        nullable = type(None) in kinds or column.part is record_schema.TestMetrics
        (kind,) = kinds - {type(None)}
        fits, expected = {
            str: (_is_text, "text"),
            bool: (lambda value: isinstance(value, bool), "true or false"),
            int: (_is_count, "a whole number from 0 on"),
            float: (_is_share, "a share from 0 to 1") if "accuracy" in name else (_is_number, "a finite number"),
        }[kind]
        shape[name] = Field(_or_null(fits) if nullable else fits, expected + " or null" * nullable, name == "round")
    return shape


def encode(value: Mapping[str, Any], indent: int | None = None) -> bytes:
    """`value` as JSON, with its checksum under one more key."""
    return json.dumps({**value, CHECKSUM: _checksum_of(value)}, indent=indent).encode()


def _checksum_of(value: Mapping[str, Any]) -> str:
    """8 hex digits of a mapping without its checksum: a CRC-32, which no flip of one bit survives."""
    rest = {name: part for name, part in value.items() if name != CHECKSUM}
    return f"{zlib.crc32(json.dumps(rest, sort_keys=True).encode()):08x}"


def misfit(value: Any, shape: Shape, more_keys: bool = False) -> str:
    """Why `value` is not a mapping of this shape; "" if it is.

    `more_keys`: keys outside the shape may hold anything; else each is a misfit.
    """
    if not isinstance(value, dict):
        return f"expected a mapping, found {_shortened(value)}"
    if CHECKSUM in value and value[CHECKSUM] != _checksum_of(value):
        return f"its checksum does not match its content {_shortened(value)}"
    unknown = [] if more_keys else [name for name in value if name not in shape and name != CHECKSUM]
    if unknown:
        return f"unknown key {_shortened(unknown[0])}; known are {', '.join(shape)}"
    for name, field in shape.items():
        if name not in value:
            if field.required:
                return f"{name} is missing"
        elif not field.fits(value[name]):
            return f"{name}: expected {field.expected}, found {_shortened(value[name])}"
    return ""


def _shortened(value: Any) -> str:
    """`value` in at most 60 characters."""
    if isinstance(value, int) and abs(value) >= LARGEST:
        return "a number of more than 100 bits"
    return f"{value!r:.60}"


def content(path: Path, problems: list[str]) -> bytes | None:
    """The bytes of a file; None if it is absent, or if it cannot be read, which is added to `problems`."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror})")
        return None


def mapping(path: Path, shape: Shape, problems: list[str]) -> dict[str, Any]:
    """The mapping in a JSON file, without its checksum; empty if the file is absent or odd."""
    if (data := content(path, problems)) is None:
        return {}
    value, problem = _parsed(data, shape, more_keys=False)
    if problem:
        problems.append(f"{path}: {problem}; it is ignored")
    return value


def lines(
    path: Path, data: bytes, shape: Shape, problems: list[str], more_keys: bool = False
) -> list[tuple[bytes, dict[str, Any]]]:
    """(text, value without its checksum) of every whole line of this shape in `data`, the content of `path`.

    `more_keys` is as in `misfit`. A last line without a line break was cut by a kill. It is ignored, and reported as a
    problem only if it holds more than a part of a line.
    """
    *whole, rest = data.split(b"\n")
    checked = []
    if rest and _parsed(rest[:-1], shape, more_keys)[0]:
        problems.append(f"{path}: the last line ends in {rest[-1:]!r} instead of a line break; it is ignored")
    for number, line in enumerate(whole, 1):
        value, problem = _parsed(line, shape, more_keys)
        if problem:
            problems.append(f"{path}, line {number}: {problem}; it is ignored")
        else:
            checked.append((line + b"\n", value))
    return checked


def _parsed(text: bytes, shape: Shape, more_keys: bool) -> tuple[dict[str, Any], str]:
    """(the mapping in `text` without its checksum, "") or ({}, what is wrong with it)."""
    try:
        value = json.loads(text)
        problem = misfit(value, shape, more_keys)
    except (ValueError, RecursionError):
        return {}, f"not JSON: {text[:40]!r}"
    if problem:
        return {}, problem
    value.pop(CHECKSUM, None)
    return value, ""


def set_aside(path: Path) -> Path:
    """Move a damaged file to a name of its own beside it, and return that. Raises OSError."""
    for number in itertools.count(1):
        aside = path.with_name(f"{path.name}.damaged-{number}")
        if not aside.exists():
            break
    os.replace(path, aside)
    return aside


def checksum(path: Path) -> str:
    """The SHA-256 of a file, as 64 hex digits. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
