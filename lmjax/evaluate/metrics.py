"""The measures of one document, and how those of all documents become one number.

Log-probabilities are in nats, summed over the tokens of an answer. The names and definitions are those of
lm-evaluation-harness (Gao et al. 2021) where it has the measure; ties go to the first choice, as there.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lmjax.config import UserError

PRIMARY = {  # the measure of each kind of task that a curve shows
    "choose": "acc",
    "match": "exact_match",
    "generate": "exact_match",
    "pairs": "acc",
    "perplexity": "bits_per_byte",
}
UNITS = {
    "token_perplexity": "tokens",
    "word_perplexity": "words",
    "byte_perplexity": "bytes",
    "bits_per_byte": "bytes",
}


def lower_is_better(metric: str) -> bool:
    return metric == "brier" or metric in UNITS


def has_chance(metric: str) -> bool:
    """Whether the metric is an accuracy, which the `chance` of a task is to be compared with."""
    return metric == "exact_match" or metric.split("_")[0] == "acc"


# ---- One document -----------------------------------------------------------------------------------------------


def choose(
    logprobs: Sequence[float],
    choices: Sequence[str],
    *,
    gold: int,
    unconditional: Sequence[float] | None = None,
    content_free: Sequence[Sequence[float]] = (),
) -> dict[str, float]:
    """Measures of a choice among texts, by the log-probability of each after the prompt; 1.0 where `gold` is taken.

    acc: the largest is taken. acc_norm: divided by the characters of the choice; acc_bytes: by its UTF-8 bytes.
    brier: squared distance of the probabilities, normalised over the choices, from the one-hot truth, summed over the
        choices: 0 to 2, lower is better (Brier 1950).
    acc_mutual_info, given `unconditional`, the log-probabilities after an empty context: minus these, which is the
        pointwise mutual information of prompt and choice (Holtzman et al. 2021, section 2).
    acc_calibrated, given `content_free`, the log-probabilities after one or several inputs that say nothing ("N/A"):
        the normalised probabilities divided by the mean of theirs (Zhao et al. 2021, section 5).
    """
    scores_C = np.asarray(logprobs, np.float64)
    assert len(scores_C) == len(choices) > gold >= 0
    characters_C = np.array([len(choice) for choice in choices], np.float64)
    bytes_C = np.array([len(choice.encode()) for choice in choices], np.float64)
    found = {
        "acc": scores_C,
        "acc_norm": scores_C / np.maximum(characters_C, 1),
        "acc_bytes": scores_C / np.maximum(bytes_C, 1),
    }
    if unconditional is not None:
        found["acc_mutual_info"] = scores_C - np.asarray(unconditional, np.float64)
    if len(content_free):
        prior_C = np.mean([_normalised(np.asarray(row, np.float64)) for row in content_free], axis=0)
        found["acc_calibrated"] = scores_C - np.log(np.maximum(prior_C, np.finfo(np.float64).tiny))
    hits = {name: float(np.argmax(values_C) == gold) for name, values_C in found.items()}
    error_C = _normalised(scores_C) - np.eye(len(choices))[gold]
    return hits | {"brier": float(np.sum(error_C**2))}


def pairs(logprobs: Sequence[float], *, gold: int) -> dict[str, float]:
    """acc: the right one of two whole texts is the likelier (BLiMP, Warstadt et al. 2020, section 4)."""
    return {"acc": float(np.argmax(logprobs) == gold)}


def match(responses: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Measures of the accepted answers, each by (log-probability, whether every token is the model's likeliest).

    exact_match: greedy decoding gives one of them (LAMBADA's accuracy, Paperno et al. 2016; lm-evaluation-harness
    calls it acc). logprob: of the likeliest of them.
    """
    return {
        "exact_match": float(any(greedy for _, greedy in responses)),
        "logprob": float(max(logprob for logprob, _ in responses)),
    }


def generate(
    text: str,
    answers: Sequence[str],
    *,
    filters: Sequence[str] = (),
    ignore_case: bool = True,
    ignore_punctuation: bool = False,
) -> dict[str, float]:
    """Measures of a generated text against the accepted answers, the best over these, after `filters` (see `extract`).

    exact_match: the same text, without blanks at its ends, and with case and ASCII punctuation folded as asked.
    f1: harmonic mean of precision and recall of the words, as bags, in SQuAD's normal form: lower case, without
        punctuation and articles (Rajpurkar et al. 2016, section 6.1).
    """
    found = extract(text, filters)
    if found is None:
        return {"exact_match": 0.0, "f1": 0.0}
    folds = {"ignore_case": ignore_case, "ignore_punctuation": ignore_punctuation}
    same = any(fold(found, **folds) == fold(answer, **folds) for answer in answers)
    return {"exact_match": float(same), "f1": max(_f1(found, answer) for answer in answers)}


def extract(text: str, filters: Sequence[str]) -> str | None:
    """`text` after regular expressions in turn: each keeps the first group that took part in its first match, or the
    whole match; None where one does not match. UserError: not a regular expression."""
    for pattern in filters:
        try:
            found = re.search(pattern, text)
        except re.error as error:
            raise UserError(f"the filter {pattern!r} is not a regular expression: {error}") from None
        if not found:
            return None
        text = next((group for group in found.groups() if group), found[0])
    return text


def fold(text: str, *, ignore_case: bool, ignore_punctuation: bool) -> str:
    """`text` as exact_match compares it."""
    text = text.lower() if ignore_case else text
    return (_without_punctuation(text) if ignore_punctuation else text).strip()


def perplexity(logprob: float, text: str, *, tokens: int) -> dict[str, float]:
    """What the perplexities are made of: log-probability, tokens, words (runs between white space) and UTF-8 bytes."""
    counts = {"tokens": tokens, "words": len(re.split(r"\s+", text)), "bytes": len(text.encode())}
    return {"logprob": float(logprob)} | {name: float(count) for name, count in counts.items()}


def _normalised(logprobs_C: np.ndarray) -> np.ndarray:
    weights_C = np.exp(logprobs_C - logprobs_C.max())
    return weights_C / weights_C.sum()


def _without_punctuation(text: str) -> str:
    return text.translate(str.maketrans("", "", string.punctuation))


def _f1(text: str, answer: str) -> float:
    words, wanted = (
        re.sub(r"\b(a|an|the)\b", " ", _without_punctuation(side.lower())).split() for side in (text, answer)
    )
    if not words or not wanted:
        return float(words == wanted)
    return 2 * (Counter(words) & Counter(wanted)).total() / (len(words) + len(wanted))


# ---- All documents ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistic:
    """One number of all documents: a function of the ratio of two sums over them.

    value, weight: the measures that are added up; without a weight each document counts 1, and the ratio is the mean.
    form: `mean` is the ratio r itself, `perplexity` exp(-r), `bits` -r / ln 2.
    """

    value: str
    weight: str = ""
    form: Literal["mean", "perplexity", "bits"] = "mean"

    def of(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The number, from the sums of values and weights (arrays of one shape)."""
        ratio = values / weights
        if self.form == "mean":
            return ratio
        return np.exp(-ratio) if self.form == "perplexity" else -ratio / np.log(2)

    def influences(self, values_D: np.ndarray, weights_D: np.ndarray) -> np.ndarray:
        """What each of D documents moves the number by, times D, to first order; of a mean the deviations from it.

        Their sample standard deviation / sqrt(D) is the standard error: exact for a mean, the delta method otherwise.
        """
        ratio = values_D.sum() / weights_D.sum()
        slope = {"mean": 1.0, "perplexity": -np.exp(-ratio), "bits": -1 / np.log(2)}[self.form]
        return slope * (values_D - ratio * weights_D) / weights_D.mean()


def statistics(kind: str, measures: Sequence[str]) -> dict[str, Statistic]:
    """The metrics of a kind of task whose documents have these measures.

    Perplexities are of the whole text, exp(-sum of log-probabilities / sum of units), as lm-evaluation-harness has
    them; every other measure is averaged over the documents.
    """
    if kind != "perplexity":
        return {name: Statistic(name) for name in measures}
    return {
        name: Statistic("logprob", unit, "bits" if name == "bits_per_byte" else "perplexity")
        for name, unit in UNITS.items()
    }


def standard_error(influences_D: np.ndarray) -> float:
    """Sample standard deviation (N - 1) / sqrt(N); NaN of fewer than two documents."""
    count = len(influences_D)
    return float(np.std(influences_D, ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
