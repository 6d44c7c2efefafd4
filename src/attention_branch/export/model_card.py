"""A model card for the Hugging Face hub: what the network is, how to use it, and only figures that were measured."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from attention_branch.evaluation.wording import interval_text, percent
from attention_branch.files import sha256
from attention_branch.models.network import Network

PICTURE = "where-it-looked.png"
_MOST_CLASSES = 50


@dataclass(frozen=True)
class Figures:
    """One evaluation that `abn evaluate` wrote: its values, and whose."""

    values: dict[str, Any]
    file: str

    @property
    def record(self) -> dict[str, Any]:
        """What was evaluated, on what."""
        return self.values["record"]

    @property
    def data(self) -> str:
        """The data's name; of files only their last part, because a path says whose machine it was."""
        spec = str(self.record["data"])
        return Path(spec).name if Path(spec).is_absolute() or Path(spec).exists() else spec

    @property
    def notes(self) -> list[str]:
        """What `abn evaluate` said of these figures, without paths."""
        return [str(note).replace(str(self.record["data"]), self.data) for note in self.values.get("notes") or []]

    def rows(self) -> list[tuple[str, str, float | None, Any, int]]:
        """Return (head or "", branch, accuracy, its interval, n) for every head and branch."""
        heads = self.values.get("heads") or {"": self.values}
        found = []
        for name, head in heads.items():
            for branch, called in (("perception", "prediction"), ("attention", "attention branch alone")):
                if head.get(branch):
                    scores = head[branch]
                    found.append((name, called, scores["accuracy"], scores["accuracy_interval"], head["n"]))
        return found


@dataclass(frozen=True)
class Measured:
    """The evaluations of a run that are of the weights on hand, and sentences on those that are not."""

    figures: list[Figures] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def measured(run: Path | None, weights: str) -> Measured:
    """Read the `evaluation-*.json` of a run; those of other weights, or damaged, are left out and named."""
    found = Measured()
    for path in sorted(run.glob("evaluation-*.json")) if run is not None else []:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            digest = values["record"]["model_sha256"]
            figures = Figures(values, path.name)
            figures.rows()
        except (OSError, ValueError, KeyError, TypeError):
            found.left_out.append(f"{path.name} cannot be read.")
            continue
        if digest == weights:
            found.figures.append(figures)
        else:
            found.left_out.append(f"{path.name} was measured with other weights.")
    return found


def write_card(
    network: Network, folder: Path, name: str, done: Measured, *, license: str | None, picture: str = ""
) -> None:
    """Write README.md into a folder that holds the saved network; `picture` says what PICTURE shows, if it is there."""
    (folder / "README.md").write_text(
        _front(network, name, done, license)
        + _text(network, name, done, picture, sha256(folder / "model.safetensors")),
        encoding="utf-8",
    )


def _front(network: Network, name: str, done: Measured, license: str | None) -> str:
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=figures.data,
            dataset_name=figures.data,
            dataset_split=figures.record["split"],
            metric_type="accuracy",
            metric_name=f"accuracy, {head}" if head else "accuracy",
            metric_value=accuracy,
        )
        for figures in done.figures
        for head, branch, accuracy, _, _ in figures.rows()
        if branch == "prediction" and accuracy is not None
    ]
    tags = ["image-classification", "explainability", "pytorch"]
    tags += ["attention-branch-network", "attention"] if network.is_abn else []
    data = ModelCardData(
        library_name="attention-branch",
        pipeline_tag="image-classification",
        tags=tags,
        license=license,
        model_name=name.rpartition("/")[2],
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def _text(network: Network, name: str, done: Measured, picture: str, digest: str) -> str:
    config = network.config
    parts = [f"# {name.rpartition('/')[2]}", _what(network)]
    if picture:
        parts.append(f"![{picture}]({PICTURE})\n\n{picture}")
    example = "attention" if network.is_abn else "cam"
    parts.append(
        "## Use\n\n```python\nimport attention_branch as ab\nfrom PIL import Image\n\n"
        f'model = ab.load_model("{name}")\nexplanation = ab.explain(model, Image.open("photo.jpg"), "{example}")\n'
        'explanation.save("where.png")  # image, map, both together\n```\n\n'
        f"On the command line: `abn explain {name} photo.jpg`."
    )
    parts.append("## Classes\n\n" + _classes(network))
    prepared = network.preprocessing
    height, width = prepared.size
    how = (
        "both sides squashed" if prepared.resize == "squash" else f"centre crop of {prepared.crop_pct:.4g} of the side"
    )
    parts.append(
        f"## Preprocessing\n\nRGB at {height} x {width} pixels ({how}, {prepared.interpolation}), from 0 to 1, minus "
        f"{tuple(prepared.mean)}, over {tuple(prepared.std)}. `load_model` brings it along."
    )
    parts.append("## Measured\n\n" + _figures(done))
    parts.append("## Limits\n\n" + _limits(network))
    parts.append(f"Weights: SHA-256 `{digest}`. Backbone: `{config.name}`.")
    return "\n\n".join(parts) + "\n"


def _what(network: Network) -> str:
    config = network.config
    of = f"{len(network.heads)} tasks" if network.heads else f"{network.num_classes} classes"
    if not network.is_abn:
        return f"An image classifier for {of} on the backbone `{config.name}`, without an attention branch."
    how = {"residual": "g * (1 + M)", "product": "g * M", "none": "g (the map is made and not applied)"}
    return (
        f"An Attention Branch Network (Fukui et al., CVPR 2019, [arXiv 1812.10025](https://arxiv.org/abs/1812.10025)) "
        f"for {of} on the backbone `{config.name}`: with every prediction it hands out a map M of where it looked. "
        f"Branch `{config.branch}`, mechanism `{config.mechanism}`: the classifier goes on with "
        f"{how[str(config.mechanism)]}."
    )


def _classes(network: Network) -> str:
    names: Any = network.class_names
    if isinstance(names, dict):
        return "\n".join(f"- {head}: {_listed(of_head)}" for head, of_head in names.items())
    if names:
        return _listed(names) + "."
    return "The classes have no names, only numbers."


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _MOST_CLASSES} more (in config.json)" if len(names) > _MOST_CLASSES else ""
    return ", ".join(names[:_MOST_CLASSES]) + rest


def _figures(done: Measured) -> str:
    if not done.figures:
        left = " ".join(["", *done.left_out])
        return f"Nothing was measured with these weights when they were uploaded.{left}"
    lines = ["| data | split | head | answer | accuracy | 95 % interval | images |", "|---|---|---|---|---:|---:|---:|"]
    for figures in done.figures:
        record = figures.record
        for head, branch, accuracy, interval, count in figures.rows():
            lines.append(
                f"| {_cell(figures.data)} | {record['split']} | {_cell(head) or '-'} | {branch} | "
                f"{percent(accuracy)} | {interval_text(tuple(interval) if interval else None)} | {count} |"
            )
    notes = [note for figures in done.figures for note in figures.notes]
    return "\n".join(lines) + "".join(f"\n\n{note}" for note in dict.fromkeys([*notes, *done.left_out]))


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|")


def _limits(network: Network) -> str:
    common = (
        "Its answers hold for images like those it was trained on; the probabilities are its own, not its accuracy."
    )
    if not network.is_abn:
        return f"- {common}"
    return (
        "- The map is class-agnostic: it says where the network looked, not which class a place speaks for. For "
        'evidence for a class there is `method="attention-class"`.\n'
        "- A map is no proof of a reason: whether the answer depends on it has to be measured (`abn compare`).\n"
        f"- {common}"
    )
