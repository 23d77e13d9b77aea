"""What a run measures on its validation split, and in context, as a function of its state."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lmjax.evaluation import in_training
from lmjax.inference.language_model import LanguageModel
from lmjax.parallel import mesh, processes
from lmjax.parallel.mesh import local_copy
from lmjax.run.build import Run, averaged, on_mesh, trained_in_context
from lmjax.system import faults
from lmjax.training.signals import StopRequest
from lmjax.training.state import State


class Interrupted(RuntimeError):
    """A signal asked the run to stop."""


def evaluator(run: Run, *, stop: StopRequest | None = None) -> Callable[[State, bool], dict[str, float]]:
    """A function (state, whole) -> the task's scores on the validation split: `val_loss`, and what it adds.

    It reads the whole split, or the first `train.evaluate_batches` (`final_batches`, with `whole`) microbatches. The
    average of the parameters is used where the run keeps one. Interrupted: `stop` was requested on the way.
    """
    config, task = run.config, run.task

    @jax.jit
    def sums(params: Any, rows: Any, carry: Any) -> Any:
        with on_mesh(run):
            return task.measure(params, rows, carry)

    in_context = _in_context(run)

    def evaluate(state: State, whole: bool) -> dict[str, float]:
        params, most = averaged(state), config.train.final_batches if whole else config.train.evaluate_batches
        found, carry = [], task.begin((config.batch.microbatch,))
        for number, rows in enumerate(task.validation()):
            faults.reach("evaluate.batch")
            if number == most > 0:
                break
            if stop is not None and stop.name and processes.alone():  # else the others would wait for this one
                raise Interrupted("the evaluation was interrupted by a signal")
            some, carry = sums(params, mesh.put_batch(rows, run.mesh, leading=0), carry)
            found.append(some)
        found = jax.device_get(found)
        totals = {name: float(np.sum([np.float64(some[name]) for some in found])) for name in found[0]}
        return task.scores(totals) | in_context(params)

    return evaluate


def _in_context(run: Run) -> Callable[[Any], dict[str, float]]:
    """What `evaluate` of the configuration asks for, as a function of the parameters."""
    config = run.config
    if not config.evaluate.tasks:
        return lambda params: {}
    tasks = in_training.load(config.evaluate.tasks, trained_in_context(config))

    def measure(params: Any) -> dict[str, float]:
        lm = LanguageModel(run.model, local_copy(params), run.store.tokenizer, name=config.name)
        return in_training.measure(lm, tasks, config.evaluate)

    return measure
