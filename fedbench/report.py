"""From a results folder to a report: gathers the runs, names their settings, writes every table, figure and the page.

Without sweep files nothing here imports torch; reading a sweep file loads the plug-ins, which do.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pyarrow import parquet
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedbench import figures, page, tables
from fedbench.records import RecordsError, RunFolder, load, run_folders, write_aside

# libyaml where there is one: it reads ten thousand configs in seconds instead of a minute
Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

NAMED = ("dataset", "partition", "aggregation", "backbone")  # blocks that a record names in words
SETTING = ("dataset", "partition", "backbone", "clients")  # what methods must share to be compared


class ReportError(ValueError):
    """A report that cannot be made: says what was expected and what was found."""


@dataclass(frozen=True)
class Planned:
    """A run of the report before its records are read: its folder, and what it is by its config."""

    folder: RunFolder
    label: str
    config: dict[str, Any]  # what changes its numbers, without the seed
    seed: int
    names: dict[str, str]  # block -> words, where the sweep file told them
    reference: bool = False


@dataclass(frozen=True)
class Evidence:
    """All that a report is made from; `runs` has a row per run (`tables.COLUMNS` and the metrics)."""

    runs: pd.DataFrame
    records: pd.DataFrame  # a row per evaluated round, with setting, label, state, reference
    clients: pd.DataFrame  # a row per client of each finished run: setting, label, seed, client, held_out, accuracy
    title: str


# -- gathering ---------------------------------------------------------------------------------------------------------
def gather(
    sweeps: Sequence[Path], results: Path, plugins: Sequence[Path] = (), settings: Sequence[str] = ()
) -> Evidence:
    """The runs of `sweeps` below `results`, or without sweeps every run there, with records and clients.

    Raises ReportError (nothing to report, a mistake in a sweep file) or RecordsError (a broken run.yaml).
    """
    if not sweeps and not results.is_dir():
        raise ReportError(_no_results(results))
    planned = list(_from_sweeps(sweeps, results, plugins, settings) if sweeps else _from_disk(results))
    if not planned:
        raise ReportError(_no_results(results) if not sweeps else f"no runs in {', '.join(map(str, sweeps))}")
    records = load(run.folder for run in planned)
    runs = tables.with_last_round(_describe(planned, records), records)
    named = runs[["run", "setting", "label", "reference", "state"]]
    if not records.empty:
        own = records.drop(columns=["setting", "label", "reference", "state"], errors="ignore")
        own = own.reindex(columns=[*own.columns, *(name for name in tables.METRIC if name not in own)])
        records = own.merge(named, on="run", validate="many_to_one")
    title = ", ".join(dict.fromkeys(path.stem for path in sweeps)) or f"all runs in {results.name}"
    return Evidence(runs, records, _clients(planned, runs), title)


def _no_results(results: Path) -> str:
    what = "holds no runs" if results.is_dir() else "is a file" if results.exists() else "does not exist"
    near = (
        [path for path in results.parent.glob("*/") if next(run_folders(path), None)] if results.parent.is_dir() else []
    )
    hint = f"; folders beside it that hold runs: {', '.join(sorted(path.name for path in near))}" if near else ""
    return f"results folder {results} {what}{hint}. Runs are made by `python -m fedbench.sweep <file>`; see --results"


def _from_disk(results: Path) -> Iterator[Planned]:
    """Every run below `results`, by name. Configs that differ in the seed alone are parsed once."""
    parsed: dict[str, dict[str, Any]] = {}
    seed_line = re.compile(r"^  seed: (\d+)\n", re.MULTILINE)  # of the identity and of the run, both two deep
    for folder in run_folders(results):
        path = folder.path / "run.yaml"
        text = path.read_text()
        seeds = set(seed_line.findall(text))
        text = seed_line.sub("", text) if len(seeds) == 1 else text
        if text not in parsed:
            try:
                parsed[text] = yaml.load(text, Loader=Loader)  # noqa: S506 - a safe loader either way
                identity = parsed[text]["identity"]
                _ = {**identity}
            except (yaml.YAMLError, TypeError, KeyError) as error:
                raise RecordsError(f"{path}: cannot be read as a run's config ({error!r})") from error
        config = parsed[text]
        identity = dict(config["identity"])
        inside = identity.pop("seed", 0)
        seed = int(next(iter(seeds))) if len(seeds) == 1 else int(inside)
        method = identity.get("method")
        label = config.get("label") or (method.get("name") if isinstance(method, dict) else None) or folder.path.name
        yield Planned(folder, str(label), identity, seed, {})


def _from_sweeps(
    sweeps: Sequence[Path], results: Path, plugins: Sequence[Path], settings: Sequence[str]
) -> Iterator[Planned]:
    """The runs of the sweep files in their order, each once."""
    from fedbench.config import ConfigError, read_sweep, short_name  # loads the plug-ins, hence torch
    from fedbench.plugins import Plugins

    def names(found: Plugins, run: dict[str, Any]) -> dict[str, str]:
        words = {
            kind: short_name(run[kind], found.classes[kind][run[kind]["name"]])
            for kind in ("dataset", "partition", "aggregation")
        }
        return words | {"backbone": str(run["backbone"]["name"])}

    seen: set[str] = set()
    for path in sweeps:
        if not path.is_file():
            near = ", ".join(sorted(str(file) for file in path.parent.glob("*.yaml"))) or "none"
            raise ReportError(f"sweep file {path} does not exist; sweep files beside it: {near}")
        try:
            sweep = read_sweep(path, plugins, settings)
        except ConfigError as error:  # which speaks for plug-ins too, save for a folder that does not exist
            raise ReportError(str(error)) from error
        for planned in sweep.runs:
            if planned.key in seen:
                continue
            seen.add(planned.key)
            identity = json.loads(json.dumps(planned.identity, default=str))
            seed = identity.pop("seed")
            cls = sweep.plugins.classes["method"][planned.run.method["name"]]
            yield Planned(
                RunFolder(results / planned.name),
                planned.label,
                identity,
                seed,
                names(sweep.plugins, planned.run.model_dump()),
                bool(getattr(cls, "reference", False)),
            )


def _describe(planned: Sequence[Planned], records: pd.DataFrame) -> pd.DataFrame:
    """One row per run: what it is, in words that tell different settings and methods apart, and its state."""
    told: dict[str, dict[str, Any]] = {}
    if not records.empty:
        columns = ["run", *(name for name in (*NAMED, "reference") if name in records)]
        first = records.drop_duplicates("run")[columns]
        told = {row["run"]: {str(key): value for key, value in row.items()} for row in first.to_dict("records")}
    words: dict[
        tuple[str, str], str
    ] = {}  # what records call a block, so that a run without records is called the same
    references: set[str] = set()
    for run in planned:
        record = told.get(run.folder.path.name, {})
        for name in NAMED:
            if isinstance(record.get(name), str):
                words.setdefault((name, _key(run.config.get(name))), record[name])
        if run.reference or record.get("reference") is True:
            references.add(_method(run))
    rows = []
    for run in planned:
        state: str = run.folder.status
        failure = run.folder.failure() if state == "failed" else {}
        progress = run.folder.progress() if state == "running" else {}
        said = " ".join(str(failure.get("reason", "")).split())
        if "round" in progress:
            said = f"round {progress['round']} of {progress.get('rounds', '?')}"
        named = {
            name: words.get((name, _key(run.config.get(name)))) or run.names.get(name) or _words(run.config.get(name))
            for name in NAMED
        }
        rows.append(
            {
                "run": run.folder.path.name,
                **named,
                "method": _method(run),
                "label": " ".join(run.label.split()),
                "reference": _method(run) in references,
                "seed": run.seed,
                "state": "diverged" if failure.get("kind") == "diverged" else state,
                "said": said,
                "rounds": run.config.get("rounds"),
            }
        )
    frame = pd.DataFrame(rows)
    frame["rounds"] = pd.to_numeric(frame["rounds"]).astype(float)
    several = frame["backbone"].nunique() > 1
    parts = ["dataset", "partition", *(["backbone"] if several else [])]
    frame["setting"] = _together(frame, parts)
    configs = [{name: run.config.get(name) for name in SETTING} for run in planned]
    frame["setting"] = _told_apart(frame["setting"], configs, [""] * len(frame), " · ")
    configs = [{name: run.config.get(name) for name in SETTING if name != "partition"} for run in planned]
    context = _together(frame, [part for part in parts if part != "partition"])
    frame["context"] = _told_apart(context, configs, [""] * len(frame), " · ")
    own = [{key: value for key, value in run.config.items() if key not in SETTING} for run in planned]
    frame["label"] = _told_apart(frame["label"], own, list(frame["setting"]), " ")
    frame["partition_fields"] = [_key(run.config.get("partition")) for run in planned]
    return frame if any(run.names for run in planned) else _natural(frame)


def _together(frame: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    return [" · ".join(texts) for texts in zip(*(frame[column] for column in columns), strict=True)]


def _told_apart(names: Iterable[str], configs: list[dict[str, Any]], places: list[str], joint: str) -> list[str]:
    """`names`, made longer where one name stands for several configs in one place, by the fields in which they differ."""
    names = list(names)
    keys = [_key(config) for config in configs]
    by_place: dict[tuple[str, str], set[str]] = {}
    variants: dict[str, dict[str, dict[str, Any]]] = {}
    for name, key, config, place in zip(names, keys, configs, places, strict=True):
        by_place.setdefault((name, place), set()).add(key)
        variants.setdefault(name, {})[key] = config
    unclear = {name for (name, _), found in by_place.items() if len(found) > 1}
    longer: dict[tuple[str, str], str] = {}
    for name in unclear:
        flat = {key: _flat(config) for key, config in variants[name].items()}
        fields = sorted({field for fields in flat.values() for field in fields})
        differ = [field for field in fields if len({_key(one.get(field)) for one in flat.values()}) > 1]
        for key, one in flat.items():
            longer[name, key] = f"{name}{joint}[{', '.join(f'{field}={one.get(field)}' for field in differ)}]"
    return [longer.get((name, key), name) for name, key in zip(names, keys, strict=True)]


def _flat(config: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {path: config}
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _flat(value, f"{path}.{key}" if path else str(key))
    return found


def _natural(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows by method (references last), setting and seed, with alpha=0.1 before alpha=0.3 before alpha=10."""

    def key(text: str) -> list[tuple[int, float, str]]:
        parts = re.split(r"(\d+(?:\.\d+)?)", text.casefold())
        return [(0, float(part), "") if i % 2 else (1, 0.0, part) for i, part in enumerate(parts)]

    ranks = {}
    for column in ("label", "setting"):
        ranks[column] = {text: i for i, text in enumerate(sorted(frame[column].unique(), key=lambda t: (key(t), t)))}
    order = frame.assign(label=frame["label"].map(ranks["label"]), setting=frame["setting"].map(ranks["setting"]))
    order = order.sort_values(["reference", "setting", "label", "seed", "run"], kind="stable")
    return frame.loc[order.index].reset_index(drop=True)


def _method(run: Planned) -> str:
    block = run.config.get("method")
    return str(block.get("name", "")) if isinstance(block, dict) else str(block or "")


def _words(block: Any) -> str:
    if isinstance(block, dict) and "name" in block:
        told = [f"{key}={value}" for key, value in block.items() if key != "name" and value is not None]
        return str(block["name"]) + (f"({', '.join(told)})" if told else "")
    return "" if block is None else str(block)


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _clients(planned: Sequence[Planned], runs: pd.DataFrame) -> pd.DataFrame:
    """Clients of every finished run that has a readable clients.parquet."""
    folders = {run.folder.path.name: run.folder.path for run in planned}
    parts = []
    for run, setting, label, seed in runs.loc[runs["state"] == "done", ["run", "setting", "label", "seed"]].to_numpy():
        try:
            part = (
                parquet.ParquetFile(folders[run] / "clients.parquet")
                .read(["client", "held_out", "accuracy"])
                .to_pandas()
            )
        except (OSError, ValueError, KeyError):  # absent, or not what it should be: the figure says which runs it shows
            continue
        parts.append(part.assign(run=run, setting=setting, label=label, seed=seed))
    columns = ["client", "held_out", "accuracy", "run", "setting", "label", "seed"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


# -- writing -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Written:
    """What `write` made."""

    page: Path
    figures: tuple[Path, ...]
    summary: pd.DataFrame
    alarms: list[str]


def write(evidence: Evidence, out: Path) -> Written:
    """Write index.html, tables and figures into `out` (made if missing); figures of an earlier report are removed.

    The same evidence gives the same bytes. Raises ReportError where `out` cannot be written.
    """
    runs = evidence.runs
    summary = tables.summary(runs)
    alarms, legend, footer = tables.alarms(runs), tables.legend(summary), tables.footer(runs)
    main = tables.main_grids(summary)
    details = [
        (str(setting), tables.detail_grid(part, str(setting)), tables.cost_grid(part, str(setting)))
        for setting, part in summary.groupby("setting", sort=False)
    ]
    caption = " ".join(legend)
    notes = [f"**Warning.** {tables.markdown(alarm)}" for alarm in alarms]
    notes += ["\n".join(f"- {tables.markdown(line)}" for line in (*legend, *footer))]
    markdown = [f"# {tables.markdown(evidence.title)}", tables.to_markdown(main), *notes, "## Each setting"]
    for setting, accuracy, cost in details:
        markdown += [f"### {tables.markdown(setting)}", tables.to_markdown([accuracy, cost])]
    warned = "".join(f"% WARNING: {' '.join(alarm.split())}\n" for alarm in alarms)
    remarks = "".join(f"% {' '.join(line.split())}\n" for line in footer)
    more = [f"{len(alarms) - 3} more warnings."] if len(alarms) > 3 else []
    bold = " WARNING: " + " ".join([*alarms[:3], *more]) if alarms else ""
    text = {
        "table.csv": tables.to_csv(summary),
        "runs.csv": runs.drop(columns=["partition_fields", "context"]).to_csv(index=False, lineterminator="\n"),
        "table.md": "\n\n".join(markdown) + "\n",
        "table.tex": warned + remarks + tables.to_latex(main, caption + bold, "main"),
        "details.tex": warned
        + remarks
        + "\n".join(
            tables.to_latex(tables.split(accuracy), f"{setting}. {caption}{bold}", f"detail-{i}")
            for i, (setting, accuracy, _) in enumerate(details, 1)
        ),
    }
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for name, content in text.items():
            write_aside(out / name, content.encode())
        shown, paths = [], []
        for old in sorted((out / "figures").glob("*")):
            if old.suffix in (".png", ".pdf") and old.name.startswith(figures.NAMES):
                old.unlink()
        for drawing in figures.all_figures(runs, evidence.records, evidence.clients):
            files = {}
            for kind, data in drawing.files.items():
                files[kind] = f"figures/{drawing.name}.{kind}"
                write_aside(out / files[kind], data)
                paths.append(out / files[kind])
            shown.append(page.Shown(drawing.title, drawing.caption, files, drawing.width))
        html = page.render(evidence.title, runs, main, details, legend, footer, alarms, shown)
        write_aside(out / "index.html", html.encode())
    except OSError as error:
        raise ReportError(f"--out {out}: cannot be written ({error.strerror or error}); name a folder") from error
    return Written(out / "index.html", tuple(paths), summary, alarms)


def show(written: Written, evidence: Evidence, console: Console) -> None:
    """Print the main table, its legend, warnings, and where the files are."""
    name = min(30, max(len(label) for label in tables.labels(evidence.runs)) + 2)
    for grid in tables.main_grids(written.summary, max(1, min(3, (console.width - name - 4) // 32))):
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("Method", overflow="fold")
        for lines, titles in grid.groups:
            for title in titles:
                table.add_column(Text("\n".join([*lines, title])), justify="right", overflow="fold")
        for row in grid.rows:
            cells = [Text(row.label + (f" {tables.REFERENCE}" if row.reference else ""))]
            for cell in row.cells:
                text = Text(cell.number, style="bold" if cell.mark == "best" else "")
                text.append(tables.TIE if cell.mark == "tied" else "")
                text.append((" " if cell.number and cell.note else "") + cell.note, style="not bold dim")
                cells.append(text)
            table.add_row(*cells)
        console.print(table, "")
    for line in (*tables.legend(written.summary), *tables.footer(evidence.runs)):
        console.print(Text(line, style="dim"))
    for alarm in written.alarms[:10]:
        console.print(Text(f"WARNING: {alarm}", style="bold yellow"))
    if len(written.alarms) > 10:
        console.print(Text(f"WARNING: {len(written.alarms) - 10} more, see the page", style="bold yellow"))
    console.print()
    for path in (written.page, *written.figures):
        console.print(Text(str(path)), soft_wrap=True)


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """The command line; returns the exit code: 0, or 2 for a mistake (argparse exits with 2 by itself)."""
    parser = argparse.ArgumentParser(
        prog=program, description="Make every table and figure, and a page that shows them."
    )
    parser.add_argument(
        "sweeps", nargs="*", type=Path, metavar="SWEEP.yaml", help="report exactly the runs of these files"
    )
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="where runs are (results)")
    parser.add_argument(
        "--out", type=Path, default=Path("reports/out"), metavar="DIR", help="where to write (reports/out)"
    )
    parser.add_argument(
        "--plugins", type=Path, nargs="+", default=[], metavar="DIR", help="folders of further plug-ins"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as given to the sweep")
    given = parser.parse_args(arguments)
    error_console = Console(stderr=True)
    try:
        evidence = gather(given.sweeps, given.results, given.plugins, given.set)
        written = write(evidence, given.out)
    except ValueError as error:
        if not isinstance(error, ReportError | RecordsError) and type(error).__name__ not in (
            "ConfigError",
            "PluginError",
        ):
            raise  # a fault of the program, not a mistake of the user
        error_console.print(Text(str(error)), soft_wrap=True)
        return 2
    show(written, evidence, Console())
    return 0
