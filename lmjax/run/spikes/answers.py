"""The answers of a policy in the report of a spike: sampled again, with their rewards."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config.errors import printable
from lmjax.config.rewards import LearnedRewardConfig
from lmjax.rl import advantages
from lmjax.run.episodes import Episodes
from lmjax.run.spikes.case import Case

_SHOWN = 4  # answers with the most, and with the least reward
_LONGEST = 200  # characters of a prompt or an answer


def describe(case: Case) -> str:
    """Compare the rewards that the update saw with those of the same answers now.

    Some answers are shown. A suspect episode left the state as it was, so that it samples the same answers.
    """
    parts, batch = Episodes(case.run), case.fed.batch
    if isinstance(parts.episode.objective.reward, LearnedRewardConfig) and case.run.mesh.size > 1:
        return "The reward model is divided among devices, and is not asked again."
    answers = jax.jit(parts.episode.sample)(case.state.params, batch["arrays"], case.state.update)
    texts = parts.texts(answers)
    rewards_R = parts.scores("train", answers, texts).values_B
    penalty = parts.episode.objective.unfinished_penalty
    ended_R = answers.rollout.finished_B
    scores_R = np.asarray(advantages.penalize_unfinished(jnp.asarray(rewards_R), ended_R, penalty=penalty))
    table = _table(case, rewards_R, texts, group=parts.episode.objective.group)
    return f"{_compared(case, scores_R)}\n\n{table}"


def _compared(case: Case, scores_R: np.ndarray) -> str:
    finite = scores_R[np.isfinite(scores_R)]
    quarters = ", ".join(f"{value:.4g}" for value in np.quantile(finite, (0, 0.25, 0.5, 0.75, 1)).tolist())
    now, then = float(scores_R.mean()), -case.seen[0]
    text = f"Sampled again: mean reward {now:.4g}; minimum, quartiles, maximum {quarters}. The update saw {then:.4g}."
    if not case.decision.trigger.suspect:
        return f"{text} The parameters have changed since then."
    if math.isclose(now, then, rel_tol=1e-4, abs_tol=1e-6):
        return f"{text} **The answers really have these rewards.**"
    return f"{text} **The same answers have other rewards now**: the rewards were corrupted, or are no pure function."


def _table(case: Case, rewards_R: np.ndarray, texts: list[str], *, group: int) -> str:
    prompts = [case.run.samples.row_text(case.rows, row) for row in range(len(texts) // group)]
    order = np.argsort(-rewards_R, kind="stable").tolist()
    lines = ["| reward | prompt | answer |", "|---|---|---|"]
    for row in dict.fromkeys([*order[:_SHOWN], *order[-_SHOWN:]]):
        cells = (printable(text, _LONGEST).replace("|", "\\|") for text in (prompts[row // group], texts[row]))
        lines.append(f"| {rewards_R[row]:.4g} | {' | '.join(cells)} |")
    return "\n".join(lines)
