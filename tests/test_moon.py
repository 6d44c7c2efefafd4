"""MOON: the mixed objective against its definition in float64, the weights against resampling, and training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import attention_branch as ab
from attention_branch.errors import UserError
from attention_branch.evaluation import evaluate_run
from attention_branch.training import TrainConfig, recipe, train
from attention_branch.training.optimization import make_optimizer

HEADS = {"glasses": 2, "smiling": 1, "hat": 2}


def network(**options):
    return ab.create_backbone("moon:resnet14", heads=HEADS, **options)


def answers(scores):
    """The logits a score a head stands for."""
    return {"glasses": torch.stack([-scores[:, 0], scores[:, 0]], 1), "smiling": 2 * scores[:, 1:2],
            "hat": torch.stack([-scores[:, 2], scores[:, 2]], 1)}  # fmt: skip


def test_the_sign_of_a_score_is_the_answer():
    model = network().eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        scores, output = model.scores(images), model(images)
    assert scores.shape == (4, 3)
    for column, logits in enumerate(output.values()):
        yes = logits.argmax(1) == 1 if logits.shape[1] == 2 else logits[:, 0] > 0
        assert torch.equal(yes, scores[:, column] > 0)
        chance = logits.softmax(1)[:, 1] if logits.shape[1] == 2 else logits[:, 0].sigmoid()
        assert torch.allclose(chance, (2 * scores[:, column]).sigmoid())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_its_definition(smoothing, weighted):
    model = network(target=0.3)
    shares = [0.1, 0.7, 0.3]
    model.set_source(torch.tensor(shares))
    random = np.random.default_rng(0)
    scores, labels = random.normal(size=(20, 3)), random.integers(-1, 2, (20, 3))
    each = random.uniform(size=20) if weighted else np.ones(20)
    wanted = 0.0
    for head, share in enumerate(shares):
        terms = []
        for score, label, weight in zip(scores[:, head], labels[:, head], each, strict=True):
            if label < 0:
                continue
            source, target = (share, 0.3) if label else (1 - share, 0.7)
            others = (1 - source, 1 - target)
            part = 1.0 if target > source else others[0] * target / (source * others[1])
            terms.append(weight * part * (score - (2 * label - 1) * (1 - smoothing)) ** 2)
        wanted += sum(terms) / len(terms)
    targets = {name: torch.from_numpy(labels[:, head]) for head, name in enumerate(HEADS)}
    losses = model.loss(
        answers(torch.from_numpy(scores)), targets, label_smoothing=smoothing,
        weights=torch.from_numpy(each) if weighted else None,
    )  # fmt: skip
    assert losses.total.item() == pytest.approx(wanted, rel=1e-5)
    assert losses.perception.item() == losses.total.item()
    assert losses.attention.item() == 0


@pytest.mark.parametrize("target", [0.5, 0.2, 0.9])
def test_weighted_samples_have_the_targets_distribution(target):
    """Counted by their weights, any training data has the wanted share of yes, and no sample counts more than once."""
    model = network(target=target)
    shares = torch.tensor([0.03, 0.5, 0.8])
    model.set_source(shares)
    no, yes = model.sample_weights().unbind(1)
    assert torch.allclose(shares * yes / (shares * yes + (1 - shares) * no), torch.full((3,), target), atol=1e-5)
    assert torch.allclose(torch.maximum(no, yes), torch.ones(3))


def test_without_another_target_or_without_both_kinds_all_samples_weigh_the_same():
    model = network(target="source")
    model.set_source(torch.tensor([0.03, 0.5, 0.8]))
    assert torch.allclose(model.sample_weights(), torch.ones(3, 2))
    balanced = network()
    assert torch.allclose(balanced.sample_weights(), torch.ones(3, 2))  # the frequencies are not known yet
    balanced.set_source(torch.tensor([0.0, 1.0, 0.25]))
    assert torch.allclose(balanced.sample_weights(), torch.tensor([[1.0, 1.0], [1.0, 1.0], [1 / 3, 1.0]]))


def test_the_published_network():
    with torch.device("meta"):  # its weights are not looked at
        model = ab.create_backbone("moon", heads=dict.fromkeys(map(str, range(40)), 2), image_size=(218, 178))
    # VGG-16 with 40 outputs: 13 convolutions, 25088x4096, 4096x4096, 4096x40, counted by hand with their biases.
    assert sum(one.numel() for one in model.parameters()) == 14_714_688 + 102_764_544 + 16_781_312 + 163_880
    assert model.preprocessing.size == (218, 178)
    config = recipe("moon", data="celeba:faces")
    assert (config.epochs, config.lr, config.optimizer, config.image_size) == (24, 1e-5, "rmsprop", (218, 178))
    optimizer = make_optimizer(network(), config)
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert optimizer.defaults["momentum"] == 0


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("moon:resnet14", {"num_classes": 3}, "'moon:resnet14' answers yes or no .* there are 3 classes"),
        ("moon:resnet14", {"heads": {"hair": 4}}, "'hair' has 4 classes"),
        ("moon:resnet14", {"heads": HEADS, "target": 1.0}, "target is 1.0; it must be a share between 0 and 1"),
        ("moon:resnet14", {"heads": HEADS, "target": "even"}, "or 'source'"),
        ("moon:resnet15", {"heads": HEADS}, "Unknown backbone 'resnet15'"),
    ],
)
def test_refusals(name, given, words):
    with pytest.raises(UserError, match=words):
        ab.create_backbone(name, **given)
    with pytest.raises(UserError, match="system of its own"):
        ab.create_model("moon", heads=HEADS)


def write_marks(root: Path, count: int = 60) -> Path:
    """Pictures with a red bar above or a blue one below, each in a fifth and a half of them; one label is missing."""
    random = np.random.default_rng(0)
    root.mkdir(parents=True)
    lines = ["file_name,red,blue"]
    for number in range(count):
        red, blue = number % 5 == 0, bool(random.integers(2))
        pixels = random.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        pixels[2:14, :, 0] += 190 * red
        pixels[18:30, :, 2] += 190 * blue
        Image.fromarray(pixels).save(root / f"{number:03d}.png")
        lines.append(f"{number:03d}.png,{'yes' if red else 'no'},{('yes' if blue else 'no') if number else ''}")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def test_it_is_trained_saved_and_evaluated_as_any_network(tmp_path):
    data = write_marks(tmp_path / "marks")
    config = TrainConfig(
        data=str(data), model="moon:resnet14", out=str(tmp_path / "run"), epochs=4, batch_size=14, lr=3e-3,
        weight_decay=0.0, image_size=32, augment="none", accelerator="cpu", workers=0, maps=0,
    )  # fmt: skip
    run = train(config)
    record = json.loads((run / "config.json").read_text())
    model = ab.load_model(run)
    # What the loss was weighted by travels with the weights: red's share of the training pictures, by their record.
    counts = record["data"]["splits"]["train"]["classes"]["red"]
    yes = counts["yes"] / sum(counts.values())
    assert model.source[list(model.heads).index("red")].item() == pytest.approx(yes)
    assert "source" in dict(model.named_buffers())
    found = evaluate_run(run, split="validation", output=tmp_path / "out", progress=False)
    assert found.multitask
    assert found.accuracy > 0.8
    explanation = ab.explain(model, torch.rand(2, 3, 32, 32), method="grad-cam", target={"red": 1})
    assert explanation.maps.shape == (2, 32, 32)
