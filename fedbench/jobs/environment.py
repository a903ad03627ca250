"""Where and with what a run was done: env.json in its folder, and a warning where an earlier part was done elsewhere."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fedbench.base import lease, provenance
from fedbench.base.storage import write_aside

log = logging.getLogger("fedbench")

# Of env.json: what may change numbers.
MIXED = ("python", "commit", "dirty", "code", "device", "threads", "pack", "compile")


def write(folder: Path, more: Mapping[str, Any]) -> dict[str, Any]:
    """Write env.json, this process and `more`, into a run's folder, and return it. Raises OSError."""
    here, path = _process() | dict(more), folder / "env.json"
    if path.exists() and (before := json.loads(path.read_text() or "{}")):
        changed = [(key, before.get(key), here[key]) for key in MIXED if before.get(key) != here[key]]
        changed += [
            (name, before["packages"].get(name), version)
            for name, version in here["packages"].items()
            if before.get("packages", {}).get(name, version) != version
        ]
        if changed:
            log.warning("begun before in another environment; its numbers mix both: %s", changed)
    write_aside(path, json.dumps(here, indent=2).encode())
    return here


def _process() -> dict[str, Any]:
    commit = provenance.commit()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "timm", "numpy")},
        "platform": platform.platform(),
        "hostname": platform.node(),
        "device": device,
        "threads": torch.get_num_threads(),
        "commit": commit and commit.rstrip("+"),
        "dirty": commit and commit.endswith("+"),
        "command": shlex.join(sys.argv),
        "job": lease.process().job or None,
        "node": os.environ.get("SLURMD_NODENAME"),
        "packages": _packages(),
    }


@cache
def _packages() -> dict[str, str]:
    """{name: version} of what is installed, by the names of the folders that say so: to open each takes its time."""
    found = [path.stem for place in sys.path if Path(place).is_dir() for path in Path(place).glob("*.dist-info")]
    return dict(sorted(name.rsplit("-", 1) for name in found if "-" in name))
