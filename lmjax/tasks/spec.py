"""A prompting task: its configuration, its documents and the pool of examples."""

import hashlib
import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, Literal

from lmjax.config import UserError
from lmjax.config.expressions import check_expression
from lmjax.tasks import template

# Metadata of fields that `content` leaves out: while they have their default, and always.
ADDED: dict[str, Any] = {"added": True}
DERIVED: dict[str, Any] = {"derived": True}

# Greatest lengths: of lists, and of texts that every prompt contains.
_MOST = dict.fromkeys(("choices", "stop", "filters", "metrics"), 100)
_MOST |= dict.fromkeys(("prefix", "description", "separator", "joint", "prompt", "answer"), 1 << 18)
_FIELDS = 500  # fields of all templates together, each of which takes time for each row


@dataclass(frozen=True)
class ShotsConfig:
    """The choice of a task's examples; by default they are drawn for each question."""

    #: The examples, in this order: ids of rows of the pool, or rows. A question is never its own example.
    fixed: tuple[str, ...] = ()
    #: Take the first examples of the pool, in its order.
    first: bool = False

    @classmethod
    def upgrade(cls, tree: dict[str, Any]) -> dict[str, Any]:
        """Convert the rows of `fixed` to text in JSON, and its numbers to ids."""
        listed = tree.get("fixed")
        return tree | {"fixed": [*map(_reference, listed)]} if isinstance(listed, list) else tree


def _reference(item: Any) -> Any:
    if isinstance(item, dict):
        return json.dumps(item, ensure_ascii=False)
    return str(item) if type(item) is int else item


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
    #: Maximum number of generated tokens (0: as many as the longest accepted answer has with the model's tokenizer,
    #: plus 8, and at least 32).
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
    #: How examples are chosen (default: drawn at random for each question). `{"fixed": [...]}` names rows of the pool
    #: by their ids, or contains rows; `{"first": true}` takes the first rows of the pool.
    shots: ShotsConfig = field(default=ShotsConfig(), metadata=ADDED)
    #: Group of tasks that share mean scores, such as `mmlu`; `mmlu/stem` belongs to `mmlu` and to `mmlu/stem`.
    group: str = field(default="", metadata=ADDED)
    #: For `choose`: field of a row with the score of each choice, a list of numbers, for `multiple_choice_grade`.
    grades: str = field(default="", metadata=ADDED)
    #: For `generate`: metrics in addition to exact_match and f1 (`bleu`, `rouge1`, `rouge2`, `rougeL`, `rougeLsum`). A
    #: metric that lmjax does not have is named in the result.
    metrics: tuple[str, ...] = field(default=(), metadata=ADDED)


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
    #: Whether `id` is the row's own id, not its number.
    named: bool = field(default=False, metadata=DERIVED)
    #: Score of each option; empty: 1 for the right option, 0 for the others.
    grades: tuple[float, ...] = field(default=(), metadata=ADDED)


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
    #: The examples of every question, in this order (empty: they are drawn from the pool).
    fixed: tuple[Document, ...] = ()
    #: Number of rows that have no text and are no documents.
    dropped: int = 0
    #: Number of rows that were read, if there are more; 0: all rows were read.
    first_rows: int = 0

    @cached_property
    def groups(self) -> dict[str, tuple[Document, ...]]:
        """The pool by group; the groups are in the order of their names."""
        return grouped(self.pool)


# ---- From rows to documents -------------------------------------------------------------------------------------


def check(config: TaskConfig) -> None:
    """Check a task configuration.

    Raises:
        UserError: A value is out of range, two values contradict each other, or a template or regular expression is
            malformed.
    """
    if config.max_tokens < 0:
        raise UserError(f"max_tokens = {config.max_tokens} must be at least 1 (or 0: derived from the answers)")
    if not 0 <= config.chance <= 1:
        raise UserError(f"chance = {config.chance} must be from 0 to 1")
    for name, most in _MOST.items():
        if len(getattr(config, name)) > most:
            raise UserError(f"{name} has a length of {len(getattr(config, name))}; at most {most} is allowed")
    if config.group and "" in config.group.split("/"):
        raise UserError(f"group = {config.group!r} has an empty part; write it as GROUP or GROUP/PART")
    if "" in config.stop:
        raise UserError("stop: an empty text would end everything that is generated")
    try:
        json.dumps(asdict(config), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError("it holds half a character (a lone surrogate)") from None
    count = sum(len(template.fields(text)) for text in (config.prompt, config.answer, *config.choices))
    if count > _FIELDS:
        raise UserError(f"prompt, answer and choices have {count} fields together; at most {_FIELDS} are allowed")
    check_filters(config.filters)
    _check_pairs(config)


def check_filters(filters: Iterable[str]) -> None:
    """Raise UserError if a filter is no regular expression, or takes exponential time."""
    for pattern in filters:
        check_expression(pattern, "filters")
        try:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of a set in a set
                re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(f"filters: {pattern!r} is no regular expression: {error}") from None


def _check_pairs(config: TaskConfig) -> None:
    """Raise UserError if two settings of a task exclude each other."""
    kind = config.kind
    if kind == "generate" and (stop := next((stop for stop in config.stop if stop in config.separator), None)):
        raise UserError(
            f"separator = {config.separator!r} contains the stop {stop!r}, so that every text would end before "
            "the answer; put the separator at the end of the prompt, or change stop"
        )
    if kind == "choose" and config.choices and not config.answer:
        raise UserError("answer is empty, so that no choice is right; set it to the text or the index of a choice")
    unused = {
        "choices": bool(config.choices) and kind not in ("choose", "pairs"),
        "filters": bool(config.filters) and kind != "generate",
        "metrics": bool(config.metrics) and kind not in ("generate", "choose"),
        "grades": bool(config.grades) and kind != "choose",
        "chance": config.chance > 0 and kind == "perplexity",
        "shots": config.shots != ShotsConfig() and kind == "perplexity",
    }
    for name, is_unused in unused.items():
        if is_unused:
            raise UserError(f"{name} is set, but a task of kind '{kind}' does not use it; remove it or change the kind")
    if config.shots.fixed and config.shots.first:
        raise UserError("shots: 'fixed' and 'first' exclude each other; remove one")
    if config.shots.fixed and config.examples:
        rows = [item for item in config.shots.fixed if item.startswith("{")]
        if len(rows) == len(config.shots.fixed):
            raise UserError("shots.fixed contains the examples, so that the file of 'examples' has no use; remove one")


def content(part: Any) -> Any:
    """Return a configuration or document as JSON values, without new fields at their default.

    A hash of it thus stays the same when a version of lmjax adds a field.
    """
    if is_dataclass(part):
        later = {f.name for f in fields(part) if "added" in f.metadata and getattr(part, f.name) == f.default}
        listed = (f.name for f in fields(part) if f.name not in later and "derived" not in f.metadata)
        return {name: content(getattr(part, name)) for name in listed}
    return [content(item) for item in part] if isinstance(part, tuple) else part


def digest(document: Document) -> str:
    """Return a hash of the question, its options and its accepted answers."""
    parts = json.dumps([document.prompt, document.choices, document.answers], ensure_ascii=False)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def grouped(documents: "Iterable[Document]") -> "dict[str, tuple[Document, ...]]":
    """Group documents; the groups are in the order of their names."""
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.group or document.answers[0], []).append(document)
    return {name: tuple(groups[name]) for name in sorted(groups)}
