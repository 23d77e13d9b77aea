"""Conversion of the rows of a task to documents."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any

from lmjax.config import UserError
from lmjax.config.json_text import parse_json
from lmjax.tasks import draws, template
from lmjax.tasks.spec import Document, Task, TaskConfig, check

Rows = Iterable[tuple[str, Any]]  # the location of the row, for messages, and the row
ROWS = 100_000  # maximum number of rows of a file or split; later rows are left out
LARGEST = 1 << 28  # characters of the questions and answers of a task
CHOICES = 10_000  # choices of a row
Parts = tuple[TaskConfig, Rows, Rows | None]  # the configuration, the rows, and the pool of examples if separate


def to_document(config: TaskConfig, row: Any, number: str) -> Document:
    """Convert a row to a document; its id is `number` if the row has none.

    Raises:
        UserError: The row does not fit the configuration.
    """
    document = _plain(config, row, number)
    own = row.get("examples") or ()
    if not isinstance(own, list | tuple):
        raise UserError("the field 'examples' is not a list of rows")
    return replace(
        document, examples=tuple(_plain(config, example, f"{document.id}/{n}") for n, example in enumerate(own))
    )


def _plain(config: TaskConfig, row: Any, number: str) -> Document:
    """Convert a row to a document without examples."""
    if not isinstance(row, Mapping):
        raise UserError(f"expected an object with fields, got {type(row).__name__}")
    prompt = template.render(config.prompt, {"input": "", **row} if config.kind == "pairs" else row)
    choices, gold, answers, grades = (), None, (), ()
    if config.kind in ("choose", "pairs"):
        choices = _choices(config, row)
        grades = _grades(config, row, choices)
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
        named="id" in own,
        grades=grades,
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
    if len(choices) > CHOICES:
        raise UserError(f"the field 'choices' has {len(choices):,} texts; at most {CHOICES:,} are allowed")
    if len(choices) < 2 or "" in choices or (config.kind == "pairs" and len(choices) > 2):
        raise UserError(f"expected {'two' if config.kind == 'pairs' else 'at least two'} choices with text in them")
    if config.kind == "pairs" and choices[0] == choices[1]:
        raise UserError(f"the good and the bad text are equal, {choices[0]!r:.80}, so that neither is likelier")
    return choices


def _grades(config: TaskConfig, row: Mapping[str, Any], choices: tuple[str, ...]) -> tuple[float, ...]:
    """Return the score of each choice; nothing if the task has no scores."""
    if not config.grades:
        return ()
    grades = template.lookup(row, config.grades)
    numbers = isinstance(grades, list | tuple) and all(isinstance(grade, int | float) for grade in grades)
    if not numbers or len(grades) != len(choices):
        raise UserError(f"the field '{config.grades}' is not a list of {len(choices)} numbers, one for each choice")
    try:
        scores = tuple(map(float, grades))
    except OverflowError:  # an integer of hundreds of digits
        scores = (inf,)
    if not all(map(isfinite, scores)):
        raise UserError(f"the field '{config.grades}' has a score that is not finite; set it to a number")
    return scores


def _gold(config: TaskConfig, row: Mapping[str, Any], choices: tuple[str, ...]) -> int:
    """Return the index of the right choice.

    A number is the index; text is the text of a choice, or the digits of an index. True and false count as numbers,
    unless "True" and "False" are choices.
    """
    answer = template.render(config.answer, row)
    field = next(iter(template.fields(config.answer)), None)
    alone = template.lookup(row, field) if field is not None and config.answer == f"{{{field}}}" else answer
    if answer in choices and (isinstance(alone, bool) or not isinstance(alone, int)):
        return choices.index(answer)
    if isinstance(alone, str) and alone.isdecimal() and len(alone) < 10:
        alone = int(alone)
    if isinstance(alone, int) and 0 <= alone < len(choices):
        return int(alone)
    options = ", ".join(map(repr, choices))
    raise UserError(f"the answer {answer!r} is neither one of the choices {options} nor the index of one, from 0")


def build_task(
    config: TaskConfig, rows: Rows, *, examples: Rows | None = None, held_out_share: float = 0.0, held_out: bool = True
) -> Task:
    """Build the task of these rows.

    Args:
        config: The configuration.
        rows: The rows, each with its location.
        examples: Rows of the pool of examples (None: all rows).
        held_out_share: As in `catalog.load`.
        held_out: As in `catalog.load`.

    Raises:
        UserError: There are no rows, two have the same id, a row does not fit the configuration, or the configuration
            contradicts itself.
    """
    check(config)
    read = _documents(config, rows, "")
    everything = read.documents
    if not everything:
        raise UserError(f"the task '{config.name}' has no rows")
    pool = everything if examples is None else _documents(config, examples, "example ").documents
    documents, fixed = everything, _fixed(config, pool)
    if held_out_share:
        pool, fixed = _rest(pool, held_out_share), _rest(fixed, held_out_share)
        documents = tuple(item for item in everything if draws.held_out(item.key, held_out_share) == held_out)
        if not held_out:  # nor are they shown among the examples of a row
            documents = tuple(replace(item, examples=_rest(item.examples, held_out_share)) for item in documents)
        if not documents:
            raise UserError(
                f"the task '{config.name}': of {len(everything)} rows none is left where the share held out is "
                f"{held_out_share:g}; choose another share"
            )
    if not config.chance and everything[0].choices:
        config = replace(config, chance=sum(1 / len(document.choices) for document in everything) / len(everything))
    return Task(config, documents, pool, fixed, dropped=read.dropped, first_rows=ROWS if read.more else 0)


def _fixed(config: TaskConfig, pool: Sequence[Document]) -> tuple[Document, ...]:
    """Return the examples that `shots.fixed` lists: rows, or ids of rows of the pool.

    Raises:
        UserError: A row does not fit the configuration, or the pool has no row with an id.
    """
    if not config.shots.fixed:
        return ()
    by_id = {document.id: document for document in pool}
    fixed = []
    for number, item in enumerate(config.shots.fixed):
        where = f"the task '{config.name}', shots.fixed, item {number + 1}"
        if item.startswith("{"):
            try:
                fixed.append(_plain(config, parse_json(item, "the row"), f"fixed {number}"))
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
        elif document := by_id.get(item) or by_id.get(f"example {item}"):
            fixed.append(document)
        else:
            raise UserError(f"{where}: no row of the pool of examples has the id '{item}' (or is row {item}, from 0)")
    return tuple(fixed)


def _rest(documents: tuple[Document, ...], share: float) -> tuple[Document, ...]:
    """Return the documents that are not held out."""
    return tuple(document for document in documents if not draws.held_out(document.key, share))


@dataclass(frozen=True)
class _Read:
    """The documents of rows."""

    #: The documents.
    documents: tuple[Document, ...]
    #: Number of rows without text, which are no documents.
    dropped: int
    #: Whether there are more rows than `ROWS`.
    more: bool


def _documents(config: TaskConfig, rows: Rows, prefix: str) -> _Read:
    inputs_by_id: dict[str, str] = {}
    documents: list[Document] = []
    size, iterator = 0, iter(rows)
    for number, (where, row) in enumerate(itertools.islice(iterator, ROWS)):
        try:
            document = to_document(config, row, f"{prefix}{number}")
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if document.id in inputs_by_id:
            raise UserError(
                f"{where}: the id '{document.id}' is also the id of {inputs_by_id[document.id]}; make the ids unique"
            )
        inputs_by_id[document.id] = where
        size += len(document.prompt) + sum(map(len, document.choices or document.answers))
        if size > LARGEST:
            raise UserError(f"{where}: the questions of the task have more than {LARGEST} characters; use fewer rows")
        if document.prompt or document.answers:  # an empty text is no document
            documents.append(document)
    try:
        more = next(iterator, None) is not None
    except UserError:  # of a row that is malformed
        more = True
    return _Read(tuple(documents), len(inputs_by_id) - len(documents), more)
