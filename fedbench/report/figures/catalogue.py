"""Every figure of a report, in the order of the page, each with a caption that says what it shows and of which runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from fedbench.report import run_artifacts
from fedbench.report.evidence import Evidence
from fedbench.report.figures import clients, curves, inside, scores, tuned, varied
from fedbench.report.figures.collection import FigureCatalogue
from fedbench.report.figures.drawing import Sketch
from fedbench.report.figures.frame import PANELS, Panel
from fedbench.report.figures.style import Look, Looks, looks
from fedbench.report.tables.contests import Overall
from fedbench.report.tables.metrics import REFERENCE
from fedbench.report.tables.summary import labels

MOST = 3 * PANELS  # panels of a kind that are drawn, and fewer of many methods; tables hold all settings
# Files that a report makes begin with one of these; an earlier report's are removed.
NAMES = (
    *("rounds", "bytes", "by-", "worst", "cost", "heat", "ranks"),
    *("clients", "duel", "newcomers", "split", "tuning", "prompts", "mixture"),
)


def all_figures(evidence: Evidence, overall: Overall, versus: tuple[str, str] | None = None) -> list[Sketch]:
    """Every figure of a report, to be drawn; one without data says why. versus: the two methods of the duel."""
    runs = evidence.runs
    names = labels(runs)
    references = list(runs.loc[runs["reference"].astype(bool), "label"].unique())
    short = _partial(runs)
    told = {name: name + REFERENCE * (name in references) + "*" * (name in short) for name in names}
    marks = f" {REFERENCE}: a reference." if references else ""
    marks += " *: not all seeds are done in every setting." if short else ""
    settings = list(dict.fromkeys(runs["setting"]))
    most = MOST if len(settings) * len(names) <= MOST * 20 else PANELS
    gallery = FigureCatalogue(looks(names, references), told, marks, most)
    percents = ["mean_accuracy", "worst_accuracy", "held_out_mean_accuracy"]
    done = runs.assign(**{name: 100 * runs[name] for name in percents})
    done = done.assign(sent=done["total_bytes_up"] + done["total_bytes_down"])[done["state"] == "done"]
    _learning(gallery, evidence.records, settings)
    _varied(gallery, done)
    _scores(gallery, done, settings, names, overall)
    _clients(gallery, evidence, done, settings, versus)
    if not evidence.trials.empty:
        _tuning(gallery, evidence.trials)
    _inside(gallery, evidence, done, settings)
    return gallery.sketches


def _partial(runs: pd.DataFrame) -> set[str]:
    """Labels with some, but not all, of a setting's seeds done somewhere."""
    done = runs[runs["state"] == "done"].groupby(["setting", "label"])["seed"].nunique()
    seeds = runs.groupby("setting")["seed"].nunique()
    short = done < seeds.reindex(done.index.get_level_values("setting")).to_numpy()
    return set(done.index[short].get_level_values("label"))


def _by_setting(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {} if frame.empty else {str(setting): part for setting, part in frame.groupby("setting", sort=False)}


def _having(parts: dict[str, pd.DataFrame], settings: Sequence[str]) -> dict[str, Any]:
    """The keys, and the labels of each, as `FigureCatalogue.add` wants them."""
    return {
        "keys": [setting for setting in settings if setting in parts],
        "shown": lambda setting: list(parts[setting]["label"].unique()),
    }


def _learning(gallery: FigureCatalogue, records: pd.DataFrame, settings: Sequence[str]) -> None:
    look = gallery.look
    if not records.empty:
        percent = 100 * pd.to_numeric(records["mean_accuracy"]).astype(float)
        records = records.assign(mean_accuracy=percent)[np.isfinite(percent)]
    every = _by_setting(records)
    finished = _by_setting(records if records.empty else records[records["state"] == "done"])
    gallery.add(
        "rounds",
        "Accuracy over rounds",
        "Mean accuracy over clients: line, mean over seeds; band, ± one sample standard deviation. Runs that are not done "
        "are thin lines of their own (× where a run failed or diverged) and enter no mean. A method with a single "
        "evaluated round is a horizontal line.",
        "no run has a record with an accuracy",
        panel=lambda axes, setting: curves.rounds(axes, every[setting], look),
        x="round",
        y="mean accuracy (%)",
        **_having(every, settings),
    )
    gallery.add(
        "bytes",
        "Accuracy against communication",
        "Mean accuracy over clients against all bytes sent so far, up and down together (logarithmic): mean over the "
        "seeds that are done; band, ± one sample standard deviation. Marker: the last round. A method that sends nothing "
        "is a horizontal line.",
        "no run is done",
        panel=lambda axes, setting: curves.against_bytes(axes, finished[setting], look),
        x="bytes sent, up + down",
        y="mean accuracy (%)",
        **_having(finished, settings),
    )


def _varied(gallery: FigureCatalogue, done: pd.DataFrame) -> None:
    found = varied.families(done) if len(done) else {}
    caption = (
        "Mean accuracy over clients at the last round; mean ± sample standard deviation over the seeds that are done."
    )
    if not found:
        gallery.add(
            "by-field",
            "Accuracy against what was varied",
            "",
            "no two finished runs of a method differ in one field",
            [],
            _never,
        )
    for name, group in found.items():
        title = (
            "Accuracy by kind of partition" if not name else varied.TITLES.get(name, (f"Accuracy against {name}",))[0]
        )
        look = _line_looks(gallery.look, group)
        gallery.add(
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
    return lambda axes, family: varied.against(axes, family, look)


def _line_looks(look: Looks, group: Sequence[varied.Family]) -> Looks:
    """A look for each line: its label's own, or where a line joins several labels that of the first of them."""
    found: dict[str, Look] = {}
    for family in group:
        first = family.runs.drop_duplicates("line")
        found |= {
            line: look.get(line, look[label])
            for line, label in zip(first["line"], first["label"], strict=True)
            if line not in found
        }
    order = {label: i for i, label in enumerate(look)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))


def _never(axes: Any, key: Any) -> None:
    """For figures without panels."""


def _scores(
    gallery: FigureCatalogue, done: pd.DataFrame, settings: Sequence[str], names: Sequence[str], overall: Overall
) -> None:
    look = gallery.look
    parts = _by_setting(done)
    both = _by_setting(done.dropna(subset=["worst_accuracy"]))
    gallery.add(
        "worst",
        "Worst client against mean",
        "Accuracy of the worst client against the mean over clients at the last round; mean over the seeds that are done, "
        "bars ± one sample standard deviation. Up and to the right is better. Grey: the Pareto front, on which no method "
        "is beaten in both.",
        "no run is done",
        panel=lambda axes, setting: scores.worst(axes, both[setting], look),
        x="mean accuracy (%)",
        y="worst client's accuracy (%)",
        lines=False,
        **_having(both, settings),
    )
    gallery.add(
        "cost",
        "Cost against accuracy",
        "Mean accuracy over clients at the last round against what all rounds took; means over the seeds that are done, bars "
        "± one sample standard deviation. A marker on the left edge takes nothing. Seconds depend on the machine.",
        "no run is done",
        [(setting, column) for setting in settings if setting in parts for column in scores.COSTS],
        lambda axes, key: scores.cost(axes, parts[key[0]], key[1], look),
        shown=lambda key: list(parts[key[0]]["label"].unique()),
        y="mean accuracy (%)",
        lines=False,
        heading=lambda key: key[0],
    )
    values = scores.heat_values(done, names, settings)
    few = [values.iloc[:, start : start + PANELS] for start in range(0, min(values.shape[1], gallery.most), PANELS)]
    for i, part in enumerate(few):
        gallery.one(
            "heat" + f"-{i + 1}" * (i > 0),
            "Methods by settings",
            "Mean accuracy over clients in percent at the last round, mean over the seeds that are done; blank: none is.",
            "",
            partial(scores.heat, part.rename(index=gallery.told), ""),
        )
    ranking = overall.ranking
    gallery.one(
        "ranks",
        "Average ranks",
        f"Average rank in mean accuracy over {ranking.blocks} settings; 1 is best. Bars join methods among which no pair "
        "differs significantly over settings and seeds. References and methods that are not done everywhere are left out."
        if ranking
        else "",
        "it needs two contestants that are done in two settings and all their seeds",
        None if ranking is None else partial(scores.average_ranks, ranking, look),
    )


def _clients(
    gallery: FigureCatalogue,
    evidence: Evidence,
    done: pd.DataFrame,
    settings: Sequence[str],
    versus: tuple[str, str] | None,
) -> None:
    look, told = gallery.look, gallery.told
    frame = evidence.clients.assign(accuracy=100 * evidence.clients["accuracy"].astype(float))
    trained = _by_setting(frame[~frame["held_out"].astype(bool)])
    gallery.add(
        "clients",
        "Accuracy per client",
        "Last round's accuracy of each client that takes part in training, all finished seeds together: box, quartiles with "
        "median; whiskers, 10th to 90th percentile; ×, the worst client; diamond, the mean.",
        "no finished run has a clients.parquet",
        panel=lambda axes, setting: clients.per_client(axes, trained[setting], look, told),
        x="accuracy of a client (%)",
        y=None,
        share_y=True,
        tall=0.55 + 0.155 * len(told),
        legend=False,
        keys=_having(trained, settings)["keys"],
    )
    two = versus or _two_best(evidence.runs)
    able = [s for s, part in trained.items() if two and set(two) <= set(part["label"])]
    gallery.add(
        "duel",
        "Client by client",
        f"A dot per client and seed that takes part in training: accuracy with {two[0]} (up) against {two[1]} (across). Above "
        "the line the client does better with the former."
        if two
        else "",
        "no two methods have clients in common",
        [setting for setting in settings if setting in able],
        lambda axes, setting: clients.duel(axes, trained[setting], *two, look) if two else None,
        x=f"{two[1]} (%)" if two else "",
        y=f"{two[0]} (%)" if two else "",
        legend=False,
    )
    new = _by_setting(done.dropna(subset=["held_out_mean_accuracy"]))
    gallery.add(
        "newcomers",
        "Held-out clients against those that train",
        "Mean accuracy over clients that never train (up) against the mean over those that do (across); means over the seeds "
        "that are done, bars ± one sample standard deviation. On the line new clients are served as well.",
        "no finished run has held-out clients",
        panel=lambda axes, setting: clients.newcomers(axes, new[setting], look),
        x="clients that train (%)",
        y="held-out clients (%)",
        lines=False,
        **_having(new, settings),
    )
    counts = {}
    for setting, part in done.groupby("setting", sort=False):
        for run in part.sort_values("seed", kind="stable")["run"].iloc[:1]:
            found = run_artifacts.class_counts(evidence.results / run)
            if not found.empty:
                own = evidence.clients[evidence.clients["run"] == run]
                counts[str(setting)] = found, own.sort_values("client")["held_out"]
    gallery.add(
        "split",
        "Who holds what",
        "Training samples of each client and class; a bubble's area is their number; orange: held-out clients. First seed.",
        "no finished run tells which classes its clients hold",
        [setting for setting in settings if setting in counts],
        lambda axes, setting: clients.holdings(axes, *counts[setting]),
        y="class",
        legend=False,
    )


def _two_best(runs: pd.DataFrame) -> tuple[str, str] | None:
    """The two contestants with the best mean accuracy over all their finished runs, if there are two."""
    own = runs[(runs["state"] == "done") & ~runs["reference"].astype(bool)]
    means = (
        own.groupby("label", sort=False)["mean_accuracy"].mean().dropna().sort_values(ascending=False, kind="stable")
    )
    return (str(means.index[0]), str(means.index[1])) if len(means) > 1 else None


def _tuning(gallery: FigureCatalogue, trials: pd.DataFrame) -> None:
    tried = tuned.unfolded(trials)
    parts = dict(iter(tried.groupby(["setting", "path"], sort=False)))
    gallery.add(
        "tuning",
        "Tuning: validation accuracy of every trial",
        "Mean accuracy over clients on validation data against the value tried; a trial varies all of a method's values at "
        "once. Ring: the values chosen; × at the foot: diverged. Test data were not evaluated in any trial.",
        "no trial has ended",
        list(parts),
        lambda axes, key: tuned.curve(axes, parts[key], gallery.look),
        shown=lambda key: list(parts[key]["label"].unique()),
        y="validation accuracy (%)",
        tall=2.6,  # each panel has words of its own below it
        heading=lambda key: key[0],
    )


def _inside(gallery: FigureCatalogue, evidence: Evidence, done: pd.DataFrame, settings: Sequence[str]) -> None:
    """The first seed of every method that has prompts of classes or clients, in the first setting that has some."""
    states: list[tuple[str, str, str, dict[str, Any], dict[str, Any]]] = []
    for setting in settings:
        here = done[done["setting"] == setting].sort_values("seed", kind="stable").drop_duplicates("label")
        for one in here.itertuples():
            state = run_artifacts.state(evidence.results / str(one.run), inside.TENSORS)
            if {"class", "client"} & set(inside.sets(state)):
                states.append((setting, str(one.run), str(one.label), state, json.loads(str(one.config))["method"]))
        if states:
            break
    kinds = [
        (setting, label, state, kind)
        for setting, _, label, state, _ in states
        for kind in ("PCA", "t-SNE")
        if kind == "PCA" or sum(map(len, inside.sets(state).values())) >= inside.TSNE_FROM
    ]
    gallery.add(
        "prompts",
        "Prompts in two dimensions",
        "Prompts at the end of a run, first seed and first setting. Squares: shared prompts; dots: class prompts, coloured by "
        "where the class's prototype lies on the first principal component of all prototypes (alike colours, alike classes); "
        "triangles: the prompts of clients. PCA: first two principal components; t-SNE keeps neighbourhoods only.",
        "no finished run left a checkpoint with prompts of classes or clients",
        kinds[:PANELS],
        lambda axes, key: inside.prompts(axes, key[2], key[3]),
        heading=lambda key: f"{key[1]} · {key[3]}",
        legend=False,
    )
    mixed = []
    for _, run, label, state, method in states:
        if "server.prototype" in state and "server.class_prompt" in state and len(state["server.prototype"]) > 2:
            mixed.append((f"{label} · uniform prior", state, inside.mixture(state, method)))
            prior = _prior(run_artifacts.class_counts(evidence.results / run), len(state["server.prototype"]))
            if prior is not None and method.get("prior") == "client":
                mixed.append((f"{label} · prior of one client", state, inside.mixture(state, method, prior)))
    gallery.add(
        "mixture",
        "Weights of the class-contextualised mixed prompt",
        "How an input whose query is exactly the prototype of one class (rows) would mix the class prompts of all (columns): "
        "square root of the weight, black 0, yellow 1; classes in the order of an average-linkage tree of the prototypes. "
        "Below: mean weight of the row's own class, and the exponential of the mean entropy. First seed and first setting.",
        "no finished run left a checkpoint with prototypes and class prompts",
        mixed,
        lambda axes, key: _ordered(axes, key),
        heading=lambda key: key[0],
        legend=False,
    )


def _prior(counts: pd.DataFrame, classes: int) -> Any:
    """The class distribution [C] of the first client, or None where the run does not tell."""
    own = counts[counts["client"] == counts["client"].min()]
    if own.empty:
        return None
    return np.bincount(own["class"], own["samples"], minlength=classes) / own["samples"].sum()


def _ordered(axes: Any, key: tuple[str, dict[str, Any], Any]) -> None:
    leaves = inside.order(key[1]["server.prototype"])
    inside.weights(axes, key[2][np.ix_(leaves, leaves)])
