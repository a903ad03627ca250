"""An evaluation with several class priors runs the blocks that read no prior once, and gets the same numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from tiny import CLIENTS

from fedbench.base import process_cache
from fedbench.bench.cases import Case, World
from fedbench.method import HookError, InputPrompt, linear_head, tokens
from fedbench.plan.plugins import plugins
from fedbench.run import evaluation, stacked_model
from fedbench.run.shared_prefix import WatchedValues, shared_blocks
from fedbench.run.simulation import one_round

DEPTH = 4  # of the miniature run
EVAL = {"logit_prior": "eval"}
# A method and the number of blocks that clients with other priors share.
SHARED: list[tuple[dict[str, Any], int]] = [
    ({"name": "pep_fedpt"}, 2),  # the mixed prompt enters the middle block
    ({"name": "pep_fedpt", "query": "inject"}, 2),
    ({"name": "pep_fedpt", "inject": 3}, 3),
    ({"name": "pep_fedpt", "inject": 0}, 0),
    ({"name": "pep_fedpt", "prompt_length": 0, "inject": 1}, 1),
    ({"name": "pep_fedpt", "prior": "uniform", **EVAL}, DEPTH),  # the prior is added to the logits alone
    ({"name": "fedvpt", **EVAL}, DEPTH),
    ({"name": "fedvpt_deep", **EVAL}, DEPTH),
    ({"name": "sgpt", **EVAL}, DEPTH),
    ({"name": "lora", **EVAL}, DEPTH),
]


def label(value: Any) -> str:
    return "-".join(f"{v}" for v in value.values()) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize(("method", "blocks"), SHARED, ids=label)
def test_clients_with_other_priors_share_the_blocks_below_the_first_prompt_that_reads_them(method, blocks):
    """The first version has the numbers of a pass of its own to the last bit, the other ones up to rounding."""
    small = tiny.mini_run(plugins().make("method", method))
    small.report_statistics(range(CLIENTS))
    model, read, unseen = small.model, small.server.read(), small.server.unseen_client()
    assert model.shared_blocks == blocks
    assert unseen is not None
    clients = small.server.send(torch.arange(3)) | read
    unknown = {name: value.expand(3, *value.shape[1:]) for name, value in unseen.items()} | read
    index = torch.arange(12).view(3, 4)
    add_prior = model.method.adds_prior_in_evaluation
    with torch.inference_mode():
        first, second = model.forward_versions([clients, unknown], index, add_prior)
        assert torch.equal(first.logits, model.forward(clients, index, add_prior).logits)
        torch.testing.assert_close(second.logits, model.forward(unknown, index, add_prior).logits, rtol=0, atol=1e-12)
        assert (first.logits - second.logits).abs().max() > 1e-6  # the prior matters


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    yield World.make(Case("fedbench_smoke", 16, clients=3, each=12, batch_size=4), tmp_path_factory.mktemp("world"))
    process_cache.clear()


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        ({"name": "pep_fedpt"}, [1, 2]),
        ({"name": "pep_fedpt", "inject": 0}, [2, 2]),
        ({"name": "fedvpt", **EVAL}, [1, 1]),
        ({"name": "lora", **EVAL}, [1, 1]),
        ({"name": "fedvpt"}, [1, 1]),
    ],
    ids=label,
)
def test_an_evaluation_passes_each_image_through_the_shared_blocks_once(method, passes, world, monkeypatch):
    """Two blocks. The accuracies are those of passes that share nothing."""
    run = world.experiment(method, plugins(), "cpu", "float64", shortcuts=False)
    one_round(run, 1)
    images: Counter[int] = Counter()
    handles = [
        block.register_forward_hook(lambda _, args, __, i=i: images.update({i: len(args[0])}))
        for i, block in enumerate(run.model.backbone.vit.blocks)
    ]
    shared = evaluation.evaluate(run)
    for handle in handles:
        handle.remove()
    count = len(run.split.test.indices)
    assert [images[i] / count for i in range(2)] == passes
    monkeypatch.setattr(evaluation, "_tests_are_global", lambda _: False)
    apart = evaluation.evaluate(run)
    assert shared.test == apart.test
    assert shared.clients["accuracy"].equals(apart.clients["accuracy"])
    assert shared.test.global_accuracy is not None


READS = {
    "item": lambda p: p["prior"],
    "get": lambda p: p.get("prior"),
    "pop": lambda p: p.pop("prior"),
    "iteration": lambda p: [p[name] for name in p],
    "values": lambda p: list(p.values()),
    "items": lambda p: list(p.items()),
    "copy": lambda p: p.copy(),
    "dict": lambda p: dict(p),
    "unpacking": lambda p: {**p},
    "arguments": lambda p: dict(**p),
    "or": lambda p: p | {},
    "ror": lambda p: {} | p,
    "update": lambda p: {}.update(p),
}


@pytest.mark.parametrize("way", READS)
def test_every_way_of_reading_a_value_is_seen(way):
    p = WatchedValues({"prompt": torch.zeros(1), "prior": torch.zeros(2)}, {"prior"})
    assert torch.equal(p["prompt"], torch.zeros(1))
    assert "prior" in p
    assert p.get("no such value", 3) == 3
    assert not p.was_read
    READS[way](p)
    assert p.was_read


@dataclass(frozen=True)
class Hidden(InputPrompt):
    """Prompts that the prior scales, but not where tensors have no values."""

    uses_prior = True

    def params(self, task):
        return self.prompt_param(task) | linear_head(task)

    def prompts(self, layer, p, cls, query):
        scale = 1.0 if cls.is_meta else p["prior"].max()
        return {"prompt": tokens(p["prompt"] * scale, cls)}


def test_a_hook_that_reads_a_local_value_in_secret_is_refused_and_not_answered_with_another_clients():
    small = tiny.mini_run(Hidden())
    assert small.model.shared_blocks == DEPTH  # which is wrong
    versions = [small.server.send(torch.tensor([k])) for k in (0, 1)]
    with pytest.raises(HookError, match="KeyError: 'prior'"):
        small.model.forward_versions(versions, torch.arange(4)[None], False)


def test_too_many_shared_blocks_would_be_seen(monkeypatch):
    """The comparison above can fail."""
    monkeypatch.setattr(stacked_model, "shared_blocks", lambda *args: shared_blocks(*args) + 1)
    with pytest.raises((AssertionError, HookError)):
        test_clients_with_other_priors_share_the_blocks_below_the_first_prompt_that_reads_them(
            {"name": "pep_fedpt", "inject": 1}, 2
        )
