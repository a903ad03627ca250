"""`fedbench export`: a run's model gives the same accuracy in plain timm."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from oracle import plain_vit
from safetensors.torch import load_file
from test_extension import done

from fedbench.cli.main import main
from fedbench.plan.config import BackboneConfig
from fedbench.run import export
from fedbench.run.prompt_trace import traced

BASE: dict[str, Any] = {"rounds": 2, "aggregation": "fedavg", "local": {"lr": 0.05}}
LOADER_IMPORTS = {"json", "pathlib", "timm", "torch", "safetensors"}


def loaded(folder: Path) -> Any:
    """The model of the exported loader, which imports nothing but timm, torch and safetensors."""
    text = (folder / "load_model.py").read_text()
    nodes = ast.walk(ast.parse(text))
    names = [
        n.names[0].name if isinstance(n, ast.Import) else n.module
        for n in nodes
        if isinstance(n, ast.Import | ast.ImportFrom)
    ]
    assert {str(name).split(".")[0] for name in names} <= LOADER_IMPORTS
    module = ModuleType("load_model")
    module.__file__ = str(folder / "load_model.py")
    exec(compile(text, module.__file__, "exec"), vars(module))
    return module.load()


def accuracy(model: Any, folder: Path, images: np.ndarray, labels: np.ndarray) -> float:
    about = json.loads((folder / "model.json").read_text())
    mean, std = (np.array(about[name]) for name in ("mean", "std"))
    pixels = torch.from_numpy(((images / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    return float((model(pixels).argmax(1).numpy() == labels).mean())


METHODS = {
    "fedvpt": {"name": "fedvpt", "prompt_length": 3},
    "fedvpt_deep": {"name": "fedvpt_deep", "prompt_length": 2},
    "lora": {"name": "lora"},
    "pep_fedpt": {"name": "pep_fedpt", "inject": 3, "prompt_length": 2},
    "pep_fedpt at CLS": {"name": "pep_fedpt", "inject": 3, "query": "inject", "similarity": "euclidean"},
    "pfpt": {"name": "pfpt", "pool_size": 6, "prompt_length": 2, "loops": 2},
    "head_only": {"name": "head_only"},
}


def noise(folder: Path, size: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images of four shades, which a model tells apart more often than not; written as the data of `done`."""
    labels = np.arange(160) % 4
    images = np.random.default_rng(0).integers(0, 150, (160, size, size, 3)) + 30 * labels[:, None, None, None]
    images, is_test = images.astype(np.uint8), np.arange(160) >= 100
    np.savez(folder / "noise.npz", images=images, labels=labels, is_test=is_test)
    return images, labels, is_test


@pytest.mark.parametrize(
    "name", [n if n in ("fedvpt", "lora", "pep_fedpt") else pytest.param(n, marks=pytest.mark.slow) for n in METHODS]
)
def test_the_exported_model_has_the_same_accuracy_in_plain_timm(tmp_path, capsys, name):
    images, labels, is_test = noise(tmp_path)
    run = done(tmp_path / "results", tmp_path, **(BASE | {"method": METHODS[name]}))
    out = tmp_path / "model"
    assert main(["export", str(run.path), "--out", str(out)]) == 0, capsys.readouterr()
    expected = run.records()[-1]["global_accuracy"]
    assert f"{expected:.4f}" in (out / "README.md").read_text()
    ours = accuracy(loaded(out), out, images[is_test], labels[is_test])
    assert ours == pytest.approx(expected, abs=1.01 / is_test.sum())  # one image may lie at a boundary
    assert expected > 0.3


def test_a_local_checkpoint_and_a_clients_own_model_are_exported_with_their_prior(tmp_path, capsys):
    """The backbone is a file of the user, prompts are the client's, and evaluation adds the log class prior."""
    images, labels, _ = noise(tmp_path)
    plain_vit.write_weights(tmp_path / "weights.safetensors")
    backbone = {"name": plain_vit.NAME, "weights": str(tmp_path / "weights.safetensors"), "image_size": 32}
    method = {"name": "fedvpt", "prompt": "local", "logit_prior": "eval", "prompt_length": 2}
    partition = {"name": "dirichlet", "alpha": 1.0}
    change = {"method": method, "backbone": backbone, "partition": partition}
    run = done(tmp_path / "results", tmp_path, **(BASE | change))
    assert main(["export", str(run.path), "--out", str(tmp_path / "x")]) == 2
    assert "each client of" in (said := capsys.readouterr().err)
    assert "--client 0..2" in said
    assert main(["export", str(run.path), "--out", str(tmp_path / "x"), "--client", "9"]) == 2
    assert "there is no client 9; the run has the clients 0..2" in capsys.readouterr().err
    out = tmp_path / "model"
    assert main(["export", str(run.path), "--out", str(out), "--client", "1"]) == 0, capsys.readouterr()
    tensors = load_file(out / "model.safetensors")
    state = load_file(run.path / "checkpoint.safetensors")
    stored = state.get("client.prompt.1", tensors["values.prompt"])
    assert torch.equal(tensors["prompts.0.prompt"], stored)
    model = loaded(out)
    pixels = torch.from_numpy(images[:8] / 255).permute(0, 3, 1, 2).float()
    about = json.loads((out / "model.json").read_text())
    mean, std = (torch.tensor(about[key]).view(3, 1, 1) for key in ("mean", "std"))
    vit = plain_vit.PlainViT(plain_vit.write_weights(tmp_path / "again.safetensors"))
    with torch.no_grad():
        prompt = tensors["values.prompt"].double()
        cls = vit(((pixels - mean) / std).double(), lambda layer, cls: prompt.expand(8, -1, -1) if layer == 0 else None)
        prior = tensors["values.prior"].double()
        scores = cls @ tensors["values.head.weight"].double().T + tensors["values.head.bias"].double()
        scores = scores + torch.log((1 - 1e-6) * prior + 1e-6 / len(prior))
    assert (model((pixels - mean) / std).double() - scores).abs().max() < 1e-3 * scores.abs().max()
    assert len(labels)


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ({"name": "fedperfix"}, "it joins keys and values of attention"),
        ({"name": "fedncm"}, "its scores are not linear in the CLS feature"),
        ({"name": "pfedpt"}, "it changes the pixels of its input"),
        ({"name": "head_only", "finetune_epochs": 1}, "fine-tune it before evaluation"),
    ],
)
def test_a_method_that_plain_timm_cannot_hold_is_exported_without_a_loader(tmp_path, capsys, method, why):
    noise(tmp_path)
    run = done(tmp_path / "results", tmp_path, **(BASE | {"method": method}))
    client = ["--client", "0"] if method["name"] in ("pfedpt", "fedperfix") else []
    nested = tmp_path / "exports" / "model"  # is made with its parents, and may be there
    assert main(["export", str(run.path), "--out", str(nested), *client]) == 0
    assert main(["export", str(run.path), "--out", str(nested), *client]) == 0
    nested.rename(tmp_path / "model")
    assert why in capsys.readouterr().out
    assert why in (tmp_path / "model" / "README.md").read_text()
    assert not (tmp_path / "model" / "load_model.py").exists()
    assert any(name.startswith("values.") for name in load_file(tmp_path / "model" / "model.safetensors"))


class Layered:
    """Prompts of block 0, of which block 2 replaces the first set and adds a third; the scores are linear."""

    pixels = backbone_weights = None
    reads_slots, reads_patches, adds_prior_in_evaluation = False, False, True

    def layers(self, depth: int) -> tuple[int, ...]:
        return (0, depth - 1)

    def prompts(self, layer: int, p: Any, cls: torch.Tensor, query: Any) -> dict[str, torch.Tensor]:
        lengths = {"a": 2, "b": 3} if layer == 0 else {"a": 1, "c": 4, "b": 2}
        return {name: torch.full((len(cls), n, 8), n + layer) for name, n in lengths.items()}

    def logits(self, p: Any, out: Any) -> torch.Tensor:
        return out["cls"] @ p["weight"].T + p["bias"]


ONE: tuple[Any, ...] = ({}, torch.zeros(1, 8), torch.zeros(1, 8))  # no values, and the features of one image


def layered(method: Any) -> Any:
    model = SimpleNamespace(
        method=method,
        backbone=SimpleNamespace(
            depth=3,
            width=8,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            image_size=32,
            readout=SimpleNamespace(first_slot=1),
        ),
        images=SimpleNamespace(dtype=torch.float64),
    )
    facts = SimpleNamespace(label="fedvpt", dataset="glyphs", rounds=7, run="fedvpt-glyphs-0123")
    return SimpleNamespace(model=model, facts=facts)


def test_each_prompt_lies_behind_cls_and_the_earlier_ones_or_replaces_its_own():
    """Block 0: CLS a a b b b. Block 2: a takes one place, then c is new at the end, then b takes two of its three places."""
    prompts = export._prompts(layered(Layered()), {})
    assert [(layer, name, at, dropped) for layer, name, _, at, dropped in prompts] == [
        (0, "prompts.0.a", 1, 0),
        (0, "prompts.0.b", 3, 0),
        (2, "prompts.2.a", 1, 2),
        (2, "prompts.2.c", 5, 0),
        (2, "prompts.2.b", 2, 3),
    ]
    assert [tuple(value.shape) for _, _, value, *_ in prompts] == [(2, 8), (3, 8), (1, 8), (4, 8), (2, 8)]


@pytest.mark.parametrize("row", [1, 2])
def test_prompts_that_differ_for_any_image_are_not_one_tensor(row):
    method = Layered()
    method.prompts = lambda layer, p, cls, query: {"a": (torch.arange(len(cls)) == row).float()[:, None, None]}
    assert export._prompts(layered(method), {}) is None


class Chosen(Layered):
    """Prompts of a choice by query, with constants that are no parameters, infinite scores, and views of two results."""

    def prompts(self, layer: int, p: Any, cls: torch.Tensor, query: Any) -> dict[str, torch.Tensor]:
        scores = (query @ p["keys"].T).masked_fill(torch.tensor([True, False, False]), float("-inf"))
        best, at = scores.detach().max(-1)
        return {"a": p["pool"][at], "b": (cls * best[:, None])[:, None] + torch.arange(8.0).double()}


def test_the_text_of_traced_prompts_makes_the_prompts_of_each_image():
    draw = torch.Generator().manual_seed(0)
    cls, query, keys = (torch.randn(n, 8, generator=draw).double() for n in (5, 5, 3))
    p = {"keys": keys, "pool": torch.randn(3, 2, 8, generator=draw).double()}
    trace = traced(Chosen(), 0, p, cls[:1], query[:1])
    assert trace.lengths == {"a": 2, "b": 1}
    space: dict[str, Any] = {"aten": torch.ops.aten, "torch": torch}
    exec(trace.text, space)
    values = p | trace.constants
    made = torch.vmap(lambda c, q: space["prompts_at_0"](values, c[None], q[None]))(cls, query)
    expected = Chosen().prompts(0, p, cls, query)
    assert {slot: value.shape[1:] for slot, value in made.items()} == {"a": (1, 2, 8), "b": (1, 1, 8)}
    assert all(torch.allclose(made[slot][:, 0], expected[slot]) for slot in expected)
    assert (expected["a"][0] != expected["a"][1:]).any()


def test_linear_scores_become_weights_and_a_bias_with_the_log_prior():
    draw = torch.Generator().manual_seed(0)
    p = {"weight": torch.randn(3, 8, generator=draw).double(), "bias": torch.tensor([1.0, -2.0, 0.5]).double()}
    p["prior"] = torch.tensor([0.5, 0.25, 0.25]).double()
    method = Layered()
    head = export._head(layered(method), p)
    assert torch.allclose(head["head.weight"], p["weight"])
    assert torch.allclose(head["head.bias"], p["bias"] + torch.log((1 - 1e-6) * p["prior"] + 1e-6 / 3))
    method.adds_prior_in_evaluation = False
    assert torch.allclose(export._head(layered(method), p)["head.bias"], p["bias"])
    method.reads_slots = True
    with pytest.raises(export._NotPlain, match="read prompt tokens"):
        export._head(layered(method), p)


def test_timm_makes_the_backbone_that_the_run_named():
    name = "vit_base_patch16_224.augreg_in21k"
    plain = {"model_name": name, "pretrained": True, "num_classes": 0}
    vit = SimpleNamespace(fc_norm=torch.nn.Identity())
    assert export._timm_model(BackboneConfig(name=name), vit) == plain
    local = BackboneConfig(name=name, weights="w.safetensors", image_size=384)
    assert export._timm_model(local, vit) == {**plain, "pretrained": False, "img_size": 384}
    averaged = {
        "pretrained": False,
        "global_pool": "avg",
        "fc_norm": False,
    }  # timm would move the norm of its own accord
    assert export._timm_model(BackboneConfig(name=name, pool="avg"), vit) == plain | averaged
    small = export._timm_model(BackboneConfig(name="nano", image_size=32), vit)
    assert (small["model_name"], small["pretrained"], small["num_classes"]) == ("vit_tiny_patch16_224", False, 0)


@pytest.mark.parametrize(("client", "accuracy"), [(None, 0.5), (3, 0.25), (3, None)])
def test_the_readme_of_an_exported_model_says_whose_it_is_and_how_images_enter(client, accuracy):
    text = export._readme(layered(Layered()), export.Model({}, {}), client, accuracy)
    assert text.startswith(
        "# fedvpt on glyphs\n\nThis is " + ("the server's model" if client is None else "the model of client 3")
    )
    assert "after 7 rounds of the run `fedvpt-glyphs-0123`" in text
    whose = "the global" if client is None else "its own"
    assert (f"Its accuracy on {whose} test set: {accuracy or 0:.4f}\n" in text) == (accuracy is not None)
    assert "`load_model.py`: `load()` returns the model" in text
    assert "Images enter with 32 x 32 pixels" in text
    assert "mean (0.5, 0.5, 0.5) and std (0.25, 0.25, 0.25)" in text
    each = export._readme(
        layered(Layered()), export.Model({}, {}, traces={0: traced(Layered(), 0, *ONE)}), client, accuracy
    )
    assert "The prompts depend on the image; its last functions make them." in each
    assert "depend on the image" not in text
    other = export._readme(layered(Layered()), export.Model({}, {}, "it draws"), client, accuracy)
    assert other.endswith("\n\nThere is no loader for plain timm: it draws.\n")
    assert "`head.`" not in other


def test_a_run_that_is_not_done_is_refused(tmp_path, capsys):
    assert main(["export", str(tmp_path / "nothing"), "--out", str(tmp_path / "model")]) == 2
    assert "is missing, and only a run that is done can be exported" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
