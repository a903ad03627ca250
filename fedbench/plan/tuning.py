"""Tuning with the same budget for every method in every setting; validation accuracy alone decides.

A trial is a separate run that never evaluates test data. These are the trials of a method in a setting, on the first seed
(steps 1 to 3), or on each seed with `tune.per_seed`:

1. Trial 0 has the values of the sweep file. Most other trials are points of a Latin hypercube over the method's ranges.
2. The last quarter of the trials follows when these have ended. If the best value so far lies in the outermost part of its
   range, they try values beyond that edge (a range is widened once), else values close to the best trial.
3. With `tune.rounds`, the better half continues to twice as many rounds, and so on (successive halving, Jamieson and
   Talwalkar 2016, arXiv 1502.07943). The last trials, trial 0 among them, have the run's number of rounds.
4. The three best of these, trial 0 among them, are repeated on further seeds (`tune.seeds`), and `plan.finalists` chooses
   between them. With `tune.per_seed` nothing is repeated: each seed chooses for itself.

Then the runs use the chosen values; until then they wait. The number and the lengths of trials are the same for
every method that searches anything. Only runs are stored: the state of the search is derived from their records each time.

`PlannedRun.tuning`, which run.yaml keeps as `tuning`, holds:

* for a trial: `trial_of` (the label of its method), `values` ({dotted path: value}), `number` (from 0), `kind` ("default",
  "search", "widened" or "refined"; "repeated" on further seeds) and `rung` (from 0; trials of the last rung are repeated);
* for a run with chosen values: `values`, `trials` (their number, each counted once on whatever rung it ended), `validation`
  (accuracy of the chosen values, mean over `tuned_seeds` seeds), `trial` (its folder, on the first seed), `default_validation`
  (of trial 0, None if it diverged), `default_kept` (whether other values did better, but by no more than the standard error),
  `rungs` ([trials, rounds] of each), `budget_rounds` (the total with the repeats), `per_seed`, `widened` (paths whose range
  was widened) and `edges` (paths whose chosen value still lies at an edge of its range).
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
from fedbench.plan.finalists import FINALISTS, Finalist, Trial, choose, outcome
from fedbench.plan.planning import with_values
from fedbench.plan.search_space import Ranges, draws, edge_of, point, search_space, share_of, widened


@dataclass(frozen=True)
class Group:
    """The runs of one method in one setting, which differ in the seed alone, and the trials for them so far."""

    runs: tuple[PlannedRun, ...]
    trials: tuple[Trial, ...] = ()
    finalists: tuple[Finalist, ...] = ()  # once the last rung has ended
    summary: Mapping[str, Any] = field(default_factory=dict)  # what the chosen runs keep of the search
    ranges: Ranges = field(default_factory=dict)  # as far as they were widened
    strata: int = 1  # parts of a range, of which the outer two are its edges

    @property
    def decided(self) -> bool:
        """Whether all finalists have ended, and at least one did not diverge."""
        return all(f.ended for f in self.finalists) and any(f.validation is not None for f in self.finalists)

    @cached_property
    def chosen(self) -> Finalist:
        """The finalist whose values the runs use."""
        return choose(self.finalists)


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
    """The runs of a decided group with the chosen values."""
    chosen = group.chosen
    best = max(group.finalists, key=lambda finalist: finalist.order)
    default = next((finalist for finalist in group.finalists if finalist.number == 0), None)
    tuning = {
        "values": chosen.values,
        "trials": len({trial.number for trial in group.trials}),
        "validation": chosen.validation,
        "trial": chosen.planned.name,
        "default_validation": None if default is None else default.validation,
        "default_kept": chosen.number == 0 and best.number != 0,
        "tuned_seeds": len(chosen.trials),
        "edges": sorted(
            path for path, range_ in group.ranges.items() if edge_of(range_, chosen.values[path], group.strata)
        ),
        **group.summary,
    }
    return [with_values(run, chosen.values, sweep.plugins, tuning) for run in group.runs]


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
                return Group(self.runs, tuple(everything))
            kept = self._promoted(last, count)
            last = [self._trial(rung, t.number, t.planned.tuning["kind"], t.values) for t in kept]
            everything += last
        if not (complete and _ended(last)):
            return Group(self.runs, tuple(everything))
        finalists = [self._finalist(trial) for trial in self._promoted(last, min(FINALISTS, len(last)))]
        everything += [trial for finalist in finalists for trial in finalist.trials[1:]]
        ranges = {path: widened(r, edges[path]) if path in edges else r for path, r in self.ranges.items()}
        return Group(self.runs, tuple(everything), tuple(finalists), self._summary(edges), ranges, self.strata)

    def _finalist(self, trial: Trial) -> Finalist:
        """A trial of the last rung, with its repeats on further seeds."""
        rung = len(self.rungs) - 1
        others = self.runs[1 : repeats(self.tune, len(self.runs)) + 1]
        repeated = [self._trial(rung, trial.number, "repeated", trial.values, run) for run in others]
        return Finalist((trial, *repeated))

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

    def _summary(self, edges: Mapping[str, int]) -> dict[str, Any]:
        """The facts about the search that the chosen runs keep, beside the choice."""
        return {
            "rungs": [list(rung) for rung in self.rungs],
            "budget_rounds": budget_rounds(self.rungs, repeats(self.tune, len(self.runs))),
            "per_seed": self.tune.per_seed,
            "widened": sorted(edges),
        }

    def _is_legal(self, values: Mapping[str, Any]) -> bool:
        try:
            with_values(self.first, values, self.sweep.plugins, {})
        except ConfigError:
            return False
        return True

    def _trial(self, rung: int, number: int, kind: str, values: dict[str, Any], of: PlannedRun | None = None) -> Trial:
        """A trial on the seed of the run `of`; None: on the first."""
        rounds = self.rungs[rung][1]
        run = {**values, "rounds": rounds, "evaluate_every": rounds, "test_data": False}
        tuning = {"trial_of": self.first.label, "values": values, "number": number, "kind": kind, "rung": rung}
        planned = with_values(of or self.first, run, self.sweep.plugins, tuning)
        folder = RunFolder(self.results / planned.name)
        return Trial(planned, values, folder.path, *outcome(folder))


def _ended(trials: Iterable[Trial]) -> bool:
    return all(trial.ended for trial in trials)


def _distinct(trials: Iterable[Trial]) -> list[Trial]:
    """`trials` without those that are the same run as an earlier trial."""
    kept: dict[str, Trial] = {}
    for trial in trials:
        kept.setdefault(trial.planned.key, trial)
    return list(kept.values())


# -- texts ---------------------------------------------------------------------------------------------------------------------
def repeats(tune: Tune, seeds: int) -> int:
    """The further seeds on which finalists are repeated, of runs with `seeds` seeds."""
    return 0 if tune.per_seed or tune.trials < 2 else min(tune.seeds, seeds) - 1


def budget_rounds(steps: Sequence[Sequence[int]], further_seeds: int = 0) -> int:
    """The rounds of all trials of a method in a setting together, with those of the finalists on further seeds."""
    trials, rounds = steps[-1]
    return sum(trials * rounds for trials, rounds in steps) + further_seeds * min(FINALISTS, trials) * rounds


def budget_text(sweep: Sweep) -> str:
    """A sentence about the budget of the tuning; empty without `tune:`."""
    tune = sweep.tune
    if tune is None:
        return ""
    runs = [*sweep.runs, *sweep.later]
    of_runs = [planned.run for planned in runs if "trial_of" not in planned.tuning]
    further = repeats(tune, len({str((run.seed, run.seeds)) for run in of_runs}))
    lengths = sorted({run.rounds for run in of_runs})
    parts = []
    for rounds in lengths or [max(planned.run.rounds for planned in runs)]:
        steps = rungs(tune, rounds)
        words = ", ".join(f"{trials} of {length} rounds" for trials, length in steps)
        if further:
            words += f", {min(FINALISTS, steps[-1][0])} of {rounds} rounds on {further} more"
        parts.append(f"{words} ({budget_rounds(steps, further)} rounds)")
    seeds = "each seed" if tune.per_seed else "the first seed"
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
