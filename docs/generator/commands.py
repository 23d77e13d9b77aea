"""The `--help` of each command."""

import re
import sys

from generator.project import ROOT, run


def commands() -> str:
    """The `--help` of each command."""
    lmjax = [sys.executable, "-m", "lmjax"]
    blocks = []
    for name in _subcommands(_help(lmjax)):
        blocks.append(f"## lmjax {name}\n\n{_listing(text := _help([*lmjax, name]))}")
        blocks += [
            f"### lmjax {name} {action}\n\n{_listing(_help([*lmjax, name, action]))}" for action in _subcommands(text)
        ]
    head = f"## lmjax\n\n{_listing(_help(lmjax))}"
    script = f"## train.py\n\n{_listing(_help([sys.executable, str(ROOT / 'train.py')]))}"
    return "\n\n".join([head, *blocks, script]) + "\n"


def _help(command: list[str]) -> str:
    return run([*command, "--help"])


def _subcommands(text: str) -> list[str]:
    """The names below `COMMAND` or `ACTION` in a help text."""
    listed = re.search(r"^  (?:COMMAND|ACTION)\n((?:    .*\n)+)", text, re.MULTILINE)
    return re.findall(r"^    (\w[\w-]*)", listed[1], re.MULTILINE) if listed else []


def _listing(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"
