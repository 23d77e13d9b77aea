"""A newcomer's minutes, measured: `python benchmarks/newcomer.py` in a checkout, with a package registry at hand.

In a fresh virtual environment and an empty cache: how long and how large the installation is, how soon a typing error
is answered, how long the quickstart takes and how much memory, how soon its first update comes when the corpus is
prepared, and that Ctrl-C saves and the run goes on.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        python = work / "venv" / "bin" / "python"
        environment = os.environ | {"XDG_CACHE_HOME": str(work / "cache"), "PYTHONUNBUFFERED": "1"}
        environment.pop("PYTHONPATH", None)

        def train(*words: str, **settings: object) -> subprocess.Popen[str]:
            arguments = [str(python), str(ROOT / "train.py"), *words]
            return subprocess.Popen(
                arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=work
            )

        venv.create(work / "venv", with_pip=True)
        bare = size(work / "venv")
        begun = time.perf_counter()
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-e", str(ROOT)], check=True)
        row("pip install -e .", f"{time.perf_counter() - begun:.0f} s")
        listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, check=True)
        row("packages", str(len(json.loads(listed.stdout)) - 1))
        row("size of the environment", f"{size(work / 'venv') / 1e9:.2f} GB, {bare / 1e9:.2f} GB of it before")

        train("model.layer=3").wait()  # compiles the bytecode of a fresh installation
        begun = time.perf_counter()
        process = train("model.layer=3")
        answer, _ = process.communicate()
        row("a mistyped key", f"{time.perf_counter() - begun:.2f} s, status {process.returncode}: {answer.strip()}")

        begun = time.perf_counter()
        process = train()
        output, _ = process.communicate()
        summary = json.loads((work / "runs" / "quickstart" / "summary.json").read_text())
        row("python train.py", f"{time.perf_counter() - begun:.0f} s, status {process.returncode}")
        row("its memory", f"{summary['peak_memory_bytes'] / 1e9:.2f} GB")
        row("its bits per byte", f"{summary['val_bits_per_byte']:.3f}, baselines {summary['baselines']}")
        (ROOT / "build").mkdir(exist_ok=True)
        (ROOT / "build" / "quickstart.txt").write_text(output)

        begun = time.perf_counter()
        process = train("--run-dir", "runs/again")
        seconds = first_update(process, begun)
        row("first update, corpus prepared, compiled before", f"{seconds:.1f} s")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate()
        row("Ctrl-C", f"status {process.returncode}: {' '.join(output.split()[-18:])}")
        process = train("--resume", "runs/again", "train.updates=30", "--allow-change", "train.updates")
        process.communicate()
        row("going on", f"status {process.returncode}")

        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        begun = time.perf_counter()
        process = train("--run-dir", "runs/cold")
        seconds = first_update(process, begun)
        row("first update, corpus prepared, compiling anew", f"{seconds:.1f} s")
        process.kill()
        process.communicate()


def first_update(process: subprocess.Popen[str], begun: float) -> float:
    """Seconds until the run says that it made its first update."""
    assert process.stdout is not None
    for line in process.stdout:
        if re.match(r"update 1/", line):
            return time.perf_counter() - begun
    sys.exit("no update was seen")


def size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def row(name: str, value: str) -> None:
    print(f"{name:<46} {value}", flush=True)


if __name__ == "__main__":
    main()
