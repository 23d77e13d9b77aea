"""Samples of a run over time: `samples.jsonl`, with the update and the text of each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmjax.config.errors import one_line
from lmjax.config.json_text import parse_json
from lmjax.config.regular_files import read_regular
from lmjax.parallel import processes
from lmjax.parallel.mesh import local_copy
from lmjax.run.build import Run, averaged
from lmjax.system.files import write_text
from lmjax.training.state import State

NAME = "samples.jsonl"
_LARGEST = 1 << 26  # bytes of the file

Evaluate = Callable[[State, bool], dict[str, float]]


def with_samples(run: Run, run_dir: Path, evaluate: Evaluate, *, report: Callable[[str], None]) -> Evaluate:
    """Return `evaluate` that also writes samples, one every `train.sample_every` evaluations.

    A sample that fails costs a line. The last evaluation writes none: the end of the run has its own sample.
    """
    config = run.config.train
    if not config.sample_every or not config.evaluate_every:
        return evaluate

    def evaluate_and_sample(state: State, final: bool) -> dict[str, float]:
        scores, update = evaluate(state, final), int(state.update)
        if not final and update // config.evaluate_every % config.sample_every == 0:
            params = local_copy(averaged(state))
            if processes.is_main():
                try:
                    add(run_dir / NAME, update, run.objective.sample(params))
                except (Exception, SystemExit) as error:  # of user code too: a sample does not end a run
                    report(f"update {update}: no sample ({type(error).__name__}: {one_line(error)})")
        return scores

    return evaluate_and_sample


def add(path: Path, update: int, text: str) -> None:
    """Write a sample; those of this and of later updates, from before a rollback, are removed."""
    kept = [sample for sample in read(path) if sample["update"] < update]
    lines = [json.dumps(sample) for sample in [*kept, {"update": update, "text": text}]]
    write_text(path, "\n".join(lines) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Return the samples of a file, in order; lines that are damaged are left out."""
    if not path.exists():
        return []
    samples = []
    for line in read_regular(path, largest=_LARGEST).splitlines():
        try:
            sample = parse_json(line, NAME)
        except ValueError:
            continue
        if isinstance(sample, dict) and type(sample.get("update")) is int and isinstance(sample.get("text"), str):
            samples.append({"update": sample["update"], "text": sample["text"]})
    return samples
