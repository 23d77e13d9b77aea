"""Every notebook runs from top to bottom."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LATER = (
    "01_pretraining",
    "04_in_context",
    "05_a_spike",
    "06_devices",
    "07_alignment",
)  # run with the exhaustive tests: each trains for a while
SHORTER = {  # and with the others all but their training
    "04_in_context": (
        "data.in_context.documents=8000 train.updates=900",
        "data.in_context.documents=500 train.updates=60",
    ),
}
# In place of new ones.
RUNS_TO_SHOW = ("LMJAX_RUN", "LMJAX_LADDER", "LMJAX_BERT", "LMJAX_IN_CONTEXT", "LMJAX_POST_LADDER")
RUN = [
    pytest.param(path, ("", ""), marks=pytest.mark.exhaustive if path.stem in LATER else (), id=path.stem)
    for path in NOTEBOOKS
]
RUN += [pytest.param(path, SHORTER[path.stem], id=f"{path.stem}-short") for path in NOTEBOOKS if path.stem in SHORTER]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Jupyter client, not ours
@pytest.mark.parametrize(("path", "change"), RUN)
def test_a_notebook_runs(path: Path, change: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RUNS_TO_SHOW:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("PYTHONPATH", str(path.parents[1]))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the notebook shows its figures inline
    notebook = nbformat.read(path, as_version=4)
    assert any(change[0] in cell.source for cell in notebook.cells)
    for cell in notebook.cells:
        cell.source = cell.source.replace(*change)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in printed if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in printed) >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_its_outputs(path: Path) -> None:
    """`python docs/run_notebooks.py` writes them: pictures, no errors, nothing of the machine that ran it."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    for output in outputs:
        text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
        assert not re.search(r"/(tmp|home|work|root|Users)/", text), text[:200]
        assert "image/png" in output.get("data", {}) or not text.startswith(("<Figure", "Figure("))
    assert path.stat().st_size < 500_000
