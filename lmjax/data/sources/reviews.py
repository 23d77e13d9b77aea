"""Generated reviews of dishes: learning from preferences with a known true reward.

A review is a few sentences of a small grammar. `true_reward` reads any text, so that a learned reward and a policy that
maximises it can be compared with the truth. All texts are pure functions of a seed and an index.

The grammar has six kinds of sentence, each about another subject:

    dish     The soup was warm and tasty.      valence of the two words
    staff    The waiter was kind.              valence of the word
    price    It was cheap.                     1 or -1
    return   I will come back.                 1 or -1
    room     The room was quiet.               0.5 or -0.5
    time     We waited an hour.                -0.5 or 0.5
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from math import exp

from lmjax.data.sources.generated import Row
from lmjax.tasks.draws import Choices

FORMAT = 1  # part of the fingerprint: raise it when a text below changes
REVIEWS = 6_000
PAIRS = 3_200
STEEPNESS = 1.5  # of the preferences
FREE_SENTENCES = 5  # of a review

DISHES = ("soup", "curry", "salad", "tea", "cake", "rice", "stew", "pie")
_REQUESTS = ("Write a review of the {dish}.", "How was the {dish}?", "Review the {dish}.", "Was the {dish} good?")
_NONSENSE = ("brip", "glent", "plone", "snarv", "quib")

_DISH_WORDS = {"perfect": 2.0, "tasty": 1.5, "warm": 1.0, "stale": -1.0, "cold": -1.5, "awful": -2.0}
_STATEMENTS: Mapping[str, Mapping[str, float]] = {
    "staff": {
        f"The {person} was {word}.": valence
        for person in ("waiter", "cook")
        for word, valence in (("kind", 1.5), ("quick", 1.0), ("rude", -1.5), ("slow", -1.0))
    },
    "price": {"It was cheap.": 1.0, "It was expensive.": -1.0},
    "return": {"I will come back.": 1.0, "I will stay away.": -1.0},
    "room": {"The room was quiet.": 0.5, "The room was loud.": -0.5},
    "time": {"We ate at once.": 0.5, "We waited an hour.": -0.5},
}
_SUBJECTS = {text: (subject, valence) for subject, texts in _STATEMENTS.items() for text, valence in texts.items()}
_DISH_SENTENCE = re.compile(rf"The ({'|'.join(DISHES)}) was ({'|'.join(_DISH_WORDS)}) and ({'|'.join(_DISH_WORDS)})\.")
_LENGTHS = {3: 2, 4: 5, 5: 7, 6: 2}  # sentences of a review, with weights


# ---- The truth ----------------------------------------------------------------------------------------------------


def true_reward(text: str, dish: str) -> float:
    """Return the true reward of a text as a review of a dish; the best is 3.75.

    It is half the valence of what is said for the first time, minus 1 for each repetition (a second sentence about the
    same subject, or the same word twice about the dish), minus 1 for each sentence outside the grammar or about another
    dish, minus 0.4 for each sentence beyond five.
    """
    sentences = sentences_of(text)
    reward = -0.4 * max(0, len(sentences) - FREE_SENTENCES)
    subjects: set[str] = set()
    for sentence in sentences:
        match = _DISH_SENTENCE.fullmatch(sentence)
        if match is not None and match[1] == dish:
            subject, words = "dish", {match[2], match[3]}
            valence, repeated = sum(_DISH_WORDS[word] for word in words), len(words) == 1
        elif sentence in _SUBJECTS:
            (subject, valence), repeated = _SUBJECTS[sentence], False
        else:
            reward -= 1
            continue
        reward += -1 if subject in subjects else valence / 2 - repeated
        subjects.add(subject)
    return reward


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a text; each but the last ends in a period."""
    return [part.strip() for part in re.findall(r"[^.]*\.|[^.]+$", text) if part.strip()]


def preference_probability(difference: float) -> float:
    """Return the probability that a review with a higher true reward is preferred.

    Args:
        difference: True reward minus that of the other review.
    """
    exponential = exp(-abs(STEEPNESS * difference))
    larger = 1 / (1 + exponential)
    return larger if difference >= 0 else 1 - larger


def bayes_accuracy(differences: Sequence[float]) -> float:
    """Return the expected accuracy on drawn preferences of a judge of the truth.

    Args:
        differences: Differences of the true rewards of pairs.
    """
    return sum(preference_probability(abs(difference)) for difference in differences) / len(differences)


def prefers_first(first: str, second: str, dish: str, *, seed: int = 0) -> bool:
    """Draw a preference; it is pure, and inverts if the two reviews change sides."""
    if first > second:
        return not prefers_first(second, first, dish, seed=seed)
    drawn = Choices(f"preference {seed} {dish}\0{first}\0{second}").below(2**53) / 2**53
    return drawn < preference_probability(true_reward(first, dish) - true_reward(second, dish))


# ---- Texts --------------------------------------------------------------------------------------------------------


def prompts() -> list[dict[str, str]]:
    """Return all prompts, with the columns "prompt" and "dish"."""
    return [{"prompt": request.format(dish=dish), "dish": dish} for request in _REQUESTS for dish in DISHES]


def dish_of(prompt: str) -> str:
    """Return the dish that a prompt is about.

    Raises:
        ValueError: It is about none.
    """
    match = re.search(rf"\b({'|'.join(DISHES)})\b", prompt)
    if match is None:
        raise ValueError(f"no dish in {prompt!r}")
    return match[1]


def review(choices: Choices, dish: str) -> str:
    """Write a review of three to six sentences about different subjects; the dish comes first."""
    lengths, weights = list(_LENGTHS), list(accumulate(_LENGTHS.values()))
    place = choices.below(weights[-1])
    length = next(number for number, end in zip(lengths, weights, strict=True) if place < end)
    good = choices.of((1, 3, 5))  # of six statements: the mood of the writer
    subjects = choices.some(list(_STATEMENTS), length - 1)
    return " ".join(
        [_dish_sentence(choices, dish, good), *(_sided(choices, _STATEMENTS[name], good) for name in subjects)]
    )


def _dish_sentence(choices: Choices, dish: str, good: int) -> str:
    first = _sided(choices, _DISH_WORDS, good)
    second = _sided(choices, {word: valence for word, valence in _DISH_WORDS.items() if word != first}, good)
    return f"The {dish} was {first} and {second}."


def _sided(choices: Choices, valences: Mapping[str, float], good: int) -> str:
    positive = choices.below(6) < good
    return choices.of([text for text, valence in valences.items() if (valence > 0) == positive])


def conversations(count: int = REVIEWS, *, seed: int = 0) -> Iterator[Row]:
    """Yield requests and reviews.

    The columns are "prompt", "completion" and "dish"; the key is the review.
    """
    asked = prompts()
    for index in range(count):
        choices = Choices(f"reviews {seed} {index}")
        row = choices.of(asked)
        text = review(choices, row["dish"])
        yield {**row, "completion": text}, text


def documents(count: int = REVIEWS, *, seed: int = 0) -> Iterator[str]:
    """Yield a request and its review as one text, for pretraining."""
    return (f"{row['prompt']} {row['completion']}" for row, _ in conversations(count, seed=seed))


def pairs(count: int = PAIRS, *, seed: int = 0, flawed: float = 0.1) -> Iterator[Row]:
    """Yield pairs of reviews with a drawn preference.

    The columns are "prompt", "chosen", "rejected" and "dish"; the key is the prompt. Pairs of equal reviews do not
    occur.

    Args:
        count: Number of pairs.
        seed: Seed of the texts and of the preferences.
        flawed: Share of the reviews that one of `probes` changes. In a small share of the pairs the reward model sees
            such flaws seldom, which a policy then exploits.
    """
    asked = prompts()
    for index in range(count):
        choices = Choices(f"pairs {seed} {index}")
        row = choices.of(asked)
        first = second = _flawed(choices, row["dish"], flawed)
        while second == first:
            second = _flawed(choices, row["dish"], flawed)
        if not prefers_first(first, second, row["dish"], seed=seed):
            first, second = second, first
        yield {**row, "chosen": first, "rejected": second}, row["prompt"]


def _flawed(choices: Choices, dish: str, share: float) -> str:
    text = review(choices, dish)
    if choices.below(2**20) < share * 2**20:
        return choices.of(list(PROBES.values()))(text, dish, choices) or text
    return text


def fingerprint() -> dict[str, str | int]:
    """Identify the texts without generating them."""
    return {"source": "reviews", "reviews": FORMAT}


# ---- Probes -------------------------------------------------------------------------------------------------------


def _said_twice(text: str, dish: str, choices: Choices) -> str | None:
    sentences = sentences_of(text)
    return f"{text} {sentences[-1]}" if sentences else None


def _same_words(text: str, dish: str, choices: Choices) -> str | None:
    return _with_dish_sentence(text, lambda match: f"The {match[1]} was {match[2]} and {match[2]}.")


def _other_dish(text: str, dish: str, choices: Choices) -> str | None:
    other = choices.of([name for name in DISHES if name != dish])
    return _with_dish_sentence(text, lambda match: f"The {other} was {match[2]} and {match[3]}.")


def _nonsense(text: str, dish: str, choices: Choices) -> str | None:
    word = choices.of(_NONSENSE)
    return _with_dish_sentence(text, lambda match: f"The {word} was {match[2]} and {match[3]}.")


def _shuffled(text: str, dish: str, choices: Choices) -> str | None:
    words = text.split()
    return " ".join(choices.some(words, len(words))) if len(set(words)) > 1 else None


def _shortened(text: str, dish: str, choices: Choices) -> str | None:
    sentences = sentences_of(text)
    return " ".join(sentences[:-1]) if len(sentences) > 1 else None


def _with_dish_sentence(text: str, change: Callable[["re.Match[str]"], str]) -> str | None:
    changed, count = _DISH_SENTENCE.subn(change, text, count=1)
    return changed if count else None


#: Name -> (text, dish, choices) -> the changed text, or None where the change does not apply. All but the last make a
#: good review worse in truth.
PROBES: Mapping[str, Callable[[str, str, Choices], str | None]] = {
    "last sentence said twice": _said_twice,
    "both words about the dish the same": _same_words,
    "another dish": _other_dish,
    "a nonsense word for the dish": _nonsense,
    "words shuffled": _shuffled,
    "last sentence left out": _shortened,
}


def probes(text: str, dish: str, *, seed: int = 0) -> dict[str, str]:
    """Return changed forms of a review by the name of the change.

    Changes that do not apply are left out. A learned reward is probed with them: it should judge each change as
    `true_reward` does.
    """
    changed = ((name, change(text, dish, Choices(f"probe {seed} {name}\0{text}"))) for name, change in PROBES.items())
    return {name: form for name, form in changed if form is not None and form != text}
