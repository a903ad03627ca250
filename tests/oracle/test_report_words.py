"""Sentences of a report that depend on counts, written out by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from written import write_run

from fedbench.report import content, paper_numbers
from fedbench.report.evidence import gather
from fedbench.report.statistics import NOT_TESTED, Ranking
from fedbench.report.tables.contests import Overall

RANKING = Ranking(("b", "a"), (1.25, 1.75), 4, ())
OF_FAMILY = "over 4 settings and 3 seeds (settings and seeds as blocks, Tukey's test, 5% family-wise level)."


def pair(verdict: str) -> Any:
    return SimpleNamespace(verdict=verdict, significant=verdict in ("better", "worse"))


@pytest.mark.parametrize(
    ("ranking", "verdicts", "sentences"),
    [
        (None, [], ["A comparison over settings needs two contestants that are done in two settings and all their seeds."]),
        (
            RANKING,
            [NOT_TESTED] * 3,
            [
                "Average ranks in mean accuracy over 4 settings: b 1.2, a 1.8.",
                "Differences over all settings are not tested: that needs two seeds.",
            ],
        ),
        (None, ["no difference"] * 3, [f"None of 3 pairs of contestants differs significantly {OF_FAMILY}"]),
        (None, ["worse"], [f"1 of 1 pair of contestants differs significantly {OF_FAMILY}"]),
        (None, ["better", "no difference", "worse"], [f"2 of 3 pairs of contestants differ significantly {OF_FAMILY}"]),
    ],
    ids=["one setting", "one seed", "none", "one", "two"],
)  # fmt: skip
def test_the_tests_over_settings_are_told_in_words(
    ranking: Ranking | None, verdicts: list[str], sentences: list[str]
) -> None:
    pairs = [pair(verdict) for verdict in verdicts]
    assert content._words(Overall(ranking, pairs, "4 settings and 3 seeds")) == sentences


def test_a_latex_caption_has_three_warnings_and_the_number_of_the_others(tmp_path: Path) -> None:
    write_run(tmp_path, "A")
    made = content.Content(gather([], tmp_path), content.ReportOptions())
    for count, ends in ((0, ""), (3, "WARNING: w0 w1 w2"), (5, "WARNING: w0 w1 w2 2 more warnings.")):
        made.alarms = [f"w{i}" for i in range(count)]
        texts = content._latex(made)
        assert sorted(texts) == ["details.tex", "table.tex", "transposed.tex"]
        for name, text in texts.items():
            assert [line for line in text.splitlines() if line.startswith("% W")] == [
                f"% WARNING: w{i}" for i in range(count)
            ], name
            assert (ends in " ".join(text.split())) if ends else ("WARNING" not in text), name


def test_each_stated_part_of_a_protocol_that_differs_is_named() -> None:
    protocol = {"note": "one model", "backbone.name": "vit_base", "local.lr": 0.1, "rounds": 5, "seed": 1}
    block = {"name": "x", "alpha": 0.3}
    number = paper_numbers.Published("s", "w", "m", "t", "mean_accuracy", 50.0, block, block, block, protocol)
    config: dict[str, Any] = {"backbone": {"name": "vit_base_16"}, "local": {"lr": 0.2}, "seed": 1}
    assert list(paper_numbers.protocol(number, config)) == ["one model", "local.lr: 0.1 / 0.2", "rounds: 5 / none"]
    assert list(paper_numbers.protocol(number, {"backbone": {"name": "nano"}}))[1] == "backbone: vit_base / nano"
    assert list(paper_numbers.protocol(number, {}))[1] == "backbone: vit_base / ?"
    kinds = ("method", "dataset", "partition")
    assert number.is_of({kind: {**block, "more": 1} for kind in kinds})
    for kind in kinds:
        assert not number.is_of({other: block for other in kinds if other != kind})
        assert not number.is_of({other: block if other != kind else {"name": "x", "alpha": 1} for other in kinds})
