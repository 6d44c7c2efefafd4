"""The map of the authors' SENet code against sums by hand, what copes with a map without a bound, and SE weights."""

import json

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

import attention_branch as ab
from attention_branch.data import DataSet, open_data
from attention_branch.evaluation import evaluate
from attention_branch.metrics import collapse_alarm
from attention_branch.metrics.drive import MapDrive
from attention_branch.report import explain_files, write_evaluation_report
from attention_branch.report.strip import strip
from attention_branch.reproduce.arms import ARMS, network_cost
from attention_branch.reproduce.cells import Cell, cells_for, cells_of, note_on
from attention_branch.reproduce.plan import Protocol, settings
from attention_branch.reproduce.published import PUBLISHED
from attention_branch.reproduce.show import variant
from attention_branch.reproduce.sources import KINDS, Origin
from attention_branch.training import recipe, train
from attention_branch.training.building import make_model
from attention_branch.training.config import check_settings
from attention_branch.training.journal import read_metrics

OPTIONS = {"channels": [8, 16, 32, 64]}


def network(**options):
    torch.manual_seed(0)
    size = {} if "heads" in options else {"num_classes": 4}
    return ab.create_model("seresnet18", **size, **OPTIONS, **options)


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    return network(map_form="sum-log").eval()


# --- the map ---


@pytest.mark.parametrize("heads", [None, {"shape": 3, "smiling": 1}])
def test_the_map_is_the_sum_of_logarithms_over_each_heads_classes(images, heads):
    model = network(map_form="sum-log", **({"heads": heads} if heads else {})).eval()
    kept = []
    model.branch.class_norm.register_forward_hook(lambda _m, _i, output: kept.append(output.detach().double()))
    with torch.no_grad():
        attention = model(images).attention
    # A head of one logit has two activations; A is what the batch norm gives, where it is above zero.
    columns = [range(4)] if heads is None else [range(3), range(3, 5)]
    for task, own in enumerate(columns):
        wanted = sum(torch.log(1 + kept[0][:, k].clamp_min(0)) for k in own)
        assert torch.allclose(attention[:, task].double(), wanted, atol=1e-6)
    assert attention.shape == (3, len(columns), 4, 6)
    assert attention.min() >= 0
    assert attention.max() > 1
    assert model.map_range is None


def test_it_weights_the_features_as_any_map_does(model, images):
    with torch.no_grad():
        answer = model(images)
        g = model.backbone.layer3(model.backbone.layer2(model.backbone.layer1(_stem(model.backbone, images))))
        logits = model.backbone.forward_head(model.backbone.layer4(g * answer.attention + g))
        assert torch.allclose(answer.logits, logits, rtol=1e-4, atol=1e-5)
        assert torch.allclose(model(images, attention=answer.attention).logits, answer.logits, atol=1e-6)


def _stem(backbone, images):
    return backbone.maxpool(backbone.act1(backbone.bn1(backbone.conv1(images))))


def test_it_has_no_weights_of_its_own(model):
    sigmoid = network()
    counts = [sum(parameter.numel() for parameter in one.parameters()) for one in (sigmoid, model)]
    # A 3x3 convolution of four classes to one map, and the scale and shift of one batch norm.
    assert counts[0] - counts[1] == 9 * 4 + 2
    assert not [name for name in model.state_dict() if "mappers" in name or "map_norm" in name]


def test_in_bfloat16_it_is_still_summed_in_float32(model, images):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model(images).attention.dtype == torch.float32


def test_it_is_saved_and_older_files_have_the_sigmoid(model, images, tmp_path):
    model.save_pretrained(tmp_path / "new")
    loaded = ab.load_model(tmp_path / "new")
    with torch.no_grad():
        assert torch.equal(loaded(images).attention, model(images).attention)
    network().save_pretrained(tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    values = json.loads(path.read_text())
    assert values.pop("map_form") == "sigmoid"
    path.write_text(json.dumps(values))
    assert ab.load_model(tmp_path / "old").map_range == (0.0, 1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"map_form": "log"}, "Unknown map_form 'log'; use one of sigmoid, sum-log"),
        ({"map_form": "sum-log", "map_kernel": 1}, "without a convolution"),
        ({"map_form": "sum-log", "map_control": "constant"}, "use map_control='shuffled'"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(ab.UserError, match=words):
        ab.create_model("resnet20", 3, **options)


# --- what copes with a map without a bound ---


def test_the_explanation_has_no_scale_of_its_own(model, images):
    found = ab.explain(model, images, "attention")
    assert found.value_range is None
    assert ab.explain(network().eval(), images, "attention").value_range == (0.0, 1.0)
    assert found.raw.max() > 1
    assert found.figure(0).width > 100


@pytest.mark.parametrize(
    ("maps", "words"),
    [
        (torch.zeros(4, 3, 3), "0 everywhere in all images"),
        (350 + torch.rand(4, 3, 3), "constant over positions in 100% of the images"),
        (40 * torch.rand(1, 3, 3).expand(4, 3, 3), "the same for every image"),
        (torch.full((4, 3, 3), torch.inf), "NaN or infinite"),
        (40 * torch.rand(4, 3, 3), None),
        (torch.cat([5 * torch.rand(99, 3, 3), 2000 * torch.rand(1, 3, 3)]), None),
        (0.001 * torch.rand(4, 3, 3), None),
    ],
)
def test_the_alarm_knows_maps_without_a_bound(maps, words):
    found = collapse_alarm(maps, bounded=False)
    assert (found is None) == (words is None), found
    assert words is None or words in found


def test_the_pages_draw_it_over_each_maps_own_values(tmp_path):
    data = open_data("digits:train=10,validation=10,test=10")
    small = ab.create_model("seresnet18", 10, map_form="sum-log", class_names=data.class_names, **OPTIONS).eval()
    page = write_evaluation_report(
        tmp_path / "report.html", small, data.test, evaluate(small, data.test, progress=False)
    )
    data.test[0].image.save(tmp_path / "one.png")
    small.save_pretrained(tmp_path / "model")
    explain_files(tmp_path / "model", [tmp_path / "one.png"], tmp_path / "out", progress=False)
    for path in (page, next((tmp_path / "out").glob("*.html"))):
        text = path.read_text(encoding="utf-8")
        assert "one scale for every map, 0 to 1" not in text
        assert "own" in text


def test_an_inverted_map_stays_within_its_own_values(model, images):
    given = []
    handle = model.register_forward_pre_hook(
        lambda _m, _i, named: given.append(named.get("attention")), with_kwargs=True
    )
    drive = MapDrive()
    drive.update(model, images)
    handle.remove()
    own = model(images).attention.detach()
    top, bottom = own.amax((2, 3), keepdim=True), own.amin((2, 3), keepdim=True)
    others = [maps for maps in given if maps is not None]
    assert any(torch.allclose(maps, top + bottom - own, atol=1e-5) for maps in others)
    assert not any(torch.allclose(maps, 1 - own) for maps in others)
    assert "highest + lowest" in drive.compute().protocol["maps"]["inverted"]


def test_a_strip_is_drawn_over_each_maps_own_values(tmp_path):
    picture, values = Image.new("RGB", (8, 8), "grey"), torch.linspace(5, 9, 64).reshape(1, 8, 8)
    drawn = {
        name: np.asarray(Image.open(strip([picture], values, ["a"], tmp_path / f"{name}.png", **scale)))
        for name, scale in (("bounded", {}), ("own", {"value_range": None}))
    }
    middle = {name: pixels[len(pixels) // 2] for name, pixels in drawn.items()}
    # On [0, 1] all of it is at the top of the scale; over its own values it has the colormap's many colours.
    assert len(np.unique(drawn["own"].reshape(-1, 3), axis=0)) > len(np.unique(drawn["bounded"].reshape(-1, 3), axis=0))
    assert not np.array_equal(middle["own"], middle["bounded"])


def test_a_network_is_trained_with_it(tmp_path):
    run = train(
        recipe(
            "digits",
            data="digits:train=64,validation=16,test=16",
            model="seresnet18",
            model_options=("channels=[8, 16, 16, 16]", "layers=[1, 1, 1, 1]"),
            map_form="sum-log",
            epochs=1,
            warmup_epochs=0.0,
            batch_size=32,
            maps=2,
            out=str(tmp_path / "run"),
        )
    )
    (line,) = read_metrics(run)
    assert line["map_high"] > line["map_low"] >= 0
    assert (run / "maps" / "epoch-000.png").is_file()
    assert ab.load_model(run).config.map_form == "sum-log"
    with pytest.raises(ab.UserError, match="baseline has no map"):
        check_settings(recipe("cifar", data="digits", map_form="sum-log", baseline=True))


# --- the published row ---


def test_the_published_row_is_run_in_both_forms():
    number = next(one for one in PUBLISHED if (one.row, one.column) == ("SENet+ABN", "ImageNet"))
    assert [cell.name for cell in cells_of(number)] == [
        "seresnet152/imagenet/sum-log",
        "seresnet152/imagenet/residual",
    ]
    assert "log(1 + A)" in note_on(number)
    assert variant({"row": "SENet+ABN", "authors_depth": False}) == " (sigmoid map)"
    summed = {
        cell.network for table in ("table1", "table2", "table3") for cell in cells_for(table) if cell.arm == "sum-log"
    }
    assert summed == {"seresnet152"}


def test_its_arm_is_the_network_its_title_says():
    cell = Cell("seresnet18", "imagenet", "sum-log")
    config = settings(cell, Origin(KINDS["imagenet"], "somewhere", "ImageNet"), Protocol(), 0, OPTIONS)
    model = make_model(config, DataSet(spec="", seed=0, tasks={"label": ("a", "b", "c", "d")}))
    assert (model.config.map_form, model.mechanism, model.config.branch) == ("sum-log", "residual", "paper")
    size = {"num_classes": 4}
    costs = [network_cost(ARMS[arm], "seresnet18", size, 64, OPTIONS) for arm in ("residual", "sum-log")]
    assert costs[0].parameters - costs[1].parameters == 9 * 4 + 2


# --- squeeze-and-excitation weights ---


def by_hand(module, features):
    """The two layers of squeeze-and-excitation as matrices, in float64."""
    pooled = features.double().mean((2, 3))
    one, two = (getattr(module, name) for name in ("fc1", "fc2"))
    hidden = (pooled @ one.weight.double().flatten(1).T + one.bias.double()).clamp_min(0)
    return 1 / (1 + (-(hidden @ two.weight.double().flatten(1).T + two.bias.double())).exp())


@pytest.mark.parametrize("branch", [False, True])
def test_channel_weights_are_those_by_hand(images, branch):
    model = network().eval() if branch else ab.create_backbone("seresnet18", 4, **OPTIONS).eval()
    seen = {}
    for name, module in model.named_modules():
        if name.endswith(".se"):
            block = name.removesuffix(".se").removeprefix("backbone.")
            module.register_forward_pre_hook(lambda m, inputs, block=block: seen.update({block: by_hand(m, inputs[0])}))
    found = ab.channel_weights(model, images)
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    branches = ["branch.stage.blocks.0.0", "branch.stage.blocks.0.1"] if branch else []
    assert list(found) == [*blocks[:6], *branches, *blocks[6:]]
    for name, weights in found.items():
        assert torch.allclose(weights.double(), seen[name].detach(), atol=1e-5)
        assert weights.shape == (3, seen[name].shape[1])


def test_behind_the_gate_there_are_weights_for_each_head(images):
    heads = {"a": 2, "b": 3}
    model = network(heads=heads).eval()
    model.task_chunk = 1
    one_by_one = ab.channel_weights(model, images)
    model.task_chunk = 2
    together = ab.channel_weights(model, images)
    assert one_by_one["layer4.1"].shape == (3, 2, 64)
    assert one_by_one["layer3.1"].shape == (3, 32)
    for name, weights in together.items():
        assert torch.allclose(weights, one_by_one[name], atol=1e-5), name


@pytest.mark.parametrize(
    ("name", "first", "channels"),
    [
        ("mobilenetv3_small_050", "blocks.0.0", 16),
        ("ese_vovnet19b_slim_dw", "stages.0.blocks.0", 112),
        ("legacy_seresnet18", "layer1.0", 64),
        ("torchvision", "features.1.block", 16),
    ],
)
def test_every_kind_of_module_is_known(images, name, first, channels):
    of_torchvision = torchvision.models.mobilenet_v3_small
    network = of_torchvision(num_classes=3) if name == "torchvision" else timm.create_model(name, num_classes=3)
    found = ab.channel_weights(network.eval(), images)
    assert next(iter(found)) == first
    assert found[first].shape == (3, channels)
    assert min(float(weights.min()) for weights in found.values()) >= 0
    assert max(float(weights.max()) for weights in found.values()) <= 1


def test_nothing_is_left_behind_and_networks_without_blocks_are_refused(images):
    model = ab.create_backbone("seresnet18", 4, **OPTIONS).eval()
    found = ab.channel_weights(model, Image.new("RGB", (90, 70)))
    nn.Linear(8, 2)(found["layer1.0"]).sum().backward()  # a probe can be fitted on them
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ab.UserError, match="'resnet20' has no squeeze-and-excitation blocks"):
        ab.channel_weights(ab.create_backbone("resnet20", 3).eval(), images)
    with pytest.raises(ab.UserError, match="'Linear' has no squeeze"):
        ab.channel_weights(nn.Linear(3, 3).eval(), images)
