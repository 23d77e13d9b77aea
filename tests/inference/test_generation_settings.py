"""The settings of a generation_config.json that lmjax does not apply are named."""

from typing import Any

import pytest

from lmjax.inference.generation_settings import unused
from lmjax.inference.sampling import Sampling


@pytest.mark.parametrize(
    ("generation", "sampling", "expected"),
    [
        ({}, Sampling(), {}),
        ({"temperature": 0.6, "top_p": 0.9, "do_sample": True}, Sampling(), {"temperature": 0.6, "top_p": 0.9}),
        ({"temperature": 0.6, "top_p": 0.9}, Sampling(temperature=0.6, top_p=0.9), {}),
        (
            {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1},
            Sampling(temperature=0),
            {"repetition_penalty": 1.1},
        ),
        ({"num_beams": 4, "typical_p": 0.5}, Sampling(temperature=0), {"num_beams": 4}),
        ({"num_beams": 1, "typical_p": 1.0, "suppress_tokens": []}, Sampling(), {}),
        ({"suppress_tokens": [3], "eos_token_id": 2, "max_length": 20}, Sampling(), {"suppress_tokens": [3]}),
    ],
)
def test_what_transformers_would_apply_is_listed(
    generation: dict[str, Any], sampling: Sampling, expected: dict[str, Any]
) -> None:
    assert unused(generation, sampling) == expected
