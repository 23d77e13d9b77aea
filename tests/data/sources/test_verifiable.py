"""Questions with verifiable answers."""

import itertools
from collections import Counter

from lmjax.config.rewards import ExactMatchConfig
from lmjax.data.sources import verifiable
from lmjax.rl import rewards


def test_sorted_digits() -> None:
    rows = list(verifiable.conversations(1000))
    assert rows[:5] == list(verifiable.conversations(5))
    assert rows[:5] != list(verifiable.conversations(5, seed=1))
    for row, key in rows:
        digits = row["prompt"].removeprefix("Sort ").removesuffix(".")
        assert len(digits) == 7
        assert Counter(digits) == Counter(row["completion"])
        assert all(a <= b for a, b in itertools.pairwise(row["completion"]))
        assert key == row["completion"]
    assert len({row["prompt"] for row, _ in rows}) == 1000
    counts = Counter("".join(row["completion"] for row, _ in rows))
    assert set(counts) == set("0123456789")
    assert max(abs(count - 700) for count in counts.values()) < 4 * 25.1  # standard deviation of a count of 7000
    assert len(next(verifiable.conversations(1, digits=3))[0]["completion"]) == 3


def test_the_answers_get_the_reward() -> None:
    reward = rewards.build(ExactMatchConfig())
    rows = [{"answer": row["completion"]} for row, _ in verifiable.conversations(20)]
    texts = [row["answer"] for row in rows]
    assert rewards.score(reward, texts, rows).values_B.tolist() == [1] * 20
    assert rewards.score(reward, texts[1:] + texts[:1], rows).values_B.tolist() == [0] * 20
