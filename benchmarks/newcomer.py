"""A newcomer's minutes, measured: `python benchmarks/newcomer.py` in a checkout, with a package registry at hand.

In a fresh virtual environment and an empty cache: how long and how large the installation is, how soon a typing error
is answered, how long the quickstart takes and how much memory, how soon its first update comes when the corpus is
prepared, and that Ctrl-C saves and the run goes on.
"""

import json
import signal
import subprocess
import tempfile
import time
import venv
from pathlib import Path

from startup import ROOT, UPDATE, Place, wait_for


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        python = work / "venv" / "bin" / "python"
        place = Place(work, python, {"PYTHONPATH": ""})

        venv.create(work / "venv", with_pip=True)
        bare = size(work / "venv")
        begun = time.perf_counter()
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-e", str(ROOT)], check=True)
        row("pip install -e .", f"{time.perf_counter() - begun:.0f} s")
        listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, check=True)
        row("packages", str(len(json.loads(listed.stdout)) - 1))
        row("size of the environment", f"{size(work / 'venv') / 1e9:.2f} GB, {bare / 1e9:.2f} GB of it before")

        place.start("model.layer=3").wait()  # compiles the bytecode of a fresh installation
        begun = time.perf_counter()
        process = place.start("model.layer=3")
        answer, _ = process.communicate()
        row("a mistyped key", f"{time.perf_counter() - begun:.2f} s, status {process.returncode}: {answer.strip()}")

        begun = time.perf_counter()
        process = place.start()
        output, _ = process.communicate()
        summary = json.loads((work / "runs" / "quickstart" / "summary.json").read_text())
        row("python train.py", f"{time.perf_counter() - begun:.0f} s, status {process.returncode}")
        row("its memory", f"{summary['peak_memory_bytes'] / 1e9:.2f} GB")
        row("its bits per byte", f"{summary['val_bits_per_byte']:.3f}, baselines {summary['baselines']}")
        (ROOT / "build").mkdir(exist_ok=True)
        (ROOT / "build" / "quickstart.txt").write_text(output)

        begun = time.perf_counter()
        process = place.start("--run-dir", "runs/again")
        wait_for(process, UPDATE)
        row("first update, corpus prepared, compiled before", f"{time.perf_counter() - begun:.1f} s")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate()
        row("Ctrl-C", f"status {process.returncode}: {' '.join(output.split()[-18:])}")
        process = place.start("--resume", "runs/again", "train.updates=30", "--allow-change", "train.updates")
        process.communicate()
        row("going on", f"status {process.returncode}")

        anew = ("--run-dir", "runs/cold", "runtime.compilation_cache=off")
        seconds, _ = place.measure(*anew, until=UPDATE)
        row("first update, corpus prepared, compiling anew", f"{seconds:.1f} s")


def size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def row(name: str, value: str) -> None:
    print(f"{name:<46} {value}", flush=True)


if __name__ == "__main__":
    main()
