"""The fault storm in short: a dozen random faults over eight runs, in local processes and on a real Slurm."""

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


@pytest.mark.slow
def test_two_hundred_faults_that_also_damage_every_file_lose_nothing_silently(tmp_path: Path) -> None:
    """40 faults of processes and disks, each followed by four damaged files."""
    figures = storm(tmp_path / "storm", "local", faults=200, seeds=2, seconds=360, seed=2, damages=4, stuck_seconds=3)
    assert figures["faults"] >= 200
    assert {kind.split()[1] for kind in figures["by_kind"] if " " in kind} == set(FILES)
    assert {kind.split()[0] for kind in figures["by_kind"] if " " in kind} == set(WAYS)
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
