"""Reads the small files of a run's folder. Each reader checks a file's shape, and reports an odd file instead of failing.

A reader takes a list `problems`, to which it adds a sentence for each odd file or line; the file or line itself is ignored.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from fedbench.base import record_schema

JOB_ID = re.compile(r"\d+(_\d+)?")  # a Slurm job, or a task of a job array
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


TEXT, NUMBER = Field(_is_text, "text"), Field(_is_number, "a finite number")
COUNT = Field(_is_count, "a whole number from 0 on")
REQUIRED_TEXT = Field(_is_text, "text", required=True)

PROGRESS: Shape = {
    "round": COUNT,
    "rounds": COUNT,
    "time": NUMBER,
    "seconds": NUMBER,
    "images_per_second": Field(lambda value: value is None or _is_number(value), "a finite number or null"),
    "device": TEXT,
}
NOTE: Shape = {
    "kind": REQUIRED_TEXT,
    "reason": TEXT,
    "time": NUMBER,
    "round": COUNT,
    "pid": COUNT,
    "started": TEXT,
}
FAILURE: Shape = {"kind": REQUIRED_TEXT, "reason": TEXT, "log": TEXT, "round": COUNT}
OWNER: Shape = {
    "host": REQUIRED_TEXT,
    "pid": Field(lambda value: _is_count(value) and value > 0, "a whole number from 1 on", required=True),
    "started": REQUIRED_TEXT,
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
    "packages": Field(
        lambda value: isinstance(value, dict) and all(map(_is_text, value.values())), "a mapping of names to versions"
    )
}
SEAL: Shape = {
    name: Field(lambda value: _is_text(value) and len(value) == 64, "a SHA-256 checksum")
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


def _or_null(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def misfit(value: Any, shape: Shape) -> str:
    """Why `value` is not a mapping of this shape; "" if it is. Keys outside the shape may hold anything."""
    if not isinstance(value, dict):
        return f"expected a mapping, found {_shortened(value)}"
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
    """The mapping in a JSON file; empty if the file is absent or odd."""
    if (data := content(path, problems)) is None:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        problems.append(f"{path}: not JSON: {data[:40]!r}; it is ignored")
        return {}
    if problem := misfit(value, shape):
        problems.append(f"{path}: {problem}; it is ignored")
        return {}
    checked: dict[str, Any] = value
    return checked


def lines(path: Path, data: bytes, shape: Shape, problems: list[str]) -> list[tuple[bytes, dict[str, Any]]]:
    """(text, value) of every whole line of this shape in `data`, the content of `path`.

    A last line without a line break was cut by a kill. It is ignored, and not reported as a problem.
    """
    *whole, _ = data.split(b"\n")
    checked = []
    for number, line in enumerate(whole, 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            problems.append(f"{path}, line {number}: not JSON: {line[:40]!r}; it is ignored")
            continue
        if problem := misfit(value, shape):
            problems.append(f"{path}, line {number}: {problem}; it is ignored")
        else:
            checked.append((line + b"\n", value))
    return checked


def checksum(path: Path) -> str:
    """The SHA-256 of a file, as 64 hex digits. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
