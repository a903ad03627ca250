"""The loaders that `fedbench export` writes beside a model: programs that need torch, timm and safetensors alone."""

SAME_FOR_ALL = '''"""Loads the model of this folder in plain timm.

`load()` returns a function from normalised images [N, 3, S, S] to class scores [N, C].
"""

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file


def load(folder=Path(__file__).parent):
    tensors, about = load_file(Path(folder) / "model.safetensors"), json.loads((Path(folder) / "model.json").read_text())
    vit = timm.create_model(**about["timm"]).eval()
    vit.load_state_dict({name[4:]: value for name, value in tensors.items() if name.startswith("vit.")}, strict=False)

    @torch.inference_mode()
    def model(images):
        x, added = vit._pos_embed(vit.patch_embed(images)), 0
        x, rope = x if isinstance(x, tuple) else (x, None)
        x = vit.norm_pre(x)
        for i, block in enumerate(vit.blocks):
            for prompt, at, dropped in about["prompts"].get(str(i), []):  # tokens enter behind CLS, or replace earlier ones
                x = torch.cat([x[:, :at], tensors[prompt].expand(len(x), -1, -1), x[:, at + dropped :]], dim=1)
                added += len(tensors[prompt]) - dropped
            if rope is None:
                x = block(x)
            else:
                block.attn.num_prefix_tokens = vit.num_prefix_tokens + added  # rotates the patches behind them
                x = block(x, rope=rope[i] if vit.rope_mixed else rope)
        first = 0 if vit.cls_token is None else 1
        x = vit.norm(torch.cat([x[:, :first], x[:, first + added :]], dim=1))  # pooling leaves prompts out
        return vit.forward_head(x, pre_logits=True) @ tensors["head.weight"].T + tensors["head.bias"]

    return model
'''

# For methods whose prompts depend on the image. The functions of `fedbench.run.prompt_trace` follow in the written file.
FOR_EACH_IMAGE = '''"""Loads the model of this folder in plain timm.

`load()` returns a function from normalised images [N, 3, S, S] to class scores [N, C]. The prompts depend on the image. The
functions at the end make them for one image, with the operations that the method's own code made, one in each line.
"""

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file

aten = torch.ops.aten  # torch's operations by name


def load(folder=Path(__file__).parent):
    tensors, about = load_file(Path(folder) / "model.safetensors"), json.loads((Path(folder) / "model.json").read_text())
    values = {name.removeprefix("values."): value for name, value in tensors.items() if name.startswith("values.")}
    vit = timm.create_model(**about["timm"]).eval()
    vit.load_state_dict({name[4:]: value for name, value in tensors.items() if name.startswith("vit.")}, strict=False)

    def prompts_at(block, x, query):
        """{slot: [N, P, D]} that enter `block`; the images do not see each other."""
        cls = x[:, 0] if vit.global_pool == "token" else x[:, -vit.patch_embed.num_patches :].mean(1)
        made = torch.vmap(lambda cls, query: PROMPTS[block](values, cls[None], query[None]))(cls, query)
        return {slot: value[:, 0] for slot, value in made.items()}

    def feature(images, blocks, query=None):
        """The feature [N, D] after the first `blocks` blocks; without `query` no prompts enter."""
        x, added = vit._pos_embed(vit.patch_embed(images)), 0
        x, rope = x if isinstance(x, tuple) else (x, None)
        x = vit.norm_pre(x)
        for i, block in enumerate(vit.blocks[:blocks]):
            entering = [] if query is None else about["prompts"].get(str(i), [])
            made = prompts_at(i, x, query) if entering else {}
            for slot, at, dropped in entering:  # tokens enter behind CLS, or replace earlier ones
                x = torch.cat([x[:, :at], made[slot], x[:, at + dropped :]], dim=1)
                added += made[slot].shape[1] - dropped
            if rope is None:
                x = block(x)
            else:
                block.attn.num_prefix_tokens = vit.num_prefix_tokens + added  # rotates the patches behind them
                x = block(x, rope=rope[i] if vit.rope_mixed else rope)
        first = 0 if vit.cls_token is None else 1
        x = vit.norm(torch.cat([x[:, :first], x[:, first + added :]], dim=1))  # pooling leaves prompts out
        return vit.forward_head(x, pre_logits=True)

    @torch.inference_mode()
    def model(images):
        query = feature(images, about["query_blocks"])  # of the image without prompts; 0 blocks: no prompt reads it
        return feature(images, len(vit.blocks), query) @ tensors["head.weight"].T + tensors["head.bias"]

    return model
'''
