"""The benchmark against other frameworks compares the same computation: loops without them end with equal prompts and heads."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.peers import bare, ours, prepare, published
from benchmarks.peers.task import VALUES, Log, Task

CASE = {
    "architecture": {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "clients": 6, "per_round": 3, "classes": 4, "batch": 4, "prompts": 2, "lr": 0.5, "evaluate_every": 2,
    "rounds": 4, "train_each": (3, 9), "tests": 12,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("peers") / "task"
    prepare.prepare(path, CASE)
    (path / "results").mkdir()
    return path


def test_all_end_with_the_same_values(folder):
    ends = {}
    for system in (bare, published, ours):
        log = Log()
        ends[system] = system.run(folder, log)
        assert log.first_step is not None
        assert len(log.rounds) == 4
        assert len(log.evaluations) == len(log.right) == 2
        ends[system]["right"] = np.array(log.right)
    start = Task.load(folder).start
    for name in VALUES:
        assert np.abs(ends[bare][name] - start[name]).max() > 1e-3, name  # else agreement says nothing
        np.testing.assert_allclose(ends[published][name], ends[bare][name], atol=1e-6, err_msg=name)
        np.testing.assert_allclose(ends[ours][name], ends[bare][name], atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(ends[published]["right"], ends[bare]["right"])
    np.testing.assert_array_equal(ends[ours]["right"], ends[bare]["right"])


def test_clients_differ_in_size_and_batches_hold_their_samples(folder):
    task = Task.load(folder)
    sizes = {len(task.samples(r, k)) for r, k in np.ndindex(task.cohort.shape)}
    assert len(sizes) > 1
    with np.load(folder / "data.npz") as data:
        user, is_test = data["user"], data["is_test"]
    for r, k in np.ndindex(task.cohort.shape):
        drawn = np.concatenate(task.batches(r, k))
        samples = np.flatnonzero((user == task.cohort[r, k]) & ~is_test)
        np.testing.assert_array_equal(np.sort(drawn), samples)
        assert all(len(batch) <= 4 for batch in task.batches(r, k))
