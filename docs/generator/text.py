"""Docstrings and plain text as Markdown."""

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

SECTION = re.compile(r"(Args|Returns|Yields|Raises|Attributes|Shapes|Example|Examples):")


def markdown(doc: str) -> str:
    """A docstring as Markdown: sections in bold, their entries as lists, indented blocks as code."""
    return "\n\n".join(_block(block) for block in re.split(r"\n\s*\n", doc.strip()) if block.strip())


def _block(block: str) -> str:
    lines = block.splitlines()
    if SECTION.fullmatch(lines[0].strip()):
        entries = re.split(r"\n(?=\S)", textwrap.dedent("\n".join(lines[1:])))
        return f"**{lines[0].strip()}**\n\n" + "\n".join(f"- {escape(' '.join(entry.split()))}" for entry in entries)
    if all(line.startswith("    ") for line in lines):
        return f"```text\n{textwrap.dedent(block)}\n```"
    if lines[0].startswith("|") and len(lines) > 1:
        return block
    entries = re.split(r"\n(?=[a-z_]+(?:, [a-z_]+)*: )", block)
    return "\n\n".join(escape(" ".join(entry.split())) for entry in entries)


def escape(text: str) -> str:
    """Plain text as Markdown; what is between backticks stays as it is."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece[:1] == "`" else re.sub(r"([\\*_\[\]<>{}$#|~^])", r"\\\1", piece) for piece in pieces)


def cell(text: str) -> str:
    """A text as the cell of a table."""
    text = " ".join(text.split())
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece.replace("|", r"\|") if piece[:1] == "`" else escape(piece) for piece in pieces)


def code(text: str) -> str:
    """A text as code in the cell of a table."""
    return f"`{text}`".replace("|", r"\|")


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
