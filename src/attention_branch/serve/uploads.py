"""From the bytes that a stranger sends to a picture for the network, within limits."""

from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image

from attention_branch.data.images import open_header, open_image
from attention_branch.errors import UserError
from attention_branch.models.preprocessing import Preprocessing

FORMATS = frozenset({"JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF"})
"""What the server decodes: the usual kinds of pictures. Every further decoder is a door for strangers' bytes."""


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. Sizes in bytes, times in seconds."""

    body: int = 32 * 2**20
    """Bytes of a request's body."""
    pixels: int = 50_000_000
    """Pixels of a picture, width times height, before it is decoded."""
    images: int = 32
    """Images of a request."""
    upload: float = 30.0
    """Seconds that a request's body may take to arrive."""
    waiting: int = 256
    """Images that may stand in line."""
    patience: float = 20.0
    """Seconds that an image may stand in line."""
    in_flight: int = 256 * 2**20
    """Bytes of all bodies that are being read or worked on."""


@dataclass(frozen=True)
class Upload:
    """A decoded picture: its bytes as they came, their SHA-256, RGB pixels, and the network's input (3, H, W)."""

    name: str
    content: bytes
    digest: str
    picture: Image.Image
    array: np.ndarray


def safe_name(name: str | None) -> str:
    """Return the last part of a client's file name without what could be a path or end a line, for showing only."""
    last = PureWindowsPath(PurePosixPath(name or "").name).name
    clean = "".join(letter for letter in last if letter.isprintable() and letter not in '<>:"|?*/\\')
    return clean[:120].strip(". ") or "image"


def read_upload(content: bytes, name: str, preprocessing: Preprocessing, limits: Limits) -> Upload:
    """Decode a picture and prepare it for the network; `UserError` for what is broken, too large or no picture."""
    header = open_header(content, name)
    if header.format not in FORMATS:
        raise UserError(f"'{name}' is {header.format}; send JPEG, PNG, WebP, BMP, GIF, TIFF, PPM or AVIF.")
    if header.width * header.height > limits.pixels:
        raise UserError(
            f"'{name}' has {header.width}x{header.height} pixels, more than the {limits.pixels} this server takes; "
            "make it smaller."
        )
    header.close()
    picture = open_image(content, name)
    return Upload(name, content, sha256(content).hexdigest(), picture, preprocessing.array(picture))


def png_bytes(picture: Image.Image) -> bytes:
    """Return a picture as PNG, packed quickly rather than small."""
    buffer = BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
