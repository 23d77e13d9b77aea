"""Models of transformers in and out. Tolerance 1e-5 where logits of size 1 are compared: float32, another order."""

import dataclasses
import importlib.util
import json
import struct
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lmjax.config import BERTConfig, GPTConfig, NNLMConfig, TokenizerConfig, UserError
from lmjax.data import tokenizer
from lmjax.generate import LanguageModel
from lmjax.interop import huggingface, weights
from lmjax.interop.architectures import counterpart, model_config
from lmjax.models import families, gpt
from lmjax.pytrees import path_name

FIXTURES = Path(__file__).parents[1] / "fixtures"
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def fixture(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FIXTURES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GIVEN, BERT_GIVEN = fixture("gpt_transformers"), fixture("bert_transformers")
TEXT = "Ein Text, übersetzt.\n\n  Two  blanks: 1 + 1 = 2; one text, two texts, all blank"
WORDS = tokenizer.build(TokenizerConfig(kind="bpe", vocab_size=290), lambda: iter([TEXT]))
PIECES = tokenizer.build(TokenizerConfig(kind="wordpiece", vocab_size=70), lambda: iter([TEXT]))


@cache
def compiled(model: Any) -> Any:
    return jax.jit(model.apply)


def logits(loaded: LanguageModel, inputs: np.ndarray) -> np.ndarray:
    named: dict[str, Any] = {}
    if isinstance(loaded.model.config, BERTConfig):
        named = {"kinds_BT": np.zeros_like(inputs), "real_BT": np.ones_like(inputs)}
    outputs = compiled(loaded.model)({"params": loaded.params}, inputs, **named)
    return outputs.logits_BPV if named else outputs


def attempt(function: Any, *given: Any) -> tuple[Any, str]:
    """What a function gives, or why it refuses."""
    try:
        return function(*given), ""
    except UserError as error:
        return None, str(error)


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


@pytest.mark.parametrize("name", MODELS)
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
    loaded = huggingface.load(tmp_path / "in")
    inputs = np.random.default_rng(0).integers(0, 292, (2, 64)).astype(np.int32)

    def of_torch(model: Any) -> np.ndarray:
        with torch.no_grad():
            outputs = model(torch.from_numpy(inputs).long())
        return (outputs.prediction_logits if family == "Bert" else outputs.logits).numpy()

    expected = of_torch(theirs)
    assert np.abs(expected).max() > 1
    scale = np.abs(expected).max()
    close(logits(loaded, inputs) / scale, expected / scale)

    huggingface.export(loaded, tmp_path / "out")
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
    again = huggingface.load(tmp_path / "out")
    assert again.model.config == loaded.model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


# ---- With what transformers gave ----------------------------------------------------------------------------------

OLD = {  # in the words of transformers 4
    "hidden_size": GIVEN.WIDTH,
    "num_hidden_layers": GIVEN.LAYERS,
    "num_attention_heads": GIVEN.HEADS,
    "max_position_embeddings": GIVEN.CONTEXT,
    "vocab_size": GIVEN.VOCAB,
}
LLAMA = OLD | {
    "model_type": "llama",
    "num_key_value_heads": GIVEN.KEY_HEADS,
    "head_dim": GIVEN.HEAD_DIM,
    "intermediate_size": GIVEN.MLP_WIDTH,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": GIVEN.WIDTH,
    "n_layer": GIVEN.LAYERS,
    "n_head": GIVEN.HEADS,
    "n_positions": GIVEN.CONTEXT,
    "vocab_size": GIVEN.VOCAB,
    "n_inner": None,
}
STYLES = {"gpt2": GPT2, "llama": LLAMA, "qwen3": LLAMA | {"model_type": "qwen3"}}
SMALL = tokenizer.build(TokenizerConfig(kind="characters"), lambda: iter(["abcdefghijklmnopqrstuvwxyz ."]))


def put(folder: Path, config: dict[str, Any], state: dict[str, np.ndarray]) -> Path:
    """A model as a folder."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors")
    SMALL.save(folder / "tokenizer.json")
    return folder


@pytest.mark.parametrize("style", STYLES)
def test_logits_are_those_of_transformers_with_no_torch_at_hand(style: str, tmp_path: Path) -> None:
    """Also by the hub's names of GPT-2's tensors, which lack the base and have masks."""
    state = GIVEN.weights(style)
    if style == "gpt2":
        state = {name.removeprefix("transformer."): x for name, x in state.items()}
        state |= {f"h.{i}.attn.bias": np.ones((1, 1, 12, 12), bool) for i in range(2)}
    loaded = huggingface.load(put(tmp_path / "in", STYLES[style], state))
    with np.load(FIXTURES / "gpt_transformers.npz", allow_pickle=False) as file:
        close(logits(loaded, GIVEN.inputs().astype(np.int32)), file[style])


def test_half_precision_is_widened_exactly(tmp_path: Path) -> None:
    state = GIVEN.weights("llama")
    bits = {name: x.view(np.uint32) >> 16 for name, x in state.items()}
    content, entries = b"", {}
    for i, (name, x) in enumerate(state.items()):
        kind, data = ("BF16", bits[name].astype("<u2")) if i % 2 else ("F16", x.astype("<f2"))
        entries[name] = {
            "dtype": kind,
            "shape": x.shape,
            "data_offsets": [len(content), len(content) + data.nbytes],
        }
        content += data.tobytes()
    header = json.dumps(entries).encode()
    (tmp_path / "half.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + content)
    read = weights.read(tmp_path / "half.safetensors")
    for i, (name, x) in enumerate(state.items()):
        expected = (bits[name] << 16).view(np.float32) if i % 2 else x.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(read[name], expected)
        assert read[name].dtype == np.float32
    assert read.size == sum(x.size for x in state.values())


# ---- Settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (LLAMA, {"model_type": "lama"}, "no model of model_type 'lama'; did you mean 'llama'?"),
        (LLAMA, {"model_type": None}, "config.json has no 'model_type'"),
        (LLAMA, {"hidden_size": "24"}, "'hidden_size' must be an integer, not '24'"),
        (LLAMA, {"hidden_size": True}, "'hidden_size' must be an integer, not True"),
        (LLAMA, {"num_hidden_layers": None}, "config.json has no 'num_hidden_layers'"),
        (LLAMA, {"num_hidden_layers": 10**9}, "parameters, the files hold"),
        (LLAMA, {"vocab_size": -1}, "'vocab_size' is -1, which is no size"),
        (LLAMA, {"num_key_value_heads": 3}, "model.heads=4 is not a multiple of model.key_heads=3"),
        (LLAMA, {"rms_norm_eps": float("nan")}, "'rms_norm_eps' is nan"),
        (LLAMA, {"attention_bias": True}, "attention_bias and mlp_bias differ"),
        (LLAMA, {"hidden_act": "gelu"}, "computes only hidden_act='silu'"),
        (LLAMA, {"torch_dtype": "float8_e4m3fn"}, "weights of dtype 'float8_e4m3fn' are not read"),
        (LLAMA, {"quantization_config": {"bits": 4}}, "the weights are quantized"),
        (LLAMA, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "no rope_type 'yarn'"),
        (LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "no rope_type 'dynamic'"),
        (LLAMA, {"rope_scaling": {"type": "llama3", "factor": 4.0}}, "config.json has no 'low_freq_factor'"),
        (LLAMA, {"rope_scaling": [1]}, "'rope_parameters' must be an object"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "turns all features of a head, the model 0.5 of them"),
        (LLAMA, {"model_type": "mistral", "sliding_window": 8}, "sees only sliding_window=8 tokens"),
        (LLAMA, {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 8}, "sees only sliding_window=8"),
        (LLAMA, {"vocab_size": 20}, "its tokenizer has 29 entries, its model only 20"),
        (LLAMA, {"vocab_size": 32}, "'embed_tokens.weight' is (31, 24), the configuration asks for (32, 24)"),
        (LLAMA, {"num_hidden_layers": 3}, "they have no tensor 'layers.2."),
        (LLAMA, {"num_hidden_layers": 1}, "it has no place for layers.1.input_layernorm.weight, layers.1.mlp.down"),
        (LLAMA, {"model_type": "qwen3"}, "they have no tensor 'layers.0.self_attn.k_norm.weight'"),
        (GPT2, {"activation_function": "swish"}, "has no activation_function 'swish', but gelu, "),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "only scale_attn_by_inverse_layer_idx=False, the model has"),
        (OLD | {"model_type": "gpt_neox", "intermediate_size": 40}, {}, "only use_parallel_residual=False, the model"),
        (
            OLD | {"model_type": "gpt_neox", "intermediate_size": 40},
            {"use_parallel_residual": False},
            "turns all features of a head, the model 0.25 of them",
        ),
        (
            OLD | {"model_type": "bert", "intermediate_size": 40},
            {"position_embedding_type": "relative_key"},
            "only position_embedding_type='absolute', the model has 'relative_key'",
        ),
    ],
)
def test_what_is_not_computed_is_refused_in_a_line(
    config: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        huggingface.load(put(tmp_path / "in", config | changes, GIVEN.weights("llama")))
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_old_and_new_words_for_positions_mean_the_same() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    for theirs, ours in (
        ({"rope_theta": 5e5}, (5e5, ())),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, (1e4, (2.0,))),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **scaling}}, (5e5, (8.0, 1.0, 4.0, 8192.0))),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **scaling}}, (5e5, (8.0, 1.0, 4.0, 8192.0))),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_theta": None}, (1e6, ())),
    ):
        config: Any = model_config(LLAMA | theirs)
        assert (config.rope_theta, config.rope_scaling) == ours
    config = model_config(LLAMA | {"model_type": "mistral", "sliding_window": GIVEN.CONTEXT})  # all of the context
    assert counterpart(config) == "llama"


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([*STYLES.values(), OLD | {"model_type": "bert", "intermediate_size": 40}]),
    st.dictionaries(
        st.sampled_from(sorted({*LLAMA, *GPT2, "rope_parameters", "rope_scaling", "sliding_window", "architectures"})),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.just(10**400)
            | st.floats()
            | st.text(max_size=3)
            | st.just("qwen3"),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("rope_type"), inner),
            max_leaves=3,
        ),
        max_size=3,
    ),
)
def test_any_config_is_read_or_refused(config: dict[str, Any], changes: dict[str, Any]) -> None:
    found, refused = attempt(model_config, config | changes)
    assert len(refused.splitlines()) == 1 or families.check(found) is None


# ---- Files that are not what they say -----------------------------------------------------------------------------


def test_malformed_weights_are_always_refused(tmp_path: Path) -> None:
    """Any bytes, any cut, and any bits of the header turned give a UserError, or tensors that fill the file."""
    good = put(tmp_path / "in", GPT2, GIVEN.weights("gpt2")) / "model.safetensors"
    whole, path = good.read_bytes(), tmp_path / "bad.safetensors"
    header = 8 + int.from_bytes(whole[:8], "little")

    def offer(content: bytes) -> None:
        path.write_bytes(content)
        found, refused = attempt(weights.read, path)
        if found is None:
            assert str(path) in refused
            assert len(refused.splitlines()) == 1
        else:
            assert sum(found[name].nbytes for name in found) == len(whole) - header
            assert content[header:] == whole[header:]

    @settings(max_examples=150, deadline=None)
    @given(
        st.one_of(
            st.binary(max_size=100),
            st.binary(max_size=100).map(lambda text: struct.pack("<Q", len(text)) + text),
            st.integers(0, len(whole) - 1).map(lambda stop: whole[:stop]),
            st.binary(min_size=1, max_size=9).map(lambda more: whole + more),
        )
    )
    def whatever(content: bytes) -> None:
        if content != whole:
            offer(content)

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, header - 1), st.integers(1, 255)), min_size=1, max_size=3))
    def turned(bits: list[tuple[int, int]]) -> None:
        content = bytearray(whole)
        for place, mask in bits:
            content[place] ^= mask
        offer(bytes(content))

    whatever()
    turned()


def entry(kind: str, shape: list[Any], offsets: list[Any]) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry("F32", [2], [0, 8]), "b": entry("F32", [2], [4, 12])}, "'b' is not where the tensor before"),
        ({"a": entry("F32", [2], [0, 8]), "b": entry("F32", [1], [12, 16])}, "'b' is not where the tensor before"),
        ({"a": entry("F32", [3], [0, 12])}, "4 bytes at its end belong to no tensor"),
        ({"a": entry("F32", [2**31, 2**31], [0, 16])}, "is not a dtype, a shape and two offsets"),
        ({"a": entry("F32", [5], [0, 16])}, "'a' of shape [5] in F32 does not take [0, 16]"),
        ({"a": entry("F32", [5], [0, 20])}, "or is cut off"),
        ({"a": entry("F32", [-4], [0, 16])}, "is not a dtype, a shape and two offsets"),
        ({"a": entry("F32", [True, 4], [0, 16])}, "is not a dtype, a shape and two offsets"),
        ({"a": entry("F8_E4M3", [16], [0, 16])}, "'a' is stored as F8_E4M3; lmjax reads F64, "),
        ({"a": entry("F32", [4], [0, 16]) | {"more": 1}}, "is not a dtype, a shape and two offsets"),
        ([], "its header is not an object in JSON"),
        ({"a": {}}, "is not a dtype, a shape and two offsets"),
    ],
)
def test_every_claim_of_a_header_is_checked(header: Any, message: str, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(UserError) as caught:
        weights.read(tmp_path / "a.safetensors")
    assert message in str(caught.value)


def test_weights_that_are_not_safetensors_or_lie_elsewhere_are_refused(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", GPT2, GIVEN.weights("gpt2"))
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    with pytest.raises(UserError, match=r"has no weights: neither model\.safetensors nor"):
        huggingface.load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model\.bin, a format that can run code .* convert them"):
        huggingface.load(folder)
    for table, message in (
        ({"wte.weight": "../in/part.safetensors"}, "which is not a .safetensors file of its folder"),
        ({"wte.weight": "other.safetensors"}, "other.safetensors cannot be read: No such file"),
        ({"wte.weight": "part.safetensors"}, "says that 'wte.weight' is in part.safetensors, which has no such"),
        (["part.safetensors"], "has no 'weight_map' from tensors to files"),
    ):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
        with pytest.raises(UserError) as caught:
            huggingface.load(folder)
        assert message in str(caught.value)
    with pytest.raises(UserError, match=r"is not a Hugging Face model: it has no config\.json"):
        huggingface.load(tmp_path)


# ---- Out ----------------------------------------------------------------------------------------------------------


def resolve(config: Any) -> Any:
    return families.forms(config).resolve(config)


def made(config: Any, known: tokenizer.Tokenizer = SMALL) -> LanguageModel:
    """A model with random parameters."""
    model: Any = families.build(config)
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
    huggingface.export(ours, tmp_path / "out")
    back = huggingface.load(tmp_path / "out")
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
            huggingface.export(made(config), tmp_path / "out")
        assert message in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_an_export_replaces_only_an_earlier_one(tmp_path: Path) -> None:
    folder, ours = tmp_path / "out", made(BASE)
    folder.mkdir()
    (folder / "model.safetensors.partial").touch()  # of one that was stopped
    huggingface.export(ours, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    huggingface.export(dataclasses.replace(ours, first=3, stops=(4, 5)), folder)
    back = huggingface.load(folder)
    assert (back.first, back.stops) == (3, (4, 5))
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [28, 4, 5]
    theirs = put(tmp_path / "theirs", GPT2, GIVEN.weights("gpt2"))
    with pytest.raises(UserError, match=r"is not empty and not an earlier export \(it has config.json\)"):
        huggingface.export(ours, theirs)
    with pytest.raises(UserError, match="cannot write to "):
        huggingface.export(ours, theirs / "config.json" / "out")


def test_text_begins_and_ends_where_the_folder_says(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", GPT2, GIVEN.weights("gpt2"))
    assert huggingface.load(folder).first is None
    for name, content, ends in (
        ("tokenizer_config.json", {"add_bos_token": True, "bos_token": "a", "eos_token": {"content": "b"}}, (2, (3,))),
        ("generation_config.json", {"eos_token_id": [5, 28, 99, "x"]}, (2, (3, 5))),
        ("tokenizer_config.json", {"add_bos_token": False, "bos_token": "a"}, (None, (5,))),
    ):
        (folder / name).write_text(json.dumps(content))
        found = huggingface.load(folder)
        assert (found.first, found.stops) == ends


@pytest.mark.filterwarnings("ignore")  # of transformers
def test_what_stands_around_a_text_goes_out_with_the_tokenizer(tmp_path: Path) -> None:
    """The first token where the model has one, whatever the tokenizer did by itself before."""
    transformers = pytest.importorskip("transformers")
    ours = made(dataclasses.replace(BASE, vocab_size=292), WORDS)
    for first in (290 - 1, None):  # <|endoftext|>
        huggingface.export(dataclasses.replace(ours, first=first), tmp_path / "out")
        ours = huggingface.load(tmp_path / "out")
        assert ours.first == first
        spoken = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        assert spoken(TEXT).input_ids == ([] if first is None else [first]) + WORDS.encode(TEXT)
