"""The environment of a run: env.json in its folder, and a warning if an earlier part of the run had another environment."""

from __future__ import annotations

import logging
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fedbench.base import processes, provenance, run_files
from fedbench.base.records import RunFolder
from fedbench.base.storage import write_atomically

log = logging.getLogger("fedbench")

# Keys of env.json that may affect results.
CHANGES_NUMBERS = ("python", "commit", "dirty", "code", "device", "threads", "pack", "compile")


def write(folder: RunFolder, more: Mapping[str, Any]) -> dict[str, Any]:
    """Write env.json, this process and `more`, into a run's folder, and return it. Raises OSError."""
    here = _process() | dict(more)
    for sentence in folder.mend():
        log.warning("%s", sentence)
    if before := folder.environment():
        changed = [(key, before.get(key), here[key]) for key in CHANGES_NUMBERS if before.get(key) != here[key]]
        packages = before.get("packages", {})
        changed += [
            (name, packages[name], version)
            for name, version in here["packages"].items()
            if packages.get(name, version) != version
        ]
        if changed:
            log.warning("the run was started in another environment; its numbers mix both: %s", changed)
    write_atomically(folder.path / "env.json", run_files.encode(here, indent=2))
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
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "commit": commit and commit.rstrip("+"),
        "dirty": commit and commit.endswith("+"),
        "command": shlex.join(sys.argv),
        "job": processes.process().job or None,
        "node": os.environ.get("SLURMD_NODENAME"),
        "packages": _packages(),
    }


@cache
def processor() -> str:
    """The processor's model and the instructions that torch uses on it, which decide the last bits of sums."""
    model = platform.machine()
    with suppress(OSError):
        names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = names[0].strip() if names else model
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


@cache
def _packages() -> dict[str, str]:
    """{name: version} of the installed packages, from the names of their metadata folders, since opening each takes time."""
    stems = [path.stem for folder in sys.path if Path(folder).is_dir() for path in Path(folder).glob("*.dist-info")]
    return dict(sorted(stem.rsplit("-", 1) for stem in stems if "-" in stem))
