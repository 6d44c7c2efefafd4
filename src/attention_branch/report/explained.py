"""`abn explain RUN IMAGES...`: a picture, a raw map and a traceable line per image, and one page for all."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attention_branch.arrays import as_array
from attention_branch.data.images import find_images, open_image
from attention_branch.errors import UserError
from attention_branch.evaluation.second_look import SecondLook, criteria, second_look
from attention_branch.explanations.result import Explanation
from attention_branch.explanations.targets import Target, head_target
from attention_branch.files import (
    append_text,
    atomic_path,
    json_line,
    read_json_lines,
    require_folder,
    write_text,
)
from attention_branch.metrics.collapse import collapse_alarm
from attention_branch.progress import progress_bar
from attention_branch.report.explained_page import counted, now, write_explained_page
from attention_branch.report.explainers import Explainer, open_explainer
from attention_branch.report.prediction_record import answer_record, map_record

JOURNAL = ".predictions.journal.jsonl"
_LONGEST = 200
"""Bytes of a stem; a file system takes 255 of a name, and a number and an ending come after it."""


@dataclass(frozen=True)
class ExplainedFiles:
    """What `explain_files` wrote: counts, and where. `exit_code` is 0 when every image was explained, else 2.

    `flagged` predictions are worth a second look; `flags` counts the reasons, by the names of `second_look.FLAGS`.
    """

    output: Path
    predictions: Path
    report: Path
    explained: int
    reused: int
    failed: int
    note: str = ""
    alarm: str | None = None
    flagged: int = 0
    flags: Mapping[str, int] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """The status a command line ends with."""
        return 2 if self.failed else 0

    def lines(self) -> list[str]:
        """Return what a command line says of it."""
        said = [f"{self.explained} images explained, {self.failed} could not be read. Open {self.report}"]
        if self.reused:
            said.append(f"{self.reused} of them were explained by an earlier call of the same command.")
        if self.explained:
            why = f" ({counted(self.flags)})" if self.flagged else ""
            said.append(f"Worth a second look: {self.flagged} of {self.explained} predictions{why}.")
        return said + [line for line in (self.note, self.alarm) if line]


def explain_files(
    run: str | Path,
    images: Sequence[str | Path] | str | Path,
    output: str | Path,
    *,
    method: str = "attention",
    target: Target = None,
    layer: str = "auto",
    top_k: int = 5,
    batch_size: int = 16,
    stretch: bool = False,
    device: str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> ExplainedFiles:
    """Explain image files (files, folders, globs) with a run, a saved network or a hub name, and write into `output`.

    `run` may be an ONNX file of `abn export` too; then no torch is needed, and the methods are those that it carries.
    `pictures/NAME.png` (image, map with colour bar, overlay), `maps/NAME.npy` (the raw map as float32, (h, w),
    lossless), `predictions.jsonl` (a line per image, in the order given; {"file", "error"} for one that cannot be read)
    and `report.html`. `target` is an index or a class name, with several heads "HEAD", "HEAD=CLASS" or {head: class}
    (default the first head). `stretch` spans the colours over each map's own extremes, and every picture says so. A
    broken call is continued by the same call. Raises `UserError` for an unknown method or class, or no image.
    """
    if top_k < 1 or batch_size < 1:
        raise UserError(f"top_k is {top_k} and batch_size {batch_size}; both must be 1 or more.")
    paths, output = find_images(images), require_folder(output)
    explainer = open_explainer(run, method, layer, device)
    model = explainer.model
    target, note = head_target(model, target)
    settings = {
        "model_sha256": explainer.sha256,
        "method": method,
        "target": repr(target),
        "layer": layer,
        "top_k": top_k,
        "stretch": stretch,
        "seed": seed,
        "second_look": criteria(),
        "versions": explainer.versions,
    }
    # One answer to a blank image: a target that the model does not know is said before anything is written.
    explainer.explain([Image.new("RGB", model.preprocessing.size[::-1])], target, seed)
    work = _Work(explainer, output, settings, target, top_k, stretch, seed)
    done = _journal(output, settings)
    lines: list[dict[str, Any]] = []
    maps: list[np.ndarray] = []
    reused = 0
    with progress_bar() as bar:
        bar.disable = not progress
        task = bar.add_task("explaining", total=len(paths))
        for start, batch in _batches(_named(paths), batch_size):
            found, count = work.batch(batch, start, done)
            append_text(output / JOURNAL, "".join(json_line(entry) for entry in found))
            lines += found
            reused += count
            bar.advance(task, len(batch))
    write_text(output / "predictions.jsonl", "".join(json_line(entry) for entry in lines))
    good = [entry for entry in lines if "error" not in entry]
    for entry in good[:256]:
        maps.append(np.load(output / entry["map"]["file"], allow_pickle=False))
    same_size = len({values.shape for values in maps}) == 1
    alarm = None
    if method == "attention" and len(maps) > 1 and same_size:
        alarm = collapse_alarm(np.stack(maps), bounded=model.map_range is not None)
    report = write_explained_page(output, str(run), model, lines, settings, note, alarm)
    (output / JOURNAL).unlink(missing_ok=True)
    flags = [[flag["flag"] for flag in entry["second_look"]] for entry in good]
    return ExplainedFiles(
        output=output,
        predictions=output / "predictions.jsonl",
        report=report,
        explained=len(good),
        reused=reused,
        failed=len(lines) - len(good),
        note=note,
        alarm=alarm,
        flagged=sum(bool(found) for found in flags),
        flags=Counter(flag for found in flags for flag in found),
    )


@dataclass
class _Work:
    """All that one image after another needs."""

    explainer: Explainer
    output: Path
    settings: dict[str, Any]
    target: Target
    top_k: int
    stretch: bool
    seed: int

    def batch(
        self, batch: Sequence[tuple[Path, str]], start: int, done: dict[str, dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], int]:
        """Return the lines of some images, in order, and how many were done before."""
        lines: dict[int, dict[str, Any]] = {}
        fresh: list[tuple[int, Path, str, str, Image.Image]] = []
        reused = 0
        for place, (path, name) in enumerate(batch):
            try:
                content = path.read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                earlier = done.get(str(path))
                if earlier is not None and self._still_there(earlier, digest, name):
                    lines[place], reused = earlier, reused + 1
                    continue
                fresh.append((place, path, name, digest, open_image(content, str(path))))
            except (UserError, OSError) as problem:
                lines[place] = {"file": str(path), "error": str(problem), "time": now()}
        if fresh:
            pictures = [picture for *_, picture in fresh]
            explanation, images = self.explainer.explain(pictures, self.target, self.seed + start)
            looks = second_look(self.explainer.model, images, explanation)
            for row, (place, path, name, digest, picture) in enumerate(fresh):
                lines[place] = self._write(explanation, row, path, name, digest, picture, looks[row])
        return [lines[place] for place in range(len(batch))], reused

    def _write(
        self,
        explanation: Explanation,
        row: int,
        path: Path,
        name: str,
        digest: str,
        picture: Image.Image,
        look: SecondLook,
    ) -> dict[str, Any]:
        file = f"maps/{name}.npy"
        with atomic_path(self.output / file) as temporary, temporary.open("wb") as handle:
            np.save(handle, as_array(explanation.raw[row]).astype(np.float32), allow_pickle=False)
        shown = f"pictures/{name}.png"
        explanation.write_figure(row, self.output / shown, stretch=self.stretch)
        return {
            "file": str(path),
            "width": picture.width,
            "height": picture.height,
            **answer_record(self.explainer.model, explanation, row, self.top_k),
            "map": map_record(explanation, row, file),
            **look.to_dict(),
            "second_look_criteria": self.settings["second_look"],
            "picture": shown,
            "image_sha256": digest,
            "model_sha256": self.settings["model_sha256"],
            "preprocessing": self.explainer.model.preprocessing.to_dict(),
            "versions": self.settings["versions"],
            "time": now(),
        }

    def _still_there(self, earlier: dict[str, Any], digest: str, name: str) -> bool:
        mine = earlier["map"]["file"] == f"maps/{name}.npy" and earlier["image_sha256"] == digest
        return (
            mine and (self.output / earlier["map"]["file"]).is_file() and (self.output / earlier["picture"]).is_file()
        )


def _named(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Give every image a file name of its own: its stem, cut where it is long, with a number where two share it."""
    used: dict[str, int] = {}
    named = []
    for path in paths:
        stem = path.stem
        while len(os.fsencode(stem)) > _LONGEST:
            stem = stem[:-1]
        count = used[stem.lower()] = used.get(stem.lower(), 0) + 1
        name = stem if count == 1 else f"{stem}-{count}"
        while count > 1 and name.lower() in used:
            count += 1
            name = f"{stem}-{count}"
        used.setdefault(name.lower(), 1)
        named.append((path, name))
    return named


def _batches(items: Sequence[tuple[Path, str]], size: int) -> Iterator[tuple[int, Sequence[tuple[Path, str]]]]:
    return ((start, items[start : start + size]) for start in range(0, len(items), size))


def _journal(output: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the lines that a broken call with the same settings left, by file, and begin a clean journal with them."""
    path, found = output / JOURNAL, {}
    if path.is_file():
        lines = read_json_lines(path)
        if lines and lines[0] == {"settings": settings}:
            found = {line["file"]: line for line in lines[1:] if "map" in line}
    # Without what was cut off, lest it stand before the next line.
    write_text(path, "".join(json_line(line) for line in ({"settings": settings}, *found.values())))
    return found
