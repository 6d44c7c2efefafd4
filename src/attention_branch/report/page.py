"""The one-file HTML page: blocks in, a file that opens without a network out."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import matplotlib
import numpy as np
from PIL import Image

from attention_branch.explanations.overlay import (
    COLORMAP,
    colored,
    display_size,
    map_scale,
    map_values,
    number,
    overlay,
)
from attention_branch.files import write_text
from attention_branch.report.style import STYLE

if TYPE_CHECKING:
    from torch import Tensor

PANEL_SIDE = 224
_PIXELS_BELOW = 160


@dataclass(frozen=True)
class Figure:
    """A headline number: its value as text, what it is, and a line on how sure it is."""

    value: str
    name: str
    detail: str = ""


@dataclass(frozen=True)
class Bar:
    """A table cell drawn as a bar: a share in [0, 1] with its interval."""

    share: float | None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class TableBlock:
    """A table. Cells are text or a `Bar`; `strong` are the row numbers that matter most."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Bar]]
    text: str = ""
    note: str = ""
    strong: frozenset[int] = frozenset()


@dataclass(frozen=True)
class MatrixBlock:
    """A confusion matrix (K, K), rows the truth, coloured by the share of the row."""

    title: str
    names: Sequence[str]
    counts: np.ndarray
    text: str = ""


@dataclass(frozen=True)
class CalibrationBlock:
    """Accuracy over confidence, one bar a bin: (share of images, mean confidence, accuracy)."""

    title: str
    bins: Sequence[tuple[float, float | None, float | None]]
    text: str = ""


@dataclass(frozen=True, eq=False)
class Card:
    """One image with its map (h, w): picture, map and overlay side by side over a heading and named lines.

    `verdict` colours the heading: "right", "wrong", "unsure" or none.
    """

    picture: Image.Image
    values: "Tensor | np.ndarray"
    heading: str
    lines: Sequence[tuple[str, str]] = ()
    verdict: str = ""
    value_range: tuple[float, float] | None = (0.0, 1.0)
    stretch: bool = False


@dataclass(frozen=True)
class Gallery:
    """Cards in a grid under a title."""

    title: str
    cards: Sequence[Card]
    text: str = ""


@dataclass(frozen=True)
class Facts:
    """Names and values in two columns: the protocol, the versions."""

    title: str
    items: Sequence[tuple[str, str]]
    text: str = ""


class Drawn(Protocol):
    """A block that draws itself; `html` escapes all text of the user's."""

    @property
    def title(self) -> str:
        """Its heading."""
        ...

    @property
    def text(self) -> str:
        """What stands below the heading."""
        ...

    @property
    def empty(self) -> bool:
        """Whether it is left out."""
        ...

    def html(self) -> str:
        """Return what stands below title and text."""
        ...


Block = TableBlock | MatrixBlock | CalibrationBlock | Gallery | Facts | Drawn


@dataclass
class _Page:
    parts: list[str] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)


def write_report(
    path: str | Path,
    title: str,
    summary: str,
    blocks: Sequence[Block],
    *,
    figures: Sequence[Figure] = (),
    alarms: Sequence[str] = (),
    footer: str = "",
) -> Path:
    """Write the page as one HTML file, whole or not at all: pictures embedded, nothing loaded from anywhere.

    `figures` are the headline numbers, `alarms` sentences nobody may miss. Blocks without content are left out.
    """
    page = _Page()
    for place, block in enumerate(block for block in blocks if not _empty(block)):
        anchor = f"part-{place + 1}"
        page.links.append((anchor, block.title))
        text = f"<p>{escape(block.text)}</p>" if block.text else ""
        page.parts.append(f'<section id="{anchor}"><h2>{escape(block.title)}</h2>{text}{_body(block)}</section>')
    tiles = "".join(
        f'<div class="tile"><b>{escape(item.value)}</b><span>{escape(item.name)}</span>'
        f"<small>{escape(item.detail)}</small></div>"
        for item in figures
    )
    links = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name in page.links)
    warnings = "".join(f'<p class="alarm">{escape(alarm)}</p>' for alarm in alarms)
    html = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f'<header><h1>{escape(title)}</h1><p class="lead">{escape(summary)}</p>{warnings}'
        + (f'<div class="tiles">{tiles}</div>' if tiles else "")
        + (f"<nav>{links}</nav>" if len(page.links) > 1 else "")
        + f"</header>{''.join(page.parts)}"
        + (f'<footer class="quiet">{escape(footer)}</footer>' if footer else "")
        + "</main></body></html>\n"
    )
    write_text(path, html)
    return Path(path)


def _empty(block: Block) -> bool:
    content = {
        TableBlock: "rows", MatrixBlock: "names", CalibrationBlock: "bins", Gallery: "cards", Facts: "items",
    }  # fmt: skip
    for kind, name in content.items():
        if isinstance(block, kind):
            return len(getattr(block, name)) == 0
    return block.empty  # type: ignore[union-attr]


def _body(block: Block) -> str:
    if isinstance(block, TableBlock):
        return _table(block)
    if isinstance(block, MatrixBlock):
        return _matrix(block)
    if isinstance(block, CalibrationBlock):
        return _calibration(block)
    if isinstance(block, Gallery):
        return _gallery(block)
    if isinstance(block, Facts):
        return _facts(block.items)
    return block.html()


def _table(block: TableBlock) -> str:
    numeric = [
        all(not isinstance(row[place], Bar) for row in block.rows) and place > 0 for place in range(len(block.columns))
    ]
    head = "".join(
        f'<th class="number">{escape(name)}</th>' if numeric[place] else f"<th>{escape(name)}</th>"
        for place, name in enumerate(block.columns)
    )
    body = ""
    for index, row in enumerate(block.rows):
        cells = ""
        for place, cell in enumerate(row):
            if isinstance(cell, Bar):
                cells += f'<td class="bar">{_bar(cell)}</td>'
            else:
                cells += f'<td class="number">{escape(cell)}</td>' if numeric[place] else f"<td>{escape(cell)}</td>"
        body += f'<tr class="strong">{cells}</tr>' if index in block.strong else f"<tr>{cells}</tr>"
    note = f'<p class="note">{escape(block.note)}</p>' if block.note else ""
    kind = ' class="bars"' if any(isinstance(cell, Bar) for row in block.rows for cell in row) else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}'


def _bar(bar: Bar) -> str:
    if bar.share is None:
        return ""
    whisker = ""
    if bar.interval is not None:
        low, high = bar.interval
        whisker = f'<div class="whisker" style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></div>'
    return f'<div class="track"><div class="fill" style="width:{100 * bar.share:.2f}%"></div>{whisker}</div>'


def _matrix(block: MatrixBlock) -> str:
    head = "".join(f'<th title="{escape(name)}">{escape(name[:4])}</th>' for name in block.names)
    body = ""
    for index, name in enumerate(block.names):
        total = max(1, int(block.counts[index].sum()))
        cells = ""
        for column, count in enumerate(block.counts[index]):
            color = "--right" if column == index else "--wrong"
            # The square root lifts rare confusions out of the paper's white.
            strength = 0 if not count else round(100 * (0.12 + 0.6 * (count / total) ** 0.5))
            shade = f"background:color-mix(in srgb, var({color}) {strength}%, transparent)" if count else ""
            tip = f"{name} answered as {block.names[column]}: {count} of {total}"
            cells += f'<td style="{shade}" title="{escape(tip)}">{int(count) if count else ""}</td>'
        body += f'<tr><th title="{escape(name)}">{escape(name)}</th>{cells}</tr>'
    table = f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="matrix">{table}</table></div>'


def _calibration(block: CalibrationBlock) -> str:
    side, left = 220, 34
    width, height = side + left + 16, side + 50
    step = side / len(block.bins)
    bars = ""
    for place, (share, confidence, accuracy) in enumerate(block.bins):
        if accuracy is None:
            continue
        tall = max(1.0, side * accuracy)
        tip = f"confidence {confidence:.2f}, accuracy {accuracy:.2f}, {100 * share:.1f} % of the images"
        bars += (
            f'<rect x="{left + place * step + 1:.1f}" y="{8 + side - tall:.1f}" '
            f'width="{step - 2:.1f}" height="{tall:.1f}" '
            f'fill="var(--bar)" opacity="{0.35 + 0.65 * min(1, share**0.5 * 1.5):.2f}"><title>{tip}</title></rect>'
        )
    ticks = "".join(
        f'<text x="{left - 6}" y="{12 + side * (1 - tick):.0f}" text-anchor="end">{tick:g}</text>'
        f'<text x="{left + side * tick:.0f}" y="{side + 22}" text-anchor="middle">{tick:g}</text>'
        for tick in (0, 0.5, 1)
    )
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="accuracy over confidence"><rect x="{left}" y="8" width="{side}" height="{side}" '
        f'fill="var(--soft)"/>{bars}<line x1="{left}" y1="{8 + side}" x2="{left + side}" y2="8" stroke="var(--ink)" '
        f'stroke-dasharray="4 4"/>{ticks}<text x="{left + side / 2:.0f}" y="{side + 40}" text-anchor="middle">'
        "confidence (across), accuracy (up)</text></svg>"
    )


def _gallery(block: Gallery) -> str:
    stops = ", ".join(matplotlib.colors.to_hex(matplotlib.colormaps[COLORMAP](place / 8)) for place in range(9))
    fixed = {card.value_range for card in block.cards if not card.stretch}
    ends = "each map's minimum to its maximum, written below it; the line in the overlay runs half-way, except in noise"
    if len(fixed) == 1 and None not in fixed and not any(card.stretch for card in block.cards):
        ((low, high),) = ((ends_of or (0.0, 1.0)) for ends_of in fixed)
        ends = f"one scale for every map, {low:g} to {high:g}; the line in the overlay is half of it, except in noise"
    legend = f'<div class="legend"><i style="background:linear-gradient(90deg,{stops})"></i><span>{ends}</span></div>'
    return f'{legend}<div class="gallery">{"".join(_card(card) for card in block.cards)}</div>'


def _card(card: Card) -> str:
    picture = card.picture.convert("RGB")
    if max(picture.size) > PANEL_SIDE * 2:
        picture.thumbnail((PANEL_SIDE * 2, PANEL_SIDE * 2))
    width, height = display_size(*picture.size, side=PANEL_SIDE)
    options = {"value_range": card.value_range, "stretch": card.stretch}
    tinted = colored(card.values, width, height, **options)  # type: ignore[arg-type]
    mixed = overlay(picture, card.values, side=PANEL_SIDE, **options)  # type: ignore[arg-type]
    small = max(picture.size) < _PIXELS_BELOW
    panels = "".join(
        f'<img {"class=pixels " if small and index == 0 else ""}src="{data_uri(panel, lossless=small and index == 0)}" '
        f'alt="{escape(f"{name}: {card.heading}")}" loading="lazy">'
        for index, (panel, name) in enumerate(((picture, "image"), (tinted, "map"), (mixed, "map on the image")))
    )
    scale = map_scale(map_values(card.values, *card.picture.size), card.value_range, card.stretch)
    spread = f"{number(scale.minimum)}–{number(scale.maximum)}" + (", stretched" if scale.stretched else "")
    lines = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in (*card.lines, ("map", spread))
    )
    verdict = f' class="{escape(card.verdict)}"' if card.verdict else ""
    return (
        f'<figure class="card"><div class="panels" style="--shape:{width}/{height}">{panels}</div>'
        f"<figcaption><b{verdict}>{escape(card.heading)}</b><dl>{lines}</dl></figcaption></figure>"
    )


def _facts(items: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in items) + "</dl>"


def data_uri(picture: Image.Image, *, lossless: bool = False) -> str:
    """Return a picture as a data URI: PNG, or JPEG at a quality that keeps the map's tones."""
    buffer = io.BytesIO()
    kind = "png" if lossless else "jpeg"
    picture.save(buffer, kind, **({} if lossless else {"quality": 88, "subsampling": 0}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
