"""BIG-bench: the scores of its own definition, and the metrics that a task asks for."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmjax.config import UserError
from lmjax.evaluation import task_metrics
from lmjax.tasks import catalog
from lmjax.tasks.spec import Task


def loaded(path: Path, **fields: Any) -> Task:
    (path / "task.json").write_text(json.dumps({"name": "t", **fields}))
    return catalog.load(str(path))


@pytest.mark.parametrize(
    ("scores", "taken", "grade", "right"),
    [
        ({"x": 1, "y": 1, "z": 0}, 1, 1.0, 1.0),  # several right choices
        ({"x": 1, "y": 1, "z": 0}, 2, 0.0, 0.0),
        ({"x": 0.2, "y": 0.7, "z": 0.1}, 0, 0.2, 0.0),  # graded choices
        ({"x": 0.2, "y": 0.7, "z": 0.1}, 1, 0.7, 1.0),
        ({"x": 0, "y": -1, "z": -1}, 2, -1.0, 0.0),
    ],
)
def test_the_grade_is_that_of_the_choice_that_is_taken(
    scores: dict[str, float], taken: int, grade: float, right: float, tmp_path: Path
) -> None:
    task = loaded(tmp_path, examples=[{"input": "q", "target_scores": scores}], metrics=["multiple_choice_grade"])
    (document,) = task.documents
    logprobs = [-1.0 if place == taken else -5.0 for place in range(3)]
    found = task_metrics.choose(logprobs, document.choices, gold=document.gold or 0, grades=document.grades)
    assert (found["multiple_choice_grade"], found["acc"]) == (grade, right)
    assert ("brier" in found) == (list(scores.values()).count(max(scores.values())) == 1)


def test_the_answers_decide_how_many_tokens_are_generated_and_the_metrics_are_kept(tmp_path: Path) -> None:
    examples = [{"input": "q", "target": "a long answer"}]
    task = loaded(tmp_path, examples=examples, metrics=["bleu", "rouge"], preferred_score="bleu")
    assert (task.config.kind, task.config.max_tokens, task.config.metrics) == ("generate", 0, ("bleu", "rouge"))


@pytest.mark.parametrize("metrics", ["bleu", [1], [["bleu"]]])
def test_metrics_must_be_a_list_of_names(metrics: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.json': metrics: expected a list of names"):
        loaded(tmp_path, examples=[{"input": "q", "target": "a"}], metrics=metrics)


def test_an_example_without_choices_is_named(tmp_path: Path) -> None:
    examples = [{"input": "a", "target_scores": {}}]
    tree = {"name": "b", "description": "d", "metrics": ["multiple_choice_grade"], "examples": examples}
    (tmp_path / "task.json").write_text(json.dumps(tree | {"preferred_score": "multiple_choice_grade"}))
    with pytest.raises(UserError, match="example 1: target_scores has no choice"):
        catalog.load(str(tmp_path))
