"""The settings of a task of lm-evaluation-harness: each known, converted, or refused by name."""

from typing import Any

import pytest

from lmjax.config import UserError
from lmjax.inference.sampling import Sampling
from lmjax.serve.generation_kwargs import sampling


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Sampling(max_tokens=256, temperature=0.0)),
        ({"do_sample": True, "top_p": "0.9"}, Sampling(max_tokens=256, top_k=50, top_p=0.9)),
        ({"do_sample": True, "top_k": 0}, Sampling(max_tokens=256)),
        ({"temperature": "0.5", "top_k": "20"}, Sampling(max_tokens=256, temperature=0.5, top_k=20)),
        ({"do_sample": "false", "temperature": 0.7}, Sampling(max_tokens=256, temperature=0.0)),
        ({"max_new_tokens": "8", "max_tokens": 9}, Sampling(max_tokens=8, temperature=0.0)),
        ({"max_gen_toks": 8.0, "until": "x"}, Sampling(max_tokens=8, temperature=0.0, stop=("x",))),
        ({"until": ["", "a", "b"], "top_k": None}, Sampling(max_tokens=256, temperature=0.0, stop=("a", "b"))),
        ({"num_beams": "1", "use_cache": False, "typical_p": 1.0}, Sampling(max_tokens=256, temperature=0.0)),
    ],
)
def test_values_are_read_as_their_types(settings: dict[str, Any], expected: Sampling) -> None:
    assert sampling(settings) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_p": "high"}, "top_p='high' is not a number"),
        ({"top_p": [0.9]}, "top_p=[0.9] is not a number"),
        ({"temperature": float("nan")}, "temperature=nan is not a number"),
        ({"top_k": 2.5}, "top_k=2.5 is not an integer from 0 to 2^31 - 1"),
        ({"max_gen_toks": True}, "max_gen_toks=True is not a number"),
        ({"max_gen_toks": -1}, "max_gen_toks=-1 is not an integer"),
        ({"max_gen_toks": 10**400}, "is not a number"),
        ({"do_sample": "perhaps"}, "do_sample='perhaps' is not true or false"),
        ({7: 3}, "lmjax has no 7=3"),
        ({"until": 3}, "until=3 is not a text or a list of texts"),
        ({"until": ["a", 3]}, "until=['a', 3] is not a text or a list of texts"),
        ({"num_beams": 4}, "lmjax has no num_beams=4, only 1; it has do_sample, "),
        ({"early_stopping": True}, "lmjax has no early_stopping=True, only False"),
        ({"topp": 0.9}, "lmjax has no topp=0.9; did you mean 'top_p'?"),
        ({"top_p": "1.5"}, "top_p in (0, 1]"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        sampling(settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"top_k": 7, "top_p": 0.5, "temperature": 0.3, "do_sample": True, "repetition_penalty": 1.2},
        {"min_p": 0.1, "max_new_tokens": 3, "eos_token_id": [1, 2], "typical_p": None},
    ],
)
@pytest.mark.parametrize("task", [{}, {"do_sample": True, "temperature": 0.7}, {"temperature": 2.0, "top_k": 3}])
def test_the_settings_of_the_model_count_where_the_task_has_none(model: dict[str, Any], task: dict[str, Any]) -> None:
    """The logits processors are those that transformers builds for the same call of `generate`."""
    generation = pytest.importorskip("transformers.generation")
    config = generation.GenerationConfig(**model)
    defaults = generation.GenerationConfig._get_default_generation_params()
    drawn = bool(task.get("do_sample", task.get("temperature", 0)))
    expected = {
        name: task.get(name, default if getattr(config, name, None) is None else getattr(config, name))
        for name, default in defaults.items()
        if name in ("top_k", "top_p", "repetition_penalty")
    }
    chosen = sampling(task, model=model)
    assert (chosen.temperature > 0) == drawn
    assert chosen.max_tokens == 256
    assert chosen.repetition_penalty == expected["repetition_penalty"]
    if drawn:
        assert chosen.temperature == task["temperature"]  # which the harness always passes
        assert (chosen.top_k, chosen.top_p, chosen.min_p) == (
            expected["top_k"],
            expected["top_p"],
            model.get("min_p", 0.0),
        )


def test_a_setting_of_the_model_that_is_not_followed_is_refused_unless_the_task_sets_it() -> None:
    with pytest.raises(UserError, match=r"generation_config.json: lmjax has no no_repeat_ngram_size=3; give no_repeat"):
        sampling({}, model={"no_repeat_ngram_size": 3})
    sampling({"no_repeat_ngram_size": 0}, model={"no_repeat_ngram_size": 3})
    with pytest.raises(UserError, match=r"lmjax has no suppress_tokens=\[5\]; remove it"):
        sampling({}, model={"suppress_tokens": [5]})
    sampling({}, model={"typical_p": 0.5})  # only of drawn tokens
    with pytest.raises(UserError, match="typical_p"):
        sampling({"do_sample": True}, model={"typical_p": 0.5})
