"""The examples before a question, and the complete prompt: pure functions of the task.

Choices are digits of hashes instead of draws from a generator with state. They are identical on every machine, and the
examples of a question do not depend on the other questions.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from lmjax.config import UserError
from lmjax.tasks.draws import Choices
from lmjax.tasks.spec import Document, Task, grouped

T = TypeVar("T")


def examples(
    task: Task, document: Document, count: int, *, seed: int = 0, balanced: bool = False
) -> tuple[Document, ...]:
    """Draw the first `count` examples of an order that depends on (seed, document.id).

    Fewer examples are a prefix of more. A document with the same prompt is never an example. A document with its own
    examples uses only these, including those that contain the answer. It takes O(count) steps, and O(pool) once per
    task if balanced. A task with fixed examples, or with the first ones of its pool, has the same order for every
    question.

    Args:
        task: The task.
        document: The question.
        count: Number of examples.
        seed: Seed of the order.
        balanced: Alternate between the groups (labels), in a new order in each round.

    Raises:
        UserError: There are fewer than `count` examples, the task is of kind `perplexity`, which has no answers, or its
            fixed examples are to be balanced.
    """
    if count == 0:
        return ()
    if task.config.kind == "perplexity":
        raise UserError(f"the task '{task.config.name}' measures perplexity and takes no examples: use 0 shots")
    name, own, question = (seed, document.id), document.examples, _question(document)
    keep = None if own else lambda example: _question(example) != question
    ordered = () if own else task.fixed or (task.pool if task.config.shots.first else ())
    if ordered and balanced:
        raise UserError(
            f"the task '{task.config.name}' has examples in a fixed order, which cannot be balanced; leave out "
            "--balanced, or remove 'shots' from its task.json"
        )
    if ordered:
        order = filter(keep, ordered)
    elif balanced:
        order = _in_turn(grouped(own) if own else task.groups, name, keep)
    else:
        order = filter(keep, shuffled(own or task.pool, name))
    chosen = tuple(itertools.islice(order, count))
    if len(chosen) < count:
        listed = "; add examples to 'shots' in its task.json: a question is never its own example" if task.fixed else ""
        raise UserError(
            f"the task '{task.config.name}' has {len(chosen)} examples for its document '{document.id}', fewer than "
            f"the {count} asked for{listed}"
        )
    return chosen


def render_prompt(
    task: Task, document: Document, count: int, *, seed: int = 0, balanced: bool = False, described: bool = True
) -> str:
    """Render the prompt: prefix, description, examples with answers, and the question.

    `separator` and the answer follow it. Arguments and errors are those of `examples`.
    """
    config = task.config
    parts = [config.prefix, config.description + config.joint if described and config.description else ""]
    for example in examples(task, document, count, seed=seed, balanced=balanced):
        parts += [example.prompt, config.separator if example.prompt else "", example.answers[0], config.joint]
    return "".join([*parts, document.prompt])


def _question(document: Document) -> str:
    return document.prompt or document.answers[0]


def shuffled(items: Sequence[T], name: Sequence[Any]) -> Iterator[T]:
    """Yield the items in an order that depends on `name` (JSON values), one step per item.

    It is a Fisher-Yates shuffle from the front that stores only the moved items.
    """
    draw, moved = Choices(json.dumps(name)), {}
    for i in range(len(items)):
        j = i + draw.below(len(items) - i)
        yield items[moved.get(j, j)]
        moved[j] = moved.pop(i, i)


def _in_turn(
    groups: Mapping[str, Sequence[Document]], name: tuple[Any, ...], keep: Callable[[Document], bool] | None
) -> Iterator[Document]:
    """Yield one item of each remaining group per round; each round has a new order of groups."""
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
