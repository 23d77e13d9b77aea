"""Fine-tuning starts from another model, whose vocabulary grows by the control tokens that it lacks."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.cli import actions
from lmjax.config import Config, GPTConfig, TokenizerConfig, UserError
from lmjax.config.codec import apply_overrides
from lmjax.data import tokenizer
from lmjax.data.chat_tokens import ChatTokens, completed
from lmjax.data.store import preparation
from lmjax.diagnose import audit
from lmjax.inference.language_model import LanguageModel
from lmjax.interop.gguf import model as gguf
from lmjax.interop.huggingface.folder import export_model
from lmjax.models.gpt import GPT, init_params, unstack
from lmjax.pytrees import path_name
from lmjax.run import build, launch, transfer
from lmjax.run.saved import load
from tests import small
from tests.faults import runs


def leaves(params: Any) -> dict[str, np.ndarray]:
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def foreign(*, tied: bool) -> LanguageModel:
    """A model of another library, whose tokenizer has no control tokens."""
    known = tokenizer.build_tokenizer(TokenizerConfig("bytes"), lambda: iter(()))
    llama: Any = {"norm": "rmsnorm", "positions": "rotary", "activation": "swiglu", "bias": False, "tied": tied}
    model = GPT(GPTConfig(layers=2, width=16, heads=2, mlp_width=24, context=128, vocab_size=258, **llama))
    shapes = jax.eval_shape(lambda: init_params(model, 0))
    rng = np.random.default_rng(0)
    return LanguageModel(model, jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes), known)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tied"), [("hf", True), ("hf", False), ("GGUF", False)])
def test_a_pretrained_model_grows_by_what_it_lacks(
    kind: str, tied: bool, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lm, source = foreign(tied=tied), tmp_path / f"model.{kind}"
    if kind == "hf":
        export_model(lm, source)
    else:
        monkeypatch.setattr(gguf, "load", lambda path, dtype: lm)
    changes = [f"init_from={source}", "model.scan=false"]
    config = transfer.adopt(apply_overrides(small.config("chat", corpus), changes))
    model: Any = config.model
    assert (model.vocab_size, model.layers, model.context) == (257 + 4, 2, 64)
    run = build.build(config, preparation.prepare(config.data))
    assert run.store.tokenizer.sha256 == completed(lm.tokenizer).sha256
    said: list[str] = []
    state, origin = transfer.begin(run, report=said.append)
    before, after = leaves(unstack(lm.params)), leaves(state.params)
    assert before.keys() == after.keys()
    grown = {"token_embedding/embedding"} | ({"head/kernel"} if not tied else set())
    for name, leaf in after.items():
        rows = [slice(0, size) for size in before[name].shape]
        np.testing.assert_array_equal(leaf[tuple(rows)], before[name], err_msg=name)
        assert (leaf.shape != before[name].shape) == (name in grown)
    assert {line.split()[4] for line in said if "grown by 3 tokens" in line} == grown
    assert origin["init_from"] == str(source)


@pytest.mark.slow
def test_a_stage_is_stopped_resumed_and_audited_like_every_run(
    tiny: Config, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base model has no control tokens; killed between two saves, the fine-tuning ends with the same bits."""
    sizes = [
        "model.layers=1",
        "model.context=64",
        "batch.tokens=[(0, 256)]",
        "train.updates=2",
        "train.sample_tokens=0",
    ]
    base = tmp_path / "base"
    assert launch.start(apply_overrides(tiny, [*sizes, "train.baselines=false"]), base) == 0
    config = apply_overrides(small.config("chat", corpus), [f"init_from={base}", "train.updates=16"])
    stopped, fresh = tmp_path / "stopped", tmp_path / "fresh"
    assert runs.start(config, stopped, "update=SIGTERM@11") == 0
    assert runs.summary(stopped)["status"] == "stopped"
    assert runs.resume(stopped) == 0
    assert runs.start(config, fresh) == 0
    assert runs.losses(stopped) == runs.losses(fresh)
    assert runs.digest(stopped) == runs.digest(fresh)
    summary = runs.summary(fresh)
    assert {"val_loss", "val_accuracy", "val_exact", "val_ended", "dropped"} <= summary.keys()
    assert audit.show(stopped) == 0
    said = capsys.readouterr().out
    assert "grown by 4 tokens: token_embedding/embedding" in said
    assert actions.generate_texts(stopped, ["Which number is two?"], dtype="float32", max_tokens=3, temperature=0) == 0
    answer = capsys.readouterr().out
    assert "Which" not in answer  # the answer alone
    assert actions.export_run(stopped, tmp_path / "export") == 0
    settings = json.loads((tmp_path / "export" / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == ChatTokens(load(stopped).tokenizer).template
    ends = json.loads((tmp_path / "export" / "generation_config.json").read_text())["eos_token_id"]
    assert ChatTokens(load(stopped).tokenizer).end in ends
    capsys.readouterr()
    assert launch.show_plan(dataclasses.replace(config, init_from=str(fresh))) == 0
    assert f"{261 * 16:,}" in capsys.readouterr().out  # the sizes of the model that is fine-tuned


def test_a_missing_stage_is_named_with_its_command(tmp_path: Path) -> None:
    for name, expected in (("facts", True), ("nothing", False)):
        with pytest.raises(UserError) as error:
            transfer.adopt(Config(init_from=str(tmp_path / "runs" / name)))
        assert "there is no such file or folder" in str(error.value)
        assert (f"train this stage first with `python train.py {name}`" in str(error.value)) == expected
