"""Measures of a single document, and their aggregation over all documents.

Log-probabilities are in nats, summed over the tokens of an answer. The names and definitions are those of
lm-evaluation-harness (Gao et al. 2021) where it has the measure; ties go to the first choice, as there.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lmjax.config import UserError
from lmjax.evaluation import text_metrics
from lmjax.system.time_limit import search

PRIMARY = {  # the main metric of each kind of task
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
_SIZES = ("tokens", "words")  # of the answer of a `match` task


def lower_is_better(metric: str) -> bool:
    """Whether lower values of the metric are better."""
    return metric in ("brier", "perplexity") or metric in UNITS


def has_chance(metric: str) -> bool:
    """Whether the metric is an accuracy, which is comparable to the `chance` of a task."""
    return metric == "exact_match" or metric.split("_")[0] == "acc"


# ---- One document -----------------------------------------------------------------------------------------------


def choose(
    logprobs: Sequence[float],
    choices: Sequence[str],
    *,
    gold: int,
    grades: Sequence[float] = (),
    unconditional: Sequence[float] | None = None,
    content_free: Sequence[Sequence[float]] = (),
) -> dict[str, float]:
    """Compute the measures of a choice among texts.

    Accuracies are 1.0 if the choice with the largest score is `gold` or has the best grade, else 0.0.

    acc: the score is the log-probability. acc_norm: divided by the number of characters of the choice. acc_bytes:
        divided by its number of UTF-8 bytes.
    brier: squared distance of the probabilities, normalised over the choices, from the one-hot truth, summed over the
        choices: 0 to 2, lower is better (Brier 1950). Only where a single choice is right.
    multiple_choice_grade, with `grades`: the grade of the choice with the largest log-probability (Srivastava et al.
        2022).
    acc_mutual_info, with `unconditional`: the log-probability minus the unconditional one, which is the pointwise
        mutual information of prompt and choice (Holtzman et al. 2021, section 2).
    acc_calibrated, with `content_free`: the normalised probabilities divided by the mean of the normalised
        content-free probabilities (Zhao et al. 2021, section 5).

    Args:
        logprobs: Log-probability of each choice after the prompt.
        choices: The texts.
        gold: Index of the correct choice.
        grades: Grade of each choice.
        unconditional: Log-probabilities after an empty context.
        content_free: Log-probabilities after one or several content-free inputs such as "N/A".

    Raises:
        UserError: A score is not a number, or no choice has a probability above 0.
    """
    scores_C = np.asarray(logprobs, np.float64)
    assert len(scores_C) == len(choices) > gold >= 0
    values = _choice_scores(scores_C, choices, unconditional, content_free)
    highest = max(grades, default=0)
    right = {gold, *(i for i, grade in enumerate(grades) if grade == highest)}
    measures = {name: float(best(values_C) in right) for name, values_C in values.items()}
    if grades:
        measures["multiple_choice_grade"] = float(grades[best(scores_C)])
    if len(right) == 1:
        error_C = _normalised(scores_C)
        error_C[gold] -= 1
        measures["brier"] = float(np.sum(error_C**2))
    return measures


def _choice_scores(
    scores_C: np.ndarray,
    choices: Sequence[str],
    unconditional: Sequence[float] | None,
    content_free: Sequence[Sequence[float]],
) -> dict[str, np.ndarray]:
    """The scores that the accuracies of `choose` compare, by the name of the accuracy."""
    characters_C = np.array([len(choice) for choice in choices], np.float64)
    bytes_C = np.array([len(choice.encode()) for choice in choices], np.float64)
    values = {
        "acc": scores_C,
        "acc_norm": scores_C / np.maximum(characters_C, 1),
        "acc_bytes": scores_C / np.maximum(bytes_C, 1),
    }
    if unconditional is not None:
        unconditional_C = np.asarray(unconditional, np.float64)
        best(unconditional_C)
        values["acc_mutual_info"] = scores_C - unconditional_C
    if len(content_free):
        for row in content_free:
            best(row)
        prior_C = np.mean([_normalised(np.asarray(row, np.float64)) for row in content_free], axis=0)
        values["acc_calibrated"] = scores_C - np.log(np.maximum(prior_C, np.finfo(np.float64).tiny))
    return values


def best(scores: Sequence[float] | np.ndarray) -> int:
    """Return the index of the largest score; ties go to the first.

    Raises:
        UserError: A score is not a number or positive infinity, or all scores are those of probability 0.
    """
    scores_C = np.asarray(scores, np.float64)
    for place in np.flatnonzero(np.isnan(scores_C) | (scores_C == np.inf)):
        raise UserError(f"the score of option {place} is {scores_C[place]}, which has no rank; check the weights")
    if not np.isfinite(scores_C).any():
        raise UserError("every option has probability 0, so that none is the likeliest; check the weights")
    return int(np.argmax(scores_C))


def pairs(logprobs: Sequence[float], *, gold: int) -> dict[str, float]:
    """Measures of a pair of texts.

    acc: the correct text has the larger log-probability (BLiMP, Warstadt et al. 2020, section 4).
    """
    return {"acc": float(best(logprobs) == gold)}


def match(responses: Sequence[tuple[float, bool]], sizes: Sequence[tuple[int, int]] = ()) -> dict[str, float]:
    """Measures of accepted answers: (log-probability, whether greedy decoding gives it).

    exact_match: greedy decoding gives an accepted answer (LAMBADA's accuracy, Paperno et al. 2016; acc in
    lm-evaluation-harness). logprob: the largest log-probability of an accepted answer; its tokens and words, with
    `sizes`, are the terms of perplexities.

    Args:
        responses: The responses.
        sizes: Numbers of tokens and words of each answer.

    Raises:
        UserError: A log-probability is not a number.
    """
    logprobs = [logprob for logprob, _ in responses]
    likeliest = best(logprobs) if max(logprobs) != -np.inf else 0
    measures = {
        "exact_match": float(any(greedy for _, greedy in responses)),
        "logprob": float(logprobs[likeliest]),
    }
    return measures | (dict(zip(_SIZES, map(float, sizes[likeliest]), strict=True)) if sizes else {})


def generate(
    text: str,
    answers: Sequence[str],
    *,
    filters: Sequence[str] = (),
    ignore_case: bool = True,
    ignore_punctuation: bool = False,
    metrics: Sequence[str] = (),
) -> dict[str, float]:
    """Measures of a generated text: the best match with an accepted answer.

    exact_match: equality after stripping white space, and after folding case and ASCII punctuation as requested.
    f1: harmonic mean of precision and recall of the bags of words, in SQuAD's normal form: lower case, without
        punctuation and articles (Rajpurkar et al. 2016, section 6.1).

    Args:
        text: The generated text.
        answers: The accepted answers.
        filters: Regular expressions that extract the answer from `text` (see `extract`).
        ignore_case: Fold case for exact_match.
        ignore_punctuation: Remove ASCII punctuation for exact_match.
        metrics: Further metrics, see `text_metrics.measures`.
    """
    extracted = extract(text, filters)
    further = text_metrics.measures(extracted or "", answers, metrics)
    if extracted is None:
        return {"exact_match": 0.0, "f1": 0.0, **further}
    folds = {"ignore_case": ignore_case, "ignore_punctuation": ignore_punctuation}
    same = any(fold(extracted, **folds) == fold(answer, **folds) for answer in answers)
    return {"exact_match": float(same), "f1": max(_f1(extracted, answer) for answer in answers), **further}


def extract(text: str, filters: Sequence[str]) -> str | None:
    """Apply regular expressions to `text`, one after another; None if one does not match.

    Each keeps the first group that took part in its first match, or the complete match.

    Raises:
        UserError: A filter is not a regular expression, or a search takes too long.
    """
    for pattern in filters:
        try:
            matched = search(pattern, text)
        except re.error as error:
            raise UserError(f"the filter {pattern!r} is not a regular expression: {error}") from None
        if not matched:
            return None
        text = next((group for group in matched.groups() if group), matched[0])
    return text


def fold(text: str, *, ignore_case: bool, ignore_punctuation: bool) -> str:
    """Normalise `text` for exact_match."""
    text = text.lower() if ignore_case else text
    return (_without_punctuation(text) if ignore_punctuation else text).strip()


def perplexity(logprob: float, text: str, *, tokens: int) -> dict[str, float]:
    """The terms of perplexities: log-probability, tokens, words and UTF-8 bytes.

    Words are separated by white space.
    """
    counts = {"tokens": tokens, "words": len(re.split(r"\s+", text)), "bytes": len(text.encode())}
    return {"logprob": float(logprob)} | {name: float(count) for name, count in counts.items()}


def _normalised(logprobs_C: np.ndarray) -> np.ndarray:
    weights_C = np.exp(logprobs_C - logprobs_C.max())
    return weights_C / weights_C.sum()


def _without_punctuation(text: str) -> str:
    return text.translate(str.maketrans("", "", string.punctuation))


def _f1(text: str, answer: str) -> float:
    words, answer_words = (
        re.sub(r"\b(a|an|the)\b", " ", _without_punctuation(side.lower())).split() for side in (text, answer)
    )
    if not words or not answer_words:
        return float(words == answer_words)
    return 2 * (Counter(words) & Counter(answer_words)).total() / (len(words) + len(answer_words))


# ---- All documents ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistic:
    """A statistic over all documents: a function of sums, mostly of the ratio of two."""

    #: The measure in the numerator; for `bleu` the first of `text_metrics.BLEU`.
    value: str
    #: The measure in the denominator; empty: each document counts 1, and the ratio is the mean.
    weight: str = ""
    #: Function of the ratio r: `mean` is r, `perplexity` is exp(-r), `bits` is -r / ln 2. `bleu` is that of a corpus.
    form: Literal["mean", "perplexity", "bits", "bleu"] = "mean"

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures to sum; an empty name is 1 for each document."""
        return text_metrics.BLEU if self.form == "bleu" else (self.value, self.weight)

    def of(self, *sums: np.ndarray) -> np.ndarray:
        """Compute the statistic from the sums of the measures (arrays of equal shape)."""
        if self.form == "bleu":
            return text_metrics.bleu(np.stack(sums))
        with np.errstate(all="ignore"):  # a perplexity may be too large for a float: infinity
            ratio = sums[0] / sums[1]
            if self.form == "mean":
                return ratio
            return np.exp(-ratio) if self.form == "perplexity" else -ratio / np.log(2)

    def influences(self, *columns_D: np.ndarray) -> np.ndarray:
        """First-order influence of each of D documents on the statistic, times D.

        For a mean these are the deviations from it. Their sample standard deviation / sqrt(D) is the standard error:
        exact for a mean, the delta method otherwise.
        """
        if self.form == "bleu":
            return text_metrics.bleu_influences(np.stack(columns_D))
        values_D, weights_D = columns_D
        with np.errstate(all="ignore"):  # NaN for an infinite perplexity
            ratio = values_D.sum() / weights_D.sum()
            slope = {"mean": 1.0, "perplexity": -np.exp(-ratio), "bits": -1 / np.log(2)}[self.form]
            return slope * (values_D - ratio * weights_D) / weights_D.mean()


def statistics(kind: str, measures: Sequence[str]) -> dict[str, Statistic]:
    """The metrics of a kind of task whose documents have these measures.

    Perplexities cover the complete text, exp(-sum of log-probabilities / sum of units), as in lm-evaluation-harness;
    those of `match` cover the answers, and `perplexity` is that of LAMBADA, exp(-mean log-probability of an answer).
    BLEU is that of the corpus. All other measures are averaged over the documents.
    """
    if kind == "perplexity":
        return {name: _perplexity(name) for name in UNITS}
    hidden = {*text_metrics.BLEU, *(_SIZES if kind == "match" else ())}
    named = {name: Statistic(name) for name in measures if name not in hidden}
    if kind == "match" and "logprob" in measures:
        named["perplexity"] = Statistic("logprob", form="perplexity")
        named |= {name: _perplexity(name) for name, unit in UNITS.items() if unit in _SIZES and unit in measures}
    if text_metrics.BLEU[0] in measures:
        named["bleu"] = Statistic(text_metrics.BLEU[0], form="bleu")
    return named


def _perplexity(name: str) -> Statistic:
    return Statistic("logprob", UNITS[name], "bits" if name == "bits_per_byte" else "perplexity")


def measure(metrics: Mapping[str, float], name: str) -> float:
    """Return a measure of a document; an empty name is 1."""
    return metrics[name] if name else 1.0


def standard_error(influences_D: np.ndarray) -> float:
    """Sample standard deviation (N - 1) / sqrt(N); NaN for fewer than two documents."""
    count = len(influences_D)
    return float(np.std(influences_D, ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
