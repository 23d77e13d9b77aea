"""Small language models, and what they say of a text by one forward pass for it alone."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config import GPTConfig, ModelConfig, NNLMConfig, RNNConfig, TokenizerConfig
from lmjax.data import tokenizer
from lmjax.evaluation.scoring import Found, Request
from lmjax.inference import incremental
from lmjax.inference.language_model import LanguageModel
from lmjax.models import registry

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .?:/[]\n"
CHARACTERS = tokenizer.build_tokenizer(TokenizerConfig(kind="characters"), lambda: iter([LETTERS]))
V = CHARACTERS.vocab_size
LONGEST = 256  # of a text that `say` reads
GPT = GPTConfig(
    layers=2,
    width=16,
    heads=4,
    key_heads=2,
    context=48,
    vocab_size=V,
    positions="rotary",
    norm="rmsnorm",
    activation="swiglu",
    tied=False,
)
FAMILIES: dict[str, ModelConfig] = {
    "llama": GPT,
    "gpt2": GPTConfig(layers=1, width=16, heads=2, context=48, vocab_size=V, scan=False),
    "lstm": RNNConfig(cell="lstm", layers=1, width=8, vocab_size=V),
    "nnlm": NNLMConfig(order=4, width=8, hidden=16, vocab_size=V),
}


def language_model(config: ModelConfig, seed: int = 0) -> LanguageModel:
    """A model of characters in which every parameter matters."""
    model, rng = registry.build(config), np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    params = jax.tree.map(lambda x: 0.4 * rng.standard_normal(x.shape).astype(np.float32), shapes)
    return LanguageModel(model, params, CHARACTERS, name="rough")


def trigrams(one: np.ndarray, two: np.ndarray) -> LanguageModel:
    """A model whose logits are a row of `one` (V, V) for the last token and a row of `two` for the one before it."""
    config = NNLMConfig(order=3, width=V, hidden=0, direct=True, vocab_size=V)
    embedding = np.eye(V + 1, V, dtype=np.float32)  # "nothing", in front of a text, says nothing
    kernel = np.concatenate([one, two]).astype(np.float32)
    params = {
        "token_embedding": {"embedding": embedding},
        "direct": {"kernel": kernel, "bias": np.zeros(V, np.float32)},
    }
    return LanguageModel(registry.build(config), params, CHARACTERS, name="trigrams")


@functools.partial(jax.jit, static_argnums=0)
def _log_p(model: Any, params: Any, ids_BT: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(model.apply({"params": params}, ids_BT))


def say(lm: LanguageModel, context: Any, continuation: Any) -> Found:
    """The log-probability of the continuation, and whether it is the likeliest, by one pass over both."""
    limit = incremental.limit(lm.model.config)
    ids = [*context, *continuation]
    read, predicted = ids[-limit - 1 : -1] if limit else ids[:-1], continuation[-limit if limit else 0 :]
    padded = np.zeros((1, limit or LONGEST), np.int32)
    padded[0, : len(read)] = read
    log_p_TV = np.asarray(_log_p(lm.model, lm.params, padded), np.float64)[0, len(read) - len(predicted) : len(read)]
    each = log_p_TV[np.arange(len(predicted)), list(predicted)]
    return Found(float(each.sum()), bool((log_p_TV.argmax(-1) == list(predicted)).all()))


def requests(lm: LanguageModel, *, count: int = 40, seed: int = 0) -> list[Request]:
    """Requests that branch off each other at random places, a few of them the likeliest, twice asked, or too long."""
    rng, texts = np.random.default_rng(seed), [[1]]
    found = []
    for _ in range(count):
        text = texts[rng.integers(len(texts))]
        text = text[: rng.integers(1, len(text) + 1)] + rng.integers(0, V, rng.integers(1, 20)).tolist()
        texts.append(text)
        cut = int(rng.integers(max(1, len(text) - 6), len(text)))
        found.append(Request(tuple(text[:cut]), tuple(text[cut:])))
    for request in found[:4]:
        likeliest = max(range(V), key=lambda token, request=request: say(lm, request.context, (token,)).logprob)
        found.append(Request(request.context, (likeliest,)))
    long = tuple(rng.integers(0, V, 100).tolist())
    return [*found, *found[5:9], Request(long[:70], long[70:73]), Request(long[:60], long[60:63]), Request((1,), long)]
