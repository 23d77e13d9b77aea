"""Evaluation of a run's state on its validation split and on tasks in context."""

from collections.abc import Callable, Mapping
from math import isnan, nan
from typing import Any

import jax
import numpy as np

from lmjax.config import UserError, extensions
from lmjax.config.errors import one_line
from lmjax.evaluation import in_training
from lmjax.inference.language_model import LanguageModel
from lmjax.objectives.objective import Objective
from lmjax.parallel import mesh, processes
from lmjax.parallel.mesh import local_copy
from lmjax.run.build import Run, averaged, on_mesh, trained_in_context
from lmjax.run.saved import LoadedRun
from lmjax.system import faults
from lmjax.training.signals import Interrupted, StopRequest
from lmjax.training.state import State


def evaluator(
    run: Run, *, stop: StopRequest | None = None, report: Callable[[str], None] = print
) -> Callable[[State, bool], dict[str, float]]:
    """Return a function (state, final) that computes the scores on the validation split.

    The scores are `val_loss` over the documents of all sources, in proportion to their size, the losses by source of a
    mixture, and those that the objective and the tasks add. The function reads the first
    `train.evaluate_batches` microbatches, or `train.final_batches` if `final`; 0 means the complete split. It uses the
    average of the parameters if the run computes one. It raises `Interrupted` if `stop` is requested meanwhile.
    """
    config, objective = run.config, run.objective

    @jax.jit
    def sums(params: Any, rows: Any, carry: Any) -> Any:
        with on_mesh(run):
            return objective.measure(params, rows, carry)

    in_context = _in_context(run, report)

    def evaluate(state: State, final: bool) -> dict[str, float]:
        params, most = averaged(state), config.train.final_batches if final else config.train.evaluate_batches
        batch_sums, carry = [], objective.begin((config.batch.microbatch,))
        sums_by_source: dict[str, list[Any]] = {}
        for number, rows in enumerate(run.samples.validation()):
            faults.reach("evaluate.batch")
            if number == most > 0:
                break
            if stop is not None and stop.name and processes.alone():  # other processes would wait for this process
                raise Interrupted("the evaluation was interrupted by a signal")
            before = carry
            new_sums, carry = sums(params, mesh.put_batch(rows, run.mesh, leading=0), before)
            batch_sums.append(new_sums)
            for label, part in run.samples.by_source(number, rows).items():
                only = new_sums if part is rows else sums(params, mesh.put_batch(part, run.mesh, leading=0), before)[0]
                sums_by_source.setdefault(label, []).append(only)
        scores = scores_of(objective, _totals(batch_sums)) | _by_source(run, int(state.update), sums_by_source)
        scores |= in_context(params)
        return scores | _registered(run, params, int(state.update), known=scores, report=report)

    return evaluate


def scores_of(objective: Objective, totals: Mapping[str, float]) -> dict[str, float]:
    """Return the scores of sums over the split; all are NaN if the loss is.

    Logits that are not numbers have no largest one, though `argmax` takes the first.
    """
    scores = objective.scores(totals)
    return dict.fromkeys(scores, nan) if isnan(totals.get("loss", 0.0)) else scores


def _totals(batch_sums: list[Any]) -> dict[str, float]:
    """Add the sums of batches in double precision."""
    batch_sums = jax.device_get(batch_sums)
    return {name: float(np.sum([np.float64(part[name]) for part in batch_sums])) for name in batch_sums[0]}


def _by_source(run: Run, update: int, sums_by_source: Mapping[str, list[Any]]) -> dict[str, float]:
    """Compute `val_loss/SOURCE` of each source of a mixture, and `val_loss_weighted`.

    The latter has the shares of the sources that the training has at this update. It is left out if a source with a
    share was not measured.
    """
    losses = {label: scores_of(run.objective, _totals(sums))["val_loss"] for label, sums in sums_by_source.items()}
    shares = run.samples.mixture(int(run.plan.sequences[:update].sum()))
    scores = {f"val_loss/{label}": loss for label, loss in losses.items()}
    if shares and all(label in losses for label, share in shares.items() if share):
        scores["val_loss_weighted"] = sum(share * losses[label] for label, share in shares.items() if share)
    return scores


def _registered(
    run: Run, params: Any, update: int, *, known: Mapping[str, float], report: Callable[[str], None]
) -> dict[str, float]:
    """Compute the metrics of `train.metrics`; one that fails is reported and left out."""
    names, values = run.config.train.metrics, {}
    if not names:
        return {}
    loaded = LoadedRun(run.config, run.objective, local_copy(params), run.store.tokenizer, update)
    for name in names:
        try:
            if f"val_{name}" in known:
                raise UserError(f"val_{name} is a metric of lmjax; register it under another name")
            values[f"val_{name}"] = float(extensions.get("metric", name)(loaded))
        except (Exception, SystemExit) as error:
            report(
                f"update {update}: the metric {name} failed ({type(error).__name__}: {one_line(error)}); it is left out"
            )
    return values


def _in_context(run: Run, report: Callable[[str], None]) -> Callable[[Any], dict[str, float]]:
    """Return a function of the parameters that computes the scores of `config.evaluate`."""
    config = run.config
    if not config.evaluate.tasks:
        return lambda params: {}
    tasks, reported = in_training.load(config.evaluate.tasks, trained_in_context(config)), set[str]()

    def report_once(line: str) -> None:
        if line not in reported:
            reported.add(line)
            report(line)

    def measure(params: Any) -> dict[str, float]:
        lm = LanguageModel(run.model, local_copy(params), run.store.tokenizer, name=config.name)
        return in_training.measure(lm, tasks, config.evaluate, report_once)

    return measure
