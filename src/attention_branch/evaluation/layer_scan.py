"""Which layer of a network explains it best: every stage and block, ranked by insertion minus deletion."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from attention_branch.data.images import find_images, open_image
from attention_branch.errors import UserError
from attention_branch.explanations.explanation import explain
from attention_branch.explanations.layers import grid_layers
from attention_branch.explanations.methods import LAYERED
from attention_branch.explanations.outputs import device_of, evaluating, unwrapped
from attention_branch.explanations.targets import Target, head_target
from attention_branch.files import require_folder, sha256, write_json
from attention_branch.metrics.faithfulness import InsertionMinusDeletion
from attention_branch.metrics.metric import Scorer
from attention_branch.metrics.statistics import MetricResult
from attention_branch.models.saving import WEIGHTS, load_model, model_folder
from attention_branch.progress import progress_bar

MOST_IMAGES = 64
"""Files of a scan; more would only narrow the intervals."""


@dataclass(frozen=True)
class LayerScore:
    """A layer by name, the size (h, w) of its maps, and their insertion minus deletion."""

    layer: str
    size: tuple[int, int]
    result: MetricResult


def scan_layers(
    model: nn.Module,
    images: Tensor,
    method: str = "grad-cam",
    target: Target = None,
    *,
    layers: Sequence[str] | None = None,
    batch_size: int = 32,
    watch: Callable[[Sequence[str]], Any] = list,
) -> list[LayerScore]:
    """Explain images (N, 3, H, W) from every layer and return the layers, best first, by insertion minus deletion.

    `layers` are those to try; left out, all stages and blocks whose output is a grid. A layer on which the score does
    not depend is left out. `watch` wraps the names as they are worked off, for a progress bar. Insertion and deletion
    run by the RISE protocol. Raises `UserError` for a method that reads no layer, and where no layer yields a map.
    """
    if method not in LAYERED:
        raise UserError(f"'{method}' reads no layer, so there is nothing to scan; choose {', '.join(LAYERED)}.")
    network = unwrapped(model)
    device = device_of(network)
    images = images if device is None else images.to(device)
    found: list[LayerScore] = []
    refused = ""
    if len(images) == 0:
        raise UserError("There is no image to rank the layers on; give one or more.")
    with evaluating(network), torch.no_grad():
        # A target that the network does not know is no layer's fault.
        scorer = Scorer(network, images, target, batch_size)
        sizes = dict(grid_layers(network, images))
        for name in watch(list(layers or sizes)):
            metric = InsertionMinusDeletion(batch_size=batch_size)
            try:
                for start in range(0, len(images), batch_size):
                    batch = images[start : start + batch_size]
                    classes = scorer.classes[start : start + batch_size]
                    part: Target = classes if scorer.head is None else {scorer.head: classes}
                    explanation = explain(network, batch, method, part, layer=name)
                    metric.update(network, batch, explanation.maps, part)
            except UserError as problem:
                refused = str(problem)
                continue
            size = (explanation.raw.shape[-2], explanation.raw.shape[-1])
            found.append(LayerScore(name, size, metric.compute()))
    if not found:
        raise UserError(f"No layer yields a map by '{method}'. {refused}")
    return sorted(found, key=lambda score: -score.result.mean)


def scan_files(
    run: str | Path,
    images: Sequence[str | Path],
    output: str | Path,
    *,
    method: str = "grad-cam",
    target: Target = None,
    batch_size: int = 16,
    device: str = "cpu",
    console: Console | None = None,
) -> list[LayerScore]:
    """Rank a run's layers on image files (at most 64, the first), print the table and write OUTPUT/layers.json.

    `target` is as in `explain_files`.
    Raises `UserError` as `scan_layers` does, and for files that cannot be read.
    """
    require_folder(output)
    folder = model_folder(run)
    model = load_model(folder, device=device)
    target, note = head_target(model, target)
    paths = find_images(images)[:MOST_IMAGES]
    batch = torch.stack([model.preprocessing.tensor(open_image(path)) for path in paths])

    with progress_bar() as bar:
        found = scan_layers(
            model,
            batch,
            method,
            target,
            batch_size=batch_size,
            watch=lambda names: bar.track(names, description="scanning layers"),
        )
    table = Table(title=f"{method}, {len(paths)} images: insertion - deletion, best first", title_justify="left")
    for heading in ("layer", "map", "mean", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for score in found:
        interval = score.result.interval
        shown = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "one image"
        table.add_row(score.layer, f"{score.size[0]}x{score.size[1]}", f"{score.result.mean:.3f}", shown)
    record = {
        "model_sha256": sha256(folder / WEIGHTS),
        "method": method,
        "target": repr(target),
        "files": [str(path) for path in paths],
        "layers": [
            {"layer": score.layer, "height": score.size[0], "width": score.size[1], **score.result.to_dict()}
            for score in found
        ],
    }
    write_json(Path(output) / "layers.json", record)
    if console is not None:
        if note:
            console.print(note, highlight=False)
        console.print(table)
        console.print(f"`--layer {found[0].layer}` explains best by this measure. Open {Path(output) / 'layers.json'}")
    return found
