"""What the generation_config.json of a model says about the choice of tokens.

transformers applies these settings by itself; lmjax applies those that it is asked for.
"""

from collections.abc import Mapping
from typing import Any

from lmjax.inference.sampling import Sampling

#: Settings that `Sampling` has under the same name.
SHARED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
TOP_K = 50  # of transformers, if neither the model nor the user sets it

# Settings of transformers that lmjax does not have, with the value that has no effect; and those without such a value.
_NEUTRAL = {"num_beams": 1, "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0}
_NEUTRAL_DRAWN = {"typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0}
_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias", "stop_strings")
_LISTS += ("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "guidance_scale")


def missing(generation: Mapping[str, Any], *, drawn: bool) -> dict[str, Any]:
    """Return the settings that change the text in transformers, and that lmjax does not have.

    Args:
        generation: The content of generation_config.json.
        drawn: Whether tokens are drawn, or always the most likely ones.
    """
    neutral = _NEUTRAL | (_NEUTRAL_DRAWN if drawn else {})
    others = {name: generation[name] for name in _LISTS if generation.get(name)}
    changed = (name for name, value in neutral.items() if generation.get(name) not in (None, value))
    return others | {name: generation[name] for name in changed}


def unused(generation: Mapping[str, Any], sampling: Sampling) -> dict[str, Any]:
    """Return the settings that transformers would apply, and that are not those of `sampling`."""
    drawn = sampling.temperature > 0
    names = SHARED if drawn else ("repetition_penalty",)
    different = {n: generation[n] for n in names if generation.get(n) not in (None, getattr(sampling, n))}
    return different | missing(generation, drawn=drawn)
