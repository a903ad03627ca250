"""Attributes of the page's tables by which its script sorts and filters rows, and hides columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup

from fedbench.report.tables.grid import Cell, Grid, Row


@dataclass(frozen=True)
class CellLinks:
    """Numbers of the report's settings and methods, which connect cells with the runs behind them."""

    settings: Mapping[str, int]
    labels: Mapping[str, int]

    @classmethod
    def of(cls, runs: pd.DataFrame) -> CellLinks:
        """The links of a frame of runs, with settings and methods in its order."""
        return cls(
            {setting: i for i, setting in enumerate(dict.fromkeys(runs["setting"]))},
            {label: i for i, label in enumerate(dict.fromkeys(runs["label"]))},
        )

    def place(self, setting: str) -> int:
        """The number of a setting; -1 if it has none."""
        return self.settings.get(setting, -1)

    def behind(self, cell: Cell, grid: Grid) -> Markup:
        """The attributes of a cell: its value for sorting, its setting for filtering, and its method."""
        value = "" if cell.value is None or not np.isfinite(cell.value) else f' data-v="{cell.value:.9g}"'
        if cell.place is None:
            return Markup(value)  # noqa: S704 - a number
        setting, label = self.place(cell.place[0]), self.labels.get(cell.place[1], -1)
        hides = f' data-in="{setting}"' if grid.corner == "Method" else ""
        return Markup(f'{value} data-s="{setting}" data-l="{label}"{hides}')  # noqa: S704 - numbers

    def inside(self, group: int, grid: Grid) -> Markup:
        """The setting of a group of columns, so that the page can hide the group with its cells."""
        width = sum(len(titles) for _, titles in grid.groups[:group])
        places = [row.cells[width].place for row in grid.rows]
        numbers = {self.place(place[0]) for place in places if place}
        return Markup(f' data-in="{numbers.pop()}"' if grid.corner == "Method" and len(numbers) == 1 else "")  # noqa: S704

    def whose(self, row: Row, grid: Grid) -> Markup:
        """The key by which the page filters a row: the method's name, or the setting's number."""
        if grid.corner == "Method":
            return Markup(' data-method="{}"').format(row.label)
        return Markup(' data-in="{}"').format(self.place(row.label))

    @staticmethod
    def column_names(grid: Grid) -> list[str]:
        """The name of each column when a row is shown alone."""
        return [f"{', '.join(lines)}: {title}" for lines, titles in grid.groups for title in titles]
