"""Evaluation reports: a table of scores, and JSON in the format of lm-evaluation-harness.

A file of results has two parts. The keys of the harness (`results`, `n-shot`, ...) serve tools that read its format:
one key a task, or `TASK@SHOTS` if a task was run with several numbers of examples. The keys `lmjax` and `documents`
contain the measures of every document, from which all scores follow; `read_json` reads only these two.
"""

import hashlib
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lmjax.config import UserError
from lmjax.config.codec import from_json
from lmjax.display.console import Console
from lmjax.evaluation.results import Result, Sample, Score
from lmjax.evaluation.task_metrics import has_chance, lower_is_better
from lmjax.system.files import write_text
from lmjax.tasks.spec import TaskConfig

OUTPUT_TYPES = {  # the harness's names of the task kinds
    "choose": "multiple_choice",
    "match": "loglikelihood",
    "generate": "generate_until",
    "pairs": "multiple_choice",
    "perplexity": "loglikelihood_rolling",
}


# ---- Table ------------------------------------------------------------------------------------------------------


def print_report(result: Result, console: Console) -> None:
    """Print the scores: value ± standard error, the spread over shot seeds, and chance."""
    results = result.scores()
    spread = any(score.spread is not None for scores in results.values() for score in scores.values())
    rows = [
        (task, shots, name, *cells(score), *([_number(score.spread)] if spread else []), chance, score.count)
        for (task, shots), scores in results.items()
        for name, score in scores.items()
        for chance in [_number(result.tasks[task].chance) if has_chance(name) else ""]
    ]
    header = ("task", "shots", "metric", "value", "± stderr", *(["seeds ±"] if spread else []), "chance", "documents")
    console.table(result.model, rows, header=header)


def cells(score: Score) -> tuple[str, str]:
    """The value and the standard error as text."""
    return _number(score.value), _number(score.stderr)


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}" if abs(value) < 1e4 else f"{value:.3g}"


# ---- JSON -------------------------------------------------------------------------------------------------------


def to_dict(result: Result) -> dict[str, Any]:
    """The scores in the format of lm-evaluation-harness; lmjax's own data under `lmjax`.

    An unknown standard error is "N/A", as in the harness. `versions` holds a hash of each task's configuration.
    """
    results = result.scores()
    counts = [task for task, _ in results]
    keys = {(task, shots): task if counts.count(task) == 1 else f"{task}@{shots}" for task, shots in results}
    tasks = {key: result.tasks[task] for (task, _), key in keys.items()}
    effective = {keys[at]: max(score.count for score in scores.values()) for at, scores in results.items()}
    return {
        "results": {keys[at]: _entry(at[0], effective[keys[at]], scores) for at, scores in results.items()},
        "group_subtasks": {key: [] for key in tasks},
        "configs": {key: _config(task, shots, tasks[key]) for (task, shots), key in keys.items()},
        "versions": {key: _version(config) for key, config in tasks.items()},
        "n-shot": {key: shots for (_, shots), key in keys.items()},
        "higher_is_better": {keys[at]: {name: not lower_is_better(name) for name in results[at]} for at in results},
        "n-samples": {
            key: {"original": result.sizes.get(task, effective[key]), "effective": effective[key]}
            for (task, _), key in keys.items()
        },
        "config": {"model": result.model, **result.settings},
        "lmjax": {
            "model": result.model,
            "settings": result.settings,
            "sizes": result.sizes,
            "tasks": {name: asdict(config) for name, config in result.tasks.items()},
            "scores": [
                {"task": task, "shots": shots, "metric": name, **asdict(score), "stderr": _known(score.stderr)}
                for (task, shots), scores in results.items()
                for name, score in scores.items()
            ],
        },
    }


def write_json(result: Result, path: str | Path, *, samples: bool = False) -> list[Path]:
    """Write the results to a JSON file.

    Args:
        result: The result.
        path: The file.
        samples: Write every prompt with its responses, one JSON object a line, to NAME.samples.jsonl in the same
            folder.

    Returns:
        The files that were written.

    Raises:
        UserError: A file cannot be written.
    """
    path = Path(path)
    samples_path = path.with_name(path.stem + ".samples.jsonl")
    tree = to_dict(result)
    tree["lmjax"]["samples"] = samples_path.name if samples else ""
    rows = map(_line, result.samples)
    head = json.dumps(tree, indent=2, ensure_ascii=False).removesuffix("\n}")
    text = f'{head},\n  "documents": [\n    ' + ",\n    ".join(rows) + "\n  ]\n}\n"  # one line each, for readability
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if samples:
            lines = (json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in result.samples)
            write_text(samples_path, "".join(lines))
        write_text(path, text)
    except OSError as error:
        raise UserError(f"cannot write the results to {path}: {error.strerror}") from None
    return [path, samples_path] if samples else [path]


def read_json(path: str | Path) -> Result:
    """Read a result that `write_json` wrote.

    Without the samples file in the same folder the samples have their measures, but no prompt, target and responses.

    Raises:
        UserError: The file does not exist, lmjax did not write it, or the samples file belongs to another result.
    """
    path = Path(path)
    try:
        tree = json.loads(path.read_bytes())
        head = tree["lmjax"]
        tasks = {name: from_json(json.dumps(config), TaskConfig) for name, config in head["tasks"].items()}
        samples = tuple(_bare(row, tasks) for row in tree["documents"])
        result = Result(head["model"], samples, tasks, head["settings"], head["sizes"])
        samples_path = path.with_name(Path(head["samples"]).name) if head["samples"] else None
    except OSError as error:
        raise UserError(f"cannot read the results '{path}': {error.strerror}") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise UserError(f"'{path}' is not a file of results that `lmjax evaluate --json` wrote") from None
    if samples_path is None or not samples_path.is_file():
        return result
    return replace(result, samples=_full(result.samples, samples_path))


def _line(sample: Sample) -> str:
    """The line of a sample in the file of results."""
    return json.dumps([sample.task, sample.id, sample.shots, sample.seed, sample.metrics], ensure_ascii=False)


def _bare(row: list[Any], tasks: dict[str, TaskConfig]) -> Sample:
    task, identity, shots, seed, metrics = row
    if task not in tasks:
        raise KeyError(task)
    measures = {name: float(value) for name, value in metrics.items()}
    return Sample(task, str(identity), int(shots), int(seed), "", "", (), measures)


def _full(samples: tuple[Sample, ...], path: Path) -> tuple[Sample, ...]:
    """The samples with prompt, target and responses from the file `path`."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        full = tuple(
            Sample(**row | {"responses": tuple(r if isinstance(r, str) else (r[0], r[1]) for r in row["responses"])})
            for row in rows
        )
    except (OSError, ValueError, TypeError, KeyError, IndexError):
        raise UserError(f"'{path}' is damaged; remove it to read the results without the prompts") from None
    if [*map(_line, full)] != [*map(_line, samples)]:
        raise UserError(f"'{path}' has the samples of another result; remove it to read the results without them")
    return full


def _entry(task: str, count: int, scores: dict[str, Score]) -> dict[str, Any]:
    values: dict[str, Any] = {"alias": task, "name": task, "sample_len": count}
    for name, score in scores.items():
        values |= {f"{name},none": score.value, f"{name}_stderr,none": _known(score.stderr)}
    return values


def _config(task: str, shots: int, config: TaskConfig) -> dict[str, Any]:
    """The configuration of a task under the harness's key names."""
    return {
        "task": task,
        "description": config.description,
        "doc_to_text": config.prompt,
        "doc_to_target": config.answer,
        "target_delimiter": config.separator,
        "fewshot_delimiter": config.joint,
        "num_fewshot": shots,
        "output_type": OUTPUT_TYPES[config.kind],
    }


def _version(config: TaskConfig) -> str:
    return hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()[:8]


def _known(stderr: float) -> float | str:
    return "N/A" if math.isnan(stderr) else stderr
