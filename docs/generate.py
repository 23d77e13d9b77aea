"""Generate the parts of the documentation that the code determines. `conf.py` calls `generate` before each build.

`_generated/parts/*.md` are included by pages, `_generated/api/*.md` and `_generated/notebooks/*.ipynb` are pages. None
of them is committed. Only the configuration schema, the tasks and the failpoints are imported; everything else is
parsed or asked with `--help` and `--collect-only`, so that no accelerator library starts.
"""

from generator import api, commands, keys, listings, package, problems
from generator.project import DOCS, ROOT

OUT = DOCS / "_generated"


def generate() -> None:
    """Write all generated parts and pages; files that did not change keep their time of modification."""
    parts = {
        "config_keys": keys.config_keys,
        "presets": listings.presets,
        "commands": commands.commands,
        "fault_tests": listings.fault_tests,
        "failpoints": listings.failpoints,
        "bundled_tasks": listings.bundled_tasks,
        "packages": package.packages,
        "public_names": api.public_names,
        "markers": listings.markers,
    }
    pages = {f"parts/{name}.md": part() for name, part in parts.items()}
    pages |= {f"api/{name}.md": api.api(name) for name in package.layers()}
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


def warn() -> None:
    """Warn about files, names and links that do not exist, and about a README that is long or incomplete."""
    from sphinx.util import logging

    logger = logging.getLogger(__name__)
    for where, problem in problems.problems():
        logger.warning(problem, location=where)


if __name__ == "__main__":
    generate()
    for where, problem in problems.problems():
        print(f"{where}: {problem}")
