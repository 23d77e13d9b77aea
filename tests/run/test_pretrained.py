"""A model by its path: each form opens as what it is, and what is none says so in one line."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lmjax.config import BERTConfig, CausalConfig, MaskedConfig, UserError
from lmjax.inference.language_model import LanguageModel
from lmjax.interop.gguf import model
from lmjax.interop.huggingface import folder as huggingface
from lmjax.models.bert import BERT
from lmjax.objectives.causal import Causal
from lmjax.objectives.masked import Masked
from lmjax.run import pretrained, saved
from tests.evaluation import plain


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A GPT of another library."""
    huggingface.export_model(plain.language_model(plain.FAMILIES["gpt2"]), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Path, int | None]]:
    """The runs and checkpoints that are opened; `run` is one, whose best checkpoint is that of update 7."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    found: list[tuple[Path, int | None]] = []

    def load(path: Path, update: int | None) -> SimpleNamespace:
        found.append((path, update))
        lm = plain.language_model(plain.FAMILIES["nnlm"])
        kind, settings = (Masked, MaskedConfig()) if update == 9 else (Causal, CausalConfig())
        objective, config = object.__new__(kind), SimpleNamespace(objective=settings)
        return SimpleNamespace(
            config=config, objective=objective, model=lm.model, params=lm.params, tokenizer=lm.tokenizer
        )

    monkeypatch.setattr(saved, "load", load)
    monkeypatch.setattr(saved, "best", lambda path: (7, 1.5))
    return found


def test_a_folder_of_another_library_opens_as_it_is(folder: Path) -> None:
    expected = plain.language_model(plain.FAMILIES["gpt2"])
    for path in (folder, str(folder)):
        found = pretrained.load(path, dtype="bfloat16")
        assert found.name == "model"
        assert found.model.config.dtype == "bfloat16"
        assert found.tokenizer.sha256 == expected.tokenizer.sha256
        embedding = found.params["token_embedding"]["embedding"]
        np.testing.assert_array_equal(embedding, expected.params["token_embedding"]["embedding"])
    assert pretrained.load(folder).model.config.dtype == "float32"


def test_a_file_opens_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = plain.language_model(plain.FAMILIES["gpt2"])
    monkeypatch.setattr(model, "load", lambda path, *, dtype: replace(lm, name=f"{path.name} in {dtype}"))
    for name in ("a.gguf", "A.GGUF"):
        assert pretrained.load(tmp_path / name).name == f"{name} in float32"


def test_a_checkpoint_of_a_run_is_chosen(opened: list[tuple[Path, int | None]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    for checkpoint in ("newest", "best", "12"):
        assert pretrained.load(run, checkpoint=checkpoint).name == str(run)
    assert opened == [(run, None), (run, 7), (run, 12)]


def test_a_cached_model_of_the_hub_opens_as_its_snapshot(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0a"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    assert pretrained.load(tmp_path / "models--a--b").name == "0a"


def test_a_refusal_names_its_cause(tmp_path: Path) -> None:
    for name in ("adapter", "quantized", "dangling", "runs/first", "runs/second"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "quantized" / "model-q4.gguf").write_bytes(b"")
    (tmp_path / "dangling" / "config.json").symlink_to("../blobs/77")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "link").symlink_to("gone")
    for name in ("first", "second"):
        (tmp_path / "runs" / name / "config.json").write_text("{}")
    for path, message in (
        ("adapter", r"it holds an adapter \(LoRA\), not a complete model; merge it into its base model"),
        ("quantized", r"it holds the file model-q4\.gguf, which opens as a model; give the file"),
        ("dangling", r"config\.json is a link to \.\./blobs/77, which does not exist"),
        ("runs", "it holds 2 folders with a model, such as first; give one of them"),
        ("model.safetensors", "it is a file; give its folder"),
        ("notes.txt", "it is a file of another kind"),
        ("link", "link' is a link to 'gone', which does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            pretrained.load(tmp_path / path)


def test_what_is_no_language_model_is_refused(
    folder: Path, opened: list[tuple[Path, int | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    for name, checkpoint, message in (
        ("nowhere", "newest", "there is no such file or folder"),
        ("empty", "newest", "it is neither a run nor a Hugging Face model"),
        ("nowhere.gguf", "newest", "nowhere.gguf"),
        ("run", "last", "give newest, best, or the number of an update"),
        ("run", "-1", "give newest, best, or the number of an update"),
        ("run", "9", "it was trained for masked"),
    ):
        with pytest.raises(UserError, match=message):
            pretrained.load(tmp_path / name, checkpoint=checkpoint)
    bert = LanguageModel(BERT(BERTConfig(vocab_size=9)), {}, plain.CHARACTERS, name="masked words")
    monkeypatch.setattr(huggingface, "load", lambda path, dtype: bert)
    assert pretrained.foreign(folder) is bert
    with pytest.raises(UserError, match="masked words is not a causal language model: it is of the family bert"):
        pretrained.load(folder)
