"""The speed benchmark: `command` is the program, `cases` the workloads, `baselines` plain loops, `breakdown` times a round."""

from fedbench.bench.command import main, parser

__all__ = ["main", "parser"]
