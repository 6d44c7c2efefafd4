"""Requests that a stranger may send to the server: each is one of many kinds, made from a seed.

Kinds whose requests can never hold a picture within the limits must be refused with 4xx; of `bit-flips` and `mutated`
some are still pictures, so 200 is right there where Pillow reads them.
"""

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Hostile:
    """One request: its kind, where it goes, its body and headers; whether a 200 would be a fault."""

    kind: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    never_good: bool = True


def picture(random: np.random.Generator, kind: str = "PNG", side: int = 64) -> bytes:
    """Return a picture's bytes, another one each time."""
    pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((side, side)).save(buffer, kind)
    return buffer.getvalue()


def form(parts: list[tuple[str, str, bytes]], boundary: str = "XabnX", kind: str = "image/png") -> tuple[str, bytes]:
    """Return the content type and body of a form with files (field, file name, bytes)."""
    body = b""
    for field, name, content in parts:
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'.encode()
        body += f"Content-Type: {kind}\r\n\r\n".encode() + content + b"\r\n"
    return f"multipart/form-data; boundary={boundary}", body + f"--{boundary}--\r\n".encode()


def upload(kind: str, content: bytes, name: str = "a.png", *, never_good: bool = True) -> Hostile:
    """Return a request with one file in a form."""
    content_type, body = form([("files", name, content)])
    return Hostile(kind, "POST", "/v1/predict", {"content-type": content_type}, body, never_good)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of(width: int, height: int, data: bytes, *extra: bytes) -> bytes:
    """Return a PNG that says it has a size, with any packed data."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + b"".join(extra) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def truncated(random: np.random.Generator) -> Hostile:
    """A picture of which the end is missing."""
    kind = str(random.choice(["PNG", "WEBP", "GIF", "BMP"]))
    content = picture(random, kind)
    return upload("truncated", content[: int(random.integers(0, len(content) // 2))])


def bit_flips(random: np.random.Generator) -> Hostile:
    """A picture with some bits turned."""
    content = bytearray(picture(random, str(random.choice(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]))))
    for place in random.integers(0, len(content), int(random.integers(1, 40))):
        content[place] ^= 1 << int(random.integers(8))
    return upload("bit-flips", bytes(content), never_good=False)


def mutated(random: np.random.Generator) -> Hostile:
    """A picture with pieces cut out, doubled or put elsewhere."""
    content = picture(random, str(random.choice(["PNG", "JPEG", "WEBP", "GIF", "TIFF"])))
    first, second = sorted(int(place) for place in random.integers(0, len(content), 2))
    pieces = [content[:first], content[first:second], content[second:]]
    order = random.permutation(3)
    return upload("mutated", b"".join(pieces[place] for place in order), never_good=False)


def bomb(random: np.random.Generator) -> Hostile:
    """A small file that becomes a huge picture."""
    width, height = (int(side) for side in random.integers(20_000, 60_000, 2))
    return upload("bomb", png_of(width, height, zlib.compress(bytes(int(random.integers(10**5, 2 * 10**6))), 9)))


def text_bomb(random: np.random.Generator) -> Hostile:
    """A PNG whose packed comment becomes huge, on a picture that is broken."""
    comment = b"c\x00\x00" + zlib.compress(bytes(int(random.integers(2 * 10**6, 2 * 10**7))), 9)
    return upload("text bomb", png_of(8, 8, b"", _chunk(b"zTXt", comment)))


def huge(random: np.random.Generator) -> Hostile:
    """A header with sides that nothing can hold."""
    side = int(random.integers(2**17, 2**31 - 1))
    if random.integers(2):
        return upload("huge", png_of(side, side, b"x"))
    head = b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, *[0] * 6)
    return upload("huge", head + bytes(46), "a.bmp")


def polyglot(random: np.random.Generator) -> Hostile:
    """A file that is two things, none of them a picture to its end."""
    heads = [b"GIF89a", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\x24\x00\x00\x00WEBPVP8 "]
    tails = [
        b"/*<script>alert(1)</script>*/", b"<svg onload=alert(1)>", b"PK\x03\x04" + bytes(40), b"%PDF-1.7\n1 0 obj",
        b"#!/bin/sh\nrm -rf /\n", b"<?php system($_GET[0]); ?>",
    ]  # fmt: skip
    content = heads[int(random.integers(4))] + tails[int(random.integers(6))] + random.bytes(int(random.integers(200)))
    return upload("polyglot", content, "a.jpg")


def other_file(random: np.random.Generator) -> Hostile:
    """A file that is no picture at all, or one that would run a program to be read."""
    contents = [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n",
        b"\x80\x04\x95cposix\nsystem\n", b"\x7fELF" + bytes(60), b"PK\x03\x04" + bytes(60), b"<svg xmlns='x'/>",
        b"%PDF-1.7", b"\xd7\xcd\xc6\x9a" + bytes(40), b"", b"\x00", bytes(1000), random.bytes(1000),
        b"\x00\x00\x00\x18ftypheic" + bytes(40), b"\x89HDF\r\n\x1a\n" + bytes(60), b"GRIB" + bytes(30),
    ]  # fmt: skip
    return upload("other file", contents[int(random.integers(len(contents)))])


def bad_form(random: np.random.Generator) -> Hostile:
    """A form that is broken, empty, or has too much in it."""
    content_type, body = form([("files", "a.png", picture(random))])
    choice = int(random.integers(6))
    if choice == 0:
        body = body[: int(random.integers(1, 60))]
    elif choice == 1:
        content_type = "multipart/form-data"
    elif choice == 2:
        content_type, body = form([("files", f"{number}.png", b"x") for number in range(100)])
    elif choice == 3:
        content_type = "multipart/form-data; boundary=other"
    elif choice == 4:
        body = b"--XabnX\r\n" + b"A: b\r\n" * 3000
    else:
        body = b'--XabnX\r\nContent-Disposition: form-data; name="x"\r\n\r\n' + b"y" * 200_000 + b"\r\n--XabnX--\r\n"
    return Hostile("bad form", "POST", "/v1/predict", {"content-type": content_type}, body)


def wrong_type(random: np.random.Generator) -> Hostile:
    """A body that is said to be something else than a picture."""
    kind = ["application/json", "text/html", "", "application/x-www-form-urlencoded", "a/b; c"][int(random.integers(5))]
    return Hostile("wrong type", "POST", "/v1/predict", {"content-type": kind}, picture(random))


def bad_json(random: np.random.Generator) -> Hostile:
    """JSON that is broken, too deep, of another shape, or for an image that is not open."""
    bodies = [
        b"{", b"[" * 100_000, b'{"maps": {"label": [[1e999]]}}', b'{"queue": -1}', b'{"queue": 1e400}', b"null",
        b"\xff\xfe", b'{"maps": ' * 5000, b'{"annotation": "../../etc/passwd"}', b'{"a": "' + b"x" * 100_000 + b'"}',
        json.dumps({"map": base64.b64encode(random.bytes(300)).decode()}).encode(), b'{"map": "' + b"A" * 9999 + b'"}',
    ]  # fmt: skip
    paths = ["/v1/images", "/v1/images/nothing/answer", "/v1/images/nothing/annotation"]
    headers = {"content-type": "application/json"}
    path = paths[int(random.integers(len(paths)))]
    return Hostile("bad JSON", "POST", path, headers, bodies[int(random.integers(len(bodies)))])


def climbing(random: np.random.Generator) -> Hostile:
    """A path or a file's name that tries to leave its folder."""
    climbs = ["../" * 8 + "etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/api.py", "....//....//etc/passwd",
              "..\\..\\windows\\win.ini", "%00", "C:/x", "/etc/passwd", "%c0%ae%c0%ae/"]  # fmt: skip
    climb = climbs[int(random.integers(len(climbs)))]
    if random.integers(2):
        return upload("climbing", b"no picture", climb.replace('"', ""))
    place = ["/page/", "/v1/annotations/", "/v1/images/", "/v1/annotations/x/"][int(random.integers(4))]
    return Hostile("climbing", "GET", (place + climb.replace("\\", "%5c")).replace(" ", "%20"), {}, b"")


def foreign(random: np.random.Generator) -> Hostile:
    """A request that another site's page sends, or that was sent to another name."""
    content_type, body = form([("files", "a.png", picture(random))])
    headers = [
        {"origin": "https://evil.example"}, {"origin": "null"}, {"host": "evil.example"},
        {"sec-fetch-site": "cross-site"}, {"host": "127.0.0.1.evil.example"},
    ][int(random.integers(5))]  # fmt: skip
    return Hostile("foreign", "POST", "/v1/predict", {"content-type": content_type} | headers, body)


def oversize(random: np.random.Generator) -> Hostile:
    """A body over the limit of one MiB."""
    return upload("oversize", bytes(2**20 + int(random.integers(1, 10**6))))


def bad_query(random: np.random.Generator) -> Hostile:
    """Parameters that do not fit."""
    queries = ["top=0", "top=99999999999999999999", "maps=exe", "top=NaN", "record=perhaps", "top=" + "9" * 5000]
    content_type, body = form([("files", "a.png", picture(random))])
    path = f"/v1/predict?{queries[int(random.integers(len(queries)))]}"
    return Hostile("bad query", "POST", path, {"content-type": content_type}, body)


KINDS: list[Callable[[np.random.Generator], Hostile]] = [
    truncated, bit_flips, mutated, bomb, text_bomb, huge, polyglot, other_file, bad_form, wrong_type, bad_json,
    climbing, foreign, oversize, bad_query,
]  # fmt: skip


def hostile(seed: int) -> Hostile:
    """Return the request of a number: kinds take turns."""
    return KINDS[seed % len(KINDS)](np.random.default_rng(seed))
