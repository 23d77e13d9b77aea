"""The result of a run for programs: its status, its summary and its metrics as columns."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.journal import journal
from lmjax.journal.history import last
from lmjax.run.saved import read_summary
from lmjax.training import metrics


@dataclass(frozen=True)
class TrainingResult(os.PathLike):
    """A run that finished or was stopped. It is accepted wherever a path of a run is."""

    #: The run directory.
    run: Path
    #: `finished`, or `stopped` by a signal: `lmjax.resume` continues it.
    status: str
    #: The fields of summary.json: final losses, baselines, digest, seconds.
    summary: Mapping[str, Any]

    def __fspath__(self) -> str:
        return str(self.run)

    @cached_property
    def metrics(self) -> dict[str, np.ndarray]:
        """The columns of the training records, such as `loss`; NaN for a missing value."""
        return self._columns(validation=False)

    @cached_property
    def evaluations(self) -> dict[str, np.ndarray]:
        """The columns of the evaluation records, such as `update`, `tokens`, `val_loss`."""
        return self._columns(validation=True)

    def _columns(self, *, validation: bool) -> dict[str, np.ndarray]:
        records = [r for r in metrics.read(self.run / "metrics.jsonl") if ("val_loss" in r) == validation]
        names = dict.fromkeys(name for record in records for name in record)
        return {name: np.asarray([_number(record.get(name)) for record in records]) for name in names}


def result_of(run_dir: Path) -> TrainingResult:
    """Return the result of a run that finished or was stopped.

    Raises:
        KeyboardInterrupt: It was stopped by SIGINT, the signal of Ctrl-C; the state is saved.
    """
    summary = read_summary(run_dir)
    status = str(summary.get("status"))
    signal = last(journal.read(run_dir / "journal.jsonl"), "signal") or {}
    if status == "stopped" and signal.get("name") == "SIGINT":
        raise KeyboardInterrupt(
            f"saved after update {summary.get('updates')}; continue with lmjax.resume({str(run_dir)!r})"
        )
    return TrainingResult(run_dir, status, summary)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
