"""Every notebook runs from top to bottom."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LATER = ("01_pretraining", "05_a_spike")  # run with the exhaustive tests: each trains for a while
RUN = [
    pytest.param(path, marks=pytest.mark.exhaustive if path.stem in LATER else (), id=path.stem) for path in NOTEBOOKS
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Jupyter client, not ours
@pytest.mark.parametrize("path", RUN)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LMJAX_RUN", "LMJAX_LADDER", "LMJAX_BERT", "LMJAX_IN_CONTEXT"):  # of runs to look at in place of new ones
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("PYTHONPATH", str(path.parents[1]))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the notebook shows its figures inline
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in printed if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in printed) >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_its_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
