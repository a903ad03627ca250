"""The main table on a terminal, with as many settings as fit, and the notes below it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fedbench.report.statistics import Ranking
from fedbench.report.tables import grid
from fedbench.report.tables.metrics import REFERENCE, TIE

BLOCKS = 8  # most blocks of settings that the terminal shows


def show(
    console: Console,
    summary: pd.DataFrame,
    metrics: Sequence[str],
    spread: grid.Spread,
    ranking: Ranking | None = None,
) -> None:
    """Print the main table of `summary`."""
    settings = [str(setting).split(" · ") for setting in summary["setting"].unique()]
    shared = [part for part in settings[0] if all(part in other for other in settings)] if len(settings) > 1 else []
    if shared:
        console.print(Text(f"All settings: {' · '.join(shared)}", style="bold"), "\n")
    wide = console.options.update(max_width=10_000)
    for each in (3, 2, 1):
        blocks = grid.main_grids(summary, each, metrics, spread, ranking)
        tables = [_table(block, shared) for block in blocks[-BLOCKS:]]
        if max(Measurement.get(console, wide, table).maximum for table in tables) <= console.width:
            break
    if len(blocks) > BLOCKS:
        console.print(
            Text(f"The last {BLOCKS} of {len(blocks)} blocks of settings; the page shows all.", style="bold"), ""
        )
    for table in tables:
        console.print(table, "")


def _table(block: grid.Grid, shared: Sequence[str]) -> Table:
    """A column for each setting with its metrics side by side, so that a heading has the width of all of them."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2))
    table.add_column("Method", vertical="bottom")
    columns, start = [], 0
    for lines, titles in block.groups:
        cells = [[_cell(cell) for cell in row.cells[start : start + len(titles)]] for row in block.rows]
        rows = _aligned([[Text(title) for title in titles], *cells])
        heads = [Text(line) for line in lines if line not in shared]
        heads = [line for (line,) in _padded([[line] for line in [*heads, rows[0]]])]
        table.add_column(Text("\n").join(heads), vertical="bottom")
        columns.append([Text(" " * (len(heads[0]) - len(row))) + row for row in rows[1:]])
        start += len(titles)
    for number, row in enumerate(block.rows):
        label = Text(row.label + (f" {REFERENCE}" if row.reference else ""))
        table.add_row(label, *(column[number] for column in columns))
    return table


def _cell(cell: grid.Cell) -> Text:
    text = Text()
    text.append(cell.number, style="bold" if cell.mark == "best" else "")
    text.append(TIE if cell.mark == "tied" else "")
    text.append((" " if cell.number and cell.note else "") + cell.note, style="dim")
    return text


def _aligned(rows: Sequence[Sequence[Text]]) -> list[Text]:
    """The cells of each row, joined with aligned numbers. A tie mark follows its column."""
    tied = [any(row[i].plain.endswith(TIE) for row in rows) for i in range(len(rows[0]))]
    hung = [
        [cell + Text(" " * (some and not cell.plain.endswith(TIE))) for cell, some in zip(row, tied, strict=True)]
        for row in rows
    ]
    return [Text("  ").join(row) for row in _padded(hung)]


def _padded(rows: Sequence[Sequence[Text]]) -> list[list[Text]]:
    """Each cell, padded on the left to the width of its column. Rich would cut off padding on the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [[Text(" " * (width - len(cell))) + cell for cell, width in zip(row, widths, strict=True)] for row in rows]


def tell(console: Console, remarks: Sequence[str], alarms: Sequence[str], files: Sequence[Path]) -> None:
    """Print remarks, at most ten alarms, and the paths of the files."""
    for line in remarks:
        console.print(Text(line, style="dim"))
    for alarm in alarms[:10]:
        console.print(Text(f"WARNING: {alarm}", style="bold yellow"))
    if len(alarms) > 10:
        console.print(Text(f"WARNING: {len(alarms) - 10} more, see the page", style="bold yellow"))
    console.print()
    for path in files:
        console.print(Text(str(path)), soft_wrap=True)
