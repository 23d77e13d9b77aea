"""Checks of the written pages against the checkout."""

import ast
import re
from collections.abc import Iterator

from generator.package import imported, layers
from generator.project import DOCS, ROOT, parse

PATHS = re.compile(r"\b(?:lmjax|tests|benchmarks|configs|scripts|notebooks|docs)/[\w./-]*\.(?:py|sh|ipynb|md|png)\b")
NAMES = re.compile(r"\blmjax(?:\.[A-Za-z_]\w*)+(?![\w*]|\.\.)")
IMPORTS = re.compile(r"from (lmjax[\w.]*) import ([\w, ]+)")


def warn() -> None:
    """Warn about files, names and links that do not exist, and about a README that is long or incomplete."""
    from sphinx.util import logging

    logger = logging.getLogger(__name__)
    for where, problem in problems():
        logger.warning(problem, location=where)


def problems() -> Iterator[tuple[str, str]]:
    """What is wrong with the written pages: where, and what."""
    roots = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    pages = [path for path in DOCS.rglob("*.md") if not path.relative_to(DOCS).parts[0].startswith("_")]
    for page in [*roots, *pages]:
        for number, line in enumerate(page.read_text().splitlines(), 1):
            for name in PATHS.findall(line):
                if not (ROOT / name).exists():
                    yield f"{page}:{number}", f"no such file: {name}"
            names = [f"{module}.{name.strip()}" for module, names in IMPORTS.findall(line) for name in names.split(",")]
            for name in [*names, *NAMES.findall(line)]:
                if not _exists(name.split(".")):
                    yield f"{page}:{number}", f"no such name: {name}"
    for page in roots:  # Sphinx checks the links of the other pages
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            if not (ROOT / link).exists():
                yield f"{page}:1", f"broken link: {link}"
    readme = roots[0].read_text()
    for package in layers():
        if f"`{package}/`" not in readme and f"`{package}.py`" not in readme:
            yield f"{roots[0]}:1", f"the map of the code has no row for lmjax/{package}"
    if (length := len(readme.splitlines())) > 200:
        yield f"{roots[0]}:1", f"{length} lines, more than 200"


def _exists(parts: list[str]) -> bool:
    """Whether `lmjax.a.b` is a package, a module, or a name that one of these has."""
    folder = ROOT.joinpath(*parts)
    if folder.is_dir() or folder.with_suffix(".py").is_file():
        return True
    module = ROOT.joinpath(*parts[:-1])
    path = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
    if not path.is_file():
        return len(parts) > 2 and _exists(parts[:-1])  # an attribute of a class
    tree = parse(path)
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defined |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return parts[-1] in defined | imported(tree).keys()
