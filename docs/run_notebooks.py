"""Run the notebooks and save them with their outputs: python docs/run_notebooks.py [NAME ...]."""

import os
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 1800  # of a cell


def run(path: Path) -> None:
    """Run a notebook from top to bottom in an empty folder."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": folder}})
        client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # its times would change with each run
        cell["outputs"] = [output for output in cell.get("outputs", ()) if output.get("name") != "stderr"]
        if cell.cell_type != "code":
            del cell["outputs"]
    nbformat.write(notebook, path)


if __name__ == "__main__":
    os.environ |= {"PYTHONPATH": str(ROOT), "JUPYTER_PLATFORM_DIRS": "1"}
    os.environ.pop("MPLBACKEND", None)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if not sys.argv[1:] or path.stem in sys.argv[1:]:
            run(path)
            print(f"{path.name}: {path.stat().st_size / 1000:,.0f} kB")
