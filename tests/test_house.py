"""The layering rules of the package, and what no module may do."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests import ROOT

FILES = sorted((ROOT / "lmjax").rglob("*.py"))

# Lowest layer first: a package imports only itself and packages above it in this list.
LAYERS = [
    "config",
    "pytrees",
    "system",
    "display",
    "parallel",
    "optim",
    "tasks",
    "journal",
    "guard",
    "data",
    "models",
    "training",
    "inference",
    "objectives",
    "interop",
    "evaluation",
    "run",
    "topology",
    "diagnose",
    "studies",
    "serve",
    "cli",
    "api",
    "lm_eval",
    "__main__",
]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def layer(module: str) -> str:
    """`lmjax.data.store.store` -> `data`."""
    return module.split(".")[1] if "." in module else ""


@cache
def imports(path: Path) -> frozenset[str]:
    """The lmjax modules that a file imports, inside functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lmjax":
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("lmjax")}
    return frozenset(found - {"lmjax"})


def top_level_imports(path: Path) -> set[str]:
    """First names of all modules that importing the file imports, through lmjax too, function bodies excluded."""
    seen, todo, found = {path}, [path], set()
    while todo:
        for node in ast.parse(todo.pop().read_text()).body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            found |= {name.split(".")[0] for name in names}
            for name in names:
                parents = [".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 2)]
                new = {MODULES[name] for name in parents if name in MODULES} - seen
                seen |= new
                todo += new
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_imports_only_packages_above_it(path: Path) -> None:
    module = module_of(path)
    if module == "lmjax":
        return
    assert layer(module) in LAYERS, f"add {module} to the list of layers"
    for other in imports(path):
        assert LAYERS.index(layer(other)) <= LAYERS.index(layer(module)), f"{module} imports {other}"


def test_there_are_no_import_cycles() -> None:
    graph = {module: imports(path) - {module} for module, path in MODULES.items() if path.name != "__init__.py"}
    while graph:
        free = {module for module, others in graph.items() if not others & graph.keys()}
        assert free, f"cycle among {sorted(graph)}"
        graph = {module: others for module, others in graph.items() if module not in free}


def test_training_knows_no_model_no_data_and_no_objective() -> None:
    for path in (ROOT / "lmjax" / "training").glob("*.py"):
        assert not {layer(name) for name in imports(path)} & {"models", "data", "objectives", "inference"}, path


def test_display_knows_no_other_package() -> None:
    for path in (ROOT / "lmjax" / "display").glob("*.py"):
        assert {layer(name) for name in imports(path)} <= {"display", "config"}, path


@pytest.mark.parametrize("module", [*(name for name in MODULES if layer(name) == "config"), "lmjax.cli.main"])
def test_the_configuration_and_the_command_line_import_no_jax(module: str) -> None:
    assert not top_level_imports(MODULES[module]) & {"jax", "jaxlib", "flax", "optax", "orbax", "numpy"}


def test_configurations_import_only_the_schema() -> None:
    for path in (ROOT / "configs").glob("*.py"):
        assert {layer(name) for name in imports(path)} == {"config"}


def test_only_init_files_reexport_and_no_import_is_renamed() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lmjax":
                renamed = [alias for alias in node.names if alias.asname]
                assert not renamed or path.name == "__init__.py", f"{path}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_short_and_loads_nothing_that_could_run(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    forbidden = r"\bpickle\b|\beval\(|\bexec\(|trust_remote_code\s*=\s*True|allow_pickle\s*=\s*True|yaml\.load\("
    assert not re.search(forbidden, text)
    if path.name != "presets.py":  # the only file that runs a source file, one that the user names
        assert not re.search(r"exec_module|import_module\((?!module\)|\"|')|__import__", text)
