"""Drawn faces on crops of photos: constructed pictures whose attributes depend on a face at a random place.

A stand-in to see whether a localiser finds what the attributes are of, since every face's box and points are known.
No picture of a person, and no claim about real faces. Every picture is a pure function of (seed, split, index).
"""

import numpy as np
from PIL import Image, ImageDraw

from attention_branch.data.dataset import SPLITS, DataSet, ImageSet, Source
from attention_branch.data.digits import _corners, _photos
from attention_branch.data.mosaics import STATES
from attention_branch.models.facial.regions import POINTS

SIDE = 64
SIZES = {"train": 3600, "validation": 500, "test": 1000}
ATTRIBUTES = ("smiling", "mouth open", "eyes closed", "glasses", "dark hair", "long hair", "big nose", "beard")
HEIGHTS = (26, 40)
"""The least and the largest height of a face in pixels."""
_SCALE = 4  # drawn so much larger, then made smaller


def draw(seed: int, split: str, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return a picture uint8 (64, 64, 3), its face's box and points (5, 2) in pixels, and 0 or 1 an attribute."""
    random = np.random.default_rng([seed, SPLITS.index(split), index, 7])
    has = random.random(len(ATTRIBUTES)) < 0.4
    smiling, is_open, closed, glasses, dark, long_hair, big_nose, beard = has
    corners = _corners(split)
    photo, top, left = corners[random.integers(len(corners))]
    canvas = Image.fromarray(_photos()[photo][top : top + SIDE, left : left + SIDE])
    canvas = canvas.resize((SIDE * _SCALE, SIDE * _SCALE), Image.Resampling.BILINEAR)
    height = float(random.uniform(*HEIGHTS))
    width = height * float(random.uniform(0.68, 0.82))
    x0 = float(random.uniform(1, SIDE - width - 1))
    y0 = float(random.uniform(1, SIDE - height - 1))
    pen = ImageDraw.Draw(canvas)

    def place(x: float, y: float) -> tuple[float, float]:
        return (x0 + x * width) * _SCALE, (y0 + y * height) * _SCALE

    def oval(x: float, y: float, wide: float, tall: float, fill: tuple[int, ...] | None, line: int = 0) -> None:
        box = [place(x - wide / 2, y - tall / 2), place(x + wide / 2, y + tall / 2)]
        pen.ellipse(box, fill=fill, outline=(20, 20, 20) if line else None, width=line)

    skin = tuple(int(value) for value in np.array([224, 180, 150]) * random.uniform(0.55, 1.1))
    hair = tuple(int(v) for v in np.array([45, 32, 25] if dark else [215, 180, 95]) * random.uniform(0.8, 1.15))
    if long_hair:
        oval(0.5, 0.55, 1.0, 0.9, hair)
    oval(0.5, 0.4, 0.96, 0.8, hair)
    oval(0.5, 0.58, 0.8, 0.84, skin)
    if beard:
        pen.chord([place(0.12, 0.2), place(0.88, 1.0)], 25, 155, fill=hair)
    turn = float(random.uniform(-0.05, 0.05))
    eyes = [(0.32 + turn, 0.5), (0.68 + turn, 0.5)]
    nose = (0.5 + 1.5 * turn, 0.66)
    mouth = [(0.37 + turn, 0.82), (0.63 + turn, 0.82)]
    line = max(2, round(height * _SCALE / 40))
    for x, y in eyes:
        if closed:
            pen.line([place(x - 0.08, y), place(x + 0.08, y)], fill=(20, 20, 20), width=line)
        else:
            oval(x, y, 0.17, 0.1, (250, 250, 250))
            oval(x, y, 0.08, 0.08, (20, 20, 40))
        if glasses:
            oval(x, y, 0.3, 0.22, None, line)
    if glasses:
        pen.line([place(eyes[0][0] + 0.13, 0.5), place(eyes[1][0] - 0.13, 0.5)], fill=(20, 20, 20), width=line)
    shade = tuple(int(value * 0.75) for value in skin)
    oval(*nose, *((0.26, 0.16) if big_nose else (0.1, 0.08)), shade)
    middle = ((mouth[0][0] + mouth[1][0]) / 2, 0.82)
    if is_open:
        oval(*middle, 0.26, 0.12, (110, 20, 30))
    bend = -0.07 if smiling else 0.05
    box = [place(mouth[0][0], middle[1] - abs(bend)), place(mouth[1][0], middle[1] + abs(bend))]
    pen.arc(box, *((10, 170) if smiling else (190, 350)), fill=(150, 30, 40), width=line)
    picture = canvas.resize((SIDE, SIDE), Image.Resampling.BOX)
    points = np.array([*eyes, nose, *mouth]) * [width, height] + [x0, y0] - 0.5
    box = np.array([x0 + 0.02 * width, y0, x0 + 0.98 * width, y0 + height])
    return np.asarray(picture), box, points, has.astype(np.int64)


class DrawnFaces(Source):
    """The pictures of one split, drawn once and kept."""

    decoded = True
    point_names = POINTS

    def __init__(self, seed: int, split: str, count: int) -> None:
        made = [draw(seed, split, index) for index in range(count)]
        self.name = f"drawn-faces/{seed}/{split}"
        self._pixels = np.stack([one[0] for one in made])
        self.boxes = np.stack([one[1] for one in made])
        self._points = np.stack([one[2] for one in made])
        self.attributes = np.stack([one[3] for one in made])

    def __len__(self) -> int:
        return len(self._pixels)

    def image(self, row: int) -> Image.Image:
        """Return one picture."""
        return Image.fromarray(self._pixels[row])

    def id(self, row: int) -> str:
        """Return a name."""
        return f"{self.name}/{row}"

    def box(self, row: int) -> tuple[float, float, float, float]:
        """Return the face's box in pixels."""
        x0, y0, x1, y1 = self.boxes[row].tolist()
        return x0, y0, x1, y1

    def points(self, row: int) -> np.ndarray:
        """Return the face's five points."""
        return self._points[row]

    def pixels(self) -> np.ndarray:
        """Return all pictures, uint8 (N, 64, 64, 3)."""
        return self._pixels


def drawn_faces(seed: int = 0, sizes: dict[str, int] | None = None) -> DataSet:
    """Return the data set: eight yes/no attributes, each in 40 % of the pictures, independent of one another."""
    splits = {}
    for split, count in (sizes or SIZES).items():
        source = DrawnFaces(seed, split, count)
        targets = {head: source.attributes[:, number] for number, head in enumerate(ATTRIBUTES)}
        splits[split] = ImageSet(source, targets, dict.fromkeys(ATTRIBUTES, STATES), multitask=True)
    return DataSet(
        spec="drawn-faces", seed=seed, tasks=dict.fromkeys(ATTRIBUTES, STATES), multitask=True,
        split_made="constructed: drawn faces on crops of two photos", **splits,
    )  # fmt: skip
