"""The report's answer: the best method, its lead, the certainty of the lead, and the effect of the log class prior alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from written import write_run

from fedbench.report import answer
from fedbench.report.content import BUDGETS, Content, ReportOptions
from fedbench.report.evidence import gather
from fedbench.report.short_names import short_settings


def content(results: Path) -> Content:
    return Content(gather([], results), ReportOptions())


def runs_of(results: Path, label: str, values: tuple[float, ...], **more: object) -> None:
    for seed, value in enumerate(values):
        write_run(results, label, seed, {20: value}, clients=True, **more)  # type: ignore[arg-type]


def test_the_answer_says_who_leads_by_how_much_and_how_sure(tmp_path: Path) -> None:
    runs_of(tmp_path, "good", (0.80, 0.82, 0.84))
    runs_of(tmp_path, "near", (0.795, 0.825, 0.83))
    runs_of(tmp_path, "poor", (0.40, 0.42, 0.44))
    runs_of(tmp_path, "top", (0.90, 0.92, 0.94), reference=True)
    (best,) = content(tmp_path).answers
    assert (best.best, best.accuracy) == ("good", "82.0 ± 2.0")
    assert best.next is not None
    assert (best.next.over, best.next.points) == ("near", "+0.3")
    assert best.next.sure.startswith("may be luck: -")
    assert best.reference is not None
    assert (best.reference.over, best.reference.points) == ("top", "-10.0")
    assert best.tied == ("near",)
    assert best.sent == "40.0 kB"  # 20 rounds of 1000 bytes up and as many down
    assert best.computed == "20.0 G"
    first, second = (int(part) for part in best.needed.split(" / "))
    assert first > second >= 2
    assert answer.headline([best]) == (
        "good has the largest mean accuracy, 82.0 ± 2.0 %, 0.3 points over the next. This lead may be luck."
    )


def test_with_one_seed_the_answer_is_not_tested(tmp_path: Path) -> None:
    runs_of(tmp_path, "good", (0.8,))
    runs_of(tmp_path, "poor", (0.4,))
    (best,) = content(tmp_path).answers
    assert best.next is not None
    assert best.next.sure == "not tested: one seed"
    assert answer.headline([best]).endswith("40.0 points over the next. With one seed this is not tested.")


def test_several_settings_have_an_overall_answer(tmp_path: Path) -> None:
    for alpha, first, second in ((0.1, 0.8, 0.5), (0.3, 0.5, 0.8), (1.0, 0.9, 0.5)):
        runs_of(tmp_path, "A", (first, first + 0.01, first + 0.015), alpha=alpha)
        runs_of(tmp_path, "B", (second, second + 0.012, second + 0.01), alpha=alpha)
    answers = content(tmp_path).answers
    assert [each.setting for each in answers] == [
        answer.OVERALL,
        *(f"glyphs · dirichlet {a}" for a in ("0.1", "0.3", "1.0")),
    ]
    assert answers[0].best == "A"
    assert answers[0].tied == ("B",)  # three settings that disagree
    text = answer.headline(answers)
    assert text.startswith("No method leads everywhere: A has the largest mean accuracy in 2 of 3 settings, B in 1")
    assert text.endswith("This lead is clear in every setting.")


def made(setting: str, best: str, points: str = "", sure: str = "") -> answer.Answer:
    """An answer with a lead of `points` over the next contestant; without points there is no other contestant."""
    lead = answer.Lead("next", points, sure) if points else None
    return answer.Answer(setting, best, "50.0", lead, ())


CLEAR, LUCK, UNTESTED = "clear: +0.1 to +9.0", "may be luck: -1.0 to +3.0", "not tested: one seed"


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ([made("s", "a")], "a has the largest mean accuracy, 50.0 %; no other contestant is done."),
        (
            [made("s", "a", "+3.0", CLEAR), made("t", "a"), made("u", "b")],
            "a has the largest mean accuracy, 50.0 %, 3.0 points over the next. This lead is clear. In 2 other "
            "settings, a single contestant is done.",
        ),
        (
            [made("s", "a", "+3.0", CLEAR)],
            "a has the largest mean accuracy, 50.0 %, 3.0 points over the next. This lead is clear.",
        ),
        (
            [made(answer.OVERALL, "z", "+7.0", LUCK), made("s", "a", "+10.0", CLEAR), made("t", "a", "+9.0", LUCK)],
            "a has the largest mean accuracy in both settings, 9.0 to 10.0 points over the next. "
            "This lead is clear in 1 of 2 settings.",
        ),
        (
            [made(setting, "a", points, LUCK) for setting, points in (("s", "+1.0"), ("t", "+3.0"), ("u", "+2.0"))],
            "a has the largest mean accuracy in all 3 settings, 1.0 to 3.0 points over the next. "
            "This lead is clear in none of 3 settings.",
        ),
        (
            [made(setting, "a", "+2.0", UNTESTED) for setting in "st"],
            "a has the largest mean accuracy in both settings, 2.0 points over the next. With one seed this is not tested.",
        ),
        (
            [made(str(i), best, "+2.0", CLEAR) for i, best in enumerate("bacdea")],
            "No method leads everywhere: a has the largest mean accuracy in 2 of 6 settings, b in 1, c in 1, d in 1, "
            "2.0 points over the next. This lead is clear in every setting.",
        ),
    ],
    ids=["alone", "alone in two", "one setting", "both settings", "all settings", "one seed", "many winners"],
)  # fmt: skip
def test_the_headline_says_in_how_many_settings_who_leads(answers: list[answer.Answer], text: str) -> None:
    assert answer.headline(answers) == text


def test_a_method_that_equals_the_control_somewhere_is_not_below_it(tmp_path: Path) -> None:
    for alpha, plain, control, other in ((0.1, 0.3, 0.5, 0.5), (0.3, 0.5, 0.6, 0.4)):
        for label, prior, value in (("plain", "none", plain), ("prior", "eval", control), ("other", "none", other)):
            method = "other" if label == "other" else "plain"
            block = {"method": {"name": method, "logit_prior": prior}}
            runs_of(tmp_path, label, (value, value + 0.01), alpha=alpha, method=method, config=block)
    runs_of(tmp_path, "top", (0.1, 0.1), reference=True)
    whole = content(tmp_path)
    (control,) = whole.controls
    assert [tuple(round(value, 6) for value in values[1:]) for values in control.values] == [(30.5, 50.5), (50.5, 60.5)]
    assert answer.below_control(whole.table, whole.controls).endswith("in every setting: plain.")
    assert answer.below_control(whole.table, []) == ""
    assert answer.below_control(whole.table[whole.table["label"] != "plain"], whole.controls) == ""


def test_nothing_done_is_no_answer(tmp_path: Path) -> None:
    write_run(tmp_path, state="pending")
    assert content(tmp_path).answers == []
    assert answer.headline([]).startswith("No contestant is done")


def test_the_control_stands_beside_what_it_controls(tmp_path: Path) -> None:
    for label, prior, values in (("plain", "none", (0.3, 0.32)), ("plain + prior", "eval", (0.6, 0.62))):
        block = {"name": "plain", "logit_prior": prior}
        runs_of(tmp_path, label, values, method="plain", config={"method": block})
    runs_of(tmp_path, "other", (0.4, 0.42))
    whole = content(tmp_path)
    (control,) = whole.controls
    assert (control.method, control.control) == ("plain", "plain + prior")
    ((_, before, after),) = control.values
    assert (before, after) == (pytest.approx(31.0), pytest.approx(61.0))
    assert answer.below_control(whole.table, whole.controls) == (
        "Below the strongest of these controls (plain + prior on average) in every setting: other, plain."
    )


@pytest.mark.parametrize(
    ("texts", "short"),
    [
        (["glyphs(a=1) · iid"], ["glyphs · iid"]),
        (["glyphs(a=1) · dirichlet(alpha=0.3)"], ["glyphs · dirichlet 0.3"]),
        (["g(a=1) · x(n=2, m=3)", "g(a=2) · x(n=2, m=4)"], ["g 1 · x 3", "g 2 · x 4"]),
        (["g · x(n=1, m=3)", "g · x(n=2, m=4)"], ["g · x n=1 m=3", "g · x n=2 m=4"]),
        (["g · x(n=1) · [clients.number=4]", "g · x(n=1) · [clients.number=9]"], None),
    ],
)
def test_settings_have_short_names_that_differ(texts: list[str], short: list[str] | None) -> None:
    wanted = short or ["g · x 1 · [clients.number=4]", "g · x 1 · [clients.number=9]"]
    assert list(short_settings(texts).values()) == wanted


def test_budgets_count_bytes_both_ways_and_arithmetic(tmp_path: Path) -> None:
    for label, up, down, arithmetic in (("A", 3000, 1000, 90), ("B", 500, 4500, 60)):
        totals = {"total_bytes_up": up, "total_bytes_down": down, "total_multiply_adds": arithmetic}
        write_run(tmp_path, label, accuracies={20: 0.5}, **totals)
    leads = content(tmp_path).budgets
    sent, computed = BUDGETS["sent"], BUDGETS["total_multiply_adds"]
    rows = [tuple(row) for row in leads[["cost", "label", "budget", "accuracy"]].fillna(-1.0).to_numpy()]
    assert sorted(rows) == sorted(
        [(sent, "A", 4000.0, 0.5), (sent, "B", 4000.0, -1.0), (computed, "A", 60.0, -1.0), (computed, "B", 60.0, 0.5)]
    )


def test_a_control_differs_from_its_method_in_the_prior_and_in_tuned_values_alone(tmp_path: Path) -> None:
    """FedAvg with the prior is no control of FedAdam without it; another chosen rate makes no other method."""
    rows = [("avg", "none", "fedavg", 0.1), ("adam", "none", "fedadam", 0.1), ("avg + prior", "eval", "fedavg", 0.3)]
    for label, prior, aggregation, rate in rows:
        block = {"method": {"name": "plain", "logit_prior": prior}, "aggregation": {"name": aggregation}}
        config = block | {"local": {"lr": rate, "epochs": 1}}
        runs_of(tmp_path, label, (0.3, 0.32), method="plain", config=config, tuning={"values": {"local.lr": rate}})
    (control,) = content(tmp_path).controls
    assert (control.method, control.control) == ("avg", "avg + prior")
