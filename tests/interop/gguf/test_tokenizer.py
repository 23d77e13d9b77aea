"""The tokenizers inside GGUF files, against the originals and against SentencePiece's definition."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from lmjax.interop.gguf.model import load
from lmjax.interop.huggingface.folder import export_model
from tests.interop.gguf_files import ODD, D, small

# The expressions in the tokenizer.json of Llama 3 and of Qwen2.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ORIGINALS: dict[str, list[Any]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "qwen2": [
        pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "")), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_ids_are_those_of_the_original_tokenizer(name: str, tmp_path: Path) -> None:
    original: Any = Backend(models.BPE())
    original.pre_tokenizer, original.decoder = pre_tokenizers.Sequence(ORIGINALS[name]), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    loose: Any = Backend(models.BPE())  # merges that only the right way to split keeps from being used
    loose.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    special = ["<|endoftext|>", "<|begin|>", "<|turn|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False, min_frequency=1
    )
    loose.train_from_iterator(ODD, trainer)
    learned = json.loads(loose.to_str())["model"]
    tokens = sorted(learned["vocab"], key=learned["vocab"].get)
    original.model = models.BPE(
        learned["vocab"], [tuple(pair) for pair in learned["merges"]], ignore_merges=name == "llama-bpe"
    )
    if name == "qwen2":
        original.normalizer = normalizers.NFC()

    described = {"tokens": tokens, "token_type": [3] * 3 + [1] * (len(tokens) - 3), "pre": name, "eot_token_id": 2}
    described |= {"merges": [" ".join(pair) for pair in learned["merges"]], "add_bos_token": True, "bos_token_id": 1}
    arrays = {"token_embd.weight": np.zeros((len(tokens), D), np.float32), "output.weight": None}
    changes = {f"tokenizer.ggml.{key}": value for key, value in described.items()}
    language = load(small(tmp_path / "model.gguf", metadata=changes, arrays=arrays))
    for text in ODD:
        ids = language.tokenizer.encode(text)
        assert ids == original.encode(text).ids, text
        assert language.tokenizer.decode(ids) == (original.normalizer.normalize_str(text) if name == "qwen2" else text)
    assert (language.first, language.stops, language.tokenizer.end_of_text) == (1, (2,), 0)
    assert language.tokenizer.special_ids == {0, 1, 2}


def sentence_pieces(text: str, ids: dict[str, int], scores: list[float]) -> list[int]:
    """SentencePiece's BPE as it is defined: join the best pair, the leftmost of equals, until there is none."""
    pieces = list("\u2581" + text.replace(" ", "\u2581")) if text else []
    while True:
        joined = [left + right for left, right in itertools.pairwise(pieces)]
        known = [i for i, piece in enumerate(joined) if piece in ids]
        if not known:
            break
        best = max(known, key=lambda i: (scores[ids[joined[i]]], -i))
        pieces[best : best + 2] = [joined[best]]
    spelled = [[piece] if piece in ids else [f"<0x{byte:02X}>" for byte in piece.encode()] for piece in pieces]
    return [ids[token] for piece in spelled for token in piece]


def test_sentence_pieces_are_joined_by_their_scores(tmp_path: Path) -> None:
    rng, blank = np.random.default_rng(0), "\u2581"
    letters = [*"abé漢", blank]
    longer = {"".join(rng.choice(letters, n)) for n in (2, 2, 2, 2, 3, 3, 3, 4, 4) for _ in range(6)}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *sorted(longer), "[X]"]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(letters) + len(longer)) + [4]
    scores = [0.0] * 259 + [-float(x) for x in rng.integers(1, 30, len(tokens) - 259)]
    described = {"model": "llama", "tokens": tokens, "token_type": types, "scores": scores, "bos_token_id": 1}
    changes = {f"tokenizer.ggml.{key}": value for key, value in (described | {"eos_token_id": 2}).items()}
    arrays = {"token_embd.weight": np.zeros((len(tokens), D), np.float32), "output.weight": None}
    language = load(small(tmp_path / "model.gguf", metadata=changes, arrays=arrays))
    assert (language.first, language.stops, language.tokenizer.end_of_text) == (1, (), 2)
    ids = {token: i for i, token in enumerate(tokens)}
    for _ in range(100):
        text = "".join(rng.choice([*"abé漢 q", "🎉", "\n"], rng.integers(0, 20)))
        assert language.tokenizer.encode(text) == sentence_pieces(text, ids, scores), text
        assert language.tokenizer.decode(language.tokenizer.encode(text)) == text
    assert ids["[X]"] in language.tokenizer.encode("a[X]b")
    assert ids["</s>"] not in language.tokenizer.encode("a</s>b")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers
def test_an_export_has_the_chat_template_and_the_special_tokens_of_the_file(tmp_path: Path) -> None:
    """The reference is what transformers reads from the export."""
    transformers = pytest.importorskip("transformers")
    tokenizer_entries = {"eos_token_id": 3, "bos_token_id": 256, "padding_token_id": 5, "unknown_token_id": 6}
    changes: dict[str, Any] = {f"tokenizer.ggml.{key}": value for key, value in tokenizer_entries.items()}
    changes["tokenizer.chat_template"] = "{{ messages }}"
    loaded = load(small(tmp_path / "model.gguf", metadata=changes))
    export_model(loaded, tmp_path / "out")
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (read.eos_token_id, read.bos_token_id, read.pad_token_id, read.unk_token_id) == (3, 256, 5, 6)
    assert read.chat_template == "{{ messages }}"
    changes["tokenizer.chat_template.rag"] = "{{ documents }}"
    several = load(small(tmp_path / "several.gguf", metadata=changes))
    assert several.tokenizer.config["chat_template"] == [
        {"name": "default", "template": "{{ messages }}"},
        {"name": "rag", "template": "{{ documents }}"},
    ]
