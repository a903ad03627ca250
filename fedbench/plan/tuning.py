"""Fair tuning: the same number of trials for every method in every setting, chosen by validation accuracy alone.

A trial is a run of its own that never evaluates test data, on the first seed of its method and setting. When all trials
of a method in a setting have ended, its runs - one per seed - take the values of the best one; until then they wait.
Nothing is kept but runs: the choice is made again from their records whenever it is asked for.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedbench.base import rng
from fedbench.base.records import RunFolder
from fedbench.plan.config import ConfigError, PlannedRun, Sweep
from fedbench.plan.planning import changed

Ranges = Mapping[str, Mapping[str, tuple[Any, ...]]]


@dataclass(frozen=True)
class Trial:
    """One look: its run, the values that it tries, and how it ended."""

    planned: PlannedRun
    values: dict[str, Any]
    ended: bool
    validation: float | None  # mean validation accuracy of the last round; None: not ended, or diverged


@dataclass(frozen=True)
class Group:
    """The runs of one method in one setting, which differ in the seed alone, and the trials for them."""

    runs: tuple[PlannedRun, ...]
    trials: tuple[Trial, ...]

    @property
    def decided(self) -> bool:
        """Whether every trial has ended by itself and one of them did not diverge."""
        return all(trial.ended for trial in self.trials) and any(t.validation is not None for t in self.trials)

    @property
    def best(self) -> Trial:
        """The trial with the largest validation accuracy, of equal ones the first."""
        return max(self.trials, key=lambda trial: -1.0 if trial.validation is None else trial.validation)


def staged(sweep: Sweep, results: Path) -> Sweep:
    """`sweep` with the runs that can be done now: trials where values are still looked for, else the runs with theirs.

    Runs that wait for trials are in ``later``, with the values of the sweep file. Without `tune:` the sweep as it is.
    Raises ConfigError.
    """
    if sweep.tune is None:
        return sweep
    now: list[PlannedRun] = []
    later: list[PlannedRun] = []
    for group in groups(sweep, results):
        if not group.trials:
            now += group.runs
        elif group.decided:
            now += chosen(sweep, group)
        else:
            now += [trial.planned for trial in group.trials]
            later += group.runs
    unique = {run.key: run for run in now}
    return dataclasses.replace(sweep, runs=tuple(unique.values()), later=tuple(later))


def chosen(sweep: Sweep, group: Group) -> list[PlannedRun]:
    """The runs of a decided group with the values of its best trial."""
    best = group.best
    told = {
        "values": best.values,
        "trials": len(group.trials),
        "validation": best.validation,
        "trial": best.planned.name,
    }
    return [changed(run, best.values, sweep.plugins, told) for run in group.runs]


def groups(sweep: Sweep, results: Path) -> Iterator[Group]:
    """Every method in every setting of a sweep with `tune:`, and how its trials stand below `results`.

    Raises ConfigError where there is nothing to choose by, or a range is none.
    """
    tune = sweep.tune
    if tune is None:
        return
    members: dict[str, list[PlannedRun]] = {}
    for planned in sweep.runs:
        own = {key: value for key, value in planned.identity.items() if key not in ("seed", "seeds")}
        members.setdefault(json.dumps([planned.label, own], sort_keys=True), []).append(planned)
    for runs in members.values():
        first = runs[0]
        if first.run.clients.validation == 0:
            raise ConfigError("tune: clients.validation is 0, and values are chosen by validation accuracy alone")
        ranges = search_space(sweep, first)
        found: dict[str, Trial] = {}
        for values in draws(ranges, tune.trials) if ranges else ():
            budget = {"rounds": tune.rounds, "evaluate_every": tune.rounds} if tune.rounds else {}
            told = {"trial_of": first.label, "values": values}
            planned = changed(first, {**values, **budget, "test_data": False}, sweep.plugins, told)
            found.setdefault(planned.key, Trial(planned, values, *_outcome(RunFolder(results / planned.name))))
        yield Group(tuple(runs), tuple(found.values()))


def search_space(sweep: Sweep, planned: PlannedRun) -> dict[str, Mapping[str, tuple[Any, ...]]]:
    """{dotted path: range}: what the method and its aggregation declare, as the sweep's `tune.search` changes it.

    A field of the method or aggregation that the sweep file sets to another value than its default is not searched.
    """
    space: dict[str, Mapping[str, tuple[Any, ...]]] = {}
    for kind in ("method", "aggregation"):
        block = getattr(planned.run, kind)
        cls: Any = sweep.plugins.classes[kind][block["name"]]
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        declared: Ranges = cls.search
        for name, values in declared.items():
            if name in defaults and block[name] != defaults[name]:
                continue
            space[name if "." in name else f"{kind}.{name}"] = values
    searchable = bool(space)
    for path, given in (sweep.tune.search if sweep.tune else {}).items():
        space.pop(path, None)
        applies = searchable and _applies(planned, path)
        if given is not None and applies:
            space[path] = {str(law): values for law, values in given.items()}
    return space


def _applies(planned: PlannedRun, path: str) -> bool:
    """Whether the run has such a field: a path inside a plug-in is of some methods only."""
    kind, _, name = path.partition(".")
    return kind not in ("method", "aggregation") or name in getattr(planned.run, kind)


def draws(ranges: Ranges, trials: int) -> list[dict[str, Any]]:
    """`trials` points of a Latin hypercube over `ranges`: each of as many equal strata of a range is met once.

    A range's strata are shuffled by a stream that its path names, so methods share the values of ranges they share.
    Raises ConfigError where a range is none.
    """
    columns: dict[str, list[Any]] = {}
    for path, given in ranges.items():
        order = np.arange(trials) if len(ranges) == 1 else rng.numpy_stream(0, "tune", path).permutation(trials)
        columns[path] = [_at(path, given, (int(i) + 0.5) / trials) for i in order]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _at(path: str, given: Mapping[str, tuple[Any, ...]], share: float) -> Any:
    if len(given) != 1:
        raise ConfigError(f"tune: {path}: expected one of log, linear, choice, found {dict(given)}")
    ((law, values),) = given.items()
    if law == "choice" and values:
        return values[int(share * len(values))]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if law not in ("log", "linear") or len(numbers) != 2 or len(values) != 2 or not numbers[0] < numbers[1]:
        raise ConfigError(f"tune: {path}: expected {{log: [low, high]}}, {{linear: [low, high]}} or {{choice: [...]}}")
    low, high = float(numbers[0]), float(numbers[1])
    if law == "log":
        if low <= 0:
            raise ConfigError(f"tune: {path}: a logarithmic range starts above 0, not at {low:g}")
        return float(f"{low * (high / low) ** share:.3g}")
    return float(f"{low + (high - low) * share:.3g}")


def _outcome(folder: RunFolder) -> tuple[bool, float | None]:
    """(whether it has ended by itself, its last validation accuracy): a trial that diverged has ended, and lost."""
    status = folder.status
    if status == "failed":
        return folder.failure().get("kind") == "diverged", None
    if status != "done":
        return False, None
    records = folder.records()
    value = max(records, key=lambda record: record["round"]).get("val_mean_accuracy") if records else None
    return True, value
