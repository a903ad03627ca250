"""Text prompts against their authors' loops in plain PyTorch, and the shortcuts of the text tower, which change no number."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from oracle.fingerprint import base, experiment_of, logits, text_base, write_world

from fedbench.contract.world import class_texts, task
from fedbench.data import DataError, batches
from fedbench.method import HookError
from fedbench.plan.config import ConfigError
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import plugins
from fedbench.run import evaluation, scoring, simulation
from fedbench.run.cost import image_cost
from fedbench.run.local import _text_leaves
from fedbench.text import class_texts as module

METHOD = plugins().classes["method"]
COHORT = (4, 0, 5, 2)


class PlainCLIP:
    """The text side of CLIP as CoOp's code has it: all positions of the context, one client, one step."""

    def __init__(self):
        self.side = class_texts().side
        names = class_texts().names
        self.tokens = self.side.encode([f"{name}." for name in names], 32)
        self.end = (self.tokens == self.side.end).int().argmax(1)
        self.embedded = self.side.tower.embed(self.tokens)

    def features(self, context):
        """Normalised features [C, E] of the class names behind `context` [P, D] or [C, P, D]."""
        vectors, classes = context.shape[-2], len(self.tokens)
        x = torch.cat([self.embedded[:, :1], context.expand(classes, -1, -1), self.embedded[:, 1 : 32 - vectors]], 1)
        return F.normalize(self.side.tower(x, self.end + vectors), dim=-1)

    def template(self):
        tokens = self.side.encode([f"a {name}" for name in class_texts().names], 32)
        end = (tokens == self.side.end).int().argmax(1)
        return F.normalize(self.side.tower(self.side.tower.embed(tokens), end), dim=-1)

    def image(self, cls):
        return F.normalize(cls @ self.side.projection, dim=-1)


def twin_trains(small, report, step_loss, encode=None):
    """Train each client of `report` in plain PyTorch; yields (row, its values).

    `step_loss` (values, received, cls [B, D], y [B]) is the loss of one step; images pass through the encoder at every step.
    `encode` makes something else of images than their CLS features.
    """
    vit, recipe = small.model.backbone, small.trainer.local
    for row, k in enumerate(report.clients.tolist()):
        received = {n: v[row].clone() for n, v in report.received.items()}
        values = {n: v.clone().requires_grad_(small.server.spec[n].trains) for n, v in received.items()}
        trained = [v for v in values.values() if v.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
        plan = batches(small.train, [k], recipe.batch_size, recipe.epochs, 0, 1, 0)
        for index, weight in zip(plan.index[:, 0], plan.weight[:, 0], strict=True):
            index = torch.from_numpy(index[weight > 0])
            cls, y = (encode or vit.feature)(small.model.images.batch(index)), small.model.labels[index]
            optimizer.zero_grad()
            step_loss(values, received, cls, y).backward()
            optimizer.step()
        yield row, values


def assert_agrees(small, step_loss, encode=None):
    report = small.round(COHORT)
    for row, values in twin_trains(small, report, step_loss, encode):
        for name, value in values.items():
            assert (report.updated[name][row] - value).abs().max() < 1e-10, name


@pytest.mark.parametrize("per_class", [False, True])
def test_promptfl_equals_the_loop_that_encodes_images_and_whole_contexts_at_every_step(per_class):
    plain = PlainCLIP()
    small = tiny.mini_run(METHOD["promptfl"](context_length=3, per_class=per_class), clip=None)

    def loss(p, received, cls, y):
        return F.cross_entropy(8.0 * plain.image(cls) @ plain.features(p["context"]).T, y)

    assert_agrees(small, loss)


def cosines(plain, cls, text):
    return 8.0 * plain.image(cls) @ text.T


def test_kgcoop_equals_its_loss_in_plain_pytorch():
    plain, small = PlainCLIP(), tiny.mini_run(METHOD["kgcoop"](context_length=3, pull=2.0), clip=None)
    template = plain.template()

    def loss(p, received, cls, y):
        text = plain.features(p["context"])
        distance = 1 - F.cosine_similarity(text, template, dim=1).mean()
        return F.cross_entropy(cosines(plain, cls, text), y) + 2.0 * distance

    assert_agrees(small, loss)


def test_prograd_equals_its_loss_in_plain_pytorch():
    method = METHOD["prograd"](context_length=3, pull=0.7, temperature=3.0)
    plain, small = PlainCLIP(), tiny.mini_run(method, clip=None)
    template = plain.template()

    def loss(p, received, cls, y):
        scores = cosines(plain, cls, plain.features(p["context"]))
        teacher = F.softmax(cosines(plain, cls, template) / 3.0, -1)
        kl = -(teacher * F.log_softmax(scores / 3.0, -1)).sum(1).mean() * 9.0
        return F.cross_entropy(scores, y) + 0.7 * kl

    assert_agrees(small, loss)


def test_promptfolio_equals_its_mixture_in_plain_pytorch():
    plain, small = PlainCLIP(), tiny.mini_run(METHOD["promptfolio"](context_length=3, theta=0.3), clip=None)
    small.server.merge(small.round((1, 2, 5), round_=0))  # some local contexts are no longer the initial ones

    def loss(p, received, cls, y):
        text = 0.7 * plain.features(p["context"]) + 0.3 * plain.features(p["local_context"])
        return F.cross_entropy(cosines(plain, cls, text), y)

    assert_agrees(small, loss)


def test_fedpgp_with_text_equals_its_contrast_in_plain_pytorch():
    method = METHOD["fedpgp_text"](context_length=3, rank=2, mu=0.6, temperature=0.4)
    plain, small = PlainCLIP(), tiny.mini_run(method, clip=None)
    template = plain.template()

    def loss(p, received, cls, y):
        whole, shared = plain.features(p["context"] + p["U"] @ p["V"]), plain.features(p["context"])
        positive, negative = F.cosine_similarity(template, shared, dim=-1), F.cosine_similarity(shared, whole, dim=-1)
        pairs = torch.stack([positive, negative], 1) / 0.4
        contrast = F.cross_entropy(pairs, torch.zeros(len(pairs), dtype=torch.long))
        return F.cross_entropy(cosines(plain, cls, whole), y) + 0.6 * contrast

    assert_agrees(small, loss)


def plain_plan(kernel, mass):
    """The official code's COT for kernels [n, M, N], with matrices; with `mass` None its Sinkhorn."""
    n, patches, texts = kernel.shape
    a = torch.full((n, patches), 1 / patches, dtype=kernel.dtype)
    b = torch.full((n, texts), (mass or 1) / texts, dtype=kernel.dtype)
    u, v = torch.ones_like(a), torch.ones_like(b)
    for _ in range(7):
        if mass is None:
            u = a / (kernel @ v[..., None])[..., 0]
            v = b / (kernel.mT @ u[..., None])[..., 0]
        else:
            u = torch.minimum(1 / (torch.diag_embed(1 / a) @ kernel @ v[..., None])[..., 0], torch.ones_like(a))
            v = 1 / (torch.diag_embed(1 / b) @ kernel.mT @ u[..., None])[..., 0]
    return torch.diag_embed(u) @ kernel @ torch.diag_embed(v)


@pytest.mark.parametrize("mass", [0.6, None])
def test_fedotp_equals_the_transport_of_its_authors_in_plain_pytorch(mass):
    fields = {"transport": "sinkhorn"} if mass is None else {"mass": mass}
    plain = PlainCLIP()
    small = tiny.mini_run(METHOD["fedotp"](context_length=3, iterations=7, eps=0.2, **fields), clip=None)

    def loss(p, received, cls, y):
        text = torch.stack([plain.features(p["context"]), plain.features(p["local_context"])])
        sim = torch.einsum("mbd,ncd->mnbc", plain.image(cls[:, 1:]).transpose(0, 1), text)  # cls: all tokens here
        sim = sim.reshape(sim.shape[0], 2, -1).permute(2, 0, 1)
        with torch.no_grad():
            plan = plain_plan(torch.exp((sim - 1) / 0.2), mass)
        return F.cross_entropy(8.0 * (plan * sim).sum((1, 2)).view(len(y), -1), y)

    def tokens(images):
        return small.model.backbone.vit.forward_features(images)

    assert_agrees(small, loss, tokens)


def test_fedtpg_equals_torchs_attention_and_layers():
    plain, small = PlainCLIP(), tiny.mini_run(METHOD["fedtpg"](context_length=3, heads=2), clip=None)
    template = plain.template()

    def network(p):
        def norm(x, name):
            return torch.nn.functional.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])

        bias = torch.cat([p["q.bias"], torch.zeros(16, dtype=torch.float64), p["v.bias"]])
        text = norm(template, "text_norm")[:, None]
        x, _ = F.multi_head_attention_forward(
            norm(p["query"], "query_norm")[:, None], text, text, 16, 2, None, bias, None, None, False, 0.0,
            p["out.weight"], p["out.bias"], use_separate_proj_weight=True, q_proj_weight=p["q.weight"],
            k_proj_weight=p["k.weight"], v_proj_weight=p["v.weight"],
        )  # fmt: skip
        x = x[:, 0]
        hidden = norm(x, "ff_norm") @ p["ff_in.weight"].T + p["ff_in.bias"]
        return x + (hidden[:, :64] * F.gelu(hidden[:, 64:])) @ p["ff_out.weight"].T + p["ff_out.bias"]

    def loss(p, received, cls, y):
        return F.cross_entropy(cosines(plain, cls, plain.features(network(p))), y)

    assert_agrees(small, loss)


@pytest.mark.parametrize("vectors", [0, 3])
def test_prompts_of_both_towers_equal_a_pass_written_out_in_plain_pytorch(vectors):
    plain = PlainCLIP()
    small = tiny.mini_run(METHOD["fedvpt_text"](prompt_length=2, context_length=vectors), clip=None)
    vit = small.model.backbone.vit

    def loss(p, received, images, y):
        x = vit._pos_embed(vit.patch_embed(images))
        x = torch.cat([x[:, :1], p["prompt"].expand(len(x), -1, -1), x[:, 1:]], 1)
        cls = vit.norm(vit.blocks(x))[:, 0]
        text = plain.features(p["context"]) if vectors else plain.template()
        return F.cross_entropy(cosines(plain, cls, text), y)

    assert_agrees(small, loss, encode=lambda images: images)


class OfficialGate:
    """The attention of pFedMoAP's code, with the maps of a client's gate; no argument is changed to save work."""

    def __init__(self, weight, bias, heads, scaling):
        self.maps = list(zip(weight, bias, strict=True))
        self.heads, self.scaling = heads, scaling

    def split(self, x):
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def __call__(self, q, k, v):
        q, k, v = (self.split(F.linear(x, *maps)) for x, maps in zip((q, k, v), self.maps, strict=False))
        mixed = F.softmax(torch.matmul(q, k.transpose(-2, -1)) * self.scaling, dim=-1) @ v
        return F.linear(mixed.transpose(1, 2).flatten(2), *self.maps[3])


def moap(**fields):
    """A run of pFedMoAP in which clients 1, 2, 3 and 5 took part in one round, and 2, 4 and 5 in the next."""
    fields = {"context_length": 3, "gate_lr_scale": 1.0, "gate_width": 6, "gate_heads": 3, "experts": 3} | fields
    small = tiny.mini_run(METHOD["pfedmoap"](**fields), clip=None)
    prompts = {}
    for round_, clients in enumerate([(1, 2, 3, 5), (2, 4, 5)], start=1):
        report = small.round(clients, round_=round_)
        small.server.merge(report)
        prompts |= dict(zip(report.clients.tolist(), report.updated["context"], strict=True))
    return small, prompts


def test_pfedmoap_equals_the_gate_of_its_authors_in_plain_pytorch():
    plain, (small, _) = PlainCLIP(), moap(scaling=3.0, local_share=0.7)
    with_experts = []

    def loss(p, received, cls, y):
        image, text = plain.image(cls), plain.features(p["context"])
        local = cosines(plain, cls, text)
        experts = [plain.features(e).detach() for e in p["experts"] if e.abs().sum() > 0]
        with_experts.append(len(experts))
        if not experts:
            gate = sum(value.sum() for name, value in p.items() if name.startswith("gate."))
            return F.cross_entropy(local, y) + 0 * gate  # weight decay acts on it in every round
        pooled = image[:, ::2]
        k = torch.stack([text[:, ::2], *(e[:, ::2] for e in experts)]).permute(1, 0, 2)
        gate = OfficialGate(p["gate.weight"], p["gate.bias"], 3, 3.0)
        new = gate(pooled.repeat(len(text), 1, 1), k, k).permute(1, 2, 0)
        return F.cross_entropy(0.7 * local + 8.0 * torch.bmm(pooled.unsqueeze(1), new).squeeze(1), y)

    assert_agrees(small, loss)
    assert set(with_experts) == {0, 3}  # client 0 takes part for the first time


@pytest.mark.parametrize("selection", ["nearest", "random"])
def test_pfedmoap_sends_the_last_contexts_of_other_clients_to_those_that_took_part(selection):
    small, prompts = moap(selection=selection)
    sent = small.server.send(torch.arange(tiny.CLIENTS))
    for k in range(tiny.CLIENTS):
        others = [j for j in prompts if j != k and k in prompts]
        if selection == "nearest":
            others.sort(key=lambda j: float((prompts[j] - prompts[k]).norm()))
        else:
            others.sort(key=small.server.values["order"].tolist().__getitem__)
        expected = [prompts[j] for j in others[:3]] + [torch.zeros(3, 16).double()] * (3 - len(others[:3]))
        assert torch.equal(sent["experts"][k], torch.stack(expected)), k
        assert torch.equal(sent["last"][k], prompts.get(k, small.server.values["context"]))
    assert sent["taken_part"].tolist() == [0, 1, 2, 1, 1, 2]


def test_pfedmoap_answers_with_a_clients_last_contexts_and_with_experts_once_its_gate_is_trained():
    plain, (small, prompts) = PlainCLIP(), moap()
    clients = torch.tensor([0, 1, 2])
    sent, index = small.server.send(clients), torch.tensor([[3, 4, 9]] * 3)
    scores = small.model.forward(sent | small.server.read(), index, add_prior=False).logits
    cls = small.model.backbone.feature(small.model.images.batch(index[0]))
    image = plain.image(cls)
    for k, contexts in ((0, small.server.values["context"]), (1, prompts[1]), (2, prompts[2])):
        text = plain.features(contexts)
        expected = cosines(plain, cls, text)
        if k == 2:
            keys = torch.stack([x[:, ::2] for x in (text, *map(plain.features, sent["experts"][k]))]).permute(1, 0, 2)
            gate = OfficialGate(sent["gate.weight"][k], sent["gate.bias"][k], 3, 10.0)
            mixed = gate(image[:, ::2].repeat(len(text), 1, 1), keys, keys)
            expected = 0.5 * expected + 8.0 * (image[:, None, ::2] * mixed.transpose(0, 1)).sum(-1)
        torch.testing.assert_close(scores[k], expected)


def test_fixed_contexts_pass_through_the_text_tower_once_in_a_clients_round(monkeypatch):
    small, _ = moap()
    passes = []
    tower = type(small.model.text)._beginning
    monkeypatch.setattr(type(small.model.text), "_beginning", lambda *a: passes.append(a[1].requires_grad) or tower(*a))
    small.round((2, 5))  # six steps of client 2, whose experts have three slots
    assert passes == [False] * 3 + [True] * 6


def test_pfedmoap_downloads_as_many_experts_as_there_are(world):
    method = {"name": "pfedmoap", "context_length": 2, "experts": 3}
    clients = {"number": 3, "per_round": 3, "validation": 0.2}
    experiment = experiment_of(text_base(world) | {"method": method, "clients": clients, "partition": "iid"}, world)
    context, (first, second) = 2 * 16 * 4, (simulation.one_round(experiment, round_).costs for round_ in (1, 2))
    assert (first.bytes_up, first.bytes_down) == (3 * context, 3 * context)
    assert (second.bytes_up, second.bytes_down) == (
        3 * context,
        3 * (context + 2 * (context + 4)),
    )  # and whose they are
    counted, steps = experiment.image_cost, second.multiply_adds
    assert counted.fixed_text > counted.text > 0  # three slots forwards, one forwards and backwards
    assert (steps - 3 * counted.fixed_text) % counted.text == 0


def test_a_gate_takes_heads_that_divide_its_width():
    made = METHOD["pfedmoap"](gate_width=5).params(task())  # every second of 12 features
    assert made["gate.weight"].init.shape == (4, 6, 6)
    with pytest.raises(ValueError, match="gate_heads 4 do not divide the gate's width 6"):
        METHOD["pfedmoap"](gate_width=5, gate_heads=4).params(task())


def official_divergence(features):
    """FedMGP's code for the type l1: minus the mean distance over samples and pairs of groups."""
    total = torch.tensor(0.0)
    for sample in range(len(features[0])):
        pairs = [(i, j) for i in range(len(features)) for j in range(i + 1, len(features))]
        loss = sum(-torch.abs(features[i][sample] - features[j][sample]).mean() for i, j in pairs)
        total = total + loss / len(pairs)
    return total / len(features[0])


def placed(values, tower):
    """A client's groups after the code's update: the averages in the places of the groups that it sent."""
    groups = list(values[tower])
    for rank, place in enumerate(values[f"places_{tower}"].tolist()):
        if place >= 0:
            groups[place] = values[f"average_{tower}"][rank]
    return groups


FORMS = [{}, pytest.param({"diversity_loss": "apart", "logit_prior": "train"}, marks=pytest.mark.slow)]


@pytest.mark.parametrize("form", FORMS)
def test_fedmgp_equals_the_loss_and_the_choice_of_its_authors_in_plain_pytorch(form):
    fields = {"groups": 3, "context_length": 3, "prompt_length": 2, "diversity": 0.7, "temperature": 0.5}
    plain, small = PlainCLIP(), tiny.mini_run(METHOD["fedmgp"](**fields | form), clip=None)
    small.server.merge(small.round((1, 2, 5), round_=2))  # averages of two groups, which clients 2 and 5 put into place
    vit = small.model.backbone.vit
    sign = -1 if "diversity_loss" in form else 1

    def loss(p, received, pixels, y):
        texts, images = [plain.features(context) for context in placed(p, "text")], []
        for prompt in placed(p, "visual"):
            x = vit._pos_embed(vit.patch_embed(pixels))
            x = torch.cat([x, prompt.expand(len(x), -1, -1)], 1)  # behind the patches, as in the code
            images.append(plain.image(vit.norm(vit.blocks(x))[:, 0]))
        scores = [8.0 * image @ text.T for image, text in zip(images, texts, strict=True)]
        if "logit_prior" in form:
            scores = [s + torch.log((1 - 1e-6) * p["prior"] + 1e-6 / tiny.CLASSES) for s in scores]
        divergence = (official_divergence(texts) + official_divergence(images)) / 2 * 0.7
        return torch.stack([F.cross_entropy(s, y) for s in scores]).mean() + sign * divergence.abs()

    report, chosen = small.round(COHORT), set()
    for row, values in twin_trains(small, report, loss, encode=lambda images: images):
        noise = torch.special.ndtr(values["draws"][0]).log().neg().log().neg()
        for tower in ("text", "visual"):
            groups, average = placed(values, tower), report.received[f"average_{tower}"][row]
            similarity = torch.stack(
                [max(F.cosine_similarity(g.flatten(), a.flatten(), dim=0) for a in average) for g in groups]
            )
            places = (similarity / 0.5 + noise).argsort(descending=True)[:2].tolist()
            assert report.updated[f"places_{tower}"][row].tolist() == places
            chosen.add(tuple(places))
            assert (report.updated[tower][row] - torch.stack(groups)).abs().max() < 1e-10
            assert torch.equal(report.updated[f"average_{tower}"][row], report.updated[tower][row][places])
    assert len(chosen) > 1
    small.server.merge(report)
    k = report.clients[1:2]  # its trained groups, with the cohort's averages by rank
    sent, share = small.server.send(k), report.num_samples / report.num_samples.sum()
    for tower in ("text", "visual"):
        expected = report.updated[tower][1].clone()
        for rank, place in enumerate(report.updated[f"places_{tower}"][1].tolist()):
            expected[place] = sum(w * v[rank] for w, v in zip(share, report.updated[f"average_{tower}"], strict=True))
        kept = small.model.method.prompts_of({name: value[0] for name, value in sent.items()}, tower)
        torch.testing.assert_close(kept, expected)


def test_fedmgp_samples_groups_in_turn_with_a_softmax_of_their_similarities():
    method, count = METHOD["fedmgp"](groups=3, temperature=0.4), 20000
    torch.manual_seed(0)
    angles = torch.tensor([0.2, 1.0, 2.0])
    groups = torch.stack([angles.cos(), angles.sin()], 1)[:, None]  # [G, 1, 2], against averages along the first axis
    average = torch.tensor([[[3.0, 0.0]], [[0.0, 0.0]]])
    fixed = {name: value for tower in ("text", "visual") for name, value in (
        (tower, groups), (f"average_{tower}", average), (f"places_{tower}", torch.tensor([-1, -1])),
    )}  # fmt: skip

    def sample(draws):
        return method.upload(fixed | {"round": torch.tensor(1.0), "draws": draws}, fixed)["places_text"]

    places = torch.vmap(sample)(torch.randn(count, 1, 3))
    p = torch.softmax(angles.cos().clamp(min=0) / 0.4, 0)  # the other average is zero, and so is its cosine
    for i in range(3):
        for j in set(range(3)) - {i}:
            share = ((places[:, 0] == i) & (places[:, 1] == j)).float().mean()
            assert share == pytest.approx(float(p[i] * p[j] / (1 - p[i])), abs=0.012)


def test_fedmgp_sends_some_of_its_groups_and_counts_a_pass_for_each(world):
    method = {"name": "fedmgp", "groups": 4, "selected": 2, "context_length": 2, "prompt_length": 3}
    experiment = experiment_of(text_base(world) | {"method": method}, world)
    costs = simulation.one_round(experiment, 1).costs
    groups = 2 * (2 * 16 + 3 * 32) * 4
    assert (costs.bytes_up, costs.bytes_down) == (2 * groups, 2 * (groups + 4))  # and the number of the round
    one_group = experiment_of(text_base(world) | {"method": {"name": "fedvpt_text", "prompt_length": 3}}, world)
    assert experiment.image_cost.training == 4 * one_group.image_cost.training
    assert experiment.image_cost.inference == 4 * one_group.image_cost.inference
    with pytest.raises(ValueError, match="selected 3 is more than groups 2"):
        experiment_of(text_base(world) | {"method": method | {"groups": 2, "selected": 3}}, world)


def test_what_a_client_uploads_must_have_the_shape_of_a_value():
    class Wrong(METHOD["promptfl"]):
        def upload(self, p, received):
            return {"context": p["context"][:1]}

    with pytest.raises(HookError, match=r"upload\(\).*'context' of shape \[1, 16\], expected \[16, 16\]"):
        tiny.mini_run(Wrong()).round(COHORT[:1])


@pytest.mark.parametrize("control", [{}, {"prior": "uniform"}, {"prototypes": "shuffled"}, {"logit_prior": "both"}])
def test_pep_fedpt_on_clip_equals_its_formula_in_plain_pytorch_with_each_control(control):
    fields = {"prompt_length": 2, "class_prompt_length": 2, "class_prompt_lr_scale": 1.0, "temperature": 0.3}
    method = METHOD["pep_fedpt_text"](**fields | control)
    plain, small = PlainCLIP(), tiny.mini_run(method, clip=None)
    small.report_statistics(range(tiny.CLIENTS))
    vit, everyone = small.model.backbone, torch.cat([torch.from_numpy(part) for part in small.train])
    z = vit.feature(small.model.images.batch(everyone))
    mean = torch.stack([z[small.model.labels[everyone] == c].mean(0) for c in range(tiny.CLASSES)])
    order = small.server.values["order"]
    assert torch.equal(order, torch.arange(tiny.CLASSES)) == ("prototypes" not in control)
    mean, template = mean[order], plain.template()

    def loss(p, received, images, y):
        cosine = F.cosine_similarity(vit.feature(images)[:, None], mean, dim=-1)
        known = "uniform" if "prior" in control else "client"
        pi = 0.999 * p["prior"] + 0.001 / tiny.CLASSES if known == "client" else torch.ones(tiny.CLASSES)
        weight = torch.exp(cosine / 0.3) * pi
        mixed = torch.einsum("bc,cnd->bnd", weight / weight.sum(1, keepdim=True), p["class_prompt"])
        x = vit.vit._pos_embed(vit.vit.patch_embed(images))
        x = torch.cat([x[:, :1], p["prompt"].expand(len(x), -1, -1), x[:, 1:]], 1)
        x = torch.cat([vit.vit.blocks[:2](x), mixed], 1)
        scores = cosines(plain, vit.vit.norm(vit.vit.blocks[2:](x))[:, 0], template)
        if "logit_prior" in control:
            scores = scores + torch.log((1 - 1e-6) * p["prior"] + 1e-6 / tiny.CLASSES)
        return F.cross_entropy(scores, y)

    assert_agrees(small, loss, encode=lambda images: images)


def test_zero_shot_scores_are_cosines_with_the_texts_of_the_template():
    plain, small = PlainCLIP(), tiny.mini_run(METHOD["clip_zero_shot"]())
    index = torch.tensor([[3, 4, 9], [40, 1, 0]])
    logits = small.model.forward({}, index, add_prior=False).logits
    images = small.model.backbone.feature(small.model.images.batch(index.flatten()))
    torch.testing.assert_close(logits.flatten(0, 1), 8.0 * plain.image(images) @ plain.template().T)


@pytest.mark.parametrize("kept", [0, 1 << 40])
@pytest.mark.parametrize("shape", [(2, 3, 16), (2, 5, 3, 16)])  # without and with contexts of each class
def test_passes_of_few_classes_and_texts_computed_again_change_nothing(kept, shape, monkeypatch):
    texts = class_texts()
    assert len(set(texts.ends)) > 2  # so that texts are sorted by length
    contexts = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    whole = texts.features(contexts)
    weight = torch.randn_like(whole)
    (expected,) = torch.autograd.grad((whole * weight).sum(), contexts)
    monkeypatch.setattr(module, "PASS_BYTES", 1)
    monkeypatch.setattr(module, "KEPT_BYTES", kept)
    parts = texts.features(contexts)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad((parts * weight).sum(), contexts)[0], expected)


def test_classes_pass_from_short_to_long_names_and_what_they_share_is_computed_once(monkeypatch):
    texts, seen, beginnings = class_texts(), [], []
    cls, part, beginning = type(texts), type(texts)._part, type(texts)._beginning
    monkeypatch.setattr(cls, "_part", lambda *a: seen.append(a[2]) or part(*a))
    monkeypatch.setattr(cls, "_beginning", lambda *a: beginnings.append(1) or beginning(*a))
    at_most = 2 * texts._bytes(3, max(texts.ends), 2, True)  # two classes of the longest name
    monkeypatch.setattr(module, "PASS_BYTES", at_most)
    texts.features(torch.randn(2, 3, 16, dtype=torch.float64))
    assert len(seen) > 1
    assert len(beginnings) == 1
    assert [end for names in seen for end in names.ends] == sorted(texts.ends)
    for names in seen:  # cut behind the longest name of the pass, and within the limit
        assert names.words.shape[:2] == (len(names.ends), max(names.ends) + 1)
        assert len(names.ends) * texts._bytes(3, max(names.ends), 2, True) <= at_most


def test_a_step_runs_the_text_tower_once_and_an_evaluation_once_for_equal_contexts(monkeypatch):
    small = tiny.mini_run(METHOD["promptfl"](context_length=2), epochs=1)
    seen = []
    part = type(small.model.text)._part
    monkeypatch.setattr(type(small.model.text), "_part", lambda *a: seen.append(a[3]) or part(*a))
    small.round(COHORT, piece=2)
    assert seen == [4, 3, 2]  # clients with a step left; their batches of 4 pass in pieces of 2
    seen.clear()
    evaluation.accuracies(small.model, small.server.send(torch.arange(6)), small.server.read(), small.train, chunk=4)
    assert seen == [1]


def test_contexts_that_do_not_fit_are_reported():
    small = tiny.mini_run(METHOD["promptfl"](context_length=25))
    with pytest.raises(
        HookError, match=r"contexts\(\).*25 context vectors and the class name 'blackbird' make 37 tokens"
    ):
        small.round(COHORT)

    class Wrong(METHOD["promptfl"]):
        def contexts(self, p):
            return {"context": p["context"][:, :5]}

    small = tiny.mini_run(dataclasses.replace(Wrong()))
    with pytest.raises(HookError, match=r"slot 'context': expected \[P, D_text\] or \[C, P, D_text\]"):
        small.round(COHORT)


def test_the_cost_of_texts_is_counted_once_a_step():
    small = tiny.mini_run(METHOD["promptfl"](context_length=3))
    counted = image_cost(small.model.method, small.server.spec, small.model.backbone, "none", class_texts().cost())
    lengths = [len(name) + 3 + 3 for name in class_texts().names]  # start, name, period, end, and the contexts
    linear = sum(2 * 12 * n * 16**2 for n in lengths)
    attention = sum(2 * 2 * n**2 * 16 for n in lengths)
    projection = 5 * 16 * 12
    assert counted.text == 2 * (linear + projection) + 3 * attention
    assert counted.training == 0
    assert task().text_width == 16


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    write_world(folder)
    return folder


def test_a_run_learns_contexts_from_cached_features_and_a_file_of_two_towers(world):
    experiment = experiment_of(text_base(world) | {"method": {"name": "promptfl", "context_length": 2}}, world)
    assert experiment.model.features is not None
    costs = [simulation.one_round(experiment, round_).costs for round_ in (1, 2)]
    assert costs[0].bytes_up == 2 * 2 * 16 * 4  # two clients' two vectors
    assert costs[1].train_loss < costs[0].train_loss
    assert costs[0].multiply_adds > experiment.image_cost.text > 0
    assert 0 <= evaluation.evaluate(experiment).test.mean_accuracy <= 1


def test_the_template_and_the_class_names_are_what_zero_shot_reads(world):
    def scores(**backbone):
        block = text_base(world)["backbone"] | backbone
        return logits(experiment_of(text_base(world) | {"method": "clip_zero_shot", "backbone": block}, world))

    assert torch.equal(scores(), scores(template="a {}"))  # the file's own
    assert (scores() - scores(template="no {} at all")).abs().max() > 1e-3


def test_class_names_are_needed(world, tmp_path):
    with np.load(world / "a.npz") as arrays:
        np.savez(tmp_path / "nameless.npz", **{name: value for name, value in arrays.items() if name != "class_names"})
    content = text_base(world) | {"dataset": {"name": "npz", "path": str(tmp_path / "nameless.npz")}}
    with pytest.raises(DataError, match="dataset npz has no class names, which promptfl reads"):
        experiment_of(content | {"method": "promptfl"}, world)


def test_novel_classes_are_in_no_training_sample_and_no_training_text_and_are_scored_among_themselves(world):
    clients = {"number": 4, "per_round": 2, "validation": 0.2, "novel": 0.5}
    metrics = ["base_accuracy", "novel_accuracy", "base_novel_mean"]
    content = text_base(world) | {"method": "promptfl", "clients": clients, "metrics": metrics, "partition": "iid"}
    experiment = experiment_of(content, world)
    split, labels = experiment.split, experiment.samples.labels
    assert set(labels[split.train.indices]) == set(labels[split.validation.indices]) == {0, 1}
    assert set(labels[split.test.indices]) == {0, 1, 2, 3}
    assert experiment.trainer.model.text.names == ("cat", "dog")
    assert experiment.model.text.names == ("cat", "dog", "fox", "blackbird")
    simulation.one_round(experiment, 1)
    scored, values = scoring.predictions(experiment), scoring.measured(experiment)
    right = {True: [], False: []}
    for scores, label in zip(scored.scores.tolist(), scored.labels.tolist(), strict=True):
        first = label // 2 * 2
        right[label >= 2].append(scores[label] == max(scores[first : first + 2]))
    base, novel = np.mean(right[False]), np.mean(right[True])
    assert values["metric.base_accuracy"] == pytest.approx(base)
    assert values["metric.novel_accuracy"] == pytest.approx(novel)
    assert values["metric.base_novel_mean"] == pytest.approx(2 * base * novel / (base + novel))


def test_per_class_contexts_cannot_answer_with_novel_classes(world):
    content = text_base(world) | {"clients": {"number": 4, "per_round": 2, "novel": 0.5}, "partition": "iid"}
    content |= {"method": {"name": "promptfl", "per_class": True}}
    with pytest.raises(
        ConfigError, match=r"promptfl: per_class has no context vectors for the classes of clients\.novel"
    ):
        check_sweep({"base": content, "machine": {"data": str(world)}}, plugins(), where="here")


def test_prompts_per_class_of_the_image_tower_cannot_answer_with_novel_classes(world):
    content = text_base(world) | {"clients": {"number": 4, "per_round": 2, "novel": 0.5}, "partition": "iid"}
    content |= {"method": {"name": "pep_fedpt_text", "prior": "uniform"}}
    with pytest.raises(ConfigError, match=r"pep_fedpt_text: it has no class prompts for the classes of clients\.novel"):
        check_sweep({"base": content, "machine": {"data": str(world)}}, plugins(), where="here")


def test_a_few_shot_client_keeps_at_most_so_many_samples_of_a_class(world):
    whole, few = (
        experiment_of(base(world) | {"clients": {"number": 3, "per_round": 2} | more}, world)
        for more in ({}, {"shots": 2})
    )
    counts = (whole.split.class_counts(whole.samples.labels, 4), few.split.class_counts(few.samples.labels, 4))
    assert counts[0].max() > 2
    assert (counts[1] == counts[0].clip(max=2)).all()
    assert set(few.split.train.indices) < set(whole.split.train.indices)
    assert (few.split.test.indices == whole.split.test.indices).all()


def test_only_text_features_that_need_a_gradient_become_leaves():
    start = torch.ones(2, requires_grad=True)
    live = {"text.made": start * 2, "text.frozen": torch.ones(2), "other": start * 3}
    text, leaves = _text_leaves(live)
    assert list(text) == ["text.made"]
    assert text["text.made"] is live["text.made"]
    assert leaves["text.made"].is_leaf
    assert leaves["text.made"].requires_grad
    assert leaves["text.made"].tolist() == [2, 2]
    assert leaves["text.frozen"] is live["text.frozen"]
    assert leaves["other"] is live["other"]
