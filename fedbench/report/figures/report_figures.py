"""Every figure of a report, in the order of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from fedbench.report.evidence import Evidence
from fedbench.report.figures import aggregate, clients, curves, inside, scores, tuned, varied
from fedbench.report.figures.catalogue import FigureCatalogue, FigureData
from fedbench.report.figures.frame import PANELS
from fedbench.report.figures.style import looks
from fedbench.report.statistics import Comparison
from fedbench.report.tables.contests import Overall
from fedbench.report.tables.metrics import REFERENCE
from fedbench.report.tables.summary import labels

MOST = 3 * PANELS  # panels of a kind that are drawn, and fewer of many methods; tables hold all settings
# Files that a report makes begin with one of these; an earlier report's are removed.
NAMES = (
    *(
        "rounds",
        "bytes",
        "compute",
        "privacy",
        "metric-",
        "iqm",
        "profiles",
        "improvement",
        "outcomes",
        "by-",
        "worst",
        "cost",
        "heat",
        "ranks",
    ),
    *("clients", "duel", "newcomers", "split", "trials", "searched", "prompts", "pictures"),
)
PERCENTS = ("mean_accuracy", "worst_accuracy", "held_out_mean_accuracy")


def all_figures(
    evidence: Evidence,
    within: Mapping[str, Sequence[Comparison]],
    overall: Overall,
    versus: tuple[str, str] | None = None,
) -> FigureCatalogue:
    """Every figure of a report, to be drawn; one without data says why. versus: two methods to compare client by client."""
    runs = evidence.runs
    names = labels(runs)
    references = list(runs.loc[runs["reference"].astype(bool), "label"].unique())
    short = _partial(runs)
    shown_as = {name: name + f" {REFERENCE}" * (name in references) + "*" * (name in short) for name in names}
    marks = f" {REFERENCE}: a reference." if references else ""
    marks += " *: not all seeds are done in every setting." if short else ""
    settings = list(dict.fromkeys(runs["setting"]))
    most = MOST if len(settings) * len(names) <= MOST * 20 else PANELS
    catalogue = FigureCatalogue(looks(names, references), shown_as, marks, most)
    done = runs.assign(**{name: 100 * runs[name] for name in PERCENTS})
    done = done.assign(sent=done["total_bytes_up"] + done["total_bytes_down"])[done["state"] == "done"]
    data = FigureData(evidence, done, settings, names, within, overall, versus or _two_best(runs))
    for part in (curves, aggregate, scores, varied, clients, tuned, inside):
        part.add(catalogue, data)
    return catalogue


def _partial(runs: pd.DataFrame) -> set[str]:
    """Labels with some, but not all, of a setting's seeds done somewhere."""
    done = runs[runs["state"] == "done"].groupby(["setting", "label"])["seed"].nunique()
    seeds = runs.groupby("setting")["seed"].nunique()
    short = done < seeds.reindex(done.index.get_level_values("setting")).to_numpy()
    return set(done.index[short].get_level_values("label"))


def _two_best(runs: pd.DataFrame) -> tuple[str, str] | None:
    """The two contestants with the best mean accuracy over all their finished runs, if there are two."""
    done = runs[(runs["state"] == "done") & ~runs["reference"].astype(bool)]
    means = done.groupby("label", sort=False)["mean_accuracy"].mean().dropna()
    best = means.sort_values(ascending=False, kind="stable").index
    return (str(best[0]), str(best[1])) if len(best) > 1 else None
