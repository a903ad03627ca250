"""The leaderboard: one static page with a sortable table for each experiment, made from files of published runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2

from fedbench.report.leaderboard.boards import ACCURACIES, COSTS, Board, checksum, read_boards
from fedbench.report.tables.metrics import METRIC, REFERENCE, TIE
from fedbench.report.tables.text import markdown as escaped

__all__ = ["checksum", "markdown", "render"]

HERE = Path(__file__).parent
PAGE_CSS = HERE.parent / "page" / "page.css"
SENT = ("Sent", "bytes in both directions in all rounds")
COLUMNS = [SENT if name == "sent" else (METRIC[name].title, METRIC[name].meaning) for name in COSTS]


def render(paths: Sequence[Path]) -> str:
    """The page of `paths`. The same files give the same text. Raises ReportError if a file cannot be used."""
    boards, sources = read_boards(paths)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string((HERE / "board.html").read_text()).render(
        boards=boards,
        sources=sources,
        accuracies=[METRIC[name] for name in ACCURACIES],
        costs=COLUMNS,
        style=PAGE_CSS.read_text() + (HERE / "board.css").read_text(),
        script=(HERE / "board.js").read_text(),
        tie=TIE,
        reference=REFERENCE,
    )


def markdown(paths: Sequence[Path]) -> str:
    """The tables of `paths` in Markdown, each with its answer, controls and files. Raises ReportError."""
    boards, sources = read_boards(paths)
    used = "\n".join(
        f"- `{source.name}`: {source.runs} runs, code {source.code}, checksum {source.checksum}" for source in sources
    )
    return "\n\n".join([*map(_markdown, boards), "### Files", used])


def _markdown(board: Board) -> str:
    lines = [f"### {escaped(board.title)}: {escaped(board.details)}; {board.seeds} seeds", _answer(board)]
    lines += [
        f"- The log class prior alone takes {escaped(control.method)} from {control.values[0][1]:.1f} to "
        f"{control.values[0][2]:.1f} %."
        for control in board.controls
    ]
    heads = ["Method", *(METRIC[name].title for name in ACCURACIES), *(title for title, _ in COLUMNS), "Seeds"]
    table = [heads, ["---", *("---:" for _ in heads[1:])]]
    for row in board.rows:
        cells = [
            f"**{cell.text}**" if cell.mark == "best" else cell.text + f" {TIE}" * (cell.mark == "tied")
            for cell in row.cells
        ]
        label = escaped(row.label) + f" {REFERENCE}" * row.reference + " (tuned)" * row.tuned
        table.append([label, *cells, str(row.seeds)])
    lines.append("\n" + "\n".join(f"| {' | '.join(row)} |" for row in table))
    return "\n".join(lines)


def _answer(board: Board) -> str:
    """The best method of a table, its leads, and the methods that cannot be distinguished from it; then an empty line."""
    if board.answer is None:
        return "No contestant is done with all seeds.\n"
    best = board.answer
    parts = [f"{escaped(best.best)} has the largest mean accuracy, {best.accuracy} %"]
    for lead, what in ((best.next, ""), (best.reference, "the best reference, ")):
        if lead is not None:
            parts.append(f"{lead.points} points over {what}{escaped(lead.over)} ({lead.sure})")
    tied = f" Not distinguishable from it: {escaped(', '.join(best.tied))}." if best.tied else ""
    return f"{'; '.join(parts)}.{tied}\n"
