"""Generated reviews: their true reward against sums by hand, drawn preferences, probes, and fixed texts."""

import hashlib
import itertools
import json
import math
import statistics
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.data.sources import reviews
from lmjax.tasks.draws import Choices

BEST = "The soup was perfect and tasty. The waiter was kind. It was cheap. I will come back. The room was quiet."


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("", 0),
        ("The soup was perfect and tasty.", (2 + 1.5) / 2),
        ("The soup was awful and warm.", (-2 + 1) / 2),
        ("The soup was perfect and perfect.", 2 / 2 - 1),
        ("It was cheap. It was cheap.", 1 / 2 - 1),
        ("It was cheap. It was expensive.", 1 / 2 - 1),  # a second sentence about the price
        ("The waiter was kind. The cook was rude.", 1.5 / 2 - 1),
        ("The tea was perfect and tasty.", -1),
        ("The brip was perfect and tasty. I will come back.", -1 + 1 / 2),
        ("I will come back", -1),  # without its period
        ("It was cheap. The room was", 1 / 2 - 1),
        (" It was cheap.  We ate at once.\n", (1 + 0.5) / 2),
        ("..", -2),
        ("it was cheap.", -1),
        (BEST, (3.5 + 1.5 + 1 + 1 + 0.5) / 2),
        (BEST + " We ate at once.", (3.5 + 1.5 + 1 + 1 + 0.5 + 0.5) / 2 - 0.4),
        (BEST + " It was cheap. It was cheap.", (3.5 + 1.5 + 1 + 1 + 0.5) / 2 - 2 - 0.8),
    ],
)
def test_the_true_reward(text: str, reward: float) -> None:
    assert reviews.true_reward(text, "soup") == pytest.approx(reward, abs=1e-12)


def test_the_best_reviews_are_of_five_or_six_sentences() -> None:
    """All choices of one statement about each subject, the best of which is 3.75."""
    subjects = [[*texts, ""] for texts in reviews._STATEMENTS.values()]
    texts = (" ".join(filter(None, parts)) for parts in itertools.product(*subjects))
    best = max(reviews.true_reward(f"The tea was perfect and tasty. {text}", "tea") for text in texts)
    assert best == pytest.approx(3.75)


def test_reviews_are_clean_and_the_same_every_time() -> None:
    rows = [row for row, _ in reviews.conversations(1500)]
    assert rows[:3] == [row for row, _ in reviews.conversations(3)]
    assert [row for row, _ in reviews.conversations(3, seed=1)] != rows[:3]
    lengths = Counter()
    for row in rows:
        sentences = reviews.sentences_of(row["completion"])
        lengths[len(sentences)] += 1
        valence = sum(reviews.true_reward(sentence, row["dish"]) for sentence in sentences)
        penalty = 0.4 * max(0, len(sentences) - 5)
        assert reviews.true_reward(row["completion"], row["dish"]) == pytest.approx(valence - penalty)  # no repetition
        assert row["dish"] in row["prompt"]
    assert set(lengths) == {3, 4, 5, 6}
    # 2, 5, 7 and 2 of 16, within four standard deviations
    assert all(abs(lengths[n] / 1500 - weight / 16) < 0.06 for n, weight in {3: 2, 4: 5, 5: 7, 6: 2}.items())
    rewards = [reviews.true_reward(row["completion"], row["dish"]) for row in rows]
    assert abs(statistics.mean(rewards)) < 0.3
    assert 1.5 < statistics.stdev(rewards) < 2.5
    words = statistics.mean(len(row["completion"].replace(".", " .").split()) + 1 for row in rows)
    assert 24 < words < 26  # with the end, tokens of a vocabulary that has all words


def test_texts_do_not_change() -> None:
    """Changed texts would give old runs other data: then raise FORMAT and these hashes."""
    rows = [*itertools.islice(reviews.conversations(), 200), *itertools.islice(reviews.pairs(), 200)]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert (reviews.FORMAT, digest[:16]) == (1, "aab750033dffa39f")


def test_the_dish_of_a_prompt_is_found() -> None:
    assert all(reviews.dish_of(f"<|user|>{row['prompt']}<|assistant|>") == row["dish"] for row in reviews.prompts())
    with pytest.raises(ValueError, match="no dish"):
        reviews.dish_of("How was the teapot?")


def test_prompts_name_each_dish() -> None:
    assert len({row["prompt"] for row in reviews.prompts()}) == 32
    assert all(row["dish"] in row["prompt"] for row in reviews.prompts())
    assert next(reviews.documents()).startswith(next(reviews.conversations())[0]["prompt"])


# ---- Preferences --------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.floats(-20, 20))
def test_the_probability_of_a_preference_is_a_sigmoid(difference: float) -> None:
    assert reviews.preference_probability(difference) == pytest.approx(1 / (1 + math.exp(-1.5 * difference)), abs=1e-12)
    assert reviews.preference_probability(-1000) == 0


def test_preferences_have_the_stated_probability_and_invert_with_the_sides() -> None:
    better, worse = "It was cheap.", "We ate at once."  # 0.5 against 0.25
    drawn = [reviews.prefers_first(better, worse, "soup", seed=seed) for seed in range(4000)]
    expected = 1 / (1 + math.exp(-1.5 * 0.25))
    assert abs(statistics.mean(drawn) - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)
    assert drawn == [not reviews.prefers_first(worse, better, "soup", seed=seed) for seed in range(4000)]


def test_pairs_are_as_noisy_as_stated() -> None:
    rows = [row for row, _ in reviews.pairs(1500)]
    chosen, rejected = (
        [reviews.true_reward(row[side], row["dish"]) for row in rows] for side in ("chosen", "rejected")
    )
    differences = [a - b for a, b in zip(chosen, rejected, strict=True)]
    assert all(row["chosen"] != row["rejected"] for row in rows)
    right = statistics.mean((d > 0) + 0.5 * (d == 0) for d in differences)
    bayes = reviews.bayes_accuracy(differences)
    assert 0.8 < bayes < 0.95
    assert abs(right - bayes) < 4 * math.sqrt(bayes * (1 - bayes) / 1500)
    keys = {(key, row["prompt"]) for row, key in reviews.pairs(20)}
    assert all(key == prompt for key, prompt in keys)
    clean = [row for row, _ in reviews.pairs(300, flawed=0)]
    sentences = [s for row in clean for side in ("chosen", "rejected") for s in reviews.sentences_of(row[side])]
    assert not any(reviews.true_reward(s, "soup") == -1 and "soup" in s for s in sentences)


# ---- Probes -------------------------------------------------------------------------------------------------------


def test_probes_change_a_review_as_their_names_say() -> None:
    text = "The soup was perfect and warm. It was cheap. I will come back."
    changed = reviews.probes(text, "soup")
    assert list(changed) == list(reviews.PROBES)
    assert changed["last sentence said twice"] == f"{text} I will come back."
    assert changed["both words about the dish the same"].startswith("The soup was perfect and perfect. It was cheap.")
    assert changed["last sentence left out"] == "The soup was perfect and warm. It was cheap."
    assert sorted(changed["words shuffled"].split()) == sorted(text.split())
    assert changed["another dish"].split()[1] in set(reviews.DISHES) - {"soup"}
    assert changed["a nonsense word for the dish"].split()[1] not in reviews.DISHES
    change = {name: reviews.true_reward(form, "soup") - 2.5 for name, form in changed.items()}
    assert change["last sentence said twice"] == -1
    assert change["both words about the dish the same"] == -1 - 0.5  # warm is no longer said
    assert change["another dish"] == change["a nonsense word for the dish"] == -1 - 1.5
    assert change["last sentence left out"] == -0.5
    assert change["words shuffled"] < -2
    assert reviews.probes(text, "soup") == changed


@settings(max_examples=40)
@given(st.text("The soup was.tea ", max_size=40), st.sampled_from(reviews.DISHES))
def test_any_text_has_a_reward_and_can_be_probed(text: str, dish: str) -> None:
    assert -50 < reviews.true_reward(text, dish) <= 3.75
    for form in reviews.probes(text, dish).values():
        assert form != text
        reviews.true_reward(form, dish)


def test_a_review_is_a_function_of_its_choices() -> None:
    assert reviews.review(Choices("a"), "tea") == reviews.review(Choices("a"), "tea")
    assert reviews.fingerprint() == {"source": "reviews", "reviews": reviews.FORMAT}
