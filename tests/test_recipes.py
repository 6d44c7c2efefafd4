"""Every recipe in miniature, its schedule in closed form, and its numbers beside their sources."""

import csv
import functools
import math
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from PIL import Image

import attention_branch as ab
from attention_branch.data import open_data
from attention_branch.models.registry import stands_alone
from attention_branch.models.residual_attention import RESIDUAL_ATTENTION
from attention_branch.models.small import SMALL
from attention_branch.training import RECIPES, TrainConfig, recipe, train
from attention_branch.training import run as run_module
from attention_branch.training.journal import read_metrics
from attention_branch.training.module import Classifier
from attention_branch.training.optimization import rate_factor

STEPS = 2
"""Steps an epoch in these miniatures: 12 pictures in batches of 6."""

HEADS = {
    "compcars": {"model": 4, "maker": 2},
    "celeba": {f"attribute{number:02d}": 2 for number in range(10)},
}


def write_pictures(folder: Path, heads: dict[str, int]) -> None:
    """Write 12 training and 6 validation pictures of 30x40 pixels with labels in metadata.csv."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(18):
        name = f"{number:02d}.png"
        folder.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(folder / name)
        labels = {head: f"class{(number + place) % count}" for place, (head, count) in enumerate(heads.items())}
        rows.append({"file_name": name, "split": "train" if number < 12 else "validation", **labels})
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("data")
    for name, heads in (HEADS | {"": {"label": 3}}).items():
        write_pictures(root / f"pictures{name}", heads)
    return {name: str(root / f"pictures{name}") for name in (*HEADS, "")}


def miniature(name: str, data: dict[str, str], out: Path) -> TrainConfig:
    """The recipe with a narrow, shallow network of its own family, small pictures, and no downloaded weights."""
    chosen = RECIPES[name]
    small = chosen.model in SMALL or chosen.model.endswith("_cifar")
    by_width = small or chosen.model in RESIDUAL_ATTENTION
    # Not fewer than 8 channels: on processors without AVX-512 torch 2.15 writes beyond the memory of a narrower
    # convolution in channels_last, and the process is aborted.
    width = 0.125 if by_width and not chosen.model.startswith(("resnet", "wrn", "densenet")) else 0.5
    narrow = (f"width={width}",) if by_width else ("channels=[8, 8, 8, 8]", "layers=[1, 1, 1, 1]")
    if chosen.model == "vgg16":
        narrow = ("channels=[8, 8, 8, 8, 8]",)
    side = 16 if small else 48
    return recipe(
        name,
        data=data.get(name.removesuffix("-modern"), data[""]),
        out=str(out),
        model={"resnet164b": "resnet65b", "attention452_cifar": "attention56_cifar"}.get(chosen.model, chosen.model),
        model_options=(*chosen.model_options, *narrow),
        image_size=(side, 64) if isinstance(chosen.image_size, tuple) else side,
        pretrained=False,
        batch_size=6,
        maps=1,
        workers=0,
        accelerator="cpu",
    )


# Systems of their own have tests of their own, which run them in miniature.
# human-maps begins with a trained network: tests/test_human_maps.py runs it.
STARTING = [name for name, chosen in RECIPES.items() if name != "human-maps" and not stands_alone(chosen.model)]


@pytest.mark.parametrize("name", STARTING)
def test_every_recipe_takes_two_steps(
    name: str, data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = miniature(name, data, tmp_path / "run")
    rates = []

    def step(self: Classifier, *arguments: object) -> torch.Tensor:
        rates.extend(group["lr"] for group in self.trainer.optimizers[0].param_groups[:1])
        return training_step(self, *arguments)

    training_step = Classifier.training_step
    monkeypatch.setattr(Classifier, "training_step", step)
    monkeypatch.setattr(run_module.L, "Trainer", functools.partial(lightning.Trainer, max_steps=STEPS))
    torch.manual_seed(config.seed)
    start = run_module.make_model(config, open_data(config.data, seed=config.seed)).state_dict()
    folder = train(config)
    (line,) = read_metrics(folder)
    assert line["step"] == STEPS
    assert math.isfinite(line["train_loss"])
    assert math.isfinite(line["validation_loss"])
    model = ab.load_model(folder / "last")
    assert not any(torch.equal(start[key], value) for key, value in model.named_parameters() if value.ndim > 1)
    assert model.preprocessing.resize == (config.resize or ("squash" if config.image_size == 16 else "crop"))
    side = config.image_size
    assert model.preprocessing.size == (side if isinstance(side, tuple) else (side, side))

    # The course of the rate: a ramp from one part in (warm-up + 1), then a cosine to one step before zero, or drops.
    warmup, total = round(config.warmup_epochs * STEPS), config.epochs * STEPS
    assert rates[0] == pytest.approx(config.lr / (warmup + 1))
    last = rate_factor(config, STEPS)(total - 1)
    if config.schedule == "cosine":
        assert last == pytest.approx(math.sin(math.pi / 2 / (total - warmup)) ** 2)
    else:
        assert last == pytest.approx(config.gamma ** len(config.milestones))
        assert config.milestones[-1] < config.epochs


# Transcribed from the sources: epochs, batch, rate, weight decay, milestones, factor.
PUBLISHED = {
    "cifar": ("resnet110", 300, 128, 0.1, 5e-4, (150, 225), 0.1),
    "cifar-resnet110": ("resnet164b", 300, 128, 0.1, 1e-4, (150, 225), 0.1),
    "cifar-wrn": ("wrn_28_10", 300, 128, 0.1, 5e-4, (150, 225), 0.2),
    "cifar-densenet": ("densenet_bc_100_12", 300, 64, 0.1, 1e-4, (150, 225), 0.1),
    "cifar-resnext": ("resnext29_8x64d", 300, 128, 0.1, 5e-4, (150, 225), 0.1),
    "imagenet": ("resnet50", 90, 256, 0.1, 1e-4, (31, 61), 0.1),
    "cifar-attention": ("attention452_cifar", 205, 64, 0.1, 1e-4, (82, 123), 0.1),
    "imagenet-attention": ("attention56", 106, 256, 0.1, 1e-4, (40, 80, 100), 0.1),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name: str) -> None:
    chosen = RECIPES[name]
    found = (chosen.model, chosen.epochs, chosen.batch_size, chosen.lr, chosen.weight_decay, chosen.milestones)
    assert (*found, chosen.gamma) == PUBLISHED[name]
    nesterov = chosen.baseline  # the Residual Attention Networks', which are plain networks
    assert nesterov == name.endswith("attention")
    assert (chosen.optimizer, chosen.momentum, chosen.nesterov, chosen.decay_all) == ("sgd", 0.9, nesterov, True)
    assert (chosen.label_smoothing, chosen.mixup, chosen.cutmix, chosen.ema) == (0, 0, 0, None)


def test_the_mean_over_attributes_and_their_sum_make_the_same_steps() -> None:
    """CelebA's numbers are for a mean over 40 losses: 0.01 and 1e-4."""
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 40, dtype=torch.float64)) for _ in range(2)]
    chosen = RECIPES["celeba"]
    settings = ((0.01, 1e-4), (chosen.lr, chosen.weight_decay))
    for weight, (rate, decay), combine in zip(weights, settings, (torch.mean, torch.sum), strict=True):
        optimizer = torch.optim.SGD([weight], lr=rate, momentum=chosen.momentum, weight_decay=decay)
        for number in range(5):
            optimizer.zero_grad()
            combine((weight - number).cos()).backward()
            optimizer.step()
    assert torch.allclose(*weights, rtol=1e-12)


def test_the_docs_list_every_recipe() -> None:
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    assert [name for name in RECIPES if f"| `{name}`" not in text] == []
