"""Checkpoints of the authors' code: the same answers as their layers in their order, and what is refused.

The truth is a second forward pass written here, function by function, from the order of layers in the authors' code.
It draws each tensor under the authors' name when a layer first asks for it, so it makes the checkpoint too.
"""

import pickle
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
import torchvision

import attention_branch as ab
from attention_branch.models.official import NETWORKS

CLASSES = 7
# Both CIFAR sets by CIFAR-10's numbers; ImageNet by Resize(256), CenterCrop(224) as torchvision has them.
SMALL = ab.Preprocessing((32, 32), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), "squash", 1.0)
LARGE = ab.Preprocessing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "crop", 224 / 256, "bilinear")


class Authors:
    """Layers by the authors' names, in float64; `state` fills with float32 tensors."""

    def __init__(self, attention=True, map_kernel=3, counted=True):
        self.state = OrderedDict()
        self.attention, self.map_kernel, self.counted = attention, map_kernel, counted

    def _tensor(self, name, make):
        if name not in self.state:
            self.state[name] = make()
        return self.state[name].double()

    def conv(self, x, name, outputs, kernel=1, stride=1, groups=1):
        shape = (outputs, x.shape[1] // groups, kernel, kernel)
        scale = (2 / (shape[1] * kernel**2)) ** 0.5
        weight = self._tensor(f"{name}.weight", lambda: torch.randn(shape) * scale)
        return F.conv2d(x, weight, stride=stride, padding=kernel // 2, groups=groups)

    def norm(self, x, name):
        count = x.shape[1]
        weight = self._tensor(f"{name}.weight", lambda: 0.5 + torch.rand(count))
        bias = self._tensor(f"{name}.bias", lambda: 0.3 * torch.randn(count))
        # Near the true statistics, as in a trained network: else the signal grows with depth and the map saturates.
        var, mean = torch.var_mean(x.float(), dim=(0, 2, 3))
        mean = self._tensor(f"{name}.running_mean", lambda: mean + 0.3 * var.sqrt() * torch.randn(count))
        var = self._tensor(f"{name}.running_var", lambda: 0.01 + var * (0.5 + torch.rand(count)))
        if self.counted:
            self._tensor(f"{name}.num_batches_tracked", lambda: torch.tensor(3))
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)

    def linear(self, x, name):
        weight = self._tensor(f"{name}.weight", lambda: torch.randn(CLASSES, x.shape[1]) * x.shape[1] ** -0.5)
        return F.linear(x, weight, self._tensor(f"{name}.bias", lambda: torch.randn(CLASSES)))

    def squeeze(self, x, name):
        """Squeeze-and-excitation: two linear layers with biases, a sixteenth as wide between them."""
        y = x.mean((2, 3))
        for layer, inputs, outputs in (("fc1", x.shape[1], x.shape[1] // 16), ("fc2", x.shape[1] // 16, x.shape[1])):
            weight = self._tensor(
                f"{name}.{layer}.weight",
                lambda inputs=inputs, outputs=outputs: 3 * torch.randn(outputs, inputs) * inputs**-0.5,
            )
            y = F.linear(y, weight, self._tensor(f"{name}.{layer}.bias", lambda outputs=outputs: torch.randn(outputs)))
            y = F.relu(y) if layer == "fc1" else torch.sigmoid(y)
        return x * y[:, :, None, None]

    def answer(self, g, copied_stage, perceive, norm_is_called=True, summed=False):
        """Return (logits, attention logits, map), or logits alone where there is no attention branch."""
        if not self.attention:
            return perceive(g)
        x = copied_stage(g)
        normed = self.norm(x, "bn_att")
        x = normed if norm_is_called else x
        x = F.relu(self.norm(self.conv(x, "att_conv", CLASSES), "bn_att2"))
        if summed:
            attention = torch.log(x + 1).sum(1, keepdim=True)
        else:
            attention = torch.sigmoid(self.norm(self.conv(x, "att_conv3", 1, self.map_kernel), "bn_att3"))
        scores = self.conv(x, "att_conv2", CLASSES).mean((2, 3))
        return perceive(g * attention + g), scores, attention


def residual_block(net, x, name, width, stride, bottleneck, squeezed=False):
    outputs = width * (4 if bottleneck else 1)
    if bottleneck:
        y = F.relu(net.norm(net.conv(x, f"{name}.conv1", width), f"{name}.bn1"))
        y = F.relu(net.norm(net.conv(y, f"{name}.conv2", width, 3, stride), f"{name}.bn2"))
        y = net.norm(net.conv(y, f"{name}.conv3", outputs), f"{name}.bn3")
    else:
        y = F.relu(net.norm(net.conv(x, f"{name}.conv1", width, 3, stride), f"{name}.bn1"))
        y = net.norm(net.conv(y, f"{name}.conv2", width, 3), f"{name}.bn2")
    if squeezed:
        y = net.squeeze(y, name)
    if stride != 1 or x.shape[1] != outputs:
        x = net.norm(net.conv(x, f"{name}.downsample.0", outputs, 1, stride), f"{name}.downsample.1")
    return F.relu(y + x)


def residual_stage(net, x, name, width, count, stride, bottleneck, squeezed=False):
    for number in range(count):
        x = residual_block(net, x, f"{name}.{number}", width, stride if number == 0 else 1, bottleneck, squeezed)
    return x


def small_resnet(net, x, count, bottleneck):
    x = F.relu(net.norm(net.conv(x, "conv1", 16, 3), "bn1"))
    x = residual_stage(net, x, "layer1", 16, count, 1, bottleneck)
    x = residual_stage(net, x, "layer2", 32, count, 2, bottleneck)
    return net.answer(
        x,
        lambda g: residual_stage(net, g, "att_layer3", 64, count, 1, bottleneck),
        lambda g: net.linear(residual_stage(net, g, "layer3", 64, count, 2, bottleneck).mean((2, 3)), "fc"),
    )


def imagenet_resnet(net, x, counts, bottleneck, squeezed=False):
    x = F.relu(net.norm(net.conv(x, "conv1", 64, 7, 2), "bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for number in (1, 2, 3):
        count, stride = counts[number - 1], min(number, 2)
        x = residual_stage(net, x, f"layer{number}", 32 * 2**number, count, stride, bottleneck, squeezed)

    def perceive(g):
        return net.linear(residual_stage(net, g, "layer4", 512, counts[3], 2, bottleneck, squeezed).mean((2, 3)), "fc")

    return net.answer(
        x,
        lambda g: residual_stage(net, g, "att_layer4", 512, counts[3], 1, bottleneck, squeezed),
        perceive,
        summed=squeezed,  # their SENet's map is a sum of logarithms
    )


def wide_stage(net, x, name, width, count, stride):
    for number in range(count):
        block, step = f"{name}.layer.{number}", stride if number == 0 else 1
        y = F.relu(net.norm(x, f"{block}.bn1"))
        if x.shape[1] != width:  # the projection reads the activated input
            x = net.conv(y, f"{block}.convShortcut", width, 1, step)
        y = net.conv(y, f"{block}.conv1", width, 3, step)
        x = x + net.conv(F.relu(net.norm(y, f"{block}.bn2")), f"{block}.conv2", width, 3)
    return x


def wide_resnet(net, x, widen, count):
    x = net.conv(x, "conv1", 16, 3)
    x = wide_stage(net, x, "block1", 16 * widen, count, 1)
    x = wide_stage(net, x, "block2", 32 * widen, count, 2)

    def perceive(g):
        g = F.relu(net.norm(wide_stage(net, g, "block3", 64 * widen, count, 2), "bn1"))
        return net.linear(g.mean((2, 3)), "fc")

    return net.answer(x, lambda g: wide_stage(net, g, "att_block3", 64 * widen, count, 1), perceive)


def dense_block(net, x, name, count):
    for number in range(count):
        y = net.conv(F.relu(net.norm(x, f"{name}.{number}.bn1")), f"{name}.{number}.conv1", 48)
        y = net.conv(F.relu(net.norm(y, f"{name}.{number}.bn2")), f"{name}.{number}.conv2", 12, 3)
        x = torch.cat([x, y], 1)
    return x


def densenet(net, x):
    x = net.conv(x, "conv1", 24, 3)
    for number in (1, 2):
        x = dense_block(net, x, f"dense{number}", 16)
        x = net.conv(F.relu(net.norm(x, f"trans{number}.bn1")), f"trans{number}.conv1", x.shape[1] // 2)
        x = F.avg_pool2d(x, 2)

    def perceive(g):
        return net.linear(F.relu(net.norm(dense_block(net, g, "dense3", 16), "bn")).mean((2, 3)), "fc")

    return net.answer(x, lambda g: dense_block(net, g, "att_dense3", 16), perceive)


def resnext_stage(net, x, name, outputs, stride):
    for number in range(3):
        block, step, width = f"{name}.{name}_bottleneck_{number}", stride if number == 0 else 1, 2 * outputs
        y = F.relu(net.norm(net.conv(x, f"{block}.conv_reduce", width), f"{block}.bn_reduce"))
        y = F.relu(net.norm(net.conv(y, f"{block}.conv_conv", width, 3, step, groups=8), f"{block}.bn"))
        y = net.norm(net.conv(y, f"{block}.conv_expand", outputs), f"{block}.bn_expand")
        if x.shape[1] != outputs:
            x = net.conv(x, f"{block}.shortcut.shortcut_conv", outputs, 1, step)
            x = net.norm(x, f"{block}.shortcut.shortcut_bn")
        x = F.relu(x + y)
    return x


def resnext(net, x):
    x = F.relu(net.norm(net.conv(x, "conv_1_3x3", 64, 3), "bn_1"))
    x = resnext_stage(net, x, "stage_1", 256, 1)
    x = resnext_stage(net, x, "stage_2", 512, 2)
    return net.answer(
        x,
        lambda g: resnext_stage(net, g, "stage_att", 1024, 1),
        lambda g: net.linear(resnext_stage(net, g, "stage_3", 1024, 2).mean((2, 3)), "classifier"),
        norm_is_called=False,
    )


FORWARD = {
    "resnet20": (lambda net, x: small_resnet(net, x, 3, False), 16),
    "resnet65b": (lambda net, x: small_resnet(net, x, 7, True), 16),
    "wrn_28_10": (lambda net, x: wide_resnet(net, x, 10, 4), 8),
    "densenet_bc_100_12": (densenet, 16),
    "resnext29_8x64d": (resnext, 8),
    "resnet18": (lambda net, x: imagenet_resnet(net, x, (2, 2, 2, 2), False), 64),
    "resnet50": (lambda net, x: imagenet_resnet(net, x, (3, 4, 6, 3), True), 64),
    "seresnet50": (lambda net, x: imagenet_resnet(net, x, (3, 4, 6, 3), True, squeezed=True), 64),
}


def random_checkpoint(name, **options):
    """Return the authors' layers with random weights, images, and their answer in float64."""
    forward, side = FORWARD[name]
    net = Authors(**options)
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    return net, images, forward(net, images)


def as_the_authors_save(net):
    """Return what cifar.py and imagenet.py write: DataParallel's names, and more than the weights."""
    weights = OrderedDict((f"module.{key}", value) for key, value in net.state.items())
    momenta = {0: {"momentum_buffer": torch.zeros(2)}}
    optimizer = {"state": momenta, "param_groups": [{"lr": 0.1, "nesterov": False, "params": [0]}]}
    return {"epoch": 300, "state_dict": weights, "acc": 77.18, "best_acc": torch.tensor(77.18), "optimizer": optimizer}


def difference(mine, theirs):
    return float((mine - theirs).abs().max())


@pytest.mark.parametrize("name", FORWARD)
def test_answers_are_those_of_the_authors_layers(name, tmp_path):
    net, images, (logits, scores, attention) = random_checkpoint(name)
    assert attention.std() > 0.1
    assert min(difference(answer[0], answer[1]) for answer in (logits, scores)) > 0.1
    path = tmp_path / "model_best.pth.tar"
    torch.save(as_the_authors_save(net), path)
    model = ab.load_official(path, name)
    assert isinstance(model, ab.AttentionBranchNetwork)
    assert (model.name, model.num_classes, model.training) == (name, CLASSES, False)
    assert model.preprocessing == (LARGE if images.shape[-1] == 64 else SMALL)
    with torch.no_grad():
        answer = model.double()(images)
    assert difference(answer.attention_logits, scores) < (1e-6 if name.startswith("resnext") else 1e-10)
    # The map is made in float32, and the logits depend on it.
    assert difference(answer.attention, attention) < 2e-7 * max(1, float(attention.max()))
    assert difference(answer.logits, logits) < 1e-6
    assert model.config.map_form == ("sum-log" if name.startswith("se") else "sigmoid")
    if name.startswith("resnext"):
        # Their norm is not called: ours is the identity, and stays it in training where it is kept out of it.
        model.train().branch.norm.eval()
        x = torch.randn(2, 1024, 4, 4, dtype=torch.float64)
        assert difference(model.branch.norm(x).detach(), x) < 1e-6


@pytest.mark.parametrize("name", ["resnet20", "densenet_bc_100_12"])
def test_plain_checkpoints_give_plain_networks(name, tmp_path):
    net, images, logits = random_checkpoint(name, attention=False)
    torch.save(as_the_authors_save(net), tmp_path / "plain.pth.tar")
    model = ab.load_official(tmp_path / "plain.pth.tar", name, CLASSES)
    assert isinstance(model, ab.PlainNetwork)
    assert not model.training
    with torch.no_grad():
        assert difference(model.double()(images), logits) < 1e-10


def test_torchvisions_resnets_are_plain_checkpoints_too(tmp_path):
    theirs = torchvision.models.resnet18(num_classes=CLASSES).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert difference(ab.load_official(tmp_path / "resnet18.pth", "resnet18")(images), theirs(images)) < 1e-5


def test_files_of_old_pytorch(tmp_path):
    """No zip, no count of batches, a bare state dict, a map of a 1x1 convolution: all are read."""
    net, images, (logits, _, attention) = random_checkpoint("resnet20", counted=False, map_kernel=1)
    path = tmp_path / "old.pth"
    torch.save(dict(net.state), path, _use_new_zipfile_serialization=False)
    model = ab.load_official(str(path), "resnet20", num_classes=CLASSES).double()
    assert model.config.map_kernel == 1
    with torch.no_grad():
        answer = model(images)
    assert difference(answer.logits, logits) < 1e-6
    assert difference(answer.attention, attention) < 2e-7


def test_a_loaded_network_can_be_saved(tmp_path):
    net, images, (logits, _, attention) = random_checkpoint("resnet20")
    torch.save(as_the_authors_save(net), tmp_path / "theirs.pth.tar")
    ab.load_official(tmp_path / "theirs.pth.tar", "resnet20").save_pretrained(tmp_path / "ours")
    model = ab.load_model(tmp_path / "ours").double()
    with torch.no_grad():
        answer = model(images)
    assert difference(answer.logits, logits) < 1e-6
    assert difference(answer.attention, attention) < 2e-7


# --- refusals ---


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return random_checkpoint("resnet20")[0].state


@pytest.fixture
def refusal(tmp_path):
    def said(content, name="resnet20", num_classes=None):
        path = tmp_path / "theirs.pth.tar"
        torch.save(content, path)
        with pytest.raises(ab.UserError) as caught:
            ab.load_official(path, name, num_classes)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return said


def test_what_does_not_fit_is_named(state, refusal):
    without = {key: value for key, value in state.items() if key != "layer2.1.bn2.running_mean"}
    assert "it lacks 'layer2.1.bn2.running_mean'; it is incomplete" in refusal(without)
    assert "resnet20 has no 'layer1.0.se.weight'" in refusal(state | {"layer1.0.se.weight": torch.zeros(3)})
    wide = state | {"layer1.0.conv2.weight": torch.zeros(32, 16, 3, 3)}
    assert "'layer1.0.conv2.weight' is (32, 16, 3, 3) there and (16, 16, 3, 3) in resnet20" in refusal(wide)
    mapped = {key: value for key, value in state.items() if "att_conv3" not in key}
    assert "it lacks 'att_conv3.weight'" in refusal(mapped)
    assert "(1, 7, 5, 5)" in refusal(state | {"att_conv3.weight": torch.zeros(1, 7, 5, 5)})
    assert "'att_conv2.weight' is (7, 7) there and (7, 7, 1, 1)" in refusal(
        state | {"att_conv2.weight": torch.zeros(7, 7)}
    )
    assert "it lacks the matrix 'fc.weight'" in refusal(
        {key: value for key, value in state.items() if key != "fc.weight"}
    )
    whole = {key: value.to(torch.int8) for key, value in state.items()}
    assert "'conv1.weight' is of torch.int8" in refusal(whole)
    assert "has 7 classes, not 100" in refusal(state, num_classes=100)


def stages(count, **first):
    """Return names and shapes enough to tell which network it is."""
    names = {f"layer{number}.{block}.conv1.weight": (1,) for number in (1, 2, 3) for block in range(count)}
    shapes = names | {"bn1.weight": (16,), "fc.weight": (7, 64), "layer1.0.conv1.weight": (16, 16, 1, 1), **first}
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def test_the_network_it_looks_like_is_named(state, refusal):
    assert "it looks like resnet20, so load it under that name" in refusal(state, "resnet65b")
    assert "it looks like resnet164b" in refusal(stages(18, **{"layer1.0.conv3.weight": (64, 16, 1, 1)}))
    assert "it looks like resnet110" in refusal(stages(18))
    four = {f"layer4.{block}.bn1.weight": (1,) for block in range(2)}
    assert "it looks like resnet18" in refusal(stages(2, **four, **{"layer1.0.conv1.weight": (64, 64, 3, 3)}))
    wide = {f"block1.layer.{block}.conv1.weight": torch.zeros(64, 16, 3, 3) for block in range(6)}
    assert "it looks like wrn_40_4, which is none of resnet14," in refusal(wide | {"fc.weight": torch.zeros(7, 2)})
    dense = {f"dense1.{layer}.conv2.weight": torch.zeros(12, 48, 3, 3) for layer in range(16)}
    assert "it looks like densenet_bc_100_12" in refusal(dense)
    name = "stage_1.stage_1_bottleneck_{}.conv_conv.weight"
    grouped = {name.format(block): torch.zeros(512, 64, 3, 3) for block in range(3)}
    assert "it looks like resnext29_8x64d" in refusal(grouped)
    # A pre-activation ResNet has the same blocks, and no network here is one.
    before = {key: value for key, value in stages(3).items() if key != "bn1.weight"}
    assert "looks like" not in refusal(before)


def test_squeeze_and_excitation_is_told_from_the_plain_blocks(refusal):
    four = {f"layer{number}.{block}.bn1.weight": (1,) for number in (3, 4) for block in range(3 if number == 4 else 6)}
    second = {f"layer2.{block}.bn1.weight": (1,) for block in range(4)}
    names = {"layer1.0.conv1.weight": (64, 64, 1, 1), "layer1.0.conv3.weight": (256, 64, 1, 1)}
    senet = stages(3, **four, **second, **names)
    senet["layer1.0.fc1.weight"] = torch.zeros(16, 256)
    senet["att_conv3.weight"] = torch.zeros(1, 7, 3, 3)
    assert "it looks like seresnet50, so load it under that name" in refusal(senet, "resnet50")


def test_names_are_checked(state, refusal):
    assert "Did you mean 'resnet20'" in refusal(state, "resnet_20")
    assert "'vgg16' is not a network of the authors' code" in refusal(state, "vgg16")
    assert "'['resnet20']' is not a network" in refusal(state, ["resnet20"])
    assert {"resnet20", "resnet164b", "wrn_28_10", "densenet_bc_100_12", "resnet152"} < set(NETWORKS)


class Stranger:
    """An object whose loading would run code."""

    def __reduce__(self):
        return (print, ("code was run",))


def test_files_that_are_no_checkpoints(state, refusal, tmp_path, capsys):
    assert "holds objects that could run code" in refusal({"state_dict": dict(state), "args": Stranger()})
    assert "could run code" in refusal(torch.nn.Linear(2, 2))
    assert capsys.readouterr().out == ""
    assert "holds no state dict" in refusal([1, 2])
    assert "holds no state dict" in refusal({})
    assert "its 'epoch' is no tensor but int" in refusal({"epoch": 3, "model": dict(state)})
    path = tmp_path / "theirs.pth.tar"
    for damaged in (b"", path.read_bytes()[:200], b"PK\x03\x04 and so on", pickle.dumps({"a": Stranger()}, protocol=2)):
        path.write_bytes(damaged)
        with pytest.raises(ab.UserError, match=r"theirs\.pth\.tar' could not be read"):
            ab.load_official(path, "resnet20")
    with pytest.raises(ab.UserError, match="There is no file"):
        ab.load_official(tmp_path / "nothing.pth", "resnet20")
    with pytest.raises(ab.UserError, match=r"is a folder.*load_model"):
        ab.load_official(tmp_path, "resnet20")
