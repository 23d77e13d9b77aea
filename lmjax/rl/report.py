"""The report on reinforcement learning: a verdict, its evidence, and answers to read."""

from collections.abc import Sequence
from dataclasses import dataclass

from lmjax.config.errors import printable
from lmjax.rl.health import Series, Verdict

ROWS = 12  # of the table over updates
SHOWN = 4  # answers with the most, and with the least reward
_COLUMNS = ("update", "reward", "kl", "entropy", "length", "finished", "distinct", "clip_fraction")
_LONGEST = 500  # characters of a prompt or an answer


@dataclass(frozen=True)
class Rewarded:
    """An answer to a held-out prompt."""

    prompt: str
    answer: str
    reward: float
    #: True reward, if it is known.
    truth: float | None = None


def text(verdict: Verdict, series: Series, answers: Sequence[Rewarded], *, best: float | None) -> str:
    """Return the report as Markdown.

    Args:
        verdict: The verdict on the run.
        series: The measurements, as in `health`.
        answers: Answers of the trained policy to held-out prompts.
        best: Mean over the prompts of the best reward in a group of answers: what choosing the best sample would reach
            without further training. None: one answer to each prompt.
    """
    lines = [f"# Reinforcement learning: {verdict.word}", ""]
    lines += [f"- {sentence}" for sentence in verdict.evidence]
    if verdict.advice:
        lines += ["", "To try:", "", *(f"- {sentence}" for sentence in verdict.advice)]
    lines += ["", "## Measures", "", "| status | measure |", "|---|---|"]
    lines += [f"| {finding.status} | {_cell(str(finding))} |" for finding in verdict.findings]
    lines += ["", "## Updates", "", *_over_updates(series)]
    if answers:
        mean = sum(answer.reward for answer in answers) / len(answers)
        lines += ["", "## Answers to held-out prompts", "", f"Mean reward of {len(answers)} answers: {mean:.3f}."]
        if best is not None:
            lines.append(f"The best answer of each group has {best:.3f} on average.")
        truths = [answer.truth for answer in answers if answer.truth is not None]
        if truths:
            lines.append(f"Their mean true reward, which the policy never sees, is {sum(truths) / len(truths):.3f}.")
        ranked = sorted(answers, key=lambda answer: -answer.reward)
        for title, part in (("Most reward", ranked[:SHOWN]), ("Least reward", ranked[-SHOWN:])):
            lines += ["", f"### {title}", "", *_table(part, with_truth=bool(truths))]
    return "\n".join(lines) + "\n"


def _table(answers: Sequence[Rewarded], *, with_truth: bool) -> list[str]:
    names = ["reward", *["truth"] * with_truth, "prompt", "answer"]
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for answer in answers:
        truth = "" if answer.truth is None else f"{answer.truth:.3g}"
        cells = [f"{answer.reward:.3g}", *[truth] * with_truth, _cell(answer.prompt), _cell(answer.answer)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _over_updates(series: Series) -> list[str]:
    names = [name for name in _COLUMNS if name in series]
    count = len(series["update"]) if "update" in series else 0
    places = sorted({round(i * (count - 1) / max(ROWS - 1, 1)) for i in range(ROWS)}) if count else []
    header = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"] if places else ["No update is recorded yet."]
    return header + [f"| {' | '.join(f'{series[name][place]:.4g}' for name in names)} |" for place in places]


def _cell(text: str) -> str:
    """Return text for a cell of a table."""
    return printable(text, _LONGEST).replace("|", "\\|")
