"""The Python files of the same folder or package that a file imports."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path


def root_of(path: Path) -> tuple[Path, list[str]]:
    """Return the folder for `sys.path` and the names of packages and module of a file."""
    names, folder = [path.stem], path.parent
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    return folder, names if path.stem != "__init__" else names[:-1]


def local_imports(path: Path) -> set[Path]:
    """Return the files of the same folder or package that a file imports.

    Imports of imports, imports inside functions and the `__init__.py` files of packages are included. What is below
    `if __name__ == "__main__":` is not.
    """
    seen: set[Path] = set()
    todo = [path]
    while todo:
        file = todo.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        root, names = root_of(file)
        todo += [root.joinpath(*names[:n], "__init__.py") for n in range(1, len(names))]
        package = names if file.stem == "__init__" else names[:-1]
        todo += [other for node in _nodes(file) for other in _files_of(node, root, package)]
    return seen - {path}


def _nodes(file: Path) -> Iterator[ast.AST]:
    """The nodes of a file's syntax tree, except those below a main guard."""
    try:
        todo: list[ast.AST] = [ast.parse(importlib.util.decode_source(file.read_bytes()))]
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return  # its import says what is wrong
    while todo:
        node = todo.pop()
        yield node
        if not is_main_guard(node):
            todo += ast.iter_child_nodes(node)


def is_main_guard(node: ast.AST) -> bool:
    """Return whether a statement is `if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and any(
        isinstance(name, ast.Name) and name.id == "__name__" for name in ast.walk(node.test)
    )


def _files_of(node: ast.AST, root: Path, package: list[str]) -> list[Path]:
    """The files below `root` that an import statement in `package` may read."""
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        parents = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*parents, *([node.module] if node.module else [])])
        modules = [base, *(f"{base}.{alias.name}" for alias in node.names)]
    else:
        return []
    own = {package[0]} if package else {path.stem for path in root.glob("*")} - {"lmjax"}
    places = [root.joinpath(*module.split(".")) for module in modules if module.split(".")[0] in own]
    return [file for place in places for file in (place.with_name(place.name + ".py"), place / "__init__.py")]
