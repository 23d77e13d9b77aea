"""Documents to learn from in context: a task in words, some examples of it, a question and its answer.

Document n is a pure function of the configuration and n. What `held_out_share` keeps for the evaluation stands in none.
"""

import dataclasses
import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from lmjax.config import InContextConfig, UserError
from lmjax.prompting import shots, symbolic, task
from lmjax.prompting.choices import Choices
from lmjax.prompting.task import Document, Task

FORMAT = 1  # raise it when the text of a document changes
FINE = 1 << 32  # weights and shares are compared with one of so many numbers


def documents(config: InContextConfig) -> Iterator[str]:
    """The `config.documents` documents of a configuration, in order; a task named twice comes twice as often.

    UserError: no task to render, or one that cannot be loaded or has too few items or examples.
    """
    tasks = _tasks(config)
    return (_document(config, tasks, index) for index in range(config.documents))


def fingerprint(config: InContextConfig) -> dict[str, Any]:
    """What the documents depend on: the configuration, and a hash of what each task holds."""
    hashes = {name: _digest(found) for name, found in _tasks(config).items()}
    return {"in_context": dataclasses.asdict(config), "format": [FORMAT, symbolic.FORMAT], "tasks": hashes}


def _tasks(config: InContextConfig) -> dict[str, Task]:
    """The tasks to render, without what is held out. Of a generated one a few rows stand for all."""
    share = config.held_out_share
    return {
        name: symbolic.load(name, held_out_share=share, held_out=False, count=8)
        if name in symbolic.NAMES
        else _kept(task.load(name, held_out_share=share, held_out=False), share)
        for name in _names(config)
    }


def _names(config: InContextConfig) -> list[str]:
    names = [name for name in config.tasks if name not in config.held_out]
    if not names:
        raise UserError("data.in_context.tasks names no task that data.in_context.held_out leaves to be rendered")
    return names


def _kept(found: Task, share: float) -> Task:
    """Without what is held out among the rows' own examples, too."""

    def kept(row: Document) -> Document:
        own = tuple(example for example in row.examples if not shots.held_out(example.key, share))
        return dataclasses.replace(row, examples=own)

    return dataclasses.replace(found, documents=tuple(map(kept, found.documents)))


def _digest(found: Task) -> str:
    content = [dataclasses.asdict(part) for part in (found.config, *found.documents, *found.pool)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _document(config: InContextConfig, tasks: dict[str, Task], index: int) -> str:
    """A task, how many examples, whether with its description, and a question: drawn in turn, then written out."""
    draw = Choices(f"in context {index}")
    name = draw.of(_names(config))
    count = _weighted(draw, config.shots)
    described = draw.below(FINE) < config.described * FINE
    found = tasks[name]
    if found.config.kind == "perplexity":  # text without an answer, which no examples can show
        count = 0
    if name in symbolic.NAMES:
        asked = symbolic.document(name, index, shots=count, held_out_share=config.held_out_share, held_out=False)
    else:
        asked = dataclasses.replace(draw.of(found.documents), id=str(index))  # other examples each time it is drawn
        count = min(count, len(asked.examples) or count)
    return shots.prompt(found, asked, count, described=described) + _answer(found, asked)


def _answer(found: Task, asked: Document) -> str:
    if not asked.answers:
        return ""
    return (found.config.separator if asked.prompt else "") + asked.answers[0]


def _weighted(draw: Choices, mixture: Sequence[tuple[int, float]]) -> int:
    """A number of examples by the weights of the mixture."""
    bounds = list(accumulate(weight for _, weight in mixture))
    return mixture[bisect_right(bounds, draw.below(FINE) / FINE * bounds[-1])][0]
