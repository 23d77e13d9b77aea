"""Fields that a record of a test needs besides those that the test is about."""

from typing import Any

#: The machine of a session.
MACHINE: dict[str, Any] = {"lmjax": "1", "python": "3", "jax": "1", "devices": 1, "platform": "cpu"}
#: The first record of a run, without its counters.
START: dict[str, Any] = {"seed": 0, "tokenizer_sha256": "a", "data_sha256": "b", **MACHINE}
DIGEST = "ab" * 32
