"""Text prompts against their authors' loops in plain PyTorch, and the shortcuts of the text tower, which change no number."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch
import torch.nn.functional as F

from fedbench.contract.world import class_texts, task
from fedbench.data import batches
from fedbench.method import HookError
from fedbench.plan.plugins import plugins
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


def twin_trains(small, report, step_loss):
    """Train each client of `report` in plain PyTorch; yields (row, its values).

    `step_loss` (values, received, cls [B, D], y [B]) is the loss of one step; images pass through the encoder at every step.
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
            cls, y = vit.feature(small.model.images.batch(index)), small.model.labels[index]
            optimizer.zero_grad()
            step_loss(values, received, cls, y).backward()
            optimizer.step()
        yield row, values


def assert_agrees(small, step_loss):
    report = small.round(COHORT)
    for row, values in twin_trains(small, report, step_loss):
        for name, value in values.items():
            assert (report.updated[name][row] - value).abs().max() < 1e-10, name


@pytest.mark.parametrize("per_class", [False, True])
def test_promptfl_equals_the_loop_that_encodes_images_and_whole_contexts_at_every_step(per_class):
    plain = PlainCLIP()
    small = tiny.mini_run(METHOD["promptfl"](context_length=3, per_class=per_class), clip=None)

    def loss(p, received, cls, y):
        return F.cross_entropy(8.0 * plain.image(cls) @ plain.features(p["context"]).T, y)

    assert_agrees(small, loss)


def test_zero_shot_scores_are_cosines_with_the_texts_of_the_template():
    plain, small = PlainCLIP(), tiny.mini_run(METHOD["clip_zero_shot"]())
    index = torch.tensor([[3, 4, 9], [40, 1, 0]])
    logits = small.model.forward({}, index, add_prior=False).logits
    images = small.model.backbone.feature(small.model.images.batch(index.flatten()))
    torch.testing.assert_close(logits.flatten(0, 1), 8.0 * plain.image(images) @ plain.template().T)


@pytest.mark.parametrize("kept", [0, 1 << 40])
def test_passes_of_few_classes_and_texts_computed_again_change_nothing(kept, monkeypatch):
    texts = class_texts()
    contexts = torch.randn(2, 3, 16, dtype=torch.float64, requires_grad=True)
    whole = texts.features(contexts)
    weight = torch.randn_like(whole)
    (expected,) = torch.autograd.grad((whole * weight).sum(), contexts)
    monkeypatch.setattr(module, "PASS_BYTES", 1)
    monkeypatch.setattr(module, "KEPT_BYTES", kept)
    parts = texts.features(contexts)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad((parts * weight).sum(), contexts)[0], expected)


def test_a_step_runs_the_text_tower_once_and_an_evaluation_once_for_equal_contexts(monkeypatch):
    small = tiny.mini_run(METHOD["promptfl"](context_length=2), epochs=1)
    seen = []
    features = type(small.model.text)._part
    monkeypatch.setattr(type(small.model.text), "_part", lambda *a: seen.append(a[1].shape[0]) or features(*a))
    small.round(COHORT, piece=2)
    assert seen == [4, 3, 2]  # clients with a step left; their batches of 4 pass in pieces of 2
    seen.clear()
    from fedbench.run.evaluation import accuracies

    accuracies(small.model, small.server.send(torch.arange(6)), small.server.read(), small.train, chunk=4)
    assert seen == [1]


def test_contexts_that_do_not_fit_are_reported():
    small = tiny.mini_run(METHOD["promptfl"](context_length=25))
    with pytest.raises(
        HookError, match=r"contexts\(\).*25 context vectors and the class name 'blackbird' make 36 tokens"
    ):
        small.round(COHORT)

    class Wrong(METHOD["promptfl"]):
        def contexts(self, p):
            return {"context": p["context"][:, :5]}

    small = tiny.mini_run(dataclasses.replace(Wrong()))
    with pytest.raises(HookError, match=r"slot 'context': expected \[P, D_text\] or \[C, P, D_text\]"):
        small.round(COHORT)


def test_the_cost_of_texts_is_counted_once_a_step():
    from fedbench.run.cost import image_cost

    small = tiny.mini_run(METHOD["promptfl"](context_length=3))
    counted = image_cost(small.model.method, small.server.spec, small.model.backbone, "none", class_texts().cost())
    lengths = [len(name) + 3 + 3 for name in class_texts().names]  # start, name, period, end, and the contexts
    linear = sum(2 * 12 * n * 16**2 for n in lengths)
    attention = sum(2 * 2 * n**2 * 16 for n in lengths)
    projection = 5 * 16 * 12
    assert counted.text == 2 * (linear + projection) + 3 * attention
    assert counted.training == 0
    assert task().text_width == 16
