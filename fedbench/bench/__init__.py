"""The speed benchmark: `command` is the program, `cases` defines workloads, `baselines` plain loops, `breakdown` timers."""

from fedbench.bench.command import main, parser

__all__ = ["main", "parser"]
