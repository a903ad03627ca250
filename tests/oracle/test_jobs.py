"""Every option of the cluster block takes effect, and a requeued job recognises its own lease."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedbench.base import lease
from fedbench.base.processes import process
from fedbench.jobs.slurm import slurm_parameters
from fedbench.plan.config import Cluster

# The other value of each option, and the parameters of submitit that it changes.
PARAMETERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "timeout_min": (6, {"time": 6, "signal_delay_s": 120}),  # a third of the time where that is less than 3 minutes
    "gpus": (2, {"gpus_per_node": 2}),
    "cpus": (3, {"cpus_per_task": 3, "srun_args": ["--cpus-per-task=3"]}),
    "mem_gb": (1.5, {"mem": "1536MB"}),
    "partition": ("long", {"partition": "long"}),
    "account": ("lab", {"account": "lab"}),
    "qos": ("low", {"qos": "low"}),
    "constraint": ("a100", {"constraint": "a100"}),
    "array_parallelism": (5, {"array_parallelism": 5}),
    "slurm": ({"nice": 7, "slurm_exclude": "n1"}, {"nice": 7, "exclude": "n1"}),
}
# Of how many runs a job has and how they share it, which `test_packs_fill_jobs` shows; setup has a test below.
OF_JOBS = {"runs_per_job", "runs_per_gpu", "workers", "setup"}


def test_every_option_of_the_cluster_is_expected() -> None:
    assert PARAMETERS.keys() | OF_JOBS == Cluster.model_fields.keys()


@pytest.mark.parametrize("option", PARAMETERS)
def test_an_option_of_the_cluster_changes_its_parameters_and_no_others(option: str) -> None:
    value, expected = PARAMETERS[option]
    before, after = slurm_parameters(Cluster()), slurm_parameters(Cluster(**{option: value}))
    changed = {name: after[name] for name in after if after[name] != before.get(name)}
    if option == "cpus":  # threads follow the cores
        assert "export OMP_NUM_THREADS=3 MKL_NUM_THREADS=3" in changed.pop("setup")
    assert changed == expected
    assert before.keys() <= after.keys()


def test_setup_lines_come_last_and_in_order() -> None:
    before, after = (slurm_parameters(Cluster(setup=setup))["setup"] for setup in ((), ("module load x", "echo y")))
    assert after == [*before, "module load x", "echo y"]


@pytest.mark.parametrize(
    ("cluster", "sizes"),
    [
        ({}, [1] * 7),
        ({"runs_per_job": 3}, [3, 3, 1]),
        ({"runs_per_gpu": 2}, [2, 2, 2, 1]),  # without a GPU: runs side by side in a job
        ({"runs_per_gpu": 2, "gpus": 2}, [4, 3]),
        ({"runs_per_gpu": 2, "gpus": 2, "runs_per_job": 5}, [5, 2]),
    ],
)
def test_packs_fill_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: dict[str, Any], sizes: list[int]
) -> None:
    from fedbench.jobs import slurm
    from fedbench.plan.config import Machine, Sweep
    from fedbench.plan.plugins import plugins

    submitted: list[Any] = []

    def take(executor: Any, jobs: list[Any], start: int, total: int) -> Any:
        submitted.extend(jobs)
        return iter(())

    class Executor:
        def __init__(self, folder: Path) -> None: ...

        def update_parameters(self, **parameters: Any) -> None: ...

    monkeypatch.setattr(slurm, "_submitted", take)
    monkeypatch.setattr(slurm.submitit, "SlurmExecutor", Executor)
    sweep = Sweep("s", (), Machine(), Cluster(**cluster), plugins())
    slurm.submit(sweep, tmp_path, [f"run{i}" for i in range(7)], tmp_path)
    assert [len(job.names) for job in submitted] == sizes
    assert [name for job in submitted for name in job.names] == [f"run{i}" for i in range(7)]
    assert {job.side_by_side for job in submitted} == {cluster.get("runs_per_gpu", 1)}


@pytest.fixture
def in_a_job(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Say which Slurm job this process belongs to; waiting for a heartbeat fails the test."""

    def waited(seconds: float) -> None:
        raise AssertionError("waited for a heartbeat")

    def be(job: str) -> None:
        monkeypatch.setattr(lease, "process", lambda: dataclasses.replace(process(), job=job))

    monkeypatch.setattr(lease.time, "sleep", waited)
    return be


def claim(folder: Path, **change: Any) -> None:
    """A claim of an earlier attempt on another host, which beat a moment ago."""
    owner = {**dataclasses.asdict(process()), "host": "elsewhere", "job": "77_3", **change}
    (folder / "claim.4").write_text(json.dumps(owner))


def test_a_requeued_job_takes_over_its_own_lease_at_once(tmp_path: Path, in_a_job: Callable[[str], None]) -> None:
    claim(tmp_path)
    in_a_job("77_3")
    with lease.acquire(tmp_path) as held:
        assert held is not None
        assert held.path.name == "claim.5"
        assert held.abandoned_by is not None
        assert held.abandoned_by.host == "elsewhere"


@pytest.mark.parametrize(("earlier", "now"), [("77_3", "77_4"), ("", ""), ("77_3", ""), ("", "77_3")])
def test_another_job_or_none_waits_for_the_heartbeat(
    tmp_path: Path, in_a_job: Callable[[str], None], earlier: str, now: str
) -> None:
    claim(tmp_path, job=earlier)
    in_a_job(now)
    with pytest.raises(AssertionError, match="waited for a heartbeat"), lease.acquire(tmp_path):
        pass
