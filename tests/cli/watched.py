"""`python watched.py REPORT INPUTS ALLOWED,... WORDS`: `lmjax WORDS`, and what it did that reading must not do.

It may take SECONDS of processor time. INPUTS is the folder of the hostile files: code from there must not run. ALLOWED
are the folders that it may write to.
"""

import atexit
import re
import resource
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 60


def peak_memory() -> int:
    """The peak of this program in bytes; `getrusage` also counts the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) << 10


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    from fuzz import Watch

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    report, inputs, allowed, *words = sys.argv[1:]
    watch = Watch([Path(folder) for folder in (*allowed.split(","), report)], Path(inputs))
    atexit.register(lambda: Path(report).write_text(f"{peak_memory()} {watch.noted}"))
    watch.active = True
    from lmjax.cli import main

    main.main(words)
