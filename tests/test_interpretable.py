"""The interpretable CNN: masked maps, categories, the loss in its variants, and what training needs of it."""

import copy
import inspect
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import attention_branch as ab
from attention_branch.models.interpretable.network import FilterOptions, InterpretableLayer, InterpretableNetwork
from attention_branch.models.interpretable.templates import (
    fits,
    mutual_information_loss,
    own_template_pull,
    template_bank,
)
from attention_branch.models.saving import ModelConfig
from attention_branch.training import recipe, train
from attention_branch.training.journal import read_metrics
from attention_branch.training.mixing import Mixed, mixed_loss

NAME = "interpretable:resnet14"


def layer_of(filters=4, classes=3, **options):
    return InterpretableLayer(filters, classes, FilterOptions(**options))


def kept(layer, x):
    """Let a layer keep maps as leaves of a graph, and return them."""
    x = x.clone().requires_grad_()
    layer.train()(x)
    return x


def maps(images=5, filters=4, side=4, seed=0):
    return 10 * torch.rand(images, filters, side, side, generator=torch.Generator().manual_seed(seed))


class Tiny(nn.Module):
    """One convolution with an interpretable layer, without norms: small and the same on any number of processes."""

    def __init__(self, **options):
        super().__init__()
        self.conv, self.filters = nn.Conv2d(3, 6, 3, stride=2, padding=1), layer_of(6, 3, **options)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.filters(self.conv(x).relu()).mean((2, 3)))


def tiny(**options):
    torch.manual_seed(0)
    return InterpretableNetwork(ModelConfig("tiny", num_classes=3), Tiny(**options)).double().train()


def test_maps_are_masked_around_their_peaks():
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 2, 3], x[0, 0, 2, 4], x[0, 0, 7, 7], x[0, 0, 3, 4] = 4.0, 2.0, 3.0, 1.0
    masked = layer_of(1).eval()(x)[0, 0]
    # beta / n = 1 / 2 a cell: the neighbour keeps half, the one across the corner nothing, what lies far nothing.
    assert masked[2, 3] == 4
    assert masked[2, 4] == 1
    assert masked.sum() == 5
    assert torch.equal(layer_of(1, mask=False).eval()(x), x)


def test_no_gradient_passes_where_the_mask_is_zero():
    x = maps(images=1).requires_grad_()
    layer = layer_of()
    out = layer.eval()(x)
    out.sum().backward()
    assert torch.equal(x.grad, layer.template(x.detach()).clamp_min(0))


def test_a_filter_s_category_is_the_class_of_its_highest_mean_activation():
    layer = layer_of(filters=2)
    x = torch.ones(4, 2, 4, 4)
    x[1, 0], x[3, 0], x[2, 1] = 3.0, 5.0, 9.0
    kept(layer, x)
    labels = torch.tensor([0, 1, 2, 1])
    layer.filter_loss(labels, None)
    assert torch.equal(layer.activity, torch.tensor([[16.0, 64.0, 16.0], [16.0, 16.0, 144.0]]))
    assert layer.categories.tolist() == [1, 2]
    # Later batches move the means slowly, and leave those of absent classes.
    kept(layer, torch.zeros(1, 2, 4, 4))
    layer.filter_loss(torch.tensor([1]), None)
    assert torch.allclose(layer.activity, torch.tensor([[16.0, 0.99 * 64, 16.0], [16.0, 0.99 * 16, 144.0]]))


def test_the_paper_s_loss_pulls_own_images_to_their_peaks_and_others_to_the_negative_template():
    layer = layer_of(filter_weight=3.0)
    layer.epoch.fill_(2)
    x = kept(layer, maps())
    labels = torch.tensor([0, 1, 2, 0, -1])
    layer.filter_loss(labels, None).backward()
    bank = template_bank(4, 4)
    scores = fits(x.detach(), bank)
    for image in range(5):
        for number in range(4):
            mine = int(labels[image]) == int(layer.categories[number])
            template = int(x[image, number].detach().argmax()) if mine else 16
            own = torch.full((5, 4), template)
            pull = own_template_pull(scores, own)[image, number]
            factor = 3.0 / 2 * x[:, number].detach().amax((1, 2)).mean()  # lambda: weight / epoch * mean peak
            wanted = -factor * pull * bank[template] * float(labels[image] >= 0)
            assert torch.allclose(x.grad[image, number], wanted, rtol=1e-4, atol=1e-9)


def test_the_exact_loss_is_the_mutual_information_whatever_the_labels():
    losses = []
    for labels in ([0, 1, 2, 0, 1], [2, 2, -1, 0, 0]):
        layer = layer_of(variant="exact", filter_weight=2.0)
        x = kept(layer, maps())
        losses.append(layer.filter_loss(torch.tensor(labels), None))
    peaks = x.detach().amax((2, 3)).mean(0)
    wanted = 2.0 * (mutual_information_loss(fits(x.detach(), template_bank(4, 4))) * peaks).sum()
    assert torch.allclose(torch.stack(losses), wanted.expand(2))


def test_the_released_loss_counts_all_images_as_own_until_a_class_was_seen():
    layer = layer_of(variant="released")
    x = kept(layer, maps())
    layer.filter_loss(torch.tensor([0, 1, 2, 0, 1]), None).backward()
    # Every map is moved along its own template: the gradient is a multiple of it.
    mask = layer_of(variant="released").template(x.detach())
    assert torch.allclose(x.grad * mask[..., :1, :1], x.grad[..., :1, :1] * mask, atol=1e-12)
    first = layer.slope.clone()
    assert layer.seen.tolist() == [1, 1, 1]
    assert not torch.equal(first, torch.full((4,), 2.0))
    # From then on, images of other classes are pushed down everywhere alike.
    x = kept(layer, maps(seed=1))
    layer.filter_loss(torch.tensor([0, 1, 2, 0, 1]), None).backward()
    category = int(layer.categories[0])
    for image, label in enumerate([0, 1, 2, 0, 1]):
        if label != category:
            assert (x.grad[image, 0] == x.grad[image, 0, 0, 0]).all()


@pytest.mark.parametrize("variant", ["paper", "exact", "released"])
def test_mixed_images_weight_the_filter_loss_as_the_cross_entropy(variant):
    """With one share for all, and with one an image, the loss is the sum of both labels' losses by their shares."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels, others = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 0, 0])
    state = tiny(variant=variant, filter_weight=50.0).state_dict()

    def loss_of(share, mine=labels, neighbours=others):
        network = tiny(variant=variant, filter_weight=50.0)
        network.load_state_dict(state)
        for layer in network.layers.values():  # known categories, which the two calls hardly move
            layer.seen.fill_(1)
            layer.activity.copy_(torch.eye(3).repeat(2, 1).double() * 1e6)
        return mixed_loss(network.loss, network(images), Mixed(images, mine, neighbours, share), 0.0).total

    one = loss_of(0.3)
    each = loss_of(torch.full((4,), 0.3, dtype=torch.float64))
    assert torch.allclose(one, each, rtol=1e-6)
    apart = 0.3 * loss_of(1.0, neighbours=None) + 0.7 * loss_of(1.0, mine=others, neighbours=None)
    assert torch.allclose(one, apart, rtol=1e-4)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_mixed_images_belong_to_their_larger_part(variant):
    """Filter 0 is active in images of class 0, filter 1 in those of class 1; each is mixed with the other class."""
    layer = layer_of(2, 2, variant=variant).train()
    labels, others = torch.tensor([0, 1, 0, 1]), torch.tensor([1, 0, 1, 0])
    x = torch.zeros(4, 2, 3, 3)
    x[torch.arange(4), labels, 1, 1] = 1.0
    for _ in range(100):
        layer(x)
        layer.filter_loss(labels, torch.full((4,), 0.7))
        layer.filter_loss(others, torch.full((4,), 0.3))
    assert layer.categories.tolist() == [0, 1]
    assert layer.activity[0, 0] > 1.5 * layer.activity[0, 1]


def test_without_loss_and_mask_it_is_an_ordinary_network():
    torch.manual_seed(0)
    network = ab.create_backbone(NAME, num_classes=3, filter_weight=0.0, mask=False)
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    output = network(images)
    assert torch.equal(network.loss(output, labels).total, nn.functional.cross_entropy(output, labels))
    assert all(layer.kept is None for layer in network.layers.values())


def test_the_loss_falls_with_the_epoch_and_only_in_training():
    network = tiny(filter_weight=100.0)
    images, labels = torch.rand(4, 3, 8, 8).double(), torch.tensor([0, 1, 2, 0])

    def extra():
        losses = network.loss(network(images), labels)
        return (losses.total - losses.perception).item()

    first = extra()
    assert first != 0
    network.begin_epoch(4)
    assert extra() == pytest.approx(first / 5, rel=1e-9)
    network.eval()
    assert extra() == 0
    assert network.backbone.filters.kept is None


def test_one_image_trains_by_the_cross_entropy_alone():
    network = tiny(filter_weight=100.0)
    losses = network.loss(network(torch.rand(1, 3, 8, 8).double()), torch.tensor([1]))
    assert losses.total.item() == pytest.approx(losses.perception.item(), abs=1e-12)
    losses.total.backward()


def test_a_loss_of_another_batch_is_refused():
    network = tiny()
    output = network(torch.rand(2, 3, 8, 8).double())
    network(torch.rand(3, 3, 8, 8).double())
    with pytest.raises(ValueError, match="3 images in the last training pass and 2 targets"):
        network.loss(output, torch.tensor([0, 1]))


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_vgg_has_two_layers_before_its_last_pooling(variant):
    """The released code masks the added convolution's maps behind the pooling."""
    network = ab.create_backbone(
        "interpretable:vgg11", num_classes=3, variant=variant, channels=[8, 8, 8, 8, 8], mlp_ratio=1 / 64
    )
    kinds = [type(module).__name__ for module in network.backbone.features][-6:]
    tail = ["MaxPool2d", "InterpretableLayer"] if variant == "released" else ["InterpretableLayer", "MaxPool2d"]
    assert kinds == ["ReLU", "InterpretableLayer", "Conv2d", "ReLU", *tail]
    assert network.backbone.features[-4].weight.shape == (8, 8, 3, 3)
    assert network.config.smallest_side == (64 if variant == "released" else 32)
    network(torch.randn(2, 3, 64, 64))
    assert [tuple(layer.kept.shape[2:]) for layer in network.layers.values()] == [
        (4, 4), (2, 2) if variant == "released" else (4, 4)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "place", "side"),
    [
        ("resnet10t", "backbone.layer4.interpretable.filters", 64),
        ("densenet_bc_100_12", "backbone.norm.interpretable.filters", 8),
    ],
)
def test_other_networks_have_one_layer_on_top(name, place, side):
    network = ab.create_backbone(f"interpretable:{name}", num_classes=3)
    assert list(network.layers) == [place]
    assert network.config.smallest_side == side
    assert network.backbone.num_features == len(network.filter_categories)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vit_tiny_patch16_224", {}, "no place for interpretable filters.*Works"),
        ("convnext_atto", {}, "no place for interpretable filters"),
        ("resnet14", {"variant": "other"}, "use one of paper, exact, released"),
        ("resnet14", {"filter_weight": -1}, "filter_weight is -1"),
        ("resnet14", {"mask": 1}, "use True or False"),
        ("resnet15", {}, "Unknown backbone 'resnet15'"),
    ],
)
def test_what_does_not_fit_is_refused(name, options, words):
    with pytest.raises(ab.UserError, match=words):
        ab.create_backbone(f"interpretable:{name}", num_classes=3, **options)


def test_several_tasks_and_a_branch_are_refused():
    with pytest.raises(ab.UserError, match="takes one task"):
        ab.create_backbone(NAME, heads={"a": 2, "b": 3})
    with pytest.raises(ab.UserError, match="use create_backbone"):
        ab.create_model(NAME, num_classes=3)


def test_options_and_categories_are_saved_and_loaded(tmp_path):
    network = ab.create_backbone(NAME, num_classes=3, variant="released", filter_weight=7.0)
    network.loss(network(torch.randn(3, 3, 32, 32)), torch.tensor([0, 1, 2])).total.backward()
    network.eval().save_pretrained(tmp_path / "saved")
    loaded = ab.load_model(tmp_path / "saved")
    (before,), (after,) = network.layers.values(), loaded.layers.values()
    assert after.options == FilterOptions(variant="released", filter_weight=7.0)
    assert torch.equal(before.activity, after.activity)
    assert torch.equal(before.slope, after.slope)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(images), loaded(images))


def test_a_copy_after_a_training_pass_keeps_no_graph():
    network = tiny()
    network(torch.rand(2, 3, 8, 8).double())
    twin = copy.deepcopy(network)
    assert twin.backbone.filters.kept is None
    assert network.backbone.filters.kept is not None


def test_bfloat16_trains_and_the_loss_is_in_float32():
    network = ab.create_backbone(NAME, num_classes=3, filter_weight=100.0)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(torch.randn(4, 3, 32, 32))
    total = network.loss(output, torch.tensor([0, 1, 2, 0])).total
    total.backward()
    assert total.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("variant", ["paper", "exact", "released"])
def test_a_compiled_step_equals_the_eager_one(variant):
    images, labels = torch.rand(4, 3, 8, 8).double(), torch.tensor([0, 1, 2, 0])
    gradients = []
    for compiled in (False, True):
        network = tiny(variant=variant, filter_weight=100.0)
        if compiled:  # with the graph of the way back, which keeps what the loss may not change
            network.compile(backend="aot_eager_decomp_partition", fullgraph=True)
        for _ in range(2):
            network.zero_grad()
            network.loss(network(images), labels).total.backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for eager, other in zip(*gradients, strict=True):
        assert torch.allclose(eager, other, rtol=1e-9, atol=1e-12)


TWO = """
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from attention_branch.models.interpretable.network import FilterOptions, InterpretableLayer, InterpretableNetwork
from attention_branch.models.saving import ModelConfig


def layer_of(filters, classes, **options):
    return InterpretableLayer(filters, classes, FilterOptions(**options))


TINY
torch.set_num_threads(1)
rank = int(sys.argv[1])
generator = torch.Generator().manual_seed(1)
images = 4 * torch.rand(8, 3, 8, 8, generator=generator, dtype=torch.float64)
labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
alone = {}
for variant in ("paper", "exact"):
    network = tiny(variant=variant, filter_weight=1e4)
    network.loss(network(images), labels).total.backward()
    alone[variant] = network
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
mine = slice(rank, None, 2)
for variant, one in alone.items():
    two = tiny(variant=variant, filter_weight=1e4)
    ddp = DistributedDataParallel(two, static_graph=True)
    two.loss(ddp(images[mine]), labels[mine]).total.backward()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert p.grad.abs().max() > 0
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12, msg=variant)
    torch.testing.assert_close(one.backbone.filters.activity, two.backbone.filters.activity)
released = tiny(variant="released", filter_weight=1e4)
released.loss(DistributedDataParallel(released)(images[mine]), labels[mine]).total.backward()
for name in ("activity", "slope"):
    values = getattr(released.backbone.filters, name)
    other = values.clone()
    dist.broadcast(other, 0)
    assert torch.equal(values, other), name
dist.destroy_process_group()
"""


@pytest.mark.heavy
def test_two_processes_compute_the_loss_of_the_global_batch(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO.replace("TINY", f"{inspect.getsource(Tiny)}\n\n{inspect.getsource(tiny)}\n\n"))
    command = [sys.executable, str(script)]
    started = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet")], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


def test_abn_train_trains_it_with_the_epochs_of_its_schedule(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        InterpretableNetwork, "begin_epoch", lambda self, epoch: told.append((epoch, type(self).__name__))
    )
    config = recipe(
        "digits", data="digits:train=40,validation=10,test=10", model="interpretable:resnet14", image_size=32,
        model_options=("variant='exact'", "filter_weight=5.0", "width=0.5"), batch_size=20, epochs=2, maps=0,
        accelerator="cpu", out=str(tmp_path / "run"),
    )  # fmt: skip
    train(config)
    assert [epoch for epoch, _ in told] == [0, 1]
    assert len(read_metrics(tmp_path / "run")) == 2
    saved = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert saved["backbone_options"] == {"variant": "exact", "filter_weight": 5.0, "width": 0.5}
    assert type(ab.load_model(tmp_path / "run")) is InterpretableNetwork
