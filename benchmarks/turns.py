"""Sides of a comparison that take turns, each in a process of its own: what slows the machine slows all of them.

A side is a program that prints a JSON object, on a line, when it is ready, and one for each line that it then reads.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from statistics import median
from types import TracebackType
from typing import Any, Self


class Worker:
    """A Python program with its arguments, which waits to be asked; `ready` is its first answer.

    environment: variables beside those of this process. It ends with the `with` block.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.arguments = [*arguments]
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.ready = self._answer()

    def ask(self, line: str) -> dict[str, Any]:
        """What it answers to one line. RuntimeError: it has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # what it printed last says why
            pass
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print other things
                return json.loads(line)
        raise RuntimeError(f"{' '.join(self.arguments)} ended with status {self._process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._process.kill()
        self._process.communicate()


def rounds(workers: Mapping[str, Worker], line: str, count: int) -> dict[str, list[dict[str, Any]]]:
    """The answers of each worker to the same line, asked `count` times in turn; another one begins each round."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    names = list(workers)
    for number in range(count):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            answers[name].append(workers[name].ask(line))
    return answers


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios ours / theirs, round by round."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def fastest(seconds: Mapping[str, Sequence[float]]) -> str:
    """The name with the least median."""
    return min(seconds, key=lambda name: median(seconds[name]))
