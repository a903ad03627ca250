"""The leaderboard: a page of tables made from files of published runs."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from pathlib import Path

import numpy as np
import pytest

from fedbench.base.home import HOME
from fedbench.base.records import config_hash
from fedbench.cli import leaderboard as command
from fedbench.report import leaderboard, published_runs
from fedbench.report.answer import Answer, Control, Lead
from fedbench.report.leaderboard import boards
from fedbench.report.published_rows import PUBLISHED
from fedbench.report.published_runs import PublishedRun
from fedbench.report.selection import ReportError
from fedbench.report.tables.text import markdown as escaped
from reports import make_results

DEMO = PUBLISHED / "quickstart.parquet"


@pytest.fixture(scope="module")
def page() -> str:
    return leaderboard.render([DEMO])


def rows_of(page: str, board: int) -> list[list[str]]:
    """The cells' texts of each row of a table."""
    section = page.split("<section ")[board].split("</table>")[0]
    lines = re.findall(r"<tr[^>]*><th class=\"name\" scope=\"row\">(.*?)</tr>", section, re.DOTALL)
    cells = [re.split(r"</t[hd]>\s*<td[^>]*>|</t[hd]>", row) for row in lines]
    return [[re.sub(r"<[^>]+>", "", cell).strip() for cell in row if cell.strip()] for row in cells]


def test_a_table_s_numbers_are_those_of_the_published_records(page: str) -> None:
    runs = [run for run in published_runs.read(DEMO) if run.identity["partition"]["name"] == "dirichlet"]
    rows = {row[0]: row for row in rows_of(page, 1)}
    assert set(rows) - {"head_only †"} == {run.label for run in runs} - {"head_only"}
    for label in ("fedvpt", "fedncm + log-prior"):
        values = [100 * run.records[-1]["mean_accuracy"] for run in runs if run.label == label]
        assert rows[label][1] == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
        (sent,) = {
            run.records[-1]["total_bytes_up"] + run.records[-1]["total_bytes_down"]
            for run in runs
            if run.label == label and run.identity["seed"] == 0
        }
        assert rows[label][6].split()[0][:3] == f"{sent / 1e6:.2f}"[:3]
        assert rows[label][9:] == ["3", "given", "quickstart"]
    means = [float(row[1].split()[0]) for row in rows_of(page, 1)]
    assert means == sorted(means, reverse=True)


def test_the_page_shows_controls_and_loads_nothing(page: str) -> None:
    assert "Control: the client's log class prior alone takes <b>fedvpt</b> from 41.2 to 55.4 %" in " ".join(
        page.split()
    )
    assert page.count("<section id=") == 2
    assert not re.findall(r"(?:src|href)=\"(?!#|data:,)", page)
    assert "http" not in page


def test_runs_of_another_budget_or_of_trials_are_not_in_the_same_table(tmp_path: Path) -> None:
    one = published_runs.read(DEMO)[0]
    with pytest.raises(ReportError, match="no runs other than trials"):
        leaderboard.render([_file(tmp_path / "trials.parquet", [_changed(one, tuning={"trial_of": "A"})])])
    longer = _changed(one, identity={**one.identity, "clients": {**one.identity["clients"], "per_round": 4}})
    text = leaderboard.render([_file(tmp_path / "two.parquet", [one, longer])])
    assert text.count("<section id=") == 2
    assert "5 of 20 clients" in text
    assert "4 of 20 clients" in text


def test_text_of_a_file_is_escaped(tmp_path: Path) -> None:
    one = published_runs.read(DEMO)[0]
    text = leaderboard.render([_file(tmp_path / "odd.parquet", [_changed(one, label="<script>alert(1)</script>")])])
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_a_damaged_or_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.parquet").write_text("no parquet")
    for name in ("bad.parquet", "missing.parquet"):
        assert command.main([str(tmp_path / name), "--out", str(tmp_path / "board")]) == 2
        assert name in capsys.readouterr().err
    assert not (tmp_path / "board").exists()


def test_the_page_of_this_repository_was_made_from_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`fedbench leaderboard` was run after the last change of results/published."""
    assert command.main(["--check", "--out", str(HOME / "docs" / "leaderboard")]) == 0
    stale = tmp_path / "index.html"
    stale.write_text((HOME / "docs" / "leaderboard" / "index.html").read_text().replace(leaderboard.checksum(DEMO), ""))
    assert command.main(["--check", "--out", str(tmp_path)]) == 1
    assert "was not made from the present quickstart.parquet" in capsys.readouterr().err


def test_the_page_of_results_was_made_from_the_same_files() -> None:
    """`make results` was run after the last change of results/published."""
    text = (HOME / "docs" / "results.md").read_text()
    for path in PUBLISHED.glob("*.parquet"):
        assert f"`{path.name}`: " in text
        assert leaderboard.checksum(path) in text


def test_tables_are_put_between_the_marks_of_a_page_and_nothing_else_changes() -> None:
    page = f"before\n{make_results.BEGIN}\nold\n{make_results.END}\nafter\n"
    once = make_results.with_tables(page, "new")
    assert once == f"before\n{make_results.BEGIN}\n\nnew\n\n{make_results.END}\nafter\n"
    assert make_results.with_tables(once, "new") == once
    with pytest.raises(ValueError, match="lacks"):
        make_results.with_tables("no marks", "new")


def test_markdown_tables_have_the_numbers_of_the_page(page: str) -> None:
    text = leaderboard.markdown([DEMO])
    for board in (1, 2):
        for row in rows_of(page, board):
            line = next(
                line for line in text.splitlines() if line.startswith(f"| {escaped(row[0])} |") and row[1] in line
            )
            assert [cell.strip(" *≈") for cell in line.split("|")[2:9]] == [cell.rstrip("≈") for cell in row[1:8]]


def test_an_accuracy_is_in_percent_with_its_spread_its_seeds_and_its_mark() -> None:
    row = {"mean": 0.4567, "std": 0.0123, "n": 3, "of": 3, "mark": "best"}
    assert boards._accuracy(row) == boards.BoardCell("45.7 ± 1.2", 0.4567, "best")
    one_seed = {**row, "std": math.nan, "n": 1, "mark": ""}
    assert boards._accuracy(one_seed) == boards.BoardCell("45.7 (1/3)", 0.4567, "")
    assert boards._accuracy({**row, "mean": math.nan}) == boards.BoardCell("–", None, "")
    assert boards._cost(1_234_567, "B") == boards.BoardCell("1.23 MB", 1_234_567)
    assert boards._cost(330, "") == boards.BoardCell("330", 330)
    assert boards._cost(math.nan, "B") == boards.BoardCell("–")


def test_titles_leave_out_how_often_a_split_may_be_drawn_again_unless_that_tells_settings_apart() -> None:
    joint = boards.JOINT
    shards, wide, again = (
        f"glyphs{joint}shards(min_train=1, redraws={redraws}, each={each})"
        for redraws, each in ((20, 2), (23, 5), (23, 2))
    )
    assert boards._titles({shards, wide}) == {shards: "glyphs, shards 2", wide: "glyphs, shards 5"}
    assert boards._titles({shards, again}) == {shards: "glyphs, shards 20", again: "glyphs, shards 23"}
    assert boards._commas(shards) == shards.replace(joint, ", ")


def test_a_table_in_markdown_is_this_text() -> None:
    cells = [boards.BoardCell("50.0 ± 1.0", 0.5, "best"), boards.BoardCell("49.0", 0.49, "tied")]
    cells += [boards.BoardCell(text) for text in ("–", "48.0", "330", "1.23 MB", "2 M", "3 M")]
    row = boards.BoardRow("A_1", reference=True, cells=tuple(cells), seeds=3, tuned=True, source="x")
    plain = dataclasses.replace(row, label="B", reference=False, tuned=False, cells=tuple(cells[2:] + cells[:2]))
    lead, over = Lead("B", "+1.5", "clear: +0.5 to +2.5"), Lead("R", "-2.0", "may be luck: -5.0 to +1.0")
    answer = Answer("x", "A_1", "50.0 ± 1.0", lead, ("C", "D"), over)
    board = boards.Board(
        "glyphs", "g", "9 rounds", 3, answer, [Control("B", "B + prior", (("g", 10.0, 20.04),))], [row, plain], []
    )
    assert leaderboard._markdown(board).splitlines() == [
        "### glyphs: 9 rounds; 3 seeds",
        "A\\_1 has the largest mean accuracy, 50.0 ± 1.0 %; +1.5 points over B (clear: +0.5 to +2.5); "
        "-2.0 points over the best reference, R (may be luck: -5.0 to +1.0). Not distinguishable from it: C, D.",
        "",
        "- The log class prior alone takes B from 10.0 to 20.0 %.",
        "",
        "| Method | Mean | Worst | Bottom 10 % | New, mean | Trained | Sent | MACs | MACs/image | Seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| A\\_1 † (tuned) | **50.0 ± 1.0** | 49.0 ≈ | – | 48.0 | 330 | 1.23 MB | 2 M | 3 M | 3 |",
        "| B | – | 48.0 | 330 | 1.23 MB | 2 M | 3 M | **50.0 ± 1.0** | 49.0 ≈ | 3 |",
    ]
    assert leaderboard._answer(dataclasses.replace(board, answer=None)) == "No contestant is done with all seeds.\n"
    alone = dataclasses.replace(answer, next=None, reference=None, tied=())
    text = leaderboard._answer(dataclasses.replace(board, answer=alone))
    assert text == "A\\_1 has the largest mean accuracy, 50.0 ± 1.0 %.\n"


def test_a_run_of_two_files_is_shown_once_and_named_after_the_first(tmp_path: Path) -> None:
    runs = published_runs.read(DEMO)[:3]  # fedncm with seed 0, and the same with the log prior with seeds 0 and 1
    first, second = _file(tmp_path / "first.parquet", runs[:2]), _file(tmp_path / "second.parquet", runs)
    (board,), sources = boards.read_boards([first, second])
    assert [(source.name, source.runs) for source in sources] == [("first.parquet", 2), ("second.parquet", 3)]
    assert sources[0].checksum == hashlib.sha256(first.read_bytes()).hexdigest()[:16]
    assert {row.label: (row.source, row.seeds) for row in board.rows} == {
        "fedncm": ("first", 1),
        "fedncm + log-prior": ("first, second", 2),
    }
    assert board.seeds == 2
    assert "rounds of 5 of 20 clients, 1 local epoch, batches of" in board.details
    twice = [_changed(run, identity={**run.identity, "local": {**run.identity["local"], "epochs": 2}}) for run in runs]
    (other,), _ = boards.read_boards([_file(tmp_path / "twice.parquet", twice)])
    assert " clients, 2 local epochs, batches of" in other.details


def _changed(run: PublishedRun, **changes: object) -> PublishedRun:
    """`run` with other fields, and the name and hashes that belong to its identity."""
    run = dataclasses.replace(run, **changes)  # type: ignore[arg-type]
    digest = config_hash(run.identity)
    name = f"{run.name.rsplit('-', 1)[0]}-{digest[:8]}"
    records = [{**record, "config_hash": digest, "run": name} for record in run.records]
    return dataclasses.replace(run, name=name, records=records)


def _file(path: Path, runs: list[PublishedRun]) -> Path:
    published_runs.write(path, runs)
    return path
