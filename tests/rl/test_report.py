"""The report names the verdict, every measure, and the answers with the most and the least reward."""

from lmjax.rl import health, report
from lmjax.rl.report import Rewarded

SERIES = {
    "update": [float(n) for n in range(1, 31)],
    "reward": [n / 30 for n in range(1, 31)],
    "kl": [n / 10 for n in range(1, 31)],
    "finished": [0.5] * 30,
}


def test_the_report_has_verdict_measures_and_answers() -> None:
    answers = [Rewarded(f"prompt {n}", f"answer | {n}\nnext", n / 10) for n in range(10)]
    text = report.text(health.verdict(SERIES), SERIES, answers, best=0.75)
    assert text.startswith("# Reinforcement learning: learning\n")
    assert "| alarm | share of responses with an end token: 0.5" in text
    assert "Mean reward of 10 answers: 0.450." in text
    assert "has 0.750 on average" in text
    most, least = text.partition("### Most reward")[2].split("### Least reward")
    assert [f"prompt {n} " in most for n in range(10)] == [False] * 6 + [True] * 4
    assert [f"prompt {n} " in least for n in range(10)] == [True] * 4 + [False] * 6
    assert all(line.count(" | ") == 2 for line in most.splitlines() if line.startswith("| 0."))


def test_the_first_and_the_last_update_are_shown() -> None:
    lines = report.text(health.verdict(SERIES), SERIES, [], best=None).splitlines()
    rows = [line for line in lines if line.startswith("| ") and line.count("|") == 5]
    assert len(rows) == 1 + report.ROWS
    assert rows[1].startswith("| 1 | 0.03333 |")
    assert rows[-1].startswith("| 30 | 1 | 3 |")


def test_a_run_without_updates_has_a_report() -> None:
    assert "No update is recorded yet." in report.text(health.verdict({}), {}, [], best=None)


def test_a_known_truth_is_shown_next_to_the_reward() -> None:
    answers = [Rewarded("prompt", f"answer {n}", n / 10, truth=-n) for n in range(10)]
    text = report.text(health.verdict(SERIES), SERIES, answers, best=None)
    assert "Their mean true reward, which the policy never sees, is -4.500." in text
    assert "| reward | truth | prompt | answer |" in text
    assert "| 0.9 | -9 | prompt | answer 9 |" in text
    assert "truth" not in report.text(health.verdict(SERIES), SERIES, [Rewarded("a", "b", 1.0)], best=None)
