"""A prompting task: how rows become prompts with their answers, and which documents examples may be drawn from."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from lmjax.config import UserError
from lmjax.prompting import template
from lmjax.prompting.shots import grouped
from lmjax.prompting.shots import held_out as is_held_out


@dataclass(frozen=True)
class TaskConfig:
    """What is asked and how it is scored: the content of a task's `task.json`.

    name: default: the name of the folder or file. measures: what the task measures, in one line.
    kind: `choose` the likeliest of several answers, `match` the one answer token by token, `generate` text, `pairs` the
        likelier of a good and a bad text, `perplexity` of a text.
    prefix: in front of everything. description: the task in words, behind it if wanted, and followed by `joint`.
    prompt: template of the question: {field} of a row, {{ and }} for braces; of `perplexity` the text.
    answer: template of the right answer; where its one field is a list, each item is accepted and the first is shown.
        Of `choose` the text of a choice or its index from 0 (a number is always an index).
    choices: templates of the options; default: the row's list "choices", of `pairs` the row's "good" and "bad".
    separator: between prompt and answer. joint: behind each example.
    stop: texts that end what is generated. max_tokens: of it.
    filters: regular expressions applied to it in turn; each keeps the first group, or all, of its first match.
    ignore_case, ignore_punctuation: when generated text is compared with the answers.
    chance: the accuracy of guessing; 0 stands for one over the number of choices where there are some.
    rows, examples: where the rows, and the pool that examples are drawn from, are: a file beside task.json, or
        `hub:NAME[:SUBSET[:SPLIT]]`; default: `rows.jsonl`, and `examples.jsonl` if it is there.
    """

    name: str = ""
    kind: Literal["choose", "match", "generate", "pairs", "perplexity"] = "choose"
    prefix: str = ""
    description: str = ""
    prompt: str = "{input}"
    answer: str = "{answer}"
    choices: tuple[str, ...] = ()
    separator: str = " "
    joint: str = "\n\n"
    stop: tuple[str, ...] = ("\n",)
    max_tokens: int = 32
    filters: tuple[str, ...] = ()
    ignore_case: bool = True
    ignore_punctuation: bool = False
    chance: float = 0.0
    measures: str = ""
    rows: str = ""
    examples: str = ""


@dataclass(frozen=True)
class Document:
    """One question, rendered.

    id: the row's own "id", else its number from 0; it depends neither on what else is loaded nor on a limit.
    prompt: without examples. answers: those accepted (of `choose` the right choice); the first is shown in examples.
    choices, gold: the options and the index of the right one. examples: the row's own, drawn from instead of the pool.
    group: what `balanced` examples take in turn; default: the first answer. key: what `held_out` hashes; default: the
        prompt, or the first answer where that is empty.
    """

    id: str
    prompt: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    gold: int | None = None
    examples: tuple["Document", ...] = ()
    group: str = ""
    key: str = ""


@dataclass(frozen=True, eq=False)
class Task:
    """Documents to answer, and the pool that examples are drawn from. A part of the documents keeps the whole pool."""

    config: TaskConfig
    documents: tuple[Document, ...]
    pool: tuple[Document, ...]

    @cached_property
    def groups(self) -> dict[str, tuple[Document, ...]]:
        """The pool by group, the groups in the order of their names."""
        return grouped(self.pool)


def load(name: str, *, held_out_share: float = 0.0, held_out: bool = True) -> Task:
    """The task of that name: a bundled one, a folder with task.json, a file, or `hub:NAME[:SUBSET[:SPLIT]]`.

    A file is .jsonl, .json (also a BIG-bench task) or .parquet. `held_out_share` of the items, by a hash of their keys,
    are never examples; with `held_out` they alone are the documents, otherwise all but they. A share of 0: everything.
    UserError: no such task (names the nearest), or a file that is malformed or of other content (names file and line).
    """
    from lmjax.prompting import bundled, loaders  # both are made of what stands above

    if name in bundled.names():
        return bundled.load(name, held_out_share=held_out_share, held_out=held_out)
    return loaders.load(name, held_out_share=held_out_share, held_out=held_out)


def names() -> dict[str, str]:
    """The bundled tasks, each with what it measures in one line."""
    from lmjax.prompting import bundled

    return bundled.names()


# ---- From rows to documents -------------------------------------------------------------------------------------

Rows = Iterable[tuple[str, Any]]  # where the row stands, for messages, and the row


def build(
    config: TaskConfig, rows: Rows, *, examples: Rows | None = None, held_out_share: float = 0.0, held_out: bool = True
) -> Task:
    """The task of these rows; its pool is `examples`, by default all rows. `held_out_share` as in `load`.

    UserError: no rows, two with one id, a row that does not fit the configuration (names where it stands).
    """
    check(config)
    everything = tuple(_documents(config, rows, ""))
    if not everything:
        raise UserError(f"the task '{config.name}' has no rows")
    pool = everything if examples is None else tuple(_documents(config, examples, "example "))
    documents = everything
    if held_out_share:
        pool = _rest(pool, held_out_share)
        documents = tuple(item for item in everything if is_held_out(item.key, held_out_share) == held_out)
        if not held_out:  # nor are they shown among the examples of a row
            documents = tuple(replace(item, examples=_rest(item.examples, held_out_share)) for item in documents)
        if not documents:
            raise UserError(
                f"the task '{config.name}': of {len(everything)} rows none is left where the share held out is "
                f"{held_out_share:g}; choose another share"
            )
    if not config.chance and everything[0].choices:
        config = replace(config, chance=sum(1 / len(document.choices) for document in everything) / len(everything))
    return Task(config, documents, pool)


def _rest(documents: tuple[Document, ...], share: float) -> tuple[Document, ...]:
    """The documents that are not held out."""
    return tuple(document for document in documents if not is_held_out(document.key, share))


def check(config: TaskConfig) -> None:
    """UserError: a value out of range, a malformed template or regular expression."""
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


def _documents(config: TaskConfig, rows: Rows, prefix: str) -> Iterator[Document]:
    seen: dict[str, str] = {}
    for number, (where, row) in enumerate(rows):
        try:
            document = to_document(config, row, f"{prefix}{number}")
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if document.id in seen:
            raise UserError(f"{where}: the id '{document.id}' is that of {seen[document.id]}, too")
        seen[document.id] = where
        if document.prompt or document.answers:  # an empty text is no document
            yield document


def to_document(config: TaskConfig, row: Any, number: str) -> Document:
    """A row as a document, `number` its id if it names none. UserError: it does not fit the configuration."""
    document = _plain(config, row, number)
    own = row.get("examples") or ()
    if not isinstance(own, list | tuple):
        raise UserError("the field 'examples' is not a list of rows")
    return replace(document, examples=tuple(_plain(config, one, f"{document.id}/{n}") for n, one in enumerate(own)))


def _plain(config: TaskConfig, row: Any, number: str) -> Document:
    """A row as a document without examples."""
    if not isinstance(row, Mapping):
        raise UserError(f"expected an object with fields, got {type(row).__name__}")
    prompt = template.render(config.prompt, {"input": "", **row} if config.kind == "pairs" else row)
    choices, gold, answers = (), None, ()
    if config.kind in ("choose", "pairs"):
        choices = _choices(config, row)
        gold = 0 if config.kind == "pairs" else _gold(config, row, choices)
        answers = (choices[gold],)
    elif config.kind != "perplexity":
        answers = template.variants(config.answer, row)
        if not answers or "" in answers:
            raise UserError("the answer is empty")
    first = (answers or ("",))[0]
    own = {name: template.value(row, name) for name in ("id", "group", "key") if row.get(name) is not None}
    return Document(
        id=own.get("id", number),
        prompt=prompt,
        answers=answers,
        choices=choices,
        gold=gold,
        group=own.get("group", first),
        key=own.get("key", prompt or first),
    )


def _choices(config: TaskConfig, row: Mapping[str, Any]) -> tuple[str, ...]:
    templates = config.choices or (("{good}", "{bad}") if config.kind == "pairs" else ())
    if templates:
        choices = tuple(template.render(text, row) for text in templates)
    else:
        template.value(row, "choices")
        if not isinstance(row["choices"], list | tuple):
            raise UserError("the field 'choices' is not a list")
        choices = tuple(map(template.text, row["choices"]))
    if len(choices) < 2 or "" in choices or (config.kind == "pairs" and len(choices) > 2):
        raise UserError(f"expected {'two' if config.kind == 'pairs' else 'at least two'} choices with text in them")
    return choices


def _gold(config: TaskConfig, row: Mapping[str, Any], choices: tuple[str, ...]) -> int:
    """The index of the right choice: a field that is a number says it; text is that of a choice, or the digits of one.

    True and false count as numbers, unless "True" and "False" are what is chosen from.
    """
    answer = template.render(config.answer, row)
    field = next(iter(template.fields(config.answer)), None)
    alone = row[field] if field is not None and config.answer == f"{{{field}}}" else answer
    if answer in choices and (isinstance(alone, bool) or not isinstance(alone, int)):
        return choices.index(answer)
    if isinstance(alone, str) and alone.isdecimal() and len(alone) < 10:
        alone = int(alone)
    if isinstance(alone, int) and 0 <= alone < len(choices):
        return int(alone)
    options = ", ".join(map(repr, choices))
    raise UserError(f"the answer {answer!r} is neither one of the choices {options} nor the index of one, from 0")
