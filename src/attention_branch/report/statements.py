"""Blocks that say and list things: sentences under questions, tables of methods, and what only some want to unfold."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Statement:
    """One sentence or a few; `verdict` marks it "right", "wrong", "unsure" or not at all."""

    text: str
    verdict: str = ""


@dataclass(frozen=True)
class Statements:
    """Questions with their answers, side by side: (question, statements)."""

    title: str
    questions: Sequence[tuple[str, Sequence[Statement]]]
    text: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to say."""
        return not any(statements for _, statements in self.questions)

    def html(self) -> str:
        """Return one card a question."""
        cards = ""
        for question, statements in self.questions:
            if not statements:
                continue
            items = "".join(f'<li class="{escape(item.verdict)}">{escape(item.text)}</li>' for item in statements)
            cards += f"<article><h3>{escape(question)}</h3><ul>{items}</ul></article>"
        return f'<div class="statements">{cards}</div>'


@dataclass(frozen=True)
class Cell:
    """A cell of a `Sheet`: its text and smaller lines below; `kind` is "best", "quiet", "right", "wrong" or none."""

    text: str
    detail: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table whose rows begin with a name and an explanation; columns named under `quiet` stand back.

    `rows` are (name, explanation, cells).
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[Cell]]]
    text: str = ""
    note: str = ""
    quiet: frozenset[str] = frozenset()

    @property
    def empty(self) -> bool:
        """Whether there are no rows."""
        return not self.rows

    def html(self) -> str:
        """Return the table, its first column fixed when the rest is scrolled."""
        marks = ["quiet" if name in self.quiet else "" for name in self.columns]
        head = "".join(
            f'<th class="number {mark}">{escape(name)}</th>' for name, mark in zip(self.columns, marks, strict=True)
        )
        body = ""
        for name, explanation, cells in self.rows:
            small = f"<small>{escape(explanation)}</small>" if explanation else ""
            line = "".join(
                f'<td class="number {mark} {escape(cell.kind)}"><b>{escape(cell.text)}</b>'
                + "".join(f"<small>{escape(part)}</small>" for part in cell.detail.splitlines())
                + "</td>"
                for cell, mark in zip(cells, marks, strict=True)
            )
            body += f"<tr><th>{escape(name)}{small}</th>{line}</tr>"
        table = f'<div class="scroll"><table class="sheet"><thead><tr><th></th>{head}</tr></thead>'
        table += f"<tbody>{body}</tbody></table></div>"
        return table + (f'<p class="note">{escape(self.note)}</p>' if self.note else "")


@dataclass(frozen=True)
class Tables:
    """Tables that are closed until the reader opens them, each under its title."""

    title: str
    sheets: Sequence[Sheet]
    text: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is no table with a row."""
        return all(sheet.empty for sheet in self.sheets)

    def html(self) -> str:
        """Return one folded table after another."""
        return "".join(folded(sheet.title, sheet.html()) for sheet in self.sheets if not sheet.empty)


@dataclass(frozen=True)
class Records:
    """Lists of names and values, each under a name of its own and closed until the reader opens it."""

    title: str
    lists: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    text: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is no list with an entry."""
        return not any(items for _, items in self.lists)

    def html(self) -> str:
        """Return one folded list after another."""
        parts = ""
        for name, items in self.lists:
            if items:
                rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in items)
                parts += folded(name, f"<dl>{rows}</dl>")
        return parts


def folded(name: str, content: str) -> str:
    """Return content that is closed until the reader opens it; `content` is HTML, the name is text."""
    return f"<details><summary>{escape(name)}</summary>{content}</details>"
