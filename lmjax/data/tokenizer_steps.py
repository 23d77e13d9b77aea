"""The steps of a normalizer, pre-tokenizer or post-processor in a tokenizer.json."""

import json
from typing import Any


def steps(part: Any) -> list[dict[str, Any]]:
    """Return the steps of a part of a tokenizer; without a part, no step."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    if state["type"] != "Sequence":
        return [state]
    return next(value for key, value in state.items() if key in ("normalizers", "pretokenizers", "processors"))


def keeps_text(step: dict[str, Any]) -> bool:
    """Whether a step of a pre-tokenizer neither removes nor adds characters."""
    if step["type"] == "ByteLevel":
        return not step["add_prefix_space"]
    if step["type"] in ("Split", "Punctuation"):
        return step["behavior"] != "Removed"
    return step["type"] == "Digits"
