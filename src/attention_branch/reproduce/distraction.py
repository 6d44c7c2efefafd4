"""Where a run's maps lie on test pictures with a distractor: on the object, on the distractor, or elsewhere."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from attention_branch.data.resident import ResidentImages
from attention_branch.explanations import explain
from attention_branch.explanations.controls import CONTROLS, center_maps, constant_maps, random_maps
from attention_branch.metrics.distraction import DISTRACTOR, distraction
from attention_branch.training.building import Trainable

OWN_MAPS = ("attention", "attention-class", "grad-cam")
"""The maps of a network with a branch; a plain one has the last. All are for the network's own answer."""

_AT_ONCE = 250


def measured(
    network: Trainable, images: ResidentImages, objects: np.ndarray, distractors: np.ndarray, right: np.ndarray
) -> dict[str, Any]:
    """Return by method, controls among them, what `Distraction.to_dict` says, as plain values for a record.

    `objects` and `distractors` are bool (N, H, W), `right` (N,) says which pictures the network answers rightly; among
    the others `on_distractor_where_wrong` is the share of maps that point at the distractor.
    """
    training = network.training
    network.eval()
    record = {}
    for method in OWN_MAPS if network.is_abn else OWN_MAPS[-1:]:
        found = distraction(_maps(network, images, method), objects, distractors)
        record[method] = found.to_dict()
        if (found.pointed[~torch.from_numpy(right)] >= 0).any():
            record[method]["on_distractor_where_wrong"] = found.share(DISTRACTOR, ~right)
    network.train(training)
    count, height, width = objects.shape
    controls = (
        random_maps(count, height, width, torch.Generator().manual_seed(0)),
        center_maps(count, height, width),
        constant_maps(count, height, width),
    )
    for method, maps in zip(CONTROLS, controls, strict=True):
        record[method] = distraction(maps, objects, distractors).to_dict()
    return record


def _maps(network: Trainable, images: ResidentImages, method: str) -> Tensor:
    """Return the maps (N, h, w) as computed: the measure brings them to the places' size itself."""
    maps = []
    for index in torch.arange(len(images)).split(_AT_ONCE):
        batch = network.preprocessing.normalize(images.taken(index.to(images.device)))
        maps.append(explain(network, batch, method).raw.float().cpu())
    return torch.cat(maps)
