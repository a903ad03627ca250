"""The benchmark against other frameworks compares the same computation: loops without them end with equal prompts and heads."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.peers import bare, ours, prepare, published
from benchmarks.peers.task import CONTEXT, VALUES, Log, Task

CASE = {
    "method": "fedvpt", "architecture": {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "clients": 6, "per_round": 3, "classes": 4, "batch": 4, "prompts": 2, "lr": 0.5, "evaluate_every": 2,
    "rounds": 4, "train_each": (3, 9), "tests": 12,
}  # fmt: skip

CLIP = CASE | {
    "method": "promptfl", "per_round": 6, "batch": 4, "prompts": 3, "lr": 0.001,
    "architecture": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    },
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


def test_promptfl_trained_with_full_encoders_at_every_step_ends_with_the_same_contexts_and_class_texts(tmp_path):
    pytest.importorskip("open_clip", reason="needs the extra clip")
    from benchmarks.peers import clip_published

    folder = tmp_path / "task"
    prepare.prepare(folder, CLIP)
    (folder / "results").mkdir()
    logs = {system: Log() for system in (clip_published, ours)}
    theirs, fedbench = (system.run(folder, log) for system, log in logs.items())
    start = Task.load(folder).start
    assert set(theirs) == set(fedbench) == {*CONTEXT, "class_texts"}
    assert np.abs(theirs["context"] - start["context"]).max() > 1e-3  # else agreement says nothing
    for name, value in theirs.items():
        np.testing.assert_allclose(fedbench[name], value, atol=2e-6, err_msg=name)
    assert logs[clip_published].right == logs[ours].right
    assert all(len(log.round_processor) == 4 for log in logs.values())
