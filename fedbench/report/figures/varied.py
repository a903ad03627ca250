"""Accuracy against any field that a sweep varies, such as alpha, participation, prompt length or a switch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fedbench.base.naming import differences, flat, key
from fedbench.report.figures.catalogue import FigureCatalogue, FigureData
from fedbench.report.figures.frame import Panel, percent, wrap
from fedbench.report.figures.style import Look, Looks
from fedbench.report.short_names import JOINT

# {field: (title, axis)} for fields whose names need explanation.
TITLES = {
    "partition.alpha": ("Accuracy against heterogeneity: Dirichlet's alpha", "alpha (smaller is more skewed)"),
    "partition.classes_per_client": ("Accuracy against heterogeneity: classes per client", "classes per client"),
    "clients.per_round": ("Accuracy against participation", "clients in a round"),
    "clients.number": ("Accuracy against the number of clients", "clients"),
    "method.prompt_length": ("Accuracy against prompt length", "prompt tokens"),
    "method.inject": ("Accuracy against the block that the mixed prompt enters", "block"),
    "method.temperature": ("Accuracy against temperature", "temperature"),
}
NAMES = ("dataset.name", "partition.name", "method.name", "aggregation.name", "backbone.name")


@dataclass(frozen=True)
class Family:
    """A panel: finished runs that differ in one field (and in the method), with their x values and lines."""

    field: str
    title: str
    axis: str
    runs: pd.DataFrame  # with columns "level" (a number or words) and "line"
    numeric: bool


def add(catalogue: FigureCatalogue, data: FigureData) -> None:
    """A figure for each field that the sweep varies, and one for kinds of partition."""
    by_key = families(data.done) if len(data.done) else {}
    caption = (
        "Mean accuracy over clients at the last round; mean ± sample standard deviation over the seeds that are done."
    )
    if not by_key:
        catalogue.add(
            "by-field",
            "Accuracy against varied fields",
            "",
            "no two finished runs of a method differ in one field",
            [],
            _never,
        )
    for name, group in by_key.items():
        title = "Accuracy by kind of partition" if not name else TITLES.get(name, (f"Accuracy against {name}",))[0]
        look = _line_looks(catalogue.look, group)
        catalogue.add(
            f"by-{(name or 'partition').replace('.', '-').replace('_', '-')}",
            title,
            caption,
            "",
            group,
            _against(look),
            shown=lambda family: list(family.runs["line"].unique()),
            look=look,
            y="mean accuracy (%)",
            heading=lambda family: family.title,
            lines=group[0].numeric,
        )


def _against(look: Looks) -> Panel:
    return lambda axes, family: against(axes, family, look)


def _line_looks(look: Looks, group: Sequence[Family]) -> Looks:
    """A look for each line: that of its label; if a line joins several labels, that of the first."""
    line_looks: dict[str, Look] = {}
    for family in group:
        first = family.runs.drop_duplicates("line")
        line_looks |= {
            line: look.get(line, look[label])
            for line, label in zip(first["line"], first["label"], strict=True)
            if line not in line_looks
        }
    order = {label: i for i, label in enumerate(look)}
    return dict(sorted(line_looks.items(), key=lambda item: order.get(item[0], len(order))))


def _never(axes: Any, key: Any) -> None:
    """For figures without panels."""


def families(runs: pd.DataFrame) -> dict[str, list[Family]]:
    """{field: panels} for every field of the config that varies alone for some method, and {"": ...} for kinds of partition.

    runs: finished runs with config (JSON without the seed) and tuned (JSON list of paths that a tuning chose). Values that a
    tuning chose count as no difference.
    """
    runs = runs.reset_index(drop=True)
    configs: list[dict[str, Any]] = []
    number: dict[tuple[Any, Any], int] = {}
    for text in dict.fromkeys(zip(runs["config"], runs["tuned"], strict=True)):
        number[text] = len(configs)
        configs.append(flat(json.loads(text[0])) | dict.fromkeys(json.loads(text[1]), "tuned"))
    which = np.array([number[text] for text in zip(runs["config"], runs["tuned"], strict=True)], dtype=int)
    by_key: dict[str, list[Family]] = {}
    for name in differences(configs):
        if name in NAMES or name.split(".")[0] in ("seeds", "dataset"):
            continue
        rest = [key({k: v for k, v in config.items() if k != name}) if name in config else "" for config in configs]
        levels: dict[str, set[str]] = {}
        for others, config in zip(rest, configs, strict=True):
            if others:
                levels.setdefault(others, set()).add(key(config[name]))
        kept = [i for i, others in enumerate(rest) if len(levels.get(others, ())) > 1]
        if kept:
            varied = runs[np.isin(which, kept)]
            level = [configs[which[i]][name] for i in varied.index]
            line = [rest[which[i]] for i in varied.index]
            by_key[name] = _panels(name, varied.assign(level=level, line=line), [configs[i] for i in kept])
    if kinds := _kinds(runs, configs, which):
        by_key[""] = kinds
    return by_key


def _panels(name: str, varied: pd.DataFrame, configs: Sequence[dict[str, Any]]) -> list[Family]:
    axis = TITLES.get(name, ("", name.partition(".")[2].replace("_", " ") or name))[1]
    numeric = all(isinstance(config[name], int | float) and not isinstance(config[name], bool) for config in configs)
    if not numeric:
        varied = varied.assign(level=varied["level"].map(lambda value: "default" if value is None else str(value)))
    if name.split(".")[0] in ("partition", "clients", "backbone"):
        # the setting varies: one panel for all runs that share the rest of it
        kept = 1 if name.startswith("partition") else 2  # of a setting's blocks: dataset, partition
        varied = varied.assign(panel=varied["setting"].map(lambda setting: JOINT.join(setting.split(JOINT)[:kept])))
    else:
        varied = varied.assign(panel=varied["setting"])
    names: dict[str, str] = {}
    for line, group in varied.groupby("line", sort=False):
        labels = list(dict.fromkeys(group["label"]))
        field = re.escape(name.partition(".")[2] or name)
        bare = {
            re.sub(r"\(\)", "", re.sub(rf"(?<=[(\[]){field}=[^,)\]]*(, )?|(, )?{field}=[^,)\]]*", "", t))
            for t in labels
        }
        bare = {text.replace(" []", "") for text in bare}
        names[str(line)] = bare.pop() if len(bare) == 1 else str(group["method"].iloc[0])
    varied = varied.assign(line=varied["line"].map(names))
    return [
        Family(name, str(panel), axis, group, numeric)
        for panel, group in varied.groupby("panel", sort=False)
        if group["level"].nunique() > 1
    ]


def _kinds(runs: pd.DataFrame, configs: Sequence[dict[str, Any]], which: Any) -> list[Family]:
    """Partitions of different kinds of one dataset, side by side."""
    kind = pd.Series([configs[i].get("partition.name") for i in which], index=runs.index)
    kinds = []
    for _, of_dataset in runs.groupby("dataset", sort=False):
        if kind.loc[of_dataset.index].nunique() > 1:
            level = of_dataset["setting"].map(lambda setting: setting.split(JOINT)[1])
            title = str(of_dataset["setting"].iloc[0]).split(JOINT)[0]
            kinds.append(Family("", title, "", of_dataset.assign(level=level, line=of_dataset["label"]), False))
    return kinds


def against(axes: Axes, family: Family, look: Looks) -> None:
    """Accuracy by level: lines over a number, or groups of points over words; mean and deviation over seeds."""
    numeric = family.numeric
    levels = sorted(family.runs["level"].unique()) if numeric else list(dict.fromkeys(family.runs["level"]))
    present = [name for name in look if (family.runs["line"] == name).any()]
    log = numeric and levels[0] > 0 and levels[-1] / levels[0] >= 8
    place: dict[Any, float] = {level: float(level) if numeric else float(i) for i, level in enumerate(levels)}
    for i, name in enumerate(present):
        shape = look[name]
        cells = family.runs[family.runs["line"] == name].groupby("level")["mean_accuracy"]
        mean, std = cells.mean().reindex(levels).dropna(), cells.std().fillna(0.0)
        shift = 0.0 if numeric else (i - (len(present) - 1) / 2) * 0.75 / max(len(present), 1)
        axes.errorbar(
            [place[level] + shift for level in mean.index],
            mean,
            yerr=std.reindex(mean.index),
            color=shape.colour,
            linestyle=shape.line if numeric else "none",
            elinewidth=0.7,
            **shape.dot(4.6),
        )
    if log:
        axes.set_xscale("log")
    axes.minorticks_off()
    if numeric:
        axes.set_xticks([place[level] for level in levels], [f"{level:g}" for level in levels])
    else:
        axes.set_xticks(range(len(levels)), [wrap(str(level), 14) for level in levels])
        axes.set_xlim(-0.5, len(levels) - 0.5)
        axes.grid(False, axis="x")
        for edge in range(1, len(levels)):
            axes.axvline(edge - 0.5, color="#cccccc", linewidth=0.5)
    axes.set_xlabel(family.axis)
    percent(axes.yaxis)
