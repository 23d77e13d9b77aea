"""A self-contained HTML page with interactive curves, tables and texts.

It needs no network and no other file. All texts are escaped, because a run directory may have been written by anybody.
The content security policy of the page allows no script and no style but those of lmjax, by their hashes, and no
connection.
"""

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import numpy as np

_MOST_TEXT = 20_000  # characters of a text
_DIGITS = 6  # significant digits of a number of a curve


@dataclass(frozen=True)
class Series:
    """A curve of a chart."""

    #: What it shows, such as `validation`; equal names have one entry in the legend of the chart.
    name: str
    #: Index of its run.
    run: int
    #: Places on each horizontal axis.
    x: Mapping[str, np.ndarray]
    #: Values; those that are not finite are gaps.
    y: np.ndarray
    #: How it is drawn: a line, a faint line, a line with points, steps, or marks at the top.
    kind: Literal["line", "faint", "points", "step", "marks"] = "line"


@dataclass(frozen=True)
class Chart:
    """Curves over a horizontal axis that all charts of the page share."""

    #: Title, with the unit.
    title: str
    #: The curves.
    series: Sequence[Series]
    #: Values to compare with, by name.
    references: Mapping[str, float] = field(default_factory=dict)
    #: Begin with a logarithmic vertical axis.
    log: bool = False
    #: Include zero in a linear vertical axis.
    from_zero: bool = False
    #: Take the complete width.
    wide: bool = False
    #: Note below the chart.
    note: str = ""


@dataclass(frozen=True)
class Link:
    """A link to a file of the run."""

    #: Text of the link.
    text: str
    #: Path relative to the page.
    path: str


Cell = str | Link


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is its header."""

    #: Rows of cells.
    rows: Sequence[Sequence[Cell]]
    #: Cells of the head; empty for none.
    header: Sequence[str] = ()
    #: Title; empty for none.
    title: str = ""
    #: Indices of rows to emphasize.
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Text:
    """A text with its line breaks, such as a sample or a command."""

    #: The text.
    text: str
    #: Title; empty for none.
    title: str = ""
    #: Show only the title at first.
    folded: bool = False


@dataclass(frozen=True)
class Folded:
    """Blocks of which only the title is shown at first."""

    #: The title.
    title: str
    #: The blocks.
    blocks: Sequence["Block"]


Block = Chart | Table | Text | Folded | str


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    #: The title.
    title: str
    #: Charts, tables, texts, and strings, which are paragraphs.
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """The content of a page."""

    #: The title.
    title: str
    #: One line below the title.
    summary: str
    #: Name of each run.
    runs: Sequence[str]
    #: Labels of the horizontal axes, by name; the first is chosen at the start.
    axes: Mapping[str, str]
    #: The sections.
    sections: Sequence[Section]


def render(page: Page) -> str:
    """Return the HTML text of a page; sections without blocks are left out."""
    charts: list[Chart] = []
    parts = [(f"part{n}", section) for n, section in enumerate(page.sections) if section.blocks]
    links = "".join(f'<a href="#{name}">{_escaped(section.title)}</a>' for name, section in parts)
    body = "".join(
        f'<section id="{name}"><h2>{_escaped(section.title)}</h2>{_blocks(section.blocks, charts)}</section>'
        for name, section in parts
    )
    script, style = _asset("report.js"), _asset("report.css")
    policy = f"default-src 'none'; script-src {_hashed(script)}; style-src {_hashed(style)}; base-uri 'none'"
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}; form-action \'none\'">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_escaped(page.title)}</title><style>{style}</style>"
    )
    header = f"<header><h1>{_escaped(page.title)}</h1><p>{_escaped(page.summary)}</p></header>"
    controls = '<div id="controls" hidden></div><noscript><p>The curves need JavaScript.</p></noscript>'
    data = f'<script type="application/json" id="data">{_data(page, charts)}</script>'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{header}<nav aria-label="Sections">{links}</nav>'
        f"{controls}<main>{body}</main>{data}<script>{script}</script></body></html>\n"
    )


def _blocks(blocks: Sequence[Block], charts: list[Chart]) -> str:
    """Return the HTML of blocks with a place for each chart, which `charts` receives."""
    parts, in_grid = [], False
    for block in blocks:
        if isinstance(block, Chart) != in_grid:
            parts.append("</div>" if in_grid else '<div class="charts">')
            in_grid = not in_grid
        if isinstance(block, Chart):
            wide = " wide" if block.wide else ""
            note = f"<p>{_escaped(block.note)}</p>" if block.note else ""
            parts.append(
                f'<figure class="chart{wide}" data-chart="{len(charts)}">'
                f"<figcaption>{_escaped(block.title)}</figcaption>{note}</figure>"
            )
            charts.append(block)
        elif isinstance(block, Folded):
            parts.append(
                f"<details><summary>{_escaped(block.title)}</summary>{_blocks(block.blocks, charts)}</details>"
            )
        elif isinstance(block, Table):
            parts.append(_table(block))
        elif isinstance(block, Text):
            parts.append(_text(block))
        else:
            parts.append(f"<p>{_escaped(block)}</p>")
    return "".join([*parts, "</div>" if in_grid else ""])


def _table(table: Table) -> str:
    title = f"<h3>{_escaped(table.title)}</h3>" if table.title else ""
    head = "".join(f'<th scope="col">{_escaped(cell)}</th>' for cell in table.header)
    rows = "".join(
        f"<tr{' class=marked' if number in table.marked else ''}>"
        + "".join(
            f'<th scope="row">{_cell(cell)}</th>' if column == 0 else f"<td>{_cell(cell)}</td>"
            for column, cell in enumerate(row)
        )
        + "</tr>"
        for number, row in enumerate(table.rows)
    )
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'{title}<div class="scroll" tabindex="0"><table>{head}<tbody>{rows}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return _escaped(cell)
    return f'<a href="{_escaped(quote(os.fsencode(cell.path)))}">{_escaped(cell.text)}</a>'


def _text(block: Text) -> str:
    text = f'<pre tabindex="0">{_escaped(block.text)}</pre>'
    if block.folded:
        return f"<details><summary>{_escaped(block.title)}</summary>{text}</details>"
    return (f"<h3>{_escaped(block.title)}</h3>" if block.title else "") + text


def _escaped(text: str) -> str:
    """Escape a text for HTML; characters that no page may have are replaced."""
    text = text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]} ..."
    text = "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)
    return html.escape(text.encode("utf-8", "replace").decode())


def _data(page: Page, charts: Sequence[Chart]) -> str:
    """Return the curves as JSON in which no character can end the element that holds it."""
    value = {
        "runs": [_clean(name) for name in page.runs],
        "axes": dict(page.axes),
        "charts": [
            {
                "title": _clean(chart.title),
                "log": chart.log,
                "zero": chart.from_zero,
                "references": {_clean(name): _number(value) for name, value in chart.references.items()},
                "series": [
                    {
                        "name": _clean(series.name),
                        "run": series.run,
                        "kind": series.kind,
                        "x": {axis: _numbers(places) for axis, places in series.x.items()},
                        "y": _numbers(series.y),
                    }
                    for series in chart.series
                ],
            }
            for chart in charts
        ],
    }
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _clean(text: str) -> str:
    return html.unescape(_escaped(text))


def _numbers(values: np.ndarray) -> list[float | int | None]:
    return [_number(value) for value in np.asarray(values, np.float64).tolist()]


def _number(value: float) -> float | int | None:
    if not np.isfinite(value):
        return None
    rounded = float(f"{value:.{_DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1 << 53 else rounded


@cache
def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hashed(text: str) -> str:
    """Return the source expression of a content security policy that allows exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
