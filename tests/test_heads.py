"""Several heads on one perception pass, against a loop over the heads with the backbone's own modules, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

import attention_branch as ab
from attention_branch.data import open_data
from attention_branch.training.building import make_model
from attention_branch.training.config import TrainConfig

HEADS = {"smiling": 2, "hair": 5, "young": 1, "hat": 2, "beard": 3}


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def shared(name, images, heads=HEADS, **options):
    """Return a network with one perception pass in eval mode, its batch statistics those of the images."""
    model = ab.create_model(name, heads=heads, perception="shared", branch="lite", **options).double()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(images)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def resnet_by_hand(net, images):
    x = net.layer4(net.layer3(net.layer2(net.layer1(net.maxpool(net.act1(net.bn1(net.conv1(images))))))))
    return lambda factor: net.fc((x * factor).mean((2, 3))), (x.shape[2], x.shape[3])


def small_by_hand(net, images):
    x = net.layer3(net.layer2(net.layer1(net.stem(images))))
    return lambda factor: net.fc((x * factor).mean((2, 3))), (x.shape[2], x.shape[3])


def mobilenet_by_hand(net, images):
    """MobileNetV3: a convolution and its activation stand behind the pooling."""
    x = net.blocks(net.bn1(net.conv_stem(images)))
    return (
        lambda factor: net.classifier(net.act2(net.conv_head((x * factor).mean((2, 3), keepdim=True))).flatten(1)),
        (x.shape[2], x.shape[3]),
    )


def swin_by_hand(net, images):
    """Swin: features (N, h, w, C), normed before the head."""
    x = net.patch_embed(images)
    for layer in net.layers:
        x = layer(x)
    x = net.norm(x)
    return lambda factor: net.head.fc((x * factor.permute(0, 2, 3, 1)).mean((1, 2))), (x.shape[1], x.shape[2])


def vit_by_hand(net, images):
    """A vision transformer whose patch tokens are pooled: the class token meets no map."""
    x = net.forward_features(images)
    side = images.shape[-1] // 16

    def answer(factor):
        patches = x[:, 1:] * factor.flatten(2).transpose(1, 2)
        return net.head(net.fc_norm(patches.mean(1)))

    return answer, (side, side)


CASES = {
    "resnet18": ("resnet18", resnet_by_hand, {}),
    "resnet20": ("resnet20", small_by_hand, {}),
    "mobilenetv3": ("mobilenetv3_small_050", mobilenet_by_hand, {}),
    "swin": ("swin_tiny_patch4_window7_224", swin_by_hand, {"image_size": 64}),
    "vit": ("vit_tiny_patch16_224", vit_by_hand, {"image_size": 64, "global_pool": "avg"}),
}


@pytest.mark.parametrize(("case", "mechanism"), [*((case, "residual") for case in CASES), ("resnet20", "product")])
def test_each_head_pools_the_last_features_by_its_own_map(images, case, mechanism):
    name, by_hand, options = CASES[case]
    model = shared(name, images, mechanism=mechanism, **options)
    with torch.no_grad():
        output = model(images)
        answer, size = by_hand(model.backbone, images)
        start = 0
        for task, (head, count) in enumerate(HEADS.items()):
            map_ = F.interpolate(output.attention[:, [task]], size=size, mode="bilinear", align_corners=False)
            wanted = answer(1 + map_ if mechanism == "residual" else map_)[:, start : start + count]
            start += count
            assert output.logits[head].shape == output.attention_logits[head].shape == (2, count)
            # The map is float32 in a float64 network as well.
            assert torch.allclose(output.logits[head], wanted, rtol=1e-5, atol=1e-7)
    # The maps do differ, and the features are more than one position, or all this would say nothing.
    assert output.attention.shape[1] == len(HEADS)
    assert output.attention.std(1).max() > 1e-3
    assert min(size) >= 2


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv3_small_050"])
def test_gradients_are_those_of_the_loop_whatever_the_chunks(images, name):
    model = shared(name, images)
    by_hand = small_by_hand if name == "resnet20" else mobilenet_by_hand
    targets = {head: torch.tensor([0, 0]) for head in HEADS}
    model.train()
    for module in model.modules():
        if isinstance(module, (_BatchNorm, torch.nn.Dropout)):
            module.eval()
    results = []
    for chunk in (5, 2, 1):
        model.task_chunk = chunk
        model.zero_grad()
        ab.abn_loss(model(images), targets).total.backward()
        results.append([parameter.grad.clone() for parameter in model.parameters()])
    model.zero_grad()
    attention, scores = model.attend(images)
    answer, size = by_hand(model.backbone, images)
    losses, start = [], 0
    for task, (head, count) in enumerate(HEADS.items()):
        map_ = F.interpolate(attention[:, [task]], size=size, mode="bilinear", align_corners=False)
        logits = answer(1 + map_)[:, start : start + count]
        start += count
        for found in (logits, scores[head]):
            losses.append(
                F.binary_cross_entropy_with_logits(found[:, 0], torch.zeros(2).double())
                if count == 1
                else F.cross_entropy(found, targets[head])
            )
    torch.stack(losses).sum().backward()
    wanted = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in wanted)
    for found in results:
        for own, other in zip(found, wanted, strict=True):
            # Map and loss are float32 in a float64 network as well.
            assert torch.allclose(own, other, rtol=1e-4, atol=1e-6)


def test_batch_norms_see_each_image_once_in_training(images):
    """In the separate form the perception branch's batch norms see every image once a head, gated; here once, as is."""
    model = ab.create_model("resnet20", heads=HEADS, perception="shared").double().train()
    norm = model.backbone.layer3[0].convolutions[1]
    seen = []
    norm.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[0]))
    model(images)
    assert seen == [2]


def macs(run):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 2


def test_a_further_head_costs_its_part_of_the_branch_and_a_linear_layer(images):
    heads = {f"a{number}": 2 for number in range(10)}
    model = shared("resnet18", images, heads=heads)
    plain = ab.create_backbone("resnet18", heads=heads).double().eval()
    given = torch.rand(2, 10, 4, 4, dtype=torch.float64)
    one = macs(lambda: plain(images))
    # Two images, ten poolings of 512 channels read by a matrix of 20 columns, the first of which is the plain one.
    assert macs(lambda: model(images, attention=given, attention_logits=False)) == one + 2 * 9 * 512 * 20
    separate = ab.create_model("resnet18", heads=heads, branch="lite").double().eval()
    stage = macs(lambda: plain.backbone.layer4(torch.zeros(2, 256, 4, 4, dtype=torch.float64)))
    assert macs(lambda: separate(images, attention=given, attention_logits=False)) >= one + 9 * stage


def test_given_maps_take_the_place_of_its_own(images):
    model = shared("resnet20", images)
    with torch.no_grad():
        own = model(images)
        again = model(images, attention=own.attention, attention_logits=False)
        zeros = model(images, attention=torch.zeros(2, 16, 16).double())
        plain = ab.create_backbone("resnet20", heads=HEADS).double().eval()
        plain.backbone.load_state_dict(model.backbone.state_dict())
        wanted = plain(images)
        one_changed = own.attention.clone()
        one_changed[:, 1] = torch.rand(2, 16, 16).double().repeat_interleave(2, 1).repeat_interleave(2, 2)
        changed = model(images, attention=one_changed)
    assert again.attention_logits is None
    for number, head in enumerate(HEADS):
        assert torch.equal(again.logits[head], own.logits[head])
        assert torch.allclose(zeros.logits[head], wanted[head], rtol=1e-12, atol=1e-12)
        # A head reads its own map and no other's.
        assert torch.equal(changed.logits[head], own.logits[head]) == (number != 1)


def test_the_control_applies_no_map(images):
    model = shared("resnet20", images, mechanism="none")
    plain = ab.create_backbone("resnet20", heads=HEADS).double().eval()
    plain.backbone.load_state_dict(model.backbone.state_dict())
    with torch.no_grad():
        output, wanted = model(images), plain(images)
    assert all(torch.equal(output.logits[head], wanted[head]) for head in HEADS)
    assert output.attention.shape[1] == len(HEADS)


def test_it_comes_back_from_a_folder_and_older_folders_are_separate(images, tmp_path):
    model = shared("resnet20", images).float()
    model.save_pretrained(tmp_path / "saved")
    loaded = ab.load_model(tmp_path / "saved")
    with torch.no_grad():
        first, second = model(images.float()), loaded(images.float())
    assert loaded.config.perception == "shared"
    assert all(torch.equal(first.logits[head], second.logits[head]) for head in HEADS)
    values = model.config.to_dict()
    assert values.pop("perception") == "shared"
    assert type(model.config).from_dict(values).perception == "separate"


def test_graph_capture_agrees(images):
    images = images[..., :32, :32]
    model = shared("resnet14", images).train()
    model.task_chunk = 2
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    targets = {head: torch.tensor([0, 0]) for head in HEADS}
    ab.abn_loss(model(images), targets).total.backward()
    ab.abn_loss(compiled(images), targets).total.backward()
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(own.grad, other.grad, rtol=1e-4, atol=1e-7)
    model.eval()
    exported = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
    with torch.no_grad():
        eager, shipped = model(images), exported.module()(images[:1].repeat(3, 1, 1, 1))
    assert all(torch.allclose(eager.logits[head][:1], shipped.logits[head][1:2]) for head in HEADS)


def test_grad_cam_reads_the_one_pass_of_all_heads(images):
    model = shared("resnet20", images)
    by_head = {head: ab.explain(model, images, "grad-cam", {head: 0}).maps for head in ("hair", "hat")}
    assert not torch.equal(by_head["hair"], by_head["hat"])


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("resnet20", {"num_classes": 3}, "this network has one: leave it out"),
        ("resnet20", {"heads": {"a": 2}}, "this network has one: leave it out"),
        ("vit_tiny_patch16_224", {"heads": HEADS, "image_size": 64}, "only 0.0e\\+00 .* global_pool='avg'"),
    ],
)
def test_what_cannot_share_is_refused(name, options, says):
    with pytest.raises(ab.UserError, match=says):
        ab.create_model(name, perception="shared", branch="lite", **options)


def test_an_unknown_form_is_refused():
    with pytest.raises(ab.UserError, match="separate, shared"):
        ab.create_model("resnet20", heads=HEADS, perception="common")


def test_images_so_small_that_the_last_features_have_one_position_are_refused(images):
    model = shared("resnet18", images)
    with pytest.raises(ab.UserError, match="at least 64 pixels"):
        model(torch.randn(1, 3, 32, 32).double())


def test_the_setting_of_a_run_reaches_the_network(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    from PIL import Image

    lines = ["file_name,hat,beard"]
    for number in range(20):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(path / f"{number}.png")
        lines.append(f"{number}.png,{number % 2},{number // 2 % 2}")
    (path / "metadata.csv").write_text("\n".join(lines) + "\n")
    data = open_data(path, progress=False)
    model = make_model(TrainConfig(data=str(path), model="resnet20", perception="shared"), data)
    assert model.config.perception == "shared"
    assert make_model(TrainConfig(data=str(path), model="resnet20"), data).config.perception == "separate"
