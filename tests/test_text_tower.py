"""The text tower against open_clip's text transformer with the same weights, and the properties that the core relies on."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from fedbench.base.home import HOME
from fedbench.text.tower import TextTower

SIZES = {"vocab_size": 50, "context_length": 12, "width": 32, "heads": 4, "layers": 3, "embed_dim": 24}


def tower(activation="gelu"):
    torch.manual_seed(0)
    made = TextTower(**SIZES, activation=activation).double()
    for value in made.parameters():  # biases are zero and norms one at the start; here every tensor counts
        value.data += 0.1 * torch.randn_like(value)
    return made.requires_grad_(False)


def texts(n=5):
    """Tokens [n, 12] of texts of different lengths, and their end-of-text positions; the end has the highest number."""
    torch.manual_seed(1)
    eot = torch.arange(3, 3 + n)
    tokens = torch.randint(1, 48, (n, 12))
    tokens[torch.arange(12) > eot[:, None]] = 0
    tokens[torch.arange(n), eot] = 49
    return tokens, eot


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_features_equal_those_of_open_clip_with_the_same_weights(activation):
    open_clip = pytest.importorskip("open_clip.transformer", reason="needs the extra clip")
    ours, (tokens, eot) = tower(activation), texts()
    act = open_clip.QuickGELU if activation == "quick_gelu" else torch.nn.GELU
    names = {"embed_dim": "output_dim"}
    theirs = open_clip.TextTransformer(**{names.get(k, k): v for k, v in SIZES.items()}, act_layer=act).double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(ours(ours.embed(tokens), eot), theirs.eval()(tokens), rtol=1e-9, atol=1e-11)


def test_features_equal_torchs_own_attention_layer_with_an_explicit_mask():
    ours, (tokens, eot) = tower(), texts()
    x = ours.token_embedding.weight[tokens] + ours.positional_embedding
    mask = torch.full((12, 12), float("-inf"), dtype=x.dtype).triu(1)
    for block in ours.transformer.resblocks:
        attention = torch.nn.MultiheadAttention(32, 4, batch_first=True, dtype=x.dtype)
        attention.load_state_dict(block.attn.state_dict())
        y = block.ln_1(x)
        x = x + attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        x = x + block.mlp(block.ln_2(x))
    expected = ours.ln_final(x)[torch.arange(5), eot] @ ours.text_projection
    torch.testing.assert_close(ours(ours.embed(tokens), eot), expected, rtol=1e-9, atol=1e-11)


def test_tokens_after_the_end_of_a_text_change_nothing_and_may_be_cut_off():
    ours, (tokens, eot) = tower(), texts()
    expected = ours(ours.embed(tokens), eot)
    other = tokens.clone()
    other[torch.arange(12) > eot[:, None]] = 17
    torch.testing.assert_close(ours(ours.embed(other), eot), expected)
    torch.testing.assert_close(ours(ours.embed(tokens[:, : eot.max() + 1]), eot), expected)


@pytest.mark.parametrize(
    ("changes", "message"), [({"activation": "relu"}, "gelu, quick_gelu"), ({"heads": 5}, "not a multiple of heads 5")]
)
def test_impossible_sizes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TextTower(**SIZES | changes)


def imported_at_start(tree: ast.Module) -> set[str]:
    """The modules that a file imports when it is itself imported, not later in a function."""
    modules = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return modules


def test_the_text_layer_is_imported_only_by_runs_that_use_it():
    files = [path for path in (HOME / "fedbench").rglob("*.py") if path.parts[-2] not in ("text", "pretraining")]
    assert len(files) > 100
    for path in files:
        early = imported_at_start(ast.parse(path.read_text()))
        assert not any(name.startswith(("fedbench.text", "open_clip")) for name in early), (
            f"{path}: import it in a function"
        )


RUNS = """
import json, sys
from pathlib import Path
from fedbench.base.records import RunFolder
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import plugins
from fedbench.run.simulation import run_rounds

folder, seen = Path(sys.argv[1]), {}
base = {
    "dataset": {"name": "npz", "path": str(folder / "data.npz")}, "partition": "iid", "rounds": 1,
    "clients": {"number": 2, "per_round": 2, "validation": 0.0}, "local": {"batch_size": 4},
}
for backbone, method in (("nano", "fedvpt"), ("clip_nano", "fedvpt"), ("clip_nano", "promptfl")):
    keys = {"backbone": {"name": backbone}, "method": method}
    sweep = check_sweep({"base": base | keys, "machine": {"data": str(folder), "device": "cpu"}}, plugins())
    run = RunFolder(folder / "results" / sweep.runs[0].name)
    run.plan(sweep.on_disk(sweep.runs[0]))
    run_rounds(sweep.runs[0], sweep.machine, sweep.plugins, run)
    text = sorted(name for name in sys.modules if name.startswith(("fedbench.text", "open_clip", "ftfy", "regex")))
    seen[f"{backbone} {method}"] = [len(run.records()), text]
print(json.dumps(seen))
"""


@pytest.mark.slow  # imports torch anew
def test_a_run_with_visual_prompts_alone_imports_neither_the_text_layer_nor_open_clip(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    labels, is_test = np.arange(12) % 2, np.arange(12) >= 8
    np.savez(tmp_path / "data.npz", images=images, labels=labels, is_test=is_test, class_names=["cat", "dog"])
    command = [sys.executable, "-c", RUNS, str(tmp_path)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=300, check=True)
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["nano fedvpt"] == seen["clip_nano fedvpt"] == [1, []]
    assert seen["clip_nano promptfl"][0] == 1  # a run with text, in the same process
    assert {"fedbench.text.class_texts", "fedbench.text.tower"} <= set(seen["clip_nano promptfl"][1])
    assert not any(name.startswith("open_clip") for name in seen["clip_nano promptfl"][1])


def test_texts_that_begin_alike_share_their_beginning_forwards_and_backwards():
    ours = tower()
    torch.manual_seed(2)
    prefix = torch.randn(2, 4, 32, dtype=torch.float64, requires_grad=True)
    rest, eot = torch.randn(2, 3, 5, 32, dtype=torch.float64), torch.tensor([1, 4, 2])
    joined = torch.cat([prefix[:, None].expand(2, 3, 4, 32), rest], 2).flatten(0, 1)
    expected = ours(joined, eot.repeat(2) + 4).view(2, 3, -1)
    features = ours.continued(ours.beginning(prefix), rest, eot)
    torch.testing.assert_close(features, expected)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((value * weight).sum(), prefix)[0] for value in (features, expected)]
    torch.testing.assert_close(*gradients)
