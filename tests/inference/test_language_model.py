"""What precedes a text without context: the model's own token, a chosen one, or an error; never an arbitrary id."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lmjax.config import TokenizerConfig, UserError
from lmjax.data import tokenizer
from lmjax.inference.language_model import LanguageModel, with_first

CHARACTERS = tokenizer.build_tokenizer(TokenizerConfig(kind="characters"), lambda: iter(["abc"]))
END = CHARACTERS.end_of_text
A, B = CHARACTERS.encode("a")[0], CHARACTERS.encode("b")[0]


def model(**named: Any) -> LanguageModel:
    config = SimpleNamespace(vocab_size=CHARACTERS.vocab_size)
    return LanguageModel(SimpleNamespace(config=config), {}, CHARACTERS, "small", **named)


@pytest.mark.parametrize(
    ("named", "chosen", "ids"),
    [
        ({}, "model", [END]),
        ({}, "end", [END]),
        ({"bos": A}, "model", [A]),
        ({"bos": A, "eos": B}, "end", [B]),
        ({"bos": A}, "bos", [A]),
        ({"first": A}, "model", [A]),
        ({"first": A, "bos": B}, "bos", [B]),
        ({"bos": A}, "none", []),
        ({"bos": A}, B, [B]),
    ],
)
def test_a_text_without_context_follows_the_chosen_token(named: dict[str, Any], chosen: Any, ids: list[int]) -> None:
    lm = with_first(model(**named), chosen)
    assert list(lm.before()) == lm.ids("") == ids
    assert lm.first_token() == (CHARACTERS.token_text(ids[0]) if ids else None)


def test_the_token_before_every_text_is_written_once() -> None:
    assert model(first=A).ids("bc") == [A, *CHARACTERS.encode("bc")]
    assert model(first=A).ids("ab") == CHARACTERS.encode("ab")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("bos", "first token 'bos': small names no token that begins a text"),
        (99, "token id 99 is outside the tokenizer's vocabulary"),
        ("eos", "first token 'eos' is not one of model, bos, end, none"),
    ],
)
def test_a_token_that_the_model_lacks_is_refused(chosen: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_first(model(), chosen)


def test_without_any_named_token_a_text_needs_a_context() -> None:
    nothing = SimpleNamespace(end_of_text=None, id_of=lambda name: None, encode=lambda text, special: [])
    lm = replace(model(), tokenizer=nothing)
    assert lm.first_token() is None
    with pytest.raises(UserError, match="small names no token that begins or ends a text"):
        lm.ids("")


def test_a_token_without_a_row_of_the_model_is_refused() -> None:
    lm = replace(model(), model=SimpleNamespace(config=SimpleNamespace(vocab_size=2)))
    assert lm.ids("ab") == [A, B]
    with pytest.raises(UserError, match=r"needs the token 'c' of id 2; the model has the ids 0 to 1"):
        lm.ids("abc")
