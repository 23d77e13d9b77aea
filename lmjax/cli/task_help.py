"""What `lmjax evaluate --list` and `--explain` print: tasks, without a model."""

import dataclasses
import json
from typing import Any

from lmjax.display.console import Console
from lmjax.tasks import catalog, shots
from lmjax.tasks.spec import Document, Task, TaskConfig, digest


def list_tasks() -> int:
    """Print the bundled tasks with what they measure."""
    with Console() as console:
        console.table("bundled tasks", [*catalog.names().items()])
    return 0


def explain_task(name: str, count: int, *, balanced: bool, described: bool, allow_hub: bool) -> int:
    """Print the settings and counts of a task, and the prompt of its first document.

    Args:
        name: A task, as in `catalog.load`.
        count: Number of examples in the prompt.
        balanced: Examples cycle through the labels.
        described: The prompt starts with the task's description.
        allow_hub: Follow a name of the hub inside a task.json.

    Raises:
        UserError: There is no such task, or it has too few examples.
    """
    task = catalog.load(name, allow_hub=allow_hub)
    document = task.documents[0]
    prompt = shots.render_prompt(task, document, count, balanced=balanced, described=described)
    with Console() as console:
        console.table(f"changed settings of {task.config.name}", _settings(task.config))
        console.table("counts", _counts(task))
        console.text(f"prompt of document {document.id} at {count} shots", prompt)
        console.text(_answers_title(task.config, document), "\n".join(_answers(task.config, document)))
    return 0


def _settings(config: TaskConfig) -> list[tuple[str, str]]:
    default = dataclasses.asdict(TaskConfig())
    values = dataclasses.asdict(config)
    changed = {name: value for name, value in values.items() if value != default[name] or name == "kind"}
    return [(name, json.dumps(value, ensure_ascii=False)) for name, value in changed.items()]


def _counts(task: Task) -> list[tuple[str, int]]:
    config, documents = task.config, task.documents
    counts: dict[str, Any] = {
        "documents": len(documents),
        "rows without text, left out": task.dropped,
        "rows that were read, of more": task.first_rows,
        "documents that equal an earlier one": len(documents) - len({*map(digest, documents)}),
        "pool of examples": len(task.pool),
        "fixed examples": len(task.fixed),
        "documents with own examples": sum(bool(document.examples) for document in documents),
        "labels in the pool": len(task.groups) if config.kind != "perplexity" else 0,
        "characters of the longest prompt": max(len(document.prompt) for document in documents),
        "characters of the longest answer": max((len(a) for d in documents for a in d.answers), default=0),
    }
    if config.kind == "generate":
        counts["documents whose answers all contain a stop"] = sum(
            all(any(stop in answer for stop in config.stop) for answer in document.answers) for document in documents
        )
    return [(name, count) for name, count in counts.items() if count]


def _answers_title(config: TaskConfig, document: Document) -> str:
    if config.kind == "perplexity":
        return "scored"
    return "choices" if document.choices else "accepted answers"


def _answers(config: TaskConfig, document: Document) -> list[str]:
    """The accepted answers or the choices, after the separator; the right one is marked."""
    separator = config.separator if document.prompt else ""
    if config.kind == "perplexity":
        return ["the text itself is measured"]
    texts = document.choices or document.answers
    marks = [" (right)" if document.choices and place == document.gold else "" for place in range(len(texts))]
    if document.grades:
        marks = [f"{mark} (grade {grade:g})" for mark, grade in zip(marks, document.grades, strict=True)]
    return [f"{separator + text!r}{mark}" for text, mark in zip(texts, marks, strict=True)]
