"""The checkout: its folders, the syntax trees of its files, the output of its commands."""

import ast
import os
import subprocess
from functools import cache
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
ENVIRONMENT = os.environ | {"COLUMNS": "100", "PYTHONPATH": str(ROOT)}


@cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def run(command: list[str]) -> str:
    """The output of a command that must succeed."""
    process = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    if process.returncode:
        words = " ".join(command[1:])
        raise RuntimeError(f"{words} ended with status {process.returncode}:\n{process.stdout}{process.stderr}")
    return process.stdout
