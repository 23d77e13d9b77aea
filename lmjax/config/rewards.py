"""The schema of rewards: what an answer is compared with, or who scores it. No JAX."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from lmjax.config.ranges import nonnegative

#: (text of the answer, columns of the row) -> the reward.
RewardFunction = Callable[[str, Mapping[str, Any]], float]


@dataclass(frozen=True)
class ExactMatchConfig:
    """1 if the answer equals the expected text, else 0.

    White space at the ends never counts. An empty answer gets 0.
    """

    #: Selects this member of the union.
    family: Literal["exact_match"] = "exact_match"
    #: Column of the row with the expected text, or with a list of accepted texts.
    column: str = "answer"
    #: Compare what follows the last occurrence of this text, such as `####`; an answer without it gets 0, an expected
    #: text without it counts completely (empty: the complete answer).
    after: str = ""
    #: Treat capital and small letters as equal.
    ignore_case: bool = False
    #: Remove ASCII punctuation.
    ignore_punctuation: bool = False
    #: Treat any run of white space as one blank.
    ignore_space: bool = True


@dataclass(frozen=True)
class NumberConfig:
    """1 if the last number of the answer equals the expected number, else 0."""

    #: Selects this member of the union.
    family: Literal["number"] = "number"
    #: Column of the row with the expected number. Of a text, the last number counts.
    column: str = "answer"
    #: Read the number from what follows the last occurrence of this text, as in `ExactMatchConfig`.
    after: str = ""
    #: Largest accepted difference.
    tolerance: Annotated[float, nonnegative()] = 0.0
    #: Largest accepted difference as a share of the expected number. The larger of the two tolerances applies.
    relative_tolerance: Annotated[float, nonnegative()] = 0.0
    #: Characters that may separate groups of three digits, as in 1,234,567.
    separators: str = ","
    #: Read 3/4 and \\frac{3}{4} as one number.
    fractions: bool = True


@dataclass(frozen=True)
class RegexConfig:
    """1 if a regular expression matches the answer, else 0."""

    #: Selects this member of the union.
    family: Literal["regex"] = "regex"
    #: The expression. {COLUMN} stands for the text of a column of the row.
    pattern: str = ""
    #: The expression must match the complete answer, without white space at its ends, not only a part.
    complete: bool = False


@dataclass(frozen=True)
class JSONSchemaConfig:
    """1 if the answer is JSON that a JSON schema accepts, else 0."""

    #: Selects this member of the union.
    family: Literal["json_schema"] = "json_schema"
    #: The schema, as JSON text. Its `$schema` selects the draft (none: 2020-12).
    schema: str = "{}"
    #: Accept JSON inside a Markdown code fence too.
    fenced: bool = False


@dataclass(frozen=True)
class FunctionConfig:
    """What a registered Python function returns."""

    #: Selects this member of the union.
    family: Literal["function"] = "function"
    #: The registered name.
    name: str = ""


VerifiableConfig = ExactMatchConfig | NumberConfig | RegexConfig | JSONSchemaConfig | FunctionConfig


@dataclass(frozen=True)
class LearnedRewardConfig:
    """The score of a reward model, which `objective.family=reward` trains.

    The model reads prompt, answer and end. An answer without its end within `objective.answer_tokens` is scored as if
    it ended in its last token.
    """

    #: Selects this member of the union.
    family: Literal["model"] = "model"
    #: Directory of the run of the reward model; it has the tokenizer of the policy.
    run: str = ""


#: What an answer of a policy is rewarded for.
AnyRewardConfig = VerifiableConfig | LearnedRewardConfig
