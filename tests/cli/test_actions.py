"""What the doors call, on a model in a folder: what is printed, written and kept (tests/test_launch.py has a run)."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from lmjax.cli import actions
from lmjax.config import Config, GPTConfig, MaskedConfig, RewardConfig, TokenizerConfig, UserError
from lmjax.data.tokenizer import Tokenizer, build_tokenizer
from lmjax.evaluation import evaluator, report, scoring
from lmjax.evaluation.settings import Settings
from lmjax.inference.generate import generate
from lmjax.inference.language_model import LanguageModel
from lmjax.inference.sampling import Sampling
from lmjax.interop.huggingface.folder import export_model
from lmjax.models.scalar import Scalar
from lmjax.run import pretrained
from tests.evaluation import plain

ROWS = [{"input": a, "choices": ["A", "B", "C"], "answer": "ABC"[i % 3]} for i, a in enumerate("abcdefgh")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT as another library has it."""
    path = tmp_path_factory.mktemp("models") / "model"
    export_model(plain.language_model(plain.FAMILIES["gpt2"]), path)
    return path


@pytest.fixture
def letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A task in a file; and the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(scoring, "SHORTEST", 64)
    (tmp_path / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(tmp_path / "letters.jsonl")


@pytest.mark.slow
def test_a_text_is_printed_as_it_comes_and_several_behind_each_other(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm, settings = pretrained.load(folder), {"max_tokens": 40, "temperature": 0.7, "seed": 3}
    one, two = generate(lm, ["the ", "cat"], sampling=Sampling(**settings))
    assert actions.generate_texts(folder, ["the ", "cat"], dtype="float32", **settings) == 0
    assert capsys.readouterr().out == f"the {one}\n\ncat{two}\n\n"
    (alone,) = generate(lm, ["cat"], sampling=Sampling(**settings, stop=("e",)))
    assert actions.generate_texts(folder, ["cat"], dtype="float32", **settings, stop=("e",)) == 0
    assert capsys.readouterr().out == f"cat{alone}\n"


def test_an_export_does_not_lose_the_layer_that_a_run_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SimpleNamespace(model=Scalar(GPTConfig()), config=Config(objective=RewardConfig()))
    monkeypatch.setattr(pretrained, "trained", lambda path, checkpoint: run)
    with pytest.raises(UserError, match=r"trained for objective.family=reward: an export is a language model"):
        actions.export_run(tmp_path / "judge", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_language_model_answers_in_its_own_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = SimpleNamespace(objective=MaskedConfig())
    objective = SimpleNamespace(
        answer=lambda params, prompt, *, tokenizer, **settings: f"{prompt} of {params}{tokenizer}"
    )
    run = SimpleNamespace(config=config, objective=objective, params=1, tokenizer=2)
    monkeypatch.setattr(pretrained, "trained", lambda path, *, checkpoint: run)
    assert actions.generate_texts(tmp_path, ["a", "b"], dtype="float32", temperature=0) == 0
    assert capsys.readouterr().out == "a of 12\nb of 12\n"
    with pytest.raises(UserError, match="temperature"):
        actions.generate_texts(tmp_path, ["a"], dtype="float32", temperature=-1)


def test_an_evaluation_is_printed_written_drawn_and_kept(
    folder: Path, letters: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"shots": (0, 2), "seeds": 2}
    files = {"json": tmp_path / "found.json", "plot": tmp_path / "found.png"}
    assert actions.evaluate_model(folder, [letters], settings=settings, **files, samples=True, show=1) == 0
    printed = capsys.readouterr().out
    for word in ("of 72 requests", "letters, document 0, 0 examples", "answer: A", "acc", *map(str, files.values())):
        assert word in printed
    expected = evaluator.evaluate(pretrained.load(folder), [letters], Settings(**settings))
    found = report.read_json(files["json"])
    assert found.samples == expected.samples
    assert files["plot"].read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(scoring, "score", None)  # every answer is known
    assert actions.evaluate_model(folder, [letters], settings=settings | {"limit": 3}, json=tmp_path / "less.json") == 0
    assert "requests" not in capsys.readouterr().out
    assert actions.compare_evaluations([files["json"], files["json"]], plot=tmp_path / "both.png") == 0
    assert "letters" in capsys.readouterr().out
    assert (tmp_path / "both.png").is_file()


def test_without_a_cache_nothing_is_kept(folder: Path, letters: str, tmp_path: Path) -> None:
    actions.evaluate_model(folder, [letters], settings={"limit": 2}, cached=False)
    assert not (tmp_path / "cache").exists()


def test_what_cannot_be_done_is_refused_before_the_model_is_opened(
    letters: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "load", None)
    nowhere = tmp_path / "nowhere" / "file"
    for task, named, message in (
        (letters, {"settings": {"shots": (-1,)}}, "at least 0"),
        ("antonym", {"settings": {}}, "antonyms"),
        (letters, {"settings": {}, "json": nowhere}, "there is no folder"),
        (letters, {"settings": {}, "plot": nowhere}, "there is no folder"),
        (letters, {"settings": {}, "plot": tmp_path / "a.pdf"}, "'.*a.pdf': pictures are PNG files"),
    ):
        with pytest.raises(UserError, match=message):
            actions.evaluate_model(tmp_path, [task], **named)


def test_a_special_token_in_a_prompt_is_text_or_the_token() -> None:
    tokenizer = build_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), lambda: iter(["the cat sat. "] * 9))
    config = replace(plain.GPT, vocab_size=tokenizer.vocab_size)
    lm = LanguageModel(SimpleNamespace(config=config), {}, tokenizer)
    end = tokenizer.end_of_text
    text = tokenizer.token_text(end) + "the cat"
    assert actions._ids(lm, text, special=False) == tokenizer.encode(text)
    assert end not in actions._ids(lm, text, special=False)
    assert actions._ids(lm, text, special=True) == [end, *tokenizer.encode("the cat")]
    first = replace(lm, first=end)  # in front of every text, but only once
    assert actions._ids(first, text, special=True) == [end, *tokenizer.encode("the cat")]
    assert actions._ids(first, "the cat", special=True) == [end, *tokenizer.encode("the cat")]
    assert actions._ids(lm, "", special=True) == [end]


def test_what_is_not_used_and_not_read_is_said() -> None:
    """Settings of the model that differ, unknown tokens, and what exceeds the context: a line each."""
    backend = Backend(models.WordLevel({"[UNK]": 0, "the": 1, "cat": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    lm = LanguageModel(SimpleNamespace(config=plain.GPT), {}, Tokenizer(backend), generation={"top_p": 0.9})
    prompts = [lm.tokenizer.encode(text) for text in ("the cat", "the dog", "the " * (plain.GPT.context + 2))]
    assert [*actions._notes(lm, prompts, Sampling())] == [
        "generation_config.json has top_p=0.9; lmjax generate uses its own options",
        "prompt 2: the tokenizer cannot represent 1 of its 2 tokens",
        f"prompt 3: its first 2 of {plain.GPT.context + 2} tokens exceed the context",
    ]
    assert [*actions._notes(lm, prompts[:1], Sampling(top_p=0.9))] == []


def test_a_prompt_that_was_cut_is_marked(
    folder: Path, letters: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(lm: Any, requests: Any, *, share: bool, take: Any) -> None:
        take({i: scoring.Found(-1.0 - i, False) for i in range(len(requests))})

    monkeypatch.setattr(scoring, "score", score)
    (tmp_path / "long.jsonl").write_text(json.dumps(ROWS[0] | {"input": "a" * 60}) + "\n")
    file = tmp_path / "found.json"
    actions.evaluate_model(folder, [str(tmp_path / "long.jsonl")], settings={}, json=file, show=1, cached=False)
    printed = " ".join(capsys.readouterr().out.split())
    assert "0 examples (truncated: without its first 13 tokens)" in printed
    assert "the prompt was truncated to the context for 1 of 1 documents, by up to 13 tokens" in printed
    (row,) = json.loads(file.read_text())["lmjax"]["truncated"]
    assert (row["prompts"], row["prompt_tokens"], row["answers"]) == (1, 13, 0)
