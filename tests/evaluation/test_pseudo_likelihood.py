"""The pseudo-likelihood of BERT, against rows without padding, of one passage at a time."""

from collections.abc import Sequence
from dataclasses import replace
from math import log

import jax
import numpy as np
import pytest

from lmjax.config import BERTConfig, Config, MaskedConfig, TokenizerConfig, UserError
from lmjax.data import tokenizer
from lmjax.evaluation.pseudo_likelihood import pseudo_bits_per_byte
from lmjax.models import registry
from lmjax.objectives.registry import objective_without_data

TRAINED = "The cat sat on the mat, and the dog ran."
TEXTS = ["The cat sat on the mat, and the tan dog ran.", "€ the"]


@pytest.mark.slow
def test_pseudo_likelihood_is_that_of_one_masked_token_after_the_other(tiny: Config) -> None:
    words = tokenizer.build_tokenizer(TokenizerConfig("wordpiece", 60), lambda: iter([TRAINED]))
    config = BERTConfig(layers=1, width=16, heads=2, context=12, vocab_size=words.vocab_size, init_std=0.3)
    with_bert = replace(tiny, model=config, objective=MaskedConfig())
    model = registry.build(config)
    ids = np.zeros((1, 12), np.int32)
    params = jax.jit(model.init)(jax.random.key(0), ids, kinds_BT=ids, real_BT=ids + 1)["params"]
    apply = jax.jit(model.apply)

    def measure(texts: Sequence[str], limit: int = 0) -> float:
        return pseudo_bits_per_byte(
            objective_without_data(with_bert), params, words, texts, context=config.context, limit=limit
        )

    def reference(passages: Sequence[Sequence[int]]) -> float:
        bits, size = 0.0, 0
        for passage in passages:
            asked = [place for place, id in enumerate(passage) if id != words.unknown]
            rows = np.array([[words.cls, *passage, words.sep]] * len(asked), np.int32)
            rows[range(len(asked)), [1 + place for place in asked]] = words.mask
            places = np.array([[1 + place] for place in asked])
            outputs = apply({"params": params}, rows, kinds_BT=0 * rows, real_BT=0 * rows + 1, places_BP=places)
            log_p = jax.nn.log_softmax(outputs.logits_BPV[:, 0])
            bits -= sum(float(log_p[row, passage[place]]) for row, place in enumerate(asked)) / log(2)
            text = words.decode(np.array([passage[place] for place in asked]))
            size += len(text.removeprefix("##").encode())  # no text of the corpus has these characters
        return bits / size

    passages = [ids[at : at + 10] for ids in map(words.encode, TEXTS) for at in range(0, len(ids), 10)]
    assert len(passages) > len(TEXTS)  # the first is cut
    assert any(words.token(passage[0]).startswith("##") for passage in passages)  # a word is cut
    assert words.unknown in passages[-1]
    # float32 sums of padded and unpadded rows
    assert measure(TEXTS) == pytest.approx(reference(passages), rel=1e-5)
    assert measure(TEXTS, limit=2) == pytest.approx(reference([passages[0], passages[-1]]), rel=1e-5)
    with pytest.raises(UserError, match="no token that BERT can predict"):
        measure(["€"])
