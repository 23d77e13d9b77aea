"""A data source, and a metric that measures what is learned from it: sums such as `17+25=42`.

python train.py quickstart 'extensions=[examples/sums.py]' data.source=sums train.metrics=[sums_right] \
        data.tokenizer.kind=bytes train.updates=300
"""

import random
from collections.abc import Iterator

import lmjax
from lmjax.config import DataConfig
from lmjax.inference.generate import generate
from lmjax.inference.language_model import LanguageModel
from lmjax.inference.sampling import Sampling
from lmjax.run.saved import LoadedRun

QUESTIONS = ["17+25=", "50+49=", "3+8=", "61+20="]


def sums(data: DataConfig) -> Iterator[str]:
    """20,000 documents; the same ones in every call, as a resume needs."""
    numbers = random.Random(0)
    for _ in range(20_000):
        a, b = numbers.randrange(100), numbers.randrange(100)
        yield f"{a}+{b}={a + b}"


def sums_right(run: LoadedRun) -> float:
    """The share of questions that greedy decoding answers."""
    lm = LanguageModel(run.model, run.params, run.tokenizer)
    answers = generate(lm, QUESTIONS, sampling=Sampling(max_tokens=4, temperature=0))
    return sum(int(answer == str(eval_sum(q))) for q, answer in zip(QUESTIONS, answers, strict=True)) / len(QUESTIONS)


def eval_sum(question: str) -> int:
    """`17+25=` -> 42."""
    a, b = question.rstrip("=").split("+")
    return int(a) + int(b)


lmjax.register_source("sums", sums)
lmjax.register_metric("sums_right", sums_right)
