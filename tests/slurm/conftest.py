"""The fixture `slurm`: a running two-node cluster, or a skipped test where there is no Slurm."""

from collections.abc import Iterator

import pytest
from slurm_cluster import Cluster, NoSlurm, cluster


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Its nodes can be killed and started; SLURM_CONF names it."""
    try:
        with cluster(tmp_path_factory.mktemp("slurm")) as made:
            yield made
    except NoSlurm as error:
        pytest.skip(str(error))
