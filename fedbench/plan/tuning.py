"""Tuning with the same budget for every method in every setting; validation accuracy alone decides.

A trial is a separate run that never evaluates test data. These are the trials of a method in a setting, on the first seed,
or on each seed with `tune.per_seed`:

1. Trial 0 has the values of the sweep file. Most other trials are points of a Latin hypercube over the method's ranges.
2. The last quarter of the trials follows when these have ended. If the best value so far lies in the outermost part of its
   range, they try values beyond that edge (a range is widened once), else values close to the best trial.
3. With `tune.rounds`, the better half continues to twice as many rounds, and so on (successive halving, Jamieson and
   Talwalkar 2016, arXiv 1502.07943). The last trials, trial 0 among them, have the run's number of rounds and decide.

Then the runs use the values of the best trial; until then they wait. The number and the lengths of trials are the same for
every method that searches anything. Only runs are stored: the state of the search is derived from their records each time.

`PlannedRun.tuning`, which run.yaml keeps as `tuning`, holds:

* for a trial: `trial_of` (the label of its method), `values` ({dotted path: value}), `number` (from 0), `kind` ("default",
  "search", "widened" or "refined") and `rung` (from 0; only trials of the last rung decide);
* for a run with chosen values: `values`, `trials` (their number, each counted once on whatever rung it ended), `validation`
  (accuracy of the best trial), `trial` (its folder), `default_validation` (of trial 0 on the last rung, None if it diverged),
  `rungs` ([trials, rounds] of each), `budget_rounds` (their total), `per_seed`, `widened` (paths whose range was widened) and
  `edges` (paths whose chosen value still lies at an edge of its range).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fedbench.base.naming import flat
from fedbench.base.records import RunFolder
from fedbench.plan.config import ConfigError, PlannedRun, Sweep, Tune
from fedbench.plan.planning import with_values
from fedbench.plan.search_space import Ranges, draws, edge_of, point, search_space, share_of, widened

FINALISTS = 3  # at least this many trials reach the run's number of rounds: the two best and trial 0


@dataclass(frozen=True)
class Trial:
    """One trial on one rung: its run, the values that it tries, and how it ended."""

    planned: PlannedRun
    values: dict[str, Any]
    ended: bool
    validation: float | None  # mean validation accuracy of the last round; None: not ended, or diverged

    @property
    def number(self) -> int:
        """The trial's number, from 0; the same on every rung."""
        return int(self.planned.tuning["number"])

    @property
    def order(self) -> tuple[float, int]:
        """A sort key: trials from best to worst, and equal trials by number."""
        return -1.0 if self.validation is None else self.validation, -self.number


@dataclass(frozen=True)
class Group:
    """The runs of one method in one setting, which differ in the seed alone, and the trials for them so far."""

    runs: tuple[PlannedRun, ...]
    trials: tuple[Trial, ...] = ()
    last: tuple[Trial, ...] = ()  # those of the last rung, if it has been reached
    summary: Mapping[str, Any] = field(default_factory=dict)  # what the chosen runs keep of the search

    @property
    def decided(self) -> bool:
        """Whether all trials of the last rung have ended, and at least one did not diverge."""
        return all(trial.ended for trial in self.last) and any(t.validation is not None for t in self.last)

    @property
    def best(self) -> Trial:
        """The trial of the last rung with the highest validation accuracy; of equal trials, the first."""
        return max(self.last, key=lambda trial: trial.order)


def next_stage(sweep: Sweep, results: Path) -> Sweep:
    """`sweep` with the runs that can be done now: open trials, and runs whose values are chosen.

    Runs that wait for trials are in ``later``, with the values of the sweep file. A sweep without `tune:` is returned
    unchanged. Raises ConfigError.
    """
    if sweep.tune is None:
        return sweep
    now: list[PlannedRun] = []
    later: list[PlannedRun] = []
    for group in tuning_groups(sweep, results):
        if not group.trials:
            now += group.runs
        elif group.decided:
            now += chosen_runs(sweep, group)
        else:
            now += [trial.planned for trial in group.trials]
            later += group.runs
    unique = {run.key: run for run in now}
    return dataclasses.replace(sweep, runs=tuple(unique.values()), later=tuple(later))


def chosen_runs(sweep: Sweep, group: Group) -> list[PlannedRun]:
    """The runs of a decided group with the values of its best trial."""
    best = group.best
    default = next((trial for trial in group.last if trial.number == 0), None)
    tuning = {
        "values": best.values,
        "trials": len({trial.number for trial in group.trials}),
        "validation": best.validation,
        "trial": best.planned.name,
        "default_validation": None if default is None else default.validation,
        **group.summary,
    }
    return [with_values(run, best.values, sweep.plugins, tuning) for run in group.runs]


def tuning_groups(sweep: Sweep, results: Path) -> Iterator[Group]:
    """Every method in every setting of a sweep with `tune:`, with the state of its trials below `results`.

    Raises ConfigError if a range does not make legal runs.
    """
    tune = sweep.tune
    if tune is None:
        return
    apart = () if tune.per_seed else ("seed", "seeds")
    members: dict[str, list[PlannedRun]] = {}
    for planned in sweep.runs:
        setting = {key: value for key, value in planned.identity.items() if key not in apart}
        members.setdefault(json.dumps([planned.label, setting], sort_keys=True), []).append(planned)
    legal: set[tuple[Any, ...]] = set()
    for runs in members.values():
        yield _Search(sweep, tune, tuple(runs), results, legal).group()


def rungs(tune: Tune, rounds: int) -> list[tuple[int, int]]:
    """(trials, rounds) of each rung for runs of `rounds` rounds."""
    lengths = [min(tune.rounds or rounds, rounds)]
    while lengths[-1] < rounds:
        lengths.append(min(2 * lengths[-1], rounds))
    least = min(FINALISTS, tune.trials)
    return [(max(math.ceil(tune.trials / 2**k), least), length) for k, length in enumerate(lengths)]


class _Search:
    """The trials of one method in one setting, as far as the records determine them."""

    def __init__(
        self, sweep: Sweep, tune: Tune, runs: tuple[PlannedRun, ...], results: Path, legal: set[tuple[Any, ...]]
    ) -> None:
        self.sweep, self.tune, self.runs, self.results = sweep, tune, runs, results
        self.legal = legal  # (method, aggregation, path, value) that have been checked, also for other groups
        self.first = runs[0]
        self.rungs = rungs(tune, self.first.run.rounds)
        self.late = tune.trials // 4  # trials of step 2
        self.strata = max(1, tune.trials - 1 - self.late)

    @cached_property
    def ranges(self) -> Ranges:
        """The search space. Raises ConfigError if an end or a choice of a range makes no legal run."""
        space = search_space(self.sweep, self.first)
        names = self.first.run.method["name"], self.first.run.aggregation["name"]
        for path, range_ in space.items():
            for value in next(iter(range_.values())):
                if (*names, path, value) not in self.legal:
                    with_values(self.first, {path: value}, self.sweep.plugins, {})
                    self.legal.add((*names, path, value))
        return space

    def group(self) -> Group:
        if not self.ranges:
            return Group(self.runs)
        trials = [self._trial(0, number, kind, values) for number, (kind, values) in enumerate(self._opening())]
        edges: dict[str, int] = {}
        if _ended(trials) and self.late and any(trial.validation is not None for trial in trials):
            best = max(trials, key=lambda trial: trial.order)
            edges = self._open_edges(best)
            points = self._beyond(best, edges) if edges else self._around(best)
            kind, count = "widened" if edges else "refined", len(trials)
            trials += [self._trial(0, count + i, kind, values) for i, values in enumerate(points)]
        last = _distinct(trials)
        everything = list(last)
        complete = len(trials) >= min(self.tune.trials, 1 + self.strata + self.late)
        for rung, (count, _) in enumerate(self.rungs[1:], start=1):
            if not (complete and _ended(last)):
                break
            kept = self._promoted(last, count)
            last = [self._trial(rung, t.number, t.planned.tuning["kind"], t.values) for t in kept]
            everything += last
        else:
            complete = complete and _ended(last)
            return Group(self.runs, tuple(everything), tuple(last) if complete else (), self._summary(last, edges))
        return Group(self.runs, tuple(everything))

    def _opening(self) -> list[tuple[str, dict[str, Any]]]:
        """Trial 0 with the values of the sweep file, and the points of the hypercube."""
        fields = flat(self.first.run.model_dump())
        defaults = {path: fields.get(path) for path in self.ranges}
        points = draws(self.ranges, self.strata) if self.tune.trials > 1 else []
        return [("default", defaults), *(("search", values) for values in points)]

    def _open_edges(self, best: Trial) -> dict[str, int]:
        """{path: side} of the ranges at whose edge the best trial lies, and beyond which values are legal."""
        edges = {path: edge_of(range_, best.values[path], self.strata) for path, range_ in self.ranges.items()}
        return {
            path: side for path, side in edges.items() if side and self._is_legal(self._values(best, {path: side}, 1.0))
        }

    def _values(self, best: Trial, edges: Mapping[str, int], share: float) -> dict[str, Any]:
        """The best trial's values, with those at `edges` moved outwards by `share` of the widening."""
        moved = {}
        for path, side in edges.items():
            old, new = self.ranges[path], widened(self.ranges[path], side)
            (ends,) = new.values()
            outer = share_of(old, ends[0] if side < 0 else ends[1]) or 0.0
            edge = 0.0 if side < 0 else 1.0
            moved[path] = point(old, edge + share * (outer - edge))
        return {**best.values, **moved}

    def _beyond(self, best: Trial, edges: Mapping[str, int]) -> list[dict[str, Any]]:
        return [self._values(best, edges, (i + 1) / self.late) for i in range(self.late)]

    def _around(self, best: Trial) -> list[dict[str, Any]]:
        """Points of a hypercube within one stratum of the best trial; what has no neighbours stays."""
        near: dict[str, Any] = {}
        for path, range_ in self.ranges.items():
            share = share_of(range_, best.values[path])
            if share is not None:
                low = max(min(0.0, share), share - 1 / self.strata)
                high = min(max(1.0, share), share + 1 / self.strata)
                (law,) = range_
                near[path] = {law: (point(range_, low), point(range_, high))}
        # An even number of strata, so that none has the best trial itself at its middle.
        points = draws(near, 2 * math.ceil(self.late / 2)) if near else draws(self.ranges, self.late)
        return [{**best.values, **values} for values in points[: self.late]]

    def _promoted(self, trials: Sequence[Trial], count: int) -> list[Trial]:
        """The `count` best trials, trial 0 always among them."""
        ranked = sorted(trials, key=lambda trial: trial.order, reverse=True)
        default = [trial for trial in trials if trial.number == 0]
        kept = default + [trial for trial in ranked if trial.number != 0][: count - len(default)]
        return sorted(kept, key=lambda trial: trial.number)

    def _summary(self, last: Sequence[Trial], edges: Mapping[str, int]) -> dict[str, Any]:
        """The facts about the search that the chosen runs keep, beside the chosen values."""
        space = {path: widened(r, edges[path]) if path in edges else r for path, r in self.ranges.items()}
        best = max(last, key=lambda trial: trial.order)
        return {
            "rungs": [list(rung) for rung in self.rungs],
            "budget_rounds": budget_rounds(self.rungs),
            "per_seed": self.tune.per_seed,
            "widened": sorted(edges),
            "edges": sorted(path for path, r in space.items() if edge_of(r, best.values[path], self.strata)),
        }

    def _is_legal(self, values: Mapping[str, Any]) -> bool:
        try:
            with_values(self.first, values, self.sweep.plugins, {})
        except ConfigError:
            return False
        return True

    def _trial(self, rung: int, number: int, kind: str, values: dict[str, Any]) -> Trial:
        rounds = self.rungs[rung][1]
        run = {**values, "rounds": rounds, "evaluate_every": rounds, "test_data": False}
        tuning = {"trial_of": self.first.label, "values": values, "number": number, "kind": kind, "rung": rung}
        planned = with_values(self.first, run, self.sweep.plugins, tuning)
        return Trial(planned, values, *_outcome(RunFolder(self.results / planned.name)))


def _ended(trials: Iterable[Trial]) -> bool:
    return all(trial.ended for trial in trials)


def _distinct(trials: Iterable[Trial]) -> list[Trial]:
    """`trials` without those that are the same run as an earlier trial."""
    kept: dict[str, Trial] = {}
    for trial in trials:
        kept.setdefault(trial.planned.key, trial)
    return list(kept.values())


def _outcome(folder: RunFolder) -> tuple[bool, float | None]:
    """(whether the trial has ended by itself, its last validation accuracy). A trial that diverged has ended without accuracy.

    A trial with damaged files has not ended: the sweep does it again. Raises OSError if its folder is away.
    """
    status = folder.status
    if status == "failed":
        return folder.failure().get("kind") == "diverged", None
    if status != "done" or folder.damage():
        return False, None
    records = folder.records()
    value = max(records, key=lambda record: record["round"]).get("val_mean_accuracy") if records else None
    return True, value


# -- texts ---------------------------------------------------------------------------------------------------------------------
def budget_rounds(steps: Iterable[Sequence[int]]) -> int:
    """The rounds of all trials of a method in a setting together."""
    return sum(trials * rounds for trials, rounds in steps)


def budget_text(sweep: Sweep) -> str:
    """A sentence about the budget of the tuning; empty without `tune:`."""
    if sweep.tune is None:
        return ""
    runs = [*sweep.runs, *sweep.later]
    lengths = sorted({planned.run.rounds for planned in runs if "trial_of" not in planned.tuning})
    parts = []
    for rounds in lengths or [max(planned.run.rounds for planned in runs)]:
        steps = rungs(sweep.tune, rounds)
        words = ", ".join(f"{trials} of {length} rounds" for trials, length in steps)
        parts.append(f"{words} ({budget_rounds(steps)} rounds)")
    seeds = "each seed" if sweep.tune.per_seed else "the first seed"
    return f"tuning, for every method that searches values, in each setting on {seeds}: trials {'; or '.join(parts)}"


def remarks(sweep: Sweep) -> list[str]:
    """A line for each choice whose value lies at the edge of its range, or for which a range was widened."""
    lines: dict[str, None] = {}
    for planned in sweep.runs:
        for path in planned.tuning.get("edges", ()):
            was = "widened " if path in planned.tuning.get("widened", ()) else ""
            value = planned.tuning["values"][path]
            lines[f"tuning, {planned.label}: {path} = {value} lies at the edge of its {was}range; see tune.search"] = (
                None
            )
        for path in set(planned.tuning.get("widened", ())) - set(planned.tuning.get("edges", ())):
            lines[f"tuning, {planned.label}: the range of {path} was widened"] = None
    return list(lines)
