"""BLEU and ROUGE of generated texts.

Legend: K sums of BLEU (`BLEU`), D documents.
"""

from collections.abc import Sequence

import numpy as np
from sacrebleu.metrics.bleu import BLEU as SacreBLEU

ORDERS = 4  # the longest n-grams of BLEU
#: The measures of a document whose sums give BLEU: matching and all n-grams, and the lengths of text and reference.
BLEU = (
    *(f"bleu_matches_{n + 1}" for n in range(ORDERS)),
    *(f"bleu_ngrams_{n + 1}" for n in range(ORDERS)),
    "bleu_length",
    "bleu_reference_length",
)
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
ALIASES = {"rouge": ("rouge1", "rouge2", "rougeLsum"), "exact_str_match": ("exact_match",)}
_OWN = {
    "generate": ("exact_match", "f1"),
    "choose": ("acc", "acc_norm", "brier", "multiple_choice_grade"),
}


def not_computed(kind: str, metrics: Sequence[str]) -> list[str]:
    """Return the metrics that lmjax does not compute, or not with the installed packages."""
    known = {*_OWN.get(kind, ())}
    if kind == "generate":
        known |= {"bleu", *(ROUGE if _has_rouge() else ())} if metrics else set()
    return [name for name in metrics if not known.issuperset(ALIASES.get(name, (name,)))]


def measures(text: str, answers: Sequence[str], metrics: Sequence[str]) -> dict[str, float]:
    """Compute the terms of BLEU, and ROUGE, of a text against its accepted answers.

    bleu: sums over the corpus, as in sacrebleu with `tokenize="intl"`, the settings of BIG-bench and t5.
    rouge1, rouge2, rougeL, rougeLsum: 100 times the F-measure of the package rouge-score without a stemmer, for the
    best answer. The mean over documents is the score of t5, which reports the median of its bootstrap samples.
    """
    wanted = {name for metric in metrics for name in ALIASES.get(metric, (metric,))}
    values: dict[str, float] = {}
    if "bleu" in wanted:
        score = _SACREBLEU.corpus_score([text], [[answer] for answer in answers])
        values |= dict(zip(BLEU, (*score.counts, *score.totals, score.sys_len, score.ref_len), strict=True))
        values = {name: float(value) for name, value in values.items()}
    rouge = [name for name in ROUGE if name in wanted]
    return values | (_rouge(text, answers, rouge) if rouge and _has_rouge() else {})


# ---- BLEU -------------------------------------------------------------------------------------------------------

_SACREBLEU = SacreBLEU(tokenize="intl", smooth_method="exp", effective_order=False)


def bleu(sums_K: np.ndarray) -> np.ndarray:
    """Compute BLEU, 0 to 100, from the sums of its measures (Papineni et al. 2002).

    Orders without a match are smoothed as in sacrebleu: the precision of the k-th of them is 1 / (2^k N).

    Args:
        sums_K: The sums, (K, ...) for any shape.
    """
    matches, ngrams = sums_K[:ORDERS], sums_K[ORDERS : 2 * ORDERS]
    length, reference = sums_K[2 * ORDERS], sums_K[2 * ORDERS + 1]
    missed = np.cumsum(matches == 0, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precisions = np.where(matches == 0, 0.5**missed, matches) / ngrams
        brevity = np.where(length < reference, np.exp(1 - reference / length), 1.0)
        score = 100 * brevity * np.exp(np.log(precisions).mean(axis=0))
    return np.where((ngrams > 0).all(axis=0) & (matches > 0).any(axis=0), score, 0.0)


def bleu_influences(columns_KD: np.ndarray) -> np.ndarray:
    """First-order influence of each document on BLEU, times D; smoothing is constant."""
    sums_K = columns_KD.sum(1)
    score = bleu(sums_K)
    if not score:
        return np.zeros(columns_KD.shape[1])
    shares_KD = columns_KD / np.where(sums_K == 0, 1, sums_K)[:, None]
    change_D = (shares_KD[:ORDERS] - shares_KD[ORDERS : 2 * ORDERS] * (sums_K[:ORDERS] > 0)[:, None]).mean(0)
    length, reference = sums_K[-2:]
    if length < reference:
        change_D = change_D - (columns_KD[-1] - reference * shares_KD[-2]) / length
    return columns_KD.shape[1] * score * change_D


# ---- ROUGE ------------------------------------------------------------------------------------------------------


def _has_rouge() -> bool:
    try:
        import rouge_score.rouge_scorer  # noqa: F401  # an optional package, of lm-evaluation-harness
    except ImportError:
        return False
    return True


def _rouge(text: str, answers: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer  # an optional package

    scorer = RougeScorer([*names])
    prepared, *references = (part.replace(" . ", " .\n") for part in (text, *answers))
    scores = [scorer.score(reference, prepared) for reference in references]
    return {name: 100 * max(float(score[name].fmeasure) for score in scores) for name in names}
