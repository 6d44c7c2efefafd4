"""Where a run's maps lie on test pictures with a distractor: on the object, on the distractor, or elsewhere."""

from typing import Any

import numpy as np
import torch

from attention_branch.data.resident import ResidentImages
from attention_branch.explanations import explain
from attention_branch.explanations.methods import CONTROLS
from attention_branch.metrics.distraction import DISTRACTOR, Distraction, distraction
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
    methods = (*(OWN_MAPS if network.is_abn else OWN_MAPS[-1:]), *CONTROLS)
    found = {method: _of_method(network, images, method, objects, distractors) for method in methods}
    network.train(training)
    record = {}
    for method, one in found.items():
        record[method] = one.to_dict()
        if method not in CONTROLS and one.n and (one.pointed[~torch.from_numpy(right)] >= 0).any():
            record[method]["on_distractor_where_wrong"] = one.share(DISTRACTOR, ~right)
    return record


def _of_method(
    network: Trainable, images: ResidentImages, method: str, objects: np.ndarray, distractors: np.ndarray
) -> Distraction:
    maps = []
    for number, index in enumerate(torch.arange(len(images)).split(_AT_ONCE)):
        batch = network.preprocessing.normalize(images.taken(index.to(images.device)))
        explanation = explain(network, batch, method, seed=number)
        # As computed: the measure brings them to the places' size itself.
        maps.append(explanation.raw.float().cpu())
    return distraction(torch.cat(maps), objects, distractors)
