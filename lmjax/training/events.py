"""The events of a run that callbacks receive."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["update", "evaluation", "checkpoint", "rollback", "end"]

#: (kind, update, values): report an event.
Notify = Callable[[Kind, int, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Event:
    """Something that happened in a run."""

    #: `update`: an update was applied; `values` is its record, as in metrics.jsonl. `evaluation`: the same for an
    #: evaluation. `checkpoint`: a checkpoint is complete (`digest`). `rollback`: the run went back to `update`
    #: (`trigger`). `end`: the run finished, stopped or gave up; `values` are the fields of summary.json.
    kind: Kind
    #: The run directory.
    run_dir: Path
    #: Number of updates applied. It repeats after a rollback.
    update: int
    #: What is known about the event.
    values: Mapping[str, Any]
