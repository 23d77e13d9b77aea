"""Decoding against plain forward passes over the whole text, and sampling against the definition of its settings."""

import functools
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

import lmjax
from lmjax.config import CustomModelConfig, GPTConfig, ModelConfig, NNLMConfig, RNNConfig, TokenizerConfig, UserError
from lmjax.data import tokenizer
from lmjax.inference.generate import CHUNK, continue_ids, generate
from lmjax.inference.language_model import LanguageModel
from lmjax.inference.sampling import Sampling, choose
from lmjax.models import registry
from lmjax.models.family import Family
from tests import all_slow_but

V = 31
GPT = GPTConfig(layers=2, width=16, heads=4, key_heads=2, context=256, vocab_size=V, scan=False)
LLAMA = replace(GPT, positions="rotary", norm="rmsnorm", activation="swiglu", qk_norm=True, tied=False, scan=True)


@dataclass(frozen=True)
class OwnConfig(CustomModelConfig):
    family: Literal["own_of_test_generate"] = "own_of_test_generate"


class Own(nn.Module):
    """A user's model without a cache: two causal convolutions and learned positions, which end at the context."""

    config: OwnConfig

    @nn.compact
    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        c, T = self.config, ids_BT.shape[1]
        assert c.context >= T
        positions_TD = self.param("positions", nn.initializers.normal(), (c.context, c.width))[:T]
        x_BTD = nn.Embed(c.vocab_size, c.width)(ids_BT) + positions_TD
        for _ in range(2):
            x_BTD = x_BTD + jnp.tanh(nn.Conv(c.width, (5,), padding="CAUSAL")(x_BTD))
        return nn.Dense(c.vocab_size)(x_BTD)


lmjax.register_family(OwnConfig, Family(module=Own))
OWN = OwnConfig(width=16, context=256, vocab_size=V)
FAMILIES: dict[str, ModelConfig] = {
    "gpt2": GPT,
    "llama": LLAMA,
    "lstm": RNNConfig(cell="lstm", layers=2, width=16, vocab_size=V),
    "gru": RNNConfig(cell="gru", layers=1, width=16, vocab_size=V, tied=True),
    "nnlm": NNLMConfig(order=4, width=8, hidden=16, vocab_size=V),
    "own": OWN,
}
PROMPTS = [[3], [1, 4, 1, 5, 9], [2] * 17, list(range(20, 30)) * 3]
BYTES = tokenizer.build_tokenizer(TokenizerConfig(kind="bytes"), lambda: iter([""]))


def rough(config: ModelConfig, seed: int = 0) -> tuple[Any, Any]:
    """A model, and parameters in which every leaf matters."""
    model = registry.build(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    rng = np.random.default_rng(seed)
    return model, jax.tree.map(lambda x: 0.4 * rng.standard_normal(x.shape).astype(np.float32), shapes)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model: Any, params: Any, ids_BT: jax.Array) -> jax.Array:
    return model.apply({"params": params}, ids_BT)


def padded(rows: list[list[int]], size: int) -> np.ndarray:
    """Rows flush left: what stands behind them is not seen."""
    return np.array([row + [0] * (size - len(row)) for row in rows], np.int32)


def last(updates: Any) -> list[list[int]]:
    return list(updates)[-1]


# ---- What is the likeliest ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", all_slow_but({4}, FAMILIES.values()), ids=FAMILIES)
def test_greedy_decoding_takes_the_argmax_of_a_pass_over_the_whole_text(config: ModelConfig) -> None:
    """Prompts of different lengths at once; the penalty keeps the text from going round in circles."""
    model, params = rough(config)
    sampling = Sampling(max_tokens=200, temperature=0, repetition_penalty=2.0)
    found = last(continue_ids(model, params, PROMPTS, sampling=sampling))
    whole = [prompt + new for prompt, new in zip(PROMPTS, found, strict=True)]
    logits_BTV = np.asarray(logits_of(model, params, padded(whole, 256)))
    for prompt, new, logits_TV in zip(PROMPTS, found, logits_BTV, strict=True):
        assert len(new) == 200
        assert len(set(new)) > 4
        for i, token in enumerate(new):
            logits_V = logits_TV[len(prompt) + i - 1].copy()
            seen = list({*prompt, *new[:i]})
            logits_V[seen] = np.where(logits_V[seen] > 0, logits_V[seen] / 2, logits_V[seen] * 2)
            # sums of a few dozen float32 terms of about 1 in another order, through two layers
            assert logits_V[token] >= logits_V.max() - 1e-4


@pytest.mark.parametrize("config", all_slow_but({2}, [GPT, LLAMA, OWN]), ids=["gpt2", "llama", "own"])
def test_a_full_context_keeps_its_later_half_of_each_row(config: ModelConfig) -> None:
    context, wanted = 16, 40
    smaller = replace(config, layers=1) if isinstance(config, GPTConfig) else config
    model, params = rough(replace(smaller, context=context), seed=1)
    prompts = [[3], [1, 4, 1, 5, 9, 2, 6, 5], list(range(16)), list(range(30))]
    sampling = Sampling(max_tokens=wanted, temperature=0, repetition_penalty=2.0)
    found = last(continue_ids(model, params, prompts, sampling=sampling))
    windows, seen_BV = [prompt[-context:] for prompt in prompts], np.zeros((4, V), bool)
    for seen_V, prompt in zip(seen_BV, prompts, strict=True):
        seen_V[prompt] = True
    for i in range(wanted):
        windows = [ids if len(ids) <= context else ids[-context // 2 :] for ids in windows]
        logits_BTV = np.asarray(logits_of(model, params, padded(windows, context)))
        for row, ids in enumerate(windows):
            logits_V = logits_BTV[row, len(ids) - 1]
            less_V = np.where(logits_V > 0, logits_V / 2, logits_V * 2)
            logits_V = np.where(seen_BV[row], less_V, logits_V)
            token = found[row][i]
            assert logits_V[token] >= logits_V.max() - 1e-4  # rounding, as above
            ids.append(token)
            seen_BV[row, token] = True
    if config is LLAMA:  # a row that has ended leaves the others what they have without it
        ends = found[3][2:3]
        cut = [new[: (new + ends).index(ends[0])] for new in found]
        assert last(continue_ids(model, params, prompts, sampling=sampling, ends=ends)) == cut


# ---- What is drawn --------------------------------------------------------------------------------------------------

SHARES = np.array([0.4, 0.05, 0.3, 0.15, 0.1])
CHOICES = [
    ({}, SHARES),
    ({"temperature": 0.5}, SHARES**2 / np.sum(SHARES**2)),
    ({"top_k": 2}, np.array([0.4, 0, 0.3, 0, 0]) / 0.7),
    ({"top_p": 0.65}, np.array([0.4, 0, 0.3, 0, 0]) / 0.7),
    ({"top_p": 0.71}, np.array([0.4, 0, 0.3, 0.15, 0]) / 0.85),
    ({"top_p": 1e-6}, np.array([1.0, 0, 0, 0, 0])),
    ({"min_p": 0.3}, np.array([0.4, 0, 0.3, 0.15, 0]) / 0.85),
    ({"min_p": 1.0}, np.array([1.0, 0, 0, 0, 0])),
    ({"top_k": 2, "top_p": 0.5}, np.array([1.0, 0, 0, 0, 0])),  # of the two 0.4 / 0.7 is enough
    ({"temperature": 2.0, "top_k": 4, "min_p": 0.55}, np.array([0.4, 0, 0.3, 0.15, 0]) ** 0.5 / 1.5675),
    # log 0.4 and log 0.1 are negative: times 2
    ({"repetition_penalty": 2.0}, np.array([0.16, 0.05, 0.3, 0.15, 0.01]) / 0.67),
    ({"temperature": 0}, np.array([1.0, 0, 0, 0, 0])),
    ({"temperature": 0, "repetition_penalty": 2.0}, np.array([0, 0, 1.0, 0, 0])),
]
over_choices = pytest.mark.parametrize(("settings", "expected"), CHOICES, ids=[str(given) for given, _ in CHOICES])
SEEN = [0, 4]


@over_choices
def test_draws_follow_the_distribution(settings: dict[str, Any], expected: np.ndarray) -> None:
    count, sampling = 20_000, Sampling(**settings)
    logits_BV = jnp.broadcast_to(jnp.log(jnp.asarray(SHARES, jnp.float32)), (count, 5))
    seen_BV = jnp.zeros((count, 5), bool).at[:, jnp.array(SEEN)].set(sampling.repetition_penalty != 1)
    keys_B = jax.random.split(jax.random.key(1), count)
    tokens_B = choose(logits_BV, keys_B, seen_BV, kind=sampling.kind, **sampling.numbers)
    found = np.bincount(tokens_B, minlength=5) / count
    assert np.all(found[expected == 0] == 0)
    # Five standard deviations of a share of 20,000 draws are at most 5 * 0.5 / sqrt(20,000) = 0.018.
    np.testing.assert_allclose(found, expected, atol=0.018)


def test_the_distributions_are_those_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    steps = pytest.importorskip("transformers").generation.logits_process
    kinds = {
        "repetition_penalty": steps.RepetitionPenaltyLogitsProcessor,
        "temperature": steps.TemperatureLogitsWarper,
        "top_k": steps.TopKLogitsWarper,
        "top_p": steps.TopPLogitsWarper,
        "min_p": steps.MinPLogitsWarper,
    }
    for settings, expected in CHOICES:
        if settings.get("temperature") == 0:
            continue
        scores = torch.log(torch.tensor(SHARES))[None]
        for name, kind in kinds.items():
            if name in settings:
                scores = kind(settings[name])(torch.tensor([SEEN]), scores)
        # 1.5675 is rounded to five digits
        np.testing.assert_allclose(torch.softmax(scores, -1)[0], expected, atol=1e-4)


def test_the_seed_decides_and_rows_draw_apart() -> None:
    model, params = rough(FAMILIES["gru"])
    draws = [last(continue_ids(model, params, [[1], [1]], sampling=Sampling(30, seed=seed))) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0][0] != draws[0][1]


# ---- Where a text ends ----------------------------------------------------------------------------------------------


class Recited(nn.Module):
    """A recurrent model that says `script`, whatever it reads, by how many tokens it has read."""

    config: RNNConfig
    script: tuple[int, ...]

    @nn.compact
    def __call__(self, ids_BT: Any, *, carry: Any, segments_BT: Any = None) -> Any:
        real_BT = jnp.ones(ids_BT.shape, jnp.int32) if segments_BT is None else segments_BT
        count_BT = carry["h"][:, 0, :1].astype(jnp.int32) + jnp.cumsum(real_BT, axis=1)
        script = jnp.array(self.script)
        tokens_BT = script[jnp.clip(count_BT - 1, 0, len(script) - 1)]
        return 20 * jax.nn.one_hot(tokens_BT, self.config.vocab_size), {"h": count_BT[:, -1:, None] * 1.0}


def reciting(script: list[int], kind: tokenizer.Tokenizer = BYTES) -> LanguageModel:
    config = RNNConfig(cell="tanh", layers=1, width=1, vocab_size=kind.vocab_size)
    return LanguageModel(Recited(config, tuple(script)), {}, kind)


def said(lm: LanguageModel, **settings: Any) -> tuple[str, list[str]]:
    """The continuation of a prompt of one token, and the pieces that were shown."""
    pieces: list[str] = []
    sampling = Sampling(temperature=0, **settings)
    texts = generate(lm, [[0]], sampling=sampling, show=lambda row, piece: pieces.append(piece))
    assert "".join(pieces) == texts[0]
    return texts[0], pieces


TEXT = "".join(f"{n} é日🎉 " for n in range(24))  # characters of two to four bytes, cut by the borders of chunks


@pytest.mark.parametrize(
    "stop",
    [
        (),
        ("日🎉 2 é",),
        (TEXT[13:22], "is not there"),  # in the second chunk's bytes from the first
        (TEXT[40:], "!" * 40),  # longer than a chunk
        ("🎉 11", "23 é", "nothing"),
        (TEXT[:3],),
    ],
    ids=range(6),
)
def test_pieces_make_the_text_up_to_the_first_stop(stop: tuple[str, ...]) -> None:
    lm = reciting(list(TEXT.encode()))
    assert len(TEXT.encode()) > 8 * CHUNK
    found, pieces = said(lm, max_tokens=len(TEXT.encode()), stop=stop)
    assert found == TEXT[: min((TEXT.find(s) for s in stop if s in TEXT), default=None)]
    assert "\ufffd" not in found
    assert stop or len(pieces) > 8


def test_what_may_still_become_a_stop_is_not_shown() -> None:
    """Held back at the end of every chunk but the last, however long the stop is."""
    text = "a" * 70
    for length in (2, 31, 32, 33, 34, 69):
        found, pieces = said(reciting(list(text.encode())), max_tokens=70, stop=("a" * (length - 1) + "b",))
        assert found == text
        assert len(pieces[0]) == CHUNK - length + 1 or length > CHUNK


def test_a_stop_inside_of_a_token_cuts_the_token() -> None:
    vocabulary = {"one two": 0, " three f": 1, "our": 2, " five": 3, "!": 4}
    words = Backend(models.WordLevel(vocabulary, unk_token="!"))
    words.decoder = decoders.Fuse()
    lm = reciting([0, 1, 2, 3], tokenizer.Tokenizer(words))
    assert said(lm, max_tokens=4)[0] == "one two three four five"
    assert said(lm, max_tokens=4, stop=("four", "ur"))[0] == "one two three "


def test_an_end_ends_and_can_be_passed() -> None:
    end = BYTES.end_of_text
    assert end is not None
    lm = reciting([*b"one", end, *b"two", ord("."), *b"three"])
    assert said(lm, max_tokens=30)[0] == "one"
    assert said(replace(lm, stops=(ord("n"),)), max_tokens=30)[0] == "o"
    assert said(lm, max_tokens=8, past_end=True)[0] == "one<|endoftext|>two."
    assert said(lm, max_tokens=2)[0] == "on"
    assert said(lm, max_tokens=0) == ("", [])
    assert generate(lm, [], sampling=Sampling()) == []
    both = generate(lm, ["", "xyz"], sampling=Sampling(temperature=0, max_tokens=9))  # by tokens read, each its own
    assert both == ["one", "e"]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"max_tokens": -1},
        {"repetition_penalty": 0},
        {"stop": ("\n", "")},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Sampling(**settings)


def test_an_empty_prompt_of_ids_is_refused() -> None:
    with pytest.raises(UserError, match="the prompt is empty"):
        next(continue_ids(*rough(GPT), [[1], []], sampling=Sampling()))
