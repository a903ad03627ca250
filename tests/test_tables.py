"""Tables of runs that the test writes. Every expected number is derived here."""

from __future__ import annotations

import dataclasses
import io
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from written import cell, shown, summarise, write_run

from fedbench.base.record_schema import INFERENCE, TestMetrics, columns
from fedbench.report.evidence import gather
from fedbench.report.tables import contests, grid, notes, terminal, text
from fedbench.report.tables.latex import to_latex
from fedbench.report.tables.metrics import METRICS, PROVENANCE, STATES
from fedbench.report.tables.summary import labels, summary


def test_every_metric_is_a_column_of_a_record_or_beside_the_clients_or_measured_by_a_private_aggregation() -> None:
    known = columns()
    others = [metric.name for metric in METRICS if metric.name not in known]
    assert others == [INFERENCE, "epsilon", "epsilon_poisson"]
    for name in PROVENANCE:
        assert known[name].type in (str, str | None), name
    accuracies = {field.name for field in dataclasses.fields(TestMetrics)}
    assert {metric.name for metric in METRICS if metric.ranked} == accuracies - {"std_accuracy"}


# -- numbers -----------------------------------------------------------------------------------------------------------
def test_mean_and_sample_standard_deviation_over_seeds(tmp_path: Path) -> None:
    for seed, accuracy in enumerate([0.5, 0.6, 0.7]):
        write_run(tmp_path, seed=seed, accuracies={20: accuracy})
    row = cell(tmp_path, "A")
    assert (row["n"], row["of"]) == (3, 3)
    assert row["mean"] == pytest.approx((0.5 + 0.6 + 0.7) / 3)
    assert row["std"] == pytest.approx(math.sqrt((0.1**2 + 0 + 0.1**2) / (3 - 1)))  # = 0.1
    assert shown(tmp_path, "A").number == "60.0 ± 10.0"
    assert cell(tmp_path, "A", "worst_accuracy")["mean"] == pytest.approx(0.6 - 0.2)


def test_the_last_round_is_reported_and_not_the_best(tmp_path: Path) -> None:
    write_run(tmp_path, accuracies={10: 0.9, 20: 0.4})
    write_run(tmp_path, "B", accuracies={20: 0.3, 10: 0.95})  # also where the file is out of order
    assert cell(tmp_path, "A")["mean"] == 0.4
    assert cell(tmp_path, "B")["mean"] == 0.3


def test_one_seed_has_no_standard_deviation(tmp_path: Path) -> None:
    write_run(tmp_path, accuracies={20: 0.5})
    assert math.isnan(cell(tmp_path, "A")["std"])
    assert shown(tmp_path, "A").number == "50.0"


def test_a_metric_that_no_run_has_is_empty_and_left_out_of_the_detail_table(tmp_path: Path) -> None:
    write_run(tmp_path)
    row = cell(tmp_path, "A", "held_out_mean_accuracy")
    assert row["n"] == 0
    assert math.isnan(row["mean"])
    table = summarise(tmp_path)
    ((_, titles),) = grid.detail_grid(table, table["setting"].iloc[0]).groups
    assert titles == ("Mean", "Worst", "10th pct.")


def test_costs_carry_units(tmp_path: Path) -> None:
    write_run(tmp_path)
    table = summarise(tmp_path)
    costs = grid.cost_grid(table, table["setting"].iloc[0])
    costs_ = dict(zip(costs.groups[0][1], (cell.number.strip() for cell in costs.rows[0].cells), strict=True))
    assert costs_["Trained"] == "1.23 M"  # 1,234,567
    assert costs_["Up"] == "20.0 kB"  # 20 rounds of 1000 bytes
    assert costs_["MACs"] == "20.0 G"  # 20 rounds of 10^9
    assert costs_["Time"] == "40 s"  # 2 s a round


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 "), (999, "999 "), (1000, "1.00 k"), (999_499, "999 k"), (999_999, "1.00 M"), (2e18, "2.00 E")],
)
def test_scaled(value: float, text: str) -> None:
    assert grid.scaled(value) == text


# -- runs that are not done --------------------------------------------------------------------------------------------
def test_every_state_is_marked_in_its_own_way_and_enters_no_mean(tmp_path: Path) -> None:
    write_run(tmp_path, "whole", 0, {20: 0.5})
    for state in ("pending", "running", "failed", "diverged"):
        write_run(tmp_path, state, 0, {10: 0.99}, state=state)
    for state in ("pending", "running", "failed", "diverged"):
        assert shown(tmp_path, state) == grid.Cell("", state)
        assert cell(tmp_path, state)["n"] == 0
        assert cell(tmp_path, state)[state] == 1
    legend = " ".join(notes.legend(summarise(tmp_path)))
    for state in ("pending", "running", "failed", "diverged"):
        assert f"{STATES[state][0]}, {state}: " in legend
    assert "missing" not in legend  # the legend explains what occurs


def test_a_partial_cell_says_how_many_seeds_and_what_became_of_the_rest(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "whole", seed, {20: 0.5})
    write_run(tmp_path, "part", 0, {20: 0.8})
    write_run(tmp_path, "part", 1, {20: 0.6})
    write_run(tmp_path, "part", 2, {10: 0.0}, state="diverged")
    assert shown(tmp_path, "part") == grid.Cell("70.0 ± 14.1", "(2/3 D)")  # sd of .6 and .8: .1 * sqrt 2
    assert shown(tmp_path, "whole").mark == "best"  # a partial cell is not ranked, though its mean is larger


def test_seeds_that_were_never_planned_show(tmp_path: Path) -> None:
    write_run(tmp_path, "A", 0)
    write_run(tmp_path, "A", 1)
    write_run(tmp_path, "B", 0)
    write_run(tmp_path, "B", 0, alpha=0.9)
    assert shown(tmp_path, "B").note == "(1/2 –)"
    row = grid.main_grids(summarise(tmp_path))[0].rows[0]
    assert (row.label, row.cells[2]) == ("A", grid.Cell("", "–"))  # no run of A in the second setting


@pytest.mark.parametrize("accuracies", [{10: 0.9}, {}])
def test_a_done_run_without_its_last_record_counts_as_failed_and_warns(
    tmp_path: Path, accuracies: dict[int, float]
) -> None:
    write_run(tmp_path, accuracies=accuracies)
    write_run(tmp_path, "B")
    runs = gather([], tmp_path).runs
    assert shown(tmp_path, "A") == grid.Cell("", "failed")
    assert any("counts as failed" in alarm for alarm in notes.alarms(runs))


def test_a_run_whose_accuracy_is_no_number_is_left_out_and_named(tmp_path: Path) -> None:
    hurt = write_run(tmp_path, accuracies={20: math.nan})
    write_run(tmp_path, "B")
    evidence = gather([], tmp_path)
    assert list(evidence.runs["label"]) == ["B"]
    (note,) = evidence.notes
    assert f"{hurt.path.name}/records.jsonl" in note


def test_a_half_written_last_line_is_passed_over(tmp_path: Path) -> None:
    folder = write_run(tmp_path, accuracies={10: 0.3}, state="running")
    with open(folder.path / "records.jsonl", "a") as file:
        file.write('{"run": "' + folder.path.name)
    assert len(gather([], tmp_path).records) == 1


# -- best and ties -----------------------------------------------------------------------------------------------------
def test_ties_are_corrected_for_several_comparisons(tmp_path: Path) -> None:
    # Two methods: differences .1 .1 .13, variance .0003, half of it .00015; t = .11 / sqrt(.0002 * ...) as a paired t-test
    # of 11.0 on 2 degrees of freedom, p = .0082. Beside six noisy ones the pooled variance is larger, and so is the family.
    for seed, gap in enumerate((0.1, 0.1, 0.13)):
        for folder in ("two", "many"):
            write_run(tmp_path / folder, "best", seed, {20: 0.8})
            write_run(tmp_path / folder, "other", seed, {20: 0.8 - gap})
        for number in range(6):
            write_run(tmp_path / "many", f"noisy {number}", seed, {20: 0.5 + 0.1 * ((number + seed) % 3)})
    assert shown(tmp_path / "two", "other").mark == ""
    assert shown(tmp_path / "many", "other").mark == "tied"


@pytest.mark.parametrize("seeds", [1, 2])
def test_no_cell_is_marked_with_fewer_than_three_seeds(tmp_path: Path, seeds: int) -> None:
    for seed in range(seeds):
        for label, value in (("A", 0.9), ("B", 0.2)):
            write_run(tmp_path, label, seed, {20: value})
    assert set(summarise(tmp_path)["mark"]) == {""}
    assert "marks need 3 seeds" in " ".join(notes.legend(summarise(tmp_path)))


def test_best_and_tied_cells_are_marked_in_all_formats(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "best", seed, {20: 0.80 + 0.01 * seed})
        write_run(tmp_path, "close", seed, {20: [0.80, 0.78, 0.82][seed]})  # behind by 0, .03, 0
        write_run(tmp_path, "far", seed, {20: 0.50 + 0.01 * seed})  # d = .3 each time
        write_run(tmp_path, "top", seed, {20: 0.99}, reference=True)
    marks = {label: shown(tmp_path, label).mark for label in ("best", "close", "far", "top")}
    assert marks == {"best": "best", "close": "tied", "far": "", "top": ""}
    grids = grid.main_grids(summarise(tmp_path))
    assert [row.label for row in grids[0].rows] == ["best", "close", "far", "top"]  # references last
    markdown, latex = text.to_markdown(grids), to_latex(grids, "", "main")
    assert "| **81.0 ± 1.0** |" in markdown
    assert "| 80.0 ± 2.0 ≈ |" in markdown
    assert "top †" in markdown
    assert r"\textbf{81.0 $\pm$ 1.0} &" in latex
    assert r"80.0 $\pm$ 2.0\rlap{${}^{\approx}$}" in latex
    assert r"\midrule" + "\n" + r"top\textsuperscript{$\dagger$}" in latex


def test_intervals_on_demand(tmp_path: Path) -> None:
    for seed, accuracy in enumerate([0.5, 0.6, 0.7]):
        write_run(tmp_path, seed=seed, accuracies={20: accuracy})
    # t(.975, 2) = 4.3027, s / sqrt 3 = .057735: .6 -+ .24841
    summarised = cell(tmp_path, "A")
    assert (summarised["low"], summarised["high"]) == pytest.approx((0.6 - 0.24841, 0.6 + 0.24841), abs=1e-5)
    (row,) = grid.main_grids(summarise(tmp_path), spread="interval")[0].rows
    assert row.cells[0].number == "60.0 [35.2, 84.8]"
    assert "95% interval" in notes.legend(summarise(tmp_path), spread="interval")[0]


def test_other_metrics_on_demand(tmp_path: Path) -> None:
    write_run(tmp_path)
    (grids,) = grid.main_grids(summarise(tmp_path), names=("p10_accuracy", "total_bytes_up"))
    assert grids.groups[0][1] == ("10th pct.", "Up")
    assert [cell_.number for cell_ in grids.rows[0].cells] == ["40.0", "20.0 kB"]


def test_average_ranks(tmp_path: Path) -> None:
    for alpha, values in ((0.1, (0.9, 0.5, 0.5)), (0.3, (0.5, 0.7, 0.6))):
        for label, value in zip("ABC", values, strict=True):
            write_run(tmp_path, label, 0, {20: value}, alpha=alpha)
        write_run(tmp_path, "D", 0, {20: 0.99}, alpha=alpha, state="done" if alpha == 0.1 else "failed")
        write_run(tmp_path, "ref", 0, {20: 0.99}, alpha=alpha, reference=True)
    overall = contests.overall(gather([], tmp_path).runs)
    assert overall.ranking is not None
    # alpha .1: A 1, B and C share 2 and 3; alpha .3: B 1, C 2, A 3; D is not done everywhere
    ranks = dict(zip(overall.ranking.names, overall.ranking.ranks, strict=True))
    assert ranks == {"A": (1 + 3) / 2, "B": (2.5 + 1) / 2, "C": (2.5 + 2) / 2}
    last = grid.main_grids(summarise(tmp_path), ranking=overall.ranking)[-1]
    assert last.groups[-1] == (("Average rank", "2 settings"), ("Mean",))
    shown_ranks = {row.label: row.cells[-1].number for row in last.rows}
    assert shown_ranks == {"A": "2.0", "B": "1.8", "C": "2.2", "D": "", "ref": ""}
    assert [row.cells[-1].value for row in last.rows] == [2.0, 1.75, 2.25, None, None]  # by which the page sorts


def test_the_transposed_table_holds_the_same_cells(tmp_path: Path) -> None:
    for alpha in (0.1, 0.3):
        for label, value in (("A", 0.5), ("B", 0.6), ("C", 0.7), ("D", 0.8)):
            write_run(tmp_path, label, 0, {20: value + alpha / 10}, alpha=alpha, reference=label == "B")
    grids = grid.transposed_grids(summarise(tmp_path))
    assert [len(grid_.groups) for grid_ in grids] == [3, 1]  # three methods a block, the reference last
    assert [heading for grid_ in grids for heading, _ in grid_.groups] == [("A",), ("C",), ("D",), ("B †",)]
    assert [row.label for row in grids[0].rows] == ["glyphs · dirichlet 0.1", "glyphs · dirichlet 0.3"]
    assert [grid_.number for grid_ in grids[0].rows[1].cells] == ["53.0", "33.0", "73.0", "53.0", "83.0", "63.0"]
    latex = to_latex(grids, "", "t")
    assert latex.count("Setting & Mean & Worst") == 2


def test_a_terminal_shows_as_many_settings_side_by_side_as_it_has_room_for(tmp_path: Path) -> None:
    shared, other = "glyphs(train_per_class=6, test_per_class=2)", "pathological(classes_per_client=10)"
    dataset = {"name": "glyphs", "train_per_class": 6, "test_per_class": 2}
    for partition, fields in (("iid", {"name": "iid"}), (other, {"name": "pathological", "classes_per_client": 10})):
        for label, values in {"fedvpt": (0.5, 0.25), "pep_fedpt": (0.125, 1.0)}.items():
            for seed, value in enumerate(values):
                config = {"dataset": dataset, "partition": fields}
                names = {"dataset": shared, "partition": partition}
                write_run(tmp_path, label, seed, {20: value}, config=config, **names)
    summary_ = summary(gather([], tmp_path).runs)

    def lines(width: int) -> list[str]:
        console = Console(file=io.StringIO(), width=width)
        terminal.show(console, summary_, ("mean_accuracy",), "std")
        return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]

    wide, narrow = lines(120), lines(38)
    assert shared not in "\n".join(wide)  # the legend has the full text
    assert wide[0] == narrow[0] == "All settings: glyphs"
    assert len([line for line in wide if line.startswith("fedvpt")]) == 1
    assert len([line for line in narrow if line.startswith("fedvpt")]) == 2
    assert all(len(line) <= 38 for line in narrow)
    for told_lines in (wide, narrow):
        assert any("pathological 10" in line for line in told_lines)  # a head is never broken
        places = [line.index("±") for line in told_lines if "±" in line]
        assert places[::2] == places[1::2]  # one below the other, tied or not


def test_equal_means_are_both_best(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "A", seed, {20: 0.5})
        write_run(tmp_path, "B", seed, {20: 0.5})
    assert shown(tmp_path, "A").mark == shown(tmp_path, "B").mark == "best"


# -- what must not be mixed --------------------------------------------------------------------------------------------
def test_equal_partitions_do_not_warn(tmp_path: Path) -> None:
    for label in ("A", "B"):
        for alpha in (0.1, 0.3):
            write_run(tmp_path, label, alpha=alpha)
    runs = gather([], tmp_path).runs
    assert notes.alarms(runs) == []
    assert "Partition hashes: equal (2 pairs of setting and seed checked)" in notes.footer(runs, [])


def test_one_label_for_two_configs_becomes_two_rows(tmp_path: Path) -> None:
    write_run(tmp_path, "A", 0, {20: 0.2}, config={"local": {"lr": 0.1}})
    write_run(tmp_path, "A", 1, {20: 0.6})
    write_run(tmp_path, "B", 0)
    assert labels(gather([], tmp_path).runs) == ["A [local.lr=0.01]", "A [local.lr=0.1]", "B"]


def test_a_key_that_a_run_does_not_store_is_shown_with_its_default(tmp_path: Path) -> None:
    write_run(tmp_path, "A", config={"local": {"lr": 0.01, "label_smoothing": 0.1}})
    write_run(tmp_path, "A")
    assert labels(gather([], tmp_path).runs) == ["A [local.label_smoothing=0.0]", "A [local.label_smoothing=0.1]"]


def test_settings_with_hidden_differences_get_different_names(tmp_path: Path) -> None:
    write_run(tmp_path, "A")
    write_run(tmp_path, "A", config={"clients": {"number": 9, "per_round": 2}})
    settings = set(gather([], tmp_path).runs["setting"])
    place = "glyphs · dirichlet 0.3 · "
    assert settings == {place + "[clients.number=4]", place + "[clients.number=9]"}


def test_a_run_without_records_is_called_as_its_neighbours_are(tmp_path: Path) -> None:
    write_run(tmp_path, "A", 0)
    write_run(tmp_path, "B", 0, state="pending")
    assert set(gather([], tmp_path).runs["setting"]) == {"glyphs · dirichlet 0.3"}


def test_a_copied_folder_counts_once_and_warns(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    copy = tmp_path / (folder.path.name + "-copy")
    shutil.copytree(folder.path, copy)
    records = (copy / "records.jsonl").read_text().replace(f'"run": "{folder.path.name}"', f'"run": "{copy.name}"')
    (copy / "records.jsonl").write_text(records)
    assert cell(tmp_path, "A")["n"] == 1
    assert "2 runs with seed 0" in notes.alarms(gather([], tmp_path).runs)[0]


# -- code that changed ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("commits", "codes", "starts"),
    [
        (["a", "a"], [None, None], []),  # records from before there was a hash of the code
        (["a", "a"], ["11-22", "11-22"], []),
        (["a", "b"], [None, None], ["Runs were made by 2 commits of the code: a, b."]),
        (["a+", "a+"], ["11-22", "33-22"], ["Runs were made by 2 versions of the code: a+."]),  # never committed
        (
            ["a", "a+"],
            ["11-22", "11-44"],
            ["Runs were made by 2 commits of the code: a, a+.", "A: its plug-ins changed"],
        ),
    ],
)
def test_code_that_changed_between_runs_is_reported(
    commits: list[str], codes: list[str | None], starts: list[str]
) -> None:
    runs = pd.DataFrame({"commit": commits, "code": codes, "label": ["A", "A"], "setting": ["S", "S"]})
    sentences = notes.code_changes(runs)
    assert len(sentences) == len(starts)
    assert all(sentence.startswith(start) for sentence, start in zip(sentences, starts, strict=True))
    apart = notes.code_changes(runs.assign(setting=["S", "T"]))  # another setting has another partitioner's file
    assert not any("plug-ins changed" in sentence for sentence in apart)
