"""The lines that a watched sweep prints without a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from fedbench.jobs.watch import View, _print_changes


def test_lines_of_runs_that_differ_in_their_aggregation_tell_it() -> None:
    names = ("fedvpt-glyphs-iid-s0-aaaaaaaa", "fedvpt-glyphs-iid-s0-bbbbbbbb")
    labels = ("fedvpt", "fedvpt + fedadam(lr=0.1)")
    text = io.StringIO()
    views = [View(name, label, "running") for name, label in zip(names, labels, strict=True)]
    _print_changes(views, {}, Console(file=text, width=300))
    first, second = (line.partition("running ")[2] for line in text.getvalue().splitlines())
    assert first == names[0]
    assert second == f"{names[1]} [fedvpt + fedadam(lr=0.1)]"
