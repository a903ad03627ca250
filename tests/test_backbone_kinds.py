"""Backbones that are read by the mean of patch tokens or by attention pooling, and rotary ones: as timm computes them."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from safetensors.torch import save_file
from test_export import BASE, accuracy, loaded, noise
from test_extension import done
from test_pretended_gpu import assert_equal, counted, experiment, outcome, world  # noqa: F401
from tiny import METHODS, mini_run
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fedbench.cli.main import main
from fedbench.plan.config import RunConfig
from fedbench.plan.identity import identity_of
from fedbench.run import cost
from fedbench.vit import backbone
from fedbench.vit.backbone import Backbone, BackboneError
from fedbench.vit.supported import why_not

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 0}
PATCHES, WIDTH, DEPTH, MIDDLE = 16, 32, 4, 2
KINDS = {
    "CLS": ("vit_base_patch16_224", {}),
    "mean beside CLS, then norm (MAE fine-tuned)": ("vit_base_patch16_224", {"global_pool": "avg"}),
    "mean beside CLS after the norm": ("vit_base_patch16_224", {"global_pool": "avg", "fc_norm": False}),
    "mean without CLS": ("vit_medium_patch16_gap_240", {}),
    "mean without CLS, registers": ("vit_medium_patch16_reg4_gap_256", {}),
    "attention pooling (SigLIP)": ("vit_base_patch16_siglip_224", {}),
    "attention pooling, approximate GELU (SigLIP 2)": ("vit_giantopt_patch16_siglip_256", {}),
    "DINOv3": ("vit_small_patch16_dinov3", {}),
    "DINOv3 read at CLS": ("vit_small_patch16_dinov3", {"global_pool": "token"}),
    "DINOv3 with biases": ("vit_small_patch16_dinov3_qkvb", {}),
    "DINOv3 with SwiGLU": ("vit_small_plus_patch16_dinov3", {}),
    "rotary, register": ("vit_base_patch16_rope_reg1_gap_256", {}),
    "rotary with learnt frequencies": ("vit_small_patch16_rope_mixed_224", {}),
    "EVA-02 (gated, packed)": ("eva02_tiny_patch14_224", {}),
    "EVA-02 (separate projections, norm in the MLP)": ("eva02_base_patch14_224", {}),
}
FEW = ("mean beside CLS, then norm (MAE fine-tuned)", "attention pooling (SigLIP)", "DINOv3 with SwiGLU")
FAST = (*FEW, "mean without CLS, registers", "DINOv3 read at CLS", "EVA-02 (separate projections, norm in the MLP)")
PLAIN = tuple(kind for kind in KINDS if kind.startswith(("CLS", "mean beside", "attention pooling (SigLIP)")))
SLOW = pytest.mark.slow
EVERY = [kind if kind in FAST else pytest.param(kind, marks=SLOW) for kind in KINDS]


def foreign(kind, dtype=torch.float64):
    """timm's model of this kind, small, with random values of which every one matters."""
    name, options = KINDS[kind]
    torch.manual_seed(4)
    vit = timm.create_model(name, **SMALL | options)
    for value in vit.parameters():
        torch.nn.init.normal_(value, std=0.3)
    return vit.to(dtype).eval()


def backbone_of(kind, shortcuts=True, dtype=torch.float64):
    return Backbone(foreign(kind, dtype), (0.5,) * 3, (0.5,) * 3, shortcuts)


def images_of(count, dtype=torch.float64):
    return torch.randn(count, 3, 32, 32, dtype=dtype, generator=torch.Generator().manual_seed(1))


def through_timm(vit, images, enter, keeps=True):
    """timm's own blocks and head, and the mean patch or CLS before each block.

    ``enter(layer)``: prompts [P, D], which follow timm's prefix tokens and replace earlier ones. With `keeps` False, each
    block's prompts are dropped after it.
    """
    prefix, eva = vit.num_prefix_tokens, hasattr(vit, "rope")
    x, rope = vit._pos_embed(vit.patch_embed(images)) if eva else (vit._pos_embed(vit.patch_embed(images)), None)
    x, length, means = vit.norm_pre(x), 0, []
    for layer, block in enumerate(vit.blocks):
        means.append(x[:, 0] if vit.global_pool == "token" else x[:, prefix + length :].mean(1))
        if (new := enter(layer)) is not None:
            x = torch.cat([x[:, :prefix], new.expand(len(x), -1, -1), x[:, prefix + length :]], 1)
            length = len(new)
        if eva:
            block.attn.num_prefix_tokens = prefix + length  # timm rotates the tokens after these
            x = block(x, rope=rope if rope is None or not vit.rope_mixed else rope[layer])
        else:
            x = block(x)
        if not keeps:
            x, length = torch.cat([x[:, :prefix], x[:, prefix + length :]], 1), 0
    final = vit.norm(x)
    final = torch.cat([final[:, :prefix], final[:, prefix + length :]], 1)
    return vit.forward_head(final, pre_logits=True), means


@pytest.mark.parametrize("kind", KINDS)
def test_the_feature_is_what_timms_head_reads(kind):
    vit, images = foreign(kind), images_of(3)
    tokens = vit.forward_features(images)
    expected = vit.forward_head(tokens, pre_logits=True)
    for shortcuts in (True, False):
        made = backbone_of(kind, shortcuts)
        torch.testing.assert_close(made(images)[0]["cls"], expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(made.feature(images), expected, rtol=0, atol=1e-10)
    assert made.tokens == tokens.shape[1]


PROMPTED = {"shallow": (0,), "deep": (0, 1, 2, 3), "middle": (MIDDLE,)}


@pytest.mark.parametrize("blocks", PROMPTED)
@pytest.mark.parametrize("kind", EVERY)
def test_prompted_features_gradients_and_summaries_are_those_of_timms_blocks(kind, blocks):
    """Prompts are unrotated prefix tokens that pooling leaves out, and hooks see CLS or the mean patch of each block."""
    layers, images = PROMPTED[blocks], images_of(2)
    made, vit = backbone_of(kind), foreign(kind)
    assert made.uses_fast_blocks == (kind in PLAIN)
    weight = torch.linspace(-1, 1, 2 * WIDTH, dtype=torch.float64).view(2, WIDTH)
    draw = torch.randn(DEPTH, 3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours, theirs = draw.clone().requires_grad_(), draw.clone().requires_grad_()
    seen = {}

    def prompts_at(layer, cls):
        seen[layer] = cls
        return {"prompt": ours[layer].expand(len(cls), -1, -1)}

    read, taps = made(images, layers, prompts_at, taps=(1,), patches_read=blocks == "middle")
    expected, means = through_timm(vit, images, lambda layer: theirs[layer] if layer in layers else None)
    for value, other in [(read["cls"], expected), (taps[1], means[1]), *((seen[i], means[i]) for i in layers)]:
        torch.testing.assert_close(value, other, rtol=0, atol=1e-9)
    (gradient,) = torch.autograd.grad((read["cls"] * weight).sum(), ours)
    torch.testing.assert_close(
        gradient, torch.autograd.grad((expected * weight).sum(), theirs)[0], rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("kind", EVERY)
def test_prefixes_act_as_tokens_that_a_block_sees_and_drops(kind):
    """The keys and values of a token, given as prefixes, are what attention makes of that token."""
    made, vit, images = backbone_of(kind), foreign(kind), images_of(2)
    tokens = torch.randn(3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def prefixes_at(layer, entering):
        block, attn = vit.blocks[layer], vit.blocks[layer].attn
        normed = block.norm1(tokens)
        if attn.qkv is None:
            keys, values = attn.k_proj(normed), attn.v_proj(normed)
        else:
            _, keys, values = attn.qkv(normed).chunk(3, -1)
            values = values if getattr(attn, "v_bias", None) is None else values + attn.v_bias
        return {name: value.expand(len(entering), -1, -1) for name, value in (("keys", keys), ("values", values))}

    layers = tuple(range(DEPTH))
    read, _ = made(images, layers, prefixes_at=prefixes_at)
    expected, _ = through_timm(copy.deepcopy(vit), images, lambda layer: tokens, keeps=False)
    torch.testing.assert_close(read["cls"], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", EVERY)
def test_slots_and_patches_are_those_after_timms_norms_without_registers(kind):
    made, vit, images = backbone_of(kind), foreign(kind), images_of(2)
    prompt = torch.ones(2, 3, WIDTH, dtype=torch.float64)
    read, _ = made(images, (0,), lambda layer, cls: {"prompt": prompt}, patches_read=True)
    tokens = {}
    vit.norm.register_forward_hook(lambda module, inputs, output: tokens.update(final=output))
    through_timm(vit, images, lambda layer: prompt[0] if layer == 0 else None)
    expected = vit.fc_norm(tokens["final"])[:, vit.num_prefix_tokens :]
    torch.testing.assert_close(read["prompt"], expected[:, :3], rtol=0, atol=1e-9)
    torch.testing.assert_close(read["patches"], expected[:, 3:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", EVERY)
def test_the_query_after_a_middle_block_is_the_normed_summary(kind):
    vit, images = foreign(kind), images_of(2)
    tokens = []
    vit.blocks[2].register_forward_hook(lambda module, inputs, output: tokens.append(output))
    vit.forward_features(images)
    normed = vit.norm(tokens[0])
    middle = normed[:, 0] if vit.global_pool == "token" else normed[:, vit.num_prefix_tokens :].mean(1)
    torch.testing.assert_close(backbone_of(kind).feature(images, after=2), vit.fc_norm(middle), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", FEW)
def test_a_pass_from_cached_tokens_goes_on_as_the_whole_pass(kind):
    made, images = backbone_of(kind), images_of(2)
    enter = lambda layer, cls: {"prompt": torch.ones(2, 3, WIDTH, dtype=torch.float64)}  # noqa: E731
    tokens = made.entering(images, MIDDLE)
    assert tokens.shape[1] == made.tokens
    rest = made(backbone.PartialPass(MIDDLE, tokens), (MIDDLE,), enter)[0]["cls"]
    torch.testing.assert_close(rest, made(images, (MIDDLE,), enter)[0]["cls"], rtol=0, atol=1e-10)


# -- rounds and costs ------------------------------------------------------------------------------------------------------
def small_run(kind, method, dtype=torch.float64):
    small = mini_run(METHODS[method], dtype=dtype, vit=backbone_of(kind, dtype=dtype), epochs=1)
    small.report_statistics(range(6))
    return small


@pytest.mark.parametrize(
    "method", ["fedvpt", "fedvpt_deep", "pep_fedpt", pytest.param("pep_fedpt-query=inject", marks=SLOW)]
)
@pytest.mark.parametrize("kind", FEW)
def test_a_round_trains_and_its_arithmetic_is_that_which_torch_counts(kind, method):
    small = small_run(kind, method)
    small.model.backbone.uses_fast_blocks = False
    model, client, samples = small.model, 2, 12
    batches = small.batches([client])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        updates = small.round([client], batches=batches)
    ours = cost.training(model.method, model.spec, model.backbone)
    assert samples * ours == pytest.approx(counter.get_total_flops() / 2, rel=0.01)
    before = small.server.send(torch.tensor([client]))
    for name, value in updates.updated.items():
        assert value.isfinite().all()
        assert not model.spec[name].trains or not torch.equal(value[0], before[name][0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", FEW)
def test_every_method_trains_on_every_kind_and_its_arithmetic_is_counted(kind):
    """LoRA's products and IFCA's comparisons are not part of `training`; a method that trains the head alone has few."""
    wrong = {}
    for name in (n for n, method in METHODS.items() if not method.reads_text and "-" not in n):
        small = small_run(kind, name)
        model = small.model
        model.backbone.uses_fast_blocks = False
        if small.trainer.phases:
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                updates = small.round([2])
            small.server.merge(updates)
            counted = 12 * cost.training(model.method, model.spec, model.backbone) / (counter.get_total_flops() / 2)
            if counted != pytest.approx(1, rel=0.02) and name not in ("ifca", "head_only"):
                wrong[name] = counted
        values = small.server.send(torch.tensor([0, 2])) | small.server.read()
        with torch.no_grad():
            assert model.forward(values, torch.arange(8).view(2, 4), add_prior=False).logits.isfinite().all(), name
    assert wrong == {}


def test_the_arithmetic_of_dinov3_with_swiglu_is_that_of_a_count_by_hand():
    """P prompts at the input of 4 blocks: 1 CLS, 4 registers, 16 patches of 8 px; SwiGLU of width 128 has three products."""
    small = small_run("DINOv3 with SwiGLU", "fedvpt")
    tokens = 1 + 4 + PATCHES + small.model.method.prompt_length
    block = 4 * tokens * WIDTH**2 + 2 * tokens**2 * WIDTH + 3 * tokens * WIDTH * 128
    counted = cost.one_pass(small.model.method, small.model.spec, small.model.backbone)
    assert counted.forward == PATCHES * 3 * 8**2 * WIDTH + DEPTH * block
    assert counted.backward == DEPTH * (block + 2 * tokens**2 * WIDTH)


def test_the_arithmetic_of_siglip_is_that_of_a_count_by_hand():
    """Attention pooling has one query and the keys and values of the 16 patches; prompts are not among them."""
    small = small_run("attention pooling (SigLIP)", "fedvpt")
    tokens = PATCHES + small.model.method.prompt_length
    block = 4 * tokens * WIDTH**2 + 2 * tokens**2 * WIDTH + 2 * tokens * WIDTH * 128
    pool = 2 * PATCHES * WIDTH**2 + WIDTH**2 + 2 * PATCHES * WIDTH + WIDTH**2 + 2 * WIDTH * 128
    counted = cost.one_pass(small.model.method, small.model.spec, small.model.backbone)
    assert counted.forward == PATCHES * 3 * 8**2 * WIDTH + DEPTH * block + pool


@pytest.mark.parametrize("kind", FEW)
def test_kept_bytes_are_those_that_autograd_keeps(kind):
    """The difference between 12 and 4 images, so that values and constants do not count."""
    small = small_run(kind, "fedvpt", torch.float32)
    model = small.model
    model.backbone.uses_fast_blocks = False
    parameters = {value.untyped_storage().data_ptr() for value in model.backbone.parameters()}

    def kept(count):
        storages = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                storages[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        values = small.server.send(torch.tensor([2]))
        values = {n: v.requires_grad_(model.spec[n].trains) for n, v in values.items()} | small.server.read()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.forward(values, torch.arange(count)[None], add_prior=False)
        return sum(size for size, _ in storages.values())

    counted = cost.one_pass(model.method, model.spec, model.backbone).kept_bytes("float32")
    assert counted == pytest.approx((kept(12) - kept(4)) / 8, rel=0.1)


# -- weights, pooling and refusals -----------------------------------------------------------------------------------------
@pytest.fixture
def small_models(monkeypatch):
    """timm's models in the sizes of `SMALL` wherever the backbone creates them."""
    create = timm.create_model

    def create_small(model_name, pretrained=False, **options):
        return create(model_name, pretrained=pretrained, **SMALL | options)

    monkeypatch.setattr(timm, "create_model", create_small)


@pytest.mark.parametrize(
    "kind", ["mean without CLS, registers", "attention pooling (SigLIP)", *(k for k in KINDS if "DINOv3 w" in k)]
)
def test_a_file_with_the_weights_of_each_kind_is_read_and_one_without_a_tensor_names_it(kind, small_models, tmp_path):
    vit, path = foreign(kind, torch.float32), tmp_path / "w.safetensors"
    save_file(vit.state_dict(), path)
    name, images = KINDS[kind][0], images_of(2, torch.float32)
    made = backbone.make(name, path)
    expected = vit.forward_head(vit.forward_features(images), pre_logits=True)
    torch.testing.assert_close(made(images)[0]["cls"], expected, rtol=1e-4, atol=1e-4)
    lost = next(key for key in vit.state_dict() if key.endswith("blocks.1.attn.proj.weight"))
    save_file({key: value for key, value in vit.state_dict().items() if key != lost}, path)
    for load in (lambda: backbone.make(name, path), lambda: backbone.architecture(name, weights=path)):
        with pytest.raises(BackboneError, match=rf"1 tensors missing \['{lost}'\]"):
            load()


REFUSED = [
    ("vit_pe_core_tiny_patch16_384", {}, "its pooling is 'map'"),
    ("vit_small_patch16_dinov3", {"use_post_norm": True}, "its blocks are EvaBlockPostNorm, not timm's EvaBlock"),
    (
        "vit_small_patch16_dinov3",
        {"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 1},
        "its heads share keys and values",
    ),
    ("vit_small_patch16_dinov3", {"use_rot_pos_emb": False}, "it has no position embeddings"),
    ("vit_base_patch16_224", {"global_pool": "max"}, "its pooling is 'max'"),
    ("vit_base_patch16_224", {"global_pool": "prr"}, "its pooling is 'prr'"),
    ("vit_base_patch16_224", {"global_pool": "avg", "pool_include_prefix": True}, "its pooling reads prefix tokens"),
    ("vit_base_patch16_224", {"pos_embed": "none"}, "it has no absolute position embeddings"),
    ("beit_base_patch16_224", {}, "it is of the class Beit"),
]


@pytest.mark.parametrize(("name", "options", "reason"), REFUSED)
def test_a_form_that_is_not_supported_is_refused_with_its_reason(name, options, reason):
    with torch.device("meta"):
        assert why_not(timm.create_model(name, **SMALL | options)).startswith(reason)


def test_pool_changes_how_a_model_is_read_and_leaves_its_norm_where_the_file_has_it(small_models, tmp_path):
    """A pretrained masked autoencoder has its norm before the mean, a fine-tuned one behind it (``fc_norm``)."""
    images = images_of(2, torch.float32)
    for kind in ("mean beside CLS, then norm (MAE fine-tuned)", "mean beside CLS after the norm"):
        vit, path = foreign(kind, torch.float32), tmp_path / "w.safetensors"
        save_file(vit.state_dict() | {"mask_token": torch.ones(1, 1, 8)}, path)
        made = backbone.make("vit_base_patch16_224", path, pool="avg")
        expected = vit.forward_head(vit.forward_features(images), pre_logits=True)
        torch.testing.assert_close(made(images)[0]["cls"], expected, rtol=1e-4, atol=1e-4)
        assert backbone.architecture("vit_base_patch16_224", weights=path, pool="avg").readout.pool == "avg"
    assert made.weights_hash() != backbone.make("vit_base_patch16_224", path).weights_hash()  # caches must not mix


def test_runs_keep_their_names_unless_they_choose_a_pooling():
    blocks = [{"name": "nano"}, {"name": "nano", "pool": "avg"}]
    plugin_blocks = {kind: {"name": "any"} for kind in ("dataset", "partition", "method")}
    plain, chosen = (identity_of(RunConfig(backbone=block, **plugin_blocks))["backbone"] for block in blocks)
    assert "pool" not in plain
    assert chosen == plain | {"pool": "avg"}


def test_an_official_dinov3_checkpoint_is_read_under_its_names(small_models, tmp_path):
    """Its registers are storage tokens, its layer scales are modules, and the mask token and the periods are left out."""
    vit, path = foreign("DINOv3", torch.float32), tmp_path / "dinov3.pth"
    names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    state = {}
    for key, value in vit.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        state[key] = value
    torch.save(state | {"mask_token": torch.ones(1, WIDTH), "rope_embed.periods": torch.ones(4)}, path)
    images = images_of(2, torch.float32)
    made = backbone.make("vit_small_patch16_dinov3", path)
    torch.testing.assert_close(made(images)[0]["cls"], vit.forward_head(vit.forward_features(images), True))


@pytest.mark.parametrize("kind", [*FEW[::2], pytest.param(FEW[1], marks=SLOW)])
def test_a_run_by_a_sweep_file_trains_and_its_export_has_its_accuracy_in_plain_timm(kind, small_models, tmp_path):
    """The prompts of every block, the cached tokens of a middle block (`pep_fedpt`), and the file of weights."""
    name, options = KINDS[kind]
    save_file(foreign(kind, torch.float32).state_dict(), tmp_path / "w.safetensors")
    block = {"name": name, "weights": str(tmp_path / "w.safetensors"), "pool": options.get("global_pool")}
    images, labels, is_test = noise(tmp_path)
    run = done(tmp_path / "results", tmp_path, **(BASE | {"method": {"name": "fedvpt_deep"}, "backbone": block}))
    assert main(["export", str(run.path), "--out", str(tmp_path / "model")]) == 0
    ours = accuracy(loaded(tmp_path / "model"), tmp_path / "model", images[is_test], labels[is_test])
    assert ours == pytest.approx(run.records()[-1]["global_accuracy"], abs=1.01 / is_test.sum())
    mixed = {"name": "pep_fedpt", "prompt_length": 0}
    run = done(tmp_path / "results", tmp_path, **(BASE | {"rounds": 1, "method": mixed, "backbone": block}))
    assert list((tmp_path).rglob(f"*-block{MIDDLE}"))


@pytest.mark.parametrize(
    "kind", [FEW[2], *(pytest.param(k, marks=SLOW) for k in (FEW[1], "rotary with learnt frequencies"))]
)
def test_on_a_gpu_a_run_has_the_cpus_numbers_and_waits_in_no_step(kind, small_models, world):  # noqa: F811
    """The rotations of DINOv3 are made on the host, but only once."""
    save_file(foreign(kind, torch.float32).state_dict(), world.root / "kind.safetensors")
    backbone_ = {"name": KINDS[kind][0], "weights": str(world.root / "kind.safetensors")}
    content = {"method": "pep_fedpt", "backbone": backbone_}
    actual, _, waits_in_steps = counted(world, "float32", **content)
    assert not waits_in_steps
    assert_equal(actual, outcome(experiment(world, "cpu", precision="float32", **content)))


def test_lora_says_that_it_needs_a_joint_projection():
    vit = backbone_of("EVA-02 (separate projections, norm in the MLP)")
    with pytest.raises(ValueError, match="the backbone has no joint projection of queries, keys and values"):
        mini_run(METHODS["lora"], vit=vit)
    assert (
        mini_run(METHODS["lora"], vit=backbone_of("DINOv3 with SwiGLU"), epochs=1)
        .round([2])
        .updated["A"]
        .isfinite()
        .all()
    )
