"""Comparisons between methods: the families of runs within a setting and over all settings, and client by client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from fedbench.report.statistics import (
    ClientPairs,
    Comparison,
    Floats,
    Ranking,
    client_pairs,
    compare_all,
    compare_over_settings,
    rank,
)
from fedbench.report.tables.text import many

Contests = Mapping[str, Sequence[Comparison]]


def within(runs: pd.DataFrame, clients: pd.DataFrame) -> dict[str, list[Comparison]]:
    """{setting: comparisons in mean accuracy over its seeds}, for methods with all seeds of the setting done.

    The contestants are one family. Each reference forms a separate family with the contestants, so that more
    references do not weaken the comparisons of contestants. runs: a row per run; clients: a row per client and run.
    """
    return {str(setting): list(_within(group, clients)) for setting, group in runs.groupby("setting", sort=False)}


def _within(group: pd.DataFrame, clients: pd.DataFrame) -> Iterator[Comparison]:
    runs = group.drop_duplicates(["label", "seed"])
    wide = runs.pivot(index="label", columns="seed", values="mean_accuracy").astype(float)
    complete = [label for label in dict.fromkeys(runs["label"]) if wide.loc[label].notna().all()]
    references = set(runs.loc[runs["reference"].astype(bool), "label"])
    contestants = [label for label in complete if label not in references]
    accuracies = _by_client(runs, clients)
    comparisons = compare_all(contestants, wide.loc[contestants].to_numpy())
    for reference in complete:
        if reference in references:
            family = [*contestants, reference]
            pairs = compare_all(family, wide.loc[family].to_numpy())
            comparisons += [pair for pair in pairs if pair.second == reference]
    for pair in comparisons:
        yield replace(pair, clients=_client_pairs(accuracies, pair))


def _by_client(runs: pd.DataFrame, clients: pd.DataFrame) -> dict[str, pd.Series[float]]:
    """{label: accuracy of each client that trains}, indexed by seed and client.

    If all seeds share one split (`seeds: {partition: ...}`), a client is the same in each: its accuracies are averaged
    over seeds first, and the index is the client alone.
    """
    if clients.empty:
        return {}
    rows = clients[(clients["setting"] == runs["setting"].iloc[0]) & ~clients["held_out"].astype(bool)]
    rows = rows.drop_duplicates(["label", "seed", "client"])
    keys = ["client"] if shares_split(runs) else ["seed", "client"]
    return {str(label): part.groupby(keys)["accuracy"].mean() for label, part in rows.groupby("label", sort=False)}


def shares_split(runs: pd.DataFrame) -> bool:
    """Whether several seeds of one setting's runs share one split, so that clients are crossed with seeds."""
    if "partition_hash" not in runs or runs["seed"].nunique() < 2:
        return False
    known = runs.dropna(subset=["partition_hash"])
    return known["seed"].nunique() > 1 and known["partition_hash"].nunique() == 1


def _client_pairs(accuracies: Mapping[str, pd.Series[float]], pair: Comparison) -> ClientPairs | None:
    if pair.first not in accuracies or pair.second not in accuracies:
        return None
    difference = (accuracies[pair.first] - accuracies[pair.second]).dropna()
    return client_pairs(np.asarray(difference, dtype=np.float64)) if len(difference) else None


@dataclass(frozen=True)
class Overall:
    """Contestants over all settings: their ranking, all pairs of them, and the blocks in words ("2 settings")."""

    ranking: Ranking | None
    pairs: list[Comparison]
    blocks: str


def overall(runs: pd.DataFrame, metric: str = "mean_accuracy") -> Overall:
    """Compares contestants that are done in every setting and seed over settings; empty for a single setting.

    Settings and seeds are the blocks, see `compare_over_settings`. Only seeds that all settings
    have are compared.
    """
    contestants = runs[~runs["reference"].astype(bool)].drop_duplicates(["setting", "label", "seed"])
    wide = contestants.pivot(index="label", columns=["setting", "seed"], values=metric).astype(float)
    names = [label for label in dict.fromkeys(contestants["label"]) if wide.loc[label].notna().all()]
    settings = list(dict.fromkeys(contestants["setting"]))
    if len(names) < 2 or len(settings) < 2:
        return Overall(None, [], "")
    values = _by_setting_and_seed(wide.loc[names], settings)
    pairs = compare_over_settings(names, values)
    text = f"{many(len(settings), 'setting')} and {many(values.shape[2], 'seed')}"
    return Overall(rank(names, values.mean(2), pairs), pairs, text)


def _by_setting_and_seed(wide: pd.DataFrame, settings: Sequence[str]) -> Floats:
    """[methods, settings, seeds] for the seeds that all settings share; if fewer than two, means over seeds."""
    seeds = [set(wide[setting].columns) for setting in settings]
    common = sorted(set.intersection(*seeds))
    if len(common) < 2:
        return np.stack([wide[setting].to_numpy().mean(1, keepdims=True) for setting in settings], axis=1)
    return np.stack([wide[setting][common].to_numpy() for setting in settings], axis=1)


def against_best(pairs: Sequence[Comparison], values: Mapping[str, float]) -> list[Comparison]:
    """The comparisons of the method with the largest of `values` with every other method, closest first."""
    names = {name for pair in pairs for name in (pair.first, pair.second)}
    known = [name for name in values if name in names]
    if not known:
        return []
    best = max(known, key=lambda name: values[name])
    against = [pair if pair.first == best else pair.reversed for pair in pairs if best in (pair.first, pair.second)]
    return sorted(against, key=lambda pair: pair.difference)


COLUMNS = (
    *("setting", "first", "second", "blocks", "difference", "low", "high", "p_adjusted", "verdict", "family"),
    *("clients", "clients_ahead", "clients_equal", "clients_behind", "effect"),
)


def as_frame(contests: Contests) -> pd.DataFrame:
    """A row per setting and pair of methods (`COLUMNS`); accuracies in [0, 1], p adjusted for the family."""
    rows = []
    for setting, pairs in contests.items():
        for c in pairs:
            known = c.clients
            by_client = (known.pairs, known.ahead, known.equal, known.behind, known.effect) if known else (None,) * 5
            rows.append(
                (
                    setting,
                    c.first,
                    c.second,
                    c.blocks,
                    c.difference,
                    c.low,
                    c.high,
                    c.p,
                    c.verdict,
                    c.family,
                    *by_client,
                )
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))
