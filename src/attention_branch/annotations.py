"""Human maps in an open folder: pictures, and for each a map that says where to look; any program can write one.

    DIR/images/NAME.jpg         the picture's bytes as they came, in any format that Pillow reads
    DIR/maps/NAME.png           8-bit grey, of the picture's own width and height: 0 do not look here, 255 look here
    DIR/annotations/NAME.json   written last: where it stands, the annotation is whole

NAME is the first 16 hexadecimal digits of the SHA-256 of the picture's bytes, then "-HEAD" where the map is for one
head; so the same picture annotated again takes the place of its annotation. A map is in the picture's pixels, upright
as `open_image` shows it: no network's crop or size matters to it.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from glob import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from attention_branch.data.images import exif_orientation, open_header
from attention_branch.errors import UserError, did_you_mean
from attention_branch.files import atomic_path, disk_error, write_json

if TYPE_CHECKING:
    from attention_branch.models.preprocessing import Preprocessing

FORMAT = 1
"""The number that `format` has in the JSON files."""

Label = str | dict[str, str] | None

_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "PPM": ".ppm", "JPEG2000": ".jp2"}


@dataclass(frozen=True)
class Annotation:
    """One picture, and the map (H, W) that a human gave it; `head` is the head it is for, None for all of them.

    `label` is the class's name, the names by head, or None where it is not known. `record` is the whole JSON file.
    """

    name: str
    image: Path
    map: Path
    label: Label
    head: str | None
    record: dict[str, Any]

    def values(self) -> np.ndarray:
        """Return the map in [0, 1], float32 (H, W), in the pixels of the upright picture."""
        return np.asarray(_map_picture(self.map), dtype=np.float32) / 255


def read_annotations(folder: str | Path) -> list[Annotation]:
    """Return a folder's annotations by name.

    Raises `UserError`, naming the file, where there are none, and for one that is broken: unreadable JSON, another
    format number, a missing picture or map, a map of another size, bytes that are not those that were annotated.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder '{folder}' of annotations; check the path.")
    names = annotation_names(folder)
    if not names:
        raise UserError(
            f"'{folder}' holds no annotations: it needs images/, maps/ and annotations/*.json; save one, or name "
            "another folder."
        )
    return [read_annotation(folder, name) for name in names]


def annotation_names(folder: str | Path) -> list[str]:
    """Return the names of a folder's annotations, sorted; none where there is no such folder."""
    place = Path(folder) / "annotations"
    return sorted(path.stem for path in place.glob("*.json") if not path.name.startswith("."))


def annotation_record(folder: str | Path, name: str) -> dict[str, Any]:
    """Return one annotation's JSON file, without a look at its picture and map; `UserError` where it is broken."""
    return _read_record(_record_path(Path(folder), name))


def read_annotation(folder: str | Path, name: str) -> Annotation:
    """Return one annotation by its name, checked as `read_annotations` checks it."""
    folder = Path(folder)
    path = _record_path(folder, name)
    record = _read_record(path)
    label, head = record.get("label"), record.get("head")
    if not _is_label(label):
        raise UserError(f"'{path}' has the label {label!r}; it must be a class name, one by head, or null: mend it.")
    if not (head is None or isinstance(head, str)):
        raise UserError(f"'{path}' has the head {head!r}; it must be a head's name or null: mend it.")
    image, content = _checked_file(folder, path, record, "image")
    drawn, drawn_content = _checked_file(folder, path, record, "map")
    size, map_size = _upright_size(content, str(image)), _map_picture(drawn, drawn_content).size
    if map_size != size:
        raise UserError(
            f"The map '{drawn}' has {map_size[0]}x{map_size[1]} pixels, its picture {size[0]}x{size[1]} (upright); "
            f"draw the map again, or remove '{path}'."
        )
    return Annotation(name, image, drawn, label, head, record)


def write_annotation(
    folder: str | Path,
    image_bytes: bytes,
    values: np.ndarray,
    *,
    label: Label,
    head: str | None = None,
    record: dict[str, Any] | None = None,
) -> Annotation:
    """Save a picture's bytes with a map (H, W) in [0, 1] in the pixels of the upright picture; return the annotation.

    An annotation of the same picture (and head) is replaced. `record` adds to the JSON file, for instance "source",
    "shapes", "model", "before", "after", "tool". Raises `UserError` for bytes that are no picture, a map of another
    size, values out of range, and a full disk; what is half written counts as nothing.
    """
    folder = Path(folder)
    picture = open_header(image_bytes, "the picture to annotate")
    width, height = _upright_size(image_bytes, "the picture to annotate")
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (height, width):
        raise UserError(
            f"The map has the shape {values.shape}, but the picture is {height} high and {width} wide (upright); bring "
            "it to that size, for instance with `from_view`."
        )
    if not ((values >= 0) & (values <= 1)).all():
        raise UserError("The map has values outside of 0 to 1; scale or clip them.")
    if not _is_label(label):
        raise UserError(f"The label {label!r} is none; give a class name, a dict of names by head, or None.")
    digest = hashlib.sha256(image_bytes).hexdigest()
    name = digest[:16] + (f"-{quote(head, safe='')}" if head is not None else "")
    kind = picture.format or "image"
    image = folder / "images" / (name + _SUFFIXES.get(kind, f".{kind.lower()}"))
    drawn = folder / "maps" / f"{name}.png"
    levels = BytesIO()
    Image.fromarray(np.round(values * 255).astype(np.uint8)).save(levels, "PNG")
    path = _record_path(folder, name)
    _remove(path)  # An old one must not stand beside a new map, should this be stopped in between.
    for target, content in ((image, image_bytes), (drawn, levels.getvalue())):
        with atomic_path(target) as temporary:
            temporary.write_bytes(content)
    whole: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **(record or {}),
        "format": FORMAT,
        "image": image.relative_to(folder).as_posix(),
        "map": drawn.relative_to(folder).as_posix(),
        "image_sha256": digest,
        "map_sha256": hashlib.sha256(levels.getvalue()).hexdigest(),
        "label": label,
        "head": head,
    }
    write_json(path, whole)
    return Annotation(name, image, drawn, label, head, whole)


def delete_annotation(folder: str | Path, name: str) -> None:
    """Remove an annotation, broken or not, with its picture and map; `UserError` where there is none of that name."""
    folder = Path(folder)
    path = _record_path(folder, name)
    try:
        record = _read_record(path)
        files = [_inside(folder, path, record, key) for key in ("image", "map")]
    except UserError:
        if not path.is_file():
            raise
        # A broken record says nothing that can be trusted; what goes by its name goes with it.
        files = [file for place in ("images", "maps") for file in (folder / place).glob(f"{escape(name)}.*")]
    for file in (path, *files):
        _remove(file)


def fingerprint(annotations: list[Annotation]) -> str:
    """Return the SHA-256 of what annotations say: names, labels, and the bytes of pictures and maps."""
    digest = hashlib.sha256()
    for one in annotations:
        said = [one.name, one.label, one.head, one.record["image_sha256"], one.record["map_sha256"]]
        digest.update(json.dumps(said, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def from_view(values: np.ndarray, preprocessing: "Preprocessing", picture_size: tuple[int, int]) -> np.ndarray:
    """Return a map over what the network sees, (h, w) of any size, as float32 (H, W) in the picture's pixels.

    `picture_size` is the upright picture's (height, width). What the crop leaves out is 0. The inverse of what
    `Preprocessing.image` does to a picture.
    """
    (tall, wide), (top, left) = preprocessing.geometry(picture_size)
    height, width = preprocessing.size
    scaled = round(picture_size[0] * tall), round(picture_size[1] * wide)
    seen = _resized(np.asarray(values), (height, width))
    # The map's edge goes on beyond the crop while it is resized, so that zeros do not bleed into it.
    edges = ((top, scaled[0] - height - top), (left, scaled[1] - width - left))
    whole = _resized(np.pad(seen, edges, mode="edge"), picture_size)
    rows = (np.arange(picture_size[0]) + 0.5) * tall - top
    columns = (np.arange(picture_size[1]) + 0.5) * wide - left
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None, :]
    return np.where(inside, whole, np.float32(0))


def to_view(values: np.ndarray, preprocessing: "Preprocessing") -> np.ndarray:
    """Return a map (H, W) in the picture's pixels as the network sees it, float32 of its size: resized and cropped.

    As the picture is, but bilinear whatever the picture's interpolation, so that it stays in [0, 1].
    """
    values = np.asarray(values)
    (tall, wide), (top, left) = preprocessing.geometry((values.shape[0], values.shape[1]))
    scaled = _resized(values, (round(values.shape[0] * tall), round(values.shape[1] * wide)))
    return scaled[top : top + preprocessing.size[0], left : left + preprocessing.size[1]]


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (h, w) to a (height, width): bilinear, averaging over areas where it gets smaller; float32 in [0, 1]."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if values.shape == size:
        return values
    return np.asarray(Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.BILINEAR)).clip(0, 1)


def _is_label(label: Any) -> bool:
    if isinstance(label, dict):
        return all(isinstance(part, str) for pair in label.items() for part in pair)
    return label is None or isinstance(label, str)


def _record_path(folder: Path, name: str) -> Path:
    if not name or name.startswith(".") or any(sign in name for sign in "/\\\0"):
        raise UserError(f"'{name}' is no annotation's name; take one from '{folder / 'annotations'}'.")
    return folder / "annotations" / f"{name}.json"


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        near = did_you_mean(path.stem, [file.stem for file in path.parent.glob("*.json")])
        raise UserError(f"There is no annotation '{path}'; check the name.{near}") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise UserError(f"'{path}' cannot be read ({problem}); mend or remove it.") from problem
    if not isinstance(record, dict):
        raise UserError(f"'{path}' is no annotation: it must hold one JSON object; mend or remove it.")
    if record.get("format") != FORMAT:
        raise UserError(
            f"'{path}' has the format {record.get('format')!r}; this version reads {FORMAT}. Take a newer version of "
            "attention-branch, or write the annotation again."
        )
    return record


def _inside(folder: Path, path: Path, record: dict[str, Any], key: str) -> Path:
    """Return the file that a record names, which must lie in the folder: the record may be a stranger's."""
    named = record.get(key)
    if not isinstance(named, str) or not named or "\0" in named:
        raise UserError(f"'{path}' names no {key}; mend or remove it.")
    file = folder / named
    if not file.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"'{path}' names the {key} '{named}', which lies outside of '{folder}'; mend or remove it.")
    return file


def _checked_file(folder: Path, path: Path, record: dict[str, Any], key: str) -> tuple[Path, bytes]:
    file = _inside(folder, path, record, key)
    try:
        content = file.read_bytes()
    except OSError as problem:
        missing = "is missing" if isinstance(problem, FileNotFoundError) else f"cannot be read ({problem.strerror})"
        raise UserError(f"The {key} '{file}' of '{path}' {missing}; restore it, or remove '{path}'.") from problem
    if hashlib.sha256(content).hexdigest() != record.get(f"{key}_sha256"):
        raise UserError(
            f"'{file}' is not the {key} that was annotated: its SHA-256 is not the {key}_sha256 of '{path}'; restore "
            f"it, or remove '{path}'."
        )
    return file, content


def _upright_size(content: bytes, name: str) -> tuple[int, int]:
    """Return (width, height) as `open_image` shows the picture: EXIF orientations 5 to 8 lie on their side."""
    picture = open_header(content, name)
    # Pillow has turned a TIFF's size already.
    on_its_side = exif_orientation(picture) >= 5 and picture.format != "TIFF"
    return (picture.height, picture.width) if on_its_side else picture.size


def _map_picture(path: Path, content: bytes | None = None) -> Image.Image:
    picture = open_header(path.read_bytes() if content is None else content, str(path))
    if picture.format != "PNG" or picture.mode != "L":
        raise UserError(
            f"The map '{path}' is {picture.format} of mode {picture.mode}, not an 8-bit grey PNG; save it as one."
        )
    return picture


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as problem:
        raise disk_error(problem, path) from problem
