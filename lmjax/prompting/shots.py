"""Which examples stand in front of a question, and the prompt that they make: pure functions of the task.

Nothing is drawn from a generator with state: choices are digits of hashes, the same on every machine, and a question
gets the same examples whatever else is asked.
"""

import hashlib
import itertools
import json
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from lmjax.config import UserError
from lmjax.prompting.choices import Choices

if typing.TYPE_CHECKING:  # `task` is made with `held_out`
    from lmjax.prompting.task import Document, Task

T = TypeVar("T")


def examples(
    task: "Task", document: "Document", count: int, *, seed: int = 0, balanced: bool = False
) -> "tuple[Document, ...]":
    """The first `count` of an order of the pool that (seed, document.id) decide, so that fewer are a prefix of more.

    Never the document itself nor one with its prompt. A document with examples of its own gets these, and all may
    occur: that they hold the answer can be the point. balanced: the groups (labels) in turn, each round in a new order.
    Takes O(count) steps, and O(pool) once a task when balanced.
    UserError: fewer than `count` to draw from, or a task of kind `perplexity`, which has no answers to show.
    """
    if count == 0:
        return ()
    if task.config.kind == "perplexity":
        raise UserError(f"the task '{task.config.name}' measures perplexity and takes no examples: use 0 shots")
    name, own, question = (seed, document.id), document.examples, _question(document)
    keep = None if own else lambda example: _question(example) != question
    if balanced:
        order = _in_turn(grouped(own) if own else task.groups, name, keep)
    else:
        order = filter(keep, shuffled(own or task.pool, name))
    found = tuple(itertools.islice(order, count))
    if len(found) < count:
        raise UserError(
            f"the task '{task.config.name}' has {len(found)} examples for its document '{document.id}', fewer than the "
            f"{count} asked for"
        )
    return found


def prompt(
    task: "Task", document: "Document", count: int, *, seed: int = 0, balanced: bool = False, described: bool = True
) -> str:
    """The text that the model continues: prefix, description, `count` examples with their answers, and the question.

    It ends with the question; `separator` and the answer are what follows. Errors as in `examples`.
    """
    config = task.config
    parts = [config.prefix, config.description + config.joint if described and config.description else ""]
    for example in examples(task, document, count, seed=seed, balanced=balanced):
        parts += [example.prompt, config.separator if example.prompt else "", example.answers[0], config.joint]
    return "".join([*parts, document.prompt])


def held_out(key: str, share: float) -> bool:
    """Whether an item is in the share that is held out: a hash of its key alone decides, and a larger share adds."""
    digest = hashlib.sha256(json.dumps(["held out", key]).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def grouped(documents: "Iterable[Document]") -> "dict[str, tuple[Document, ...]]":
    """Documents by group, the groups in the order of their names."""
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.group or document.answers[0], []).append(document)
    return {name: tuple(groups[name]) for name in sorted(groups)}


def _question(document: "Document") -> str:
    return document.prompt or document.answers[0]


def shuffled(items: Sequence[T], name: Sequence[Any]) -> Iterator[T]:
    """The items in an order that `name` (what JSON can say) decides, one step for each that is taken.

    Fisher and Yates's shuffle from the front, which keeps only what has moved.
    """
    draw, moved = Choices(json.dumps(name)), {}
    for i in range(len(items)):
        j = i + draw.below(len(items) - i)
        yield items[moved.get(j, j)]
        moved[j] = moved.pop(i, i)


def _in_turn(
    groups: "Mapping[str, Sequence[Document]]", name: tuple[Any, ...], keep: "Callable[[Document], bool] | None"
) -> "Iterator[Document]":
    """One item of each group in turn, as long as they last; the order of the groups differs from round to round."""
    left, orders = tuple(groups), {}
    for turn in itertools.count():
        empty = set()
        for group in shuffled(left, (*name, "turn", turn)):
            if group not in orders:  # most are never reached
                orders[group] = filter(keep, shuffled(groups[group], (*name, "group", group)))
            item = next(orders[group], None)
            if item is None:
                empty.add(group)
            else:
                yield item
        left = tuple(group for group in left if group not in empty)
        if not left:
            return
