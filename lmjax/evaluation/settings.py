"""Settings of an evaluation."""

from dataclasses import dataclass

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
        if not self.shots or min(self.shots) < 0 or len(set(self.shots)) < len(self.shots):
            raise UserError(f"shots={list(self.shots)}: numbers of examples must be distinct and at least 0")
        if self.seeds < 1 or self.limit < 0:
            raise UserError(f"seeds={self.seeds} must be at least 1, and limit={self.limit} at least 0")
        for name in ("window", "max_tokens"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1 (or 0: not set)")
