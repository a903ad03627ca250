"""Methods against each other: which runs pair with which, within a setting client by client, and over all settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedbench.report.statistics import Comparison, Ranking, compare_all, rank
from fedbench.report.tables.text import many

SETTINGS_ENOUGH = 6  # blocks of a ranking are settings from this number on, else pairs of setting and seed


def within(runs: pd.DataFrame, clients: pd.DataFrame) -> dict[str, list[Comparison]]:
    """{setting: every two methods}, paired over the clients that train, by the accuracy of the last round.

    Methods whose runs are not all done, or that lack a client of another, are left out.
    """
    found: dict[str, list[Comparison]] = {}
    if clients.empty:
        return found
    seeds = runs.groupby("setting", sort=False)["seed"].nunique()
    inside = clients[~clients["held_out"].astype(bool)]
    for setting, own in inside.groupby("setting", sort=False):
        own = own.drop_duplicates(["label", "seed", "client"])
        wide = own.pivot(index="label", columns=["seed", "client"], values="accuracy")
        names = [label for label in dict.fromkeys(own["label"]) if wide.loc[label].notna().all()]
        paired = wide.columns.get_level_values("seed").to_numpy(dtype=np.int64)
        if len(set(paired)) == seeds[setting] and len(names) > 1:
            found[str(setting)] = compare_all(names, wide.loc[names].to_numpy(dtype=float), paired)
    return found


@dataclass(frozen=True)
class Overall:
    """Contestants over all settings: their ranking, every two of them, and what a block is, in words."""

    ranking: Ranking | None
    pairs: list[Comparison]
    blocks: str


def overall(runs: pd.DataFrame, metric: str = "mean_accuracy") -> Overall:
    """Methods that are no references and done in every setting and seed, compared over those.

    A block of the ranking is a setting (mean over its seeds) where there are enough of them: then it speaks of settings
    like these. Else it is a pair of setting and seed, and speaks of new seeds in these very settings.
    """
    own = runs[~runs["reference"].astype(bool)].drop_duplicates(["setting", "label", "seed"])
    order = list(dict.fromkeys(own["label"]))
    wide = own.pivot(index="label", columns=["setting", "seed"], values=metric).astype(float)
    names = [label for label in order if wide.loc[label].notna().all()]
    settings = wide.columns.get_level_values("setting").to_numpy()
    if len(names) < 2:
        return Overall(None, [], "")
    whole = wide.loc[names]
    _, number = np.unique(settings, return_inverse=True)
    pairs = compare_all(names, whole.to_numpy(), number.astype(np.int64))
    by_setting = whole.T.groupby(level="setting", sort=False).mean().T
    if by_setting.shape[1] >= SETTINGS_ENOUGH:
        return Overall(rank(names, by_setting.to_numpy().round(12)), pairs, f"{by_setting.shape[1]} settings")
    text = f"{many(whole.shape[1], 'pair')} of setting and seed ({many(by_setting.shape[1], 'setting')})"
    return Overall(rank(names, whole.to_numpy().round(12)), pairs, text)


def against_best(pairs: Sequence[Comparison], values: Mapping[str, float]) -> list[Comparison]:
    """The comparisons of the method with the largest of `values` with each other one, the nearest first."""
    names = {name for pair in pairs for name in (pair.first, pair.second)}
    known = [name for name in values if name in names]
    if not known:
        return []
    best = max(known, key=lambda name: values[name])
    found = [pair if pair.first == best else pair.turned for pair in pairs if best in (pair.first, pair.second)]
    return sorted(found, key=lambda pair: pair.difference)


def as_frame(contests: Mapping[str, Sequence[Comparison]]) -> pd.DataFrame:
    """One row per setting and two methods; accuracies in [0, 1], p adjusted by Holm within the setting."""
    columns = [
        "setting",
        "first",
        "second",
        "pairs",
        "difference",
        "low",
        "high",
        "p_holm",
        "effect",
        "beats",
        "verdict",
    ]
    rows = [
        (setting, c.first, c.second, c.n, c.difference, c.low, c.high, c.p, c.effect, c.beats, c.verdict)
        for setting, pairs in contests.items()
        for c in pairs
    ]
    return pd.DataFrame(rows, columns=columns)
