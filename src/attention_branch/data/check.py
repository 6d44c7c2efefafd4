"""`abn check DATA`: read every picture once and list what is broken, doubled or odd before it spoils a training."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from attention_branch.data.dataset import ImageSet, Source
from attention_branch.data.images import exif_orientation, open_header, open_image
from attention_branch.data.opening import open_data
from attention_branch.data.verify import in_threads
from attention_branch.errors import UserError

SMALLEST_SIDE = 16
"""Pictures with a side of fewer pixels are listed as extremely small."""
LARGEST_ASPECT = 5.0
"""Pictures whose longer side is more than this many times the shorter are listed as extremely long."""

_SHOWN = 20
_SUFFIX_FORMATS = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"},
    "MPO": {".jpg", ".jpeg", ".mpo"},
    "PNG": {".png", ".apng"},
    "TIFF": {".tif", ".tiff"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm"},
    "BMP": {".bmp", ".dib"},
    "DIB": {".dib", ".bmp"},
    "JPEG2000": {".jp2", ".j2k"},
    "GIF": {".gif"},
    "WEBP": {".webp"},
    "AVIF": {".avif"},
    "TGA": {".tga"},
}


@dataclass(frozen=True)
class Duplicate:
    """Pictures with the same bytes. `across_splits`: a model is tested on what it saw; `conflict`: labels differ."""

    ids: list[str]
    splits: list[str]
    labels: list[str]
    across_splits: bool
    conflict: bool


@dataclass(frozen=True)
class Report:
    """What a data set holds and what is wrong with it, by sample id. `broken` holds (id, reason), `odd` (id, kind)."""

    spec: str
    split_made: str
    counts: dict[str, dict[str, dict[str, int]]]
    images: int
    empty: list[str] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    odd: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong that harms a result; odd pictures and copies inside one class do not."""
        harmful = any(group.across_splits or group.conflict for group in self.duplicates)
        return not (self.empty or self.broken or harmful)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for a JSON file."""
        values = asdict(self)
        values["sound"] = self.sound
        values["broken"] = [{"id": name, "reason": reason} for name, reason in self.broken]
        values["odd"] = [{"id": name, "kind": kind} for name, kind in self.odd]
        return values

    def print(self, console: Console | None = None) -> None:
        """Print the report; of long lists only the beginning."""
        console = console or Console()
        console.print(Text(f"{self.spec}: {self.images} pictures ({self.split_made})"))
        for head in next(iter(self.counts.values()), {}):
            console.print(self._table(head))
        self._list(console, "empty files", self.empty)
        self._list(console, "broken", [f"{name}: {reason}" for name, reason in self.broken])
        groups = self.duplicates
        for title, some in (
            ("the same picture under different labels", [g for g in groups if g.conflict]),
            (
                "the same picture in different splits",
                [g for g in groups if g.across_splits and not g.conflict],
            ),
            ("the same picture twice", [g for g in groups if not (g.across_splits or g.conflict)]),
        ):
            self._list(console, title, [_line(group) for group in some])
        for kind, number in Counter(kind for _, kind in self.odd).most_common():
            self._list(console, f"odd, {kind}", [name for name, mine in self.odd if mine == kind], few=3, number=number)
        self._list(console, "ignored files", self.ignored, few=3)
        for verdict in self._verdicts():
            console.print(Text(verdict, style="bold"))

    def _verdicts(self) -> list[str]:
        if self.sound:
            return ["Nothing here harms a training."]
        verdicts = []
        unread = len(self.empty) + len(self.broken)
        if unread:
            verdicts.append(f"Training leaves out {unread} empty or broken pictures; replace or remove them.")
        if any(group.conflict for group in self.duplicates):
            verdicts.append("Copies under different labels contradict each other; keep the right one.")
        if any(group.across_splits for group in self.duplicates):
            verdicts.append("Copies in different splits make results look better than they are; keep one of each.")
        return verdicts

    def _table(self, head: str) -> Table:
        table = Table(title=head)
        table.add_column("class")
        for split in self.counts:
            table.add_column(split, justify="right")
        names = list(next(iter(self.counts.values()))[head])
        for name in names[:_SHOWN]:
            table.add_row(Text(name), *(str(heads[head][name]) for heads in self.counts.values()))
        if len(names) > _SHOWN:
            table.add_row(f"... {len(names) - _SHOWN} more", *("" for _ in self.counts))
        table.add_row("all", *(str(sum(heads[head].values())) for heads in self.counts.values()), style="bold")
        return table

    @staticmethod
    def _list(console: Console, title: str, lines: Sequence[str], few: int = _SHOWN, number: int | None = None) -> None:
        if not lines:
            return
        console.print(Text(f"{title}: {len(lines) if number is None else number}", style="bold"))
        for line in lines[:few]:
            console.print(Text(f"  {line}"), soft_wrap=True)
        if len(lines) > few:
            console.print(f"  ... {len(lines) - few} more")


def _line(group: Duplicate) -> str:
    parts = zip(group.ids, group.splits, group.labels, strict=True)
    return " = ".join(f"{name} ({split}, {label})" for name, split, label in parts)


def check_data(
    spec: str | Path, *, seed: int = 0, columns: Sequence[str] | None = None, progress: bool = True
) -> Report:
    """Read every picture of a data set once and report on it; a `UserError` where no data set can be made of it."""
    data = open_data(spec, seed=seed, columns=columns, verify=False, progress=progress)
    report = Report(
        spec=str(spec),
        split_made=data.split_made,
        counts={name: images.counts() for name, images in data.splits.items()},
        images=sum(len(images) for images in data.splits.values()),
        ignored=list(data.ignored),
    )
    same: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for split, images in data.splits.items():
        rows = in_threads(partial(_look, images.source), images.rows, f"Reading {split}", progress)
        for place, (row, (digest, problem, kinds)) in enumerate(rows):
            name = images.source.id(row)
            if digest is not None:
                same[digest].append((split, place))
            if problem == "empty":
                report.empty.append(name)
            elif problem is not None:
                report.broken.append((name, problem))
            report.odd.extend((name, kind) for kind in kinds)
    report.duplicates.extend(_duplicate(places, data.splits) for places in same.values() if len(places) > 1)
    return report


def _look(source: Source, row: int) -> tuple[bytes | None, str | None, list[str]]:
    """Read one picture; return the hash of its bytes (None for an empty one), its problem and its oddities."""
    content: bytes | None = None
    try:
        content = source.encoded(row)
        if content is None:
            picture = source.image(row)
            return hashlib.sha256(picture.tobytes()).digest(), None, _shape_kinds(picture)
        if not content:
            return None, "empty", []
        digest = hashlib.sha256(content).digest()
        name = source.id(row)
        open_image(content, name)
        return digest, None, _kinds(open_header(content, name), name)
    except UserError as problem:
        return (hashlib.sha256(content).digest() if content else None), str(problem), []
    except OSError as problem:
        return None, f"{problem.strerror or problem}; check the file and its permissions.", []


def _kinds(picture: Image.Image, name: str) -> list[str]:
    """Return what is unusual about a picture; all of it is handled when pictures are read."""
    kinds = _shape_kinds(picture)
    mode = picture.mode
    if mode == "CMYK":
        kinds.append("CMYK")
    elif mode.startswith("I") or mode == "F":
        kinds.append("more than 8 bits")
    elif mode in ("P", "PA"):
        kinds.append("palette")
    elif mode in ("1", "L", "LA", "La"):
        kinds.append("grey")
    elif mode not in ("RGB", "RGBA"):
        kinds.append(mode)
    if picture.has_transparency_data:
        kinds.append("transparent parts")
    if exif_orientation(picture) != 1:
        kinds.append("rotated by EXIF")
    if getattr(picture, "is_animated", False) and picture.format != "MPO":
        kinds.append("animated, the first frame counts")
    suffix, known = PurePosixPath(name).suffix.lower(), _SUFFIX_FORMATS.get(picture.format or "")
    every = set().union(*_SUFFIX_FORMATS.values())
    if known is not None and suffix in every - known:
        kinds.append(f"{picture.format} inside, another file ending")
    return kinds


def _shape_kinds(picture: Image.Image) -> list[str]:
    short, long = sorted(picture.size)
    kinds = [f"a side below {SMALLEST_SIDE} pixels"] if short < SMALLEST_SIDE else []
    return [*kinds, f"longer than {LARGEST_ASPECT:g} to 1"] if long > LARGEST_ASPECT * short else kinds


def _duplicate(places: Sequence[tuple[str, int]], splits: dict[str, ImageSet]) -> Duplicate:
    targets = [splits[split].targets_of(place) for split, place in places]
    # A missing label contradicts none.
    conflict = any(len({mine[head] for mine in targets} - {-1}) > 1 for head in targets[0])
    return Duplicate(
        ids=[splits[split].id(place) for split, place in places],
        splits=[split for split, _ in places],
        labels=[_label(splits[split], mine) for (split, _), mine in zip(places, targets, strict=True)],
        across_splits=len({split for split, _ in places}) > 1,
        conflict=conflict,
    )


def _label(images: ImageSet, targets: dict[str, int]) -> str:
    named = {head: "?" if value < 0 else images.tasks[head][value] for head, value in targets.items()}
    if not images.multitask:
        return next(iter(named.values()))
    return ", ".join(f"{head}={name}" for head, name in named.items())
