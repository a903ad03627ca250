"""Fair tuning: equal budgets, validation data alone, test data for what was chosen - on real runs of the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from written import write_run

from fedbench.base.records import RunFolder, run_folders
from fedbench.cli import sweep
from fedbench.plan.config import ConfigError
from fedbench.plan.planning import check_sweep, read_sweep
from fedbench.plan.plugins import plugins
from fedbench.plan.tuning import draws, groups, search_space, staged
from fedbench.report import writer
from fedbench.report.evidence import gather

METHODS = [{"name": "head_only"}, {"name": "fedncm"}]


def write(path: Path, **more: Any) -> Path:
    """A sweep of a linear head and of nearest class means on noise, with four trials of each."""
    labels = np.arange(60) % 2
    images = np.random.default_rng(0).integers(0, 160, (60, 16, 16, 3)) + 60 * labels[:, None, None, None]
    np.savez(path / "tiny.npz", images=images.astype(np.uint8), labels=labels, is_test=np.arange(60) % 10 < 4)
    base = {
        "dataset": {"name": "npz", "path": str(path / "tiny.npz")},
        "partition": "iid",
        "rounds": 2,
        "evaluate_every": 1,
        "clients": {"number": 4, "per_round": 2, "validation": 0.3},
    }
    content = {"base": base, "grid": {"method": METHODS, "seed": [0, 1]}, "tune": {"trials": 4, "rounds": 1}} | more
    content["machine"] = {"data": str(path / "data"), "device": "cpu", "checkpoint_seconds": 60}
    file = path / "tuned.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_one_command_looks_for_values_and_then_runs_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, results = write(tmp_path), tmp_path / "results"
    assert sweep.main([str(file), "--results", str(results), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert told.count("[trial]") == 4  # of head_only; fedncm trains nothing, so its two runs are there at once
    assert told.count("(named when tuned)") == 2
    assert "2 more wait for trials" in told
    assert not results.exists()

    assert sweep.main([str(file), "--results", str(results), "--cluster", "inline"]) == 0
    configs = {folder.path.name: folder.config() for folder in run_folders(results)}
    trials = {name: c for name, c in configs.items() if "trial_of" in c.get("tuning", {})}
    rest = {name: c for name, c in configs.items() if name not in trials}
    assert (len(trials), len(rest)) == (4, 2 + 2)
    for name, config in trials.items():
        assert config["run"]["seed"] == 0
        assert config["run"]["rounds"] == 1
        (record,) = RunFolder(results / name).records()
        assert record["val_mean_accuracy"] is not None
        assert not [key for key in record if key.endswith("_accuracy") and key != "val_mean_accuracy"]  # no test data
    best = max(RunFolder(results / name).records()[-1]["val_mean_accuracy"] for name in trials)
    heads = [config for config in rest.values() if config["run"]["method"]["name"] == "head_only"]
    assert sorted(config["run"]["seed"] for config in heads) == [0, 1]
    for config in heads:
        assert config["tuning"]["validation"] == best
        assert config["tuning"]["values"] == {"local.lr": config["run"]["local"]["lr"]}
        assert config["run"]["rounds"] == 2
    capsys.readouterr()

    assert sweep.main([str(file), "--results", str(results), "--cluster", "inline"]) == 0  # nothing is done again
    assert "4 runs: 4 done; 0 started" in capsys.readouterr().out
    assert sweep.main([str(file), "--results", str(results), "--status"]) == 0

    evidence = gather([file], results)
    assert sorted(evidence.runs["label"]) == ["fedncm", "fedncm", "head_only", "head_only"]
    assert set(evidence.runs["state"]) == {"done"}
    assert evidence.trials["validation"].max() == best
    assert evidence.trials["chosen"].sum() == 1
    writer.write(evidence, tmp_path / "out")
    assert (tmp_path / "out" / "figures" / "tuning.png").is_file()
    html = (tmp_path / "out" / "index.html").read_text()
    assert "4 trials, 4 for each method in each setting, of 1 rounds" in html
    assert f"local.lr = {heads[0]['run']['local']['lr']}" in html
    from_disk = gather([], results)
    assert sorted(from_disk.runs["label"]) == sorted(evidence.runs["label"])
    assert len(from_disk.trials) == 4


def space(**more: Any) -> Any:
    base = {"dataset": "glyphs", "partition": "iid", "clients": {"number": 4, "per_round": 2}}
    tune = {"trials": 3, **more.pop("tune", {})}
    made = check_sweep({"base": base | more, "tune": tune}, plugins())
    return search_space(made, made.runs[0])


def test_the_space_is_the_methods_own_as_the_sweep_changes_it() -> None:
    assert space(method="fedvpt") == {"local.lr": {"log": (0.001, 1.0)}}
    assert space(method="fedncm") == {}
    assert set(space(method="pep_fedpt")) == {"local.lr", "method.temperature", "method.class_prompt_lr_scale"}
    fixed = {"name": "pep_fedpt", "temperature": 0.5}  # what the file sets by hand is not looked for
    assert set(space(method=fixed)) == {"local.lr", "method.class_prompt_lr_scale"}
    search = {"local.lr": None, "method.prompt_length": {"choice": [2, 4]}}
    assert space(method="fedvpt", tune={"search": search}) == {"method.prompt_length": {"choice": (2, 4)}}
    assert space(method="head_only", tune={"search": search}) == {}  # it has no such field
    assert space(method="fedncm", tune={"search": {"local.lr": {"log": [0.1, 1]}}}) == {}


def test_draws_meet_each_stratum_once() -> None:
    # four equal parts of log10 in -3..1 have their middles at -2.5, -1.5, -.5, .5
    (path,) = {key for values in draws({"local.lr": {"log": (0.001, 10.0)}}, 4) for key in values}
    assert path == "local.lr"
    found = [values["local.lr"] for values in draws({"local.lr": {"log": (0.001, 10.0)}}, 4)]
    assert found == [0.00316, 0.0316, 0.316, 3.16]
    ranges = {"a.x": {"linear": (0, 8)}, "b.y": {"choice": ("p", "q")}}
    both = draws(ranges, 4)
    assert sorted(values["a.x"] for values in both) == [1, 3, 5, 7]
    assert sorted(values["b.y"] for values in both) == ["p", "p", "q", "q"]
    assert draws(ranges, 4) == both


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ({"local.lr": {"log": [0, 1]}}, "starts above 0"),
        ({"local.lr": {"log": [1, 0.1]}}, "expected {log: [low, high]}"),
        ({"local.lr": {"uniform": [0, 1]}}, "uniform"),
        ({"local.rl": {"log": [0.1, 1]}}, "rl"),
        ({"local.lr": {"choice": [-1, 2]}}, "greater than 0"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], search: Any, told: str
) -> None:
    file = write(tmp_path, tune={"trials": 2, "search": search})
    assert sweep.main([str(file), "--results", str(tmp_path / "results"), "--cluster", "inline"]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_without_validation_data_nothing_can_be_chosen(tmp_path: Path) -> None:
    made = read_sweep(write(tmp_path), settings=["clients.validation=0"])
    with pytest.raises(ConfigError, match=r"clients\.validation is 0"):
        staged(made, tmp_path)


def test_a_trial_that_diverged_has_lost_and_one_that_broke_holds_all_up(tmp_path: Path) -> None:
    made = read_sweep(write(tmp_path))
    first = next(group for group in groups(made, tmp_path) if group.trials)
    for number, trial in enumerate(first.trials):
        folder = RunFolder(tmp_path / trial.planned.name)
        folder.plan(made.on_disk(trial.planned))
        if number == 3:
            folder.fail("error", "a full disk")
        elif number == 2:
            folder.fail("diverged", "lr")
        else:
            folder.append({"round": 1, "val_mean_accuracy": 0.5 + 0.1 * number})
            folder.finish()
    assert len(staged(made, tmp_path).later) == 2
    folder.clear_failure()
    folder.fail("diverged", "lr")
    after = staged(made, tmp_path)
    assert after.later == ()
    chosen = [run for run in after.runs if run.run.method["name"] == "head_only"]
    assert {run.run.local.lr for run in chosen} == {first.trials[1].values["local.lr"]}
    assert all(run.run.test_data for run in chosen)


def test_a_report_on_the_way_says_what_waits(tmp_path: Path) -> None:
    file = write(tmp_path)
    made = read_sweep(file)
    # a run with the file's own learning rate lies there, untuned: it is not the one that is asked for
    stray = next(run for run in made.runs if run.run.method["name"] == "head_only")
    folder = RunFolder(tmp_path / "results" / stray.name)
    folder.plan(made.on_disk(stray))
    folder.append({"run": folder.path.name, "round": 2, "mean_accuracy": 0.9})
    folder.finish()
    evidence = gather([file], tmp_path / "results")
    assert set(evidence.runs["state"]) == {"missing"}
    assert list(evidence.trials["state"]) == ["missing"] * 4


def test_trials_from_disk_are_no_rows_of_the_table(tmp_path: Path) -> None:
    write_run(tmp_path, "A")
    for lr, value in ((0.1, 0.4), (0.2, 0.6)):
        told = {"trial_of": "A", "values": {"local.lr": lr}}
        config = {"local": {"lr": lr}, "test_data": False}
        write_run(tmp_path, "A", config=config, tuning=told, mean_accuracy=None, val_mean_accuracy=value)
    evidence = gather([], tmp_path)
    assert list(evidence.runs["label"]) == ["A"]
    assert [json.loads(values) for values in evidence.trials[evidence.trials["chosen"]]["values"]] == [
        {"local.lr": 0.2}
    ]
