"""Tensors of a file against a configuration: every tensor is used, equal to one that is used, or refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmjax.config import UserError
from lmjax.interop.huggingface.config import model_config
from lmjax.interop.huggingface.layouts import from_transformers, own_head
from tests.interop.folders import GIVEN, LLAMA, SMALL

TIED: Any = model_config(LLAMA | {"tie_word_embeddings": True})
STATE = {name: x for name, x in GIVEN.weights("llama").items() if name != "lm_head.weight"}
EMBEDDING = STATE["model.embed_tokens.weight"]


def test_an_output_layer_of_its_own_unties_the_model() -> None:
    other = STATE | {"lm_head.weight": EMBEDDING + 1}
    config: Any = own_head(other, TIED)
    assert config == dataclasses.replace(TIED, tied=False)
    np.testing.assert_array_equal(from_transformers(other, config)["head"]["kernel"], EMBEDDING.T + 1)
    with pytest.raises(UserError, match=r"'lm_head\.weight' has other values than 'embed_tokens\.weight'"):
        from_transformers(other, TIED)


@pytest.mark.parametrize("names", [("model.embed_tokens.weight", "lm_head.weight"), ("lm_head.weight",)])
def test_a_copy_of_the_embedding_is_the_embedding(names: tuple[str, ...]) -> None:
    """Files may have both tensors, or only the second: transformers ties them in both directions."""
    state = {name: x for name, x in STATE.items() if x is not EMBEDDING} | dict.fromkeys(names, EMBEDDING)
    assert own_head(state, TIED) == TIED
    params = from_transformers(state, TIED)
    np.testing.assert_array_equal(params["token_embedding"]["embedding"], EMBEDDING)
    assert "head" not in params


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_the_tensor(value: float) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    wrong = STATE[name].copy()
    wrong[0, :3] = value
    with pytest.raises(UserError, match=rf"tensor '{name}' has 3 of {wrong.size:,} values that are not finite"):
        from_transformers(STATE | {name: wrong}, TIED)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_logits_are_those_of_transformers_when_the_flag_contradicts_the_file(family: str, tmp_path: Path) -> None:
    """Float32 on both sides, other orders of summing: tolerance 1e-4."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from lmjax.interop.huggingface import folder

    sizes = {"vocab_size": SMALL.vocab_size, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"max_position_embeddings": 12, "initializer_range": 0.5, "bos_token_id": None, "eos_token_id": None}
    sizes |= {} if family == "gpt2" else {"intermediate_size": 24}
    sizes |= {"use_parallel_residual": False, "rotary_pct": 1.0} if family == "gpt_neox" else {}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **sizes, tie_word_embeddings=False)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    SMALL.save(tmp_path / "tokenizer.json")
    ids = np.arange(10)[None] % SMALL.vocab_size
    with torch.no_grad():
        expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(torch.tensor(ids)).logits.numpy()
    lm = folder.load(tmp_path)
    assert not lm.model.config.tied
    np.testing.assert_allclose(lm.model.apply({"params": lm.params}, ids.astype(np.int32)), expected, atol=1e-4)
