"""The end of a run: its results, the baselines, and commands to try next."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmjax.display.console import Console
from lmjax.pytrees import count, digest
from lmjax.run import build, saved
from lmjax.run.build import Run
from lmjax.system import machine
from lmjax.system.files import write_text
from lmjax.training.state import State


def summarise(run: Run, state: State, *, status: str, seconds: float, measured: dict[str, float]) -> dict[str, Any]:
    """Return the fields of summary.json; `measured` holds the scores (`val_...`) of the last evaluation."""
    update = int(state.update)
    return {
        "status": status,
        "updates": update,
        "tokens": build.tokens_after(run, update),
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
    """Measure the baselines, sample from the model, draw the curves, write summary.json, and print the results.

    Only the main process calls this.

    Args:
        run: the run.
        run_dir: directory of the run.
        summary: the fields of summary.json.
        params: the parameters to use, on one device.
        console: prints the results.
    """
    from lmjax.run import curves  # imports matplotlib, which is slow

    if run.config.train.baselines:
        with console.phase("baselines"):
            summary["baselines"] = run.task.baselines()
    with console.phase("measuring"):
        summary |= run.task.finish(params)
    with console.phase("writing a sample"):
        sample = run.task.sample(params)
    if best := saved.best(run_dir):
        summary["best"] = {"update": best[0], "val_loss": best[1]}
    write_text(run_dir / "summary.json", json.dumps(summary, indent=1) + "\n")
    with console.phase("drawing"):
        pictures = curves.draw([run_dir], run_dir / "plots")
    commands = next_commands(run_dir, prompt=run.task.prompt, tasks=run.config.evaluate.tasks)
    console.final(summary, sample=sample, plots=pictures, commands=commands)


def next_commands(run_dir: Path, *, prompt: str, tasks: Sequence[str]) -> list[str]:
    """Return commands to try on a finished run."""
    return [
        f'lmjax generate {run_dir} --prompt "{prompt}"',
        *([f"lmjax evaluate {run_dir} --tasks {','.join(tasks)} --shots 0,1,8"] if tasks else []),
        f"lmjax audit {run_dir}",
        f"python train.py {run_dir / 'config.json'} seed=1 --run-dir {run_dir.with_name('again')}",
    ]
