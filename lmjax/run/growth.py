"""Growth of a vocabulary: rows of new tokens in the parameters of a trained model."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lmjax.system.seeds import random_key

#: Standard deviation of the noise as a share of that of the rows.
NOISE = 0.1


def grown(
    leaves: Mapping[str, np.ndarray], shapes: Mapping[str, Any], axes: Mapping[str, tuple[str, ...]], *, seed: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Append rows of new tokens to every parameter with an axis of the vocabulary.

    A new row is the mean of the others with small noise: its logits are as large as those of an average token, whereas
    those of a random row could be the largest (Hewitt 2021, "Initializing new word embeddings for pretrained language
    models").

    Args:
        leaves: The trained parameters by name.
        shapes: Parameters of the model with the larger vocabulary, by name.
        axes: The names of the axes of each parameter (`registry.logical_axes`).
        seed: Seed of the noise.

    Returns:
        The parameters, and a line about each one that has grown.
    """
    result, lines = dict(leaves), []
    for name, leaf in leaves.items():
        names = axes.get("/".join(name.split("/")[-2:]), ())
        if name not in shapes or "vocab" not in names:
            continue
        axis = names.index("vocab")
        more = shapes[name].shape[axis] - leaf.shape[axis]
        if more > 0:
            result[name] = _with_rows(name, leaf, more, axis=axis, seed=seed)
            lines.append(f"  grown by {more} tokens: {name} (the mean of the others with small noise)")
    return result, lines


def _with_rows(name: str, leaf: np.ndarray, count: int, *, axis: int, seed: int) -> np.ndarray:
    rows = np.moveaxis(np.asarray(leaf, np.float32), axis, 0)
    key = jax.random.fold_in(random_key(seed), np.uint32(zlib.crc32(name.encode())))
    noise = np.asarray(jax.random.normal(key, (count, *rows.shape[1:])))
    new = rows.mean(0) + np.float32(NOISE * rows.std()) * noise
    return np.moveaxis(np.concatenate([rows, new]), 0, axis)
