"""The text of a continuation: the text of all ids, without that of the prompt, for tokenizers of every kind."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

from lmjax.data import vocabularies
from lmjax.data.tokenizer import Tokenizer
from lmjax.inference.continuation import Continuation

END = "</s>"


def sentence_pieces() -> Tokenizer:
    """LLaMA's kind: a blank before every text, bytes for characters without a token."""
    tokens = [
        "<unk>",
        "<s>",
        END,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        "a",
        "b",
        "\u2581a",
        "\u2581b",
    ]
    merges = [("\u2581", "a"), ("\u2581", "b")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend: Any = Backend(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ("<s>", END)])
    return Tokenizer(backend)


def bytes_of_text() -> Tokenizer:
    backend: Any = vocabularies.byte_level(dict(vocabularies.byte_of()))
    backend.add_special_tokens([AddedToken(END, normalized=False, special=True)])
    return Tokenizer(backend)


def word_pieces() -> Tokenizer:
    backend: Any = vocabularies.word_pieces(
        {token: i for i, token in enumerate([*vocabularies.BERT_SPECIALS, "a", "b", "##a", "##b", "##ing", ".", "'"])}
    )
    return Tokenizer(backend)


TOKENIZERS = {"pieces": sentence_pieces(), "bytes": bytes_of_text(), "words": word_pieces()}
TEXTS = st.text(st.sampled_from("ab .é漢🎉\n"), max_size=12)


def complete(tokenizer: Tokenizer, prompt: list[int], new: list[int]) -> str:
    """The definition: both texts are decoded at once."""
    before, text = tokenizer.decode(prompt), tokenizer.decode(prompt + new)
    same = 0
    while text[same : same + 1] == before[same : same + 1] != "":
        same += 1
    return text[same:]


def test_the_blank_before_the_first_new_word_is_kept() -> None:
    tokenizer = TOKENIZERS["pieces"]
    ids = tokenizer.encode("a b b a")
    assert Continuation(tokenizer, ids[:2]).text(ids[2:]) == " b a"
    assert Continuation(tokenizer, ids[:2], alone=True).text(ids[2:]) == "b a"  # a text of its own
    assert Continuation(tokenizer, [1]).text(ids) == "a b b a"  # <s> is no text: the beginning of a text


def test_a_character_that_the_prompt_begins_is_completed() -> None:
    tokenizer = TOKENIZERS["bytes"]
    ids = tokenizer.encode("caf漢 x")
    assert Continuation(tokenizer, ids[:4]).text(ids[4:]) == "漢 x"
    assert Continuation(tokenizer, ids[:3]).text(ids[3:4]) == "\ufffd"


def test_the_mark_of_a_continued_word_is_not_text() -> None:
    tokenizer = TOKENIZERS["words"]
    a, ing = tokenizer.encode("a")[0], tokenizer.backend.token_to_id("##ing")
    assert Continuation(tokenizer, [a]).text([ing, a]) == "ing a"


@pytest.mark.parametrize("name", ["pieces", "bytes"])
def test_any_split_of_any_text_gives_the_rest_of_the_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]

    @settings(max_examples=60, deadline=None)
    @given(st.lists(TEXTS, min_size=1, max_size=12), st.integers(0, 60), st.integers(1, 40))
    def check(texts: list[str], at: int, chunk: int) -> None:
        ids = tokenizer.encode("a" + "".join(texts))
        prompt, new = ids[: max(1, at % len(ids))], ids[max(1, at % len(ids)) :]
        continuation = Continuation(tokenizer, prompt)
        for stop in range(chunk, len(new) + chunk, chunk):  # in parts, as generation calls it
            assert continuation.text(new[:stop]) == complete(tokenizer, prompt, new[:stop])

    check()


def test_the_final_part_never_changes() -> None:
    for tokenizer in (TOKENIZERS["pieces"], TOKENIZERS["bytes"]):
        ids = tokenizer.encode("a 漢é🎉 b🎉")
        continuation = Continuation(tokenizer, ids[:1])
        whole = complete(tokenizer, ids[:1], ids[1:])
        for stop in range(1, len(ids)):
            new = ids[1:stop]
            text = continuation.text(new)
            assert whole.startswith(text[: continuation.final(new, text)])


def test_the_cost_of_a_long_text_is_that_of_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, read = TOKENIZERS["bytes"], []
    decode = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: read.append(len(ids)) or decode(self, ids))
    ids = tokenizer.encode("aé b" * 2000)
    continuation = Continuation(tokenizer, ids[:5000])
    for stop in range(5032, len(ids), 32):
        continuation.text(ids[5000:stop])
    assert max(read) < 200
