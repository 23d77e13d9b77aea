"""Lists: presets, tests of faults, failpoints, evaluation tasks, markers."""

import ast
import re
import sys
import tomllib

from generator.project import ROOT, parse, run
from generator.text import cell, code, escape, markdown, table

FURTHER = (  # outside tests/faults
    "test_step",
    "test_elastic",
    "test_multiprocess",
    "test_audit",
    "test_launch",
    "test_append",
    "test_manifest",
    "test_data_faults",
    "test_environment",
    "test_untrusted",
)


def presets() -> str:
    """Every preset with its docstring, by file of `configs/`."""
    blocks = []
    for path in sorted((ROOT / "configs").glob("*.py")):
        tree = parse(path)
        blocks.append(f"### {path.stem}\n\n{markdown(ast.get_docstring(tree) or '')}")
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
        rows = [(f"`{node.name}`", cell(ast.get_docstring(node) or "")) for node in functions]
        blocks.append(table(("preset", "what it is, what it needs, what to expect"), rows))
    return "\n\n".join(blocks) + "\n"


def fault_tests() -> str:
    """The tests of the fault matrix with their parameters, as pytest collects them."""
    files = [path for name in FURTHER for path in sorted((ROOT / "tests").rglob(f"{name}.py"))]
    paths = ["tests/faults", *(str(path.relative_to(ROOT)) for path in files)]
    collected = run([sys.executable, "-m", "pytest", *paths, "--collect-only", "-q", "-o", "addopts="])
    found: dict[str, dict[str, list[str]]] = {}
    for line in collected.splitlines():
        match = re.fullmatch(r"(tests/\S+\.py)::(?:\w+::)*(\w+)(?:\[(.*)\])?", line)
        if match:
            found.setdefault(match[1], {}).setdefault(match[2], []).append(match[3] or "")
    total = sum(len(cases) for tests in found.values() for cases in tests.values())
    blocks = [f"pytest collects {total} tests here."]
    for file, tests in found.items():
        rows = [
            (
                escape(name.removeprefix("test_").replace("_", " ")),
                len(cases),
                ", ".join(map(code, filter(None, cases))),
            )
            for name, cases in tests.items()
        ]
        blocks.append(f"### {file}\n\n{table(('what is tested', 'tests', 'cases'), rows)}")
    return "\n\n".join(blocks) + "\n"


def failpoints() -> str:
    """The places where a fault can be injected."""
    from lmjax.system import faults

    rows = [(f"`{name}`", cell(text)) for name, text in faults.POINTS.items()]
    return table(("failpoint", "where it is"), rows) + "\n"


def bundled_tasks() -> str:
    """The evaluation tasks of the package."""
    from lmjax.tasks import catalog

    return table(("task", "measures"), [(f"`{name}`", cell(text)) for name, text in catalog.names().items()]) + "\n"


def markers() -> str:
    """The pytest markers of pyproject.toml."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    rows = [(f"`{name}`", cell(text)) for name, _, text in (line.partition(": ") for line in options["markers"])]
    return f"Default options: `{options['addopts']}`\n\n{table(('marker', 'meaning'), rows)}\n"
