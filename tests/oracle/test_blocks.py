"""A backbone with shortcuts computes the same as timm's, for blocks of every form."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from fedbench.vit.backbone import Backbone

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": {"init_values": 0.3},
    "norms of queries and keys": {"qk_norm": True},
    "norm of the attention": {"scale_attn_norm": True},
    "norm in the MLP": {"scale_mlp_norm": True},
    "no bias of queries": {"qkv_bias": False},
    "another activation": {"act_layer": "relu"},
    "approximate GELU": {"act_layer": partial(nn.GELU, approximate="tanh")},
    "timm's approximate GELU": {"act_layer": "gelu_tanh"},
    "quick GELU": {"act_layer": "quick_gelu"},
    "norms without weights": {"norm_layer": partial(nn.LayerNorm, elementwise_affine=False)},
    "registers": {"reg_tokens": 2},
    "norm before the blocks": {"pre_norm": True},
}


def foreign(options: dict[str, Any]) -> VisionTransformer:
    torch.manual_seed(2)
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2}
    vit = VisionTransformer(**size, num_classes=0, **options)
    for value in vit.parameters():
        torch.nn.init.normal_(value, std=0.4)
    return vit.double().eval()


def reference(vit: VisionTransformer, images: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """timm's own blocks with the prompt behind CLS."""
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    for layer, block in enumerate(vit.blocks):
        if layer == 1:
            x = torch.cat([x[:, :1], prompt.expand(len(x), -1, -1), x[:, 1:]], 1)
        x = block(x)
    return vit.norm(x)[:, 0]


def through_backbone(backbone: Backbone, images: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    def enter(layer: int, cls: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"prompt": prompt.expand(len(cls), -1, -1)}

    return backbone(images, (1,), enter, slots_read=False)[0]["cls"]


@pytest.mark.parametrize("form", FORMS)
def test_features_and_gradients_are_those_of_timm(form: str) -> None:
    vit = foreign(FORMS[form])
    backbone = Backbone(vit, (0.5,) * 3, (0.5,) * 3)
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    weight = torch.randn(3, 16, dtype=torch.float64)
    results = []
    for compute in (through_backbone, reference):
        prompt = torch.linspace(-1, 1, 32, dtype=torch.float64).view(2, 16).requires_grad_()
        cls = compute(backbone if compute is through_backbone else vit, images, prompt)
        results.append((cls.detach(), *torch.autograd.grad((cls * weight).sum(), prompt)))
    for value, expected in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-10)
