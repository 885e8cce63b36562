"""Pieces of HTML that the page's sections share."""

from __future__ import annotations

from collections.abc import Sequence


def section(title: str, content: str, under: str = "") -> str:
    """A card with a title and a small text under its content, all of them HTML already."""
    foot = f'<p class="under">{under}</p>' if under else ""
    return f"<section><h2>{title}</h2>{content}{foot}</section>"


def scroll(heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """A table that scrolls by itself where it is too wide."""
    return f'<div class="scroll">{table(heads, rows, numeric)}</div>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """An HTML table; cells are HTML already."""

    def line(tag: str, cells: Sequence[str]) -> str:
        marks = ("" if i not in numeric else " class=num" for i in range(len(cells)))
        return "<tr>" + "".join(f"<{tag}{m}>{c}</{tag}>" for m, c in zip(marks, cells, strict=True)) + "</tr>"

    return f"<table><thead>{line('th', heads)}</thead><tbody>{''.join(line('td', r) for r in rows)}</tbody></table>"
