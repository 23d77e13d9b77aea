"""Tensors of a file that hold no parameters.

Each is compared with the constant that it must be, then ignored.
"""

import re
from collections.abc import Callable

import numpy as np

from lmjax.config import BERTConfig, GPTConfig, ModelConfig, UserError

Rule = Callable[[np.ndarray, ModelConfig], bool]

_MASKED = -1e3  # maximum of a logit that masks a key; files have -1e4, -1e9 or minus infinity
_ROUNDING = 0.01  # relative, of frequencies that are stored in bfloat16
_TINY = 1e-6  # absolute, of frequencies that are stored in float16


def check(name: str, x: np.ndarray, config: ModelConfig, rules: dict[str, Rule]) -> bool:
    """Check a tensor that is not a parameter.

    Args:
        name: Name of the tensor, without the prefix of the base model.
        x: The tensor.
        config: The configuration of the model.
        rules: Regular expression of names -> whether such a tensor has the value that the model computes with.

    Returns:
        Whether the tensor is one of those that can be ignored.

    Raises:
        UserError: It has another value: the model was computed differently.
    """
    rule = next((rule for expression, rule in rules.items() if re.fullmatch(expression, name)), None)
    if rule is not None and not rule(x, config):
        raise UserError(
            f"tensor '{name}' does not have the value that follows from config.json; the weights belong to another "
            "configuration, or the file is damaged"
        )
    return rule is not None


def causal_mask(x: np.ndarray, config: ModelConfig) -> bool:
    """Whether a mask hides exactly the following tokens."""
    size = x.shape[-1] if x.ndim else 0
    return x.size == size**2 and bool(np.array_equal(x.reshape(size, size) != 0, np.tri(size, dtype=bool)))


def masked_logit(x: np.ndarray, config: ModelConfig) -> bool:
    """Whether a value removes a key from the softmax."""
    return x.size == 1 and bool(x.reshape(()) <= _MASKED)


def frequencies(x: np.ndarray, config: ModelConfig) -> bool:
    """Whether these are the rotary frequencies of the configuration, before or after scaling."""
    assert isinstance(config, GPTConfig)
    size = config.head_dim or config.width // config.heads
    if x.shape != (size // 2,):
        return False
    unscaled = config.rope_theta ** (-np.arange(0, size, 2) / size)
    lowest = unscaled / (config.rope_scaling[0] if config.rope_scaling else 1.0)
    within = (x <= unscaled * (1 + _ROUNDING) + _TINY) & (x >= lowest * (1 - _ROUNDING) - _TINY)
    return bool(within.all())


def positions(x: np.ndarray, config: ModelConfig) -> bool:
    """Whether these are the numbers of the positions from 0."""
    assert isinstance(config, BERTConfig)
    return x.size == config.context and bool(np.array_equal(x.reshape(-1), np.arange(config.context)))


def anything(x: np.ndarray, config: ModelConfig) -> bool:
    """For a head that the architecture in config.json does not have, as in transformers."""
    return True
