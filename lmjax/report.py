"""The end of a run: what it reached, beside the baselines, and what to try next."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmjax import machine
from lmjax import run as runs
from lmjax.console import Console
from lmjax.files import write_text
from lmjax.pytrees import count, digest
from lmjax.run import Run
from lmjax.train.state import State


def summarise(run: Run, state: State, *, status: str, seconds: float, measured: dict[str, float]) -> dict[str, Any]:
    """The fields of summary.json; `measured` holds the task's scores (`val_...`), where they were measured."""
    update = int(state.update)
    return {
        "status": status,
        "updates": update,
        "tokens": runs.tokens_after(run, update),
        "seconds": seconds,
        "val_loss": measured.get("val_loss"),
        "val_bits_per_byte": measured.get("val_bits_per_byte"),
        **measured,
        "expect": run.config.train.expect,
        "baselines": {},
        "digest": digest(state),
        "parameters": count(state.params),
        "peak_memory_bytes": machine.peak_memory(),
    }


def finish(run: Run, run_dir: Path, summary: dict[str, Any], *, params: Any, console: Console) -> None:
    """Measures the baselines, lets the model write, draws the curves, writes summary.json and shows it all.

    params: to measure and to use, on one device; of several processes the main one alone does this.
    """
    from lmjax import plots  # matplotlib: not before it is needed

    if run.config.train.baselines:
        with console.phase("baselines"):
            summary["baselines"] = run.task.baselines()
    with console.phase("measuring"):
        summary |= run.task.finish(params)
    with console.phase("writing a sample"):
        sample = run.task.sample(params)
    if found := runs.best(run_dir):
        summary["best"] = {"update": found[0], "val_loss": found[1]}
    write_text(run_dir / "summary.json", json.dumps(summary, indent=1) + "\n")
    with console.phase("drawing"):
        pictures = plots.draw([run_dir], run_dir / "plots")
    commands = next_commands(run_dir, prompt=run.task.prompt, tasks=run.config.evaluate.tasks)
    console.final(summary, sample=sample, plots=pictures, commands=commands)


def next_commands(run_dir: Path, *, prompt: str, tasks: Sequence[str]) -> list[str]:
    """What a person can do with a finished run."""
    return [
        f'lmjax generate {run_dir} --prompt "{prompt}"',
        *([f"lmjax evaluate {run_dir} --tasks {','.join(tasks)} --shots 0,1,8"] if tasks else []),
        f"lmjax audit {run_dir}",
        f"python train.py {run_dir / 'config.json'} seed=1 --run-dir {run_dir.with_name('again')}",
    ]
