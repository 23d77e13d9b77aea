"""Documents for in-context learning: a task in words, examples, a question and its answer.

Document n is a pure function of the configuration and n. Items held out by `held_out_share` occur in no document.
"""

import dataclasses
import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from lmjax.config import InContextConfig, UserError
from lmjax.tasks import catalog, draws, shots, symbolic
from lmjax.tasks.draws import Choices
from lmjax.tasks.spec import Document, Task, content

FORMAT = 1  # raise it when the text of a document changes
FINE = 1 << 32  # resolution of the random numbers compared with weights and shares


def documents(config: InContextConfig) -> Iterator[str]:
    """Return the documents of a configuration in order.

    A task that is named twice is twice as frequent.

    Raises:
        UserError: There is no task to render, or a task cannot be loaded or has too few items or examples.
    """
    tasks = _tasks(config)
    return (_document(config, tasks, index) for index in range(config.documents))


def fingerprint(config: InContextConfig) -> dict[str, Any]:
    """Identify the documents: the configuration, and a hash of the content of each task."""
    hashes = {name: _digest(found) for name, found in _tasks(config).items()}
    return {"in_context": dataclasses.asdict(config), "format": [FORMAT, symbolic.FORMAT], "tasks": hashes}


def _tasks(config: InContextConfig) -> dict[str, Task]:
    """Load the tasks without held-out items; a few rows represent all of a generated task."""
    share = config.held_out_share
    return {
        name: symbolic.load(name, held_out_share=share, held_out=False, count=8)
        if name in symbolic.NAMES
        else _kept(catalog.load(name, held_out_share=share, held_out=False), share)
        for name in _names(config)
    }


def _names(config: InContextConfig) -> list[str]:
    names = [name for name in config.tasks if name not in config.held_out]
    if not names:
        raise UserError("data.in_context.tasks names no task that data.in_context.held_out leaves to be rendered")
    return names


def _kept(found: Task, share: float) -> Task:
    """Remove held-out items from the rows' own examples."""

    def kept(row: Document) -> Document:
        own = tuple(example for example in row.examples if not draws.held_out(example.key, share))
        return dataclasses.replace(row, examples=own)

    return dataclasses.replace(found, documents=tuple(map(kept, found.documents)))


def _digest(found: Task) -> str:
    parts = [content(part) for part in (found.config, *found.documents, *found.pool)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _document(config: InContextConfig, tasks: dict[str, Task], index: int) -> str:
    """Draw a task, a number of examples, a description flag and a question, then render them."""
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
    return shots.render_prompt(found, asked, count, described=described) + _answer(found, asked)


def _answer(found: Task, asked: Document) -> str:
    if not asked.answers:
        return ""
    return (found.config.separator if asked.prompt else "") + asked.answers[0]


def _weighted(draw: Choices, mixture: Sequence[tuple[int, float]]) -> int:
    """Draw a number of examples by the weights of the mixture."""
    bounds = list(accumulate(weight for _, weight in mixture))
    return mixture[bisect_right(bounds, draw.below(FINE) / FINE * bounds[-1])][0]
