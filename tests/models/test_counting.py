"""Counted sizes against the closed forms of families that have them."""

from dataclasses import replace

import pytest
from flax import linen as nn

from lmjax.config import NNLMConfig, RNNConfig
from lmjax.models import counting, nnlm, rnn


@pytest.mark.parametrize("direct", [True, False])
def test_the_products_of_an_nnlm(direct: bool) -> None:
    config = NNLMConfig(order=4, width=8, hidden=12, direct=direct, context=16, vocab_size=40)
    model = nnlm.NNLM(config)
    assert 3 * counting.products(model, 16).flops / 16 == nnlm.flops_per_token(config)
    assert counting.parameters(model)["total"] == nnlm.parameters(config)["total"]


@pytest.mark.parametrize("cell", ["lstm", "gru", "tanh"])
def test_the_products_of_a_loop_count_once_for_each_step(cell: str) -> None:
    config = RNNConfig(cell=cell, layers=2, width=8, context=16, vocab_size=40)
    model = rnn.RNN(config)
    assert 3 * counting.products(model, 16).flops / 16 == rnn.flops_per_token(config)
    assert counting.parameters(model)["total"] == rnn.parameters(config)["total"]
    longer = counting.products(model, 32)
    assert longer.flops == 2 * counting.products(rnn.RNN(replace(config, context=32)), 16).flops


class Convolution(nn.Module):
    @nn.compact
    def __call__(self, ids_BT):
        return nn.Conv(6, (3,), padding="CAUSAL", name="conv")(nn.Embed(10, 4, name="table")(ids_BT))


def test_the_multiplications_of_a_convolution() -> None:
    """5 positions, 3 taps, 4 features in, 6 out, counted by hand; 2 FLOPs each."""
    assert counting.products(Convolution(), 5).flops == 2 * 5 * 3 * 4 * 6
    assert counting.products(Convolution(), 5).input_bytes == 4 * (2 + 5) * 4  # with 2 positions of padding
    assert counting.parameters(Convolution()) == {"table": 40, "conv": 3 * 4 * 6 + 6, "total": 40 + 78}
