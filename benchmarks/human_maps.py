"""Do human maps mend a network that was led astray? Without a human: the digits' true masks in their place.

    python benchmarks/human_maps.py tune runs/human-maps
    python benchmarks/human_maps.py study runs/human-maps --seeds 0 1 2
    python benchmarks/human_maps.py oracle runs/human-maps
    python benchmarks/human_maps.py summary runs/human-maps
    python benchmarks/human_maps.py picture BEFORE AFTER --target docs/pictures/human-maps.png

A network learns digits on which a small mark gives the class away. 100 of its training pictures are annotated with the
digit's true mask (`write_annotation`), and `abn train --from RUN --annotations DIR` goes on from it, arm by arm; the
arms named after counterexamples are those with `--counterexamples 1`. Each network is then measured on digits of the
test split that it never saw: without a mark, with a mark that says nothing, with the mark as in training. `tune` tries
settings on seed 100 and measures on the validation split, whose digits and photos are none of test's; nothing is chosen
by the test split. A run that is there is not repeated.
"""

import argparse
import datetime
import io
import json
import platform
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from attention_branch.annotations import write_annotation
from attention_branch.data import ImageSet, open_data
from attention_branch.data.digits import DigitSource
from attention_branch.data.marks import TELLS, Mark
from attention_branch.files import write_json
from attention_branch.hardware import processor
from attention_branch.metrics import EnergyPointingGame, PointingGame
from attention_branch.models import load_model
from attention_branch.models.gate import run_sequence
from attention_branch.report.strip import strip
from attention_branch.training import human_map_settings, recipe, train

DATA = "digits:train=8000,mark={mark}"
BASE: dict[str, Any] = {"image_size": 32, "epochs": 16, "lr": 0.05, "maps": 0}
ARMS: dict[str, dict[str, Any]] = {
    "maps": {},
    "no maps": {"map_weight": 0.0},
    "wrong maps": {},
    "maps, extractor too": {"train_extractor": True},
    "no maps, extractor too": {"map_weight": 0.0, "train_extractor": True},
    "maps, others held": {"keep_weight": 1.0},
    "counterexamples": {"counterexamples": 1.0},
    "counterexamples, no maps": {"counterexamples": 1.0, "map_weight": 0.0},
    "counterexamples, extractor too": {"counterexamples": 1.0, "train_extractor": True},
    "counterexamples, no maps, extractor too": {"counterexamples": 1.0, "map_weight": 0.0, "train_extractor": True},
}
RECORDS = Path(__file__).parent / "records" / f"{datetime.date.today():%Y-%m-%d}-human-maps"


def annotate(folder: Path, images: ImageSet, count: int, seed: int, *, wrong: bool = False) -> None:
    """Write the digits' masks of some training pictures as annotations; `wrong` moves each by half the picture."""
    for index in np.sort(np.random.default_rng(seed).permutation(len(images))[:count]):
        sample = images[int(index)]
        assert sample.mask is not None
        file = io.BytesIO()
        sample.image.save(file, "PNG")
        height, width = sample.mask.shape
        mask = np.roll(sample.mask, (height // 2, width // 2), (0, 1)) if wrong else sample.mask
        record = {"source": sample.id, "tool": "benchmarks/human_maps.py"}
        write_annotation(folder, file.getvalue(), mask, label=images.tasks["label"][int(sample.target)], record=record)


def sets(seed: int, split: str, mark: str) -> dict[str, ImageSet]:
    """Return a split's digits by what the mark says; the digits and photos of the three are the same."""
    size = {"validation": 1000, "test": 2000}[split]
    targets, tasks = {"label": np.arange(size) % 10}, {"label": tuple("0123456789")}
    return {tells: ImageSet(DigitSource(seed, split, size, Mark(mark, tells)), targets, tasks) for tells in TELLS}


class Measured:
    """Pictures with their masks as tensors, made once for all networks of a seed."""

    def __init__(self, images: ImageSet, preprocessing: Any) -> None:
        source = images.source
        assert isinstance(source, DigitSource)
        pictures = source.pixels()
        self.pictures = torch.stack([preprocessing.tensor(images.image(index)) for index in range(len(images))])
        self.targets = torch.as_tensor(np.asarray(images.targets))
        self.digits = np.stack([source.mask(row) for row in range(len(pictures))])
        self.marks = np.stack([source.mark(row) for row in range(len(pictures))])


@torch.no_grad()
def answers(model: Any, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the predictions of both branches and the maps (N, h, w)."""
    found = [model(pictures[start : start + 250]) for start in range(0, len(pictures), 250)]
    logits, branch, maps = (torch.cat(parts) for parts in zip(*found, strict=True))
    return logits.argmax(1), branch.argmax(1), maps[:, 0]


def measure(model: Any, before: Any, measured: dict[str, Measured]) -> dict[str, Any]:
    """Return accuracies by what the mark says, where the maps lie, and how much they changed."""
    result: dict[str, Any] = {}
    for tells, one in measured.items():
        predicted, branch, maps = answers(model, one.pictures)
        figures: dict[str, float] = {
            "accuracy": (predicted == one.targets).double().mean().item(),
            "attention_accuracy": (branch == one.targets).double().mean().item(),
            "map_mean": maps.mean().item(),
        }
        places = {"digit": one.digits} | ({"mark": one.marks} if tells != "none" else {})
        for name, masks in places.items():
            for metric, title in ((PointingGame(), f"at_{name}"), (EnergyPointingGame(), f"mass_on_{name}")):
                metric.update(None, None, maps, None, masks)
                figures[title] = float(metric.compute().mean)
        figures["area_of_digit"] = float(one.digits.mean())
        _, _, was = answers(before, one.pictures)
        figures["map_change"] = (maps - was).abs().mean().item()
        result[tells] = figures
    return result


def base(out: Path, seed: int, mechanism: str, mark: str, start: str) -> Path:
    """Train the network that is led astray, or return the one that is there.

    `start="nothing"`: all of it learns on pictures with the mark. `start="clean"`: its extractor learns on pictures
    without a mark (those of seed 100, whatever the seed here), and the two branches then on pictures with it.
    """
    folder = out / f"{start}-{mark}-{mechanism}-seed{seed}"
    if (folder / "summary.json").exists():
        return folder
    data = DATA.format(mark=mark)
    if start == "nothing":
        train(recipe("digits", data=data, seed=seed, mechanism=mechanism, out=str(folder), **BASE), device="cpu")
        return folder
    first = out / f"unmarked-{mechanism}-seed100"
    if not (first / "summary.json").exists():
        given = {"data": "digits:train=8000", "seed": 100, "mechanism": mechanism, "out": str(first)}
        train(recipe("digits", **given | BASE), device="cpu")
    maps = annotated(out, seed, mark, 100)  # not looked at: the weight is 0
    astray: dict[str, Any] = {"map_weight": 0.0, "annotated_share": 0.01, "epochs": 3, "lr": 3e-3, "maps": 0}
    train(human_map_settings(first, maps, data=data, seed=seed, out=str(folder), **astray), device="cpu")
    return folder


def annotated(out: Path, seed: int, mark: str, count: int, *, wrong: bool = False) -> Path:
    """Write the annotations, or return those that are there."""
    folder = out / f"annotations-{mark}-seed{seed}-{count}{'-wrong' if wrong else ''}"
    if not (folder / "done").exists():
        images = open_data(DATA.format(mark=mark), seed=seed).train
        assert images is not None
        annotate(folder, images, count, seed, wrong=wrong)
        (folder / "done").touch()
    return folder


def one_arm(
    out: Path, arm: str, seed: int, mechanism: str, split: str, changes: dict[str, Any], options: argparse.Namespace
) -> None:
    """Fine-tune, measure and write one record, unless it is there."""
    start, mark, count = options.start, options.mark, options.annotated
    title = f"{split}-{start}-{mark}-{mechanism}-{count}-seed{seed}-{arm.replace(', ', '-').replace(' ', '-')}"
    if changes:
        title += "-" + "-".join(f"{name}={value}" for name, value in changes.items())
    path = out / "results" / f"{title}.json"
    if path.exists():
        return
    run = base(out, seed, mechanism, mark, start)
    started = load_model(run)
    measured = {tells: Measured(images, started.preprocessing) for tells, images in sets(seed, split, mark).items()}
    record: dict[str, Any] = {"arm": arm, "seed": seed, "mechanism": mechanism, "mark": mark}
    record |= {"split": split, "start": start}
    began = time.perf_counter()
    if arm != "before":
        maps = annotated(out, seed, mark, count, wrong=arm == "wrong maps")
        given = {"maps": 0} | changes | ARMS[arm]
        run = train(human_map_settings(run, maps, out=str(out / "runs" / title), **given), device="cpu")
        lines = (run / "metrics.jsonl").read_text().splitlines()
        settings = json.loads((run / "config.json").read_text())["settings"]
        record |= {"annotated": count, "settings": settings, "last_epoch": json.loads(lines[-1])}
    record |= {"seconds": time.perf_counter() - began, "measured": measure(load_model(run), started, measured)}
    write_json(path, record | {"machine": machine()})
    print(title, json.dumps({name: round(one["accuracy"], 3) for name, one in record["measured"].items()}), flush=True)


def machine() -> dict[str, str]:
    """Return what the run was made on and with."""
    names = ("torch", "lightning", "timm", "numpy")
    versions = {name: version(name) for name in names} | {"python": platform.python_version()}
    return {"processor": processor(), "threads": str(torch.get_num_threads()), **versions}


FIGURES = (
    ("none", "accuracy"), ("random", "accuracy"), ("class", "accuracy"), ("none", "at_digit"),
    ("none", "mass_on_digit"), ("random", "at_digit"), ("random", "mass_on_digit"), ("random", "at_mark"),
    ("random", "mass_on_mark"), ("class", "map_change"),
)  # fmt: skip


def summary(out: Path, split: str) -> dict[str, Any]:
    """Gather the records: for each network and arm the mean over seeds, and each seed's figures."""
    table: dict[str, Any] = {}
    for path in sorted((out / "results").glob(f"{split}-*.json")):
        record = json.loads(path.read_text())
        name = path.stem.replace(f"-seed{record['seed']}", "").removeprefix(f"{split}-")
        table.setdefault(name, {})[record["seed"]] = {
            f"{tells}.{figure}": record["measured"][tells][figure] for tells, figure in FIGURES
        }
    for name, seeds in table.items():
        means = {key: float(np.mean([one[key] for one in seeds.values()])) for key in next(iter(seeds.values()))}
        print(f"{name} (n {len(seeds)})", json.dumps({key: round(value, 3) for key, value in means.items()}))
    return table


def oracle(out: Path, mechanism: str, mark: str, start: str, steps: int = 500) -> None:
    """Train the perception branch with the digits' masks in the place of the map, for all training pictures.

    What the best maps could bring while the extractor stays: seed 100, measured on validation, features computed once.
    """
    model = load_model(base(out, 100, mechanism, mark, start))
    images = open_data(DATA.format(mark=mark), seed=100).train
    assert images is not None

    @torch.no_grad()
    def known(one: Measured) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        parts = [model.features(one.pictures[at : at + 250]) for at in range(0, len(one.pictures), 250)]
        features = torch.cat(parts)
        masks = torch.from_numpy(one.digits).float()[:, None]
        return features, torch.nn.functional.adaptive_avg_pool2d(masks, features.shape[2:]), one.targets

    def answer(features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        gated = features * (masks if mechanism == "product" else 1 + masks)
        return model.backbone.forward_head(run_sequence(model.backbone, model.place.tail, gated))

    features, masks, targets = known(Measured(images, model.preprocessing))
    random = np.random.default_rng(0)
    learning = [parameter for name in (*model.place.tail, "fc") for parameter in _part(model, name).parameters()]
    optimizer = torch.optim.AdamW(learning, lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(steps):
        chosen = random.choice(len(targets), 64, replace=False)
        loss = torch.nn.functional.cross_entropy(answer(features[chosen], masks[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    result = {}
    for tells, digits in sets(100, "validation", mark).items():
        seen, wanted, truth = known(Measured(digits, model.preprocessing))
        with torch.no_grad():
            result[tells] = (answer(seen, wanted).argmax(1) == truth).double().mean().item()
    record = {"mechanism": mechanism, "mark": mark, "start": start, "steps": steps, "accuracy": result}
    write_json(out / "results" / f"oracle-{start}-{mark}-{mechanism}-seed100.json", record | {"machine": machine()})
    print(result)


def _part(model: Any, name: str) -> torch.nn.Module:
    return model.backbone.get_submodule(name)


def picture(before: Path, after: Path, seed: int, mark: str, target: Path, columns: int = 8) -> None:
    """Draw the maps of the same test images before and after, half of them without a mark, half with a useless one."""
    sheets = []
    found = sets(seed, "test", mark)
    chosen = np.sort(np.random.default_rng(0).permutation(2000)[: columns // 2])
    shown = [(tells, int(index)) for tells in ("none", "random") for index in chosen]
    pictures = [found[tells].image(index) for tells, index in shown]
    for title, run in (("before", before), ("after", after)):
        model = load_model(run)
        with torch.no_grad():
            output = model(torch.stack([model.preprocessing.tensor(one) for one in pictures]))
        said = output.logits.argmax(1).tolist()
        labels = [f"is {index % 10}, called {said[place]}" for place, (_, index) in enumerate(shown)]
        path = target.with_name(f"{target.stem}-{title}.png")
        heading = f"{title}: the first {columns // 2} without a mark, the others with one that says nothing"
        strip(pictures, output.attention[:, 0], labels, path, title=heading)
        with Image.open(path) as sheet:
            sheets.append(sheet.copy())
        path.unlink()
    whole = Image.new("RGB", (sheets[0].width, sum(sheet.height for sheet in sheets)), "white")
    for number, sheet in enumerate(sheets):
        whole.paste(sheet, (0, number * sheets[0].height))
    whole.save(target)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tune", "study", "oracle", "summary", "picture"))
    parser.add_argument("out", type=Path)
    parser.add_argument("after", type=Path, nargs="?", help="for picture: the run after; the one before stands first")
    parser.add_argument("--target", type=Path, default=Path("docs/pictures/human-maps.png"), help="picture to write")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=["before", "maps", "no maps"], choices=("before", *ARMS))
    parser.add_argument("--mechanisms", nargs="+", default=["product"])
    parser.add_argument("--mark", default="colour")
    parser.add_argument("--start", default="nothing", choices=("nothing", "clean"), help="what the extractor knew")
    parser.add_argument("--annotated", type=int, default=100)
    parser.add_argument("--set", nargs="*", default=[], help="settings of the fine-tuning, NAME=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the study was made two runs at a time
    changes = {name: json.loads(value) for name, _, value in (one.partition("=") for one in options.set)}
    split, seeds = ("validation", [100]) if options.what == "tune" else ("test", options.seeds)
    if options.what == "picture":
        picture(options.out, options.after, seeds[0], options.mark, options.target)
        return
    if options.what == "oracle":
        for mechanism in options.mechanisms:
            oracle(options.out, mechanism, options.mark, options.start)
        return
    if options.what == "summary":
        found = summary(options.out, split)
        RECORDS.mkdir(parents=True, exist_ok=True)
        write_json(RECORDS / "summary.json", {"figures": found, "machine": machine(), "command": shlex.join(sys.argv)})
        return
    for seed in seeds:
        for mechanism in options.mechanisms:
            for arm in options.arms:
                mine = {} if arm == "before" else changes
                one_arm(options.out, arm, seed, mechanism, split, mine, options)


if __name__ == "__main__":
    main()
