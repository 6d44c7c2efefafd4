"""LNets+ANet and PANDA: their networks trained one after the other, then a linear SVM a head on the features.

A stage of gradients is a run as `abn train` makes it, of the whole system with only that stage's networks learning and
answering (`models/facial/staged.py`): same batches, augmentation, schedule, and checkpoint after every epoch. Each
stage takes the `epochs` that are set, and is left with the weights of its best epoch on validation. Its lines stay in
the run folder as `STAGE.jsonl`.
"""

import dataclasses
import shutil
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attention_branch.data import DataSet, ImageSet, make_loader
from attention_branch.errors import UserError
from attention_branch.models import PlainNetwork, load_model
from attention_branch.models.facial.panda import Panda
from attention_branch.models.facial.parts import PointNet
from attention_branch.models.facial.regions import POINTS
from attention_branch.models.facial.staged import StagedNetwork
from attention_branch.training.config import TrainConfig
from attention_branch.training.fitted import features_of, truths
from attention_branch.training.stages import Stages
from attention_branch.training.svm import fit_svms

FOR_SVMS = 1 / 9
"""Share of the training images that train the SVMs and no network: 20,000 beside 160,000 in Liu et al. (section 3)."""

POINT_EPOCHS, POINT_BATCH, POINT_RATE = 20, 64, 2e-3
_MIRRORED = [1, 0, 2, 4, 3]
"""The points of a mirrored face, in their order."""


def fit_lnets_anet(config: TrainConfig, data: DataSet, model: PlainNetwork, stages: Stages) -> None:
    """Train LNet_o, LNet_s and ANet, each on what the one before it found, then the SVMs."""
    assert isinstance(model, StagedNetwork)
    networks, machines = divided(data, config.seed)
    for stage in model.stages:
        if stage == "lnet-s" and not config.pretrained:
            # In the paper both start from ImageNet; here the second starts from what the first has learned.
            model.backbone.lnet_s.load_state_dict(model.backbone.lnet_o.state_dict())
        train_stage(stage, config, networks, model, stages)
    fit_linear(machines, data, model, stages, config.seed)


def fit_panda(config: TrainConfig, data: DataSet, model: PlainNetwork, stages: Stages) -> None:
    """Train what finds the parts, then all part networks and the whole image's together, then the SVMs."""
    assert isinstance(model, Panda)
    networks, machines = divided(data, config.seed)
    if model.backbone.places == "landmarks":
        model.take(stages.tensors("points", lambda: train_points(config, networks, model, stages)))
    for stage in model.stages:
        train_stage(stage, config, networks, model, stages)
    fit_linear(machines, data, model, stages, config.seed)


def check_data(config: TrainConfig, data: DataSet, model: PlainNetwork) -> None:
    """Refuse data without the points that PANDA's parts are placed by, or with too few pictures to divide."""
    assert data.train is not None
    if len(data.train) < 2:
        raise UserError(f"'{data.spec}' has one training picture; the networks and the SVMs need one each at least.")
    if isinstance(model, Panda) and model.backbone.places == "landmarks" and data.point_names != POINTS:
        raise UserError(
            f"'{config.data}' has no points of faces to place PANDA's parts by; use --model-options parts=localiser or "
            "parts=grid."
        )


def divided(data: DataSet, seed: int) -> tuple[DataSet, ImageSet]:
    """Return the data with only the training images for the networks, and those for the SVMs, drawn by the seed."""
    assert data.train is not None
    count = max(1, round(len(data.train) * FOR_SVMS))
    order = np.random.default_rng(seed).permutation(len(data.train))
    machines = data.train.subset(np.sort(order[:count]))
    return dataclasses.replace(data, train=data.train.subset(np.sort(order[count:]))), machines


def train_stage(stage: str, config: TrainConfig, data: DataSet, model: StagedNetwork, stages: Stages) -> None:
    """Train a stage's networks and leave the model in use, with them; a stage that is done is read back."""
    model.begin(stage)
    try:
        model.take(stages.tensors(stage, lambda: _trained(stage, config, data, model, stages)))
    finally:
        model.begin(None)
        model.eval()


class _Watch(L.Callback):
    """Ends a stage's training where the command that began this process is gone."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages

    def on_train_batch_end(self, *_: Any) -> None:
        """Look."""
        self.stages.check_parent()


def _trained(stage: str, config: TrainConfig, data: DataSet, model: StagedNetwork, stages: Stages) -> dict[str, Tensor]:
    # Here, because a run imports what fits its networks.
    from attention_branch.training.journal import CHECKPOINT, Journal
    from attention_branch.training.module import Classifier
    from attention_branch.training.run import EpochBatches, fit_network, make_loaders, make_trainer

    folder = stages.folder / stage
    stages.say(f"Stage '{stage}':")
    trainer, _ = make_trainer(config, folder, str(stages.device))
    loaders = make_loaders(config, data, model, trainer)
    batches = EpochBatches(loaders[0], config.accumulate)
    batches.trainer = trainer
    journal = Journal(folder, data, 0, False)
    trainer.callbacks += [journal, _Watch(stages)]
    module = Classifier(model.to(memory_format=torch.channels_last), config, len(batches) // config.accumulate)
    checkpoint = folder / CHECKPOINT
    torch.manual_seed(config.seed)
    try:
        fit_network(trainer, module, batches, loaders[1], checkpoint if checkpoint.exists() else None)
    except SystemExit:
        if journal.interrupted:
            raise KeyboardInterrupt from None
        raise
    shutil.copy(folder / "metrics.jsonl", stages.folder.parent / f"{stage}.jsonl")
    tensors = load_model(folder / "model").state_dict()
    model.to(stages.device)
    return {name: tensors[name] for name in model.stage_state(stage)}


def fit_linear(machines: ImageSet, data: DataSet, model: StagedNetwork, stages: Stages, seed: int) -> None:
    """Fit one linear SVM a head on the features of the images for them; C is chosen on validation.

    An image with several feature vectors counts once for each, as in Liu et al. (section 2.2).
    """

    assert data.validation is not None
    splits = {"svm": machines, "validation": data.validation}
    (features, targets), (seen, truth) = [_vectors(images, model, stages, name) for name, images in splits.items()]

    def make(head: int) -> dict[str, Tensor]:
        own = slice(head, head + 1)
        svm = fit_svms(features, targets[:, own], seen, truth[:, own], seed=seed)
        return {"weight": svm.weight[0], "bias": svm.bias[0]}

    heads = stages.through(range(targets.shape[1]), "SVMs", targets.shape[1])
    made = [stages.tensors(f"svm-{head:03d}", partial(make, head)) for head in heads]
    weight, bias = (torch.stack([one[name] for one in made]).to(stages.device) for name in ("weight", "bias"))
    model.linear.set(weight, bias)


def _vectors(images: ImageSet, model: StagedNetwork, stages: Stages, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the feature vectors (N * P, D) of a split and their targets (N * P, T)."""
    blocks = features_of(model.features, images, model, stages, f"features of {name} images")
    kept = stages.array(f"features-{name}", lambda: blocks, len(images))
    return np.asarray(kept).reshape(-1, kept.shape[-1]), truths(images).repeat(kept.shape[1], axis=0)


def train_points(config: TrainConfig, data: DataSet, model: Panda, stages: Stages) -> dict[str, Tensor]:
    """Train the network that finds a face's points and return its tensors.

    AdamW, 20 epochs, half of the faces mirrored; each picture is moved and scaled by up to a tenth, so that faces that
    lie elsewhere are found too. The loss is the squared distance as a share of the eyes' distance. Our choice.
    """
    assert data.train is not None
    assert data.validation is not None
    network: PointNet = model.backbone.points
    points = {name: _points(images, model) for name, images in (("train", data.train), ("val", data.validation))}
    network.mean.copy_(points["train"].mean(0))
    network.requires_grad_(True).train()
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=POINT_RATE)
    loader = make_loader(
        data.train,
        model.preprocessing,
        POINT_BATCH,
        train=True,
        augment="none",
        seed=config.seed,
        workers=config.workers,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, POINT_EPOCHS * len(loader))
    for epoch in stages.through(range(POINT_EPOCHS), "points of faces", POINT_EPOCHS):
        loader.set_epoch(epoch)
        for batch in loader:
            images, wanted = moved(batch["images"], points["train"][batch["index"]], generator)
            images, wanted = images.to(stages.device), wanted.to(stages.device)
            loss = point_error(network(images), wanted).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    network.requires_grad_(False).eval()
    error = _point_error_of(data.validation, points["val"], model, stages)
    stages.say(f"Points of faces: mean error {error:.1%} of the eyes' distance on validation images.")
    return {f"backbone.points.{name}": value for name, value in network.state_dict().items()}


def _points(images: ImageSet, model: Panda) -> Tensor:
    """Return the points of all images (N, 5, 2) in shares of the network's input."""
    found = images.all_points(model.preprocessing)
    assert found is not None
    height, width = model.preprocessing.size
    return (torch.from_numpy(found) + 0.5) / torch.tensor([width, height])


def moved(images: Tensor, points: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror half of the images (N, 3, H, W) and move and scale each by up to a tenth, with its points (N, 5, 2)."""
    count = len(images)
    mirrored = torch.rand(count, generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    turned = points[:, _MIRRORED] * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])
    points = torch.where(mirrored[:, None, None], turned, points)
    drawn = torch.rand(count, 3, generator=generator) * 0.2 - 0.1
    scale, shift = 1 + drawn[:, 0], drawn[:, 1:]
    corner = 0.5 + shift - scale[:, None] / 2  # of the window that is seen
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = 2 * shift
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    seen = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return seen, (points - corner[:, None]) / scale[:, None, None]


def point_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the distance of each point (N, 5) as a share of the distance of the true eyes."""
    eyes = (wanted[:, 0] - wanted[:, 1]).norm(dim=1).clamp_min(1e-3)
    # A floor under the root: its slope at zero has no end.
    return ((found - wanted).square().sum(2) + 1e-12).sqrt() / eyes[:, None]


def _point_error_of(images: ImageSet, points: Tensor, model: Panda, stages: Stages) -> float:
    def make(batch: Tensor) -> Tensor:
        return model.backbone.points(batch)

    found = np.concatenate(list(features_of(make, images, model, stages, "points")))
    return float(point_error(torch.from_numpy(found), points).mean())
