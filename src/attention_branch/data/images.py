"""The one decoder of the project, and the way from file names and globs to a list of pictures.

Every kind of picture ends as plain 8-bit RGB: EXIF rotation applied, alpha laid on white, 16-bit grey scaled over its
whole range, the first frame of an animation. Only Pillow reads the bytes; nothing is unpickled or executed.
"""

import glob
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from attention_branch.errors import UserError, did_you_mean

# Files that count as pictures when a folder is searched. HEIC and SVG cannot be read; they are named, not passed over.
_JPEG_AND_PNG = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".jp2", ".j2k"}
_OTHERS = {".webp", ".avif", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"}
IMAGE_SUFFIXES = _JPEG_AND_PNG | _OTHERS | {".heic", ".heif", ".svg"}

# EPS would run Ghostscript; the others need a program of their own to show anything.
_REFUSED_FORMATS = frozenset({"EPS", "WMF", "HDF5", "GRIB", "BUFR", "FPX", "MIC", "MPEG"})
_OTHER_CONTENT = (
    (re.compile(rb"^.{4}ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL), "is HEIC, which Pillow does not read"),
    (re.compile(rb"^\s*(<\?xml.*)?<svg|^\s*<\?xml.*<svg", re.DOTALL), "is an SVG drawing, which has no pixels"),
    (re.compile(rb"^%PDF"), "is a PDF document"),
    (re.compile(rb"^%!PS|^\xc5\xd0\xd3\xc6"), "is a PostScript drawing, which is not run here"),
    (re.compile(rb"^\s*(<!doctype\s+html|<html)", re.IGNORECASE), "is a web page, perhaps a failed download"),
)


def open_image(path_or_bytes: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Return a picture as 8-bit RGB, as a viewer would show it.

    `name` stands for the picture in messages when bytes are given. Raises `UserError` for what is missing, empty,
    truncated, no picture, or larger than `PIL.Image.MAX_IMAGE_PIXELS` (a decompression bomb).
    """
    if isinstance(path_or_bytes, bytes):
        name, content = name or "the picture", path_or_bytes
    else:
        name, content = name or str(path_or_bytes), _read(Path(path_or_bytes))
    picture = open_header(content, name)
    try:
        picture.load()
        return _to_rgb(_upright(picture))
    except UserError:
        raise
    except Exception as problem:  # Pillow's decoders meet hostile bytes with any exception there is.
        raise UserError(f"'{name}' is broken ({_reason(problem)}); replace or remove it.") from problem


def open_header(content: bytes, name: str, allowed: Sequence[str] | None = None) -> Image.Image:
    """Return Pillow's picture with only its header read, under the same refusals as `open_image`.

    With `allowed` no other of Pillow's formats is tried.
    """
    if not content:
        raise UserError(f"'{name}' is empty (0 bytes); replace or remove it.")
    Image.init()
    formats = [known for known in allowed or Image.OPEN if known not in _REFUSED_FORMATS and known in Image.OPEN]
    try:
        with warnings.catch_warnings():
            # The sentence below says the same, and Pillow's line would stand above it.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(BytesIO(content), formats=formats)
    except Image.DecompressionBombError as problem:
        raise _too_large(name) from problem
    except Exception as problem:
        for pattern, what in _OTHER_CONTENT:
            if pattern.search(content[:1024]):
                raise UserError(f"'{name}' {what}; convert it to PNG or JPEG, or remove it.") from problem
        raise UserError(f"'{name}' is no picture that Pillow can read; replace or remove it.") from problem
    if Image.MAX_IMAGE_PIXELS is not None and picture.width * picture.height > Image.MAX_IMAGE_PIXELS:
        raise _too_large(name, picture.size)
    return picture


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        near = near_files(path)
        raise UserError(f"There is no picture '{path}'; check the path.{near}") from None
    except IsADirectoryError:
        raise UserError(f"'{path}' is a folder, not a picture; name a file in it.") from None
    except OSError as problem:
        raise UserError(
            f"'{path}' cannot be read ({_reason(problem)}); check the file and its permissions."
        ) from problem


def _too_large(name: str, size: tuple[int, int] | None = None) -> UserError:
    shown = f" {size[0]}x{size[1]} pixels," if size else ""
    return UserError(
        f"'{name}' has{shown} more than the {Image.MAX_IMAGE_PIXELS} pixels allowed against decompression bombs; "
        "make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
    )


def near_files(path: Path) -> str:
    """Return `did_you_mean` for the files beside a path that does not exist."""
    return did_you_mean(path.name, [file.name for file in path.parent.iterdir()]) if path.parent.is_dir() else ""


def _reason(problem: Exception) -> str:
    text = getattr(problem, "strerror", None) or str(problem).strip().split("\n")[0]
    return text[:120] or type(problem).__name__


def exif_orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation 1..8; 1 (upright) when there is none or it cannot be read."""
    try:
        orientation = picture.getexif().get(0x0112, 1)
    except Exception:  # A broken EXIF block does not make the picture unreadable.
        return 1
    return orientation if orientation in range(1, 9) else 1


def _upright(picture: Image.Image) -> Image.Image:
    return picture if exif_orientation(picture) == 1 else ImageOps.exif_transpose(picture)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I") or picture.mode == "F":
        return Image.fromarray(_to_8_bit(picture)).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def _to_8_bit(picture: Image.Image) -> np.ndarray:
    """Scale deep grey to 0..255: 16-bit over its whole range, floats from [0, 1], wider numbers over what they hold."""
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("its pixels are not all finite")
    if picture.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    elif picture.mode == "F" and values.min() >= 0 and values.max() <= 1:
        low, high = 0.0, 1.0
    elif values.min() >= 0 and values.max() <= 255:
        low, high = 0.0, 255.0
    elif values.min() >= 0 and values.max() <= 65535:
        low, high = 0.0, 65535.0
    else:
        low, high = values.min(), max(values.max(), values.min() + 1)
    return np.round((values - low) / (high - low) * 255).astype(np.uint8)


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sorting key under which 'image 10' follows 'image 9'."""
    key = []
    for place, part in enumerate(re.split(r"(\d+)", text)):
        digits = part.lstrip("0")
        key.append((1, len(digits), digits) if place % 2 else (0, 0, part.casefold()))
    return (*key, (2, 0, text))


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files under a folder in natural order, not the hidden ones; links to folders are followed once."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted((name for name in folders if not is_hidden(name)), key=natural_key)
        for name in sorted((name for name in files if not is_hidden(name)), key=natural_key):
            yield Path(place, name)


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is not the user's own data: `.DS_Store`, `.git`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def find_images(arguments: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return the pictures that files, folders (searched deeply) and globs name, each once, in the order given.

    A file that is named is taken whatever its ending. Raises `UserError` for a name that leads to no picture.
    """
    if isinstance(arguments, str | Path):
        arguments = [arguments]
    found: dict[Path, None] = {}
    arguments = list(arguments)
    if not arguments:
        raise UserError("No images are named; name picture files, a folder of them, or a glob such as 'photos/*.jpg'.")
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.is_dir():
            mine = [file for file in walk(path) if file.suffix.lower() in IMAGE_SUFFIXES]
        elif path.exists():
            mine = [path]
        else:
            matches = sorted(glob.glob(str(path), recursive=True), key=natural_key)  # noqa: PTH207 (Path.glob takes no absolute pattern)
            mine = [file for file in map(Path, matches) if file.suffix.lower() in IMAGE_SUFFIXES]
            mine = [file for file in mine if "__MACOSX" not in file.parts]
        if not mine:
            what = f"The folder '{argument}' holds no pictures" if path.is_dir() else f"No picture matches '{argument}'"
            near = "" if path.exists() else near_files(path)
            raise UserError(f"{what}; name picture files, a folder of them, or a glob such as 'photos/*.jpg'.{near}")
        found.update(dict.fromkeys(mine))
    return list(found)
