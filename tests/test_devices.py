"""What a GPU needs, tested without one: hooks outside autocast, no host reads inside a step, few copies."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, replace

import numpy as np
import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedbench.bench.cases import CASES, World
from fedbench.contract.rounds import COHORT
from fedbench.contract.world import CLIENTS
from fedbench.method import Method, Param, linear_head, only_if, tokens
from fedbench.run import evaluation, local, meter, pack
from fedbench.run.client_optimizer import Recipe
from fedbench.run.experiment import Training
from fedbench.run.meter import SharedClock
from fedbench.vit import images as images_module
from fedbench.vit.images import Images

PRECISE = torch.float32


def check_hook(*values):
    """Fail inside autocast, and for any floating-point argument in another precision than the run's."""
    assert not torch.is_autocast_enabled("cpu")
    leaves = torch.utils._pytree.tree_leaves(values)
    wrong = {leaf.dtype for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()} - {PRECISE}
    assert not wrong


CALLED: set[str] = set()


@dataclass(frozen=True)
class EveryHook(Method):
    """A method with every hook of a training step; each checks its arguments."""

    own_weights: bool = False

    @property
    def uses_query(self):
        return True

    def params(self, task):
        start = task.prompt_init("prompt", 2, task.width)
        border = torch.zeros(3, task.image_size, task.image_size)
        return {"prompt": Param(start), "border": Param(border), "scale": Param(torch.ones(()))} | linear_head(task)

    def layers(self, depth):
        return (0, 2)

    def taps(self, depth):
        return (1,)

    def prompts(self, layer, p, cls, query):
        CALLED.add("prompts")
        check_hook(p, cls, query)
        return {"prompt": tokens(p["prompt"] * (1 + layer), cls) + cls[:, None] @ torch.eye(cls.shape[1])}

    def logits(self, p, out):
        CALLED.add("logits")
        check_hook(p, out)
        return super().logits(p, out)

    def pixels(self, p, images):
        CALLED.add("pixels")
        check_hook(p, images)
        return images + p["border"]

    @only_if(lambda self: self.own_weights)
    def backbone_weights(self, p, frozen):
        CALLED.add("backbone_weights")
        check_hook(p, frozen)
        return {name: value * p["scale"] for name, value in frozen.items() if name.endswith("attn.qkv.weight")}

    def extra_loss(self, p, received, out, query):
        CALLED.add("extra_loss")
        check_hook(p, received, out, query)
        return out["cls"].square().mean(-1) + 0 * p["scale"]

    def observe(self, p, taps, query, y, weight):
        CALLED.add("observe")
        check_hook(p, taps, query, weight)
        return {"tap": weight @ taps[1]}

    def steer(self, p, step):
        CALLED.add("steer")
        check_hook(p, step)
        return dict(step)


@pytest.mark.parametrize("mode", ["stacked", "loop"])
@pytest.mark.parametrize("own_weights", [False, True])
def test_hooks_run_outside_autocast_in_full_precision(mode, own_weights):
    small = tiny.mini_run(EveryHook(own_weights=own_weights), tiny.AGGREGATIONS["fedprox"], dtype=PRECISE)
    small.report_statistics(range(tiny.CLIENTS))
    CALLED.clear()
    updates = small.round(COHORT, model=replace(small.model, autocast=True, mode=mode))
    expected = {"prompts", "logits", "pixels", "extra_loss", "observe", "steer"}
    assert expected | ({"backbone_weights"} if own_weights else set()) == CALLED
    plain = small.round(COHORT, model=replace(small.model, mode=mode))
    difference = (updates.updated["prompt"] - plain.updated["prompt"]).abs().max()
    assert 0 < difference < 0.05  # the backbone runs in bfloat16


def test_sgpt_counts_the_groups_that_it_uses_in_bfloat16(monkeypatch):
    """Prompts and counts choose from the same cosines, so they agree to the last sample."""
    method = tiny.METHODS["sgpt"]
    small = tiny.mini_run(method, dtype=PRECISE, batch_size=12)
    small = replace(small, trainer=replace(small.trainer, model=replace(small.model, autocast=True, mode="loop")))
    choices = []
    choose = type(method).choose

    def recorded(self, p, query):
        chosen, cosine = choose(self, p, query)
        choices.append((chosen.clone(), cosine.detach().clone()))
        return chosen, cosine

    monkeypatch.setattr(type(method), "choose", recorded)
    small.round((4,))
    assert len(choices) == 6  # two epochs of one batch, in the second phase: prompts, extra_loss and observe
    for step in (choices[:3], choices[3:]):
        for chosen, cosine in step:
            assert cosine.dtype == PRECISE
            assert torch.equal(chosen, step[0][0])
            assert torch.equal(cosine, step[0][1])


META = torch.device("meta")


def moved_text(text):
    """Class texts on the meta device."""
    if text is None:
        return None
    tower, projection = copy.deepcopy(text.side.tower).to(META), text.side.projection.to(META)
    side = replace(text.side, tower=tower, projection=projection, scale=text.side.scale.to(META))
    tensors = {name: getattr(text, name).to(META) for name in ("start", "words", "at", "template")}
    return replace(text, side=side, **tensors)


@pytest.fixture
def on_meta(monkeypatch):
    """{name: MiniRun} -> its stacked model on the meta device, whose tensors have no values: any host read raises there."""
    autocast = torch.autocast
    # autocast knows no meta device; it is not what these tests are about
    monkeypatch.setattr(torch, "autocast", lambda device, *args, **options: autocast("cpu", *args, **options))

    def moved(small, size=16):
        model = small.model
        backbone = copy.deepcopy(model.backbone).to(META)
        source = model.images.source
        images = Images(source, size, backbone.mean, backbone.std, META, model.images.dtype)
        features = None if model.features is None else model.features.to(META)
        labels, text = model.labels.to(META), moved_text(model.text)
        return replace(model, backbone=backbone, images=images, labels=labels, features=features, text=text)

    return moved


def train_on_meta(small, model, clients=COHORT, **local):
    """Local training of `clients` on the meta device; only what the server sends comes from real values."""
    trainer = replace(small.trainer, model=model)
    batches = small.batches(clients)
    received = {n: v.to(META) for n, v in small.server.send(torch.from_numpy(batches[0].clients)).items()}
    read = {n: v.to(META) for n, v in small.server.read().items()}
    return trainer.train(received, read, batches, Recipe(trainer.local.lr, trainer.local.clip))


TRAINED = [name for name, method in tiny.METHODS.items() if tiny.mini_run(method).trainer.phases]


# With its default options and augmentation, every method but the longest is a fast test.
LONG = ("fedmgp", "full_finetune", "lora")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "-" in name or name in LONG else name for name in TRAINED]
)
@pytest.mark.parametrize("augment", [pytest.param("none", marks=pytest.mark.slow), "crop_flip"])
def test_a_step_reads_nothing_back_and_mixes_no_devices(name, augment, on_meta):
    """With resident images, local training of every method runs on tensors without values."""
    small = tiny.mini_run(tiny.METHODS[name], augment=augment)
    small.report_statistics(range(CLIENTS))
    updates = train_on_meta(small, on_meta(small))
    for key, value in updates.updated.items():
        assert value.device == META, key
        assert value.shape == updates.received[key].shape


@pytest.mark.parametrize("name", list(tiny.AGGREGATIONS))
def test_a_step_with_an_aggregation_reads_nothing_back(name, on_meta):
    small = tiny.mini_run(tiny.METHODS["fedvpt"], tiny.AGGREGATIONS[name])
    assert train_on_meta(small, on_meta(small)).loss.device == META


def test_a_planted_host_read_is_seen_on_the_meta_device(monkeypatch, on_meta):
    """Otherwise the tests above would prove nothing."""
    masked_sum = local.masked_sum
    monkeypatch.setattr(local, "masked_sum", lambda values, weight: masked_sum(values, weight * weight.max().item()))
    small = tiny.mini_run(tiny.METHODS["fedvpt"])
    with pytest.raises(RuntimeError, match="meta tensors"):
        train_on_meta(small, on_meta(small))


def test_source_images_stay_on_the_device_if_resized_ones_are_too_many(monkeypatch, on_meta):
    """57 images of 16 px fit, and at 64 px they do not: the device resizes each batch, without reading the index back."""
    small = tiny.mini_run(tiny.METHODS["head_only"])
    source = small.model.images.source
    monkeypatch.setattr(images_module, "RESIDENT_BYTES", source.nbytes)
    large = Images(source, 64, (0.5,) * 3, (0.5,) * 3, META, torch.float32)
    assert large.resident
    assert large.pixels is None
    assert large.raw.shape == (len(source), 3, 16, 16)
    assert large.batch(torch.arange(5, device=META)).shape == (5, 3, 64, 64)
    monkeypatch.setattr(images_module, "RESIDENT_BYTES", source.nbytes - 1)
    streamed = Images(source, 64, (0.5,) * 3, (0.5,) * 3, META, torch.float32)
    assert not streamed.resident
    assert streamed.batch(torch.arange(5)).shape == (5, 3, 64, 64)  # the index is on the host
    with pytest.raises(NotImplementedError):
        streamed.batch(torch.arange(5, device=META))


def test_resizing_on_the_device_gives_the_images_of_the_host(monkeypatch):
    """The path of a GPU, on a CPU that is called something else."""
    source = np.random.default_rng(0).integers(0, 256, (9, 12, 12, 3), dtype=np.uint8)
    expected = Images(source, 32, (0.5,) * 3, (0.4,) * 3, torch.device("cpu"), torch.float64)
    device_path = Images(source, 32, (0.5,) * 3, (0.4,) * 3, torch.device("cpu"), torch.float64)
    device_path.pixels, device_path.raw = None, torch.from_numpy(source).permute(0, 3, 1, 2)
    index = torch.tensor([4, 0, 8])
    assert torch.equal(device_path.batch(index), expected.batch(index))


def test_streamed_images_are_trained_without_reading_the_index_back(monkeypatch, on_meta):
    monkeypatch.setattr(images_module, "RESIDENT_BYTES", 0)
    small = tiny.mini_run(tiny.METHODS["pep_fedpt"])  # reads the prompt-free features too
    small.report_statistics(range(CLIENTS))
    model = on_meta(small)
    assert not model.images.resident
    assert train_on_meta(small, model).loss.device == META


class Copies(TorchDispatchMode):
    """Counts copies from the host to the meta device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        outputs = [leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        inputs = [leaf for leaf in torch.utils._pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        self.count += any(leaf.is_meta for leaf in outputs) and any(not leaf.is_meta for leaf in inputs)
        return result


@pytest.mark.parametrize("name", ["fedvpt", "pep_fedpt", "lora"])
def test_an_evaluation_sends_its_index_once_and_reads_back_once(name, on_meta, monkeypatch):
    small = tiny.mini_run(tiny.METHODS[name])
    small.report_statistics(range(CLIENTS))
    model = on_meta(small)
    values = {n: v.to(META) for n, v in small.server.send(torch.arange(CLIENTS)).items()}
    read = {n: v.to(META) for n, v in small.server.read().items()}
    reads = []
    monkeypatch.setattr(
        torch.Tensor, "cpu", lambda self: (reads.append(self), torch.zeros(self.shape, dtype=self.dtype))[1]
    )
    for chunk in (4, 100):
        reads.clear()
        with Copies() as copies:
            evaluation.accuracies(model, values, read, small.train, chunk)
        assert copies.count == 2  # sample numbers; clients and lengths
        assert len(reads) == 1


@pytest.mark.parametrize("name", ["full_finetune", "lora"])
def test_an_evaluation_copies_no_backbone_weights(name, monkeypatch):
    """However many pieces a client's samples make, each pass gets a view of the client's values."""
    monkeypatch.setattr(evaluation, "PIECE", 2)
    small = tiny.mini_run(tiny.METHODS[name])
    values = small.server.send(torch.arange(CLIENTS))
    places = {value.untyped_storage().data_ptr() for value in values.values()}
    forward = type(small.model).forward
    passes = []

    def recorded(self, p, index, *args):
        passes.append(len(index))
        assert {value.untyped_storage().data_ptr() for name, value in p.items() if name in values} == places
        return forward(self, p, index, *args)

    monkeypatch.setattr(type(small.model), "forward", recorded)
    measured = evaluation.accuracies(small.model, values, small.server.read(), small.train, chunk=8)
    assert len(passes) > CLIENTS
    monkeypatch.setattr(evaluation, "PIECE", 32)
    whole = evaluation.accuracies(small.model, values, small.server.read(), small.train, chunk=8)
    assert measured.right.tolist() == whole.right.tolist()
    assert measured.count.tolist() == [len(part) for part in small.train]


def test_a_pack_reads_its_clock_when_the_device_is_idle(monkeypatch):
    """On a GPU, calls return before their work is done: 7 s of work in a queue belong to the runs that are trained."""
    now, queued = [0.0], [5.0]  # 5 s of earlier work, which belongs to nobody here

    def synchronise(device):
        now[0], queued[0] = now[0] + queued[0], 0.0

    class Queued(Training):
        def train(self):
            queued[0] += 7.0
            return "updates"

    monkeypatch.setattr(pack, "wait", synchronise)
    monkeypatch.setattr(pack.time, "monotonic", lambda: now[0])
    fields = {field.name: None for field in dataclasses.fields(Training)}
    clock = SharedClock()
    clock.seconds = 0.0
    training = Queued(**fields | {"clients": torch.arange(3), "samples": [4, 4, 4], "batches": ()})
    monkeypatch.setattr(pack, "_similar", id)
    monkeypatch.setattr(pack, "_train_distinct", lambda trainings, stack: [each.train() for each in trainings])
    assert pack.train_together([training], [clock]) == ["updates"]
    assert clock.seconds == 7.0


def test_waiting_for_a_device_synchronises_a_gpu_only(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    meter.wait(torch.device("cpu"))
    meter.wait(torch.device("cuda", 1))
    assert waited == [torch.device("cuda", 1)]


class Casts(TorchDispatchMode):
    """Counts casts of `tensors` to another precision."""

    def __init__(self, tensors):
        super().__init__()
        self.places, self.count = {tensor.data_ptr() for tensor in tensors}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket is torch.ops.aten._to_copy:
            self.count += args[0].data_ptr() in self.places
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["fedvpt", "pep_fedpt"])
def test_bfloat16_copies_of_frozen_weights_spare_their_casts_and_change_no_bit(name):
    small = tiny.mini_run(tiny.METHODS[name], dtype=PRECISE)
    small.report_statistics(range(CLIENTS))
    backbone = small.model.backbone
    copied = backbone.with_products_in(torch.bfloat16)
    assert backbone.weights_hash() == tiny.backbone(PRECISE).weights_hash()  # the original is as it was
    with Casts(backbone.parameters()) as before:
        cast = small.round(COHORT, model=replace(small.model, autocast=True))
    with Casts(copied.parameters()) as after:
        kept = small.round(COHORT, model=replace(small.model, backbone=copied, autocast=True))
    assert before.count > 0
    assert after.count == 0
    for key, value in cast.updated.items():
        assert torch.equal(value, kept.updated[key]), key


@pytest.mark.parametrize(
    ("method", "precision", "copied"),
    [("fedvpt", "bfloat16", True), ("lora", "bfloat16", False), ("fedvpt", "float32", False)],
)
def test_runs_in_bfloat16_share_one_copy_of_the_frozen_weights(method, precision, copied, tmp_path):
    """LoRA trains on top of the weights, which stay in float32 for it."""
    world = World.make(CASES["smoke@16"], tmp_path)
    first, second = (world.experiment({"name": method}, tiny.plugins(), "cpu", precision) for _ in range(2))
    assert first.model.backbone is second.model.backbone
    weight = first.model.backbone.vit.blocks[0].mlp.fc1.weight
    assert weight.dtype == (torch.bfloat16 if copied else torch.float32)
    assert first.model.backbone.vit.blocks[0].norm1.weight.dtype == torch.float32
    assert first.facts.backbone_hash == second.facts.backbone_hash
