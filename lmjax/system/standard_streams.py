"""Standard input, output and error of a command: open, and able to write any text."""

import os
import sys
from typing import Any


def repair() -> None:
    """Open the standard streams that are closed; replace characters they cannot encode.

    Without this, the first file that a process opens would take the number of a closed stream, and messages of
    libraries would be written into that file. A closed stream reads and writes nothing.
    """
    for descriptor in range(3):
        if not _is_open(descriptor):
            null = os.open(os.devnull, os.O_WRONLY if descriptor else os.O_RDONLY)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = "w" if descriptor else "r"
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        _replace_unknown(stream)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _replace_unknown(stream: Any) -> None:
    if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
