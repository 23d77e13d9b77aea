"""Tensors that are no parameters: each has the value that the model computes with, or the file is refused."""

from typing import Any

import numpy as np
import pytest

from lmjax.config import BERTConfig, GPTConfig, UserError
from lmjax.interop.huggingface import buffers

GPT = GPTConfig(layers=1, width=16, heads=2, context=8, vocab_size=9, positions="rotary", rope_theta=100.0)
BERT = BERTConfig(layers=1, width=16, heads=2, context=8, vocab_size=9)
FREQUENCIES = 100.0 ** (-np.arange(0, 8, 2) / 8)


@pytest.mark.parametrize(
    ("rule", "config", "right", "wrong"),
    [
        (buffers.causal_mask, GPT, np.tri(8, dtype=np.uint8)[None, None], np.ones((1, 1, 8, 8), bool)),
        (buffers.causal_mask, GPT, np.tri(3), np.tri(3).T),
        (buffers.causal_mask, GPT, np.tri(1), np.float32(1)),
        (buffers.masked_logit, GPT, np.float32(-1e4), np.float32(-1.0)),
        (buffers.masked_logit, GPT, np.array(-np.inf), np.array(np.nan)),
        (buffers.masked_logit, GPT, np.array([-1e9]), np.array([-1e9, -1e9])),
        (buffers.frequencies, GPT, FREQUENCIES, FREQUENCIES * 2),
        (buffers.frequencies, GPT, FREQUENCIES.astype(np.float16), FREQUENCIES[:2]),
        (buffers.frequencies, GPT, FREQUENCIES, FREQUENCIES * np.nan),
        (buffers.positions, BERT, np.arange(8)[None], np.arange(1, 9)),
    ],
)
def test_content_is_compared_with_what_it_must_be(rule: Any, config: Any, right: Any, wrong: Any) -> None:
    assert buffers.check("a.bias", np.asarray(right), config, {"a.*": rule})
    with pytest.raises(UserError, match=r"tensor 'a\.bias' does not have the value that follows from config\.json"):
        buffers.check("a.bias", np.asarray(wrong), config, {"a.*": rule})


def test_other_tensors_are_not_taken() -> None:
    assert not buffers.check("b.bias", np.zeros(1), GPT, {"a.*": buffers.causal_mask})
