"""CUDA graphs of local steps on the pretended GPU: the CPU's numbers, few kernels, and a fallback with one line.

`tests/pretended_graphs.py` says what this does not prove.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from pretended_gpu import PretendedGPU
from pretended_graphs import pretended_graphs
from test_pretended_gpu import (  # noqa: F401 - world is a fixture
    Outcome,
    Steps,
    assert_equal,
    experiment,
    outcome,
    planted,
    world,
)

from fedbench.run import step_graphs
from fedbench.run.step_graphs import StepGraphs

METHODS: dict[str, dict[str, Any]] = {
    "fedvpt": {"method": "fedvpt"},
    "bfloat16": {"method": "fedvpt", "precision": "bfloat16"},
    "pep_fedpt": {"method": {"name": "pep_fedpt", "query": "inject"}},  # sums over batches
    "fedrep": {"method": "fedrep"},  # two phases, values of a client's own
    "fedpgp": {"method": "fedpgp"},  # further passes, a loss that reads the received values
    "fedperfix": {"method": "fedperfix"},  # prefixes made from the tokens of a block
    "scaffold": {"method": "fedvpt", "aggregation": "scaffold", "local": {"optimizer": "adam", "clip": 0.1}},
    "uneven": {"method": "fedvpt", "local": {"batch_size": 5, "epochs": 2, "augment": "crop_flip"}},
    "fine-tuning": {"method": {"name": "fedvpt", "finetune_epochs": 2}},
}


def with_graphs(world: Any, **base: Any) -> tuple[Outcome, StepGraphs, Steps]:  # noqa: F811
    """The outcome of a run with graphs, its graphs, and its steps."""
    with PretendedGPU() as gpu, pretended_graphs(gpu):
        run = experiment(world, "cuda", graphs=True, **base)
        steps = Steps(gpu)
        with steps.traced():
            result = outcome(run)
        graphs = run.trainer.graphs
    assert graphs is not None
    return result, graphs, steps


@pytest.mark.parametrize("case", METHODS)
def test_replayed_steps_have_the_cpus_numbers(case, world):  # noqa: F811
    actual, graphs, _ = with_graphs(world, **METHODS[case])
    assert graphs.error is None
    assert graphs.replays > 0
    assert_equal(actual, outcome(experiment(world, "cpu", **METHODS[case])))


def test_a_replay_leaves_copies_the_graph_and_the_optimiser(world):  # noqa: F811
    """Three steps a round: the first one of the run is not captured. Later rounds replay the same graph."""
    with PretendedGPU() as gpu, pretended_graphs(gpu):
        run = experiment(world, "cuda", graphs=True, method="fedvpt")
        plain = experiment(world, "cuda", method="fedvpt")
        counts = []
        for each in (plain, run):
            each.train(each.cohort_of(1), 0.01, 1)
            before, waits = gpu.count, len(gpu.waits)
            each.train(each.cohort_of(1), 0.01, 2)
            counts.append(gpu.count - before)
            assert [wait.line for wait in gpu.waits[waits:]] == []
        assert (run.trainer.graphs.replays, len(run.trainer.graphs._graphs)) == (5, 1)
    assert counts[1] < counts[0] / 3


def test_the_tensors_of_a_graph_stay_where_they_are(world):  # noqa: F811
    with PretendedGPU() as gpu, pretended_graphs(gpu):
        run = experiment(world, "cuda", graphs=True, method="pep_fedpt")
        run.train(run.cohort_of(1), 0.01, 1)
        ((_, graph),) = run.trainer.graphs._graphs.items()

        def addresses() -> list[int]:
            twin = graph.twin
            groups = (twin.values, twin.received, twin.read, twin.sums, {"n": graph.n, "loss": twin.loss})
            return [value.data_ptr() for group in groups for value in group.values()]

        before = addresses()
        run.train(run.cohort_of(2), 0.01, 2)
        assert addresses() == before
        assert len(run.trainer.graphs._graphs) == 1


@pytest.mark.parametrize(
    "change", [lambda v: v * v.detach().max().item(), lambda v: v + torch.zeros(v.shape).to(v.device)]
)
def test_a_step_that_waits_is_not_captured_and_one_line_says_so(change, world, monkeypatch, caplog):  # noqa: F811
    planted(monkeypatch, change)
    with caplog.at_level(logging.WARNING, "fedbench"):
        actual, graphs, _ = with_graphs(world, method="fedvpt")
    assert graphs.replays == 0
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("CUDA graphs are not used, because a local step cannot be captured: operation not permitted")
    assert_equal(actual, outcome(experiment(world, "cpu", method="fedvpt")))


def test_a_number_of_the_host_that_changes_over_steps_would_be_seen(world, monkeypatch):  # noqa: F811
    """A replay keeps the captured number, as on a GPU."""
    calls: list[int] = []
    planted(monkeypatch, lambda v: calls.append(0) or v * len(calls))
    actual, _, _ = with_graphs(world, method="fedvpt")
    calls.clear()
    with pytest.raises(AssertionError, match=r"server\."):
        assert_equal(actual, outcome(experiment(world, "cpu", method="fedvpt")))


@pytest.mark.parametrize("method", ["lora", {"name": "pep_fedpt", "prompt_length": 0}])
def test_steps_that_cannot_be_replayed_are_not_captured(method, world):  # noqa: F811
    """Clients with backbone weights of their own, and tokens that are read from disk on the host."""
    actual, graphs, _ = with_graphs(world, method=method)
    assert (graphs.replays, graphs.error) == (0, None)
    assert_equal(actual, outcome(experiment(world, "cpu", method=method)))


def test_a_run_has_few_graphs(world, monkeypatch):  # noqa: F811
    monkeypatch.setattr(step_graphs, "MOST", 1)
    _, graphs, _ = with_graphs(world, method="fedrep")
    assert len(graphs._graphs) == 1
