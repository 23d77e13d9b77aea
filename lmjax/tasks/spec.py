"""A prompting task: its configuration, its documents and the pool of examples."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

from lmjax.config import UserError
from lmjax.tasks import template


@dataclass(frozen=True)
class TaskConfig:
    """A question and its scoring: the content of `task.json`."""

    #: Name of the task (empty: the name of the folder or file).
    name: str = ""
    #: `choose` the likeliest of several answers, `match` one answer token by token, `generate` text, `pairs` the
    #: likelier of a good and a bad text, or measure the `perplexity` of a text.
    kind: Literal["choose", "match", "generate", "pairs", "perplexity"] = "choose"
    #: Text at the start of every prompt.
    prefix: str = ""
    #: The task in words. It follows the prefix if requested, and is followed by `joint`.
    description: str = ""
    #: Template of the question: {field} of a row, {{ and }} for braces. For `perplexity`, the text.
    prompt: str = "{input}"
    #: Template of the right answer. If its only field is a list, each item is accepted and the first is shown. For
    #: `choose`, the text of a choice or its index from 0 (a number is always an index).
    answer: str = "{answer}"
    #: Templates of the options (empty: the row's list "choices"; for `pairs`, the row's "good" and "bad").
    choices: tuple[str, ...] = ()
    #: Text between prompt and answer.
    separator: str = " "
    #: Text after each example.
    joint: str = "\n\n"
    #: Texts that end the generation.
    stop: tuple[str, ...] = ("\n",)
    #: Maximum number of generated tokens.
    max_tokens: int = 32
    #: Regular expressions applied in order to the generated text. Each selects the first group, or everything, of its
    #: first match.
    filters: tuple[str, ...] = ()
    #: Ignore case when generated text is compared with the answers.
    ignore_case: bool = True
    #: Ignore punctuation when generated text is compared with the answers.
    ignore_punctuation: bool = False
    #: Accuracy of guessing (0: one over the number of choices, if the task has choices).
    chance: float = 0.0
    #: What the task measures, in one line.
    measures: str = ""
    #: Location of the rows: a file next to task.json, or `hub:NAME[:SUBSET[:SPLIT]]` (empty: `rows.jsonl`).
    rows: str = ""
    #: Location of the pool of examples, as for `rows` (empty: `examples.jsonl` if it exists, else the rows).
    examples: str = ""


@dataclass(frozen=True)
class Document:
    """A rendered question."""

    #: The row's "id", or its number from 0. It is independent of other tasks and of a limit.
    id: str
    #: The question without examples.
    prompt: str
    #: Accepted answers (for `choose`, the right choice). Examples show the first.
    answers: tuple[str, ...]
    #: The options.
    choices: tuple[str, ...] = ()
    #: Index of the right option.
    gold: int | None = None
    #: The row's own examples, which replace the pool.
    examples: tuple["Document", ...] = ()
    #: Group that `balanced` examples alternate between; by default the first answer.
    group: str = ""
    #: Text that `held_out` hashes; by default the prompt, or the first answer if the prompt is empty.
    key: str = ""


@dataclass(frozen=True, eq=False)
class Task:
    """Documents to answer, and the pool of examples.

    A subset of the documents retains the complete pool.
    """

    #: The configuration.
    config: TaskConfig
    #: Documents to answer.
    documents: tuple[Document, ...]
    #: Documents that examples are drawn from.
    pool: tuple[Document, ...]

    @cached_property
    def groups(self) -> dict[str, tuple[Document, ...]]:
        """The pool by group; the groups are in the order of their names."""
        return grouped(self.pool)


# ---- From rows to documents -------------------------------------------------------------------------------------


def check(config: TaskConfig) -> None:
    """Check a task configuration.

    Raises:
        UserError: A value is out of range, or a template or regular expression is malformed.
    """
    if config.max_tokens < 1:
        raise UserError(f"max_tokens = {config.max_tokens} must be at least 1")
    if not 0 <= config.chance <= 1:
        raise UserError(f"chance = {config.chance} must be from 0 to 1")
    if "" in config.stop:
        raise UserError("stop: an empty text would end everything that is generated")
    try:
        json.dumps(asdict(config), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError("it holds half a character (a lone surrogate)") from None
    for text in (config.prompt, config.answer, *config.choices):
        template.fields(text)
    for pattern in config.filters:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(f"filters: {pattern!r} is no regular expression: {error}") from None


def grouped(documents: "Iterable[Document]") -> "dict[str, tuple[Document, ...]]":
    """Group documents; the groups are in the order of their names."""
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.group or document.answers[0], []).append(document)
    return {name: tuple(groups[name]) for name in sorted(groups)}
