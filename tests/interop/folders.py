"""Folders of small Hugging Face models, and what several tests here share."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lmjax.config import TokenizerConfig, UserError
from lmjax.data import tokenizer
from tests import FIXTURES


def fixture(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FIXTURES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GIVEN = fixture("gpt_transformers")
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
SMALL = tokenizer.build_tokenizer(TokenizerConfig(kind="characters"), lambda: iter(["abcdefghijklmnopqrstuvwxyz ."]))


def put(folder: Path, config: dict[str, Any], state: dict[str, np.ndarray]) -> Path:
    """A model as a folder."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors")
    SMALL.save(folder / "tokenizer.json")
    return folder


def attempt(function: Any, *given: Any) -> tuple[Any, str]:
    """What a function gives, or why it refuses."""
    try:
        return function(*given), ""
    except UserError as error:
        return None, str(error)
