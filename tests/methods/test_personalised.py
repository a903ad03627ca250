"""The personalised family: each method's own mathematics, written out for one client and one step a phase."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from test_oracle import plain_forward
from torch import Tensor

from fedbench.method import HookError, Method
from fedbench.run.client_optimizer import Recipe

METHOD = tiny.plugins().classes["method"]
COHORT = (4, 0, 2)
LR = 0.1
HEAD = ("head.weight", "head.bias")
MODEL = ("prompt", *HEAD)


def one_step(name: str, **fields: Any) -> tiny.MiniRun:
    """A client's whole data in one batch, one epoch: each phase is one step of plain gradient descent with `LR`."""
    method = METHOD[name](**fields)
    return tiny.mini_run(method, epochs=1, batch_size=16, lr=LR, momentum=0.0, weight_decay=0.0, clip=None)


def of_client(values: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    return {name: value[row].clone() for name, value in values.items()}


def data(small: tiny.MiniRun, k: int) -> tuple[Tensor, Tensor]:
    index = torch.from_numpy(small.train[k])
    return small.model.images.batch(index), small.model.labels[index]


def feature(small: tiny.MiniRun, images: Tensor, prompt: Tensor | None) -> Tensor:
    """CLS feature [B, D] with `prompt` [P, D] at block 0."""

    def at(layer: int, cls: Tensor) -> Any:
        return (True, prompt.expand(len(cls), -1, -1)) if layer == 0 and prompt is not None else None

    return plain_forward(small.model.backbone, images, at)[0]


def loss(small: tiny.MiniRun, k: int, prompt: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """f of client k: the mean cross-entropy over its data."""
    images, y = data(small, k)
    return F.cross_entropy(feature(small, images, prompt) @ weight.T + bias, y)


def gradient(small: tiny.MiniRun, k: int, *values: Tensor) -> tuple[Tensor, ...]:
    """Gradient of f of client k at (prompt, head.weight, head.bias)."""
    leaves = [value.detach().clone().requires_grad_() for value in values]
    return torch.autograd.grad(loss(small, k, *leaves), leaves)


def same(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-10)


def finetune(small: tiny.MiniRun, clients: Any) -> Any:
    """What clients are evaluated with: fine-tuned from what the server sends."""
    trainer = dataclasses.replace(small.trainer, finetuning=True)
    batches = small.batches(clients)[: len(trainer.phases)]
    sent = small.server.send(torch.from_numpy(batches[0].clients))
    return trainer.train(sent, small.server.read(), batches, Recipe(LR))


# -- FedRep and FedBABU ----------------------------------------------------------------------------------------------


def test_fedrep_trains_the_head_first_and_the_prompts_with_that_head():
    small = one_step("fedrep")
    report = small.round(COHORT)
    for row, k in enumerate(report.clients.tolist()):
        sent, updated = of_client(report.received, row), of_client(report.updated, row)
        _, g_weight, g_bias = gradient(small, k, *(sent[n] for n in MODEL))
        head = sent["head.weight"] - LR * g_weight, sent["head.bias"] - LR * g_bias  # phase 0: the head alone moves
        g_prompt, *_ = gradient(small, k, sent["prompt"], *head)  # phase 1: the prompts alone, with the new head
        assert same(updated["head.weight"], head[0])
        assert same(updated["head.bias"], head[1])
        assert same(updated["prompt"], sent["prompt"] - LR * g_prompt)


def test_fedrep_fits_a_newcomers_head_to_the_averaged_prompts():
    small = one_step("fedrep")
    small.server.merge(small.round(COHORT))
    tuned = finetune(small, [1])
    assert torch.equal(tuned.updated["prompt"][0], small.server.values["prompt"])
    sent = of_client(tuned.received, 0)
    assert torch.equal(sent["head.weight"], small.server.spec["head.weight"].init.double())
    _, g_weight, _ = gradient(small, 1, *(sent[n] for n in MODEL))
    assert same(tuned.updated["head.weight"][0], sent["head.weight"] - LR * g_weight)


def test_fedbabus_head_is_still_until_fine_tuning():
    small = one_step("fedbabu")
    everyone = torch.arange(tiny.CLIENTS)
    start = small.server.send(everyone)
    prompt = small.server.values["prompt"].clone()
    for round_ in (1, 2):
        small.server.merge(small.round(COHORT, round_=round_))
    for name in HEAD:
        assert torch.equal(small.server.send(everyone)[name], start[name])
        assert torch.equal(start[name][0], start[name][5])  # one head for all
    assert not torch.equal(small.server.values["prompt"], prompt)
    sent = small.server.send(torch.tensor([1]))
    tuned = finetune(small, [1])  # a client that never took part
    for name, g in zip(MODEL, gradient(small, 1, *(sent[n][0] for n in MODEL)), strict=True):
        assert g.abs().max() > 0
        assert same(tuned.updated[name][0], sent[name][0] - LR * g)
    assert METHOD["fedbabu"]().finetune_epochs > 0


def test_fedbabu_sends_prompts_alone():
    up, down = one_step("fedbabu", prompt_length=3).server.bytes_per_client()
    assert up == down == 3 * 32 * 4


# -- Ditto and APFL --------------------------------------------------------------------------------------------------


def second_round(name: str, **fields: Any) -> tuple[tiny.MiniRun, Any]:
    """Own and shared values have parted in the first round; client 2 is new in the second."""
    small = one_step(name, **fields)
    small.server.merge(small.round((4, 0)))
    return small, small.round(COHORT, round_=2)


def test_dittos_own_copy_is_pulled_to_what_the_server_sent():
    lam = 3.0
    small, report = second_round("ditto", pull=lam)
    for row, k in enumerate(report.clients.tolist()):
        sent, updated = of_client(report.received, row), of_client(report.updated, row)
        w, v = [sent[n] for n in MODEL], [sent[f"own.{n}"] for n in MODEL]
        assert same(w[0], v[0]) == (k == 2)
        for n, w_n, v_n, g_w, g_v in zip(MODEL, w, v, gradient(small, k, *w), gradient(small, k, *v), strict=True):
            assert same(updated[n], w_n - LR * g_w)  # FedVPT's step: the own copy changes nothing in it
            assert same(updated[f"own.{n}"], v_n - LR * (g_v + lam * (v_n - w_n)))


def test_ditto_is_evaluated_with_the_own_copy_and_a_newcomer_with_the_shared_model():
    small, report = second_round("ditto")
    small.server.merge(report)
    values, index = small.server.send(torch.tensor([0, 1])), torch.tensor([[40, 41], [42, 43]])
    logits = small.model.forward(values, index, add_prior=False).logits
    models = [[small.server.memory.rows[f"own.{n}"][0] for n in MODEL], [small.server.values[n] for n in MODEL]]
    assert not same(models[0][0], models[1][0])
    for row, (prompt, weight, bias) in enumerate(models):
        expected = feature(small, small.model.images.batch(index[row]), prompt) @ weight.T + bias
        assert same(logits[row], expected)
    tuned = finetune(small, [1])
    v = [tuned.received[f"own.{n}"][0] for n in MODEL]  # it starts at w, so the pull is zero in the first step
    for n, v_n, g in zip(MODEL, v, gradient(small, 1, *v), strict=True):
        assert same(tuned.updated[f"own.{n}"][0], v_n - LR * g)
        assert torch.equal(tuned.updated[n], tuned.received[n])


@pytest.mark.parametrize("adaptive", [True, False])
def test_apfl_steps_through_the_mix(adaptive):
    a = 0.3
    small, report = second_round("apfl", alpha=a, adaptive=adaptive)
    for row, k in enumerate(report.clients.tolist()):
        sent, updated = of_client(report.received, row), of_client(report.updated, row)
        alpha = sent["alpha"]
        if not adaptive or k == 2:
            assert same(alpha, torch.tensor([a]).to(alpha))
        w, v = [sent[n] for n in MODEL], [sent[f"own.{n}"] for n in MODEL]
        mix = [alpha * v_n + (1 - alpha) * w_n for v_n, w_n in zip(v, w, strict=True)]
        at_mix = gradient(small, k, *mix)
        for n, w_n, v_n, g_w, g in zip(MODEL, w, v, gradient(small, k, *w), at_mix, strict=True):
            assert same(updated[n], w_n - LR * g_w)  # FedVPT's step
            assert same(updated[f"own.{n}"], v_n - LR * alpha * g)  # chain rule: d mix / d v = alpha
        inner = sum(((v_n - w_n) * g).sum() for v_n, w_n, g in zip(v, w, at_mix, strict=True))
        assert (abs(inner) > 1e-6) == (k != 2)  # a newcomer's v is w
        assert same(updated["alpha"], alpha - LR * inner if adaptive else alpha)


def test_apfls_alpha_stays_between_0_and_1():
    steer = METHOD["apfl"]().at(0).steer
    for alpha, step, expected in [(0.9, 0.3, 1.0), (0.9, 0.05, 0.95), (0.2, -0.5, 0.0)]:
        end = alpha + steer({"alpha": torch.tensor([alpha])}, {"alpha": torch.tensor([step])})["alpha"].item()
        assert end == pytest.approx(expected, abs=1e-6)


def test_apfl_is_evaluated_with_the_mix_and_a_newcomer_with_the_shared_model():
    small, report = second_round("apfl", alpha=0.25, adaptive=False)
    small.server.merge(report)
    values, index = small.server.send(torch.tensor([0, 1])), torch.tensor([[40, 41], [42, 43]])
    logits = small.model.forward(values, index, add_prior=False).logits
    w = [small.server.values[n] for n in MODEL]
    mix = [0.25 * small.server.memory.rows[f"own.{n}"][0] + 0.75 * w_n for n, w_n in zip(MODEL, w, strict=True)]
    for row, (prompt, weight, bias) in enumerate([mix, w]):
        expected = feature(small, small.model.images.batch(index[row]), prompt) @ weight.T + bias
        assert same(logits[row], expected)


# -- newcomers, in the core ------------------------------------------------------------------------------------------


def test_newcomers_are_those_without_a_row_and_a_restored_server_remembers():
    small, report = second_round("ditto")
    small.server.merge(report)
    state = {name: value.clone() for name, value in small.server.state().items()}
    again = one_step("ditto")
    again.server.restore(state)
    for server in (small.server, again.server):
        sent = server.send(torch.arange(tiny.CLIENTS))
        new = [bool(torch.equal(sent["own.prompt"][k], sent["prompt"][k])) for k in range(tiny.CLIENTS)]
        assert new == [k not in COHORT for k in range(tiny.CLIENTS)]


@pytest.mark.parametrize("result", [{"prompt": torch.zeros(3)}, {"own.prompt": torch.zeros(3)}])
def test_a_newcomer_hook_that_gives_something_else_is_named(result):
    class Wrong(METHOD["ditto"]):  # type: ignore[misc]
        def newcomer(self, p: Any) -> dict[str, Tensor]:
            return result

    server = tiny.mini_run(Wrong()).server
    (name,) = result
    expected = list(server.spec["own.prompt"].init.shape) if name == "own.prompt" else "no local value"
    with pytest.raises(HookError) as error:
        server.send(torch.tensor([0]))
    assert str(error.value).endswith(f"newcomer(): {name!r} of shape [3], expected {expected}")


def test_there_is_no_global_model_where_clients_train_values_of_their_own():
    for name in ("fedrep", "ditto", "apfl", "pfedpt", "pfedpg", "fedpgp"):
        assert one_step(name).server.unseen_client() is None, name
    assert one_step("fedbabu").server.unseen_client() is not None


# -- pFedPT ----------------------------------------------------------------------------------------------------------


def frame(p: dict[str, Tensor], size: int, b: int) -> Tensor:
    """The border as an image, pixel by pixel; corners belong to the upper and the lower strip."""
    image = torch.zeros(3, size, size, dtype=p["border.top"].dtype)
    for i in range(size):
        for j in range(size):
            if i < b:
                image[:, i, j] = p["border.top"][:, i, j]
            elif i >= size - b:
                image[:, i, j] = p["border.bottom"][:, i - (size - b), j]
            elif j < b:
                image[:, i, j] = p["border.left"][:, i - b, j]
            elif j >= size - b:
                image[:, i, j] = p["border.right"][:, i - b, j - (size - b)]
    return image


def test_pfedpts_border_is_added_and_leaves_the_inside_alone():
    size, b = 16, 3
    small = one_step("pfedpt", border=b)
    torch.manual_seed(0)
    strips = {n: torch.randn(v.init.shape).double() for n, v in small.server.memory.spec.items()}
    images = torch.randn(2, 3, size, size).double()
    shown = METHOD["pfedpt"](border=b).pixels(strips, images)
    assert torch.equal(shown[:, :, b:-b, b:-b], images[:, :, b:-b, b:-b])
    assert same(shown - images, frame(strips, size, b).expand(2, -1, -1, -1))  # added: the same for every image
    assert sum(value.numel() for value in strips.values()) == 3 * (size**2 - (size - 2 * b) ** 2)


def test_pfedpt_trains_the_border_first_and_the_head_on_what_it_shows():
    small = one_step("pfedpt", border_lr_scale=20.0)
    small.server.merge(small.round((4, 0)))
    report = small.round(COHORT, round_=2)
    b, size = 16 // 8, 16
    for row, k in enumerate(report.clients.tolist()):
        sent, updated = of_client(report.received, row), of_client(report.updated, row)
        assert bool((sent["border.top"] == 0).all()) == (k == 2)  # a newcomer sees the plain image
        images, y = data(small, k)

        def f(border: Tensor, weight: Tensor, bias: Tensor, images: Tensor = images, y: Tensor = y) -> Tensor:
            return F.cross_entropy(feature(small, images + border, None) @ weight.T + bias, y)

        border = frame(sent, size, b).requires_grad_()
        (g,) = torch.autograd.grad(f(border, sent["head.weight"], sent["head.bias"]), border)
        inside = torch.zeros_like(g)
        inside[:, b:-b, b:-b] = g[:, b:-b, b:-b]
        moved = (border - 20 * LR * (g - inside)).detach()
        assert same(frame(updated, size, b), moved)
        head = [sent[n].requires_grad_() for n in HEAD]
        for n, value, g in zip(HEAD, head, torch.autograd.grad(f(moved, *head), head), strict=True):
            assert same(updated[n], value - LR * g)


# -- pFedPG ----------------------------------------------------------------------------------------------------------


def test_pfedpgs_generator_steps_by_the_chain_rule():
    lr, inner = 0.7, 6
    small = one_step("pfedpg", prompt_length=3, prompt_lr_scale=1000.0, attention_width=inner, server_lr=lr)
    old = {name.removeprefix("generator."): value.clone() for name, value in small.server.values.items()}
    base, w_q, w_k, w_v, w_o = (old[n] for n in ("base", "W_Q", "W_K", "W_V", "W_O"))
    report = small.round(COHORT)
    new = {name: torch.zeros_like(value) for name, value in old.items()}  # gradients
    sizes = [tiny.SIZES[k] for k in report.clients.tolist()]
    for row, k in enumerate(report.clients.tolist()):
        d = old["descriptor"][k]
        q, keys, v = d @ w_q, base @ w_k, base @ w_v
        e = torch.exp(keys @ q / math.sqrt(inner))
        a = e / e.sum()
        m = a @ v
        assert same(report.received["prompt"][row], base + m @ w_o)  # P_n: one residual for all tokens
        back = sizes[row] / sum(sizes) * (report.received["prompt"][row] - report.updated["prompt"][row])  # [P, D]
        assert back.abs().max() > 1e-3
        r = back.sum(0)  # of the residual
        new["W_O"] += torch.outer(m, r)
        d_m = w_o @ r
        d_a, d_v = v @ d_m, torch.outer(a, d_m)
        d_s = a * (d_a - a @ d_a) / math.sqrt(inner)  # through the softmax
        d_q, d_k = keys.T @ d_s, torch.outer(d_s, q)
        new["W_Q"] += torch.outer(d, d_q)
        new["descriptor"][k] = w_q @ d_q
        new["W_K"] += base.T @ d_k
        new["W_V"] += base.T @ d_v
        new["base"] += back + d_k @ w_k.T + d_v @ w_v.T
    small.server.merge(report)
    for name, value in old.items():
        assert new[name].abs().max() > 1e-7, name
        assert same(small.server.values[f"generator.{name}"], value - lr * new[name]), name
    absent = [1, 3, 5]
    assert torch.equal(small.server.values["generator.descriptor"][absent], old["descriptor"][absent])


def test_pfedpg_without_attention_is_fedvpt_with_local_heads():
    small, peer = one_step("pfedpg", prompt_length=3), one_step("fedvpt", prompt_length=3, head="local")
    small.server.values["generator.W_O"].zero_()
    for each in (small, peer):
        each.server.merge(each.round(COHORT))
    assert same(small.server.values["generator.base"], peer.server.values["prompt"])


def test_in_loop_mode_prompts_are_generated_for_one_client_after_another(monkeypatch):
    server, clients = one_step("pfedpg", prompt_length=3).server, torch.tensor([2, 0, 1])
    together, hook, calls = server.generated(clients), server.method.send, []
    monkeypatch.setattr(type(server.method), "send", lambda self, p, k: calls.append(k.tolist()) or hook(p, k))
    server.mode = "loop"
    apart = server.generated(clients)
    assert calls == [[2], [0], [1]]
    assert apart.keys() == together.keys()
    assert all(same(apart[name], value) for name, value in together.items())


def test_pfedpg_sends_prompts_and_keeps_the_generator():
    assert one_step("pfedpg", prompt_length=3).server.bytes_per_client() == (3 * 32 * 4, 3 * 32 * 4)


# -- FedPGP ----------------------------------------------------------------------------------------------------------


def test_fedpgps_contrast_on_small_numbers():
    method = METHOD["fedpgp"](mu=2.0, temperature=0.5)
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])
    z_0, z_global, z_own = torch.stack([x, x, x]), torch.stack([2 * x, y, x]), torch.stack([y, y, x])
    contrast = method.extra_loss({}, {}, {"cls": z_own, "global.cls": z_global}, z_0)
    # cosines (positive, negative): (1, 0), (0, 1), (1, 1); -log softmax at the positive, with tau 1/2 and mu 2
    expected = [2 * -math.log(math.e**2 / (math.e**2 + 1)), 2 * -math.log(1 / (1 + math.e**2)), 2 * math.log(2)]
    assert contrast.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("mu", [0.0, 2.0])
def test_fedpgps_factors_get_the_gradient_of_their_product(mu):
    tau, scale = 0.5, 5.0
    small = one_step("fedpgp", prompt_length=3, rank=2, mu=mu, temperature=tau, factor_lr_scale=scale)
    report = small.round(COHORT)
    for row, k in enumerate(report.clients.tolist()):
        sent, updated = of_client(report.received, row), of_client(report.updated, row)
        images, y = data(small, k)
        p_k = (sent["prompt"] + sent["U"] @ sent["V"]).requires_grad_()  # as if it were free
        p_g = sent["prompt"].clone().requires_grad_()
        z_0, z_g, z_k = (feature(small, images, p) for p in (None, p_g, p_k))
        near, far = (F.cosine_similarity(a, b, dim=1) / tau for a, b in ((z_0, z_g), (z_g, z_k)))
        contrast = -(near.exp() / (near.exp() + far.exp())).log().mean()
        f = F.cross_entropy(z_k @ sent["head.weight"].T + sent["head.bias"], y) + mu * contrast
        g_k, g_g = torch.autograd.grad(f, [p_k, p_g])
        assert (g_g.abs().max() > 1e-6) == (mu > 0)
        assert same(updated["U"], sent["U"] - scale * LR * g_k @ sent["V"].T)
        assert same(updated["V"], sent["V"] - scale * LR * sent["U"].T @ g_k)
        assert same(updated["prompt"], sent["prompt"] - LR * (g_k + g_g))


def test_family_and_citation_are_listed():
    for name in ("fedrep", "fedbabu", "ditto", "apfl", "pfedpt", "pfedpg", "fedpgp"):
        assert METHOD[name].family == "personalised", name
        assert METHOD[name].citation != Method.citation, name


def test_own_initial_values_scatter_as_the_common_ones_do():
    small = tiny.mini_run(METHOD["fedvpt"](prompt="local", own_init=True))
    prompt, head = small.model.spec["prompt"], small.model.spec["head.weight"]
    assert prompt.rows is not None
    assert head.rows is None  # shared: all clients start from one value
    drawn = prompt.rows(torch.arange(40))
    assert drawn.mean().abs() < 0.01 * prompt.init.abs().max()
    assert drawn.std() == pytest.approx(float(prompt.init.square().mean() ** 0.5), rel=0.02)
    assert prompt.rows(torch.tensor([7]))[0].equal(drawn[7])
