"""The `generation_kwargs` of lm-evaluation-harness as sampling settings."""

import math
from collections.abc import Mapping
from typing import Any

from lmjax.config import UserError
from lmjax.config.errors import nearest
from lmjax.inference import generation_settings
from lmjax.inference.sampling import Sampling

MAX_TOKENS = 256  # default length of a continuation, as in the harness's own models
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_CHOICES = {"top_k": int, "top_p": float, "min_p": float, "repetition_penalty": float}
_KNOWN = ("until", "do_sample", "temperature", *_LENGTHS, *_CHOICES)
_NEUTRAL = {  # settings that lmjax does not support, with the value that has no effect
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "n": 1,
    "typical_p": 1,
    "no_repeat_ngram_size": 0,
    "diversity_penalty": 0,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "early_stopping": False,
}
_IGNORED = ("use_cache", "pad_token_id")  # settings that cannot change a continuation
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def sampling(settings: Mapping[str, Any], *, model: Mapping[str, Any] | None = None, seed: int = 0) -> Sampling:
    """Translate a task's `generation_kwargs` into sampling settings.

    Numbers may be text. As in the harness's Hugging Face models, the settings of the model's generation_config.json
    count where the task has none, and tokens are drawn from the 50 most likely ones if neither has `top_k`.

    Known keys: until, max_gen_toks, do_sample, temperature, top_k, top_p, min_p, repetition_penalty.

    Args:
        settings: The `generation_kwargs`.
        model: The content of generation_config.json.
        seed: Seed of the random keys.

    Raises:
        UserError: A key is unknown, or a value is malformed or out of range.
    """
    for name, value in settings.items():
        _check(str(name), value)
    given = {name: value for name, value in settings.items() if value is not None}
    temperature = _number("temperature", given["temperature"]) if "temperature" in given else None
    drawn = _flag("do_sample", given["do_sample"]) if "do_sample" in given else bool(temperature)
    length = next((name for name in _LENGTHS if name in given), None)
    given = _of_model(model or {}, given, drawn=drawn) | given
    choices: dict[str, Any] = {
        name: (_integer if kind is int else _number)(name, given[name])
        for name, kind in _CHOICES.items()
        if name in given
    }
    return Sampling(
        max_tokens=MAX_TOKENS if length is None else _integer(length, given[length]),
        temperature=(1.0 if temperature is None else temperature) if drawn else 0.0,
        stop=_texts("until", given.get("until", ())),
        seed=seed,
        **choices,
    )


def _of_model(model: Mapping[str, Any], given: Mapping[str, Any], *, drawn: bool) -> dict[str, Any]:
    """Return the settings of generation_config.json that count, and the default of top_k."""
    for name, value in generation_settings.missing(model, drawn=drawn).items():
        if name not in given:
            remedy = f"give {name}={_NEUTRAL[name]} in --gen_kwargs" if name in _NEUTRAL else "remove it"
            raise UserError(
                f"generation_config.json: lmjax has no {name}={value!r:.80}; {remedy} to evaluate without it"
            )
    names = _CHOICES if drawn else ("repetition_penalty",)
    top_k = {"top_k": generation_settings.TOP_K} if drawn else {}
    return top_k | {name: model[name] for name in names if model.get(name) is not None}


def _check(name: str, value: Any) -> None:
    """Check that a setting is known, or has no effect."""
    if name in _KNOWN or name in _IGNORED or value is None:
        return
    if name not in _NEUTRAL:
        raise UserError(
            f"generation_kwargs: lmjax has no {name}={value!r:.80}{nearest(name, _KNOWN)}; it has "
            f"{', '.join(sorted(_KNOWN))}"
        )
    neutral = _NEUTRAL[name]
    if (_flag(name, value) if isinstance(neutral, bool) else _number(name, value)) != neutral:
        raise UserError(
            f"generation_kwargs: lmjax has no {name}={value!r:.80}, only {neutral}; it has {', '.join(sorted(_KNOWN))}"
        )


def _number(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"generation_kwargs: {name}={value!r:.80} is not a number")
    return number


def _integer(name: str, value: Any) -> int:
    number = _number(name, value)
    if not number.is_integer() or not 0 <= number < 2**31:
        raise UserError(f"generation_kwargs: {name}={value!r:.80} is not an integer from 0 to 2^31 - 1")
    return int(number)


def _flag(name: str, value: Any) -> bool:
    flag = _FLAGS.get(str(value).strip().lower())
    if flag is None:
        raise UserError(f"generation_kwargs: {name}={value!r:.80} is not true or false")
    return flag


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"generation_kwargs: {name}={value!r:.80} is not a text or a list of texts")
    return tuple(text for text in texts if text)
