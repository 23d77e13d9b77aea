"""The Python files that a configuration lists: import, identify and copy them.

An entry is `PATH#sha256=HASH` for a file that registers, or `PATH#import=HASH` for one that such a file imports. A
resume compares the hashes, and every later command imports the files again. Imports no JAX.
"""

import ast
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from lmjax.config.errors import UserError, one_line
from lmjax.config.local_imports import is_main_guard, local_imports, root_of
from lmjax.config.ranges import shown

#: The folder of the copies in a run directory.
FOLDER = "extensions"
_ENTRY = re.compile(r"(.*)#(sha256|import)=([0-9a-f]{64})", re.DOTALL)


@dataclass
class _State:
    """What this process has imported, by the paths of the originals, also for copies."""

    #: Content of each file when it was imported.
    contents: dict[Path, bytes] = field(default_factory=dict)
    modules: dict[Path, ModuleType] = field(default_factory=dict)
    #: The files of the same folder or package that a file imports.
    imports: dict[Path, tuple[Path, ...]] = field(default_factory=dict)
    #: Copy -> original.
    originals: dict[Path, Path] = field(default_factory=dict)
    #: Files that are being imported.
    importing: list[Path] = field(default_factory=list)
    #: The user trusts the files that saved configurations list.
    trusted: bool = False


_state = _State()


# ---- Entries --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A file of a configuration."""

    path: Path
    #: SHA-256 of its content; empty: the content at the next import.
    sha256: str = ""
    #: Whether the file registers something, or is imported by one that does.
    registers: bool = True

    def __str__(self) -> str:
        """The text in `config.json`."""
        return f"{self.path}#{'sha256' if self.registers else 'import'}={self.sha256}"


def parse_entry(text: str) -> Entry:
    """Parse an entry of `extensions`."""
    match = _ENTRY.fullmatch(text)
    path = Path(os.path.expanduser(match[1] if match else text)).absolute()
    return Entry(path, match[3], match[2] == "sha256") if match else Entry(path)


def original_of(path: Path) -> Path:
    """Return the absolute path under which a file registers."""
    return _state.originals.get(path.resolve(), path.resolve())


def remember(path: Path, module: ModuleType | None) -> Path:
    """Note the content of a file that registers, and of its imports; return its path.

    Args:
        path: The file.
        module: Its module, if the user's program imported it; `import_file` notes what it imports itself.
    """
    original = original_of(path)
    if original not in _state.importing and original not in _state.modules:
        files = local_imports(original)
        for file in (original, *files):
            _state.contents.setdefault(file, file.read_bytes())
        _state.imports[original] = tuple(sorted(files))
        if module is not None:
            _state.modules[original] = module
    return original


def imports_of(path: Path) -> tuple[Path, ...]:
    """Return the files of the same folder or package that an imported file imports."""
    return _state.imports.get(path, ())


def digest_of(path: Path) -> str:
    """Return the hash of a file: of the content that was imported, else of the content now."""
    content = _state.contents.get(path)
    return sha256(path.read_bytes() if content is None else content)


def sha256(content: bytes) -> str:
    """Return the hash of a file's content."""
    return hashlib.sha256(content).hexdigest()


# ---- Import ---------------------------------------------------------------------------------------------------------


def import_file(path: Path, copies: Path | None = None) -> ModuleType:
    """Import a Python file; again only if it or a file that it imports has changed.

    Its folder is at the front of `sys.path` meanwhile. A file of a package (next to an `__init__.py`) is imported by
    its dotted name. Imports inside functions are done at once, so that they find the same files later.

    Args:
        path: The file.
        copies: The folder of a run's copies to import in place of the files; None: the files themselves.

    Raises:
        UserError: The file does not exist, or raises an error.
    """
    original = path.resolve() if copies is None else path
    file = original if copies is None else _copy_of(original, copies) or original
    if not file.is_file():
        what = "is a folder; name the files in it" if file.is_dir() else "does not exist"
        raise UserError(f"extensions: {file} {what}")
    root, _ = root_of(file)
    base = original.parents[len(file.relative_to(root).parts) - 1]
    others = local_imports(file)
    sources = {base / other.relative_to(root): other for other in (file, *others)}
    contents = {source: other.read_bytes() for source, other in sources.items()}
    known = _state.modules.get(original)
    if known is not None and all(_state.contents.get(source) == content for source, content in contents.items()):
        return known
    _state.originals.update({other.resolve(): source for source, other in sources.items() if other != source})
    _forget(sources)
    _state.contents.update(contents)
    _state.imports[original] = tuple(sorted(set(sources) - {original}))
    _state.modules[original] = _run(file, original, others)
    return _state.modules[original]


def _run(file: Path, original: Path, imports: set[Path]) -> ModuleType:
    root, names = root_of(file)
    sys.path.insert(0, str(root))
    _state.importing.append(original)
    importlib.invalidate_caches()
    try:
        if len(names) > 1:
            module = importlib.import_module(".".join(names))
        else:
            module = _execute(file, f"lmjax_file_{sha256(str(file).encode())[:12]}")
        for other in imports:
            _import_quietly(".".join(root_of(other)[1]))
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{original}{_line(file, error)}: {type(error).__name__}: {one_line(error)}") from error
    finally:
        _state.importing.pop()
        sys.path.remove(str(root))
    return module


def _import_quietly(name: str) -> None:
    """Import a module that a function may import later; a failure here may not matter."""
    try:
        importlib.import_module(name)
    except Exception:
        sys.modules.pop(name, None)


def _forget(sources: dict[Path, Path]) -> None:
    """Remove the modules of these files (original -> file to import) from `sys.modules`.

    Raises:
        UserError: A module of the same name, of another folder of extensions, is in use.
    """
    for source, file in sources.items():
        _state.modules.pop(source, None)
        name = ".".join(root_of(file)[1])
        other = _known_file(sys.modules.get(name))
        if other in sources:
            del sys.modules[name]
        elif other is not None:
            raise UserError(f"extensions: {source} and {other} are two modules of the same name '{name}'; rename one")


def _known_file(module: ModuleType | None) -> Path | None:
    """The original of a module's file, if it is a user's file."""
    file = getattr(module, "__file__", None)
    original = original_of(Path(file)) if file else None
    return original if original in _state.contents else None


class _SourceLoader(SourceFileLoader):
    """Compiles the file at each import.

    Cached bytecode is identified by size and second of change, which two contents may share.
    """

    def get_code(self, fullname: str) -> CodeType:
        """Compile the source."""
        return self.source_to_code(self.get_data(self.path), self.path)


def _execute(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path, loader=_SourceLoader(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their annotations there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _line(path: Path, error: BaseException) -> str:
    """The last line of the file that the error passed, as `, line N`."""
    lines = [error.lineno] if isinstance(error, SyntaxError) else []
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f", line {lines[-1]}" if lines else ""


@contextmanager
def preserved() -> Iterator[None]:
    """Restore at the end which content of each file this process works with."""
    contents, modules, imports = dict(_state.contents), dict(_state.modules), dict(_state.imports)
    named = {name: module for name, module in list(sys.modules.items()) if _known_file(module) is not None}
    try:
        yield
    finally:
        _state.contents, _state.modules, _state.imports = contents, modules, imports
        sys.modules.update(named)


# ---- The files of a configuration -----------------------------------------------------------------------------------


def load(texts: Iterable[str], copies: Path | None = None, *, exact: bool = False) -> None:
    """Import the files that a configuration lists, all from their paths or all copies.

    Args:
        texts: The entries.
        copies: Folder of the run's copies, used if a file is gone.
        exact: Use the copies also if a file has changed.

    Raises:
        UserError: A file is missing, has changed without a copy (`exact`), or cannot be imported.
    """
    entries = [parse_entry(text) for text in texts]
    missing = [entry for entry in entries if not entry.path.is_file()]
    changed = [e for e in entries if e.sha256 and e not in missing and sha256(e.path.read_bytes()) != e.sha256]
    different = [*missing, *(changed if exact else [])]
    if different:
        _check_copies(entries, different[0], copies)
    for entry in entries:
        if entry.registers:
            import_file(entry.path, copies if different else None)


@contextmanager
def consent(trusted: bool = True) -> Iterator[None]:
    """Import the files that saved configurations list (`--allow-extensions`), or do not."""
    before, _state.trusted = _state.trusted, trusted
    try:
        yield
    finally:
        _state.trusted = before


def load_saved(
    texts: Sequence[str], run_dir: Path, *, exact: bool, resuming: bool = False, allow: Sequence[str] = ()
) -> None:
    """Import the files that a saved configuration lists, if the user agreed to execute them.

    The user agrees with `consent`, or if this program imported the same contents before. A resume also imports the
    originals outside the run directory that are unchanged since the run recorded them.

    Args:
        texts: The entries.
        run_dir: The folder of the configuration, with the copies.
        exact: Use the copies also if a file has changed.
        resuming: The run is resumed.
        allow: With `resuming`, `extensions` allows files that have changed.

    Raises:
        UserError: The user did not agree, or a file cannot be imported.
    """
    entries = [parse_entry(text) for text in texts]
    if _state.trusted:
        load(texts, run_dir / FOLDER, exact=exact)
    elif all(map(_is_imported, entries)):
        return
    elif resuming and all(_is_outside(text, run_dir) for text in texts):
        changed = [entry.path for entry in entries if sha256(entry.path.read_bytes()) != entry.sha256]
        if changed and "extensions" not in allow:
            raise UserError(
                f"the run has another configuration (extensions: {', '.join(map(str, changed))} changed); to change "
                "it: --allow-change extensions"
            )
        load(texts)
    else:
        names = ", ".join(shown(str(entry.path)) for entry in entries[:3]) + ", ..." * (len(entries) > 3)
        raise UserError(
            f"{run_dir} lists Python files that this command would execute ({names}); if you trust them, add "
            "--allow-extensions (in a program: allow_extensions=True, or import the files before)"
        )


def _is_imported(entry: Entry) -> bool:
    """Whether this process works with the content that the run recorded."""
    content = _state.contents.get(entry.path)
    known = not entry.registers or entry.path in _state.modules
    return content is not None and known and sha256(content) == entry.sha256


def _is_outside(text: str, run_dir: Path) -> bool:
    """Whether an entry is the recorded, absolute path of a file outside the run directory."""
    match = _ENTRY.fullmatch(text)
    path = Path(match[1]) if match else Path()
    return path.is_absolute() and path.is_file() and not path.resolve().is_relative_to(run_dir.resolve())


def _check_copies(entries: list[Entry], different: Entry, copies: Path | None) -> None:
    """Raise UserError if the copies are not the files of the run."""
    what = "has changed since the run recorded it" if different.path.is_file() else "does not exist"
    if copies is None and not different.path.is_file():
        raise UserError(f"extensions: {different.path} does not exist; give the path of a Python file")
    for entry in entries:
        copy = None if copies is None else _copy_of(entry.path, copies)
        if copy is None:
            raise UserError(f"extensions: {different.path} {what}, and there is no copy of {entry.path}; bring it back")
        if sha256(copy.read_bytes()) != entry.sha256:
            raise UserError(f"extensions: {different.path} {what}, and {copy} is not the copy that the run wrote")


def save_copies(
    texts: Iterable[str], run_dir: Path, *, write: Callable[[Path, bytes], object] = Path.write_bytes
) -> None:
    """Write the imported files of a configuration into a run directory with `write`."""
    for entry in map(parse_entry, texts):
        content = _state.contents.get(entry.path)
        content = entry.path.read_bytes() if content is None else content
        copy = _copy_of(entry.path, run_dir / FOLDER)
        if copy is None:
            root, _ = root_of(entry.path)
            copy = run_dir / FOLDER / _folder(root) / entry.path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
        write(copy, content)


def _copy_of(path: Path, copies: Path) -> Path | None:
    """The copy of a file, or None; its folder is named after the original root."""
    candidates = (copies / _folder(root) / path.relative_to(root) for root in path.parents)
    return next((copy for copy in candidates if copy.is_file()), None)


def _folder(root: Path) -> str:
    return sha256(str(root).encode())[:8]


# ---- Programs -------------------------------------------------------------------------------------------------------


def check_caller() -> None:
    """Check that no file of extensions trains while it is imported.

    Raises:
        UserError: A file does, or would when a later command imports it.
    """
    frame = sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if frame.f_code.co_name == "<module>" and file.is_file() and original_of(file) in _state.contents:
            statements = ast.parse(importlib.util.decode_source(file.read_bytes())).body
            line = frame.f_lineno
            inside = [node for node in statements if node.lineno <= line <= (node.end_lineno or node.lineno)]
            if not any(map(is_main_guard, inside)):
                raise UserError(
                    f"{file}, line {line}: the file registers extensions, so every later command imports it, and would "
                    'train again; put this under `if __name__ == "__main__":`'
                )
        frame = frame.f_back
