"""The CAM family on any classifier, with pytorch-grad-cam, torch-cam, captum and closed forms as referees."""

import gc
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import attention_branch as ab
from attention_branch.errors import UserError
from attention_branch.explanations import explain
from attention_branch.explanations.layers import choose_layer

FAMILY = ["grad-cam", "grad-cam++", "hires-cam", "layer-cam"]


class Pooled(nn.Module):
    """A small net whose scores are one linear layer of the mean over positions: the case of CAM."""

    def __init__(self, classes=5):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(inplace=True)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, classes)

    def forward(self, images):
        return self.fc(self.pool(self.features(images)).flatten(1))


class Deep(nn.Module):
    """A small net whose layer `middle` is followed by more than pooling: gradients differ from place to place."""

    def __init__(self, classes=5, inplace=False):
        super().__init__()
        self.middle = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.after = nn.Sequential(nn.ReLU(inplace), nn.Conv2d(8, 12, 3, 2, 1), nn.Tanh(), nn.Flatten())
        self.fc = nn.Linear(12 * 16, classes)

    def forward(self, images):
        return self.fc(self.after(self.middle(images)))


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, dtype=torch.float64)


@pytest.fixture
def pooled():
    return Pooled().double().eval()


@pytest.fixture
def deep():
    return Deep().double().eval()


# --- equal to the other libraries, before anything is scaled ---


@pytest.mark.parametrize("method", FAMILY)
def test_maps_equal_those_of_pytorch_grad_cam(images, pooled, deep, method):
    other = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    kind = {"grad-cam": "GradCAM", "grad-cam++": "GradCAMPlusPlus", "hires-cam": "HiResCAM", "layer-cam": "LayerCAM"}
    for model, layer in ((pooled, "features"), (deep, "middle")):
        if method == "grad-cam++":
            model.fc.weight.data *= 1e4  # That library adds 1e-6 to squares of gradients; beside these it is nothing.
        wanted = [ClassifierOutputTarget(k) for k in (0, 4, 2)]
        with getattr(other, kind[method])(model, [model.get_submodule(layer)]) as theirs:
            theirs(images, wanted)
            found, gradients = (
                part[0].numpy()
                for part in (theirs.activations_and_grads.activations, theirs.activations_and_grads.gradients)
            )
            expected = theirs.get_cam_image(images, model.get_submodule(layer), wanted, found, gradients, False)
        # HiResCAM has no ReLU in its paper; that library puts one behind every method.
        expected = expected if method == "hires-cam" else np.maximum(expected, 0)
        ours = explain(model, images, method, [0, 4, 2], layer=layer).raw
        assert ours.abs().max() > 1e-3
        scale = expected.max() if method == "grad-cam++" else 1
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6 * scale, rtol=0)


@pytest.mark.parametrize("method", ["cam", "grad-cam", "layer-cam"])
def test_maps_equal_those_of_torch_cam(images, pooled, method):
    # Not grad-cam++: torch-cam 0.5.0 divides a copy of its alphas, so they stay squares of gradients.
    other = pytest.importorskip("torchcam.methods")
    kind = {"cam": "CAM", "grad-cam": "GradCAM", "layer-cam": "LayerCAM"}[method]
    options = {"fc_layer": "fc"} if method == "cam" else {}
    with getattr(other, kind)(pooled, target_layer="features", input_shape=(3, 16, 16), **options) as theirs:
        scores = pooled(images.clone().requires_grad_())
        (expected,) = theirs([0, 4, 2], scores, normalized=False)
    ours = explain(pooled, images, method, [0, 4, 2], layer="features").raw
    assert ours.abs().max() > 1e-4
    np.testing.assert_allclose(ours.numpy(), expected.detach().numpy(), atol=1e-6, rtol=0)


def test_a_next_layer_that_works_in_place_changes_nothing(images, deep):
    other = Deep(inplace=True).double().eval()
    other.load_state_dict(deep.state_dict())
    for method in FAMILY:
        expected = explain(deep, images, method, 1, layer="middle").raw
        assert torch.equal(explain(other, images, method, 1, layer="middle").raw, expected)


def test_grad_cam_plus_plus_by_the_papers_equations_in_plain_loops(images, deep):
    kept = {}
    deep.middle.register_forward_hook(lambda _m, _i, output: kept.update(a=output))
    score = deep(images[:1])[0, 3]
    (gradient,) = torch.autograd.grad(score, kept["a"])
    a, g = kept["a"][0].detach().numpy(), gradient[0].numpy()
    expected = np.zeros((8, 8))
    for k in range(8):
        weight = 0.0
        for i in range(8):
            for j in range(8):
                alpha = g[k, i, j] ** 2 / (2 * g[k, i, j] ** 2 + a[k].sum() * g[k, i, j] ** 3) if g[k, i, j] else 0.0
                weight += alpha * max(g[k, i, j], 0.0)
        expected += weight * a[k]
    ours = explain(deep, images[:1], "grad-cam++", 3, layer="middle").raw[0]
    np.testing.assert_allclose(ours.numpy(), np.maximum(expected, 0), rtol=1e-9, atol=1e-12)


def test_cam_adds_up_to_the_score_and_grad_cam_is_its_positive_part(images, pooled):
    result = explain(pooled, images, "cam", 3)
    scores = pooled(images)[:, 3] - pooled.fc.bias[3]
    assert torch.allclose(result.raw.mean((1, 2)), scores)
    positive = explain(pooled, images, "grad-cam", 3).raw
    assert torch.allclose(positive, result.raw.relu() / 16)
    assert result.layer == "features, 4x4 (auto: last before pooling and classifier)"
    assert result.value_range is None
    assert torch.equal(result.logits, pooled(images))


def test_cam_of_a_network_without_pooling_is_refused(images, deep):
    with pytest.raises(UserError, match="one linear layer of the mean"):
        explain(deep, images, "cam")


# --- several classes, one pass ---


def test_several_classes_of_one_image_cost_one_forward_pass(images, pooled):
    calls = []
    pooled.register_forward_pre_hook(lambda *_: calls.append(1))
    for method in ("cam", *FAMILY):
        calls.clear()
        several = explain(pooled, images[:1], method, [4, 0, 2, 2])
        assert len(calls) == 1
        assert several.target.tolist() == [4, 0, 2, 2]
        assert several.maps.shape == (4, 16, 16)
        assert several.logits.shape == (4, 5)
        assert several.images.shape == (4, 3, 16, 16)
        for row, k in enumerate((4, 0, 2, 2)):
            assert torch.allclose(several.raw[row], explain(pooled, images[:1], method, k).raw[0])
    with pytest.raises(UserError, match="4 entries for 3 images"):
        explain(pooled, images, "grad-cam", [4, 0, 2, 2])


# --- what a model may return ---


class Named(NamedTuple):
    aux: torch.Tensor
    logits: torch.Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: (s, s.flip(1)),
        lambda s: [s],
        lambda s: {"aux": s.flip(1), "logits": s},
        lambda s: {"only": s, "map": s[:, :, None, None]},
        lambda s: Named(s.flip(1), s),
    ],
)
def test_scores_are_found_in_tuples_dicts_and_named_outputs(images, pooled, wrap):
    expected = explain(pooled, images, "grad-cam", 1).raw
    forward = pooled.forward
    pooled.forward = lambda x: wrap(forward(x))
    assert torch.equal(explain(pooled, images, "grad-cam", 1).raw, expected)
    assert torch.equal(explain(pooled, images, "center").logits, forward(images))


def test_a_dict_of_heads_is_explained_by_head(images, pooled):
    forward = pooled.forward
    pooled.forward = lambda x: {"colour": forward(x)[:, :2], "shape": forward(x)[:, 2:]}
    assert torch.allclose(
        explain(pooled, images, "grad-cam", {"shape": 1}).raw,
        explain(Like(pooled, forward).eval(), images, "grad-cam", 3).raw,
    )
    with pytest.raises(UserError, match="colour, shape"):
        explain(pooled, images, "grad-cam", 1)


class Like(nn.Module):
    def __init__(self, model, forward):
        super().__init__()
        self.features, self.call = model.features, [forward]

    def forward(self, images):
        return self.call[0](images)


@pytest.mark.parametrize("answer", [None, "text", {"map": 1}, torch.ones(3, 5, 2)])
def test_an_answer_without_scores_is_refused(images, pooled, answer):
    pooled.forward = lambda x: answer
    with pytest.raises(UserError, match=r"class scores"):
        explain(pooled, images, "center")


# --- under every circumstance, leaving nothing behind ---


def test_works_frozen_and_inside_no_grad_and_inference_mode(images, pooled):
    expected = {method: explain(pooled, images, method, 1).raw for method in ("cam", *FAMILY)}
    for parameter in pooled.parameters():
        parameter.requires_grad_(False)
    for method, raw in expected.items():
        assert torch.equal(explain(pooled, images, method, 1).raw, raw)
        with torch.no_grad():
            assert torch.equal(explain(pooled, images, method, 1).raw, raw)
            assert not torch.is_grad_enabled()
        with torch.inference_mode():
            assert torch.equal(explain(pooled, images + 0, method, 1).raw, raw)
            assert torch.is_inference_mode_enabled()
        with torch.autograd.set_grad_enabled(True):
            assert not explain(pooled, images, method, 1).maps.requires_grad
    assert not any(parameter.requires_grad for parameter in pooled.parameters())


def test_works_in_bfloat16_under_autocast_and_compiled(images, pooled):
    small = images.float()
    model = pooled.float()
    expected = explain(model, small, "grad-cam", 1).raw
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(explain(model, small, "grad-cam", 1).raw, expected, atol=0.02 * expected.max())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        compiled(small)  # A graph without our hook now exists.
    assert torch.equal(explain(compiled, small, "grad-cam", 1).raw, expected)
    model.features.compile(backend="eager")
    model(small)
    assert torch.equal(explain(model, small, "grad-cam", 1).raw, expected)
    assert torch.equal(explain(nn.DataParallel(model), small, "grad-cam", 1).raw, expected)
    half = Pooled().bfloat16().eval()
    half.load_state_dict(model.state_dict())
    result = explain(half, small.bfloat16(), "grad-cam", 1)
    assert result.raw.dtype == torch.float32
    assert torch.allclose(result.raw, expected, atol=0.05 * expected.max())


def test_a_model_in_training_mode_is_explained_in_eval_mode_with_a_word_about_it(images, deep):
    expected = explain(deep, images, "grad-cam", 1, layer="middle").raw
    statistics = deep.middle[1].running_mean.clone()
    deep.train()
    with pytest.warns(UserWarning, match="in training mode"):
        assert torch.equal(explain(deep, images, "grad-cam", 1, layer="middle").raw, expected)
    assert all(module.training for module in deep.modules())
    assert torch.equal(deep.middle[1].running_mean, statistics)


def test_nothing_stays_behind_a_thousand_calls(images, pooled):
    one = images[:1, :, :8, :8]

    def alive():
        gc.collect()
        return sum(type(found) in (torch.Tensor, nn.Parameter) for found in gc.get_objects())

    for method in ("cam", *FAMILY):
        explain(pooled, one, method)
    before = alive()
    for call in range(1000):
        explain(pooled, one, ("cam", *FAMILY)[call % 5], call % 5)
    for _ in range(20):
        with pytest.raises(UserError):
            explain(pooled, one, "grad-cam", 99)
    assert alive() == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pooled.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in pooled.parameters())


# --- layers ---


def test_layers_by_name_by_module_and_by_choice(images, deep):
    by_name = explain(deep, images, "grad-cam", layer="middle.0")
    by_module = explain(deep, images, "grad-cam", layer=deep.middle[0])
    assert torch.equal(by_name.raw, by_module.raw)
    assert by_name.layer == "middle.0, 8x8"
    assert "auto" in explain(deep, images, "grad-cam").layer
    with pytest.raises(UserError, match=r"no layer 'midle'.*'middle'"):
        explain(deep, images, "grad-cam", layer="midle")
    with pytest.raises(UserError, match=r"not a module of this network"):
        explain(deep, images, "grad-cam", layer=nn.ReLU())
    with pytest.raises(UserError, match=r"'fc'.*no grid"):
        explain(deep, images, "grad-cam", layer="fc")
    with pytest.raises(UserError, match="reads none"):
        explain(deep, images, "center", layer="middle")


def test_the_nearest_layers_of_an_attention_branch_network_are_named_as_one_says_them():
    network = ab.create_model("resnet14", num_classes=3).eval()
    with pytest.raises(UserError, match=r"no layer 'lyer3'\. Did you mean 'layer3'"):
        explain(network, torch.rand(1, 3, 32, 32), "grad-cam", layer="lyer3")


def test_a_layer_that_does_not_run_or_has_one_position_yields_no_map(images, pooled):
    pooled.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(UserError, match="does not run"):
        explain(pooled, images, "grad-cam", layer="unused")
    with pytest.raises(UserError, match=r"'pool'.*one position"):
        explain(pooled, images, "grad-cam", layer="pool")


def test_a_model_whose_scores_have_no_gradient_says_so(images, pooled):
    forward = pooled.forward
    pooled.forward = lambda x: torch.from_numpy(forward(x).detach().numpy())
    for method in FAMILY:
        with pytest.raises(UserError, match="do not depend on 'features' by a gradient"):
            explain(pooled, images, method)
    with pytest.raises(UserError, match="needs none"):
        explain(pooled, images, "integrated-gradients")
    assert explain(pooled, images, "occlusion").raw.abs().max() > 0


def test_the_layer_is_chosen_without_running_the_network():
    import timm
    import torchvision

    for name, expected in (
        ("resnet18", "layer4"),
        ("efficientnet_b0", "bn2"),
        ("swin_tiny_patch4_window7_224", "norm"),
        ("vit_tiny_patch16_224", "blocks.11.norm1"),
        ("convnext_atto", "stages"),
        ("densenet121", "features"),
    ):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=3)
        assert choose_layer(model).name == expected
    for name, expected in (
        ("resnet18", "layer4"),
        ("mobilenet_v3_small", "features"),
        ("convnext_tiny", "features"),
        ("swin_t", "norm"),
        ("vit_b_32", "encoder.layers.encoder_layer_11.ln_1"),
    ):
        with torch.device("meta"):
            model = torchvision.models.get_model(name)
        assert choose_layer(model).name == expected
    wrapped = nn.Sequential(OrderedDict(net=nn.Conv2d(3, 4, 3), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()))
    assert choose_layer(wrapped).name == "net"


def test_where_the_structure_misleads_what_ran_tells(images):
    class Odd(Pooled):
        def __init__(self):
            super().__init__()
            self.auxiliary = nn.Conv2d(3, 4, 3)  # Registered last, never run.

    result = explain(Odd().double().eval(), images, "grad-cam")
    assert result.layer == "features, 4x4 (auto: last that yields a grid)"


def test_a_layers_grid_is_read_whatever_its_layout(images):
    class Turned(Pooled):
        def __init__(self, turn, back):
            super().__init__()
            self.turn, self.back, self.place = turn, back, nn.Identity()

        def forward(self, images):
            x = self.place(self.turn(self.features(images)))
            return self.fc(self.pool(self.back(x)).flatten(1))

    wide = torch.randn(2, 3, 16, 32, dtype=torch.float64)
    kinds = {
        "NHWC": (lambda x: x.permute(0, 2, 3, 1), lambda x: x.permute(0, 3, 1, 2)),
        "NLC": (lambda x: x.flatten(2).transpose(1, 2), lambda x: x.transpose(1, 2).unflatten(2, (4, 8))),
        "NLC with two more tokens": (
            lambda x: torch.cat([x.new_zeros(len(x), 2, 12), x.flatten(2).transpose(1, 2)], 1),
            lambda x: x[:, 2:].transpose(1, 2).unflatten(2, (4, 8)),
        ),
    }
    for turn, back in kinds.values():
        model = Turned(turn, back).double().eval()
        expected = explain(model, wide, "layer-cam", 2, layer="features").raw
        assert expected.shape == (2, 4, 8)
        assert torch.allclose(explain(model, wide, "layer-cam", 2, layer="place").raw, expected)


# --- attention branch networks ---


def test_an_attention_branch_network_is_explained_behind_its_gate():
    model = ab.create_model("resnet14", num_classes=4, branch="lite").double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    layer = model.backbone.layer3
    kept = {}
    handle = layer.register_forward_hook(lambda _m, _i, output: kept.update(a=output))
    logits = model(images).logits
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[:, 2].sum(), kept["a"])
    expected = (gradient.mean((2, 3), keepdim=True) * kept["a"]).sum(1).relu()
    result = explain(model, images, "grad-cam", 2, layer="layer3")
    assert torch.allclose(result.raw, expected)
    assert torch.equal(result.attention_logits, model(images).attention_logits)
    assert "backbone" in explain(model, images, "grad-cam", 2).layer
    assert torch.allclose(explain(model, images, "cam", 2).raw.mean((1, 2)) + model.backbone.fc.bias[2], logits[:, 2])


@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_every_head_is_explained_by_its_own_run_of_the_perception_branch(chunk):
    heads = {"a": 1, "b": 3, "c": 2}
    model = ab.create_model("resnet14", heads=heads, branch="lite").double().eval()
    model.task_chunk = chunk
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    weight = model.backbone.fc.weight.detach()
    starts = {"a": 0, "b": 1, "c": 4}
    for head, target, sign in (("a", 1, 1), ("a", 0, -1), ("b", 2, 1), ("c", 0, 1)):
        row = starts[head] + (target if head != "a" else 0)
        cam = explain(model, images, "cam", {head: target})
        logits = model(images).logits[head][:, target if head != "a" else 0] - model.backbone.fc.bias[row]
        assert torch.allclose(cam.raw.mean((1, 2)), sign * logits)
        positions = cam.raw.shape[-2] * cam.raw.shape[-1]
        grad_cam = explain(model, images, "grad-cam", {head: target}).raw
        assert torch.allclose(grad_cam, cam.raw.relu() / positions)
    assert weight.shape[0] == 6


def test_the_branchs_evidence_costs_one_forward_pass():
    model = ab.create_model("resnet14", num_classes=4, branch="lite").double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    calls = []
    model.backbone.register_forward_pre_hook(lambda *_: calls.append(1))
    result = explain(model, images, "attention-class", 3)
    assert len(calls) == 1
    assert torch.allclose(result.raw.mean((1, 2)), model(images).attention_logits[:, 3])
    assert torch.allclose(result.raw, model.class_evidence(images)[:, 3])


# --- vision transformers ---


def test_rollout_equals_the_product_of_the_attention_matrices():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=64, depth=2).double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    joint = torch.eye(17, dtype=torch.float64).expand(2, 17, 17)
    for block in model.blocks:
        attention = block.attn
        q, k, _ = attention.qkv(block.norm1(x)).reshape(2, 17, 3, 3, 64).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / 8).softmax(-1).mean(1)
        joint = (weights / 2 + torch.eye(17, dtype=torch.float64) / 2) @ joint
        x = block(x)
    result = explain(model, images, "rollout")
    assert torch.allclose(result.raw, joint[:, 0, 1:].reshape(2, 4, 4))
    assert result.target is None
    assert all(block.attn.fused_attn == model.blocks[0].attn.fused_attn for block in model.blocks)
    grid = explain(model, images, "layer-cam", 1)
    assert grid.raw.shape == (2, 4, 4)
    assert "blocks.1.norm1" in grid.layer
    with pytest.raises(UserError, match="zero everywhere"):
        explain(model, images, "grad-cam", 1, layer="norm")


def test_rollout_of_torchs_own_attention_and_of_networks_without_any(images, pooled):
    import torchvision

    model = torchvision.models.VisionTransformer(32, 16, 2, 2, 8, 16, num_classes=3).double().eval()
    small = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert explain(model, small, "rollout").raw.shape == (2, 2, 2)
    with pytest.raises(UserError, match="no self-attention"):
        explain(pooled, images, "rollout")


# --- captum's ---


def test_integrated_gradients_add_up_to_the_difference_of_the_scores(images, pooled):
    pytest.importorskip("captum")
    result = explain(pooled, images, "integrated-gradients", [0, 4, 2])
    scores = pooled(images) - pooled(torch.zeros_like(images))
    expected = scores[torch.arange(3), torch.tensor([0, 4, 2])]
    assert torch.allclose(result.raw.sum((1, 2)), expected, atol=0.02 * expected.abs().max().item())
    assert result.raw.shape == (3, 16, 16)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in pooled.parameters())


def test_occlusion_of_a_linear_score_is_the_windows_own_sum(images):
    pytest.importorskip("captum")

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 3, 16, 16))

        def forward(self, images):
            return torch.einsum("nchw,kchw->nk", images, self.weight)

    model, images = Linear().eval(), images.float()
    result = explain(model, images, "occlusion", 1)
    share = (images * model.weight[1]).sum(1)  # What each pixel adds to the score.
    windows = F.avg_pool2d(share[:, None], 2, 1, divisor_override=1)[:, 0]  # (3, 15, 15): windows of 2, step 1
    total, count = torch.zeros(3, 16, 16), torch.zeros(16, 16)
    for row in range(15):
        for column in range(15):
            total[:, row : row + 2, column : column + 2] += windows[:, row, column, None, None]
            count[row : row + 2, column : column + 2] += 1
    assert torch.allclose(result.raw, total / count, atol=1e-4)  # captum computes in float32.
    assert "2x2" in result.layer


def test_rollout_with_registers_and_no_class_token_is_the_mean_of_the_patches_rows():
    import timm

    options = {"num_classes": 3, "img_size": 64, "embed_dim": 32, "num_heads": 2, "depth": 2}
    model = timm.create_model("vit_mediumd_patch16_reg4_gap_256", **options).double().eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight *= 20  # attention that differs from place to place
    taken = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _module, _inputs, weights: taken.append(weights.mean(1)))
    result = explain(model, torch.randn(2, 3, 64, 64, dtype=torch.float64), "rollout")
    joint = torch.eye(20, dtype=torch.float64).expand(2, 20, 20)
    for weights in taken:
        joint = (weights / 2 + torch.eye(20, dtype=torch.float64) / 2) @ joint
    assert torch.allclose(result.raw.flatten(1), joint[:, 4:, 4:].mean(1))
    assert not torch.allclose(result.raw.flatten(1), joint[:, 0, 4:], atol=1e-3)


@pytest.mark.parametrize("method", ["cam", "grad-cam"])
def test_a_layer_that_runs_on_parts_or_several_times_is_refused(images, method):
    import torchvision

    resnet = torchvision.models.resnet18(num_classes=5).double().eval()
    with pytest.raises(UserError, match="runs 2 times or on parts"):
        explain(resnet, images, method, layer="layer3.1.relu")

    class Windows(Pooled):
        """Its features are computed of the four quarters of the images apart."""

        def forward(self, images):
            quarters = [part for half in images.chunk(2, 2) for part in half.chunk(2, 3)]
            a, b, c, d = self.features(torch.cat(quarters)).chunk(4)
            return self.fc(self.pool(torch.cat([torch.cat([a, b], 3), torch.cat([c, d], 3)], 2)).flatten(1))

    with pytest.raises(UserError, match="on parts of the images"):
        explain(Windows().double().eval(), images, method, layer="features")


def test_a_head_may_be_called_like_an_output():
    model = ab.create_model("resnet14", heads={"pred": 2, "age": 3}, branch="lite").double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    logits = model(images).logits
    result = explain(model, images, "grad-cam", {"age": 2})
    assert result.target.tolist() == [2, 2]
    assert torch.equal(result.logits["age"], logits["age"])
    assert explain(model, images, "grad-cam", {"age": None}).target.tolist() == logits["age"].argmax(1).tolist()


def test_a_classifier_of_zeros_is_named_as_the_reason(images, pooled):
    nn.init.zeros_(pooled.fc.weight)
    nn.init.zeros_(pooled.fc.bias)
    with pytest.raises(UserError, match="weights are still all zero"):
        explain(pooled, images, "grad-cam", 1)
