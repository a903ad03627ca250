"""`fedbench sweep --dry-run`: lists the runs of a sweep, their states and estimated costs. Starts and writes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedbench.cli.output import say
from fedbench.data import DataError
from fedbench.jobs import watch
from fedbench.jobs.measured_rate import Rate, measured_rates
from fedbench.plan import tuning
from fedbench.plan.config import PlannedRun, Sweep, short_name

COSTS_NOTHING = ("seed", "seeds", "partition", "evaluate_every")  # keys of a run that do not affect its estimate
ESTIMATED = ("multiply_adds", "memory_bytes")  # columns of an estimate


def dry_run(sweep: Sweep, results: Path, as_json: bool) -> None:
    """List all runs with their states and what they will cost."""
    views = watch.Observer(results, sweep.runs).look()
    rows, problems = _rows(sweep, views)
    estimated = [row for row in rows if row["state"] != "done" and row["multiply_adds"] is not None]
    total = sum(row["multiply_adds"] for row in estimated)
    rates = measured_rates(results)
    hours = _hours(sweep, estimated, rates)
    if as_json:
        totals = {"multiply_adds": total, "hours": hours}
        say(json.dumps({"sweep": sweep.name, "counts": watch.counts(views), **totals, "runs": rows}))
        return
    _print_table(rows)
    most = max((row["memory_bytes"] for row in estimated), default=0)
    say(f"\n{sweep.name}: {watch.summary(views)}{later(sweep)}")
    say(f"to do: about {total:.2g} multiply-adds, at most {most / 1e9:.1f} GB of memory at once in a run")
    if estimated:
        say(_hours_in_words(hours, [rates[name] for name in _backbones(estimated) if name in rates]))
    for text in [tuning.budget_text(sweep), *tuning.remarks(sweep)] if sweep.tune else ():
        say(text)
    for problem in problems:
        say(f"no estimate: {problem}")


def _backbones(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["backbone"] for row in rows))


def _hours(sweep: Sweep, rows: Sequence[dict[str, Any]], rates: Mapping[str, Rate]) -> float | None:
    """Hours of all `rows` together; None if a backbone has no finished run to measure."""
    if any(name not in rates for name in _backbones(rows)):
        return None
    return sum(rates[row["backbone"]].hours(row["multiply_adds"], sweep.cluster.runs_per_gpu) for row in rows)


def _hours_in_words(hours: float | None, rates: Sequence[Rate]) -> str:
    """A sentence with the hours and where the rates were measured, or why there are none."""
    if hours is None:
        return "hours: not known until a run with each backbone has finished in this results folder, whose rate is then used"
    unit = "GPU-hours" if all(rate.on_gpu for rate in rates) else "hours of one run after another"
    return f"about {hours:.2g} {unit}: {'; '.join(rate.words for rate in rates)}"


def later(sweep: Sweep) -> str:
    """The end of a sentence: how many runs wait for trials."""
    return f"; {len(sweep.later)} more wait for trials of the tuning" if sweep.later else ""


def _rows(sweep: Sweep, views: Sequence[watch.View]) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each run, and a sentence for each reason why a run has no estimate."""
    from fedbench.run import cost  # imports timm, which takes seconds, so only where it is needed
    from fedbench.vit.backbone import BackboneError

    states = [(planned, planned.name, view.state) for planned, view in zip(sweep.runs, views, strict=True)]
    states += [(planned, "(named when tuned)", "missing") for planned in sweep.later]
    estimates: dict[str, cost.Estimate | str] = {}
    rows = []
    for planned, name, state in states:
        costs = {key: value for key, value in planned.identity.items() if key not in COSTS_NOTHING}
        key = json.dumps(costs, sort_keys=True)
        if key not in estimates:
            try:
                estimates[key] = cost.estimate(planned, sweep.plugins, sweep.machine)
            except (DataError, BackboneError) as error:
                estimates[key] = str(error)
        estimate = estimates[key]
        known = not isinstance(estimate, str)
        row = _row(sweep, planned) | {"name": name, "state": state}
        rows.append(row | {column: getattr(estimate, column) if known else None for column in ESTIMATED})
    return rows, [estimate for estimate in estimates.values() if isinstance(estimate, str)]


def _row(sweep: Sweep, planned: PlannedRun) -> dict[str, Any]:
    """The table row of a run in words. Its name and state are filled in later."""
    run, classes = planned.run, sweep.plugins.classes
    return {
        "name": "",
        "method": planned.label + " [trial]" * ("trial_of" in planned.tuning),
        "dataset": short_name(run.dataset, classes["dataset"][run.dataset["name"]]),
        "partition": short_name(run.partition, classes["partition"][run.partition["name"]]),
        "backbone": run.backbone.name,
        "seed": run.seed,
        "state": "",
    }


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    cells = [tuple(rows[0])] + [tuple(_cell(key, value) for key, value in row.items()) for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "?"
    if key == "memory_bytes":
        return f"{value / 1e9:.1f} GB"
    return f"{value:.2g}" if key == "multiply_adds" else str(value)
