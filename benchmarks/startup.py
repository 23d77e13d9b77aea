"""How soon lmjax answers and trains, measured in whole processes: `python benchmarks/startup.py [TIMES]`.

Prints a table in Markdown: medians over TIMES (5) starts of each, in folders and caches of their own. The machine
should have nothing else to do.
"""

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
TRAIN, LMJAX = (str(ROOT / "train.py"),), ("-m", "lmjax")
UPDATE = r"update 1/"
# A run of a few updates of the quickstart's model, to be used afterwards.
SMALL = ("train.updates=2", "train.baselines=false", "train.final_batches=1", "train.sample_tokens=1")
PROMPT = "Return the"


@dataclass(frozen=True)
class Place:
    """A folder with a cache of its own, in which commands are started. variables: further ones of the environment."""

    folder: Path
    python: Path | str = sys.executable
    variables: dict[str, str] = field(default_factory=dict)

    def start(self, *words: str, door: tuple[str, ...] = TRAIN) -> subprocess.Popen[str]:
        """Starts `python DOOR WORDS`; its output, errors included, can be read as it comes."""
        environment = os.environ | {"XDG_CACHE_HOME": str(self.folder / "cache"), "PYTHONUNBUFFERED": "1"}
        for name in ("PYTHONDONTWRITEBYTECODE", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS"):
            environment.pop(name, None)
        return subprocess.Popen(
            [str(self.python), *door, *words],
            env=environment | self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
        )

    def measure(self, *words: str, door: tuple[str, ...] = TRAIN, until: str = "") -> tuple[float, float]:
        """Seconds of a process to its end, or until it prints what matches, and its peak memory in bytes by then."""
        begun = time.perf_counter()
        process = self.start(*words, door=door)
        if until:
            wait_for(process, until)
        else:
            output(process).read()
        seconds = time.perf_counter() - begun
        if until:
            os.kill(process.pid, signal.SIGKILL)  # `process.kill` would collect what `wait4` is to tell
        output(process).close()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return seconds, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def wait_for(process: subprocess.Popen[str], pattern: str) -> None:
    """Reads what a process prints up to what matches; ends with an error if it never comes."""
    seen = ""
    while not re.search(pattern, seen):
        more = output(process).read(1)
        if not more:
            sys.exit(f"'{pattern}' was not seen in:\n{seen}")
        seen += more


def output(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def main() -> None:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        everything: dict[str, list[tuple[float, float]]] = {}
        for number in range(times + 1):
            place = Place(Path(folder) / str(number), variables={"PYTHONPATH": str(ROOT)})
            place.folder.mkdir()
            for name, measured in once(place).items():
                everything.setdefault(name, []).extend([measured] * (number > 0))  # the first one compiles bytecode
            print(f"{number} of {times}", file=sys.stderr)
    print("| process | seconds | peak memory |\n|---|---:|---:|")
    for name, measured in everything.items():
        seconds, memory = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"| {name} | {seconds:.2f} | {memory / 1e6:,.0f} MB |")


def once(place: Place) -> dict[str, tuple[float, float]]:
    """Everything once, the first start with nothing cached."""
    lmjax: Any = {"door": LMJAX}
    found = {
        "`lmjax --help`": place.measure("--help", **lmjax),
        "a mistyped key": place.measure("model.layer=3"),
        "first start of the quickstart, to its first update": place.measure("--run-dir", "first", until=UPDATE),
        "second start, to its first update": place.measure("--run-dir", "second", until=UPDATE),
        "`lmjax plan quickstart`": place.measure("plan", "quickstart", **lmjax),
    }
    place.measure("--run-dir", "small", *SMALL)
    generate = ("generate", "small", "--prompt", PROMPT)
    place.measure(*generate, "--max-tokens", "8", **lmjax)
    first = f"^{re.escape(PROMPT)}(.|\n)"
    return found | {
        "`lmjax generate RUN`, to its first token": place.measure(*generate, **lmjax, until=first),
        "`lmjax plot RUN`": place.measure("plot", "small", **lmjax),
    }


if __name__ == "__main__":
    main()
