"""SGPT, PFPT and FedPR on numbers small enough to follow: selection, averaging, matching, projection."""

from __future__ import annotations

import dataclasses
import math
import sys

import pytest
import tiny
import torch

from fedbench.base.record_schema import TotalCosts
from fedbench.method import ClientUpdates
from fedbench.run import checkpoint, cost
from fedbench.run.client_optimizer import Recipe

METHOD, AGGREGATION = (tiny.plugins().classes[kind] for kind in ("method", "aggregation"))
SGPT, PFPT, FEDPR = METHOD["sgpt"], METHOD["pfpt"], METHOD["fedpr"]
pfpt = sys.modules[PFPT.__module__]


def report(weight, updated, sums):
    """The updates of two or three clients, as far as `merge` reads them."""
    k = len(weight)
    return ClientUpdates(torch.arange(k), {}, updated, sums, torch.tensor(weight), torch.ones(k), torch.zeros(k), 0.1)


# -- SGPT ------------------------------------------------------------------------------------------------------------


def test_sgpt_chooses_the_nearest_key_in_tests_and_the_least_used_near_one_in_training():
    """Keys e1 and e2 (not of unit length: the cosine counts). ReLU([.8, .6, -9]) = [.8, .6, 0] has the cosines .8 and .6,
    the distances .2 and .4. With frequencies .7 and .3 training compares .2 * .7005 = .1401 and .4 * .3005 = .1202."""
    p = {"key": torch.tensor([[3.0, 0, 0], [0, 0.5, 0]]), "frequency": torch.tensor([0.7, 0.3])}
    query = torch.tensor([[0.8, 0.6, -9.0]])
    method = SGPT(groups=2)
    in_test, cosine = method.choose(p, query)
    assert in_test.tolist() == [0]
    assert torch.allclose(cosine, torch.tensor([[0.8, 0.6]]))
    training = method.at(phase=1)
    assert training.choose(p, query)[0].tolist() == [1]
    p["frequency"] = torch.tensor([0.6, 0.4])  # .2 * .6005 = .1201 against .4 * .4005 = .1602
    assert training.choose(p, query)[0].tolist() == [0]
    p["frequency"] = torch.tensor([1.0, 0.0])  # .2 * 1.0005 against .4 * .0005: nobody's group is nearly free
    assert training.choose(p, query)[0].tolist() == [1]
    p["frequency"] = torch.zeros(2)  # the first round: by distance alone
    assert training.choose(p, query)[0].tolist() == [0]
    assert training.extra_loss(p, {}, {}, query).tolist() == pytest.approx([-0.8])


def test_sgpt_averages_keys_by_choice_and_groups_by_samples_and_moves_half_way():
    """Group 0 was chosen by 90 + 10 samples: its key is .9 * 2 + .1 * 12 = 3. Group 1 by 30 + 20 = 50, few: (4 + 8)/2 = 6.
    Tokens go by n_k = 3 : 1, .75 * 4 + .25 * 8 = 5. Half of the old: keys (1 + 3)/2 and (1 + 6)/2, tokens (2 + 5)/2."""
    server = {
        "key": torch.ones(2, 1),
        "group": torch.full((1, 2, 1, 1), 2.0),
        "count": torch.tensor([50.0, 0.0]),
        "frequency": torch.tensor([1.0, 0.0]),
    }
    updated = {
        "key": torch.tensor([[[2.0], [4.0]], [[12.0], [8.0]]]),  # [K, G, D]
        "group": torch.tensor([4.0, 8.0])[:, None, None, None, None].expand(2, 1, 2, 1, 1),
    }
    chosen = torch.tensor([[90.0, 30.0], [10.0, 20.0]])
    new = SGPT(groups=2).merge(server, report([30.0, 10.0], updated, {"chosen": chosen}))
    assert new["key"][:, 0].tolist() == pytest.approx([2.0, 3.5])
    assert new["group"].flatten().tolist() == pytest.approx([3.5, 3.5])
    assert new["count"].tolist() == [150, 50]
    assert new["frequency"].tolist() == pytest.approx([0.75, 0.25])
    one_more = torch.tensor([[90.0, 31.0], [10.0, 20.0]])  # 51: by choice, (31 * 4 + 20 * 8)/51
    new = SGPT(groups=2, momentum=0.0).merge(server, report([30.0, 10.0], updated, {"chosen": one_more}))
    assert new["key"][1].item() == pytest.approx(284 / 51)
    new = SGPT(groups=2, key_momentum=0.0).merge(server, report([30.0, 10.0], updated, {"chosen": chosen}))
    assert new["key"][:, 0].tolist() == pytest.approx([3.0, 6.0])  # keys without momentum, groups with .5
    assert new["group"].flatten().tolist() == pytest.approx([3.5, 3.5])


def test_sgpt_gives_a_whole_batch_its_majority_group_in_training_alone():
    """Keys along three axes. The samples choose 2, 1, 2, 1 and, in the padding, 1 and 1: a tie of 2 and 2, so the first."""
    p = {"key": torch.eye(3), "frequency": torch.zeros(3)}
    query = torch.eye(3)[[2, 1, 2, 1, 1, 1]]
    weight, epoch = torch.tensor([1.0, 1, 1, 1, 0, 0]), torch.tensor(0)
    method = SGPT(groups=3, choice="batch", key_epochs=2)
    assert method.at(phase=0).batch_values is None
    training = method.at(phase=1)
    made = training.batch_values(p, query, weight, epoch)
    assert made["majority"] == 1
    assert training.batch_values(p, query, weight * torch.tensor([1, 0.0, 1, 1, 1, 1]), epoch)["majority"] == 2
    assert training.choose(p | made, query)[0].tolist() == [1] * 6
    assert training.observe(p | made, {}, query, torch.zeros(6), weight)["chosen"].tolist() == [0, 4, 0]
    assert training.extra_loss(p | made, {}, {}, query).tolist() == [0, -1, 0, -1, -1, -1]
    assert method.choose(p, query)[0].tolist() == [2, 1, 2, 1, 1, 1]  # in tests each sample for itself
    late = training.batch_values(p, query, weight, torch.tensor(2))  # the third epoch: keys have no loss any more
    assert training.extra_loss(p | late, {}, {}, query).tolist() == [0] * 6


def test_sgpt_majorities_are_those_of_whole_batches_and_epochs_are_each_clients_own():
    """Clients of 9, 1 and 12 samples, 2 epochs of batches of 4, each batch cut into pieces of 3."""
    small = tiny.mini_run(SGPT(groups=4, choice="batch", key_epochs=1), epochs=2, weight_decay=0.0, momentum=0.0)
    seen, real = [], SGPT.batch_values.function

    def record(self, p, query, weight, epoch):
        made = real(self, p, query, weight, epoch)
        seen.append((weight.sum(), epoch, made["key_loss"]))
        return made

    spied = type("Spied", (SGPT,), {"batch_values": record})
    one = dataclasses.replace(small.trainer, model=dataclasses.replace(small.model, mode="loop", method=spied(
        groups=4, choice="batch", key_epochs=1)), piece=3)  # fmt: skip
    batches = small.batches((4, 5, 2))
    one.train(small.server.send(torch.from_numpy(batches[0].clients)), small.server.read(), batches, Recipe(0.1))
    calls = [(int(n), int(epoch), float(keys)) for n, epoch, keys in seen]
    # (samples of the batch, epoch, whether keys have a loss); this class has the hook in both phases
    phase = [(4, 0, 1.0), (4, 0, 1.0), (1, 0, 1.0), (4, 0, 1.0), (4, 0, 1.0), (1, 1, 0.0), (4, 0, 1.0), (1, 0, 1.0),
             (4, 1, 0.0), (4, 1, 0.0), (4, 1, 0.0), (4, 1, 0.0), (4, 1, 0.0), (1, 1, 0.0)]  # fmt: skip
    assert sorted(calls) == sorted(phase * 2)


def test_sgpt_query_is_cls_after_its_block_with_the_final_norm():
    small = tiny.mini_run(SGPT(query_block=1))
    vit, images = small.model.backbone.vit, small.model.images.batch(torch.arange(3))
    x = vit._pos_embed(vit.patch_embed(images))
    for block in vit.blocks[:2]:
        x = block(x)
    assert torch.allclose(small.model.features[:3], vit.norm(x)[:, 0], atol=1e-12)
    depth, whole = small.model.backbone.depth, cost.prompt_free(small.model.backbone)
    half, quarter = (cost.prompt_free(small.model.backbone, after) for after in (1, 0))
    assert quarter < half < whole
    plain = tiny.backbone(torch.float32)
    plain.trims_last_block = False  # then all blocks cost the same
    assert cost.prompt_free(plain, depth - 1) == cost.prompt_free(plain)


def test_sgpt_tokens_accumulate_and_the_first_phase_has_no_groups():
    """2 shared blocks of 2 tokens and of 1, 2 group blocks of 3: behind 5 tokens of CLS and patches stand 2, 3, 6 and 9."""
    method = SGPT(prompt_length=2, group_length=3, groups=4, shared_blocks=2, group_blocks=2)
    small = tiny.mini_run(method)
    spec, vit = small.server.spec, tiny.backbone(torch.float32)
    assert cost.one_pass(method, spec, vit).tokens == (7, 8, 11, 14)
    assert cost.one_pass(method.at(phase=1), spec, vit).tokens == (7, 8, 11, 14)
    assert cost.one_pass(method.at(phase=0), spec, vit).tokens == (7, 8, 8, 8)
    slots = {phase: out_slots(small, method.at(phase=phase)) for phase in (0, 1, None)}
    assert slots[0] == ["cls", "shared0", "shared1"]
    assert slots[1] == slots[None] == ["cls", "shared0", "shared1", "group2", "group3"]
    first, second = small.trainer.phases
    assert first.names == ["shared", "head.weight", "head.bias"]
    assert second.names == ["group", "key", "head.weight", "head.bias"]
    assert first.model.method.observe is None
    assert second.model.method.observe is not None


def out_slots(small, method):
    cohort = dataclasses.replace(small.model, method=method)
    p = small.server.send(torch.tensor([0])) | small.server.read()
    return list(cohort.forward(p, torch.tensor([[0, 1]]), False).out)


def test_sgpt_reads_the_mean_of_cls_and_the_group_tokens():
    p = {"head.weight": torch.tensor([[1.0, 0.0]]), "head.bias": torch.zeros(1)}
    out = {
        "cls": torch.tensor([[1.0, 5.0]]),
        "shared0": torch.full((1, 1, 2), 99.0),
        "group2": torch.tensor([[[3.0, 0.0]]]),
        "group3": torch.tensor([[[8.0, 0.0]]]),
    }
    assert SGPT().logits(p, out).item() == 4.0  # (1 + 3 + 8)/3


@pytest.mark.parametrize(("depth", "shared", "grouped"), [(12, 4, 3), (6, 2, 2), (4, 1, 1), (24, 8, 6), (2, 1, 1)])
def test_sgpt_fits_its_blocks_to_the_backbone(depth, shared, grouped):
    method = SGPT()
    assert method.layers(depth) == tuple(range(shared + grouped))
    assert method.at(phase=0).layers(depth) == tuple(range(shared))


def test_sgpt_keys_start_orthonormal():
    for groups in (20, 40):  # of 32 dimensions
        spec = tiny.mini_run(SGPT(groups=groups)).server.spec
        key = spec["key"].init.double()
        gram = key @ key.T if groups <= 32 else key.T @ key
        assert (gram - torch.eye(len(gram))).abs().max() < 1e-6


# -- PFPT ------------------------------------------------------------------------------------------------------------


def test_pfpt_assigns_by_the_greatest_sum_not_prompt_by_prompt():
    """Both prompts like centroid 0 best. Greedy: 9 + 1 = 10; the best pairing is 8 + 7 = 15. Centroid 2 stays free."""
    first, second = [[9.0, 7.0, 0.0], [8.0, 1.0, 2.0]], [[0.0, 0.0, 1.0], [0.0, 2.0, 0.0]]
    assert pfpt.assign(torch.tensor([first, second])).tolist() == [[1, 0], [2, 1]]


def test_pfpt_reads_scores_back_once_a_loop(monkeypatch):
    """A client's assignment is used in the next loop only, so a loop waits for a GPU once, whatever the number of clients."""
    reads, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: reads.append(self.shape) or cpu(self))
    local = torch.randn(4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pfpt.match(local, 6, seed=0, round_=1)
    assert reads == [(4, 3, 12)] * 6


def test_pfpt_log_likelihood_is_that_of_the_model():
    """One prompt x = (1, 0), centroids (0, 0) and (1, 2), standard deviations (1, 2) and (1, 1), g = .5 and .2."""
    x = torch.tensor([[1.0, 0.0]])
    phi, std = torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[1.0, 2.0], [1.0, 1.0]])
    logit = torch.tensor([0.0, math.log(0.2 / 0.8)])
    scores = pfpt.gains(torch.cat([x.square(), -2 * x], 1), phi, std, logit)
    unused = math.log(1 - 0.5) + math.log(1 - 0.2)
    normal = [-0.5 - math.log(2) - math.log(2 * math.pi), -2.0 - math.log(2 * math.pi)]
    assert scores[0, 0].item() + unused == pytest.approx(normal[0] + math.log(0.5) + math.log(0.8), abs=1e-5)
    assert scores[0, 1].item() + unused == pytest.approx(normal[1] + math.log(0.5) + math.log(0.2), abs=1e-5)


def test_pfpt_merges_close_versions_and_keeps_strangers_apart():
    """Two clients hold the same two prompts, but for 1e-3, in another order; the third has one of them and one far away."""
    a, b, far = (torch.tensor([v] * 8, dtype=torch.float64) for v in (0.5, -0.5, 4.0))
    local = torch.stack([torch.stack([a, b]), torch.stack([b + 1e-3, a + 1e-3]), torch.stack([a - 1e-3, far])])
    pool, (first, second, third) = pfpt.match(local, 50, seed=0, round_=1)
    assert len(pool) == 3  # of six candidates
    assert first[0] == second[1] == third[0]
    assert first[1] == second[0]
    for centroid, prompt in zip((first[0], first[1], third[1]), (a, b, far), strict=True):
        assert (pool[centroid] - prompt).abs().max() < 0.2  # a first draw may have moved it a little


def test_pfpt_draws_are_of_the_seed_and_the_round():
    torch.manual_seed(1)
    local = torch.randn(2, 3, 4, dtype=torch.float64)
    before = torch.random.get_rng_state()
    pool = pfpt.match(local, 5, seed=0, round_=1)[0]
    assert torch.equal(before, torch.random.get_rng_state())  # nobody else's draws move
    torch.manual_seed(2)
    assert torch.equal(pool, pfpt.match(local, 5, seed=0, round_=1)[0])
    for seed, round_ in ((0, 2), (1, 1)):
        other = pfpt.match(local, 5, seed=seed, round_=round_)[0]
        assert other.shape != pool.shape or not torch.equal(pool, other)


def test_pfpt_prompts_that_nobody_used_are_gone():
    server = {"pool": torch.zeros(3, 4), "seed": torch.tensor(0), "round": torch.tensor(4)}
    torch.manual_seed(0)
    updated = {"pool": torch.randn(2, 3, 4)}
    updated["pool"][:, 1] = 50.0
    sums = {"used": torch.tensor([[5.0, 0.0, 0.0], [2.0, 0.0, 1.0]])}
    new = PFPT(prompt_length=1, loops=2).merge(server, report([1.0, 1.0], updated, sums))
    assert new["round"] == 5
    assert 2 <= len(new["pool"]) <= 4  # two used prompts, a candidate for each of two clients
    assert new["pool"].max() < 10


def test_pfpt_pool_changes_its_size_and_a_checkpoint_continues_with_the_same_numbers(tmp_path):
    straight, killed = tiny.mini_run(PFPT()), tiny.mini_run(PFPT())
    sizes = []
    for round_ in (1, 2, 3):
        straight.server.merge(straight.round((0, 2, 4), round_))
        sizes.append(len(straight.server.values["pool"]))
        if round_ < 3:
            killed.server.merge(killed.round((0, 2, 4), round_))
    assert sizes[0] != 20 or sizes[1] != sizes[0]
    down = straight.server.bytes_per_client()[1]
    assert down == 4 * (32 * (sizes[-1] + 32) + 33 * tiny.CLASSES)  # the pool as it is now, the map, the head
    checkpoint.save(tmp_path, killed.server.state(), 2, TotalCosts(0, 0, 0), 0.0)
    restored = tiny.mini_run(PFPT())
    restored.server.restore(checkpoint.load(tmp_path).state)
    restored.server.merge(restored.round((0, 2, 4), 3))
    for name, value in straight.server.values.items():
        assert torch.equal(value, restored.server.values[name]), name


@pytest.mark.parametrize("name", ["fedadam", "scaffold"])
def test_pfpt_pool_is_the_matchings_alone(name):
    """An aggregation with state of its own steps on map and head, and neither knows nor moves the pool."""
    plain, other = tiny.mini_run(PFPT()), tiny.mini_run(PFPT(), AGGREGATION[name](lr=0.5))
    reports = {}
    for small in (plain, other):
        reports[small is other] = small.round((0, 2, 4), 1)
        small.server.merge(reports[small is other])
    assert torch.equal(plain.server.values["pool"], other.server.values["pool"])
    assert not torch.equal(plain.server.values["head.weight"], other.server.values["head.weight"])
    assert not [n for n in other.server.spec if n.endswith("pool") and n != "pool"]
    assert "pool" not in reports[True].gradient


def test_pfpt_chooses_per_sample():
    """Each sample's prompts are its own nearest, whoever else is in the batch."""
    pool = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [0.0, -1.0]])
    p = {"pool": pool, "map": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}  # the map swaps the axes
    query = torch.tensor([[0.6, 0.8], [-0.8, 0.6], [0.6, 0.8], [0.6, 0.8]])
    method = PFPT(pool_size=4, prompt_length=2)
    chosen, cosine = method.choose(p, query)
    assert chosen.tolist() == [[0, 1], [3, 0], [0, 1], [0, 1]]  # mapped (.8, .6) and (.6, -.8)
    assert torch.allclose(cosine[:2], torch.tensor([[0.8, 0.6], [0.8, 0.6]]))
    assert method.choose(p, query[1:2])[0].tolist() == [[3, 0]]
    slot = method.prompts(0, p, query, query)["prompt"]
    assert torch.equal(slot[1], pool[[3, 0]])
    assert method.extra_loss(p, {}, {}, query).tolist() == pytest.approx([0.014] * 4)
    used = method.observe(p, {}, query, torch.zeros(4), torch.tensor([1.0, 1.0, 0.0, 1.0]))["used"]
    assert used.tolist() == [3, 2, 0, 1]  # the third sample is padding


def test_pfpt_gives_a_batch_the_prompts_that_most_of_its_samples_choose():
    """Cosines in the order of the pool. Votes without padding: 3 for prompt 1, 2 for 0 and 2, 1 for 3: 1 and 0 win."""
    p = {"pool": torch.eye(4), "map": torch.eye(4)}
    query = torch.tensor([[3.0, 2, 0, 0], [0, 3, 2, 0], [2, 0, 3, 0], [0, 3, 0, 2], [0, 0, 2, 3]])
    weight = torch.tensor([1.0, 1, 1, 1, 0])
    method = PFPT(pool_size=4, prompt_length=2, choice="batch")
    made = method.batch_values(p, query, weight, torch.tensor(0))
    assert made["majority"].tolist() == [1, 0]
    chosen, cosine = method.choose(p | made, query)
    assert chosen.tolist() == [[1, 0]] * 5
    assert torch.allclose(cosine[1], torch.tensor([3.0, 0.0]) / 13**0.5)
    assert method.observe(p | made, {}, query, torch.zeros(5), weight)["used"].tolist() == [4, 4, 0, 0]
    assert method.choose(p, query)[0].tolist() == [[0, 1], [1, 2], [2, 0], [1, 3], [3, 2]]  # in tests
    assert PFPT().batch_values is None


# -- FedPR -----------------------------------------------------------------------------------------------------------


def test_fedpr_projector_is_symmetric_of_full_rank_but_for_the_leading_directions():
    """Invariants, no entries: what is left of the identity matrix after `steer`, times its norm."""
    torch.manual_seed(0)
    depth, length, width = 2, 3, 20
    updated = torch.randn(2, depth, length, width, dtype=torch.float64)
    weight = [3.0, 1.0]
    method = FEDPR(prompt_length=length)
    spec = {"leading": torch.zeros(depth, 3, width, dtype=torch.float64)}  # min(.2 * 20, 3 tokens)
    leading = method.merge(spec, report(weight, {"prompt": updated}, {}))["leading"]
    assert leading.shape == (depth, 3, width)
    steered = method.steer({"leading": leading}, {"prompt": torch.eye(width, dtype=torch.float64).repeat(depth, 1, 1)})
    mean = 0.75 * updated[0] + 0.25 * updated[1]
    for projector, prompt in zip(steered["prompt"], mean, strict=True):
        assert (projector - projector.T).abs().max() < 1e-12
        assert projector.norm().item() == pytest.approx(1.0)
        scaled = projector * math.sqrt(width - 3)  # V V^T
        assert (scaled @ scaled - scaled).abs().max() < 1e-12
        assert torch.linalg.matrix_rank(scaled) == width - 3
        assert (prompt @ projector).abs().max() < 1e-12  # all that P has is gone: three directions for three tokens


def test_fedpr_drops_the_leading_directions_first():
    """P^T P with eigenvalues 100, 9, 1 and 0 along rotated axes; half of four directions dropped are those of 100 and 9."""
    torch.manual_seed(0)
    axes = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    prompt = torch.tensor([10.0, 3.0, 1.0], dtype=torch.float64)[:, None] * axes[:3]
    method = FEDPR(prompt_length=3, drop=0.5)
    server = {"leading": torch.zeros(1, 2, 4, dtype=torch.float64)}
    leading = method.merge(server, report([1.0], {"prompt": prompt[None, None]}, {}))["leading"]
    left = method.steer({"leading": leading}, {"prompt": axes[None]})["prompt"][0]
    assert left.norm(dim=1).tolist() == pytest.approx([0, 0, math.sqrt(0.5), math.sqrt(0.5)], abs=1e-7)


def test_fedpr_clients_leave_the_global_directions_alone():
    """Momentum, weight decay and all: a client's whole move is orthogonal to the prompts that it was sent."""
    small = tiny.mini_run(FEDPR(prompt_length=3))
    first = small.round((0, 2, 4), 1)  # nothing to leave alone yet
    small.server.merge(first)
    second = small.round((1, 3), 2)
    for rep, alone in ((first, False), (second, True)):
        sent, moved = rep.received["prompt"], rep.updated["prompt"] - rep.received["prompt"]
        assert moved.abs().max() > 1e-3
        along = (moved @ sent.mT).abs().max()
        assert (along < 1e-12) if alone else (along > 1e-3)
