"""The public functions of lmjax: train, resume, sweep, load, generate, evaluate, plan.

JAX is imported inside them, after the settings that must precede its start (`runtime.*` of the configuration).
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmjax.config import Config, RunError, UserError, grid, presets, user_files
from lmjax.config.checks import check
from lmjax.config.defaults import DRAWN
from lmjax.display.printing import printing
from lmjax.system import runtime

if TYPE_CHECKING:
    from lmjax.evaluation.results import Result
    from lmjax.inference.language_model import LanguageModel
    from lmjax.run.result import TrainingResult
    from lmjax.studies.sweep_report import Outcome


def train(
    config: str | Config = "quickstart",
    *changes: str,
    run_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> "TrainingResult":
    """Train a configuration into a new run directory.

    Args:
        config: a preset, a path to a configuration file, or a `Config`.
        *changes: changes of the configuration, such as `"train.updates=20"`.
        run_dir: the directory to create; default: `runs/NAME`.
        quiet: print nothing.

    Returns:
        The run directory, its status, its summary and its metrics. It is accepted wherever a path of a run is.

    Raises:
        UserError: the directory exists, or the configuration fits neither the data nor the machine.
        RunError: the guard gave up.
        KeyboardInterrupt: Ctrl-C stopped the run; its state is saved, and `resume` continues it.
    """
    chosen = _resolve(config, changes)
    folder = Path(run_dir) if run_dir is not None else Path("runs") / chosen.name
    runtime.start(chosen.runtime)
    from lmjax.run import launch

    with printing(not quiet):
        return _finished(launch.start(chosen, folder), folder)


def resume(
    run_dir: str | os.PathLike[str],
    *changes: str,
    allow: Sequence[str] = (),
    allow_extensions: bool = False,
    quiet: bool = False,
) -> "TrainingResult":
    """Resume a run from its newest checkpoint; the result is bit-identical.

    Args:
        run_dir: the run directory.
        *changes: changes of its configuration.
        allow: the keys that may differ from the run's configuration.
        allow_extensions: execute the Python files that the run lists, also its own copies.
        quiet: print nothing.

    Returns:
        What `train` returns.

    Raises:
        UserError: there is no run, or a change is not allowed.
        RunError: the guard gave up.
        KeyboardInterrupt: Ctrl-C stopped the run; its state is saved.
    """
    folder = Path(run_dir)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a run: it has no config.json")
    with user_files.consent(allow_extensions):
        config = _resolve(str(folder / "config.json"), changes, resuming=True, allow=allow)
    runtime.start(config.runtime)
    from lmjax.run import resume

    with printing(not quiet):
        return _finished(resume.resume(config, folder, allow=allow), folder)


def sweep(
    config: str | Config = "quickstart",
    *changes: str,
    out: str | os.PathLike[str] = "runs/sweep",
    metric: str = "",
    quiet: bool = False,
) -> "list[Outcome]":
    """Train a run for each point of a grid, one after the other, and compare them.

    Args:
        config: a preset, a path to a configuration file, or a `Config`.
        *changes: `"key=value"` for all runs; `"schedule.peak=3e-4,1e-3"` and `"seed=0:3"` are axes of the grid.
        out: the folder of the runs, the table and the pictures. The same call continues an interrupted sweep.
        metric: the field of summary.json that is compared.
        quiet: print nothing.

    Returns:
        The point, the run directory, the status and the summary of each run.

    Raises:
        UserError: there is no axis, or a point is invalid.
        KeyboardInterrupt: Ctrl-C stopped a run.
    """
    axes, fixed = grid.axes_of(changes)
    chosen = _resolve(config, fixed)
    runtime.start(chosen.runtime)
    from lmjax.studies import sweep

    with printing(not quiet):
        outcomes = sweep.run_sweep(chosen, axes, Path(out), metric=metric)
    if len(outcomes) < math.prod(map(len, axes.values())):
        raise KeyboardInterrupt(f"the sweep was stopped after {len(outcomes)} runs; the same call continues it")
    return outcomes


def load(
    path: str | os.PathLike[str], *, checkpoint: str = "newest", allow_extensions: bool = False
) -> "LanguageModel":
    """Load a causal language model: a run directory, a Hugging Face directory or a .gguf file.

    Args:
        path: the model.
        checkpoint: of a run: `newest`, `best`, or the number of an update.
        allow_extensions: execute the Python files that the run lists.

    Raises:
        UserError: there is no model, or it is not a causal language model.
    """
    runtime.start()
    from lmjax.run import pretrained

    with user_files.consent(allow_extensions):
        return pretrained.load(Path(path), checkpoint=checkpoint)


def generate(model: "str | os.PathLike[str] | LanguageModel", prompts: str | Sequence[str], **settings: Any) -> Any:
    """Continue one prompt (returns a text) or several (returns a list of texts).

    Args:
        model: what `load` returns, or a path that `load` accepts.
        prompts: one text, or several; of a prompt that is longer than the context, its end is read.
        **settings: the fields of `lmjax.inference.sampling.Sampling`, such as `max_tokens=50`; `temperature` is 0.8 and
            `top_p` 0.95 by default.

    Raises:
        UserError: there is no model, or a setting is out of range.
    """
    lm = load(model) if isinstance(model, str | os.PathLike) else model
    from lmjax.inference import generate
    from lmjax.inference.sampling import Sampling

    several = [prompts] if isinstance(prompts, str) else prompts
    texts = generate.generate(lm, several, sampling=Sampling(**{**DRAWN, **settings}))
    return texts[0] if isinstance(prompts, str) else texts


def evaluate(model: "str | os.PathLike[str] | LanguageModel", tasks: Sequence[str], **settings: Any) -> "Result":
    """Evaluate a model on tasks with zero, one or a few examples.

    Args:
        model: what `load` returns, or a path that `load` accepts.
        tasks: bundled tasks, folders or files.
        **settings: the fields of `lmjax.evaluation.settings.Settings`, such as `shots=(0, 1, 5)`.

    Raises:
        UserError: there is no model or task, or a setting is out of range.
    """
    lm = load(model) if isinstance(model, str | os.PathLike) else model
    from lmjax.evaluation import evaluator
    from lmjax.evaluation.settings import Settings

    return evaluator.evaluate(lm, tasks, Settings(**settings))


def plan(config: str | Config = "quickstart", *changes: str) -> None:
    """Print what a run of a configuration would do and need; nothing is trained.

    Raises:
        UserError: the configuration does not fit the machine.
    """
    chosen = _resolve(config, changes)
    runtime.start(chosen.runtime)
    from lmjax.run import launch

    launch.show_plan(chosen)


def _resolve(config: str | Config, changes: Sequence[str], **settings: Any) -> Config:
    user_files.check_caller()
    chosen = (
        presets.load(config, changes, **settings) if isinstance(config, str) else presets.with_changes(config, changes)
    )
    check(chosen)
    return chosen


def _finished(status: int, run_dir: Path) -> "TrainingResult":
    """RunError: the guard gave up. KeyboardInterrupt: Ctrl-C stopped the run."""
    from lmjax.run import result

    if status:
        raise RunError(f"the guard gave up; `lmjax audit {run_dir}` explains why")
    return result.result_of(run_dir)
