"""The main table on a terminal, as many settings as it has room for, and what is said below it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedbench.tables import grid
from fedbench.tables.metrics import REFERENCE, TIE

BLOCKS = 8  # of settings that the terminal shows


def show(console: Console, summary: pd.DataFrame, metrics: Sequence[str], spread: grid.Spread) -> None:
    """Print the main table of `summary`."""
    name = min(30, max(map(len, summary["label"])) + 2)
    room = console.width - name - 4 - 9 * len(metrics)  # beside the last settings stand average ranks
    each = max(1, min(3, room // (16 * len(metrics))))
    blocks = grid.main_grids(summary, each, metrics, spread)
    if len(blocks) > BLOCKS:
        console.print(
            Text(f"The last {BLOCKS} of {len(blocks)} blocks of settings; the page has all.", style="bold"), ""
        )
    for block in blocks[-BLOCKS:]:
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("Method", overflow="fold")
        for lines, titles in block.groups:
            for title in titles:
                table.add_column(Text("\n".join([*lines, title])), justify="right", overflow="fold")
        for row in block.rows:
            cells = [Text(row.label + (f" {REFERENCE}" if row.reference else ""))]
            for cell in row.cells:
                text = Text(cell.number, style="bold" if cell.mark == "best" else "")
                text.append(TIE if cell.mark == "tied" else "")
                text.append((" " if cell.number and cell.note else "") + cell.note, style="not bold dim")
                cells.append(text)
            table.add_row(*cells)
        console.print(table, "")


def tell(console: Console, remarks: Sequence[str], alarms: Sequence[str], files: Sequence[Path]) -> None:
    """Print remarks, at most ten alarms, and where the files are."""
    for line in remarks:
        console.print(Text(line, style="dim"))
    for alarm in alarms[:10]:
        console.print(Text(f"WARNING: {alarm}", style="bold yellow"))
    if len(alarms) > 10:
        console.print(Text(f"WARNING: {len(alarms) - 10} more, see the page", style="bold yellow"))
    console.print()
    for path in files:
        console.print(Text(str(path)), soft_wrap=True)
