"""The cluster commands of the README and the tutorial, run on a cluster."""

from pathlib import Path

import pytest
from followed import Page
from slurm_cluster import Cluster

from fedbench.base.records import run_folders

pytestmark = pytest.mark.slurm


def test_the_commands_of_the_readme(slurm: Cluster, tmp_path: Path) -> None:
    page = Page("README.md")
    page.lay_out(tmp_path)
    submit, status, cancel = page.on_slurm
    assert "28 started to Slurm" in page.run(submit, tmp_path)
    assert "28 runs:" in page.run(status, tmp_path)
    assert "runs cancelled" in page.run(cancel, tmp_path)


def test_the_commands_of_the_tutorial(slurm: Cluster, tmp_path: Path) -> None:
    page = Page("docs/tutorial.md")
    page.lay_out(tmp_path)
    printed = [page.run(command, tmp_path) for command in page.on_slurm]
    assert "3 started to Slurm" in printed[0]
    assert "3 runs: 3 done" in printed[2]
    assert [folder.status for folder in run_folders(tmp_path / "results")] == ["done"] * 3
    assert "PEP" in page.run("python reports/make_figures.py on_cluster.yaml", tmp_path)
