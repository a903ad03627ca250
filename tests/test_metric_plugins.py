"""Metric plug-ins: against scikit-learn and numpy, in records, tables and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from followed import Page
from sklearn.metrics import f1_score, recall_score
from test_schedule import sweep

from fedbench.base.records import RunFolder
from fedbench.cli import check
from fedbench.method import HookError, Predictions
from fedbench.plan.config import ConfigError
from fedbench.plan.identity import training_key
from fedbench.plan.plugins import HOME, plugins
from fedbench.report.evidence import gather
from fedbench.report.figures.report_figures import all_figures
from fedbench.report.tables import contests, grid
from fedbench.report.tables.summary import summary
from fedbench.run import scoring
from fedbench.run.simulation import begin, run_rounds

METRIC = plugins().classes["metric"]
ALL = ["macro_f1", {"name": "calibration_error", "bins": 5}, "worst_class", "group_gap"]


def random_predictions(seed: int) -> Predictions:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (200,), generator=draw)
    labels[labels == 3] = 2  # class 3 has no sample
    scores = torch.randn(200, 6, generator=draw, dtype=torch.float64) * 2
    scores[torch.arange(200), labels] += 2
    clients, domains = (torch.randint(high, (200,), generator=draw) for high in (7, 3))
    return Predictions(scores, labels, clients, domains)


def calibration_error(scores: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """One bin at a time."""
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    confidence, right = shares.max(1), shares.argmax(1) == labels
    total = 0.0
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return float(total)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_shipped_metrics_are_those_of_scikit_learn_and_numpy(seed):
    p = random_predictions(seed)
    labels, predicted, present = p.labels.numpy(), p.predicted.numpy(), np.unique(p.labels.numpy())
    f1 = f1_score(labels, predicted, labels=present, average="macro", zero_division=0)
    assert METRIC["macro_f1"]().measure(p) == pytest.approx(f1)
    recalls = recall_score(labels, predicted, labels=present, average=None)
    assert METRIC["worst_class"]().measure(p) == pytest.approx(recalls.min())
    for bins in (5, 15):
        expected = calibration_error(p.scores.numpy(), labels, bins)
        assert METRIC["calibration_error"](bins=bins).measure(p) == pytest.approx(expected)
    for groups, group in (("client", p.clients.numpy()), ("domain", p.domains.numpy())):
        each = [(labels == predicted)[group == g].mean() for g in np.unique(group)]
        assert METRIC["group_gap"](groups=groups).measure(p) == pytest.approx(max(each) - min(each), rel=1e-12)
    assert METRIC["group_gap"](groups="domain").measure(Predictions(p.scores, p.labels, p.clients)) is None


def test_a_last_class_and_client_without_a_right_answer_count_as_zero():
    """Class 0: 2 of 2 right. Class 1: 1 of 2. Class 3, of the last client: 0 of 1. Class 2 has no sample but a guess."""
    labels, predicted = torch.tensor([0, 0, 1, 1, 3]), torch.tensor([0, 0, 1, 2, 1])
    p = Predictions(
        torch.eye(4)[predicted].double(), labels, torch.tensor([0, 0, 0, 2, 3]), torch.tensor([1, 1, 1, 1, 2])
    )
    assert METRIC["worst_class"]().measure(p) == 0
    assert METRIC["macro_f1"]().measure(p) == pytest.approx((1 + 2 / 4 + 0) / 3)
    assert METRIC["group_gap"]().measure(p) == 1
    assert METRIC["group_gap"](groups="domain").measure(p) == pytest.approx(3 / 4)


@pytest.mark.parametrize(("score", "bins", "error"), [(0.0, 1, 0.25), (0.0, 2, 0.25), (1000.0, 4, 0.5)])
def test_the_calibration_error_of_equal_and_of_certain_scores(score, bins, error):
    """Two classes: confidence 1/2 with 3 of 4 right, which lies in the lower of two bins; certainty with half right."""
    right = 3 if score == 0 else 2
    labels = torch.tensor([0] * right + [1] * (4 - right))
    scores = torch.tensor([[score, 0.0]] * 4, dtype=torch.float64)
    p = Predictions(scores, labels, torch.zeros(4, dtype=torch.int64))
    assert METRIC["calibration_error"](bins=bins).measure(p) == pytest.approx(error)


def run(folder: Path, metrics: list[Any], plugin_folder: Path | None = None, **change: Any) -> RunFolder:
    common = {"method": {"name": "fedvpt", "prompt": "local", "prompt_length": 2}, "rounds": 2, "evaluate_every": 1}
    common["clients"] = {"number": 5, "per_round": 2, "held_out": 1, "validation": 0}
    sweep_ = sweep(folder, plugin_folder, metrics=metrics, **(common | change))
    (planned,) = sweep_.runs
    made = RunFolder(folder / "results" / planned.name)
    made.plan(sweep_.on_disk(planned))
    made.finish(run_rounds(planned, sweep_.machine, sweep_.plugins, made))
    return made


def test_records_tables_and_figures_hold_the_metrics_of_all_test_samples(tmp_path, monkeypatch):
    seen: list[Predictions] = []
    predictions = scoring.predictions
    monkeypatch.setattr(scoring, "predictions", lambda e: seen.append(predictions(e)) or seen[-1])
    folder = run(tmp_path, ALL)
    records = folder.records()
    for record, p in zip(records, seen, strict=True):
        assert float(p.correct.double().mean()) == pytest.approx(record["pooled_accuracy"])
        assert set(p.clients.tolist()) < set(range(5))  # without the held-out client
        f1 = f1_score(p.labels, p.predicted, labels=np.unique(p.labels), average="macro", zero_division=0)
        assert record["metric.macro_f1"] == pytest.approx(f1)
        expected = calibration_error(p.scores.numpy(), p.labels.numpy(), 5)
        assert record["metric.calibration_error"] == pytest.approx(expected)
        each = [p.correct[p.clients == k].double().mean().item() for k in p.clients.unique()]
        assert record["metric.group_gap"] == pytest.approx(max(each) - min(each))
    evidence = gather([], tmp_path / "results")
    detail = grid.detail_grid(summary(evidence.runs), evidence.runs["setting"][0])
    titles = [title for _, row in detail.groups for title in row]
    assert {"Macro f1", "Calibration error", "Worst class", "Group gap"} <= set(titles)
    shown = dict(zip(titles, detail.rows[0].cells, strict=True))
    assert shown["Macro f1"].value == pytest.approx(records[-1]["metric.macro_f1"])
    figures = {s.drawing.name: s for s in all_figures(evidence, {}, contests.overall(evidence.runs)).sketches}
    assert figures["metric-macro_f1"].make is not None
    line = figures["metric-macro_f1"].make().axes[0].get_lines()[0]
    assert line.get_ydata().tolist() == pytest.approx([100 * record["metric.macro_f1"] for record in records])


def test_metrics_change_no_training_and_no_other_number(tmp_path):
    plain, measured = run(tmp_path, []), run(tmp_path, ["macro_f1"])
    first, second = (folder.config()["identity"] for folder in (plain, measured))
    assert "metrics" not in first
    assert second["metrics"] == [{"name": "macro_f1"}]
    assert training_key(first) == training_key(second)
    for a, b in zip(plain.records(), measured.records(), strict=True):
        assert all(b[name] == a[name] for name in ("mean_accuracy", "train_loss", "bytes_up", "worst_accuracy"))
        assert b.keys() - a.keys() == {"metric.macro_f1"}


def test_a_trial_without_test_data_measures_nothing(tmp_path):
    change = {"test_data": False, "clients": {"number": 3, "per_round": 2, "validation": 0.2}}
    assert not any(name.startswith("metric.") for name in run(tmp_path, ["macro_f1"], **change).records()[-1])


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["macro_f2"], r"metric: unknown name 'macro_f2'; did you mean 'macro_f1'"),
        (["macro_f1", {"name": "macro_f1"}], "metrics: macro_f1 is there twice"),
        ([{"name": "calibration_error", "bins": 0}], "calibration_error.bins"),
        ("macro_f1", "run.metrics"),
    ],
)
def test_a_mistake_in_metrics_gets_one_message(tmp_path, metrics, message):
    with pytest.raises(ConfigError, match=message) as raised:
        sweep(tmp_path, metrics=metrics)
    assert "1 mistake" in str(raised.value)


OWN = '''"""The share of samples of the first client, doubled."""
from dataclasses import dataclass
from fedbench import method


@dataclass(frozen=True)
class Metric(method.Metric):
    factor: float = method.option(1.0, "a factor")

    def measure(self, predictions):
        return float((predictions.clients == predictions.clients[0]).double().mean()) * self.factor
'''


def test_a_metric_of_the_user_is_checked_found_and_refused_beyond_its_range(tmp_path, capsys):
    file = tmp_path / "mine" / "methods" / "metrics" / "own.py"
    file.parent.mkdir(parents=True)
    file.write_text(OWN)
    assert check.main([str(file)]) == 1
    printed = capsys.readouterr().out
    assert "FAIL  measure() does not depend on the order of the samples" in printed
    assert check.main([str(HOME / "methods" / "metrics" / "macro_f1.py")]) == 0
    record = run(tmp_path, ["own"], tmp_path / "mine").records()[-1]
    assert 0 < record["metric.own"] < 1
    with pytest.raises(HookError, match=r"own.py: measure\(\): expected a share from 0 to 1 or None, found"):
        run(tmp_path, [{"name": "own", "factor": 90.0}], tmp_path / "mine")


def test_the_scores_do_not_depend_on_how_samples_are_grouped(tmp_path, monkeypatch):
    sweep_ = sweep(tmp_path, metrics=["macro_f1"], precision="float64")
    (planned,) = sweep_.runs
    folder = RunFolder(tmp_path / planned.name)
    folder.plan(sweep_.on_disk(planned))
    experiment = begin(planned, sweep_.machine, sweep_.plugins, folder).experiment
    whole = scoring.predictions(experiment)
    object.__setattr__(experiment, "chunk", 3)
    parts = scoring.predictions(experiment)
    for k in range(3):
        for each in (whole, parts):
            assert sorted(each.labels[each.clients == k].tolist()) == sorted(
                experiment.samples.labels[experiment.split.test[k]].tolist()
            )
        first, second = (p.scores[p.clients == k] for p in (whole, parts))
        assert (first.sort(0).values - second.sort(0).values).abs().max() < 1e-9
    assert json.dumps(scoring.measured(experiment))


def test_the_example_of_the_page_keeps_the_contract(tmp_path, capsys):
    page = Page("docs/metrics.md")
    assert list(page.files) == ["my_methods/methods/metrics/top5.py"]
    page.lay_out(tmp_path)
    assert check.main([str(tmp_path / "my_methods/methods/metrics/top5.py")]) == 0
    assert "FAIL" not in capsys.readouterr().out
    assert all(f"| `{name}` |" in page.text for name in METRIC)
