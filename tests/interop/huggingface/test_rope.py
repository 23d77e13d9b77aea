"""Rotary settings with the precedence of transformers: fixed cases, and a differential test on generated settings."""

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config import GPTConfig, UserError
from lmjax.interop.huggingface.config import model_config
from lmjax.interop.huggingface.rope import rotary
from lmjax.interop.huggingface.settings import Settings
from tests.interop.folders import LLAMA, OLD

CONTEXT = 64
NEOX = OLD | {"model_type": "gpt_neox", "intermediate_size": 40, "use_parallel_residual": False, "rotary_pct": 1.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("values", "theta", "scaling"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, ()),
        ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 4}}, 1e4, (4.0,)),
        (  # rope_scaling replaces the other object, with its rope_theta
            {"rope_parameters": {"rope_theta": 5e5, "factor": 2.0}, "rope_scaling": {"type": "linear", "factor": 4.0}},
            1e4,
            (4.0,),
        ),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": {}}, 1e4, (2.0,)),
        ({"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 4.0}}, 1e4, ()),
        ({"rope_scaling": LLAMA3}, 1e4, (8.0, 1.0, 4.0, CONTEXT)),
        (
            {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}, "original_max_position_embeddings": 16},
            1e4,
            (8.0, 1.0, 4.0, 16.0),
        ),
    ],
)
def test_a_setting_in_two_places_counts_where_transformers_reads_it(
    values: dict[str, Any], theta: float, scaling: tuple[float, ...]
) -> None:
    table = rotary(Settings(values), CONTEXT)
    assert (table["rope_theta"], table["rope_scaling"]) == (theta, scaling)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "settings for 'full_attention' alone"),
        ({"rope_scaling": {"type": "linear", "factor": 0.0}}, "all numbers must be above 0"),
        ({"rope_theta": -1.0}, "'rope_theta' is -1.0, which must be above 0"),
        ({"rope_scaling": "linear"}, "'rope_scaling' must be an object"),
    ],
)
def test_settings_without_one_meaning_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rotary(Settings(values), CONTEXT)


def test_gpt_neox_has_its_own_names() -> None:
    assert rotary(Settings(NEOX | {"rotary_emb_base": 500}), CONTEXT, neox=True)["rope_theta"] == 500
    with pytest.raises(UserError, match=r"GPT-NeoX uses 10000.0 \(rotary_emb_base\)"):
        rotary(Settings(NEOX | {"rope_theta": 5e5}), CONTEXT, neox=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2", "n_head": 4, "num_attention_heads": 2}, "'n_head' is 4 but 'num_attention_heads' is 2"),
        ({"model_type": "mistral", "attention_bias": True, "mlp_bias": True}, "only attention_bias=False in mistral"),
        ({"dtype": None, "torch_dtype": "int8"}, "weights of dtype 'int8'"),
        ({"head_dim": 0}, "'head_dim' is 0, which is not a valid size"),
        ({"text_config": {"hidden_size": 3}}, "'text_config' is not supported"),
        ({"per_layer_config": {"0": {}}}, "'per_layer_config' is not supported"),
        ({"model_type": "qwen3", "layer_types": ["linear_attention"]}, "lmjax has full attention in all layers"),
    ],
)
def test_other_settings_with_two_places_are_followed_or_refused(changes: dict[str, Any], message: str) -> None:
    gpt2 = {"n_embd": 24, "n_layer": 1, "n_positions": 8} if changes.get("model_type") == "gpt2" else {}
    values = {name: value for name, value in LLAMA.items() if name != "num_attention_heads" or not gpt2}
    values = {"vocab_size": 31} if gpt2 else values
    with pytest.raises(UserError, match=message):
        model_config(values | gpt2 | changes)


def test_a_missing_number_of_key_heads_is_not_null() -> None:
    wide = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"} | {"num_attention_heads": 16}
    mistral = wide | {"model_type": "mistral", "sliding_window": None, "head_dim": 4}
    config: Any = model_config(mistral)
    null: Any = model_config(mistral | {"num_key_value_heads": None})
    assert (config.key_heads, null.key_heads) == (8, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_generated_settings_mean_what_they_mean_to_transformers() -> None:
    """The frequencies of transformers' own module, and its sizes; float32 on both sides, relative tolerance 1e-5."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    numbers = st.sampled_from([2.0, 4, 8.0])
    table = st.fixed_dictionaries(
        {},
        optional={
            "rope_type": st.sampled_from(["default", "linear", "llama3"]),
            "type": st.sampled_from(["default", "linear"]),
            "rope_theta": st.sampled_from([500.0, 1e6]),
            "factor": numbers,
            "low_freq_factor": st.just(1.0),
            "high_freq_factor": st.just(4.0),
            "original_max_position_embeddings": st.sampled_from([16, 32]),
        },
    )
    values = st.fixed_dictionaries(
        {"model_type": st.sampled_from(["llama", "mistral", "qwen3"])},
        optional={
            "rope_parameters": table | st.none(),
            "rope_scaling": table | st.none(),
            "rope_theta": st.sampled_from([200.0, 5e5]),
            "num_key_value_heads": st.sampled_from([1, 2, None]),
            "head_dim": st.sampled_from([4, 8]),
            "tie_word_embeddings": st.booleans(),
            "sliding_window": st.sampled_from([None, 64]),
        },
    )
    sizes = {"hidden_size": 128, "num_attention_heads": 32, "intermediate_size": 40, "num_hidden_layers": 1}
    sizes |= {"max_position_embeddings": CONTEXT, "vocab_size": 31}
    read = []

    @settings(max_examples=150, deadline=None)
    @given(values)
    def compare(changes: dict[str, Any]) -> None:
        import copy

        given_values = sizes | copy.deepcopy(changes)
        with contextlib.suppress(UserError):
            config: Any = model_config(copy.deepcopy(given_values))
            assert isinstance(config, GPTConfig)
            try:
                theirs = transformers.AutoConfig.for_model(**given_values)
            except Exception:  # transformers refuses null where it has a default
                return
            assert config.tied == theirs.tie_word_embeddings
            assert (config.key_heads or config.heads) == theirs.num_key_value_heads
            size = config.head_dim or config.width // config.heads
            assert size == theirs.head_dim
            expected = LlamaRotaryEmbedding(theirs).inv_freq.numpy()
            np.testing.assert_allclose(frequencies(config, size), expected, rtol=1e-5)
            read.append(changes)

    compare()
    assert len(read) > 50


def frequencies(config: GPTConfig, size: int) -> np.ndarray:
    """The rotary frequencies by their definition (Llama 3: interpolated between two wavelengths)."""
    unscaled = config.rope_theta ** (-np.arange(0, size, 2) / size)
    if len(config.rope_scaling) < 4:
        return unscaled / (config.rope_scaling[0] if config.rope_scaling else 1.0)
    factor, low, high, old = config.rope_scaling
    smooth = np.clip((old * unscaled / (2 * np.pi) - low) / (high - low), 0, 1)
    return unscaled * (smooth + (1 - smooth) / factor)
