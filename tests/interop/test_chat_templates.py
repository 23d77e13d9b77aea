"""Chat templates in the files of models, found where transformers looks."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmjax.config import UserError
from lmjax.data.chat_template import ChatTemplate
from lmjax.interop.chat_templates import ChatTemplates, _of_gguf, of_path


def test_special_tokens_of_a_gguf_file_have_the_names_of_its_metadata() -> None:
    """A SentencePiece vocabulary has usual ids for the beginning and the end, as in llama.cpp."""
    metadata: dict[str, Any] = {"tokenizer.ggml.tokens": [*"abcdef"], "tokenizer.ggml.model": "llama"}
    metadata |= {"tokenizer.ggml.unknown_token_id": 4, "tokenizer.ggml.padding_token_id": 5}
    assert dict(_of_gguf(metadata).tokens) == {"bos_token": "b", "eos_token": "c", "unk_token": "e", "pad_token": "f"}
    named = metadata | {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.bos_token_id": 0}
    assert dict(_of_gguf(named).tokens) == {"bos_token": "a", "unk_token": "e", "pad_token": "f"}


def test_templates_are_found_where_transformers_looks(tmp_path: Path) -> None:
    tokens: dict[str, Any] = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}

    def read(**settings: Any) -> ChatTemplates:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokens | settings))
        return of_path(tmp_path)

    assert dict(read().tokens) == {"bos_token": "<s>", "eos_token": "</s>"}
    with pytest.raises(UserError, match="the model has no chat template"):
        read().choose()
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    assert [read(chat_template=named).choose(name).source for name in (None, "tool_use")] == ["a", "b"]
    (tmp_path / "chat_template.jinja").write_text("c")
    assert read(chat_template="a").choose() == ChatTemplate("c", {"bos_token": "<s>", "eos_token": "</s>"})
    with pytest.raises(UserError, match="the model has no chat template 'rag'; it has default"):
        read(chat_template="a").choose("rag")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("d")
    assert read().choose("rag").source == "d"
