"""Questions with verifiable answers."""

import itertools
from collections import Counter

from lmjax.config.rewards import ExactMatchConfig
from lmjax.data.sources import facts, verifiable
from lmjax.rl import rewards


def test_sorted_digits() -> None:
    rows = list(verifiable.sorting(1000))
    assert rows[:5] == list(verifiable.sorting(5))
    assert rows[:5] != list(verifiable.sorting(5, seed=1))
    for row, key in rows:
        digits = row["prompt"].removeprefix("Sort ").removesuffix(".")
        assert len(digits) == 7
        assert Counter(digits) == Counter(row["answer"])
        assert all(a <= b for a, b in itertools.pairwise(row["answer"]))
        assert key == row["answer"]
    assert len({row["prompt"] for row, _ in rows}) == 1000
    counts = Counter("".join(row["answer"] for row, _ in rows))
    assert set(counts) == set("0123456789")
    assert max(abs(count - 700) for count in counts.values()) < 4 * 25.1  # standard deviation of a count of 7000
    assert len(next(verifiable.sorting(1, digits=3))[0]["answer"]) == 3


def test_questions_about_numbers_and_dates_keep_their_key() -> None:
    for (row, key), (fact, fact_key) in itertools.islice(
        zip(verifiable.numbers_and_dates(), facts.conversations(), strict=True), 50
    ):
        assert (row, key) == ({"prompt": fact["prompt"], "answer": fact["completion"]}, fact_key)


def test_the_answers_get_the_reward() -> None:
    reward = rewards.build(ExactMatchConfig())
    rows = [row for row, _ in itertools.islice(verifiable.sorting(), 20)]
    asked = [row for row, _ in verifiable.conversations(itertools.islice(verifiable.sorting(), 20))]
    texts = [row["completion"] for row in asked]
    assert [row["prompt"] for row in asked] == [row["prompt"] for row in rows]
    assert rewards.score(reward, texts, rows).values_B.tolist() == [1] * 20
    assert rewards.score(reward, texts[1:] + texts[:1], rows).values_B.tolist() == [0] * 20


def test_fingerprints_differ() -> None:
    assert verifiable.fingerprint("sorting") != verifiable.fingerprint("numbers_and_dates")
