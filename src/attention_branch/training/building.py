"""From settings and data to the network that is trained."""

import dataclasses
from typing import Any

import numpy as np
import torch

from attention_branch.data.dataset import DataSet, Targets
from attention_branch.models import AttentionBranchNetwork, PlainNetwork, create_backbone, create_model
from attention_branch.models.facial.moon import Moon
from attention_branch.models.registry import stands_alone
from attention_branch.training.config import TrainConfig, read_model_options

Trainable = AttentionBranchNetwork | PlainNetwork


def make_model(config: TrainConfig, data: DataSet) -> Trainable:
    """Return the network the settings and the data ask for, with the data's class names and normalisation."""
    size: dict[str, Any] = {"heads": data.heads} if data.multitask else {"num_classes": data.num_classes}
    shared = size | {
        "pretrained": config.pretrained,
        "class_names": data.class_names,
        "image_size": config.image_size,
        **_options_for(config.model, data),
        **read_model_options(config.model_options),
    }
    model: Trainable = (
        create_backbone(config.model, **shared)
        if config.baseline or stands_alone(config.model)
        else create_model(
            config.model,
            mechanism=config.mechanism,
            branch=config.branch,
            map_kernel=config.map_kernel,
            map_form=config.map_form,
            map_control=config.map_control,
            perception=config.perception,
            **shared,
        )
    )
    if data.normalization and not config.pretrained:
        mean, std = ((float(r), float(g), float(b)) for r, g, b in data.normalization)
        model.preprocessing = dataclasses.replace(model.preprocessing, mean=mean, std=std)
    if config.resize is not None:
        model.preprocessing = dataclasses.replace(model.preprocessing, resize=config.resize)
    if data.train is not None:
        tell_frequencies(model, data.train.targets)
    return model.train()


def _options_for(name: str, data: DataSet) -> dict[str, Any]:
    """Return options of a network that depend on the data, where the settings do not say otherwise."""
    # A network for data that is only described, as for counting its cost, has no pictures to ask.
    faces = bool(data.point_names) or data.spec.startswith("celeba:")
    if name == "facetracer":
        return {"regions": "face" if faces else "grid"}
    if name == "panda":
        return {"parts": "landmarks" if faces else "grid"}
    return {}


def tell_frequencies(model: Trainable, targets: Targets) -> None:
    """Tell a network whose loss weights attributes by it how often each is yes: class numbers (N,), one array a head.

    A missing label, -1, counts nowhere.
    """
    if not isinstance(model, Moon):
        return
    columns = list(targets.values()) if isinstance(targets, dict) else [targets]
    shares = [float((column[column >= 0] > 0).mean()) if (column >= 0).any() else float("nan") for column in columns]
    model.set_source(torch.tensor(np.array(shares), dtype=torch.float32))
