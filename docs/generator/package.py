"""The package: its layers, its modules, its public names."""

import ast
from functools import cache
from pathlib import Path

from generator.project import ROOT, parse
from generator.text import cell, table


@cache
def layers() -> list[str]:
    """The packages of lmjax, lowest layer first, from the layering test; a module is one, too."""
    for node in parse(ROOT / "tests" / "test_house.py").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS":
            return [name for name in ast.literal_eval(node.value) if name != "__main__" and files_of(name)]
    raise RuntimeError("tests/test_house.py has no list LAYERS")


def files_of(package: str) -> list[Path]:
    """The source files of a package, or the file of a module."""
    folder = ROOT / "lmjax" / package
    return sorted(folder.rglob("*.py")) if folder.is_dir() else sorted((ROOT / "lmjax").glob(f"{package}.py"))


def packages() -> str:
    """One row for each package: its purpose and its modules."""
    rows = []
    for package in layers():
        files = files_of(package)
        about = next((path for path in files if path.parent.name == package and path.stem == "__init__"), files[0])
        modules = [path.relative_to(ROOT / "lmjax" / package).with_suffix("") for path in files if len(files) > 1]
        names = ", ".join(f"`{module.as_posix()}`" for module in modules if module.name != "__init__")
        rows.append((f"[`{package}`](../_generated/api/{package}.md)", cell(_first(about)), names))
    return table(("package", "purpose", "modules"), rows) + "\n"


def _first(path: Path) -> str:
    return (ast.get_docstring(parse(path)) or "").split("\n\n")[0]


def imported(tree: ast.Module) -> dict[str, str]:
    """What a module imports from lmjax, also under TYPE_CHECKING, by its name there."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in imports
        for alias in node.names
        if (node.module or "").startswith("lmjax")
    }


@cache
def exports(package: str) -> dict[str, str]:
    """The names that the `__init__` of a package re-exports."""
    path = ROOT.joinpath(*package.split("."), "__init__.py")
    return imported(parse(path)) if path.is_file() else {}
