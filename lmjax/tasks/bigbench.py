"""Tasks in the format of BIG-bench."""

from pathlib import Path
from typing import Any, TypeVar

from lmjax.config import UserError
from lmjax.tasks import spec
from lmjax.tasks.render import Parts
from lmjax.tasks.shots import shuffled
from lmjax.tasks.spec import TaskConfig

DERIVED = 0  # max_tokens: derived from the answers

T = TypeVar("T")


def is_big_bench(tree: Any) -> bool:
    """Whether a JSON value is a BIG-bench task."""
    return isinstance(tree, dict) and isinstance(tree.get("examples"), list)


def big_bench(tree: dict[str, Any], file: Path) -> Parts:
    """Convert a task of BIG-bench (Srivastava et al. 2022), with its documented defaults.

    Every prompt starts with its `task_prefix`; its canary and `description` are ignored. A task scored as
    `multiple_choice_grade` is of kind `choose`, and its `target_scores` are the grades of the choices. Any other task
    is of kind `generate`; its answers decide how many tokens are generated. Blanks at the end of the output prefix
    become the separator, so that no prompt ends in a blank.
    """

    def said(key: str, default: T) -> T:
        value = tree.get(key, default)
        if type(value) is not type(default):
            raise UserError(f"'{file}': {key}: expected {type(default).__name__}, got {type(value).__name__}")
        return value

    before, after = said("example_input_prefix", "\nQ: "), said("example_output_prefix", "\nA: ")
    option = said("choice_prefix", "\n  choice: ") if said("append_choices_to_input", True) else ""
    stop, pattern = said("stop_string", ""), said("output_regex", "")
    scored = all(isinstance(row, dict) and "target_scores" in row for row in tree["examples"])
    choose = scored and said("preferred_score", "multiple_choice_grade") == "multiple_choice_grade"
    bare = after.rstrip(" ")
    config = TaskConfig(
        name=said("name", "") or file.resolve().parent.name,
        kind="choose" if choose else "generate",
        prefix=said("task_prefix", ""),
        prompt=_literal(before) + "{input}{options}" + _literal(bare),
        separator=after[len(bare) :],
        joint=said("few_shot_example_separator", "\n"),
        stop=(stop or "\n",),
        max_tokens=DERIVED if not choose else TaskConfig.max_tokens,
        filters=() if choose else (pattern,) if pattern else () if stop else (r"[^.?!;\n]+",),
        ignore_case=False,
        measures=" ".join(said("description", "").split()),
        grades="grades" if choose else "",
        metrics=_metrics(tree, file),
    )
    try:
        spec.check_filters([pattern])  # of a task with choices too, which does not use it
        spec.check(config)
    except UserError as error:
        raise UserError(f"'{file}': {error}") from None
    numbered = ((f"'{file}', example {number}", row) for number, row in enumerate(tree["examples"], 1))
    rows = ((where, _big_bench_row(row, where, option, choose)) for where, row in numbered)
    return config, rows, None


def _big_bench_row(row: Any, where: str, option: str, choose: bool) -> dict[str, Any]:
    """Convert an example to a row.

    `option` precedes each choice in the prompt; if empty, the prompt has no choices.
    """
    if not isinstance(row, dict) or "input" not in row or not ("target" in row or "target_scores" in row):
        raise UserError(f"{where}: expected an object with 'input', and 'target' or 'target_scores'")
    scores = row.get("target_scores", {})
    if not isinstance(scores, dict) or not all(isinstance(score, int | float) for score in scores.values()):
        raise UserError(f"{where}: target_scores: expected an object of numbers")
    highest = max(scores.values(), default=0)
    best = [choice for choice, score in scores.items() if score == highest]
    if scores and not best:
        raise UserError(f"{where}: target_scores: a score is NaN; set it to a number")
    if choose and not best:
        raise UserError(f"{where}: target_scores has no choice; give each choice a score")
    shown = shuffled(sorted(scores), ["options", str(row["input"])]) if option else ()
    return {
        "input": row["input"],
        "options": "".join(option + choice for choice in shown),
        "choices": list(scores),
        "answer": list(scores).index(best[0]) if choose else row.get("target", best),
        "grades": list(scores.values()),
    }


def _metrics(tree: dict[str, Any], file: Path) -> tuple[str, ...]:
    """Return the metrics that a task asks for."""
    metrics = tree.get("metrics", [])
    if not isinstance(metrics, list) or not all(isinstance(name, str) for name in metrics):
        raise UserError(f"'{file}': metrics: expected a list of names")
    return tuple(metrics)


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
