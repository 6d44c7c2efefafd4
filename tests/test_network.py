"""The network against the paper written out by hand, and its exact savings, in float64."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import attention_branch as ab
from attention_branch.models.gate import gated


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def settled(model, images):
    """Return the model in eval mode after a few batches, so that its running statistics mean something."""
    model = model.double().train()
    with torch.no_grad():
        for _ in range(3):
            model(images + 0.1 * torch.randn_like(images))
    return model.eval()


def by_hand(model, images, mechanism):
    """ResNet-18 with an attention branch, layer by layer as the paper and the authors' code describe it."""
    net, branch = model.backbone, model.branch
    x = net.maxpool(net.act1(net.bn1(net.conv1(images))))
    g = net.layer3(net.layer2(net.layer1(x)))
    a = g
    for block in branch.stage.blocks[0]:
        a = block(a)
    a = F.relu(branch.class_norm(branch.classes(branch.norm(a))))
    attention = torch.sigmoid(branch.map_norm(branch.mappers[0](a)))
    attention_logits = F.conv2d(a, branch.scorers[0].weight[:, :, None, None]).mean((2, 3))
    gate = {"residual": g * attention + g, "product": g * attention, "none": g}[mechanism]
    logits = net.fc(net.layer4(gate).mean((2, 3)))
    return logits, attention_logits, attention


@pytest.mark.parametrize("mechanism", ["residual", "product", "none"])
@pytest.mark.parametrize("map_kernel", [1, 3])
def test_equals_the_paper_written_out(images, mechanism, map_kernel):
    model = ab.create_model("resnet18", num_classes=4, mechanism=mechanism, map_kernel=map_kernel)
    model = settled(model, images)
    assert model.branch.mappers[0].kernel_size == (map_kernel, map_kernel)
    with torch.no_grad():
        for ours, wanted in zip(model(images), by_hand(model, images, mechanism), strict=True):
            assert torch.allclose(ours.double(), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("control", "wanted"), [("constant", lambda m: 0 * m + 0.5), ("shuffled", lambda m: m[[1, 0]])]
)
def test_map_controls_answer_as_with_that_map_given(images, control, wanted):
    network = settled(ab.create_model("resnet20", num_classes=4), images)
    controlled = ab.create_model("resnet20", num_classes=4, map_control=control).double().eval()
    controlled.load_state_dict(network.state_dict())
    with torch.no_grad():
        own = network(images)
        expected = network(images, attention=wanted(own.attention))
        found = controlled(images)
        assert torch.allclose(found.logits, expected.logits)
        assert not torch.allclose(found.logits, own.logits, rtol=1e-4)
        assert torch.equal(found.attention_logits, own.attention_logits)
        assert torch.equal(found.attention, wanted(own.attention))
        assert torch.equal(controlled.attend(images)[0], found.attention)


def test_a_shuffled_map_teaches_the_image_it_comes_from(images):
    model = ab.create_model("resnet20", num_classes=4, map_control="shuffled").double()
    given = images.clone().requires_grad_()
    model(given).attention[0].sum().backward()
    gradient = given.grad.abs().sum((1, 2, 3))
    # Batch norms couple the images of a batch in training, but only the neighbour is read directly.
    assert gradient[1] > 0
    model.eval()
    given.grad = None
    model(given).attention[0].sum().backward()
    gradient = given.grad.abs().sum((1, 2, 3))
    assert gradient[1] > 0
    assert gradient[0] == 0


def test_gradients_reach_all_three_parts_from_each_loss(images):
    """The perception loss teaches the branch through the map, and both losses teach the extractor (no detach)."""
    model = ab.create_model("resnet20", num_classes=4).double()
    output = model(images[..., :32, :32])
    for logits, reached in ((output.logits, True), (output.attention_logits, False)):
        model.zero_grad()
        F.cross_entropy(logits, torch.tensor([0, 1])).backward(retain_graph=True)
        assert model.branch.classes.weight.grad.abs().sum() > 0
        assert model.backbone.layer1[0].convolutions[0].weight.grad.abs().sum() > 0
        assert (model.backbone.fc.weight.grad is not None and bool(model.backbone.fc.weight.grad.any())) == reached


def test_the_mean_before_the_linear_layer_is_exact(images):
    model = settled(ab.create_model("resnet18", num_classes=7), images)
    with torch.no_grad():
        evidence = model.class_evidence(images)
        assert evidence.shape == (2, 7, 4, 4)
        assert torch.allclose(evidence.mean((2, 3)), model(images).attention_logits, rtol=1e-12, atol=1e-13)


def macs(run):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 2


def test_unused_outputs_cost_nothing(images):
    model = settled(ab.create_model("resnet18", num_classes=1000), images)
    plain = ab.create_backbone("resnet18", num_classes=1000).double().eval()
    whole = macs(lambda: model(images))
    bare = macs(lambda: plain(images))
    without_scores = macs(lambda: model(images, attention_logits=False))
    assert whole - without_scores == 2 * 1000 * 1000  # one K x K product an image, not one a position
    given = torch.rand(2, 4, 4, dtype=torch.float64)
    assert macs(lambda: model(images, attention=given, attention_logits=False)) == bare
    attended = macs(lambda: model.attend(images))
    assert attended < whole - macs(lambda: plain.backbone.layer4(torch.zeros(2, 256, 4, 4, dtype=torch.float64)))
    with torch.no_grad():
        output, lean = model(images), model(images, attention_logits=False)
        attention, scores = model.attend(images)
    assert lean.attention_logits is None
    assert torch.equal(lean.logits, output.logits)
    assert torch.equal(attention, output.attention)
    assert torch.equal(scores, output.attention_logits)


class TestGivenMap:
    def test_own_map_given_back_changes_nothing(self, images):
        model = settled(ab.create_model("resnet20", num_classes=3), images)
        with torch.no_grad():
            own = model(images)
            for shape in (own.attention, own.attention[:, 0]):
                again = model(images, attention=shape)
                assert torch.equal(again.logits, own.logits)
                assert torch.equal(again.attention, own.attention)

    def test_a_map_of_any_size_is_resized(self, images):
        model = settled(ab.create_model("resnet20", num_classes=3), images)
        big = torch.rand(2, 1, 64, 64, dtype=torch.float64)
        small = F.interpolate(big, size=(32, 32), mode="bilinear", align_corners=False)
        with torch.no_grad():
            assert torch.allclose(model(images, attention=big).logits, model(images, attention=small).logits)

    def test_ones_double_the_features_of_residual(self, images):
        model = settled(ab.create_model("resnet20", num_classes=3), images)
        with torch.no_grad(), gated(model.backbone, model.place, torch.full((2, 1, 32, 32), 2.0, dtype=torch.float64)):
            wanted = model.backbone(images)
        with torch.no_grad():
            assert torch.allclose(model(images, attention=torch.ones(2, 5, 5).double()).logits, wanted)

    def test_a_map_of_another_shape_is_refused(self, images):
        model = ab.create_model("resnet20", num_classes=3).double()
        with pytest.raises(ab.UserError, match=r"\(5, 1, 8, 8\)"):
            model(images, attention=torch.rand(5, 1, 8, 8))

    def test_nothing_stays_after_a_failed_pass(self, images):
        model = ab.create_model("resnet20", num_classes=3).double().eval()
        with pytest.raises(ab.UserError):
            model(images, attention=torch.rand(5, 1, 8, 8))
        plain = ab.create_backbone("resnet20", num_classes=3).double().eval()
        plain.backbone.load_state_dict(model.backbone.state_dict())
        with torch.no_grad():
            assert torch.equal(model.backbone(images), plain(images))


HEADS = {"smiling": 2, "hair": 5, "young": 1, "hat": 2, "beard": 3}


class TestManyTasks:
    @pytest.mark.parametrize("name", ["resnet20", "convnext_atto"])
    def test_each_head_is_the_backbone_gated_by_its_own_map(self, images, name):
        model = settled(ab.create_model(name, heads=HEADS), images)
        with torch.no_grad():
            output = model(images)
            assert output.attention.shape[1] == len(HEADS)
            start = 0
            for task, (head, size) in enumerate(HEADS.items()):
                with gated(model.backbone, model.place, 1 + output.attention[:, task : task + 1]):
                    alone = model.backbone(images)[:, start : start + size]
                start += size
                assert output.logits[head].shape == output.attention_logits[head].shape == (2, size)
                assert torch.allclose(output.logits[head], alone, rtol=1e-6, atol=1e-8)

    @pytest.mark.parametrize("name", ["resnet20", "convnext_atto"])
    def test_chunks_do_not_change_the_answer_or_the_gradients(self, images, name):
        model = settled(ab.create_model(name, heads=HEADS), images)
        targets = {head: torch.tensor([0, 0]) for head in HEADS}
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()  # a group of heads is a batch of its own for batch norms, so they are left out here
        results = []
        for chunk in (5, 2, 1):
            model.task_chunk = chunk
            model.zero_grad()
            loss = ab.abn_loss(model(images), targets)
            loss.total.backward()
            results.append([loss.total.detach(), *(p.grad.clone() for p in model.parameters())])
        for other in results[1:]:
            for wanted, found in zip(results[0], other, strict=True):
                assert torch.allclose(wanted, found, rtol=1e-6, atol=1e-9)

    def test_recomputing_a_chunk_counts_its_batch_once(self, images):
        model = ab.create_model("resnet20", heads=HEADS).double().train()
        model.task_chunk = 2
        norm = model.backbone.layer3[0].convolutions[1]
        seen = []
        handle = norm.register_forward_hook(lambda *_: seen.append(norm.running_mean.clone()))
        output = model(images)
        after_forward = norm.running_mean.clone()
        ab.abn_loss(output, {head: torch.tensor([0, 0]) for head in HEADS}).total.backward()
        handle.remove()
        assert len(seen) == 3 + 2  # three groups, two of them computed again
        assert torch.equal(norm.running_mean, after_forward)

    def test_heads_are_divided_evenly_among_the_groups_in_training(self):
        """With N = T every group must hold every head equally often, so its batch statistics stand for all heads."""
        model = ab.create_model("resnet20", heads={f"h{i}": 2 for i in range(4)}).train()
        model.task_chunk = 1
        factor = torch.arange(4.0).view(1, 4, 1, 1).expand(4, 4, 1, 1)
        for group in model._task_chunks(factor):
            assert sorted(group.flatten().tolist()) == [0.0, 1.0, 2.0, 3.0]

    def test_forty_heads_fit(self):
        model = ab.create_model("resnet20", heads={f"attribute_{i}": 2 for i in range(40)}).eval()
        with torch.no_grad():
            output = model(torch.randn(2, 3, 32, 32))
        assert output.attention.shape == (2, 40, 16, 16)
        assert len(output.logits) == 40

    def test_compiles_and_exports(self, images):
        model = settled(ab.create_model("resnet20", heads=HEADS), images)
        model.task_chunk = 2
        with torch.no_grad():
            eager = model(images)
            torch._dynamo.reset()
            compiled = torch.compile(model, fullgraph=True, backend="eager")(images)
            exported = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
            shipped = exported.module()(images[:1].repeat(3, 1, 1, 1))
        for head in HEADS:
            assert torch.allclose(eager.logits[head], compiled.logits[head])
            assert torch.allclose(eager.logits[head][:1], shipped.logits[head][1:2])

    def test_the_control_runs_the_perception_branch_once(self, images):
        model = settled(ab.create_model("resnet20", heads=HEADS, mechanism="none"), images)
        plain = ab.create_backbone("resnet20", heads=HEADS).double().eval()
        plain.backbone.load_state_dict(model.backbone.state_dict())
        with torch.no_grad():
            output, wanted = model(images), plain(images)
        assert all(torch.equal(output.logits[head], wanted[head]) for head in HEADS)


@pytest.mark.parametrize("heads", [None, HEADS])
def test_threads_share_one_network(heads):
    model = ab.create_model("resnet20", num_classes=None if heads else 3, heads=heads).eval()
    pictures = torch.randn(24, 1, 3, 32, 32)
    meet = threading.Barrier(4)

    def answers(start):
        meet.wait()
        with torch.no_grad():
            return [(i, model(pictures[i])) for i in range(start, len(pictures), 4)]

    with torch.no_grad():
        alone = [model(picture) for picture in pictures]
    with ThreadPoolExecutor(4) as threads:
        for index, output in (pair for found in threads.map(answers, range(4)) for pair in found):
            assert torch.allclose(output.attention, alone[index].attention, atol=1e-6)
            for got, wanted in zip(by_head(output.logits), by_head(alone[index].logits), strict=True):
                assert torch.allclose(got, wanted, atol=1e-5)


def by_head(scores):
    return list(scores.values()) if isinstance(scores, dict) else [scores]


def test_a_copy_has_hooks_of_its_own(images):
    model = settled(ab.create_model("resnet20", num_classes=3), images)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(images)
        for parameter in twin.branch.parameters():
            parameter.zero_()
        assert torch.equal(model(images).logits, before.logits)
        assert torch.allclose(twin(images).attention, torch.full_like(before.attention, 0.5))


@pytest.mark.parametrize("heads", [None, {"a": 2, "b": 3}])
def test_a_compiled_training_step_has_the_same_gradients(images, heads):
    """The graph that compilation captures, run by PyTorch's own kernels: hooks and flow are traced rightly."""
    model = ab.create_model("resnet14", num_classes=None if heads else 3, heads=heads).double()
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    label = torch.tensor([0, 1])
    targets = dict.fromkeys(heads, label) if heads else label
    ab.abn_loss(model(images), targets).total.backward()
    ab.abn_loss(compiled(images), targets).total.backward()
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(own.grad, other.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.heavy
def test_inductor_agrees(images):
    model = settled(ab.create_model("resnet14", num_classes=3), images).float()
    torch._dynamo.reset()
    with torch.no_grad():
        for own, other in zip(model(images.float()), torch.compile(model)(images.float()), strict=True):
            assert torch.allclose(own, other, rtol=1e-4, atol=1e-5)
