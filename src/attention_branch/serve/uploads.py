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

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
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
    """A picture that was read: its bytes as they came, their SHA-256, its size upright, and what the network sees.

    `view` is the part that the network sees, as a picture; `array` the same as its input (3, H, W). The picture itself
    is not kept: a small file may hold a very large one.
    """

    name: str
    content: bytes
    digest: str
    width: int
    height: int
    view: Image.Image
    array: np.ndarray


def safe_name(name: str | None) -> str:
    """Return the last part of a client's file name without what could be a path or end a line, for showing only."""
    last = PureWindowsPath(PurePosixPath(name or "").name).name
    clean = "".join(letter for letter in last if letter.isprintable() and letter not in '<>:"|?*/\\')
    return clean[:120].strip(". ") or "image"


def read_upload(content: bytes, name: str, preprocessing: Preprocessing, limits: Limits) -> Upload:
    """Decode a picture and prepare it for the network; `UserError` for what is broken, too large or no picture."""
    picture = read_picture(content, name, preprocessing, limits)
    view = preprocessing.image(picture)
    digest = sha256(content).hexdigest()
    return Upload(name, content, digest, picture.width, picture.height, view, preprocessing.array_of_view(view))


def read_picture(content: bytes, name: str, preprocessing: Preprocessing, limits: Limits) -> Image.Image:
    """Decode a picture within limits, also of what the network's scaling would make of it; `UserError` beyond them."""
    header = open_header(content, name, FORMATS)
    if header.width * header.height > limits.pixels:
        raise UserError(
            f"'{name}' has {header.width}x{header.height} pixels, more than the {limits.pixels} this server takes; "
            "make it smaller."
        )
    for size in ((header.height, header.width), (header.width, header.height)):
        if preprocessing.pixels_to_scale(size) > limits.pixels:
            raise UserError(f"'{name}' of {header.width}x{header.height} pixels is too long and thin; cut it.")
    header.close()
    return open_image(content, name)


def png_bytes(picture: Image.Image) -> bytes:
    """Return a picture as PNG, packed quickly rather than small."""
    buffer = BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
