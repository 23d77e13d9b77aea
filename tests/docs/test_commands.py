"""Every command of the README and the documentation is one that the programs accept."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from lmjax.cli import main as cli
from lmjax.cli.train import words_of
from lmjax.config import grid, presets
from lmjax.config.checks import check
from tests import ROOT

FENCED = re.compile(r"^```(?:bash|sh|console)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:lmjax [a-z]+|python train\.py) [^`]+)`")
STARTS = ("lmjax ", "python train.py")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [path for path in PAGES if "_generated" not in path.parts and path.name != "lab.md"]
# A name to fill in, an option without its value, or a file of the reader.
NOTATION = re.compile(
    r"\.\.\.|…|\[[a-z]+\||\b(YOUR_)?(CONFIG|KEY|PRESET)\b|--(topology|replay)$|@settings.txt|my_model.py"
)


def commands(page: Path) -> list[str]:
    """The commands of a page that start lmjax or train.py, each on a line."""
    text = page.read_text()
    lines = [line for block in FENCED.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += [" ".join(found.split()) for found in INLINE.findall(text)]
    parts = [part.strip().removeprefix("$ ") for line in lines for part in re.split(r"&&|\|(?=\s)", line)]
    return [part for part in dict.fromkeys(parts) if part.startswith(STARTS) and not NOTATION.search(part)]


ALL = [(page, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{page.stem}: {command}"[:80] for page, command in ALL])
def test_a_command_is_accepted(page: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[argparse.Namespace] = []
    monkeypatch.setattr(cli, "finish", options.append)
    program, skipped = ("train_main", 2) if command.startswith("python") else ("main", 1)
    words = shlex.split(command, comments=True)[skipped:]
    if ">" in words:
        words = words[: words.index(">")]
    if "--help" in words or "-h" in words:
        with pytest.raises(SystemExit, match="0"):
            getattr(cli, program)(words)
        return
    getattr(cli, program)(words)
    (parsed,) = options
    if getattr(parsed, "words", None):
        name, changes = words_of(parsed.words)
        if getattr(parsed, "command", "train") == "sweep" and not parsed.lr_range:
            axes, changes = grid.axes_of(changes)
            changes = [*changes, *(f"{key}={values[0]}" for key, values in axes.items())]
        if not name.endswith((".py", ".json")):
            check(presets.load(name, changes))


def test_there_are_commands() -> None:
    assert len(ALL) > 150
