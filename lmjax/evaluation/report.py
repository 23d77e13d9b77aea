"""Evaluation reports: a table of scores, and JSON in the format of lm-evaluation-harness.

A file of results has two parts. The keys of the harness (`results`, `n-shot`, ...) serve tools that read its format:
one key a task, or `TASK@SHOTS` if a task was run with several numbers of examples. The keys `lmjax` and `documents`
contain the measures of every document, from which all scores follow; `read_json` reads only these two. A number that is
not finite is null, which is read as NaN.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from lmjax.config import UserError
from lmjax.config.codec import from_json
from lmjax.config.json_text import parse_json
from lmjax.config.regular_files import open_regular, read_regular
from lmjax.display.console import Console
from lmjax.evaluation.results import Result, Sample, Score
from lmjax.evaluation.task_metrics import has_chance, lower_is_better
from lmjax.system.files import write_text
from lmjax.system.json_files import to_json
from lmjax.tasks.spec import TaskConfig, content

OUTPUT_TYPES = {  # the harness's names of the task kinds
    "choose": "multiple_choice",
    "match": "loglikelihood",
    "generate": "generate_until",
    "pairs": "multiple_choice",
    "perplexity": "loglikelihood_rolling",
}

# Further fields of a sample in the file of results, with their defaults; and the facts of a result.
_FURTHER = {
    field.name: field.default
    for field in fields(Sample)
    if field.name in ("digest", "named", "truncated", "answer_truncated")
}
_MEASURES = 100  # names of measures of a result
_COUNTS = ("unreachable", "not_computed", "dropped", "first_rows", "unknown_tokens")  # by task
_FACTS = {"first_token": str | None, **dict.fromkeys(_COUNTS, dict)}


# ---- Table ------------------------------------------------------------------------------------------------------


def print_report(result: Result, console: Console) -> None:
    """Print the scores, the means of groups, and what they were not measured on.

    A row has the value ± standard error, the spread over shot seeds, chance, and the number of documents whose prompt
    or answer was cut, if there are any.
    """
    results, cut = result.scores(), {(row["task"], row["shots"]): row for row in result.truncations()}
    spread = any(score.spread is not None for scores in results.values() for score in scores.values())
    rows = []
    for (task, shots), scores in results.items():
        for name, score in scores.items():
            chance = _number(result.tasks[task].chance) if has_chance(name) else ""
            cut_row = cut.get((task, shots), {"prompts": 0, "answers": 0})
            counts = [score.count, *([max(cut_row["prompts"], cut_row["answers"])] if cut else [])]
            rows.append(
                (task, shots, name, *cells(score), *([_number(score.spread)] if spread else []), chance, *counts)
            )
    for group, shots, name, score in _group_rows(result):
        spreads = [_number(score.spread)] if spread else []
        rows.append((group, shots, name, *cells(score), *spreads, "", score.count, *([""] if cut else [])))
    header = ("task", "shots", "metric", "value", "± stderr", *(["seeds ±"] if spread else []), "chance", "documents")
    console.table(result.model, rows, header=(*header, *(["cut"] if cut else [])))
    for line in notes(result):
        console.event(line)


def _group_rows(result: Result) -> Iterator[tuple[str, int, str, Score]]:
    """Yield the scores of the groups: macro and micro, or one row of a group with one task."""
    members = result.members()
    for (group, shots), means in result.group_scores().items():
        for name, (macro, micro) in means.items():
            if len(members[group, shots]) == 1:
                yield f"{group} (one task)", shots, name, micro
            else:
                yield f"{group} (macro)", shots, name, macro
                yield f"{group} (micro)", shots, name, micro


def notes(result: Result) -> list[str]:
    """Say what the scores were not measured on: cut texts, answers out of reach, metrics."""
    lines = []
    for row in result.truncations():
        where = f"{row['task']} at {row['shots']} shots"
        for what in ("prompt", "answer"):
            if row[f"{what}s"]:
                lines.append(
                    f"{where}: the {what} was truncated to the context for {row[f'{what}s']} of {row['documents']} "
                    f"documents, by up to {row[f'{what}_tokens']} tokens"
                )
    for task, counts in result.facts.get("unreachable", {}).items():
        stop, length = counts.get("stop", 0), counts.get("max_tokens", 0)
        reasons = [f"{stop} contain a stop"] * bool(stop)
        reasons += [f"{length} have more tokens than max_tokens (raise it with --max-tokens)"] * bool(length)
        lines.append(f"{task}: no generated text can equal the answers of some documents: {', '.join(reasons)}")
    for task, metrics in result.facts.get("not_computed", {}).items():
        lines.append(f"{task}: metrics of the task that are not computed: {', '.join(metrics)}")
    for task, count in result.facts.get("dropped", {}).items():
        lines.append(f"{task}: {count} rows have no text and are left out")
    for task, count in result.facts.get("unknown_tokens", {}).items():
        lines.append(f"{task}: {count} documents have text that the tokenizer cannot represent (unknown tokens)")
    for task, count in result.facts.get("first_rows", {}).items():
        lines.append(f"{task}: only the first {count:,} rows were read; the task has more")
    return lines


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
    groups = result.group_scores()
    return {
        "results": {keys[at]: _entry(at[0], effective[keys[at]], scores) for at, scores in results.items()},
        **(
            {"groups": {f"{name}@{shots}": _group(name, means) for (name, shots), means in groups.items()}}
            if groups
            else {}
        ),
        "group_subtasks": {key: [] for key in tasks} | _subtasks(result, keys),
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
            **result.facts,
            "truncated": result.truncations(),
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
    head = to_json(tree, indent=2).removesuffix("\n}")
    text = f'{head},\n  "documents": [\n    ' + ",\n    ".join(rows) + "\n  ]\n}\n"  # one line each, for readability
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if samples:
            lines = (to_json(asdict(sample)) + "\n" for sample in result.samples)
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
        tree = parse_json(read_regular(path), f"'{path}'")
    except OSError as error:
        raise UserError(f"cannot read the results '{path}': {error.strerror}") from None
    try:
        head = tree["lmjax"]
        tasks = {name: from_json(json.dumps(config), TaskConfig) for name, config in head["tasks"].items()}
        samples = tuple(_bare(row, tasks) for row in tree["documents"])
        if len({name for sample in samples for name in sample.metrics}) > _MEASURES:
            raise ValueError("more measures than a task has")
        facts = {name: value for name, value in head.items() if name in _FACTS and isinstance(value, _FACTS[name])}
        result = Result(str(head["model"]), samples, tasks, dict(head["settings"]), dict(head["sizes"]), facts)
        samples_path = path.with_name(Path(head["samples"]).name) if head["samples"] else None
        result.scores()  # raises an error if the measures do not fit together
        notes(result)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
        raise UserError(f"'{path}' is not a file of results that `lmjax evaluate --json` wrote") from None
    if samples_path is None or not samples_path.is_file():
        return result
    return replace(result, samples=_full(result.samples, samples_path))


def _line(sample: Sample) -> str:
    """The line of a sample in the file of results, with its further fields at the end."""
    further = {name: getattr(sample, name) for name in _FURTHER if getattr(sample, name) != _FURTHER[name]}
    row = [sample.task, sample.id, sample.shots, sample.seed, sample.metrics, *([further] if further else [])]
    return to_json(row)


def _bare(row: list[Any], tasks: dict[str, TaskConfig]) -> Sample:
    task, identity, shots, seed, metrics, *more = row
    if task not in tasks:
        raise KeyError(task)
    further = more[0] if more else {}
    named = {name: _typed(further[name], type(default)) for name, default in _FURTHER.items() if name in further}
    return Sample(task, str(identity), int(shots), int(seed), "", "", (), _measures(metrics), **named)


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(value)
    return value


def _measures(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in metrics.items()}


def _full(samples: tuple[Sample, ...], path: Path) -> tuple[Sample, ...]:
    """The samples with prompt, target and responses from the file `path`."""
    try:
        with open_regular(path) as file:
            full = tuple(_sample(parse_json(line, f"'{path}'")) for line in file if line.strip())
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
        raise UserError(f"'{path}' is damaged; remove it to read the results without the prompts") from None
    if [*map(_line, full)] != [*map(_line, samples)]:
        raise UserError(f"'{path}' has the samples of another result; remove it to read the results without them")
    return full


def _sample(row: dict[str, Any]) -> Sample:
    responses = (r if isinstance(r, str) else (_measures({"": r[0]})[""], bool(r[1])) for r in row["responses"])
    return Sample(**row | {"responses": tuple(responses), "metrics": _measures(row["metrics"])})


def _entry(task: str, count: int, scores: dict[str, Score]) -> dict[str, Any]:
    values: dict[str, Any] = {"alias": task, "name": task, "sample_len": count}
    for name, score in scores.items():
        values |= {f"{name},none": score.value, f"{name}_stderr,none": _known(score.stderr)}
    return values


def _group(name: str, means: dict[str, tuple[Score, Score]]) -> dict[str, Any]:
    """The scores of a group; those that the harness has are the means over documents."""
    values: dict[str, Any] = {"alias": name}
    for metric, (macro, micro) in means.items():
        values |= {f"{metric},none": micro.value, f"{metric}_stderr,none": _known(micro.stderr)}
        values |= {f"{metric},macro": macro.value, f"{metric}_stderr,macro": _known(macro.stderr)}
    return values


def _subtasks(result: Result, keys: Mapping[tuple[str, int], str]) -> dict[str, list[str]]:
    """The tasks of each group, by the key of the group."""
    members = result.members()
    return {f"{group}@{shots}": [keys[task, shots] for task in tasks] for (group, shots), tasks in members.items()}


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
    return hashlib.sha256(json.dumps(content(config), sort_keys=True).encode()).hexdigest()[:8]


def _known(stderr: float) -> float | str:
    return "N/A" if math.isnan(stderr) else stderr
