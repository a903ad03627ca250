"""Slow reference implementations: a FedVPT client in plain PyTorch, and PEP-FedPT's forward pass from its formula."""

from __future__ import annotations

import pytest
import tiny
import torch
import torch.nn.functional as F

from fedbench.data import batches

METHOD = tiny.plugins().classes["method"]


def plain_forward(vit, images, prompts_of_block):
    """A ViT pass with prompts after CLS, as one would write it for one model: `prompts_of_block(layer, cls)` or None."""
    inner = vit.vit
    x = inner.patch_embed.proj(images).flatten(2).transpose(1, 2)
    x = torch.cat([inner.cls_token.expand(len(x), -1, -1), x], 1) + inner.pos_embed
    count, kept = 0, []
    for layer, block in enumerate(inner.blocks):
        new = prompts_of_block(layer, x[:, 0])
        if new is not None:
            replace, tokens = new
            if replace:
                x = torch.cat([x[:, :1], tokens, x[:, 1 + count :]], 1)
                count = tokens.shape[1]
            else:  # behind the prompts that are there
                x = torch.cat([x[:, : 1 + count], tokens, x[:, 1 + count :]], 1)
                count += tokens.shape[1]
        kept.append(x)
        x = block(x)
    return inner.norm(x)[:, 0], kept


@pytest.mark.parametrize("name", ["fedvpt", "fedvpt_deep"])
def test_a_plain_pytorch_client_agrees(name):
    small = tiny.mini_run(METHOD[name](prompt_length=3), clip=None)
    clients = (4, 0, 5, 2)
    report = small.round(clients)
    vit, recipe = small.model.backbone, small.trainer.local
    for row, k in enumerate(report.clients.tolist()):
        start = {n: v[row].clone().requires_grad_() for n, v in report.received.items()}
        optimizer = torch.optim.SGD(start.values(), lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
        plan = batches(small.train, [k], recipe.batch_size, recipe.epochs, 0, 1, 0)
        for index, weight in zip(plan.index[:, 0], plan.weight[:, 0], strict=True):
            index = torch.from_numpy(index[weight > 0])
            images, y = small.model.images.batch(index), small.model.labels[index]

            def prompts(layer, cls, p=start["prompt"]):
                if name == "fedvpt":
                    return (True, p.expand(len(cls), -1, -1)) if layer == 0 else None
                return True, p[layer].expand(len(cls), -1, -1)

            cls, _ = plain_forward(vit, images, prompts)
            optimizer.zero_grad()
            F.cross_entropy(cls @ start["head.weight"].T + start["head.bias"], y).backward()
            optimizer.step()
        for n, value in start.items():
            assert (report.updated[n][row] - value).abs().max() < 1e-10, (k, n)


@pytest.mark.parametrize("query", ["final", "inject"])
@pytest.mark.parametrize("prior", ["client", "uniform"])
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_pep_fedpt_forward_from_the_formula(query, prior, similarity):
    tau, block = 0.3, 2
    method = METHOD["pep_fedpt"](
        prompt_length=3, class_prompt_length=2, temperature=tau, query=query, prior=prior, similarity=similarity
    )
    small = tiny.mini_run(method)
    cohort, server = small.model, small.server
    torch.manual_seed(0)
    mu = torch.randn(tiny.CLASSES, 32, dtype=torch.float64)
    server.values["prototype"] = mu
    clients, index = torch.tensor([2, 0]), torch.tensor([[3, 4, 9], [40, 1, 0]])
    sent = server.send(clients)
    logits = cohort.forward(sent | server.read(), index, add_prior=False).logits
    for row, k in enumerate(clients.tolist()):
        # pi_k from the labels of the client's own samples, with 1/1000 of uniform mass
        counts = torch.tensor([(small.labels[small.train[k]] == c).sum() for c in range(tiny.CLASSES)]).double()
        pi = 0.999 * counts / counts.sum() + 0.001 / tiny.CLASSES
        for column, i in enumerate(index[row].tolist()):
            image = cohort.images.batch(torch.tensor([i]))

            def mixed(z, p=sent["class_prompt"][row], pi=pi):
                scores = []
                for c in range(tiny.CLASSES):
                    cosine, squared = z @ mu[c] / (z.norm() * mu[c].norm()), ((z - mu[c]) ** 2).mean()
                    s = cosine if similarity == "cosine" else -squared / 2
                    scores.append(torch.exp(s / tau) * (pi[c] if prior == "client" else 1))
                total = sum(scores)
                return sum(s / total * p[c] for c, s in enumerate(scores))  # [n, D]

            final = plain_forward(cohort.backbone, image, lambda layer, cls: None)[0][0]

            def prompts(layer, cls, row=row, final=final, mixed=mixed):
                if layer == 0:
                    return True, sent["prompt"][row][None]
                if layer == block:
                    return False, mixed(final if query == "final" else cls[0])[None]
                return None

            cls, _ = plain_forward(cohort.backbone, image, prompts)
            expected = cls[0] @ sent["head.weight"][row].T + sent["head.bias"][row]
            assert (logits[row, column] - expected).abs().max() < 1e-9


def test_prototypes_are_the_pooled_class_means():
    small = tiny.mini_run(METHOD["pep_fedpt"]())
    small.report_statistics([0, 2])
    small.report_statistics([3])
    samples = torch.tensor([i for k in (0, 2, 3) for i in small.train[k]])
    for c in range(tiny.CLASSES):
        members = small.model.features[samples][small.model.labels[samples] == c]
        expected = members.mean(0) if len(members) else torch.zeros(32, dtype=torch.float64)
        assert (small.server.values["prototype"][c] - expected).abs().max() < 1e-10


def test_class_counts_average_weighs_each_class_by_who_has_it():
    small = tiny.mini_run(METHOD["pep_fedpt"](average="class_counts"), clip=None)
    small.report_statistics(range(tiny.CLIENTS))
    before = small.server.values["class_prompt"].clone()
    report = small.round((0, 2))
    small.server.merge(report)
    for c in range(tiny.CLASSES):
        n = [(small.labels[small.train[k]] == c).sum() for k in report.clients.tolist()]
        expected = (
            before[c]
            if sum(n) == 0
            else sum(w / sum(n) * report.updated["class_prompt"][i, c] for i, w in enumerate(n))
        )
        assert (small.server.values["class_prompt"][c] - expected).abs().max() < 1e-10


def test_fedavg_is_the_weighted_mean_and_fedprox_pulls_back():
    small = tiny.mini_run(METHOD["fedvpt"](), clip=None)
    report = small.round((0, 1, 2))
    small.server.merge(report)
    sizes = [tiny.SIZES[k] for k in report.clients.tolist()]
    expected = sum(n / sum(sizes) * report.updated["prompt"][i] for i, n in enumerate(sizes))
    assert (small.server.values["prompt"] - expected).abs().max() < 1e-12

    prox = tiny.plugins().classes["aggregation"]["fedprox"]
    near = tiny.mini_run(METHOD["fedvpt"](), prox(mu=5.0), clip=None).round((0, 1, 2))
    distance = lambda r: sum((r.updated[n] - r.received[n]).square().sum() for n in ("prompt", "head.weight"))  # noqa: E731
    assert distance(near) < 0.9 * distance(report)
