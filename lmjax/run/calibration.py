"""The last update of a reward model: it also sets gain and bias."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
from jax import Array

from lmjax.objectives import reward_calibration
from lmjax.objectives.reward import RewardModel
from lmjax.parallel import mesh
from lmjax.run.build import Run, on_mesh
from lmjax.training.state import State
from lmjax.training.step import Step


def with_calibration(run: Run, step: Step) -> Step:
    """Return a step that also calibrates a reward model after the last update.

    Gain and bias are then a part of the last state, of its checkpoint and of its digest, and a resume and an audit
    compute them again. Earlier checkpoints have gain 1 and bias 0.
    """
    if not isinstance(run.objective, RewardModel) or run.objective.answers is None:
        return step
    compiled = cache(partial(_compiled, run))

    def step_and_calibrate(state: State, batches: Sequence[dict[str, Any]]) -> tuple[State, dict[str, Any]]:
        numbers = compiled()  # with the first update, so that the last one does not wait for it
        state, metrics = step(state, batches)
        if int(jax.device_get(batches[-1]["update"])) + 1 < run.plan.updates:
            return state, metrics
        average = None if state.ema is None else {**state.ema, "calibration": numbers(state.ema, state.update)}
        params = {**state.params, "calibration": numbers(state.params, state.update)}
        return replace(state, params=params, ema=average), metrics

    return step_and_calibrate


def _compiled(run: Run) -> Callable[[Any, Array], dict[str, Array]]:
    """Return the program (params, update) -> gain and bias.

    They change after the last update only. If the last batch is suspect, fewer updates are applied.
    """
    objective, everywhere = run.objective, mesh.replicated(run.mesh)
    assert isinstance(objective, RewardModel)
    assert objective.answers is not None
    texts = mesh.put_tree(reward_calibration.texts_of(objective.answers), everywhere)

    def numbers(params: Any, update: Array, texts: reward_calibration.Texts) -> dict[str, Array]:
        with on_mesh(run):
            return jax.lax.cond(
                update == run.plan.updates,
                lambda: reward_calibration.numbers(objective.model, params, texts),
                lambda: params["calibration"],
            )

    state, shardings = run.abstract_state, run.shardings.params["calibration"]
    program = jax.jit(numbers, out_shardings=shardings).lower(state.params, state.update, texts).compile()
    return lambda params, update: program(params, update, texts)
