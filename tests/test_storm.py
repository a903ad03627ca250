"""Fault storms over eight runs: random faults, in local processes and on a real Slurm, and damage to every file."""

from pathlib import Path

import pytest
from damage import FILES, WAYS
from slurm_cluster import NoSlurm, cluster
from storm import storm


@pytest.mark.slow
def test_local_workers_in_a_storm(tmp_path: Path) -> None:
    figures = storm(tmp_path / "storm", "local", faults=12, seeds=2, seconds=900, seed=1)
    assert figures["faults"] == 12
    assert figures["runs"] == 8
    assert figures["records"] == 80
    assert not figures["differences"], figures


@pytest.mark.slow  # three or four minutes on two idle cores
def test_two_hundred_faults_that_also_damage_every_file_lose_nothing_silently(tmp_path: Path) -> None:
    """33 faults of processes and disks, each followed by five damaged files of living, waiting and finished runs."""
    figures = storm(tmp_path / "storm", "local", faults=200, seeds=2, seconds=900, seed=2, damages=5, stuck_seconds=3)
    assert figures["faults"] >= 200
    damaged = {kind.partition(" ")[2] for kind in figures["by_kind"] if " " in kind}
    assert damaged >= set(FILES) - {"failed.json"}  # which only a run has that failed: see test_damage.py
    assert {kind.partition(" ")[0] for kind in figures["by_kind"] if " " in kind} == set(WAYS)
    assert figures["records"] == 80
    assert not figures["differences"], figures


@pytest.mark.slurm
def test_slurm_jobs_in_a_storm(tmp_path: Path) -> None:
    try:
        with cluster(tmp_path / "slurm") as made:
            figures = storm(tmp_path / "storm", "slurm", faults=14, seeds=2, seconds=900, seed=1, node=made.node)
    except NoSlurm as error:
        pytest.skip(str(error))
    assert figures["faults"] == 14
    assert figures["records"] == 80
    assert not figures["differences"], figures
