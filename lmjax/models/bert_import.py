"""BERT's weights under the names that Hugging Face's transformers gives them, as parameters of `lmjax.models.bert`."""

from typing import Any

import numpy as np

from lmjax.config import BERTConfig, UserError
from lmjax.models.bert import stack

# Ours -> theirs, for layers with a kernel (which torch keeps transposed) and a bias, and for norms.
_DENSE = {
    ("attention", "query"): "attention.self.query",
    ("attention", "key"): "attention.self.key",
    ("attention", "value"): "attention.self.value",
    ("attention", "output"): "attention.output.dense",
    ("mlp", "up"): "intermediate.dense",
    ("mlp", "down"): "output.dense",
}
_NORMS = {"attention_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm"}
_TABLES = {
    "token_embedding": "word_embeddings",
    "kind_embedding": "token_type_embeddings",
    "position_embedding": "position_embeddings",
}


def from_transformers(state: dict[str, np.ndarray], config: BERTConfig) -> dict[str, Any]:
    """The parameters that the tensors of a `BertModel` or `BertForPreTraining` stand for, in float32.

    A state without heads (`cls.*`) or without the pooler gives parameters without them, enough for `BERT.encode` or
    its hidden states. Tensors that the configuration has no use for are passed over.
    UserError: a tensor that is missing or of another shape than the configuration says.
    """
    reader = _Reader({_plain(name): np.asarray(x) for name, x in state.items()})
    V, D, M = config.vocab_size, config.width, config.mlp_width or 4 * config.width
    rows = {"token_embedding": V, "kind_embedding": config.segments, "position_embedding": config.context}
    params: dict[str, Any] = {
        ours: {"embedding": reader.take(f"embeddings.{theirs}.weight", (rows[ours], D))}
        for ours, theirs in _TABLES.items()
    }
    params["embedding_norm"] = reader.norm("embeddings.LayerNorm", D)
    sizes = {"up": (D, M), "down": (M, D)}
    for i in range(config.layers):
        block: dict[str, Any] = {"attention": {}, "mlp": {}}
        for (part, name), theirs in _DENSE.items():
            block[part][name] = reader.dense(f"encoder.layer.{i}.{theirs}", *sizes.get(name, (D, D)))
        block |= {ours: reader.norm(f"encoder.layer.{i}.{theirs}", D) for ours, theirs in _NORMS.items()}
        params[f"block_{i}"] = block
    if "pooler.dense.weight" in reader.state:
        params["pooler"] = reader.dense("pooler.dense", D, D)
    if "cls.predictions.bias" in reader.state:
        params["masked_head"] = {
            "transform": reader.dense("cls.predictions.transform.dense", D, D),
            "norm": reader.norm("cls.predictions.transform.LayerNorm", D),
            "bias": reader.take("cls.predictions.bias", (V,)),
        }
    if config.next_sentence and "cls.seq_relationship.weight" in reader.state:
        params["next_sentence"] = reader.dense("cls.seq_relationship", D, 2)
    return stack(params) if config.scan else params


def _plain(name: str) -> str:
    """A tensor's name without the model's in front, and with today's names for a norm's two vectors."""
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


class _Reader:
    def __init__(self, state: dict[str, np.ndarray]) -> None:
        self.state = state

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in self.state:
            raise UserError(f"the weights are no BERT's of this model: they have no tensor '{name}'")
        if self.state[name].shape != shape:
            raise UserError(
                f"the weights do not fit the model: '{name}' is {self.state[name].shape}, the configuration asks for "
                f"{shape}"
            )
        return self.state[name].astype(np.float32)

    def dense(self, name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        kernel = self.take(f"{name}.weight", (outputs, inputs)).T
        return {"kernel": kernel, "bias": self.take(f"{name}.bias", (outputs,))}

    def norm(self, name: str, width: int) -> dict[str, np.ndarray]:
        return {"scale": self.take(f"{name}.weight", (width,)), "bias": self.take(f"{name}.bias", (width,))}
