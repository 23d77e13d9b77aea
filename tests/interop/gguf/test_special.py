"""The end of a generation in GGUF files: llama.cpp's rule, written out here case by case."""

from typing import Any

import numpy as np
import pytest

from lmjax.config import UserError
from lmjax.interop.gguf.special import special_tokens


def find(tokens: list[str], **metadata: Any) -> Any:
    return special_tokens({f"tokenizer.ggml.{k}": v for k, v in metadata.items()}, tokens, np.full(len(tokens), 3))


@pytest.mark.parametrize(
    ("tokens", "metadata", "ends"),
    [
        (["<|end_of_text|>", "<|eot_id|>", "a"], {"eos_token_id": 0}, (0, 1)),
        (["a", "b", "<|im_end|>", "<|endoftext|>"], {"eos_token_id": 2}, (2, 3)),
        (["a", "<end_of_turn>", "<eos>", "<|eom_id|>"], {}, (1, 2, 3)),
        (["_<EOT>", "[EOT]", "<EOT>", "EOT"], {}, (0, 1, 2)),
        (["a", "b", "c"], {"eos_token_id": 0, "eot_token_id": 1, "eom_token_id": 2}, (0, 1, 2)),
        (["<|fim_pad|>", "<|file_sep|>", "<|repo_name|>", "<|fim_prefix|>"], {}, (0, 1, 2)),
        (["<|fim_pad|>", "a"], {"fim_pad_token_id": 1}, (1,)),  # the id of the metadata counts
        (["<|end|>", "<|return|>", "<|call|>"], {}, (1, 2)),
        (["<|end|>", "<|return|>"], {}, (0, 1)),
        (["</s>", "<|tool_response>"], {}, (1,)),
        (["<unk>", "<s>", "</s>"], {"model": "llama"}, (2,)),
        (["a", "<s>", "x"], {"model": "llama"}, (2,)),  # the usual id of SentencePiece
        (["a", "b"], {"bos_token_id": 0}, ()),
    ],
)
def test_ends_are_those_of_llama_cpp(tokens: list[str], metadata: dict[str, Any], ends: tuple[int, ...]) -> None:
    assert find(tokens, **metadata).ends == ends


def test_the_beginning_is_named_by_the_file() -> None:
    assert find(["a", "b"], bos_token_id=1).bos == 1
    assert find(["<unk>", "<s>"], model="llama").bos == 1
    assert find(["a", "b"]).bos is None


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"add_eos_token": True}, "add_eos_token=True: a prompt after which its text ends cannot be continued"),
        ({"eot_token_id": 2}, "eot_token_id=2 is not an id below 2"),
        ({"fim_sep_token_id": 9}, "fim_sep_token_id=9 is not an id below 2"),
    ],
)
def test_what_cannot_be_followed_is_refused(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find(["a", "b"], **metadata)
