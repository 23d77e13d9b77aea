"""Example prompts come from the validation data of a run."""

from pathlib import Path

import pytest

from lmjax.config import ChatConfig
from lmjax.objectives import examples
from tests import small


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n The cat\nsat  on a mat", "The cat sat on"),
        ("他们说\x07" * 40, "他们说" * 13 + "他"),
        ("x" * 100, "x" * 40),
        (" \n", ""),
    ],
)
def test_the_first_words_fit_on_a_line(text: str, expected: str) -> None:
    assert examples.beginning(text) == expected


def test_a_prompt_is_the_beginning_of_a_validation_document(corpus: Path) -> None:
    run = small.build("nnlm", corpus)
    prompt = run.objective.example_prompt()
    words = run.store.tokenizer.decode(run.store.validation.ids[:200]).split()
    assert prompt.split() == words[: len(prompt.split())]
    assert len(prompt.split()) == 4
    masked = small.build("masked", corpus).objective.example_prompt()
    assert masked.split()[2] == "[MASK]"


@pytest.mark.parametrize("name", ["chat", "dpo", "reward", "translation", "bert labels"])
def test_a_prompt_is_a_question_of_the_validation_split(name: str, corpus: Path) -> None:
    run = small.build(name, corpus)
    prompt = run.objective.example_prompt().partition("\t")[0]
    stream = {"chat": "validation-0", "dpo": "validation-prompt", "reward": "validation-prompt"}
    ids = run.store.streams[stream.get(name, "validation-0")].ids
    held_out, training = (run.store.tokenizer.decode(part) for part in (ids, run.store.sources[0].ids))
    assert prompt in held_out
    assert name in ("translation", "bert labels") or prompt + "<|assistant|>" not in training


def test_data_that_are_gone_give_no_question(tmp_path: Path) -> None:
    assert examples.question(ChatConfig(files=(str(tmp_path / "gone.jsonl"),))) == ""
