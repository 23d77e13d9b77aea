"""The rules of the house: which room may import which, what no file may do, how long a file may be."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "lmjax").rglob("*.py"))

# Each room may import only the rooms above it.
ORDER = [
    "typed",
    "faults",
    "architectures",
    "corpora",
    "config",
    "checks",
    "presets",
    "files",
    "pytrees",
    "machine",
    "chips",
    "collectives",
    "axes",
    "parallel",
    "console",
    "prompting",
    "data",
    "models",
    "objectives",
    "optim",
    "train",
    "generate",
    "beam",
    "interop",
    "evaluate",
    "tasks",
    "plan",
    "run",
    "dispatch",
    "measure",
    "compiled",
    "plots",
    "autopsy",
    "report",
    "pretrained",
    "transfer",
    "launch",
    "audit",
    "rehearse",
    "ladder",
    "commands",
    "harness",
    "runtime",
    "doors",
    "cli_models",
    "cli",
    "lm_eval",
]


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> set[str]:
    """The lmjax modules that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lmjax":
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("lmjax")}
    return {name for name in found if room(name) in ORDER}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_stands_above_it(path: Path) -> None:
    module = "lmjax." + ".".join(path.relative_to(ROOT / "lmjax").with_suffix("").parts)
    if path.name == "__init__.py":
        assert not imports(path)
        return
    assert room(module) in ORDER, f"give {module} a place in the order of rooms"
    for other in imports(path):
        assert ORDER.index(room(other)) <= ORDER.index(room(module)), f"{module} imports {other}"


def test_training_knows_neither_the_models_nor_the_data() -> None:
    for path in FILES:
        if path.parent.name == "train":
            assert not {room(name) for name in imports(path)} & {"models", "data", "objectives", "generate"}


def test_configurations_import_only_the_schema() -> None:
    for path in (ROOT / "configs").glob("*.py"):
        assert {room(name) for name in imports(path)} == {"config"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_short_and_loads_nothing_that_could_run(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    forbidden = r"\bpickle\b|\beval\(|\bexec\(|trust_remote_code\s*=\s*True|allow_pickle\s*=\s*True|yaml\.load\("
    assert not re.search(forbidden, text)
    if path.name != "presets.py":  # the one place where a source file that the user names is run
        assert not re.search(r"exec_module|import_module\((?!module\)|\"|')|__import__", text)
