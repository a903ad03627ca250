"""Tables of a small benchmark, every number and every line worked out by hand: the summary, its notes, a terminal."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from written import write_run

from fedbench.report.evidence import gather
from fedbench.report.paper_numbers import beside
from fedbench.report.tables import grid, notes, terminal
from fedbench.report.tables.metrics import METRIC
from fedbench.report.tables.summary import summary, with_last_round

NAN = math.nan


def run(setting: str, label: str, seed: int, state: str, accuracy: float, **more: Any) -> dict[str, Any]:
    names = {"dataset": "d", "partition": "p", "backbone": "b", "method": label.lower(), "reference": label == "R"}
    values = dict.fromkeys(METRIC, NAN) | {"mean_accuracy": accuracy, "worst_accuracy": accuracy - 0.2}
    row = {"run": f"{setting}-{label}-{seed}", "setting": setting, "label": label, "seed": seed, "state": state}
    return {**row, **names, "said": "", "rounds": 20.0, "commit": "abc", "code": None, **values, **more}


# In S, B failed with one seed and was not planned with another; in T, the only run is pending.
RUNS = pd.DataFrame(
    [
        run("S", "R", 0, "done", 0.95),
        run("S", "R", 1, "done", 0.95),
        run("S", "R", 2, "done", 0.95),
        run("S", "A", 0, "done", 0.5),
        run("S", "A", 1, "done", 0.6),
        run("S", "A", 2, "done", 0.7),
        run("S", "B", 0, "done", 0.9),
        run("S", "B", 1, "failed", NAN),
        run("T", "A", 5, "pending", NAN),
    ]
)


# -- the summary -------------------------------------------------------------------------------------------------------
def test_a_summary_counts_and_averages_every_cell() -> None:
    table = summary(RUNS)
    assert list(table["metric"].unique()) == list(METRIC)
    assert len(table) == 4 * len(METRIC)  # three methods in S, one in T
    accuracies = table[table["metric"] == "mean_accuracy"].reset_index(drop=True)
    half = 4.302653 * 0.1 / math.sqrt(3)  # Student's t on two degrees of freedom
    expected = pd.DataFrame(
        [
            ("S", "A", "a", False, 3, 3, 0.6, 0.1, 0.6 - half, 0.6 + half, "best", 3, 0, 0, 0, 0),
            ("S", "B", "b", False, 1, 3, 0.9, NAN, NAN, NAN, "", 1, 0, 0, 1, 1),
            ("S", "R", "r", True, 3, 3, 0.95, 0.0, 0.95, 0.95, "", 3, 0, 0, 0, 0),
            ("T", "A", "a", False, 0, 1, NAN, NAN, NAN, NAN, "", 0, 0, 1, 0, 0),
        ],
        columns=[
            *("setting", "label", "method", "reference", "n", "of", "mean", "std", "low", "high", "mark"),
            *("done", "running", "pending", "failed", "absent"),
        ],
    )
    pd.testing.assert_frame_equal(accuracies[list(expected.columns)], expected, check_dtype=False, rtol=1e-6)
    assert table.loc[table["metric"] == "worst_accuracy", "mean"].tolist()[0] == pytest.approx(0.4)
    assert table.loc[table["metric"] == "seconds", "n"].tolist() == [0] * 4


def test_a_run_has_the_numbers_of_its_highest_round_and_says_what_is_wrong_with_them() -> None:
    plan = pd.DataFrame(
        [(name, state, "", 20.0) for name, state in zip("abcdef", ["done"] * 4 + ["running", "done"], strict=True)],
        columns=["run", "state", "said", "rounds"],
    )
    lines = [("a", 20, 0.5, "1-2"), ("a", 10, 0.9, "1-3"), ("b", 19, 0.5, "1-2"), ("c", 20, NAN, "1-2")]
    lines += [("d", 21, 0.25, "1-2"), ("e", 10, 0.8, "1-2")]
    runs = with_last_round(plan, pd.DataFrame(lines, columns=["run", "round", "mean_accuracy", "code"]))
    assert list(runs["run"]) == list("abcdef")
    assert runs["state"].tolist() == ["done", "failed", "failed", "done", "running", "failed"]
    assert runs["said"].tolist() == [
        "",
        "marked as done, but its records end before its last round",
        "marked as done, but its last record holds no mean accuracy",
        "",
        "",
        "marked as done, but its records end before its last round",
    ]
    np.testing.assert_array_equal(runs["round"], [20, 19, 20, 21, 10, NAN])
    np.testing.assert_array_equal(runs["mean_accuracy"], [0.5, NAN, NAN, 0.25, NAN, NAN])
    np.testing.assert_array_equal(runs["codes"], [2, 1, 1, 1, 1, NAN])
    assert runs.loc[0, "code"] == "1-2"
    empty = with_last_round(plan, pd.DataFrame())
    assert (len(empty), set(empty["state"])) == (6, {"failed", "running"})


@pytest.mark.parametrize(
    ("kind", "mean", "around", "number"),
    [
        ("share", 0.5, (0.125,), "50.0 ± 12.5"),
        ("share", 0.5, (0.25, 0.75), "50.0 [25.0, 75.0]"),
        ("share", 0.5, (NAN,), "50.0"),
        ("seconds", 599.4, (1.0,), "599 s"),
        ("seconds", 600.0, (1.0,), "10 min"),
        ("seconds", 35_999.0, (1.0,), "600 min"),
        ("seconds", 36_000.0, (1.0,), "10.0 h"),
        ("rate", 12.345, (1.0,), "12.3"),
        ("rate", 999.4, (1.0,), "999"),
        ("rate", 1000.0, (1.0,), "1,000"),
        ("rate", 12_345.6, (1.0,), "12,346"),
        ("bytes", 1500.0, (1.0,), "1.50 kB"),
        ("count", 1500.0, (1.0,), "1.50 k"),
    ],
)
def test_a_number_has_the_unit_of_its_kind(kind: str, mean: float, around: tuple[float, ...], number: str) -> None:
    metric = next(metric for metric in METRIC.values() if metric.kind == kind)
    assert grid._number(metric, mean, around) == number


# -- what is said below a table ----------------------------------------------------------------------------------------
def test_the_footer_counts_runs_seeds_and_what_was_checked() -> None:
    runs = RUNS.assign(partition_hash="x", commit=["b2"] + ["a1"] * 7 + [None])
    assert notes.footer(runs, []) == [
        "Runs: 9 (7 done, 1 pending, 1 failed)",
        "Seeds: 0, 1, 2, 5",
        "Rounds: 20",
        "Code: a1, b2; CHANGED between runs, see the warnings",
        "Partition hashes: equal (4 pairs of setting and seed checked)",
    ]
    whole = runs.assign(commit=None, rounds=[10.0] + [20.0] * 8)
    clash = notes.footer(whole, ["S, seed 0: methods were run on different partitions, so ..."])
    assert clash[2:] == [
        "Rounds: 10, 20",
        "Code: unknown",
        "Partition hashes: DIFFERENT within a setting and seed, see the warnings (4 pairs of setting and seed checked)",
    ]


def test_the_legend_explains_what_occurs_and_nothing_else() -> None:
    table = summary(RUNS)
    mean, marks, rest, *letters = notes.legend(table)
    assert mean == "Accuracy in percent, mean ± sample standard deviation over seeds, after the last round."
    assert marks.startswith("Bold: largest mean among contestants with all seeds done. ≈: our test cannot distinguish")
    assert marks.endswith("Settings with fewer than 3 seeds have no marks.")
    assert rest.startswith("(n/m): only n of the setting's m seeds are done")
    assert [line.split(":")[0] for line in letters] == ["P, pending", "F, failed", "–, absent", "†"]
    whole = summary(RUNS[(RUNS["setting"] == "S") & (RUNS["label"] == "A")])
    assert len(notes.legend(whole)) == 2
    assert "fewer than" not in notes.legend(whole)[1]
    assert notes.legend(summary(RUNS[RUNS["seed"] == 0]))[1] == "No cell is marked as best: marks need 3 seeds."


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({}, []),
        (
            {"partition_hash": {"S-A-1": "other"}},
            [
                "S, seed 1: methods were run on different partitions, so their numbers cannot be compared "
                "(same: R, B; other: A)."
            ],
        ),
        (
            {"cohort_hash": {"S-A-0": "other"}},
            [
                "S, seed 0: methods trained other cohorts of clients, so their numbers cannot be compared "
                "(same: R, B; other: A)."
            ],
        ),
        (
            {"data_hash": {"S-R-0": "other"}},
            ["S: methods were run on different data, so their numbers cannot be compared (other: R; same: R, A, B)."],
        ),
        (
            {"backbone_hash": {"S-B-0": "other"}},
            [
                "S: methods were run on different backbone weights, so their numbers cannot be compared "
                "(same: R, A, B; other: B)."
            ],
        ),
        (
            {"rounds": {"S-B-0": 10.0, "S-R-0": 5.0}},  # a reference may have other rounds
            ["S: methods had different budgets (rounds), so their numbers cannot be compared (20: A, B; 10: B)."],
        ),
        (
            {"seed": {"S-A-1": 0}},
            ["S: A has 2 runs with seed 0, of which only the first counts: S-A-0, S-A-1."],
        ),
        (
            {"said": {"S-B-1": "marked as done, but its records end before its last round"}},
            ["S-B-1 is marked as done, but its records end before its last round; it counts as failed."],
        ),
        (
            {"code": {"S-A-0": "1-2", "S-A-1": "1-3", "S-B-0": "2-2"}, "commit": {"S-A-0": None}},
            ["Runs were made by 2 versions of the code: abc.", "A: its plug-ins changed between its runs."],
        ),
        ({"commit": {"S-A-0": "def"}}, ["Runs were made by 2 commits of the code: abc, def."]),
        ({"codes": {"S-A-0": 2.0, "S-A-1": 1.0}}, ["S-A-0: the code changed while it ran, so its records mix versions."]),
    ],
)  # fmt: skip
def test_an_alarm_names_the_place_the_difference_and_the_sides(
    changes: dict[str, dict[str, Any]], sentences: list[str]
) -> None:
    hashes = dict.fromkeys(("partition_hash", "cohort_hash", "data_hash", "backbone_hash"), "same")
    runs = RUNS.assign(**hashes, codes=1.0).set_index("run", drop=False)
    for column, values in changes.items():
        for name, value in values.items():
            runs.loc[name, column] = value
    assert notes.alarms(runs.reset_index(drop=True)) == sentences


def test_the_fifth_side_of_an_alarm_is_counted_and_not_named() -> None:
    assert notes._some(["a", "b", "c", "d"]) == "a, b, c, d"
    assert notes._some(["a", "b", "c", "d", "e", "f"]) == "a, b, c, d, 2 more"


def test_a_chosen_value_at_the_edge_of_its_range_is_told_once_for_each_method_and_setting() -> None:
    tuning = {"edges": ["local.lr", "depth"], "widened": ["depth"], "values": {"local.lr": 0.1, "depth": 3}}
    of_a = RUNS["label"].eq("A")
    runs = RUNS.assign(tuning=[json.dumps(tuning if a else {"values": {"depth": 1}}) for a in of_a])
    expected = [
        f"{setting}: A was tuned to {value} range."
        for setting in "ST"
        for value in ("local.lr = 0.1, at the edge of its", "depth = 3, at the edge of its widened")
    ]
    assert notes.tuning_alarms(runs) == expected
    assert notes.tuning_alarms(runs[~of_a]) == []
    assert notes.tuning_alarms(RUNS) == []


def test_published_runs_are_counted_by_file_and_method() -> None:
    files = {
        "S-B-0": "b.parquet",
        "S-A-0": "a.parquet",
        "S-A-2": "a.parquet",
        "S-R-1": "a.parquet",
        "gone": "c.parquet",
    }
    line = "Published runs, not done here, from {} (runs of each method): {}"
    assert notes.published_lines(RUNS, files) == [
        line.format("a.parquet", "R (1 of 3), A (2 of 4)"),
        line.format("b.parquet", "B (1 of 2)"),
    ]
    assert notes.published_lines(RUNS, {}) == []


# -- the terminal ------------------------------------------------------------------------------------------------------
def shown(table: pd.DataFrame, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    terminal.show(console, table, ("mean_accuracy", "worst_accuracy"), "std")
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_a_terminal_aligns_numbers_and_keeps_marks_behind_them() -> None:
    rows = [(0.5, 0.7, 0.6), (0.71, 0.5, 0.58), (1.0, 1.0, 1.0)]
    runs = [
        run(f"d · {place}", label, seed, "done", value)
        for place in ("p", "q")
        for label, values in zip("ABR", rows, strict=True)
        for seed, value in enumerate(values)
        if (place, label, seed) != ("q", "A", 2)
    ]
    table = summary(pd.DataFrame(runs))
    assert shown(table, 100) == [
        "All settings: d",
        "",
        "                                   p                                           q",
        "Method           Mean         Worst                    Mean                Worst",
        "A         60.0 ± 10.0   40.0 ± 10.0     60.0 ± 14.1 (2/3 –)  40.0 ± 14.1 (2/3 –)",
        "B         59.7 ± 10.6≈  39.7 ± 10.6≈            59.7 ± 10.6          39.7 ± 10.6",
        "R †       100.0 ± 0.0    80.0 ± 0.0             100.0 ± 0.0           80.0 ± 0.0",
        "",
    ]
    assert shown(table, 60)[2:8] == [
        "                                   p",
        "Method           Mean         Worst",
        "A         60.0 ± 10.0   40.0 ± 10.0",
        "B         59.7 ± 10.6≈  39.7 ± 10.6≈",
        "R †       100.0 ± 0.0    80.0 ± 0.0",
        "",
    ]


def test_a_terminal_shows_ten_alarms_and_counts_the_others() -> None:
    console = Console(file=io.StringIO(), width=80)
    terminal.tell(console, ["a remark"], [f"alarm {i}" for i in range(12)], [])
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "a remark",
        *(f"WARNING: alarm {i}" for i in range(10)),
        "WARNING: 2 more, see the page",
        "",
    ]
    console = Console(file=io.StringIO(), width=80)
    terminal.tell(console, [], [f"alarm {i}" for i in range(10)], [])
    assert "more" not in console.file.getvalue()  # type: ignore[attr-defined]


# -- trials and published numbers --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("state", "chosen"), [("done", 1), ("diverged", 1), ("done", None)])
def test_the_chosen_trial_is_that_which_the_tuned_runs_name(tmp_path: Path, state: str, chosen: int | None) -> None:
    """It need not be the best: a trial that leads on one seed alone is not taken."""
    trials = [(0, "done", 20, 0.5), (1, "done", 20, 0.7), (2, state, 20, 0.8), (3, "done", 10, 0.9)]
    folders = []
    for number, state_, rounds, accuracy in trials:
        tuning = {"trial_of": "A", "number": number, "values": {"local.lr": number}}
        config = {"local": {"lr": float(number)}, "rounds": rounds}
        run_state: dict[str, Any] = {"state": state_, "rounds": rounds, "config": config, "tuning": tuning}
        folders.append(write_run(tmp_path, f"trial {number}", method="ma", **run_state, val_mean_accuracy=accuracy))
    named = {} if chosen is None else {"tuning": {"trial": folders[chosen].path.name}}
    write_run(tmp_path, "A", config={"local": {"lr": 9.0}}, **named)
    gathered = gather([], tmp_path).trials.set_index("number").sort_index()
    assert list(gathered.index) == [0, 1, 2, 3]
    assert gathered["chosen"].tolist() == [number == chosen for number in range(4)]
    values = [accuracy if state_ == "done" else NAN for _, state_, _, accuracy in trials]
    np.testing.assert_array_equal(gathered["validation"], values)
    assert gathered["values"].tolist() == [f'{{"local.lr": {number}}}' for number in range(4)]
    assert set(gathered["label"]) == {"A"}


def test_published_numbers_have_their_columns_where_there_are_none() -> None:
    names = ["source", "where", "method", "setting", "metric", "reported", "label", "here", "std", "seeds"]
    rows = beside(RUNS.assign(config="{}"), [])
    assert (list(rows.columns), len(rows)) == ([*names, "difference", "protocol"], 0)
