"""Reports: what the tables say of runs, seen on run folders that the test writes; every expected number is derived here."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fedbench import figures, report, tables
from fedbench.records import RunFolder

ROOT = Path(__file__).resolve().parent.parent
MAKE = ROOT / "reports" / "make_figures.py"


def write_run(
    results: Path,
    label: str = "A",
    seed: int = 0,
    accuracies: Mapping[int, float] | None = None,
    *,
    state: str = "done",
    rounds: int = 20,
    alpha: float = 0.3,
    reference: bool = False,
    method: str | None = None,
    clients: bool = False,
    config: Mapping[str, Any] | None = None,
    **record: Any,
) -> RunFolder:
    """A run with the given mean accuracy at each round (default: one record at the last round); worst is 0.2 lower."""
    method = method or "m" + re.sub(r"\W", "", label).lower()
    identity = {
        "backbone": {"name": "nano", "image_size": None},
        "dataset": {"name": "glyphs"},
        "partition": {"name": "dirichlet", "alpha": alpha},
        "method": {"name": method},
        "aggregation": {"name": "fedavg"},
        "seed": seed,
        "rounds": rounds,
        "clients": {"number": 4, "per_round": 2},
        "local": {"lr": 0.01},
    } | dict(config or {})
    name = f"{method}-glyphs-dirichlet-s{seed}-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]}"
    folder = RunFolder(results / name)
    folder.plan({"identity": identity, "label": label, "sweep": "test", "run": identity, "plugins": []})
    if state == "pending":
        return folder
    for at, accuracy in ({rounds: 0.5} if accuracies is None else accuracies).items():
        whole = {
            "run": name,
            "key": name[-8:],
            "sweep": "test",
            "method": method,
            "label": label,
            "reference": reference,
            "dataset": "glyphs",
            "partition": f"dirichlet(alpha={alpha})",
            "aggregation": "fedavg",
            "backbone": "nano@32",
            "seed": seed,
            "round": at,
            "rounds": rounds,
            "mean_accuracy": accuracy,
            "worst_accuracy": accuracy - 0.2,
            "p10_accuracy": accuracy - 0.1,
            "global_accuracy": None,
            "held_out_mean_accuracy": None,
            "train_loss": 1.0,
            "bytes_up": 1000,
            "bytes_down": 1000,
            "total_bytes_up": 1000 * at,
            "total_bytes_down": 1000 * at,
            "trained_parameters": 1234567,
            "total_multiply_adds": 10**9 * at,
            "seconds": 2.0 * at,
            "config_hash": name[-8:],
            "partition_hash": f"part-{alpha}-{seed}",
            "backbone_hash": "weights",
            "commit": "abc1234",
        }
        folder.append(whole | record)
    if state == "done":
        if clients:
            last = list((accuracies or {rounds: 0.5}).values())[-1]
            spread = last + np.array([-0.2, 0.0, 0.1, 0.1, -0.3])  # the last one is held out
            held_out = [False] * 4 + [True]
            pd.DataFrame(
                {"client": range(5), "held_out": held_out, "train_samples": 9, "test_samples": 9, "accuracy": spread}
            ).to_parquet(folder.path / "clients.parquet")
        folder.finish()
    elif state == "running":
        folder.say(round=max(accuracies or {0: 0}), rounds=rounds)
    elif state in ("failed", "diverged"):
        folder.fail("diverged" if state == "diverged" else "error", f"why it {state} <b>", round=3)
    return folder


@cache
def summarise(results: Path) -> pd.DataFrame:
    """Of the runs below `results`, which the test has written before it asks."""
    return tables.summary(report.gather([], results).runs)


def cell(results: Path, label: str, metric: str = "mean_accuracy") -> Any:
    table = summarise(results)
    found = table[(table["label"] == label) & (table["metric"] == metric)]
    assert len(found) == 1
    return found.iloc[0]


def shown(results: Path, label: str) -> tables.Cell:
    """The first cell (mean accuracy in the first setting) of a method's row in the main table."""
    (row,) = (row for row in tables.main_grids(summarise(results))[0].rows if row.label == label)
    return row.cells[0]


# -- numbers -----------------------------------------------------------------------------------------------------------
def test_mean_and_sample_standard_deviation_over_seeds(tmp_path: Path) -> None:
    for seed, accuracy in enumerate([0.5, 0.6, 0.7]):
        write_run(tmp_path, seed=seed, accuracies={20: accuracy})
    found = cell(tmp_path, "A")
    assert (found["n"], found["of"]) == (3, 3)
    assert found["mean"] == pytest.approx((0.5 + 0.6 + 0.7) / 3)
    assert found["std"] == pytest.approx(math.sqrt((0.1**2 + 0 + 0.1**2) / (3 - 1)))  # = 0.1
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
    found = cell(tmp_path, "A", "held_out_mean_accuracy")
    assert found["n"] == 0
    assert math.isnan(found["mean"])
    table = summarise(tmp_path)
    ((_, titles),) = tables.detail_grid(table, table["setting"].iloc[0]).groups
    assert titles == ("Mean", "Worst", "10th pct.")


def test_costs_carry_units(tmp_path: Path) -> None:
    write_run(tmp_path)
    table = summarise(tmp_path)
    grid = tables.cost_grid(table, table["setting"].iloc[0])
    told = dict(zip(grid.groups[0][1], (cell.number.strip() for cell in grid.rows[0].cells), strict=True))
    assert told["Trained"] == "1.23 M"  # 1,234,567
    assert told["Up"] == "20.0 kB"  # 20 rounds of 1000 bytes
    assert told["MACs"] == "20.0 G"  # 20 rounds of 10^9
    assert told["Time"] == "40 s"  # 2 s a round


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 "), (999, "999 "), (1000, "1.00 k"), (999_499, "999 k"), (999_999, "1.00 M"), (2e18, "2.00 E")],
)
def test_scaled(value: float, text: str) -> None:
    assert tables.scaled(value) == text


# -- runs that are not done --------------------------------------------------------------------------------------------
def test_every_state_is_marked_in_its_own_way_and_enters_no_mean(tmp_path: Path) -> None:
    write_run(tmp_path, "whole", 0, {20: 0.5})
    for state in ("pending", "running", "failed", "diverged"):
        write_run(tmp_path, state, 0, {10: 0.99}, state=state)
    for state in ("pending", "running", "failed", "diverged"):
        assert shown(tmp_path, state) == tables.Cell("", state)
        assert cell(tmp_path, state)["n"] == 0
        assert cell(tmp_path, state)[state] == 1
    legend = " ".join(tables.legend(summarise(tmp_path)))
    for state in ("pending", "running", "failed", "diverged"):
        assert f"{tables.STATES[state][0]}, {state}: " in legend
    assert "missing" not in legend  # the legend explains what occurs


def test_a_partial_cell_says_how_many_seeds_and_what_became_of_the_rest(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "whole", seed, {20: 0.5})
    write_run(tmp_path, "part", 0, {20: 0.8})
    write_run(tmp_path, "part", 1, {20: 0.6})
    write_run(tmp_path, "part", 2, {10: 0.0}, state="diverged")
    assert shown(tmp_path, "part") == tables.Cell("70.0 ± 14.1", "(2/3 D)")  # sd of .6 and .8: .1 * sqrt 2
    assert shown(tmp_path, "whole").mark == "best"  # a partial cell is not ranked, though its mean is larger


def test_seeds_that_were_never_planned_show(tmp_path: Path) -> None:
    write_run(tmp_path, "A", 0)
    write_run(tmp_path, "A", 1)
    write_run(tmp_path, "B", 0)
    write_run(tmp_path, "B", 0, alpha=0.9)
    assert shown(tmp_path, "B").note == "(1/2 –)"
    row = tables.main_grids(summarise(tmp_path))[0].rows[0]
    assert (row.label, row.cells[2]) == ("A", tables.Cell("", "–"))  # no run of A in the second setting


@pytest.mark.parametrize("accuracies", [{10: 0.9}, {20: math.nan}, {}])
def test_a_done_run_without_its_last_record_counts_as_failed_and_warns(
    tmp_path: Path, accuracies: dict[int, float]
) -> None:
    write_run(tmp_path, accuracies=accuracies)
    write_run(tmp_path, "B")
    runs = report.gather([], tmp_path).runs
    assert shown(tmp_path, "A") == tables.Cell("", "failed")
    assert any("counts as failed" in alarm for alarm in tables.alarms(runs))


def test_a_half_written_last_line_is_passed_over(tmp_path: Path) -> None:
    folder = write_run(tmp_path, accuracies={10: 0.3}, state="running")
    with open(folder.path / "records.jsonl", "a") as file:
        file.write('{"run": "' + folder.path.name)
    assert len(report.gather([], tmp_path).records) == 1


# -- best and ties -----------------------------------------------------------------------------------------------------
def test_the_paired_test_by_hand() -> None:
    # d = .1, .2, .3: m = .2, s = .1, t = .2 / (.1 / sqrt 3) = 3.46 < 4.30 = t(.975, 2): cannot be told apart
    assert tables.tied(np.array([0.1, 0.2, 0.3]), np.zeros(3))
    # d = .19, .20, .21: s = .01, t = 34.6 > 4.30: different
    assert not tables.tied(np.array([0.19, 0.2, 0.21]), np.zeros(3))
    # Seeds vary far more than the difference, and pairing removes it: d = .05 each time
    assert not tables.tied(np.array([0.15, 0.55, 0.95]), np.array([0.1, 0.5, 0.9]))
    assert tables.tied(np.array([0.2, 0.3]), np.array([0.2, 0.3]))
    assert not tables.tied(np.array([0.2]), np.array([0.1]))  # one pair tells nothing


def test_best_and_tied_cells_are_marked_in_all_formats(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "best", seed, {20: 0.80 + 0.01 * seed})
        write_run(tmp_path, "close", seed, {20: [0.80, 0.78, 0.82][seed]})  # d = 0, .03, 0: t = 1
        write_run(tmp_path, "far", seed, {20: 0.50 + 0.01 * seed})  # d = .3 each time
        write_run(tmp_path, "top", seed, {20: 0.99}, reference=True)
    marks = {label: shown(tmp_path, label).mark for label in ("best", "close", "far", "top")}
    assert marks == {"best": "best", "close": "tied", "far": "", "top": ""}
    grids = tables.main_grids(summarise(tmp_path))
    assert [row.label for row in grids[0].rows] == ["best", "close", "far", "top"]  # references last
    markdown, latex = tables.to_markdown(grids), tables.to_latex(grids, "", "main")
    assert "| **81.0 ± 1.0** |" in markdown
    assert "| 80.0 ± 2.0 ≈ |" in markdown
    assert "top †" in markdown
    assert r"\textbf{81.0 $\pm$ 1.0} &" in latex
    assert r"80.0 $\pm$ 2.0\rlap{${}^{\approx}$}" in latex
    assert r"\midrule" + "\n" + r"top\textsuperscript{$\dagger$}" in latex


def test_equal_means_are_both_best(tmp_path: Path) -> None:
    write_run(tmp_path, "A", accuracies={20: 0.5})
    write_run(tmp_path, "B", accuracies={20: 0.5})
    assert shown(tmp_path, "A").mark == shown(tmp_path, "B").mark == "best"


# -- what must not be mixed --------------------------------------------------------------------------------------------
def test_other_partitions_or_rounds_warn_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "r", "A", 0)
    write_run(tmp_path / "r", "B", 0, partition_hash="other")
    write_run(tmp_path / "r", "C", 0, {40: 0.5}, rounds=40)
    write_run(tmp_path / "r", "ref", 0, {1: 0.5}, rounds=1, reference=True)  # a reference's rounds are its own
    evidence = report.gather([], tmp_path / "r")
    first, second = tables.alarms(evidence.runs)
    assert "different partitions" in first
    assert "other: B" in first
    assert "different budgets" in second
    assert "20: A, B; 40: C" in second
    assert "DIFFERENT" in " ".join(tables.footer(evidence.runs))
    out = tmp_path / "out"
    monkeypatch.setattr(figures, "all_figures", lambda *_: [])
    report.write(evidence, out)
    assert "different partitions" in (out / "table.md").read_text()
    assert "WARNING" in (out / "table.tex").read_text()
    assert 'role="alert"' in (out / "index.html").read_text()


def test_equal_partitions_do_not_warn(tmp_path: Path) -> None:
    for label in ("A", "B"):
        for alpha in (0.1, 0.3):
            write_run(tmp_path, label, alpha=alpha)
    runs = report.gather([], tmp_path).runs
    assert tables.alarms(runs) == []
    assert "Partition hashes: equal (2 pairs of setting and seed checked)" in tables.footer(runs)


def test_one_label_for_two_configs_becomes_two_rows(tmp_path: Path) -> None:
    write_run(tmp_path, "A", 0, {20: 0.2}, config={"local": {"lr": 0.1}})
    write_run(tmp_path, "A", 1, {20: 0.6})
    write_run(tmp_path, "B", 0)
    labels = tables.labels(report.gather([], tmp_path).runs)
    assert labels == ["A [local.lr=0.01]", "A [local.lr=0.1]", "B"]


def test_settings_that_differ_out_of_sight_are_told_apart(tmp_path: Path) -> None:
    write_run(tmp_path, "A")
    write_run(tmp_path, "A", config={"clients": {"number": 9, "per_round": 2}})
    found = set(report.gather([], tmp_path).runs["setting"])
    place = "glyphs · dirichlet(alpha=0.3) · "
    assert found == {place + "[clients.number=4]", place + "[clients.number=9]"}


def test_a_run_without_records_is_called_as_its_neighbours_are(tmp_path: Path) -> None:
    write_run(tmp_path, "A", 0)
    write_run(tmp_path, "B", 0, state="pending")
    assert set(report.gather([], tmp_path).runs["setting"]) == {"glyphs · dirichlet(alpha=0.3)"}


def test_a_copied_folder_counts_once_and_warns(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    copy = tmp_path / (folder.path.name + "-copy")
    shutil.copytree(folder.path, copy)
    records = (copy / "records.jsonl").read_text().replace(f'"run": "{folder.path.name}"', f'"run": "{copy.name}"')
    (copy / "records.jsonl").write_text(records)
    assert cell(tmp_path, "A")["n"] == 1
    assert "2 runs with seed 0" in tables.alarms(report.gather([], tmp_path).runs)[0]


# -- text --------------------------------------------------------------------------------------------------------------
NASTY = r"<script>alert(1)</script> a_b & 50% $x$ #{~^\} | [c](d) *e* `f`"


def test_labels_are_escaped_in_every_format(tmp_path: Path) -> None:
    write_run(tmp_path / "r", NASTY, clients=True, method="nasty")
    write_run(tmp_path / "r", "_hidden", state="failed")
    written = report.write(report.gather([], tmp_path / "r"), tmp_path / "out")
    html = written.page.read_text()
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "why it failed &lt;b&gt;" in html
    markdown = (tmp_path / "out" / "table.md").read_text()
    assert "<script" not in markdown
    for block in re.findall(r"(?m)(?:^\|.*\n)+", markdown):  # the pipe in the label opens no cell
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    latex = (tmp_path / "out" / "table.tex").read_text()
    row = next(line for line in latex.splitlines() if "script" in line and not line.startswith("%"))
    for text in (r"a\_b \& 50\% \$x\$ \#\{\textasciitilde{}\textasciicircum{}\textbackslash{}\}", r"\textless{}script"):
        assert text in row
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "table.csv").read_text())))
    assert {row["label"] for row in rows} == {NASTY, "_hidden"}


def check_latex(text: str) -> None:
    """Braces and environments balance, and each row of a tabular has as many cells as its columns."""
    bare = re.sub(r"\\[\\{}%&$#_]", lambda m: r"\\" if m[0] == r"\\" else "", re.sub(r"(?m)^%.*$", "", text))
    depth = 0
    for char in bare:
        depth += (char == "{") - (char == "}")
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") % 2 == 0
    stack: list[str] = []
    for what, name in re.findall(r"\\(begin|end)\{([\w*]+)\}", bare):
        if what == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    for columns, body in re.findall(r"\\begin\{tabular\}\{@\{\}(l[ r]*)@\{\}\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        for line in body.splitlines():
            if line.endswith(r"\\"):
                cells = len(re.findall(r"(?<!\\)&", line)) + 1
                spans = [int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line)]
                assert cells + sum(spans) == len(columns.replace(" ", ""))


def test_latex_is_balanced_and_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "all_figures", lambda *_: [])
    for alpha in (0.1, 0.3, 1.0, 10.0):  # two blocks
        write_run(tmp_path / "r", NASTY, alpha=alpha, method="nasty")
        write_run(tmp_path / "r", "B", alpha=alpha, state="diverged")
    write_run(tmp_path / "r", "B", 1, partition_hash="x_y")
    write_run(tmp_path / "r", "ref", 1, reference=True)
    report.write(report.gather([], tmp_path / "r"), tmp_path / "out")
    parts = [(tmp_path / "out" / name).read_text() for name in ("table.tex", "details.tex")]
    for part in parts:
        check_latex(part)
    assert parts[0].count(r"\begin{tabular}") == 2
    if shutil.which("pdflatex"):
        head = "\\documentclass[twocolumn]{article}\\usepackage{booktabs}\\begin{document}\n"
        (tmp_path / "all.tex").write_text(head + "\n".join(parts) + "\\end{document}\n")
        command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "all.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]


# -- figures -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 17 methods, two alphas and two seeds, with one run of each state."""
    place = tmp_path_factory.mktemp("report")
    for number in range(17):
        for alpha in (0.1, 0.3):
            for seed in range(2):
                state = {(1, 1): "running", (2, 1): "failed", (3, 1): "diverged", (4, 0): "pending", (4, 1): "pending"}
                now = state.get((number, seed), "done") if alpha == 0.3 else "done"
                top = 0.5 + 0.02 * number + 0.01 * seed
                curve = {at: top * (1 - 0.5**at) for at in range(1, 21)} if number else {20: top}
                upto = dict(list(curve.items())[:9]) if now != "done" else curve
                sent = 0 if number == 0 else 10**number
                bytes_ = {"total_bytes_up": sent, "total_bytes_down": sent}
                write_run(
                    place / "results", f"Method {number}", seed, upto, state=now, alpha=alpha, reference=number == 0,
                    clients=True, **bytes_,
                )  # fmt: skip
    report.write(report.gather([], place / "results"), place / "out")
    return place


def test_figures_are_written_and_hold_something(made: Path) -> None:
    names = {path.name for path in (made / "out" / "figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in figures.NAMES for kind in ("png", "pdf")}
    for name in figures.NAMES:
        with Image.open(made / "out" / "figures" / f"{name}.png") as image:
            colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
            assert image.width >= 0.7 * figures.WIDTH * 200 - 1
        assert colours is not None
        assert len(colours) > 20
        pdf = (made / "out" / "figures" / f"{name}.pdf").read_bytes()
        assert b"/FontFile2" in pdf  # TrueType outlines are embedded, fonttype 42
        assert b"/Type3" not in pdf
        assert b"CreationDate" not in pdf


def test_the_page_is_self_contained_and_its_links_exist(made: Path) -> None:
    html = (made / "out" / "index.html").read_text()
    assert "http" not in html
    assert "<script" not in html
    links = re.findall(r'(?:src|href)="([^"#]+)"', html)
    assert len(links) == 2 * len(figures.NAMES) + 6
    for link in links:
        assert (made / "out" / link).is_file()
    for metric in tables.METRICS:
        assert metric.name in html
    assert "part-0.3-1" in html  # partition hashes
    assert str(made) not in html


def test_the_same_records_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    report.write(report.gather([], made / "results"), tmp_path / "again")
    files = sorted(path.relative_to(made / "out") for path in (made / "out").rglob("*") if path.is_file())
    assert len(files) > 10
    for file in files:
        assert (made / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


def test_looks_differ_for_all_methods_and_stay_with_their_label() -> None:
    names = [f"m{i}" for i in range(28)]
    found = figures.looks(names, ["m3"])
    assert len({(look.colour, look.line) for look in found.values()}) == 28
    assert len({look.marker for look in list(found.values())[:15]}) >= 14
    assert found["m3"].colour == "#000000"
    assert figures.looks(names[:5], ["m3"])["m4"] == found["m4"]


def test_figures_without_data_are_skipped_and_the_page_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "r", state="pending")
    written = report.write(report.gather([], tmp_path / "r"), tmp_path / "out")
    assert written.figures == ()
    html = written.page.read_text()
    assert html.count("Not drawn:") == len(figures.NAMES)
    assert "needs finished runs of at least two partitions" in html


def test_figures_of_an_earlier_report_do_not_linger(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made / "out", out)
    (out / "figures" / "mine.png").write_bytes(b"")
    write_run(tmp_path / "r", state="pending")
    report.write(report.gather([], tmp_path / "r"), out)
    assert [path.name for path in (out / "figures").iterdir()] == ["mine.png"]


def test_more_settings_than_panels_make_more_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_save", lambda figure: {})
    for i in range(figures.PANELS + 1):
        write_run(tmp_path, alpha=0.1 * (i + 1))
    evidence = report.gather([], tmp_path)
    names = [drawing.name for drawing in figures.all_figures(evidence.runs, evidence.records, evidence.clients)]
    assert names == ["rounds", "rounds-2", "bytes", "bytes-2", "clients", "heterogeneity", "worst", "worst-2"]


def test_partitions_without_a_common_number_stand_side_by_side(tmp_path: Path) -> None:
    write_run(tmp_path, alpha=0.1)
    write_run(tmp_path, config={"partition": {"name": "iid"}}, partition="iid")
    evidence = report.gather([], tmp_path)
    (family,) = figures._families(evidence.runs)
    assert not family.numeric
    assert sorted(family.runs["level"]) == ["dirichlet(alpha=0.1)", "iid"]


# -- the command -------------------------------------------------------------------------------------------------------
def command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(MAKE), *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command_prints_the_table_and_the_paths(tmp_path: Path) -> None:
    write_run(tmp_path / "results", "[bold]A", accuracies={20: 0.5})
    done = command(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "[bold]A" in done.stdout  # a label is no markup
    assert "50.0" in done.stdout
    assert str(Path("reports/out/index.html")) in done.stdout
    assert (tmp_path / "reports" / "out" / "figures" / "rounds.png").is_file()


def test_mistakes_exit_with_2_and_name_what_is_legal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "there.yaml").write_text("grd: {}\n")
    results = ["--results", str(tmp_path / "good")]
    for arguments, told in (
        (["--results", str(tmp_path / "bad")], "does not exist; folders beside it that hold runs: good"),
        (["--results", str(tmp_path / "empty")], "holds no runs"),
        (["--results", str(tmp_path / "file")], "is a file"),
        ([str(tmp_path / "none.yaml")], "there.yaml"),
        ([str(tmp_path / "there.yaml")], "did you mean 'grid'"),
        ([*results, "--out", str(tmp_path / "file")], "cannot be written"),
    ):
        assert report.main(arguments) == 2
        assert told in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit) as stop:
        report.main(["--resutls", "x"])
    assert stop.value.code == 2


def test_a_broken_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path)
    (folder.path / "run.yaml").write_text("identity: [")
    assert report.main(["--results", str(tmp_path)]) == 2
    assert "run.yaml" in capsys.readouterr().err


SWEEP = """
name: small
base:
  backbone: {name: nano}
  dataset: {name: DATASET}
  rounds: 20
  clients: {number: 4, per_round: 2}
grid:
  partition: [{name: dirichlet, alpha: 0.2}]
  method: [{name: METHOD, label: Mine}]
  seed: [0, 1, 2]
"""


def test_a_sweep_file_says_which_runs_and_which_are_missing(tmp_path: Path) -> None:
    """A user's own plug-ins, so that the test needs none of the project's."""
    for kind, name, text in (
        ("methods", "my_method", "from fedbench.method import Method as M\n\nclass Method(M): pass\n"),
        ("datasets", "my_data", "from fedbench.data import Dataset as D\n\nclass Dataset(D): pass\n"),
    ):
        (tmp_path / "own" / kind).mkdir(parents=True)
        source = text.replace("class", "from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass")
        (tmp_path / "own" / kind / f"{name}.py").write_text(source)
    file = tmp_path / "small.yaml"
    file.write_text(SWEEP.replace("DATASET", "my_data").replace("METHOD", "my_method"))
    from fedbench.config import read_sweep

    sweep = read_sweep(file, [tmp_path / "own"])
    first = RunFolder(tmp_path / "results" / sweep.runs[0].name)
    first.plan(sweep.on_disk(sweep.runs[0]))
    for at, accuracy in ((10, 0.9), (20, 0.5)):
        first.append(
            {"run": first.path.name, "round": at, "rounds": 20, "mean_accuracy": accuracy, "dataset": "my_data"}
        )
    first.finish()
    RunFolder(tmp_path / "results" / sweep.runs[1].name).plan(sweep.on_disk(sweep.runs[1]))
    write_run(tmp_path / "results", "Not of the sweep")
    evidence = report.gather([file], tmp_path / "results", [tmp_path / "own"])
    assert list(evidence.runs["state"]) == ["done", "pending", "missing"]
    (row,) = tables.main_grids(tables.summary(evidence.runs))[0].rows
    assert (row.label, row.cells[0]) == ("Mine", tables.Cell("50.0", "(1/3 PM)"))
    assert set(evidence.runs["setting"]) == {"my_data · dirichlet(alpha=0.2)"}


def test_reports_import_no_torch(tmp_path: Path) -> None:
    write_run(tmp_path / "results", clients=True)
    code = (
        "import sys; from fedbench import report; "
        f"code = report.main(['--results', {str(tmp_path / 'results')!r}, '--out', {str(tmp_path / 'out')!r}]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
