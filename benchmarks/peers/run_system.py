"""Run one system in this process: `python -m benchmarks.peers.run_system NAME FOLDER OUT` writes OUT.json and OUT.npz."""

from __future__ import annotations

import importlib
import sys
from importlib import metadata
from pathlib import Path

from benchmarks.peers.task import Log

PACKAGES = ("torch", "timm", "open_clip_torch", "numpy", "pfl", "flwr", "ray")


def main() -> None:
    """Run the system. It is imported by name so that other processes can unpickle its objects."""
    name, folder, out = sys.argv[1:4]
    log = Log()
    values = importlib.import_module(f"benchmarks.peers.{name}").run(Path(folder), log)
    for package in PACKAGES:
        try:
            log.versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    log.write(Path(out), values)


if __name__ == "__main__":
    main()
