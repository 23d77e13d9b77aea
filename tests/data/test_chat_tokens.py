"""Conversations as token ids, against the ids written by hand, and what text can never do."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from lmjax.config import TokenizerConfig, UserError
from lmjax.data import tokenizer
from lmjax.data.chat_tokens import ChatTokens, completed
from lmjax.data.control_tokens import CONTROL
from lmjax.data.sources.chat_rows import Role, Turn
from lmjax.data.tokenizer import Tokenizer
from lmjax.interop.chat_templates import ChatTemplates
from lmjax.serve.chat_template import render as render_template

BYTES = tokenizer.build_tokenizer(TokenizerConfig("bytes", reserved=8), lambda: iter(()))
SYSTEM, USER, ASSISTANT, END = (BYTES.backend.token_to_id(name) for name in CONTROL)


def chatml() -> Tokenizer:
    """Bytes with the two tokens of ChatML."""
    backend = tokenizer.build_tokenizer(TokenizerConfig("bytes"), lambda: iter(())).backend
    backend.add_special_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>")])
    return Tokenizer(backend)


def render(spoken: Tokenizer, *turns: tuple[Role, str, bool]) -> tuple[list[int], list[int]]:
    parts = [Turn(*turn) for turn in turns]
    rendered = ChatTokens(spoken).render(parts, spoken.encode_batch([turn.text for turn in parts]))
    return rendered.ids, rendered.mask


def test_the_targets_are_the_answers_with_their_ends() -> None:
    letters = completed(tokenizer.build_tokenizer(TokenizerConfig("characters"), lambda: iter(["hi yes so no"])))
    chat: list[tuple[Role, str, bool]] = [
        ("user", "hi", False), ("assistant", "yes", True), ("user", "so", False), ("assistant", "no", True)
    ]  # fmt: skip
    ids, mask = render(letters, *chat)
    assert letters.decode(ids) == "<|user|>hi<|assistant|>yes<|end|><|user|>so<|assistant|>no<|end|>"
    assert mask == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1]
    chat[1] = ("assistant", "yes", False)
    assert render(letters, *chat)[1] == [0] * 12 + [1, 1, 1]
    everything: list[tuple[Role, str, bool]] = [(role, text, True) for role, text, _ in chat]
    assert render(letters, *everything)[1] == [0] + [1] * 14


def test_the_system_precedes_and_text_stands_alone() -> None:
    ids, mask = render(BYTES, ("system", "s", False), ("user", "u", False), ("assistant", "a", True))
    s, u, a = (BYTES.encode(letter)[0] for letter in "sua")
    assert (ids, mask) == ([SYSTEM, s, USER, u, ASSISTANT, a, END], [0, 0, 0, 0, 0, 1, 1])
    end = BYTES.end_of_text
    assert render(BYTES, ("text", "su", True)) == ([end, s, u, end], [0, 1, 1, 1])


def test_chatml_is_written_as_its_template_writes_it() -> None:
    spoken = chatml()
    ids, mask = render(spoken, ("user", "u", False), ("assistant", "ab", True))
    text = "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\nab<|im_end|>\n"
    assert spoken.decode(ids) == text
    assert ids == spoken.encode(text, special=True)
    assert spoken.decode([id for id, target in zip(ids, mask, strict=True) if target]) == "ab<|im_end|>"
    assert completed(spoken) is spoken
    assert ChatTokens(spoken).end == spoken.encode("<|im_end|>", special=True)[0]


PARTS = st.lists(st.sampled_from([*CONTROL, "<|endoftext|>", "<|im_end|>", "a", "\n", "é"]), max_size=6).map("".join)


@settings(max_examples=25)
@given(st.lists(st.tuples(PARTS, PARTS), min_size=1, max_size=3), st.sampled_from([BYTES, chatml()]))
def test_text_never_becomes_a_control_token(pairs: Sequence[tuple[str, str]], spoken: Tokenizer) -> None:
    """Whatever the texts are, ids of control tokens occur once for each turn, and no first token is added."""
    chat = [Turn(role, text, role == "assistant") for pair in pairs for role, text in zip(("user", "assistant"), pair)]  # noqa: B905
    control = ChatTokens(spoken)
    rendered = control.render(chat, spoken.encode_batch([turn.text for turn in chat]))
    special = [id for id in rendered.ids if id in spoken.special_ids]
    assert len(special) == len(pairs) * (3 if spoken is BYTES else 4)
    turns = [turn for turn in chat if turn.role == "assistant"]
    assert sum(rendered.mask) == sum(len(spoken.encode(turn.text)) + 1 for turn in turns)
    assert rendered.mask[0] == 0
    prompt = control.prompt(chat[:-1])
    assert rendered.ids[: len(prompt)] == prompt  # a prompt is the beginning of the conversation with its answer


@pytest.mark.parametrize("spoken", [BYTES, chatml()], ids=["own", "chatml"])
def test_the_template_of_an_export_renders_the_same_ids(spoken: Tokenizer) -> None:
    """Against Jinja's rendering and the tokenizer's own recognition of special tokens."""
    control = ChatTokens(spoken)
    names: list[Role] = ["system", "user", "assistant", "user"]
    messages = [{"role": role, "content": f"{role} é\n"} for role in names]
    templates = ChatTemplates({"default": control.template}, {})
    text = render_template(templates, messages, reply=True)
    turns = [Turn(role, f"{role} é\n", role == "assistant") for role in names]
    assert spoken.encode(text, special=True) == control.prompt(turns)
    assert control.with_template().config["chat_template"] == control.template
    assert control.with_template().sha256 == spoken.sha256


def test_missing_control_tokens_follow_the_vocabulary() -> None:
    plain = tokenizer.build_tokenizer(TokenizerConfig("bytes"), lambda: iter(()))
    with pytest.raises(UserError, match="no control tokens for the turns"):
        ChatTokens(plain)
    larger = completed(plain)
    assert [larger.id_of_token(name) for name in CONTROL] == [*range(plain.vocab_size, plain.vocab_size + 4)]
    assert larger.encode("a<|end|>") == plain.encode("a<|end|>")
    assert (larger.end_of_text, larger.lossless) == (plain.end_of_text, True)
    assert completed(larger) is larger
    assert completed(plain).sha256 == larger.sha256 != plain.sha256


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe", "wordpiece"])
def test_a_trained_vocabulary_reserves_its_last_ids(kind: str) -> None:
    def texts():
        return iter(["the cat sat on the mat " * 20])

    size = {"bpe": 270, "wordpiece": 60}.get(kind, 0)
    sizes = {"vocab_size": size} if size else {}
    some, none = (tokenizer.build_tokenizer(TokenizerConfig(kind, reserved=n, **sizes), texts) for n in (6, 0))  # type: ignore[arg-type]
    names = [*CONTROL, "<|reserved_4|>", "<|reserved_5|>"]
    assert [some.id_of_token(name) for name in names] == [*range(some.vocab_size - 6, some.vocab_size)]
    assert some.vocab_size == (none.vocab_size + 6 if kind in ("bytes", "characters") else some.vocab_size)
    assert some.vocab_size <= max(size, none.vocab_size + 6)
    assert none.id_of_token("<|user|>") is None
    assert not set(some.encode("the cat")) & set(range(some.vocab_size - 6, some.vocab_size))
    assert Tokenizer(some.backend).sha256 == some.sha256
