"""One class of tests that every family of backbones passes, at the smallest size that shows it."""

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

import attention_branch as ab
from attention_branch.models.gate import run_sequence

# family: (backbone, image size, options). An image size in the options builds a network of fixed size for it. Stages
# of few blocks will do: the gate sits between stages, or in the last blocks.
CONVOLUTIONAL = {
    "resnet20": ("resnet20", 32, {}),
    "resnet65b": ("resnet65b", 32, {}),
    "densenet_bc": ("densenet_bc_100_12", 32, {}),
    "resnet": ("resnet18", 64, {}),
    "resnext": ("resnext26ts", 64, {}),
    "wide_resnet": ("wide_resnet50_2", 64, {"channels": [16, 32, 64, 128], "layers": [1, 1, 1, 1]}),
    "seresnet": ("seresnet18", 64, {}),
    "resnetv2": ("resnetv2_50", 64, {"layers": [1, 1, 1, 2]}),
    "res2net": ("res2net50_48w_2s", 64, {"layers": [1, 1, 1, 2]}),
    "regnet": ("regnetx_002", 64, {}),
    "densenet": ("densenet121", 64, {"block_config": [2, 2, 2, 2]}),
    "vgg": ("vgg11", 64, {"channels": [16, 32, 64, 64, 64]}),
    "vgg_bn": ("vgg11_bn", 64, {"channels": [16, 32, 64, 64, 64]}),
    "vgg_cam": ("vgg16_cam", 32, {}),
}
LATER = {
    "efficientnet": ("efficientnet_b0", 64, {}),
    "mobilenetv3": ("mobilenetv3_small_050", 64, {}),
    "convnext": ("convnext_atto", 64, {"depths": [1, 1, 2, 1]}),
    "convnextv2": ("convnextv2_atto", 64, {"depths": [1, 1, 2, 1]}),
    "nfnet": ("test_nfnet", 64, {}),
    "repvgg": ("repvgg_a0", 64, {}),
    "ghostnet": ("ghostnet_050", 64, {}),
    "dla": ("dla34", 64, {}),
    "cspnet": ("cspresnet50", 64, {}),
    "hgnet": ("hgnetv2_b0", 64, {}),
    "swin": ("swin_tiny_patch4_window7_224", 64, {"image_size": 64, "depths": [1, 1, 2, 2]}),
    "maxvit": ("maxvit_rmlp_pico_rw_256", 64, {"image_size": 64, "depths": [1, 1, 1, 1]}),
    "poolformer": ("poolformer_s12", 64, {}),
    "edgenext": ("edgenext_xx_small", 64, {}),
    "vit": ("vit_tiny_patch16_224", 64, {"image_size": 64, "depth": 4}),
    "deit": ("deit_tiny_patch16_224", 64, {"image_size": 64, "depth": 4}),
    "eva02": ("eva02_tiny_patch14_224", 56, {"image_size": 56, "depth": 4}),
}
FAMILIES = CONVOLUTIONAL | LATER
# The gate of these is not at the input of the last stage, where a norm would erase it (measured, stack-wide).
GATED_BEHIND_A_NORM = {"convnext", "convnextv2", "swin", "edgenext", "vit", "deit", "eva02"}
# Their blocks take arguments that only the whole network computes.
NOT_RESUMABLE = {"eva02"}


# Capturing a graph takes long, and these pass through the same code of ours as the family named.
CAPTURED_AS = {
    "densenet_bc": "densenet", "resnet65b": "resnet20", "wide_resnet": "resnet", "res2net": "resnet",
    "regnet": "resnet", "resnext": "resnet", "seresnet": "resnet", "vgg_bn": "vgg",
    "convnextv2": "convnext", "deit": "vit", "repvgg": "resnet", "dla": "resnet", "cspnet": "resnet",
    "efficientnet": "mobilenetv3", "ghostnet": "mobilenetv3", "hgnet": "resnet", "nfnet": "resnet",
    "resnetv2": "resnet", "vgg_cam": "vgg", "edgenext": "convnext",
}  # fmt: skip
# Of each layout of features and each kind of gate one is compiled too, which takes as long as the export again.
COMPILED = {"resnet20", "resnet", "densenet", "mobilenetv3", "convnext", "swin", "vit", "eva02"}


@pytest.fixture(scope="class")
def case(request):
    """A network of three classes with settled batch statistics, and images for it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    name, size, options = FAMILIES[request.param]
    model = ab.create_model(name, num_classes=3, **options)
    images = torch.randn(2, 3, size, size)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = None  # running statistics become those of the one batch
    with torch.no_grad():
        model(images)
    return request.param, model.eval(), images


class OfAFamily:
    """The tests; two classes take them, so that two processes can share the families."""

    def test_answers_with_logits_and_a_map(self, case):
        _, model, images = case
        with torch.no_grad():
            logits, attention_logits, attention = model(images)
        assert logits.shape == attention_logits.shape == (2, 3)
        assert attention.shape[:2] == (2, 1)
        assert attention.shape[2] >= 2
        assert attention.shape[3] >= 2
        assert 0 <= attention.min() <= attention.max() <= 1

    def test_every_weight_learns(self, case):
        _, model, images = case
        model.train()
        ab.abn_loss(model(images), torch.tensor([0, 1])).total.backward()
        still = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        model.zero_grad(set_to_none=True)
        model.eval()
        assert still == []

    def test_an_empty_map_leaves_the_plain_backbone(self, case):
        _, model, images = case
        plain = ab.create_backbone(model.name, num_classes=3, **_options(model)).eval()
        plain.backbone.load_state_dict(model.backbone.state_dict())
        size = model(images).attention.shape
        with torch.no_grad():
            gated = model(images, attention=torch.zeros(size)).logits
            assert torch.allclose(gated, plain(images), rtol=1e-5, atol=1e-6)

    def test_the_map_moves_the_answer(self, case):
        family, model, _ = case
        assert model.construction.proof.effect > 1e-3
        assert bool(model.place.gates) == (family in GATED_BEHIND_A_NORM)

    def test_resuming_at_the_features_gives_the_same_answer(self, case):
        family, model, images = case
        assert (model.place.tail == ()) == (family in NOT_RESUMABLE)
        if model.place.tail:
            with torch.no_grad():
                features = model.features(images)
                resumed = model.backbone.forward_head(run_sequence(model.backbone, model.place.tail, features))
                assert torch.allclose(resumed, model.backbone(images), rtol=1e-4, atol=1e-5)

    def test_saved_and_loaded_it_answers_bit_for_bit(self, case, tmp_path):
        _, model, images = case
        model.save_pretrained(tmp_path / "saved")
        loaded = ab.load_model(tmp_path / "saved")
        with torch.no_grad():
            for saved, again in zip(model(images), loaded(images), strict=True):
                assert torch.equal(saved, again)

    def test_graph_capture_agrees(self, case):
        family, model, images = case
        kin = CAPTURED_AS.get(family)
        if kin is not None:
            pytest.skip(f"its gate and its calls are those of {kin}, which is captured")
        with torch.no_grad():
            eager = model(images)
            torch._dynamo.reset()
            exported = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
            other = torch.cat([images, images[:1]])
            captured = exported.module()
            found = [captured(images)]
            if family in COMPILED:
                found.append(torch.compile(model, fullgraph=True, backend="eager")(images))
            for again in found:
                for own, part in zip(eager, again, strict=True):
                    assert torch.allclose(own, part, rtol=1e-5, atol=1e-6)
            assert torch.allclose(captured(other).logits, model(other).logits, rtol=1e-4, atol=1e-5)

    def test_bfloat16_autocast_is_as_near_as_the_plain_backbone_is(self, case):
        _, model, images = case
        with torch.no_grad():
            full, plain = model(images), model.backbone(images)
            with torch.autocast("cpu", torch.bfloat16):
                half, plain_half = model(images), model.backbone(images)
        assert half.attention.dtype == torch.float32
        assert 0 <= half.attention.min() <= half.attention.max() <= 1
        # How far rounding drives a network with random weights is the backbone's affair; the gate may not add much.
        drift = (plain_half - plain).norm() / plain.norm()
        assert (half.logits - full.logits).norm() / full.logits.norm() < 6 * drift + 0.05

    def test_image_sizes(self, case):
        _, model, images = case
        with torch.no_grad():
            if model.config.fixed_size:
                with pytest.raises(ab.UserError, match="image_size"):
                    model(torch.randn(1, 3, 80, 64))
            else:
                output = model(torch.randn(1, 3, images.shape[-2] + 32, images.shape[-1]))
                assert output.attention.shape[-2] > output.attention.shape[-1]
                with pytest.raises(ab.UserError, match="too small"):
                    model(torch.randn(1, 3, model.config.smallest_side - 1, 256))


@pytest.mark.parametrize("case", CONVOLUTIONAL, indirect=True, scope="class")
class TestConvolutional(OfAFamily):
    pass


@pytest.mark.parametrize("case", LATER, indirect=True, scope="class")
class TestLater(OfAFamily):
    pass


def _options(model):
    size = {"image_size": model.config.image_size} if model.config.image_size else {}
    return size | model.config.backbone_options
