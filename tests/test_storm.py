"""The fault storm in short: a dozen random faults over eight runs, in local processes and on a real Slurm."""

from pathlib import Path

import pytest
from slurm_cluster import NoSlurm, cluster
from storm import storm


@pytest.mark.slow
def test_local_workers_in_a_storm(tmp_path: Path) -> None:
    figures = storm(tmp_path / "storm", "local", faults=12, seeds=2, seconds=900, seed=1)
    assert figures["faults"] == 12
    assert figures["runs"] == 8
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
