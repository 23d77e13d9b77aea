"""The layering rules of the package, and what no module may do."""

import ast
import re
import textwrap
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
    "rl",
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


def test_display_knows_only_the_system_and_the_configuration() -> None:
    for path in (ROOT / "lmjax" / "display").glob("*.py"):
        assert {layer(name) for name in imports(path)} <= {"display", "system", "config"}, path


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


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def length(function: ast.stmt) -> int:
    """The number of lines, the docstring included."""
    return (function.end_lineno or 0) - function.lineno + 1


BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)


def nesting(node: ast.AST, *, depth: int = 0, elif_of: ast.AST | None = None) -> int:
    """The greatest depth of blocks in each other; functions inside are counted on their own, elif is no deeper."""
    if isinstance(node, BLOCKS) and node is not elif_of:
        depth += 1
    deepest = depth
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
            deepest = max(deepest, nesting(child, depth=depth, elif_of=child if is_elif else None))
    return deepest


def test_nesting_is_counted() -> None:
    code = """
    def f():
        for x in y:
            if a:
                pass
            elif b:
                pass
            elif c:
                with d:
                    pass
            else:
                def g():
                    while True:
                        if e:
                            pass
    """
    f = ast.parse(textwrap.dedent(code)).body[0]
    g = next(node for node in ast.walk(f) if isinstance(node, ast.FunctionDef) and node.name == "g")
    assert (nesting(f), nesting(g)) == (3, 2)
    assert (length(f), length(g)) == (14, 4)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short_and_flat(path: Path) -> None:
    assert [(f.name, length(f)) for f in functions(path) if length(f) > 60] == []
    assert [(f.name, nesting(f)) for f in functions(path) if nesting(f) > 4] == []


def test_the_training_loop_fits_on_a_screen_and_shows_no_faults() -> None:
    loop = ROOT / "lmjax" / "training" / "loop.py"
    assert [length(function) <= 40 for function in functions(loop) if function.name == "train"] == [True]
    assert set(re.findall(r"faults\.\w+", loop.read_text())) <= {"faults.reach"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_short_and_loads_nothing_that_could_run(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    forbidden = r"\bpickle\b|\beval\(|\bexec\(|trust_remote_code\s*=\s*True|allow_pickle\s*=\s*True|yaml\.load\("
    assert not re.search(forbidden, text)
    if path.name != "user_files.py":  # the only file that runs a source file, one that the user names
        assert not re.search(r"exec_module|import_module\((?!module\)|\"|')|__import__", text)
