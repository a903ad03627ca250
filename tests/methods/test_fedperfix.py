"""FedPerfix against a twin in plain PyTorch: prefixes of keys and values in a timm ViT whose attention is written out."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import tiny
import torch
import torch.nn.functional as F
from test_personalised import COHORT, LR, data, of_client, one_step, same
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedbench.contract import violation
from fedbench.contract.isolation import samples_do_not_see_each_other
from fedbench.contract.world import Case
from fedbench.method import HookError, InputPrompt, Method, Param, Task, linear_head
from fedbench.run import cost
from fedbench.vit.token_cache import first_block

METHOD = tiny.plugins().classes["method"]
WIDTH, DEPTH, HEADS, MIDDLE, SCALE = 32, 4, 2, 5, 1.5  # the first three of the miniature backbone
FORMS = {
    "adapter": {"bottleneck": MIDDLE},
    "tokens": {"prefix": "tokens", "prefix_length": 3},
    "backbone": {"share": "backbone", "bottleneck": MIDDLE},
    "local block": {"share": "backbone", "local_blocks": 1, "bottleneck": MIDDLE},
}


class PrefixedAttention(nn.Module):
    """The attention of timm's block, with one client's prefixes of keys and values."""

    def __init__(self, plain: nn.Module, layer: int, p: dict[str, Tensor]) -> None:
        super().__init__()
        self.qkv, self.proj, self.layer, self.p = plain.qkv, plain.proj, layer, p

    def forward(self, x: Tensor, **_: object) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).split(WIDTH, -1)
        p, at = self.p, self.layer
        if "pairs" in p:
            k, v = (torch.cat([p["pairs"][at, i].expand(b, -1, -1), z], 1) for i, z in enumerate((k, v)))
        else:
            hidden = torch.tanh(x @ p["down.weight"][at].T + p["down.bias"][at])
            added = SCALE * (hidden @ p["up.weight"][at].T + p["up.bias"][at])
            k, v = k + added[..., :WIDTH], v + added[..., WIDTH:]
        q, k, v = (z.reshape(b, -1, HEADS, WIDTH // HEADS).transpose(1, 2) for z in (q, k, v))
        mixed = (q @ k.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(b, t, WIDTH))


def twin_loss(small: tiny.MiniRun, k: int, p: dict[str, Tensor]) -> Tensor:
    """The mean cross entropy of client k with the values `p`."""
    images, y = data(small, k)
    vit = copy.deepcopy(small.model.backbone.vit)
    for layer, block in enumerate(vit.blocks):
        block.attn = PrefixedAttention(block.attn, layer, p)
    own = {name: p[f"vit.{name}"] for name, _ in vit.named_parameters() if f"vit.{name}" in p}

    def cls(images: Tensor) -> Tensor:
        x = vit._pos_embed(vit.patch_embed(images))
        if "prompt" in p:
            x = torch.cat([x[:, :1], p["prompt"].expand(len(x), -1, -1), x[:, 1:]], 1)
        return vit.norm(vit.blocks(x))[:, 0]

    vit.forward = cls
    feature = torch.func.functional_call(vit, own, (images,))
    return F.cross_entropy(feature @ p["head.weight"].T + p["head.bias"], y)


@pytest.mark.parametrize("form", FORMS)
def test_a_client_takes_the_step_of_the_twin_and_keeps_its_prefixes_and_head(form: str) -> None:
    small = one_step("fedperfix", **FORMS[form])
    report = small.round(COHORT)
    names = sorted(report.updated)
    for row, k in enumerate(report.clients.tolist()):
        sent, updated = of_client(report.received, row), of_client(report.updated, row)
        leaves = {name: sent[name].clone().requires_grad_() for name in names}
        for name, g in zip(names, torch.autograd.grad(twin_loss(small, k, leaves), list(leaves.values())), strict=True):
            assert g.abs().max() > 0
            assert same(updated[name], sent[name] - LR * g), (k, name)
    homes = {name: param.home for name, param in small.server.spec.items()}
    local = {name for name, home in homes.items() if home == "local"}
    prefixes = {"pairs"} if form == "tokens" else {f"{n}.{kind}" for n in ("down", "up") for kind in ("weight", "bias")}
    assert {name for name in local if not name.startswith("vit.")} == prefixes | {"head.weight", "head.bias"}
    assert {name.split(".")[2] for name in local if name.startswith("vit.")} == (
        {"3"} if form == "local block" else set()
    )
    shared = sum(param.init.numel() for name, param in small.server.spec.items() if name not in local)
    assert small.server.bytes_per_client() == (4 * shared, 4 * shared)
    if "share" not in FORMS[form]:
        assert shared == 8 * WIDTH


def test_adapters_start_as_the_linear_layers_of_torch() -> None:
    spec = tiny.mini_run(METHOD["fedperfix"]()).server.spec
    assert spec["down.weight"].init.shape == (DEPTH, 256, WIDTH)
    for name, inputs in (("down", WIDTH), ("up", 256)):
        bound = nn.Linear(inputs, 1).weight.new_tensor(inputs**-0.5)
        for kind in ("weight", "bias"):
            init = spec[f"{name}.{kind}"].init
            assert 0.97 * bound < init.abs().max() <= bound


@dataclasses.dataclass(frozen=True)
class Prefixed(Method):
    """Prefixes of the last two blocks alone; `made` breaks what the hook returns."""

    made: Callable[[Tensor, Tensor], dict[str, Tensor]] = lambda pair, x: {"keys": pair[0], "values": pair[1]}

    def layers(self, depth: int) -> tuple[int, ...]:
        return depth - 2, depth - 1

    def params(self, task: Task) -> dict[str, Param]:
        return {"pairs": Param(task.prompt_init("pairs", task.depth, 2, 3, task.width))} | linear_head(task)

    def prefixes(self, layer: int, p: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
        return self.made(p["pairs"][layer].unsqueeze(1).expand(-1, len(tokens), -1, -1), tokens)


def test_blocks_below_the_first_prefix_are_cached_and_shared() -> None:
    assert first_block(Prefixed(), DEPTH) == 2
    assert tiny.mini_run(Prefixed()).model.shared_blocks == DEPTH  # prefixes do not read local values
    assert tiny.mini_run(METHOD["fedperfix"]()).model.shared_blocks == 0


def test_blocks_with_prefixes_are_not_compiled_and_the_others_are() -> None:
    small, ran = tiny.mini_run(Prefixed()), []

    def run(part: Callable[..., Tensor], block: nn.Module, x: Tensor, *more: object) -> Tensor:
        ran.append(block)
        return part(block, x, *more)

    values, index = small.server.send(torch.tensor([0])), torch.arange(3).view(1, 3)
    expected = small.model.forward(values, index, add_prior=False).logits
    compiled = dataclasses.replace(small.model, compiled=run)
    assert torch.equal(compiled.forward(values, index, add_prior=False).logits, expected)
    assert ran == list(small.model.backbone.vit.blocks[:2])


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda pair, x: {"keys": pair[0]}, "expected both of keys, values; found keys alone"),
        (lambda pair, x: {"keys": pair[0], "values": pair[1][:, 1:]}, r"'values': expected \[B, P, D\]"),
        (lambda pair, x: {"added_keys": x[:, 1:], "added_values": x}, r"'added_keys': expected \[B, T, D\]"),
        (lambda pair, x: {"key": x, "value": x}, "expected values of keys, values, added_keys, added_values; found"),
    ],
)
def test_prefixes_that_do_not_fit_are_refused(made: Callable[..., dict[str, Tensor]], message: str) -> None:
    with pytest.raises(HookError, match=message):
        tiny.mini_run(Prefixed(made=made)).round(COHORT)


def test_the_contract_sees_prefixes_that_depend_on_other_samples() -> None:
    mixing = Prefixed(made=lambda pair, x: {"added_keys": x + pair[0].mean(), "added_values": x + x.mean(0)})
    assert "prefixes()" in (violation(samples_do_not_see_each_other, Case(mixing)) or "")


@dataclasses.dataclass(frozen=True)
class Patchwise(InputPrompt):
    """A head that scores the mean of the patch tokens, and a loss and sums of them."""

    reads_patches = True

    def params(self, task: Task) -> dict[str, Param]:
        return self.prompt_param(task) | linear_head(task)

    def logits(self, p: dict[str, Tensor], out: dict[str, Tensor]) -> Tensor:
        return F.linear(out["patches"].mean(1), p["head.weight"], p["head.bias"])

    def extra_loss(self, p: object, received: object, out: dict[str, Tensor], query: object) -> Tensor:
        return 0.1 * (out["patches"] - out["cls"][:, None]).square().mean((1, 2))

    def observe(
        self, p: object, taps: dict[str, Tensor], query: object, y: object, weight: Tensor
    ) -> dict[str, Tensor]:
        return {"patch": torch.einsum("b,bnd->d", weight, taps["patches"])}


@dataclasses.dataclass(frozen=True)
class Unprompted(Patchwise):
    """The same without prompts."""

    def layers(self, depth: int) -> tuple[int, ...]:
        return ()

    def params(self, task: Task) -> dict[str, Param]:
        return linear_head(task)


@pytest.mark.parametrize("method", [Patchwise(prompt_length=3), Unprompted()], ids=["prompts", "no prompts"])
@pytest.mark.parametrize("shortcuts", [True, False])
def test_patches_are_those_of_timm_after_the_last_norm(method: Patchwise, shortcuts: bool) -> None:
    small = one_step_of(method)
    backbone = small.model.backbone
    backbone.trims_last_block = backbone.uses_fast_blocks = shortcuts
    report = small.round(COHORT)
    for row, k in enumerate(report.clients.tolist()):
        images, y = data(small, k)
        leaves = {n: v[row].clone().requires_grad_() for n, v in report.received.items()}
        vit, p = backbone.vit, leaves.get("prompt")
        if p is None:
            x = vit.forward_features(images)
        else:
            x = vit._pos_embed(vit.patch_embed(images))
            x = vit.norm(vit.blocks(torch.cat([x[:, :1], p.expand(len(x), -1, -1), x[:, 1:]], 1)))
        cls, patches = x[:, 0], x[:, -4:]  # four patches of the miniature backbone
        scores = patches.mean(1) @ leaves["head.weight"].T + leaves["head.bias"]
        loss = F.cross_entropy(scores, y) + 0.1 * (patches - cls[:, None]).square().mean()
        for name, g in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
            assert same(report.updated[name][row], report.received[name][row] - LR * g)
        assert same(report.sums["patch"][row], patches.sum((0, 1)).detach())


def one_step_of(method: Method) -> tiny.MiniRun:
    return tiny.mini_run(method, epochs=1, batch_size=16, lr=LR, momentum=0.0, weight_decay=0.0, clip=None)


def test_a_slot_may_not_have_the_name_of_the_patches() -> None:
    class Slot(InputPrompt):
        def prompts(self, layer: int, p: object, cls: Tensor, query: object) -> dict[str, Tensor]:
            return {"patches": p["prompt"].expand(len(cls), -1, -1)}

        def params(self, task: Task) -> dict[str, Param]:
            return self.prompt_param(task) | linear_head(task)

    with pytest.raises(HookError, match="'patches' cannot name a slot"):
        tiny.mini_run(Slot()).round(COHORT)


COUNTED: dict[str, Method] = {form: METHOD["fedperfix"](**fields) for form, fields in FORMS.items()}
COUNTED |= {"last blocks": Prefixed(), "patches": Patchwise(prompt_length=3), "patches alone": Unprompted()}


@pytest.mark.parametrize("form", COUNTED)
@pytest.mark.parametrize("lean", [True, False])
def test_multiply_adds_are_those_that_torch_counts(form: str, lean: bool) -> None:
    small = tiny.mini_run(COUNTED[form])
    vit, spec = small.model.backbone, small.server.spec
    vit.trims_last_block, vit.uses_fast_blocks = lean, False  # what a method costs, not what this machine saves of it
    counted = cost.one_pass(small.model.method, spec, vit)
    values = {n: v.requires_grad_(spec[n].trains) for n, v in small.server.send(torch.tensor([2])).items()}
    with FlopCounterMode(display=False) as count, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        logits = small.model.forward(values, torch.arange(16).view(1, 16), add_prior=False).logits
        forward = count.get_total_flops()
        torch.autograd.backward(logits.sum())
    assert forward / 2 / 16 == pytest.approx(counted.forward, rel=0.05)
    if form != "patches alone":  # whose backbone needs no gradient
        assert (count.get_total_flops() - forward) / 2 / 16 == pytest.approx(counted.backward, rel=0.08)
