"""Charts as SVG inside the page: one small panel a method for its curves, and differences with their intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 250, 186, 30, 10, 30, 8
_TOPS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Line:
    """A curve: its name, written on it, and its points (x, y) in [0, 1]; `kind` is "up", "down" or "reference"."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: str = "reference"


@dataclass(frozen=True)
class Panel:
    """One small chart: a heading, a line of numbers below it, and its curves.

    Where there are one "up" and one "down" of the same x, the area between both is shaded in the upper one's colour.
    """

    heading: str
    detail: str
    lines: Sequence[Line]
    quiet: bool = False


@dataclass(frozen=True)
class Curves:
    """Panels of equal scale side by side. `across` and `up` say what the axes are."""

    title: str
    panels: Sequence[Panel]
    across: str
    up: str
    text: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is no panel."""
        return not self.panels

    def html(self) -> str:
        """Return one figure a panel."""
        tops = [y for panel in self.panels for line in panel.lines for _, y in line.points]
        top = next((level for level in _TOPS if level >= max(tops, default=1.0)), 1.0)
        panels = "".join(self._panel(panel, top) for panel in self.panels)
        return f'<div class="curves">{panels}</div>'

    def _panel(self, panel: Panel, top: float) -> str:
        wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

        def place(x: float, y: float) -> tuple[float, float]:
            return _LEFT + wide * x, _TOP + high * (1 - min(y / top, 1))

        def path(points: Sequence[tuple[float, float]]) -> str:
            return " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))

        drawn = ""
        for share in (0, 0.5, 1):
            x, y = place(share, share * top)
            drawn += f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            drawn += f'<text x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{100 * share * top:.0f}</text>'
            anchor = ("start", "middle", "end")[round(2 * share)]
            drawn += f'<text x="{x:.1f}" y="{_TOP + high + 13}" text-anchor="{anchor}">{100 * share:.0f}</text>'
        by_kind = {line.kind: line for line in panel.lines}
        if "up" in by_kind and "down" in by_kind:
            # As far as "up" lies above "down", and apart from that as far as it lies below.
            both = zip(by_kind["up"].points, by_kind["down"].points, strict=True)
            above = [(x, max(one, other)) for (x, one), (_, other) in both]
            for kind, low in (("above", "down"), ("below", "up")):
                outline = [*above, *reversed(by_kind[low].points)]
                drawn += f'<polygon class="between {kind}" points="{path(outline)}"/>'
        for line in panel.lines:
            tip = f"<title>{escape(line.name)}</title>"
            drawn += f'<polyline class="{escape(line.kind)}" points="{path(line.points)}">{tip}</polyline>'
        drawn += "".join(
            f'<text class="name {escape(line.kind)}" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">'
            f"{escape(line.name)}</text>"
            for line, x, y in _names([line for line in panel.lines if line.name], place)
        )
        caption = f"{self.across} (across), {self.up} (up)"
        drawn += f'<text x="{_LEFT + wide / 2:.0f}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(self.across)}</text>'
        quiet = " quiet" if panel.quiet else ""
        return (
            f'<figure class="panel{quiet}"><figcaption><b>{escape(panel.heading)}</b>'
            f"<small>{escape(panel.detail)}</small></figcaption>"
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(panel.heading)}: {escape(caption)}">'
            f"{drawn}</svg></figure>"
        )


def _names(
    lines: Sequence[Line], place: Callable[[float, float], tuple[float, float]]
) -> list[tuple[Line, float, float]]:
    """Return where each line's name stands: above or below it, where fewest curves and names are in the way."""
    drawn = [[place(*point) for point in _dense(line.points)] for line in lines]
    taken: list[tuple[float, float, float, float]] = []
    found = []
    for line, points in zip(lines, drawn, strict=True):
        half = 3.1 * len(line.name)
        best: tuple[float, float, float] | None = None
        for share in range(10, 91, 4):
            x, y = points[round((len(points) - 1) * share / 100)]
            x = min(max(x, _LEFT + half), _WIDTH - _RIGHT - half)
            for middle in (y - 9, y + 9):
                if not _TOP + 4 <= middle <= _HEIGHT - _BOTTOM - 5:
                    continue
                box = (x - half, middle - 6, x + half, middle + 6)
                others = sum(_inside(point, box) for other in drawn for point in other)
                cost = others + 50 * sum(_overlap(box, other) for other in taken) + abs(share - 50) / 100
                if best is None or cost < best[0]:
                    best = (cost, x, middle)
        if best is None:
            continue
        _, x, middle = best
        taken.append((x - half, middle - 6, x + half, middle + 6))
        found.append((line, x, middle + 3.8))
    return found


def _dense(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return points on a curve close enough together that none passes a name unseen."""
    dense = []
    for (x0, y0), (x1, y1) in pairwise(points):
        dense += [(x0 + (x1 - x0) * step / 4, y0 + (y1 - y0) * step / 4) for step in range(4)]
    return [*dense, points[-1]]


def _inside(point: tuple[float, float], box: tuple[float, float, float, float]) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def _overlap(first: tuple[float, float, float, float], second: tuple[float, float, float, float]) -> bool:
    across = first[0] < second[2] and second[0] < first[2]
    return across and first[1] < second[3] and second[1] < first[3]


@dataclass(frozen=True)
class Interval:
    """A difference with its interval, on a line whose middle is zero; `verdict` is "right", "wrong" or none."""

    name: str
    detail: str
    value: float
    low: float
    high: float
    text: str
    remark: str
    verdict: str = ""


@dataclass(frozen=True)
class Intervals:
    """Differences below each other, each on its own scale about zero, the better side always to the right."""

    title: str
    rows: Sequence[Interval]
    text: str = ""
    note: str = ""
    sides: tuple[str, str] = ("worse", "better")

    @property
    def empty(self) -> bool:
        """Whether there is no difference."""
        return not self.rows

    def html(self) -> str:
        """Return a table: name, drawing, numbers."""
        body = ""
        for row in self.rows:
            reach = max(abs(row.low), abs(row.high), abs(row.value), 1e-12) * 1.08
            left, middle, right = (50 + 50 * edge / reach for edge in (row.low, row.value, row.high))
            kind = escape(row.verdict)
            drawing = (
                f'<div class="zero {kind}"><i style="left:{left:.2f}%;width:{right - left:.2f}%"></i>'
                f'<b style="left:{middle:.2f}%"></b></div>'
            )
            body += (
                f"<tr><th>{escape(row.name)}<small>{escape(row.detail)}</small></th><td>{drawing}</td>"
                f'<td class="number"><b>{escape(row.text)}</b></td><td class="{kind}">{escape(row.remark)}</td></tr>'
            )
        worse, better = (escape(side) for side in self.sides)
        head = f'<th></th><th class="sides"><span>← {worse}</span><span>{better} →</span></th>'
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        return (
            f'<div class="scroll"><table class="intervals"><thead><tr>{head}<th class="number">difference</th>'
            f"<th></th></tr></thead><tbody>{body}</tbody></table></div>{note}"
        )
