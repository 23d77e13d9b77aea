"""The settings of a config.json: each understood, or refused by name."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config import UserError
from lmjax.interop.huggingface import folder
from lmjax.interop.huggingface.config import counterpart, model_config
from lmjax.models import registry
from tests.interop.folders import GIVEN, GPT2, LLAMA, OLD, STYLES, attempt, put


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (LLAMA, {"model_type": "lama"}, "no model of model_type 'lama'; did you mean 'llama'?"),
        (LLAMA, {"model_type": None}, "config.json has no 'model_type'"),
        (LLAMA, {"hidden_size": "24"}, "'hidden_size' must be an integer, not '24'"),
        (LLAMA, {"hidden_size": True}, "'hidden_size' must be an integer, not True"),
        (LLAMA, {"num_hidden_layers": None}, "config.json has no 'num_hidden_layers'"),
        (LLAMA, {"num_hidden_layers": 10**9}, "parameters, the files hold"),
        (LLAMA, {"vocab_size": -1}, "'vocab_size' is -1, which is not a valid size"),
        (LLAMA, {"num_key_value_heads": 3}, "model.heads=4 is not a multiple of model.key_heads=3"),
        (LLAMA, {"rms_norm_eps": float("nan")}, "'rms_norm_eps' is nan"),
        (LLAMA, {"attention_bias": True}, "attention_bias and mlp_bias differ"),
        (LLAMA, {"hidden_act": "gelu"}, "computes only hidden_act='silu'"),
        (LLAMA, {"torch_dtype": "float8_e4m3fn"}, "weights of dtype 'float8_e4m3fn' are not read"),
        (LLAMA, {"quantization_config": {"bits": 4}}, "the weights are quantized"),
        (LLAMA, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "no rope_type 'yarn'"),
        (LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "no rope_type 'dynamic'"),
        (LLAMA, {"rope_scaling": {"type": "llama3", "factor": 4.0}}, "'rope_scaling' has no 'low_freq_factor'"),
        (LLAMA, {"rope_scaling": [1]}, "'rope_scaling' must be an object"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "rotates all features of a head, the model 0.5 of them"),
        (LLAMA, {"model_type": "mistral", "sliding_window": 8}, "sees only sliding_window=8 tokens"),
        (LLAMA, {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 8}, "sees only sliding_window=8"),
        (LLAMA, {"vocab_size": 20}, "'embed_tokens.weight' is (31, 24), the configuration asks for (20, 24)"),
        (LLAMA, {"vocab_size": 32}, "'embed_tokens.weight' is (31, 24), the configuration asks for (32, 24)"),
        (LLAMA, {"num_hidden_layers": 3}, "they have no tensor 'layers.2."),
        (LLAMA, {"num_hidden_layers": 1}, "it has no place for layers.1.input_layernorm.weight, layers.1.mlp.down"),
        (LLAMA, {"model_type": "qwen3"}, "they have no tensor 'layers.0.self_attn.k_norm.weight'"),
        (GPT2, {"activation_function": "swish"}, "has no activation_function 'swish'; supported: gelu, "),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "only scale_attn_by_inverse_layer_idx=False, the model has"),
        (OLD | {"model_type": "gpt_neox", "intermediate_size": 40}, {}, "only use_parallel_residual=False, the model"),
        (
            OLD | {"model_type": "gpt_neox", "intermediate_size": 40},
            {"use_parallel_residual": False},
            "rotates all features of a head, the model 0.25 of them",
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
        folder.load(put(tmp_path / "in", config | changes, GIVEN.weights("llama")))
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
    assert len(refused.splitlines()) == 1 or registry.check(found) is None
