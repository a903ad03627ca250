"""A whole report: its files, their LaTeX, Markdown and CSV, its warnings, and the command."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from written import write_run

from fedbench.base.records import RunFolder
from fedbench.cli import figures
from fedbench.report import writer
from fedbench.report.evidence import gather
from fedbench.report.figures import report_figures
from fedbench.report.figures.catalogue import FigureCatalogue
from fedbench.report.tables import grid, notes
from fedbench.report.tables.latex import TEXT_WIDTH, fit, tabular_width, width
from fedbench.report.tables.summary import summary

ROOT = Path(__file__).resolve().parent.parent
MAKE = ROOT / "reports" / "make_figures.py"


# -- text --------------------------------------------------------------------------------------------------------------
NASTY = r"<script>alert(1)</script> a_b & 50% $x$ #{~^\} | [c](d) *e* `f`"


def test_labels_are_escaped_in_every_format(tmp_path: Path) -> None:
    write_run(tmp_path / "r", NASTY, clients=True, method="nasty")
    write_run(tmp_path / "r", "_hidden", state="failed")
    written = writer.write(gather([], tmp_path / "r"), tmp_path / "out")
    html = written.page.read_text()
    assert html.count("<script") == 2  # the page's own
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "why it failed &lt;b&gt;" in html
    markdown = (tmp_path / "out" / "table.md").read_text()
    assert "<script" not in markdown
    for block in re.findall(r"(?m)(?:^\|.*\n)+", markdown):  # the pipe in the label opens no cell
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    latex = (tmp_path / "out" / "table.tex").read_text()
    row = next(line for line in latex.splitlines() if "script" in line and not line.startswith("%"))
    row = row.replace(r"\allowbreak{}", "")
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


def test_latex_is_balanced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_figures, "all_figures", lambda *_: FigureCatalogue.empty())
    for alpha in (0.1, 0.3, 1.0, 10.0):  # two blocks
        write_run(tmp_path / "r", NASTY, alpha=alpha, method="nasty")
        write_run(tmp_path / "r", "B", alpha=alpha, state="diverged")
    write_run(tmp_path / "r", "B", 1, partition_hash="x_y")
    write_run(tmp_path / "r", "ref", 1, reference=True)
    writer.write(gather([], tmp_path / "r"), tmp_path / "out")
    parts = [(tmp_path / "out" / name).read_text() for name in ("table.tex", "details.tex", "transposed.tex")]
    for part in parts:
        check_latex(part)
    assert parts[0].count(r"\begin{tabular}") == 2


LATEX = shutil.which("pdflatex")
HEAD = "\\documentclass[twocolumn]{article}\\usepackage{booktabs}\\begin{document}\n"


@pytest.mark.skipif(LATEX is None, reason="no TeX here (pdflatex with booktabs)")
def test_latex_compiles_and_fits_a_two_column_article(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_figures, "all_figures", lambda *_: FigureCatalogue.empty())
    labels = [NASTY, "B", "pep_fedpt(inject=3, prototypes=shuffled, similarity=euclidean) [local.lr=0.01]"]
    for alpha in (0.1, 0.3, 1.0, 10.0, 30.0):
        for number, label in enumerate(labels):
            for seed in range(3):
                state = "diverged" if (number, seed) == (1, 2) else "done"
                more = {
                    "p10_accuracy": 0.4,
                    "held_out_mean_accuracy": 0.45,
                    "pooled_accuracy": 0.5,
                    "global_accuracy": 0.5,
                }
                write_run(
                    tmp_path / "r",
                    label,
                    seed,
                    {20: 0.5 + 0.1 * number},
                    alpha=alpha,
                    method=f"m{number}",
                    state=state,
                    **more,
                )
    writer.write(gather([], tmp_path / "r"), tmp_path / "out")
    parts = [(tmp_path / "out" / name).read_text() for name in ("table.tex", "details.tex", "transposed.tex")]
    (tmp_path / "all.tex").write_text(HEAD + "\n".join(parts) + "\\end{document}\n")
    command = [str(LATEX), "-halt-on-error", "-interaction=nonstopmode", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "all.log").read_text(errors="replace")
    assert "Overfull" not in log
    assert "Float too large" not in log


def test_wide_tables_are_split_so_that_each_part_fits() -> None:
    """The width model alone, where TeX is missing: widths are cmr8's, as `\\footnotesize` has them."""
    assert width("0123456789") == pytest.approx(10 * 4.25, rel=0.01)  # ten figures of 4.25 points
    cells = tuple(grid.Cell("100.0 ± 10.0", "") for _ in range(12))
    groups = tuple(((f"setting {i}",), ("Mean", "Worst", "Pooled")) for i in range(4))
    whole = grid.Grid(groups, (grid.Row("method", False, cells),))
    assert tabular_width(whole) > TEXT_WIDTH
    parts = fit(whole)
    assert len(parts) > 1
    assert all(tabular_width(part) <= TEXT_WIDTH for part in parts)
    assert [title for part in parts for _, titles in part.groups for title in titles] == ["Mean", "Worst", "Pooled"] * 4
    assert sum(len(part.rows[0].cells) for part in parts) == 12


def test_other_partitions_or_rounds_warn_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "r", "A", 0)
    write_run(tmp_path / "r", "B", 0, partition_hash="other")
    write_run(tmp_path / "r", "C", 0, {40: 0.5}, rounds=40)
    write_run(tmp_path / "r", "ref", 0, {1: 0.5}, rounds=1, reference=True)  # a reference's rounds are its own
    evidence = gather([], tmp_path / "r")
    first, second = notes.alarms(evidence.runs)
    assert "different partitions" in first
    assert "other: B" in first
    assert "different budgets" in second
    assert "20: A, B; 40: C" in second
    assert "DIFFERENT" in " ".join(notes.footer(evidence.runs, [first, second]))
    out = tmp_path / "out"
    monkeypatch.setattr(report_figures, "all_figures", lambda *_: FigureCatalogue.empty())
    writer.write(evidence, out)
    assert "different partitions" in (out / "table.md").read_text()
    assert "WARNING" in (out / "table.tex").read_text()
    assert 'role="alert"' in (out / "index.html").read_text()


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
    assert (tmp_path / "reports" / "out" / "figures" / "rounds.svg").is_file()


def test_mistakes_exit_with_2_and_name_what_is_legal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "there.yaml").write_text("grd: {}\n")
    results = ["--results", str(tmp_path / "good")]
    for arguments, message in (
        (["--results", str(tmp_path / "bad")], "does not exist; folders beside it that hold runs: good"),
        (["--results", str(tmp_path / "empty")], "holds no runs"),
        (["--results", str(tmp_path / "file")], "is a file"),
        ([str(tmp_path / "none.yaml")], "there.yaml"),
        ([str(tmp_path / "there.yaml")], "did you mean 'grid'"),
        ([*results, "--out", str(tmp_path / "file")], "cannot be written"),
        ([*results, "--metrics", "accuracy"], "legal: mean_accuracy, worst_accuracy"),
        ([*results, "--versus", "A", "B"], "no method is labelled B; legal: A"),
    ):
        assert figures.main(arguments) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit) as stop:
        figures.main(["--resutls", "x"])
    assert stop.value.code == 2


@pytest.mark.slow
def test_comparisons_have_words_and_numbers(tmp_path: Path) -> None:
    for seed in range(3):
        for label, value in (("good", 0.8), ("poor", 0.4)):
            write_run(tmp_path / "r", label, seed, {20: value + 0.01 * seed}, clients=True)
    writer.write(gather([], tmp_path / "r"), tmp_path / "out")
    (row,) = csv.DictReader(io.StringIO((tmp_path / "out" / "comparisons.csv").read_text()))
    assert (row["setting"], row["first"], row["second"]) == ("glyphs · dirichlet 0.3", "good", "poor")
    assert (row["blocks"], row["verdict"], row["family"]) == ("3", "better", "2")
    # four clients that train under each of three seeds, all ahead by .4
    assert [row[f"clients{what}"] for what in ("", "_ahead", "_equal", "_behind")] == ["12", "12", "0", "0"]
    # the difference is constant: the smallest gap of all values, .01, is the grain, and rounding alone has .01^2 / 12;
    # t(.975, 2) = 4.3027, so that the half width is 4.3027 * .01 sqrt(2 / 3 / 12) = .01014
    assert float(row["low"]) == pytest.approx(0.4 - 4.3027 * 0.01 * math.sqrt(2 / 36), abs=1e-5)
    words = (tmp_path / "out" / "statistics.md").read_text()
    assert (
        "good is better than poor (+40.0 points \\[+39.0, +41.0\\], p &lt; 0.001, 3 seeds; of 12 clients 12 gain"
        in words
    )


# -- a results folder may hold anything --------------------------------------------------------------------------------
def line(folder: RunFolder, **changes: Any) -> None:
    """Replace values of the run's only record."""
    (record,) = folder.records()
    (folder.path / "records.jsonl").write_text(json.dumps(record | changes) + "\n")


def parquet_of(folder: RunFolder, **columns: Any) -> None:
    base = {"client": range(3), "held_out": [False] * 3, "accuracy": [0.1, 0.2, 0.3]}
    pd.DataFrame(base | columns).to_parquet(folder.path / "clients.parquet")


DAMAGES: dict[str, tuple[str, Callable[[RunFolder], object]]] = {
    "bytes": ("run.yaml", lambda run: (run.path / "run.yaml").write_bytes(b"\xaf\x00\xff")),
    "empty config": ("run.yaml", lambda run: (run.path / "run.yaml").write_text("")),
    "cut config": ("run.yaml", lambda run: (run.path / "run.yaml").write_text("identity: [")),
    "list": ("run.yaml", lambda run: (run.path / "run.yaml").write_text("- 1\n")),
    "odd seed": ("run.yaml", lambda run: (run.path / "run.yaml").write_text("identity: {seed: x, rounds: 20}\n")),
    "odd rounds": ("run.yaml", lambda run: (run.path / "run.yaml").write_text("identity: {rounds: [1]}\n")),
    "endless": ("run.yaml", lambda run: (run.path / "run.yaml").write_text("identity: &a {x: *a}\n")),
    "text": ("records.jsonl", lambda run: line(run, mean_accuracy="high")),
    "huge": ("records.jsonl", lambda run: line(run, mean_accuracy=10**400)),
    "huge bytes": ("records.jsonl", lambda run: line(run, total_bytes_up=10**400)),
    "750 %": ("records.jsonl", lambda run: line(run, mean_accuracy=7.5)),
    "negative": ("records.jsonl", lambda run: line(run, worst_accuracy=-0.1)),
    "infinite": ("records.jsonl", lambda run: line(run, total_multiply_adds=float("inf"))),
    "list of hashes": ("records.jsonl", lambda run: line(run, partition_hash=["a"])),
    "truth": ("records.jsonl", lambda run: line(run, round=True)),
    "number for a name": ("records.jsonl", lambda run: line(run, dataset=3)),
    "no record": ("records.jsonl", lambda run: (run.path / "records.jsonl").write_text("3\n")),
    "cut table": ("clients.parquet", lambda run: (run.path / "clients.parquet").write_bytes(b"PAR1")),
    "text table": ("clients.parquet", lambda run: parquet_of(run, accuracy=["a", "b", "c"])),
    "750 % of a client": ("clients.parquet", lambda run: parquet_of(run, accuracy=[0.1, 7.5, 0.2])),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_the_report_continues(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_figures, "all_figures", lambda *_: FigureCatalogue.empty())
    file, harm = DAMAGES[damage]
    write_run(tmp_path / "r", "whole", 0, {20: 0.75}, clients=True)
    hurt = write_run(tmp_path / "r", "hurt", 0, {20: 0.5}, clients=True)
    harm(hurt)
    assert figures.main(["--results", str(tmp_path / "r"), "--out", str(tmp_path / "out")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "75.0" in printed
    html = (tmp_path / "out" / "index.html").read_text()
    for output in (printed, html):
        assert f"{hurt.path.name}/{file}" in output.replace(" ", "")
    assert ("50.0" in printed) == (file == "clients.parquet")  # without its clients the run still counts


def test_odd_small_files_do_not_stop_the_report(tmp_path: Path) -> None:
    odd = [
        ("progress.json", "null"),
        ("progress.json", "[3]"),
        ("failed.json", '{"kind": ["a"], "reason": {"b": 1}}'),
        ("failed.json", "\udcff".encode("utf-8", "surrogateescape").decode("latin-1")),
        ("checkpoint.safetensors", "cut"),
        ("notes.jsonl", "3\n"),
        ("claim.1~", ""),
    ]
    write_run(tmp_path / "r", "whole")
    for seed, (name, content) in enumerate(odd):
        for state in ("done", "running", "failed"):
            accuracies = {10: 0.5} if state != "done" else None
            hurt = write_run(tmp_path / "r", state, seed, accuracies, state=state)
            (hurt.path / name).write_text(content)
    assert figures.main(["--results", str(tmp_path / "r"), "--out", str(tmp_path / "out")]) == 0


def test_a_folder_of_nothing_but_damage_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (write_run(tmp_path / "r").path / "run.yaml").write_bytes(b"\xaf\x00\xff")
    assert figures.main(["--results", str(tmp_path / "r")]) == 2
    assert "run.yaml cannot be read as a run's config" in capsys.readouterr().err


def test_cells_that_a_spreadsheet_would_compute_are_quoted(tmp_path: Path) -> None:
    for seed in range(2):
        for i, label in enumerate(("=1+1", "+1", "-1", "@sum", "\ttab")):
            write_run(tmp_path / "r", label, seed, {20: 0.5}, method=f"odd{i}")
        write_run(tmp_path / "r", "B", seed, {20: 0.6 + 0.01 * seed})
    writer.write(gather([], tmp_path / "r"), tmp_path / "out")
    for name in ("table.csv", "runs.csv", "comparisons.csv"):
        cells = [cell for row in csv.reader(io.StringIO((tmp_path / "out" / name).read_text())) for cell in row]
        assert {"'=1+1", "'+1", "'-1", "'@sum", "tab"} <= set(cells), name
        assert not [cell for cell in cells if cell[:1] in "=+@" and cell]
        assert all(cell[0] != "-" or float(cell) < 0 for cell in cells if cell)  # numbers stay numbers


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
    from fedbench.plan.planning import read_sweep

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
    evidence = gather([file], tmp_path / "results", [tmp_path / "own"])
    assert list(evidence.runs["state"]) == ["done", "pending", "missing"]
    (row,) = grid.main_grids(summary(evidence.runs))[0].rows
    assert (row.label, row.cells[0]) == ("Mine", grid.Cell("50.0", "(1/3 PM)"))
    assert set(evidence.runs["setting"]) == {"my_data · dirichlet 0.2"}


@pytest.mark.slow
@pytest.mark.parametrize("sweeps", [[], [str(ROOT / "sweeps" / "quickstart.yaml")]], ids=["folder", "sweep file"])
def test_reports_import_no_torch(sweeps: list[str], tmp_path: Path) -> None:
    """Not even where a sweep file is read, which needs the plug-ins: a process of its own reads it."""
    write_run(tmp_path / "results", clients=True)
    arguments = [*sweeps, "--results", str(tmp_path / "results"), "--out", str(tmp_path / "out")]
    code = (
        f"import sys; from fedbench.cli import figures; code = figures.main({arguments!r}); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "index.html").is_file()


@pytest.mark.slow
def test_mistakes_in_a_sweep_file_are_reported_by_the_process_of_the_command(tmp_path: Path) -> None:
    """A process of its own reads the file: what it raises comes back as one message, not as a traceback."""
    (tmp_path / "there.yaml").write_text("grd: {}\n")
    command = [sys.executable, str(ROOT / "reports" / "make_figures.py"), "there.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean 'grid'" in done.stderr
    assert "Traceback" not in done.stderr
