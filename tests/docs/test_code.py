"""Every Python block of the README and the documentation runs, the blocks of a page one after the other."""

import re
from pathlib import Path
from typing import Any

import pytest

import lmjax
from tests import ROOT

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [
    path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if BLOCK.search(path.read_text())
]
# The quickstart with sizes that train in a second.
SMALL = (
    "model.layers=2",
    "model.width=16",
    "model.heads=2",
    "model.context=64",
    "batch.tokens=[(0, 256)]",
    "batch.microbatch=4",
    "train.updates=4",
    "train.final_batches=2",
    "train.sample_tokens=0",
    "train.baselines=false",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `runs/quickstart` is a finished run."""
    folder = tmp_path_factory.mktemp("user")
    lmjax.train("quickstart", *SMALL, run_dir=folder / "runs" / "quickstart")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_python_blocks_run(page: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(folder / "runs" / "quickstart")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for block in BLOCK.findall(page.read_text()):
        code = block.replace('"train.updates=100"', ", ".join(map(repr, SMALL)))
        exec(compile(code, str(page), "exec"), scope)


def test_there_are_blocks_to_run() -> None:
    names = {page.name for page in PAGES}
    assert {"README.md", "quickstart.md", "extending.md"} <= names
