"""One look per method throughout a report: colours that colour-blind readers can distinguish, markers and lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

WIDTH = 7.0  # inches: both columns of a two-column paper

# After Okabe and Ito (2008) and Tol's "muted" (2021), without yellow, which is faint on white paper, and black, which is kept
# for references. In this order, methods that share a line style differ in lightness too: a test measures it in grey and as
# people without green cones see it.
COLOURS = ("#D55E00", "#332288", "#CC79A7", "#882255", "#56B4E9", "#117733", "#E69F00")
# The last two are stars with four and eight points.
MARKERS: tuple[Any, ...] = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "d", "h", "*", (4, 1, 0), (8, 1, 0))
LINES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
REFERENCES: tuple[Any, ...] = ((0, (6, 2)), (0, (2, 1)), (0, (6, 1, 1, 1)), (0, (1, 2)))


@dataclass(frozen=True)
class Look:
    """How a method is drawn in all figures; `hollow`: its marker is white inside."""

    colour: str
    marker: Any
    line: Any
    hollow: bool = False

    def dot(self, size: float = 3.6) -> dict[str, Any]:
        """The marker as matplotlib's arguments. Stars are drawn larger, since they look smaller."""
        star = self.marker == "*" or isinstance(self.marker, tuple)
        kept = {"marker": self.marker, "markersize": size * (1.6 if star else 1)}
        if self.hollow:
            return kept | {"markerfacecolor": "white", "markeredgecolor": self.colour, "markeredgewidth": 0.9}
        return kept | {"markeredgecolor": "white", "markeredgewidth": 0.3}


Looks = dict[str, Look]


@contextmanager
def style() -> Iterator[None]:
    """Draw with paper.mplstyle and ignore the user's settings."""
    with mpl.rc_context(mpl.rc_params_from_file(Path(__file__).with_name("paper.mplstyle"), use_default_template=True)):
        yield


def looks(names: Sequence[str], references: Sequence[str] = ()) -> Looks:
    """A look for each label. Neighbours differ in colour, line, marker and filling; no two of 28 share colour and line.

    References are black to grey with broken lines, so that only contestants are coloured.
    """
    contestants = [name for name in names if name not in set(references)]
    by_name = {
        name: Look(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], LINES[i % len(LINES)], i % 2 == 1)
        for i, name in enumerate(contestants)
    }
    for i, name in enumerate(name for name in names if name in set(references)):
        shade = ("#000000", "#6b6b6b")[i % 2]
        marker = MARKERS[(len(contestants) + i) % len(MARKERS)]
        by_name[name] = Look(shade, marker, REFERENCES[i % len(REFERENCES)], i % 2 == 1)
    return by_name
