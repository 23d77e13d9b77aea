"""Settings of an evaluation."""

from dataclasses import dataclass
from typing import Any

from lmjax.config import UserError
from lmjax.inference.language_model import FirstToken


@dataclass(frozen=True)
class Settings:
    """Settings of an evaluation, common to all tasks."""

    #: Numbers of examples in the prompt.
    shots: tuple[int, ...] = (0,)
    #: Number of random draws of examples, for the spread.
    seeds: int = 1
    #: Maximum number of documents of each task, a uniform sample; a smaller sample is a subset of a larger (0: all).
    limit: int = 0
    #: Examples cycle through the labels.
    balanced: bool = False
    #: The prompt starts with the task's description.
    described: bool = False
    #: Compute acc_mutual_info, with additional requests.
    mutual_info: bool = False
    #: Compute acc_calibrated, with additional requests.
    calibrated: bool = False
    #: What precedes a text without context: the model's rule (BOS, else EOS), its BOS, its EOS, or nothing.
    first_token: FirstToken = "model"
    #: Tokens of a window of `perplexity` (0: the context of the model).
    window: int = 0
    #: Maximum number of generated tokens (0: that of each task).
    max_tokens: int = 0

    def __post_init__(self) -> None:
        counts = self.shots if isinstance(self.shots, list | tuple) else ()
        if not counts or not all(_is_count(shots) for shots in counts) or len(set(counts)) < len(counts):
            raise UserError(f"shots={self.shots!r}: numbers of examples must be distinct integers and at least 0")
        for name in ("seeds", "limit", "window", "max_tokens"):
            value = getattr(self, name)
            if not _is_count(value) or (name == "seeds" and value == 0):
                rule = "at least 1" + " (or 0: not set)" * (name != "seeds")
                raise UserError(f"{name}={value!r} must be {rule}, and an integer")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31
