"""How fast fedbench is here: `command` is the program, `cases` what runs, `contenders` beside it, `breakdown` the parts."""

from fedbench.bench.command import main, parser

__all__ = ["main", "parser"]
