"""Generate the parts of the documentation that the code determines. `conf.py` calls `generate` before each build.

`_generated/parts/*.md` are included by pages, `_generated/api/*.md` and `_generated/notebooks/*.ipynb` are pages. None
of them is committed. Only the configuration schema, the tasks and the failpoints are imported; everything else is
parsed or asked with `--help` and `--collect-only`, so that no accelerator library starts.
"""

import ast
import dataclasses
import inspect
import os
import re
import subprocess
import sys
import textwrap
import tokenize
import typing
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
OUT = DOCS / "_generated"
ENVIRONMENT = os.environ | {"COLUMNS": "100", "PYTHONPATH": str(ROOT)}


def generate() -> None:
    """Write all generated parts and pages; files that did not change keep their time of modification."""
    sys.path.insert(0, str(ROOT))
    parts = {
        "config_keys": config_keys,
        "presets": presets,
        "commands": commands,
        "fault_tests": fault_tests,
        "failpoints": failpoints,
        "bundled_tasks": bundled_tasks,
        "packages": packages,
        "public_names": public_names,
        "markers": markers,
    }
    pages = {f"parts/{name}.md": part() for name, part in parts.items()}
    pages |= {f"api/{package}.md": api(package) for package in layers()}
    notebooks = {f"notebooks/{path.name}": path.read_text() for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    _write(pages | notebooks)


def _write(files: dict[str, str]) -> None:
    for path in OUT.rglob("*"):
        if path.is_file() and path.relative_to(OUT).as_posix() not in files:
            path.unlink()
    for name, text in files.items():
        path = OUT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


# ---- Configuration keys ---------------------------------------------------------------------------------------------


def config_keys() -> str:
    """Every key of a configuration with its type, default and meaning, one section for each dataclass."""
    from lmjax.config import Config

    hints = typing.get_type_hints(Config)
    groups = {name: [t for t in typing.get_args(hint) or (hint,) if _is_config(t)] for name, hint in hints.items()}
    scalars = [row for row in _key_rows(Config, "") if not groups[row[0].strip("`")]]
    blocks = ["### The run", summary(Config), table(("key", "type", "default", "meaning"), scalars)]
    for name, members in groups.items():
        for member in members:
            family = getattr(member, "family", "") if len(members) > 1 else ""
            blocks.append(f"### {name}" + (f" ({name}.family={family})" if family else ""))
            blocks += [summary(member), table(("key", "type", "default", "meaning"), _key_rows(member, f"{name}."))]
    return "\n\n".join(blocks) + "\n"


def _is_config(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint)


def _key_rows(cls: Any, prefix: str) -> list[tuple[str, ...]]:
    """The rows of a dataclass; those of a nested one follow its key."""
    rows, hints = [], typing.get_type_hints(cls)
    for name, field in fields(*class_node(cls)).items():
        hint, key = hints[name], f"{prefix}{name}"
        inner = next((t for t in typing.get_args(hint) if _is_config(t)), None)
        if prefix and _is_config(hint):
            rows += _key_rows(hint, f"{key}.")
            continue
        kind = _type(field.annotation)
        if prefix and inner is not None:
            kind = f"list of ({', '.join(fields(*class_node(inner)))})"
        rows.append((f"`{key}`", kind, f"`{field.default}`", cell(field.doc)))
        if prefix and inner is not None:
            rows += _key_rows(inner, f"{key}[].")
    return rows


def _type(annotation: ast.expr) -> str:
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        options = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        return ", ".join(f"`{ast.literal_eval(option)}`" for option in options)
    return f"`{ast.unparse(annotation)}`"


def summary(cls: Any) -> str:
    """The docstring of a dataclass up to the first field that it explains."""
    node, _ = class_node(cls)
    text = ast.get_docstring(node) or ""
    match = next(_explained(node), None)
    return escape(" ".join(text[: match.start()].split() if match else text.split()))


# ---- Fields of dataclasses ------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """A field of a dataclass. `shared`: its documentation is in the docstring of the class."""

    annotation: ast.expr
    default: str
    doc: str
    shared: bool


def class_node(cls: Any) -> tuple[ast.ClassDef, Path]:
    """Where a class is defined."""
    path = Path(inspect.getsourcefile(cls) or "")
    return next(n for n in parse(path).body if isinstance(n, ast.ClassDef) and n.name == cls.__name__), path


def fields(node: ast.ClassDef, path: Path) -> dict[str, Field]:
    """The fields of a class with their documentation.

    A field is documented by `#:` comments above it or at its end, by a string literal after it, or by `name: text` in
    the docstring of its class.
    """
    source, comments, shared = path.read_text().splitlines(), _comments(path), _from_docstring(node)
    result = {}
    for item, following in zip(node.body, [*node.body[1:], None], strict=True):
        if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)):
            continue
        doc = comments.get(item.end_lineno or item.lineno, "")
        line = item.lineno - 1
        while line in comments and source[line - 1].lstrip().startswith("#:"):
            doc, line = f"{comments[line]} {doc}", line - 1
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            doc = f"{doc} {following.value.value}"
        name = item.target.id
        text = " ".join((doc or shared.get(name, "")).split())
        result[name] = Field(item.annotation, _default(item.value), text, shared=not doc)
    return result


def _default(value: ast.expr | None) -> str:
    if value is None:
        return "required"
    if isinstance(value, ast.Call):
        factory = next((keyword.value for keyword in value.keywords if keyword.arg == "default_factory"), None)
        return f"{ast.unparse(factory)}()" if factory is not None else ast.unparse(value)
    return ast.unparse(value)


@cache
def _comments(path: Path) -> dict[int, str]:
    """The `#:` comments of a file by line number from 1."""
    with tokenize.open(path) as file:
        found = [token for token in tokenize.generate_tokens(file.readline) if token.string.startswith("#:")]
    return {token.start[0]: token.string.removeprefix("#:").strip() for token in found}


def _explained(node: ast.ClassDef) -> Iterator[re.Match[str]]:
    """Where the docstring of a class explains fields: `name: ` or `name, other: ` after a line break or a sentence."""
    annotated = [item.target for item in node.body if isinstance(item, ast.AnnAssign)]
    names = "|".join(target.id for target in annotated if isinstance(target, ast.Name))
    pattern = rf"(?:(?<=[.:;)] )|(?<=\n)|(?<=  )|^)((?:{names})(?:, (?:{names}))*): "
    return re.finditer(pattern, ast.get_docstring(node) or "") if names else iter(())


def _from_docstring(node: ast.ClassDef) -> dict[str, str]:
    text, matches, docs = ast.get_docstring(node) or "", list(_explained(node)), {}
    for match, following in zip(matches, [*matches[1:], None], strict=False):
        first, *others = match[1].split(", ")
        docs[first] = text[match.end() : following.start() if following else len(text)].strip().removesuffix(";")
        docs |= dict.fromkeys(others, f"see `{first}`")
    return docs


# ---- Presets --------------------------------------------------------------------------------------------------------


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


# ---- Commands -------------------------------------------------------------------------------------------------------


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
    return _run([*command, "--help"])


def _subcommands(text: str) -> list[str]:
    """The names below `COMMAND` or `ACTION` in a help text."""
    listed = re.search(r"^  (?:COMMAND|ACTION)\n((?:    .*\n)+)", text, re.MULTILINE)
    return re.findall(r"^    (\w[\w-]*)", listed[1], re.MULTILINE) if listed else []


def _listing(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"


def _run(command: list[str]) -> str:
    process = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    if process.returncode:
        words = " ".join(command[1:])
        raise RuntimeError(f"{words} ended with status {process.returncode}:\n{process.stdout}{process.stderr}")
    return process.stdout


# ---- Tests ----------------------------------------------------------------------------------------------------------

FURTHER = ("test_step", "test_elastic", "test_multiprocess", "test_audit", "test_launch")  # outside tests/faults


def fault_tests() -> str:
    """The tests of the fault matrix with their parameters, as pytest collects them."""
    files = [path for name in FURTHER for path in sorted((ROOT / "tests").rglob(f"{name}.py"))]
    paths = ["tests/faults", *(str(path.relative_to(ROOT)) for path in files)]
    collected = _run([sys.executable, "-m", "pytest", *paths, "--collect-only", "-q", "-o", "addopts="])
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
                ", ".join(map(_code, filter(None, cases))),
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
    import tomllib

    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    rows = [(f"`{name}`", cell(text)) for name, _, text in (line.partition(": ") for line in options["markers"])]
    return f"Default options: `{options['addopts']}`\n\n{table(('marker', 'meaning'), rows)}\n"


# ---- The package ----------------------------------------------------------------------------------------------------


@cache
def layers() -> list[str]:
    """The packages of lmjax, lowest layer first, from the layering test; a module is one, too."""
    for node in parse(ROOT / "tests" / "test_house.py").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS":
            return [name for name in ast.literal_eval(node.value) if name != "__main__" and _files(name)]
    raise RuntimeError("tests/test_house.py has no list LAYERS")


def _files(package: str) -> list[Path]:
    folder = ROOT / "lmjax" / package
    return sorted(folder.rglob("*.py")) if folder.is_dir() else sorted((ROOT / "lmjax").glob(f"{package}.py"))


def packages() -> str:
    """One row for each package: its purpose and its modules."""
    rows = []
    for package in layers():
        files = _files(package)
        about = next((path for path in files if path.parent.name == package and path.stem == "__init__"), files[0])
        modules = [path.relative_to(ROOT / "lmjax" / package).with_suffix("") for path in files if len(files) > 1]
        names = ", ".join(f"`{module.as_posix()}`" for module in modules if module.name != "__init__")
        rows.append((f"[`{package}`](../_generated/api/{package}.md)", cell(_first(about)), names))
    return table(("package", "purpose", "modules"), rows) + "\n"


def _first(path: Path) -> str:
    return (ast.get_docstring(parse(path)) or "").split("\n\n")[0]


def public_names() -> str:
    """What `import lmjax` offers."""
    path = ROOT / "lmjax" / "__init__.py"
    tree = parse(path)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    rows = [
        (f"`lmjax.{_signature(node)}`", cell((ast.get_docstring(node) or "").split("\n\n")[0])) for node in functions
    ]
    rows += [(f"`lmjax.{name}`", f"`{full}`") for name, full in _imported(tree).items()]
    return table(("name", "purpose"), rows or [("`lmjax.__version__`", "the version")]) + "\n"


# ---- API ------------------------------------------------------------------------------------------------------------


def api(package: str) -> str:
    """A page with the public names of each module of a package, from its source."""
    files = _files(package)
    blocks = [f"# lmjax.{package}"]
    for path in files:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))  # a copy: annotations are changed
        qualify = _Qualify(module, tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.returns:
                node.returns = qualify.visit(node.returns)
            if isinstance(node, ast.arg) and node.annotation:
                node.annotation = qualify.visit(node.annotation)
        if len(files) > 1 and path.stem != "__init__":
            blocks.append(f"## {module}")
        blocks.append(markdown(ast.get_docstring(tree) or ""))
        blocks += [block for node in tree.body if (block := _described(node, module, path))]
    return "\n\n".join(block for block in blocks if block) + "\n"


class _Qualify(ast.NodeTransformer):
    """Replaces names of lmjax in annotations by their full names, so that references are unambiguous."""

    def __init__(self, module: str, tree: ast.Module):
        targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
        defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
        defined += [target.id for target in targets if isinstance(target, ast.Name)]  # aliases of types
        self.names = {name: f"{module}.{name}" for name in defined}
        self.names |= _imported(tree)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        full = self.names.get(node.id, node.id)
        package, _, name = full.rpartition(".")
        return ast.Name(_exports(package).get(name, full) if package else full)


def _imported(tree: ast.Module) -> dict[str, str]:
    """What a module imports from lmjax, also under TYPE_CHECKING, by its name there."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in imports
        for alias in node.names
        if (node.module or "").startswith("lmjax")
    }


@cache
def _exports(package: str) -> dict[str, str]:
    """The names that the `__init__` of a package re-exports."""
    path = ROOT.joinpath(*package.split("."), "__init__.py")
    return _imported(parse(path)) if path.is_file() else {}


def _described(node: ast.stmt, module: str, path: Path) -> str:
    """A function or class as a directive of Sphinx; empty for anything else and for private names."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
        if isinstance(node, ast.FunctionDef):
            return _directive("py:function", f"{module}.{_signature(node)}", ast.get_docstring(node), fence=5)
        documented = {name: field for name, field in fields(node, path).items() if not field.shared}
        attributes = "\n".join(
            f"- `{name}: {ast.unparse(field.annotation)} = {field.default}`: {escape(field.doc)}"
            for name, field in documented.items()
        )
        methods = [m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]
        inner = [
            _directive(_kind(method), _signature(method, method=True), ast.get_docstring(method), fence=5)
            for method in methods
        ]
        return _directive("py:class", f"{module}.{node.name}", ast.get_docstring(node), attributes, *inner, fence=6)
    return ""


def _kind(method: ast.FunctionDef) -> str:
    decorators = {ast.unparse(decorator) for decorator in method.decorator_list}
    return "py:property" if decorators & {"property", "cached_property"} else "py:method"


def _signature(node: ast.FunctionDef, *, method: bool = False) -> str:
    if method and _kind(node) == "py:property":
        return node.name
    arguments = node.args
    if method and arguments.args and arguments.args[0].arg in ("self", "cls"):
        arguments = ast.arguments(**{name: getattr(arguments, name) for name in arguments._fields})
        arguments.args = arguments.args[1:]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(arguments)}){returns}"


def _directive(name: str, argument: str, doc: str | None, *inner: str, fence: int) -> str:
    ticks = "`" * fence
    body = "\n\n".join(filter(None, [markdown(doc or ""), *inner]))
    return f"{ticks}{{{name}}} {argument}\n\n{body}\n{ticks}"


# ---- Text -----------------------------------------------------------------------------------------------------------

SECTION = re.compile(r"(Args|Returns|Yields|Raises|Attributes|Shapes|Example|Examples):")


def markdown(doc: str) -> str:
    """A docstring as Markdown: sections in bold, their entries as lists, indented blocks as code."""
    return "\n\n".join(_block(block) for block in re.split(r"\n\s*\n", doc.strip()) if block.strip())


def _block(block: str) -> str:
    lines = block.splitlines()
    if SECTION.fullmatch(lines[0].strip()):
        entries = re.split(r"\n(?=\S)", textwrap.dedent("\n".join(lines[1:])))
        return f"**{lines[0].strip()}**\n\n" + "\n".join(f"- {escape(' '.join(entry.split()))}" for entry in entries)
    if all(line.startswith("    ") for line in lines):
        return f"```text\n{textwrap.dedent(block)}\n```"
    if lines[0].startswith("|") and len(lines) > 1:
        return block
    entries = re.split(r"\n(?=[a-z_]+(?:, [a-z_]+)*: )", block)
    return "\n\n".join(escape(" ".join(entry.split())) for entry in entries)


def escape(text: str) -> str:
    """Plain text as Markdown; what is between backticks stays as it is."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece[:1] == "`" else re.sub(r"([\\*_\[\]<>{}$#|~^])", r"\\\1", piece) for piece in pieces)


def cell(text: str) -> str:
    """A text as the cell of a table."""
    text = " ".join(text.split())
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece.replace("|", r"\|") if piece[:1] == "`" else escape(piece) for piece in pieces)


def _code(text: str) -> str:
    return f"`{text}`".replace("|", r"\|")


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


@cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


# ---- Checks of the written pages ------------------------------------------------------------------------------------

PATHS = re.compile(r"\b(?:lmjax|tests|benchmarks|configs|scripts|notebooks|docs)/[\w./-]*\.(?:py|sh|ipynb|md|png)\b")
NAMES = re.compile(r"\blmjax(?:\.[A-Za-z_]\w*)+")
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
    return parts[-1] in defined | _imported(tree).keys()


if __name__ == "__main__":
    generate()
    for where, problem in problems():
        print(f"{where}: {problem}")
