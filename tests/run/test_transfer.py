"""Starting from what another run has learned."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from lmjax.config import Config, GPTConfig, TokenizerConfig, UserError, codec
from lmjax.config.codec import apply_overrides
from lmjax.data import tokenizer
from lmjax.data.store import preparation
from lmjax.inference.language_model import LanguageModel
from lmjax.interop.gguf import model as gguf
from lmjax.interop.huggingface.folder import export_model
from lmjax.journal import journal
from lmjax.models.gpt import GPT, init_params, unstack
from lmjax.pytrees import digest, path_name
from lmjax.run import build, curves, launch, resume, transfer
from lmjax.run.saved import load
from lmjax.system import faults
from lmjax.training import checkpoint
from tests import small

FAST = ("model.dropout=0.0", "batch.microbatch=8", "optimizer.name=lion")  # to compile


def leaves(params: Any) -> dict[str, np.ndarray]:
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def blank(made: build.Run) -> Any:
    """A state that takes no time to compile."""
    state: Any = jax.device_put(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), made.abstract_state))
    return state.replace(params=jax.device_put(small.rough(made.objective)))


@pytest.fixture(scope="module")
def source(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers, stacked, as a run leaves it behind."""
    folder = tmp_path_factory.mktemp("source") / "run"
    made = small.build("masked", corpus, "model.scan=true", "model.layers=2", "optimizer.ema=0.9", *FAST)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(codec.to_json(made.config))
    made.store.tokenizer.save(folder / "tokenizer.json")
    state = blank(made).replace(ema=jax.device_put(small.rough(made.objective, seed=1)))  # the average is what is used
    saves = checkpoint.Checkpoints(folder / "checkpoints", config=made.config.checkpoint)
    saves.save(state, {"update": 7, "cursor": 56, "wall_step": 7, "digest": digest(state)})
    saves.close()
    assert saves.failure() is None
    return folder


@pytest.fixture(scope="module")
def theirs(source: Path) -> dict[str, np.ndarray]:
    """What is to be taken: the average of the parameters."""
    return leaves(load(source).params)


def test_a_reward_model_is_no_policy_to_start_from(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(codec.to_json(small.config("reward", corpus)))
    config = replace(small.config("dpo", corpus), init_from=str(tmp_path))
    with pytest.raises(UserError, match=r"is a reward model, which writes no answers, and objective.family=dpo needs"):
        transfer.adopt(config)


def prepared(corpus: Path, source: Path, *changes: str, name: str = "bert labels") -> build.Run:
    config = apply_overrides(small.config(name, corpus), [f"init_from={source}", *FAST, *changes])
    config = transfer.adopt(config)
    return build.build(config, preparation.prepare(config.data))


def begun(made: build.Run) -> tuple[Any, dict[str, Any], list[str]]:
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "init", blank)
        state, origin = transfer.begin(made, report=said.append)
    return state, origin, said


@pytest.mark.slow
def test_a_classifier_takes_the_encoder_and_begins_its_own_head_anew(
    corpus: Path, source: Path, theirs: dict[str, np.ndarray]
) -> None:
    """From layers stacked by a scan to layers that are not, to the bit; the report says what is new and unused."""
    made = prepared(corpus, source, "model.dropout=0.3")
    model: Any = made.config.model
    assert (model.layers, model.scan, model.dropout) == (2, False, 0.3)
    fresh = leaves(small.rough(made.objective))
    state, origin, said = begun(made)
    ours = leaves(state.params)
    new = {"classifier/kernel", "classifier/bias"}
    for name, leaf in ours.items():
        block = name.partition("/")[0].removeprefix("block_")
        there = theirs.get(name.replace(f"block_{block}/", "blocks/"))
        expected = fresh[name] if name in new else there[int(block)] if block.isdigit() else there  # type: ignore[index]
        np.testing.assert_array_equal(leaf, expected, err_msg=name)
    assert origin == {"init_from": str(source), "init_sha256": digest(state.params)}
    values = sum(ours[name].size for name in ours if name not in new)
    unused = sorted(name for name in theirs if name not in ours and not name.startswith("blocks/"))
    assert unused
    assert said == [
        f"{source}: {len(ours) - 2} of {len(ours)} parameters taken, {values:,} values",
        "  newly initialized: classifier/bias, classifier/kernel",
        f"  not used: {', '.join(unused)}",
    ]
    assert int(state.update) == 0


@pytest.mark.slow
def test_a_file_of_tensors_serves_and_layers_are_stacked_where_the_model_scans(
    corpus: Path, source: Path, theirs: dict[str, np.ndarray], tmp_path: Path
) -> None:
    sizes = ("model.layers=2", "data.tokenizer.kind=file", f"data.tokenizer.path={source / 'tokenizer.json'}")
    flat = {}
    for name, leaf in theirs.items():
        rest = name.removeprefix("blocks/")
        layers = {f"block_{i}.{rest}": layer for i, layer in enumerate(leaf)} if rest != name else {name: leaf}
        flat |= {key.replace("/", "."): np.ascontiguousarray(layer) for key, layer in layers.items()}
    save_file(flat, tmp_path / "bert.safetensors")
    made = prepared(corpus, tmp_path / "bert.safetensors", "model.scan=true", "optimizer.ema=0.9", *sizes)
    state, origin, _ = begun(made)
    ours = leaves(state.params)
    shared = set(theirs) & set(ours)
    assert any(name.startswith("blocks/") for name in shared)
    for name in shared:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert digest(state.ema) == digest(state.params) == origin["init_sha256"]
    assert not set(map(id, jax.tree.leaves(state.ema))) & set(map(id, jax.tree.leaves(state.params)))


def test_what_cannot_be_taken_is_answered_in_a_line(corpus: Path, source: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    save_file({"conv.weight": np.ones(3, np.float32)}, tmp_path / "other.safetensors")
    save_file({"classifier.bias": np.ones(4, np.float32)}, tmp_path / "wide.safetensors")
    for name, message in (
        ("nowhere", "is not a run or a Hugging Face model (it has no config.json), and not a .gguf or .safetensors"),
        ("missing.safetensors", "cannot be read: "),
        ("torn.safetensors", "cannot be read: "),
        ("other.safetensors", "has no parameter of this model; it has conv/weight, ..."),
        ("wide.safetensors", "has parameters of other shapes: classifier/bias is (3,), there (4,); give the model"),
    ):
        with pytest.raises(UserError) as caught:
            begun(prepared(corpus, tmp_path / name))
        assert str(caught.value).startswith(f"init_from={tmp_path / name} ")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    made = small.build("bert labels", corpus, f"init_from={source}", "data.tokenizer.vocab_size=60")  # not adopted
    with pytest.raises(UserError, match=r"was trained with another tokenizer; set data\.tokenizer\.kind=file data"):
        begun(made)


@pytest.fixture(scope="module")
def foreign() -> LanguageModel:
    """A model such as other libraries have them: rotary, of three layers, with more entries than its tokenizer."""
    known = tokenizer.build_tokenizer(TokenizerConfig(kind="bytes"), lambda: iter(()))
    llama: Any = {"norm": "rmsnorm", "positions": "rotary", "activation": "swiglu", "bias": False, "key_heads": 1}
    model = GPT(GPTConfig(layers=3, width=16, heads=2, mlp_width=24, context=64, vocab_size=260, **llama))
    shapes = jax.eval_shape(lambda: init_params(model, 0))
    rng = np.random.default_rng(0)
    return LanguageModel(model, jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes), known)


@pytest.mark.parametrize("kind", ["hf", "GGUF"])
def test_a_model_of_another_library_is_trained_on_with_its_tokenizer(
    kind: str, tiny: Config, foreign: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every parameter to the bit, in a run that computes in its own way and on shorter windows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / f"model.{kind}"
    if kind == "hf":
        export_model(foreign, source)
    else:
        monkeypatch.setattr(gguf, "load", lambda path, dtype: foreign)
    changes = [f"init_from={source}", "model.scan=false", "model.context=16", "data.tokenizer.kind=characters"]
    config = transfer.adopt(apply_overrides(tiny, changes))
    model: Any = config.model
    assert (model.layers, model.context, model.scan, model.dropout, model.key_heads) == (3, 16, False, 0.1, 1)
    assert tokenizer.load_tokenizer(Path(config.data.tokenizer.path)).sha256 == foreign.tokenizer.sha256
    made = build.build(config, preparation.prepare(config.data))
    state, origin, said = begun(made)
    ours, theirs = leaves(state.params), leaves(unstack(foreign.params))
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)
    assert origin["init_from"] == str(source)
    assert len(said) == 1
    other = apply_overrides(config, ["data.tokenizer.kind=characters"])
    with pytest.raises(UserError, match=r"was trained with another tokenizer; set data\.tokenizer\.kind=file data"):
        begun(build.build(other, preparation.prepare(other.data)))


@pytest.mark.slow
def test_a_run_from_another_keeps_what_is_frozen_and_goes_on_when_that_is_gone(
    corpus: Path, source: Path, theirs: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "draw", lambda *_: [])
    there, folder = tmp_path / "there", tmp_path / "run"
    shutil.copytree(source, there)
    config = apply_overrides(
        small.config("bert labels", corpus),
        [f"init_from={there}", 'optimizer.freeze=["token_embedding/*","block_0/*"]', "train.updates=4", *FAST],
    )
    whole, taken = transfer.begin, []

    def noted(*args: Any, **named: Any) -> Any:
        state, origin = whole(*args, **named)
        taken.append(origin)
        return state, origin

    monkeypatch.setattr(transfer, "begin", noted)
    with faults.armed("update=SIGTERM@2"):
        assert launch.start(config, folder) == 0
    begin = journal.read(folder / "journal.jsonl")[0]
    assert (begin["init_from"], begin["init_sha256"]) == (str(there), taken[0]["init_sha256"])
    shutil.rmtree(there)
    saved = codec.from_json((folder / "config.json").read_text(), Config)
    assert resume.resume(saved, folder) == 0
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
    ours = leaves(load(folder).params)
    for name, leaf in ours.items():
        block = name.partition("/")[0].removeprefix("block_")
        there_leaf = theirs.get(name.replace(f"block_{block}/", "blocks/"))
        if there_leaf is not None:
            same = np.array_equal(leaf, there_leaf[int(block)] if block.isdigit() else there_leaf)
            assert same == name.startswith(("token_embedding/", "block_0/")), name
