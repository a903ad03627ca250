"""The answer of a report: the best method, its lead, the certainty of the lead, its cost, and the undecided pairs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fedbench.report.power import MOST, blocks_needed
from fedbench.report.statistics import Comparison
from fedbench.report.tables.contests import Overall
from fedbench.report.tables.grid import scaled

POINTS = (0.01, 0.02)  # differences for which the number of seeds is given
OVERALL = "Overall"
CONTROLLING = ("eval", "both")  # values of `logit_prior` that add the prior when a client is evaluated


@dataclass(frozen=True)
class Lead:
    """The best method's lead over another method: its name, the points, and the certainty of the lead, in words."""

    over: str
    points: str
    sure: str


@dataclass(frozen=True)
class Answer:
    """The answer of one setting, or of all settings together.

    best: the contestant with the largest mean accuracy; accuracy: in percent; next, reference: its leads over the second
    contestant and the best reference; sent, computed: its cost; tied: contestants that the test cannot distinguish from it;
    needed: seeds that a difference of 1 and of 2 points would need.
    """

    setting: str
    best: str
    accuracy: str
    next: Lead | None
    tied: tuple[str, ...]
    reference: Lead | None = None
    sent: str = ""
    computed: str = ""
    needed: str = ""


@dataclass(frozen=True)
class Control:
    """The effect of the client's log class prior alone on a method: accuracies in percent without and with it, by setting."""

    method: str
    control: str
    values: tuple[tuple[str, float, float], ...]


def answers(table: pd.DataFrame, within: Mapping[str, Sequence[Comparison]], overall: Overall) -> list[Answer]:
    """An answer for all settings together, if there are several, and one for each. table: from `summary`."""
    per_setting = []
    for setting, part in table.groupby("setting", sort=False):
        if (answer := _of_setting(str(setting), part, within.get(str(setting), ()))) is not None:
            per_setting.append(answer)
    return [*([_of_all(table, overall)] if overall.pairs else []), *per_setting]


def _of_setting(setting: str, table: pd.DataFrame, pairs: Sequence[Comparison]) -> Answer | None:
    complete = table[(table["metric"] == "mean_accuracy") & (table["n"] == table["of"]) & table["mean"].notna()]
    complete = complete.sort_values("mean", ascending=False, kind="stable")
    is_reference = complete["reference"].astype(bool)
    contestants, references = complete[~is_reference], complete[is_reference]
    if contestants.empty:
        return None
    best = contestants.iloc[0]
    label = str(best["label"])
    against = {}
    for pair in pairs:
        if label in (pair.first, pair.second):
            oriented = pair if pair.first == label else pair.reversed
            against[oriented.second] = oriented
    spread = "" if math.isnan(best["std"]) else f" ± {100 * best['std']:.1f}"
    runner_up = str(contestants.iloc[1]["label"]) if len(contestants) > 1 else ""
    nearest = against.get(runner_up)
    sent, computed = _cost(table, label)
    return Answer(
        setting=setting,
        best=label,
        accuracy=f"{100 * best['mean']:.1f}{spread}",
        next=_lead(nearest),
        tied=tuple(name for name in contestants["label"].iloc[1:] if name in against and against[name].undecided),
        reference=_lead(against.get(str(references.iloc[0]["label"]))) if len(references) else None,
        sent=sent,
        computed=computed,
        needed=_needed(nearest),
    )


def _of_all(table: pd.DataFrame, overall: Overall) -> Answer:
    names = list(dict.fromkeys(name for pair in overall.pairs for name in (pair.first, pair.second)))
    part = table[(table["metric"] == "mean_accuracy") & table["label"].isin(names)]
    means = part.groupby("label")["mean"].mean().sort_values(ascending=False, kind="stable")
    best, runner_up = str(means.index[0]), str(means.index[1])
    against = {}
    for pair in overall.pairs:
        if best in (pair.first, pair.second):
            oriented = pair if pair.first == best else pair.reversed
            against[oriented.second] = oriented
    tied = tuple(str(name) for name in means.index[1:] if against[str(name)].undecided)
    return Answer(
        setting=OVERALL,
        best=best,
        accuracy=f"{100 * means.iloc[0]:.1f}",
        next=_lead(against[runner_up]),
        tied=tied,
    )


def _lead(pair: Comparison | None) -> Lead | None:
    if pair is None:
        return None
    low, high = f"{100 * pair.low:+.1f}", f"{100 * pair.high:+.1f}"
    sure = "not tested: one seed"
    if math.isfinite(pair.p):
        sure = f"{'clear' if pair.significant else 'may be luck'}: {low} to {high}"
    return Lead(pair.second, f"{100 * pair.difference:+.1f}", sure)


def _cost(table: pd.DataFrame, label: str) -> tuple[str, str]:
    """Bytes of all rounds, up and down, and multiply-adds of clients."""
    values = table[table["label"] == label].set_index("metric")["mean"]
    sent = values.get("total_bytes_up", math.nan) + values.get("total_bytes_down", math.nan)
    computed = values.get("total_multiply_adds", math.nan)
    return (
        f"{scaled(float(sent))}B" if math.isfinite(sent) else "",
        scaled(float(computed)).strip() if math.isfinite(computed) else "",
    )


def _needed(pair: Comparison | None) -> str:
    """Seeds for POINTS from the variance between the best and the next, such as "18 / 5"."""
    if pair is None or not math.isfinite(pair.variance):
        return ""
    counts = [blocks_needed(points, pair.variance, pair.family) for points in POINTS]
    return " / ".join(f"over {MOST}" if count is None else str(count) for count in counts)


def headline(all_answers: Sequence[Answer]) -> str:
    """The answers in one or two sentences."""
    each = (
        [answer for answer in all_answers if answer.setting != OVERALL] if len(all_answers) > 1 else list(all_answers)
    )
    if not each:
        return "No contestant is done with all seeds of a setting, so there is no answer yet."
    compared = [answer for answer in each if answer.next]
    alone = (
        len(each) - len(compared) if compared else 0
    )  # settings in which a single contestant is done lead over nobody
    each = compared or each
    wins: dict[str, int] = {}
    for answer in each:
        wins[answer.best] = wins.get(answer.best, 0) + 1
    ordered = sorted(wins.items(), key=lambda item: -item[1])
    everywhere = "both settings" if len(each) == 2 else f"all {len(each)} settings"
    if len(each) == 1:
        first = f"{ordered[0][0]} has the largest mean accuracy, {each[0].accuracy} %"
    elif len(ordered) == 1:
        first = f"{ordered[0][0]} has the largest mean accuracy in {everywhere}"
    else:
        (name, count), *others = ordered[:4]
        first = f"No method leads everywhere: {name} has the largest mean accuracy in {count} of {len(each)} settings"
        first += "".join(f", {name} in {count}" for name, count in others)
    leads = [answer.next for answer in each if answer.next]
    rest = f" In {alone} other setting{'s' * (alone > 1)}, a single contestant is done." if alone else ""
    return f"{first}{_leads(leads)}{rest}"


def _leads(leads: Sequence[Lead]) -> str:
    """The end of a sentence: the best method's lead over the next, and its certainty."""
    if not leads:
        return "; no other contestant is done."
    sizes = [points.removeprefix("+") for points in sorted((lead.points for lead in leads), key=float)]
    size = sizes[0] if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
    ahead = f", {size} points over the next"
    if all(lead.sure.startswith("not tested") for lead in leads):
        return f"{ahead}. With one seed this is not tested."
    clear = sum(lead.sure.startswith("clear") for lead in leads)
    if len(leads) == 1:
        return f"{ahead}. This lead {'is clear' if clear else 'may be luck'}."
    where = "every setting" if clear == len(leads) else f"{clear or 'none'} of {len(leads)} settings"
    return f"{ahead}. This lead is clear in {where}."


def controls(runs: pd.DataFrame, table: pd.DataFrame) -> list[Control]:
    """Methods and the same methods with the client's log class prior added (`logit_prior`), if a setting has both.

    Both are trained alike, with the same aggregation and local recipe, apart from values that a tuning chose for either.
    """
    means = table[table["metric"] == "mean_accuracy"].set_index(["setting", "label"])["mean"]
    columns = zip(runs["label"], runs["config"], runs["tuned"], strict=True)
    rows = {str(label): (json.loads(config), set(json.loads(tuned))) for label, config, tuned in columns}
    comparisons = []
    for label, (config, tuned) in rows.items():
        if _has_control(config):
            continue
        for other, (twin, tuned_too) in rows.items():
            chosen = tuned | tuned_too
            alike = _has_control(twin) and _recipe(config, chosen) == _recipe(twin, chosen)
            if alike and (values := tuple(_beside(means, label, other))):
                comparisons.append(Control(label, other, values))
    return comparisons


def _has_control(config: Mapping[str, Any]) -> bool:
    method = config["method"]
    return isinstance(method, dict) and method.get("logit_prior") in CONTROLLING


def _recipe(config: Mapping[str, Any], tuned: set[str]) -> dict[str, Any]:
    """How a run trains, by dotted keys, without the control and the keys in `tuned`."""
    blocks = {name: config.get(name) for name in ("method", "aggregation", "local")}
    flat = {
        f"{name}.{key}": value
        for name, block in blocks.items()
        for key, value in (block if isinstance(block, dict) else {"": block}).items()
    }
    return {key: value for key, value in flat.items() if key not in tuned and key != "method.logit_prior"}


def _beside(means: pd.Series[float], label: str, other: str) -> Iterator[tuple[str, float, float]]:
    for setting in dict.fromkeys(means.index.get_level_values("setting")):
        a, b = means.get((setting, label), math.nan), means.get((setting, other), math.nan)
        if math.isfinite(a) and math.isfinite(b):
            yield str(setting), 100 * float(a), 100 * float(b)


def below_control(table: pd.DataFrame, comparisons: Sequence[Control]) -> str:
    """A sentence that lists the contestants below the strongest control in every setting; "" if there are none."""
    if not comparisons:
        return ""
    names = {control.control for control in comparisons}
    part = table[(table["metric"] == "mean_accuracy") & ~table["reference"].astype(bool)]
    wide = part.pivot(index="label", columns="setting", values="mean")
    strongest = wide.loc[[name for name in wide.index if name in names]].max()
    if strongest.isna().all():
        return ""
    order = list(dict.fromkeys(part["label"]))
    below = [n for n in order if n not in names and wide.loc[n].notna().any() and not (wide.loc[n] >= strongest).any()]
    best = wide.loc[[n for n in wide.index if n in names]].mean(axis=1).idxmax()
    if not below:
        return ""
    return f"Below the strongest of these controls ({best} on average) in every setting: {', '.join(below)}."
