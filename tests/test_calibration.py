"""The error rates of verdicts: equal methods are rarely called different, in simulations and in real runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from fedbench.cli import sweep
from fedbench.report import calibration
from fedbench.report.evidence import gather
from fedbench.report.tables import contests
from fedbench.report.tables.summary import summary

MOST = 0.06  # family-wise error; the nominal level is 5 %


@pytest.mark.parametrize("seeds", calibration.SEEDS)
@pytest.mark.parametrize("methods", calibration.METHODS)
@pytest.mark.parametrize("world", calibration.WORLDS, ids=lambda world: world.name)
def test_equal_methods_are_rarely_called_different(world: calibration.World, methods: int, seeds: int) -> None:
    assert calibration.family_error(world, methods, seeds) <= MOST
    if methods > 2:
        assert calibration.error_beside_a_better_one(world, methods, seeds) <= MOST


@pytest.mark.parametrize("seeds", calibration.SEEDS)
@pytest.mark.parametrize("settings", calibration.SETTINGS)
@pytest.mark.parametrize("luck", [0.0, 0.5, 1.0])
def test_equal_methods_are_rarely_called_different_over_settings(luck: float, settings: int, seeds: int) -> None:
    assert calibration.error_over_settings(8, settings, seeds, luck) <= MOST


def test_equal_values_without_spread_are_not_called_different() -> None:
    assert not calibration.claims(np.zeros((2, 3, 4))).any()
    assert not calibration.claims(np.array([[0.3] * 4, [0.1 + 0.2] * 4])).any()  # a rounding apart
    assert calibration.claims(np.zeros((1, 2, 4)) + np.array([0.0, 1e-9])[:, None])[0].tolist() == [
        [False, True],
        [True, False],
    ]


def test_a_difference_is_found_when_seeds_suffice() -> None:
    powers = {seeds: calibration.detection(calibration.PLAIN, 8, seeds, 2.0) for seeds in (2, 3, 5)}
    assert powers[2] > 0.3
    assert powers[3] > 0.65
    assert powers[5] > 0.95


def test_the_simulation_would_see_a_test_that_takes_clients_for_replicates() -> None:
    """Two equal methods, judged by a t-test over 300 clients of 3 seeds, as if clients were independent trainings."""
    import numpy as np
    from scipy import stats

    draw = np.random.default_rng(0)
    seed = calibration.SEED * draw.normal(size=(1000, 3, 1))
    clients = (seed + calibration.CLIENT * draw.normal(size=(1000, 3, 100))).reshape(1000, 300)
    assert (stats.ttest_1samp(clients, 0, axis=1).pvalue < 0.05).mean() > 2 * MOST


ALPHAS = (0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 2, 4, 8, 16)
SWEEP = {
    "name": "aa",
    "base": {
        "backbone": {"name": "nano_plain"},
        "dataset": {"name": "glyphs", "train_per_class": 6, "test_per_class": 2},
        "rounds": 4,
        "evaluate_every": 4,
        "clients": {"number": 20, "per_round": 5},
        "local": {"epochs": 1, "batch_size": 32, "lr": 0.03, "momentum": 0.9},
    },
    "grid": {
        "partition": [{"name": "dirichlet", "alpha": alpha} for alpha in ALPHAS],
        "method": [{"name": "head_only", "label": f"stream {i}", "with": {"seeds": {"batches": 100 + i}}} for i in range(8)],
        "seed": [0, 1, 2],
    },
}  # fmt: skip


@pytest.mark.slow
def test_one_method_under_eight_labels_is_not_called_different_from_itself(tmp_path: Path) -> None:
    """A real A/A: the labels differ in the order of batches alone; at most one of twelve settings may claim anything."""
    file, results = tmp_path / "aa.yaml", tmp_path / "results"
    file.write_text(
        yaml.safe_dump({**SWEEP, "machine": {"device": "cpu", "data": str(tmp_path / "data"), "pack": True}})
    )
    assert sweep.main([str(file), "--results", str(results), "--cluster", "inline", "--no-watch"]) == 0
    evidence = gather([file], results)
    runs = evidence.runs.assign(reference=False)  # `head_only` is a reference; here its labels compete
    assert (len(runs), set(runs["state"])) == (12 * 8 * 3, {"done"})
    assert runs.groupby(["setting", "seed"])["mean_accuracy"].nunique().min() > 2  # the stream does change the numbers
    comparisons = contests.within(runs, evidence.clients)
    claiming = [setting for setting, pairs in comparisons.items() if any(pair.significant for pair in pairs)]
    assert len(comparisons) == 12
    assert len(claiming) <= 1, claiming
    assert not any(pair.significant for pair in contests.overall(runs).pairs)
    table = summary(runs)
    means = table[(table["metric"] == "mean_accuracy") & (table["mark"] == "")]
    assert means["setting"].nunique() <= 1  # every other label is best or tied with the best
