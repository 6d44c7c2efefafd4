"""The part of a page that shows what a search for a shortcut found: sentences, the tests as bars, and the patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from attention_branch.errors import UserError
from attention_branch.evaluation.shortcut_finding import Share, ShortcutSearch
from attention_branch.evaluation.wording import interval_text, percent
from attention_branch.explanations.explanation import Explanation
from attention_branch.explanations.overlay import to_picture
from attention_branch.report.page import Bar, Block, Card, Facts, Figure, Gallery, TableBlock, data_uri, write_report
from attention_branch.report.statements import Statement, Statements

_CROPS, _CARDS = 10, 6
_CROP_SIDE, _PICTURE_SIDE = 64, 256
_SPARE = "said without a patch"
_EMPTY, _FULL = np.array([228.0, 230, 234]), np.array([180.0, 71, 42])
_VERDICT = {"shortcut": "wrong", "suspicion": "unsure", "unknown": "unsure", "surroundings": "unsure", "none": "right"}


@dataclass(frozen=True, eq=False)
class Crops:
    """Small pictures in rows, each row under a name."""

    title: str
    rows: Sequence[tuple[str, Sequence[Image.Image]]]
    text: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is no picture."""
        return not any(pictures for _, pictures in self.rows)

    def html(self) -> str:
        """Return a table with one row a name."""
        body = ""
        for name, pictures in self.rows:
            cells = "".join(
                f'<img class="pixels" width="{picture.width}" height="{picture.height}" alt="{escape(name)}" '
                f'src="{data_uri(picture, lossless=True)}">'
                for picture in pictures
            )
            body += f'<tr><th>{escape(name)}</th><td class="crops">{cells}</td></tr>' if pictures else ""
        return f'<div class="scroll"><table>{body}</table></div>'


def write_shortcut_report(
    path: str | Path,
    search: ShortcutSearch,
    explanation: Explanation,
    *,
    title: str = "Did the network learn a shortcut?",
    summary: str = "",
    figures: Sequence[Figure] = (),
    extra: Sequence[Block] = (),
    facts: Sequence[Block] = (),
    seed: int = 0,
) -> Path:
    """Write the page of a search: its sentences, the patches it found, the tests, and how it was done.

    `explanation` holds the maps of the images that were searched, in their order. `figures` replace the headline
    numbers, `summary` the verdict below the title; `extra` blocks follow the findings, `facts` end the page. The images
    shown are drawn at random from `seed`.
    """
    if len(explanation) != search.n:
        raise UserError(f"The search is of {search.n} images, the explanation of {len(explanation)}; give the same.")
    blocks = [*shortcut_blocks(search, explanation, seed=seed), *extra, search_facts(search), *facts]
    return write_report(
        path,
        title,
        summary or search.sentences()[0],
        blocks,
        figures=figures or search_figures(search),
        footer="Made by attention-branch. One file, nothing is loaded from the network.",
    )


def search_figures(search: ShortcutSearch) -> list[Figure]:
    """Return the headline numbers of a search."""
    share = search.changes
    figures = [Figure(percent(share.value), "answers change without one patch", interval_text(share.interval))]
    if search.object_changes is not None:
        share = search.object_changes
        figures.append(Figure(percent(share.value), "answers change without the object", interval_text(share.interval)))
    return figures


def shortcut_blocks(search: ShortcutSearch, explanation: Explanation, *, seed: int = 0) -> list[Block]:
    """Return the blocks of a search; `explanation` holds the maps of the images that were searched, in their order."""
    pictures = [to_picture(image) for image in explanation.images]
    beside = "beside the object" if search.on_object is not None else "anywhere"
    blocks: list[Block] = [
        Statements(
            "What was found, without being told where to look",
            [("What does the network answer by?", _statements(search))],
        ),
        Crops(
            "What the answer hangs on",
            _crops(search, pictures, search.patches, seed),
            f"For each answer, the small patch {beside} whose loss harms the answer most. First, where in the picture "
            "these patches lie; then the patches of images drawn at random, with as much again around them. What all "
            "of a row have in common, in place or in look, is what says the class.",
        ),
    ]
    if search.peaks is not None:
        blocks.append(
            Crops(
                "What the network looked at",
                _crops(search, pictures, search.peaks, seed),
                f"The same images, cut out around the maximum of the map ('{search.method}').",
            )
        )
    blocks += [
        _tests(search),
        Gallery(
            "The patch on its image",
            _cards(search, explanation, pictures, seed),
            "The frame is the patch that was found; beside it the map. Images drawn at random.",
        ),
        _answers(search),
    ]
    return blocks


def search_facts(search: ShortcutSearch) -> Facts:
    """Return how the search was done, for a page's end."""
    items = [("images searched", str(search.n)), ("left out, no object known", str(search.left_out))]
    items += [(name.replace("_", " "), str(value)) for name, value in search.protocol.items()]
    return Facts("How the search was done", items)


def _statements(search: ShortcutSearch) -> list[Statement]:
    first, *rest = search.sentences()
    return [Statement(first, _VERDICT[search.verdict]), *(Statement(text) for text in rest)]


def _crops(
    search: ShortcutSearch, pictures: Sequence[Image.Image], boxes: Tensor, seed: int
) -> list[tuple[str, list[Image.Image]]]:
    order = torch.randperm(search.n, generator=torch.Generator().manual_seed(seed)).tolist()
    rows = {search.name(answer): [_places(search, boxes, answer)] for answer in search.answers.unique().tolist()}
    spare = search.fallback[0] if search.fallback else None
    for place in order:
        row = rows[search.name(int(search.answers[place]))]
        if len(row) <= _CROPS:
            row.append(_crop(pictures[place], boxes[place].tolist(), search.patch // 2))
    return [(f"{name} ({_SPARE})" if name == spare else name, row) for name, row in rows.items()]


def _places(search: ShortcutSearch, boxes: Tensor, answer: int) -> Image.Image:
    """Draw where the patches of one answer lie: the deeper the colour, the more of them."""
    height, width = search.image_size
    mine = boxes[search.answers == answer].tolist()
    hits = np.zeros((height, width))
    for x0, y0, x1, y1 in mine:
        hits[y0:y1, x0:x1] += 1
    depth = (hits / max(1, hits.max())) ** 0.5
    picture = _EMPTY + (_FULL - _EMPTY) * depth[..., None]
    factor = _CROP_SIDE / height
    drawn = Image.fromarray(np.rint(picture).astype(np.uint8))
    return drawn.resize((max(1, round(width * factor)), _CROP_SIDE), Image.Resampling.BOX)


def _crop(picture: Image.Image, box: Sequence[int], around: int) -> Image.Image:
    """Cut a patch out with `around` pixels on every side; at the picture's edge the window is moved inside."""
    side = min(box[2] - box[0] + 2 * around, *picture.size)
    left = min(max(box[0] - around, 0), picture.width - side)
    top = min(max(box[1] - around, 0), picture.height - side)
    cut = picture.crop((left, top, left + side, top + side))
    return cut.resize((_CROP_SIDE, _CROP_SIDE), Image.Resampling.NEAREST)


def _tests(search: ShortcutSearch) -> TableBlock:
    beside = "beside the object " if search.on_object is not None else ""
    rows: list[tuple[str, Share | None]] = [
        (f"the patch {beside}is painted over: the answer changes", search.changes),
        (f"control: a random patch {beside}is painted over", search.random_changes),
        ("the whole object is painted over: the answer changes", search.object_changes),
        ("the patch of largest effect anywhere touches the object", search.on_object),
        ("the patch laid on another image, at the same place: its answer", search.carried_place),
        ("the patch laid on the other image's own patch: its answer", search.carried_look),
        ("control: a random patch laid on another image", search.carried_random),
        ("the map's maximum is not on the object", search.map_off_object),
        ("the map's maximum is on the patch", search.map_on_patch),
        ("the patch around the map's maximum is painted over: the answer changes", search.map_changes),
    ]
    shown = [(name, share) for name, share in rows if share is not None and share.count]
    return TableBlock(
        "The tests",
        ("what was done", "images", "share", "95 % interval", ""),
        [
            [name, str(share.count), percent(share.value), interval_text(share.interval), _bar(share)]
            for name, share in shown
        ],
        text="A network that answers by the object changes its answer when the object goes, and not when a patch "
        "beside it goes.",
        note="Intervals by Wilson's formula.",
        strong=frozenset({0}),
    )


def _bar(share: Share) -> Bar:
    return Bar(share.value, share.interval)


def _cards(search: ShortcutSearch, explanation: Explanation, pictures: Sequence[Image.Image], seed: int) -> list[Card]:
    order = torch.randperm(search.n, generator=torch.Generator().manual_seed(seed + 1)).tolist()
    cards = []
    for place in order[:_CARDS]:
        before, after = search.name(int(search.answers[place])), search.name(int(search.after[place]))
        changed = int(search.answers[place]) != int(search.after[place])
        result = f"becomes '{after}'" if changed else f"stays, less probable by {percent(float(search.effect[place]))}"
        cards.append(
            Card(
                _framed(pictures[place], search.patches[place].tolist()),
                explanation.maps[place],
                f"answer '{before}'",
                [("patch painted over", result)],
                "unsure" if changed else "",
                explanation.value_range,
            )
        )
    return cards


def _framed(picture: Image.Image, box: Sequence[int]) -> Image.Image:
    """Return a picture, enlarged, with a frame around a box (x0, y0, x1, y1)."""
    factor = max(1, round(_PICTURE_SIDE / max(picture.size)))
    large = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(large)
    # One pixel of room, so that the frame does not hide what it shows.
    x0, y0, x1, y1 = (factor * (value + grow) for value, grow in zip(box, (-1, -1, 1, 1), strict=True))
    for grow, colour in ((1, "black"), (0, "white"), (-1, "white"), (-2, "black")):
        draw.rectangle((x0 - grow, y0 - grow, x1 - 1 + grow, y1 - 1 + grow), outline=colour)
    return large


def _answers(search: ShortcutSearch) -> TableBlock:
    placed = search.carrier == "place"
    spare = search.fallback[0] if search.fallback else None
    rows: list[list[str | Bar]] = []
    for item in search.by_answer:
        name = f"{item.name} ({_SPARE})" if item.name == spare else item.name
        carried = percent(item.carried.value) if item.carried.count else "–"
        row: list[str | Bar] = [name, str(item.images), percent(item.changes.value), carried]
        if placed:
            row.append(", ".join(f"{place.words} ({100 * place.share:.0f} %)" for place in item.places))
        rows.append([*row, _bar(item.changes)])
    note = "Changes: the patch is painted over. Carried along: laid on another image at its place, the patch makes the "
    note += "answer its own."
    if placed:
        note += " The place's share is among the answer's images."
    return TableBlock(
        "Answer by answer",
        ("answer", "images", "changes", "carried along", *(["the two commonest places"] if placed else []), ""),
        rows,
        note=note,
        strong=frozenset(place for place, item in enumerate(search.by_answer) if item.found),
    )
