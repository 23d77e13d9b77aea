"""Models of transformers in and out. Tolerance 1e-5 where logits of size 1 are compared: float32, another order."""

import dataclasses
import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tokenizers import processors

from lmjax.config import BERTConfig, GPTConfig, NNLMConfig, TokenizerConfig, UserError
from lmjax.data import tokenizer
from lmjax.inference.language_model import LanguageModel
from lmjax.interop.huggingface.config import counterpart
from lmjax.interop.huggingface.folder import export_model, load
from lmjax.models import gpt, registry
from lmjax.pytrees import path_name
from tests import all_slow_but
from tests.interop.folders import FIXTURES, GIVEN, GPT2, SMALL, STYLES, put

close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)

TEXT = "Ein Text, übersetzt.\n\n  Two  blanks: 1 + 1 = 2; one text, two texts, all blank"
WORDS = tokenizer.build_tokenizer(TokenizerConfig(kind="bpe", vocab_size=290), lambda: iter([TEXT]))
PIECES = tokenizer.build_tokenizer(TokenizerConfig(kind="wordpiece", vocab_size=70), lambda: iter([TEXT]))


@cache
def compiled(model: Any) -> Any:
    return jax.jit(model.apply)


def logits(loaded: LanguageModel, inputs: np.ndarray) -> np.ndarray:
    named: dict[str, Any] = {}
    if isinstance(loaded.model.config, BERTConfig):
        named = {"kinds_BT": np.zeros_like(inputs), "real_BT": np.ones_like(inputs)}
    outputs = compiled(loaded.model)({"params": loaded.params}, inputs, **named)
    return outputs.logits_BPV if named else outputs


def leaves(tree: Any) -> dict[str, np.ndarray]:
    return {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


# ---- With transformers --------------------------------------------------------------------------------------------

SIZES = {
    "vocab_size": 292,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "bos_token_id": None,
    "eos_token_id": 256,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", SIZES | {"n_inner": 40}),
    "gpt2 untied": ("GPT2", SIZES | {"tie_word_embeddings": False, "activation_function": "gelu"}),
    "llama": ("Llama", GROUPED | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "llama biased": ("Llama", SIZES | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama linear": ("Llama", SIZES | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "llama 3": ("Llama", SIZES | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, **LLAMA3}}),
    "mistral": ("Mistral", GROUPED | {"sliding_window": None, "hidden_size": 26}),
    "qwen3": ("Qwen3", GROUPED | {"tie_word_embeddings": True}),
    "gpt neox": ("GPTNeoX", SIZES | {"use_parallel_residual": False, "rotary_pct": 1.0}),
    "bert": ("Bert", SIZES | {"eos_token_id": None}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", all_slow_but({3, 4}, MODELS))
@pytest.mark.filterwarnings("ignore")  # of torch and transformers
def test_a_model_of_transformers_comes_in_and_goes_out_the_same(name: str, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    family, given_settings = MODELS[name]
    kind = getattr(transformers, f"{family}ForPreTraining" if family == "Bert" else f"{family}LMHeadModel", None)
    kind = kind or getattr(transformers, f"{family}ForCausalLM")
    torch.manual_seed(0)
    theirs = kind(getattr(transformers, f"{family}Config")(**given_settings)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # none is zero, none is one
            parameter.add_(0.1 * torch.randn(parameter.shape))
    theirs.save_pretrained(tmp_path / "in", max_shard_size="20KB" if name == "llama" else "1GB")
    known = PIECES if family == "Bert" else WORDS
    known.save(tmp_path / "in" / "tokenizer.json")
    loaded = load(tmp_path / "in")
    inputs = np.random.default_rng(0).integers(0, 292, (2, 64)).astype(np.int32)

    def of_torch(model: Any) -> np.ndarray:
        with torch.no_grad():
            outputs = model(torch.from_numpy(inputs).long())
        return (outputs.prediction_logits if family == "Bert" else outputs.logits).numpy()

    expected = of_torch(theirs)
    assert np.abs(expected).max() > 1
    scale = np.abs(expected).max()
    close(logits(loaded, inputs) / scale, expected / scale)

    export_model(loaded, tmp_path / "out")
    auto = transformers.AutoModelForPreTraining if family == "Bert" else transformers.AutoModelForCausalLM
    back, report = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert type(back) is type(theirs)
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor), key
    np.testing.assert_array_equal(of_torch(back.eval()), expected)
    spoken = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = known.encode(TEXT)
    assert spoken.decode(ids) == known.decode(ids)
    if family == "Bert":
        assert spoken(TEXT).input_ids == [known.cls, *ids, known.sep]
        assert spoken("one", "two").token_type_ids == [0, 0, 0, 1, 1]
    else:
        assert spoken(TEXT) == {"input_ids": ids, "attention_mask": [1] * len(ids)}
        assert spoken.decode(ids) == TEXT
    again = load(tmp_path / "out")
    assert again.model.config == loaded.model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


# ---- With what transformers gave ----------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_logits_are_those_of_transformers_with_no_torch_at_hand(style: str, tmp_path: Path) -> None:
    """Also by the hub's names of GPT-2's tensors, which lack the base and have masks."""
    state = GIVEN.weights(style)
    if style == "gpt2":
        state = {name.removeprefix("transformer."): x for name, x in state.items()}
        state |= {f"h.{i}.attn.bias": np.tri(12, dtype=bool)[None, None] for i in range(2)}
    loaded = load(put(tmp_path / "in", STYLES[style], state))
    with np.load(FIXTURES / "gpt_transformers.npz", allow_pickle=False) as file:
        close(logits(loaded, GIVEN.inputs().astype(np.int32)), file[style])


# ---- Out ----------------------------------------------------------------------------------------------------------


def resolve(config: Any) -> Any:
    return registry.family(config).resolve(config)


def made(config: Any, known: tokenizer.Tokenizer = SMALL) -> LanguageModel:
    """A model with random parameters."""
    model: Any = registry.build(config)
    named = {}
    if isinstance(config, BERTConfig):
        named = {"kinds_BT": np.zeros((1, 4), np.int32), "real_BT": np.ones((1, 4), np.int32)}
    shapes = jax.eval_shape(partial(model.init, jax.random.key(0), **named), np.zeros((1, 4), np.int32))["params"]
    rng = np.random.default_rng(0)
    return LanguageModel(model, jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes), known)


BASE = GPTConfig(layers=2, width=24, heads=4, context=12, vocab_size=31, scan=False)
QUICKSTART = dataclasses.replace(
    BASE, mlp_width=40, norm="rmsnorm", positions="rotary", activation="swiglu", bias=False, qk_norm=True
)
ROUND = {
    "gpt2": dataclasses.replace(BASE, bias=False, activation="relu", dropout=0.1),
    "gpt_neox": dataclasses.replace(BASE, positions="rotary", bias=False, tied=False, rope_theta=100.0),
    "qwen3": dataclasses.replace(QUICKSTART, head_dim=10, key_heads=1, rope_scaling=(2.0,)),
    "llama": dataclasses.replace(QUICKSTART, qk_norm=False, scan=True, rope_scaling=(8.0, 1.0, 4.0, 16.0)),
    "bert": BERTConfig(layers=2, width=24, heads=4, context=12, vocab_size=31, next_sentence=False, scan=False),
}


@pytest.mark.parametrize("family", ROUND)
def test_our_models_come_back_the_same(family: str, tmp_path: Path) -> None:
    """To the bit, but for the biases of zero that the families with biases have."""
    ours = made(ROUND[family])
    config: Any = ours.model.config
    assert counterpart(config) == family
    export_model(ours, tmp_path / "out")
    back = load(tmp_path / "out")
    expected = dataclasses.replace(config, scan=True, dropout=0.0)
    if isinstance(config, GPTConfig) and not config.bias and config.norm == "layernorm":
        expected = dataclasses.replace(expected, bias=True)
    assert resolve(back.model.config) == resolve(expected)
    before, after = (leaves(gpt.unstack(x) if "blocks" in x else x) for x in (ours.params, back.params))
    for name, x in before.items():
        np.testing.assert_array_equal(after[name], x, err_msg=name)
    assert not any(after[name].any() for name in after.keys() - before.keys())
    assert back.tokenizer.sha256 == ours.tokenizer.sha256


def test_what_has_no_counterpart_is_refused_by_name(tmp_path: Path) -> None:
    for config, message in (
        (dataclasses.replace(BASE, norm="rmsnorm"), "gpt2 has all but model.norm=rmsnorm"),
        (
            dataclasses.replace(BASE, qk_norm=True, activation="swiglu"),
            "all but model.activation=swiglu, model.qk_norm=True",
        ),
        (dataclasses.replace(BASE, head_dim=10), "gpt2 has all but model.head_dim=10"),
        (dataclasses.replace(QUICKSTART, bias=True), "llama has all but model.qk_norm=True"),
        (NNLMConfig(vocab_size=31), "model.family=nnlm has no counterpart in transformers"),
    ):
        with pytest.raises(UserError) as caught:
            export_model(made(config), tmp_path / "out")
        assert message in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_an_export_replaces_only_an_earlier_one(tmp_path: Path) -> None:
    folder, ours = tmp_path / "out", made(BASE)
    folder.mkdir()
    (folder / "model.safetensors.partial").touch()  # of one that was stopped
    export_model(ours, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    export_model(dataclasses.replace(ours, first=3, stops=(4, 5)), folder)
    back = load(folder)
    assert (back.first, back.stops) == (3, (4, 5))
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [28, 4, 5]
    theirs = put(tmp_path / "theirs", GPT2, GIVEN.weights("gpt2"))
    with pytest.raises(UserError, match=r"is not empty and not an earlier export \(it has config.json\)"):
        export_model(ours, theirs)
    with pytest.raises(UserError, match="cannot write to "):
        export_model(ours, theirs / "config.json" / "out")


def test_text_begins_and_ends_where_the_folder_says(tmp_path: Path) -> None:
    """With a tokenizer.json, its post-processor decides what begins a text, as in transformers."""
    folder = put(tmp_path / "in", GPT2, GIVEN.weights("gpt2"))
    assert load(folder).first is None
    fast = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, content, begins, ends in (
        ("tokenizer_config.json", {"add_bos_token": True, "bos_token": "a", "eos_token": {"content": "b"}}, 2, {3}),
        ("generation_config.json", {"eos_token_id": [5, 28, 99, "x"]}, 2, {3, 5, 28}),
        ("tokenizer_config.json", {"add_bos_token": False, "bos_token": "a"}, 2, {5, 28}),
    ):
        (folder / name).write_text(json.dumps(content | (fast if name == "tokenizer_config.json" else {})))
        found = load(folder)
        assert (found.first, found.begins, set(found.ends)) == (None, begins, ends)
    backend = SMALL.backend.from_str(SMALL.json)
    for tokens, first in (("a", 2), ("ab", None)):
        pieces = [*tokens, "$A"]
        backend.post_processor = processors.TemplateProcessing(pieces, None, [(c, SMALL.encode(c)[0]) for c in tokens])
        backend.save(str(folder / "tokenizer.json"))
        if first is None:
            with pytest.raises(UserError, match=r"begins a text with 2 tokens \(a b\); lmjax supports one"):
                load(folder)
        else:
            assert load(folder).first == first


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [({"eos_token_id": [5, 4]}, 3, {5, 4}), ({"eos_token_id": 5}, [3], {5}), ({}, 3, {3}), (None, [3, 4], {3, 4})],
)
def test_the_ends_of_generation_config_precede_those_of_config(
    generation: dict[str, Any] | None, config: Any, ends: set[int], tmp_path: Path
) -> None:
    """As in transformers 5, where it names some; a stale id of config.json ends no text."""
    folder = put(tmp_path / "in", GPT2 | {"eos_token_id": config}, GIVEN.weights("gpt2"))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    loaded = load(folder)
    assert set(loaded.ends) - {loaded.tokenizer.end_of_text} == ends
    if generation:
        transformers = pytest.importorskip("transformers")
        named = transformers.GenerationConfig.from_pretrained(folder).eos_token_id
        assert {*(named if isinstance(named, list) else [named])} == ends


def test_a_token_without_a_row_is_refused_when_a_text_needs_it(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", GPT2, GIVEN.weights("gpt2"))
    rows = load(folder).model.config.vocab_size
    extra = [f"<{i}>" for i in range(rows)]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "extra_special_tokens": extra}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load(folder)
    assert loaded.tokenizer.vocab_size > rows
    assert loaded.ids("abc") == SMALL.encode("abc")
    assert max(loaded.tokenizer.encode(extra[-1], special=True)) >= rows


OPENED = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<bos>",
    "eos_token": "[EOS]",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "image_token": "<image>",
    "extra_special_tokens": ["<turn>"],
    "chat_template": "{{ messages }}",
    "model_max_length": 9,
    "padding_side": "left",
    "clean_up_tokenization_spaces": False,
}
GENERATED = {"eos_token_id": [30, 5], "bos_token_id": 29, "temperature": 0.5, "do_sample": True, "pad_token_id": 31}


@pytest.mark.filterwarnings("ignore")  # of transformers
def test_an_export_has_everything_that_the_opened_folder_holds(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = put(tmp_path / "in", GPT2, GIVEN.weights("gpt2"))
    (folder / "tokenizer_config.json").write_text(json.dumps(OPENED))
    (folder / "generation_config.json").write_text(json.dumps(GENERATED))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages }}")
    loaded = load(folder)
    export_model(loaded, tmp_path / "out")
    before, after = (transformers.AutoTokenizer.from_pretrained(path) for path in (folder, tmp_path / "out"))
    for text in ("abc", "<bos>a<turn><image>b[EOS]", "a b"):
        assert after(text)["input_ids"] == before(text)["input_ids"]
    for name in ("special_tokens_map", "chat_template", "model_max_length", "padding_side", "added_tokens_decoder"):
        assert getattr(after, name) == getattr(before, name), name
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == GENERATED
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["pad_token_id"]) == (before.bos_token_id, before.pad_token_id)
    again = load(tmp_path / "out")
    assert (again.begins, set(again.ends), again.tokenizer.sha256) == (
        loaded.begins,
        set(loaded.ends),
        loaded.tokenizer.sha256,
    )


@pytest.mark.slow
def test_an_export_is_json_of_the_standard(tmp_path: Path) -> None:
    """Python reads NaN and 1e400; no other reader does."""
    folder = put(tmp_path / "in", GPT2, GIVEN.weights("gpt2"))
    (folder / "generation_config.json").write_text('{"temperature": NaN}')
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1e400}')
    export_model(load(folder), tmp_path / "out")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for name in ("generation_config.json", "tokenizer_config.json"):
        json.loads((tmp_path / "out" / name).read_text(), parse_constant=refuse)
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1  # whoever may read the configuration may read the weights


@pytest.mark.filterwarnings("ignore")  # of transformers
def test_what_stands_around_a_text_goes_out_with_the_tokenizer(tmp_path: Path) -> None:
    """The first token where the model has one, whatever the tokenizer did by itself before."""
    transformers = pytest.importorskip("transformers")
    ours = made(dataclasses.replace(BASE, vocab_size=292), WORDS)
    for first in (290 - 1, None):  # <|endoftext|>
        export_model(dataclasses.replace(ours, first=first), tmp_path / "out")
        ours = load(tmp_path / "out")
        assert ours.first == first
        spoken = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        assert spoken(TEXT).input_ids == ([] if first is None else [first]) + WORDS.encode(TEXT)
