"""Pages with the public names of each package."""

import ast
from pathlib import Path

from generator.package import exports, files_of, imported
from generator.project import ROOT, parse
from generator.text import cell, escape, markdown, table
from lmjax.config.documentation import fields


def public_names() -> str:
    """What `import lmjax` offers."""
    path = ROOT / "lmjax" / "__init__.py"
    tree = parse(path)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    rows = [
        (f"`lmjax.{_signature(node)}`", cell((ast.get_docstring(node) or "").split("\n\n")[0])) for node in functions
    ]
    rows += [(f"`lmjax.{name}`", f"`{full}`") for name, full in imported(tree).items()]
    return table(("name", "purpose"), rows or [("`lmjax.__version__`", "the version")]) + "\n"


def api(package: str) -> str:
    """A page with the public names of each module of a package, from its source."""
    files = files_of(package)
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
        self.names |= imported(tree)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        full = self.names.get(node.id, node.id)
        package, _, name = full.rpartition(".")
        return ast.Name(exports(package).get(name, full) if package else full)


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
