"""Reading of run directories that anybody may have written, for curves and reports."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.config import GPTConfig, UserError
from lmjax.config.codec import from_tree
from lmjax.config.json_text import parse_json
from lmjax.config.regular_files import read_regular
from lmjax.models import costs
from lmjax.training.metrics import MEASURED, read

_LARGEST = 1e100  # of a value; the sums and products of a figure stay finite
_MOST_SKIPPED = 1000  # updates of a record
_MOST_COLUMNS = 500  # scores of tasks in a run
_MOST_METRICS = 200  # other columns of a report
_LONGEST_UPDATE = 1e9  # seconds
_LARGEST_SIZE = 1 << 24  # of a model whose FLOPs are computed
_DRAWN = {"update", "tokens", "loss", "val_loss", "val_bits_per_byte", "batch_size", "learning_rate", "skipped"}
_DRAWN |= {"grad_norm", "update_norm", "param_norm", "tokens_per_second", "mfu", "seconds"}
_NO_UNIT = {"classification", "reward", "dpo", "ppo", "grpo"}  # objectives

#: Horizontal axes of curves, with their labels.
AXES = {"updates": "updates", "tokens": "tokens", "time": "time of training", "flops": "FLOPs"}

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class RecordedRun:
    """The contents of a run directory; missing values are NaN."""

    #: Name of the run.
    name: str
    #: The run directory.
    folder: Path
    #: Columns of the training records.
    train: Columns
    #: Columns of the evaluation records.
    validation: Columns
    #: Content of summary.json; empty if it is missing or damaged.
    summary: Mapping[str, Any]
    #: Content of config.json; empty if it is missing or damaged.
    config: Mapping[str, Any]
    #: Scores of the baselines.
    baselines: dict[str, float]
    #: Nats per token that equal one bit per byte with the run's tokenizer; None before any evaluation.
    nats: float | None
    #: Tokens per sequence; 0 if unknown.
    context: int
    #: Training FLOPs per token; None if unknown.
    flops_per_token: float | None
    #: Updates whose batch was not applied.
    rejected: np.ndarray
    #: Columns `update` and `tokens` of the records with a value that is not finite, by its key.
    not_finite: Mapping[str, Columns]
    #: The run's tokenizer.json; None if it is missing.
    tokenizer: bytes | None

    def last(self, key: str) -> float:
        """Return `update` or `tokens` of the last record."""
        return float(max(columns[key][-1] for columns in (self.train, self.validation) if len(columns[key])))

    def column(self, key: str) -> np.ndarray:
        """Return a column of the training records; all NaN if there is no such column."""
        return self.train.get(key, np.full(len(self.train["tokens"]), np.nan))

    def position(self, axis: str, records: Columns) -> np.ndarray | None:
        """Return the places of records on a horizontal axis (`AXES`); None if they are unknown.

        The time is that of the updates, without evaluations and saves. Where not every update is recorded, it is
        extrapolated from those that are.
        """
        if axis == "updates":
            return records["update"]
        if axis == "tokens":
            return records["tokens"]
        if axis == "flops":
            return None if self.flops_per_token is None else records["tokens"] * self.flops_per_token
        seconds, updates = self.column("seconds"), self.train["update"]
        if not np.isfinite(seconds).any():
            return None
        each = np.nan_to_num(np.clip(seconds, 0, _LONGEST_UPDATE)) * np.clip(np.diff(updates, prepend=0), 0, None)
        return np.interp(records["update"], np.append(0, updates), np.append(0, np.cumsum(each)))


def common_axes(runs: Sequence[RecordedRun]) -> list[str]:
    """Return the horizontal axes on which all runs have places."""
    return [axis for axis in AXES if all(run.position(axis, run.train) is not None for run in runs)]


def unit_of_loss(runs: Sequence[RecordedRun]) -> str:
    """Return the unit of the losses in parentheses; empty if they have none."""
    families = {str(as_object(run.config.get("objective")).get("family")) for run in runs}
    return "" if families & _NO_UNIT else " (nats per token)"


def load(run_dirs: Sequence[str | Path], *, all_metrics: bool = False) -> list[RecordedRun]:
    """Load the runs of these directories, named by directory.

    Args:
        run_dirs: The directories.
        all_metrics: Also load the columns that only a report shows.

    Raises:
        UserError: A directory is not a run, or has no metrics.
    """
    if not run_dirs:
        raise UserError("no run to plot: give one or more run directories")
    names = [Path(run_dir).resolve().name for run_dir in run_dirs]
    unique = len(set(names)) == len(names)
    return [
        _load(Path(d), name if unique else str(d), all_metrics=all_metrics)
        for d, name in zip(run_dirs, names, strict=True)
    ]


def _load(run_dir: Path, name: str, *, all_metrics: bool) -> RecordedRun:
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        raise UserError(f"'{run_dir}' is not a run directory: it has no metrics.jsonl")
    records = [record for record in read(path) if is_finite(record.get("tokens"))]
    if not records:
        raise UserError(f"'{path}' has no records yet: nothing to plot")
    train = _columns([record for record in records if "val_loss" not in record], all_metrics=all_metrics)
    validation = _columns([record for record in records if "val_loss" in record], all_metrics=all_metrics)
    loss, bits = validation.get("val_loss"), validation.get("val_bits_per_byte")
    ratios = loss / bits if loss is not None and bits is not None else np.empty(0)
    ratios = ratios[np.isfinite(ratios)]
    summary, config = read_object(run_dir / "summary.json"), read_object(run_dir / "config.json")
    context = as_object(config.get("model")).get("context", 0)
    return RecordedRun(
        name=name,
        folder=run_dir,
        train=train,
        validation=validation,
        summary=summary,
        config=config,
        baselines={k: v for k, v in as_object(summary.get("baselines")).items() if is_finite(v)},
        nats=float(ratios[-1]) if len(ratios) else None,
        context=context if isinstance(context, int) and 0 <= context < 1 << 31 else 0,
        flops_per_token=_flops_per_token(summary, config),
        rejected=_rejected(run_dir / "journal.jsonl", train),
        not_finite={key: _broken(records, key) for key in ("loss", "val_loss", "grad_norm")},
        tokenizer=_bytes(tokenizer) if (tokenizer := run_dir / "tokenizer.json").is_file() else None,
    )


def _columns(records: Sequence[Mapping[str, Any]], *, all_metrics: bool) -> Columns:
    scores = {key for record in records for key in record.keys() - _DRAWN if MEASURED.fullmatch(key)}
    if len(scores) > _MOST_COLUMNS:
        raise UserError(f"metrics.jsonl has the scores of {len(scores):,} tasks; at most {_MOST_COLUMNS} can be drawn")
    keys = {key for record in records for key in record.keys() & _DRAWN} | scores | {"update", "tokens"}
    if all_metrics:
        counts = Counter(key for record in records for key, value in record.items() if is_finite(value))
        keys |= {key for key, _ in counts.most_common(_MOST_METRICS)}
    return {
        key: np.array([r[key] if is_finite(r.get(key)) else np.nan for r in records], np.float64)
        for key in sorted(keys)
    }


def _broken(records: Sequence[Mapping[str, Any]], key: str) -> Columns:
    """Return where a value is there, but not finite."""
    broken = [record for record in records if key in record and not is_finite(record[key])]
    return {place: np.array([record[place] for record in broken], np.float64) for place in ("update", "tokens")}


def _rejected(journal: Path, train: Columns) -> np.ndarray:
    """Return the updates with a rejected batch, from the journal or else from `skipped`."""
    if journal.exists():
        events = read_lines(journal)
        updates = [r["update"] for r in events if r.get("event") == "suspect" and is_finite(r.get("update"))]
        return np.array(updates, np.float64)
    skipped = np.nan_to_num(train.get("skipped", np.zeros(len(train["update"]))))
    most = min(_MOST_SKIPPED, 10_000_000 // max(len(skipped), 1))
    return np.repeat(train["update"], np.clip(skipped, 0, most).astype(int))


def _flops_per_token(summary: Mapping[str, Any], config: Mapping[str, Any]) -> float | None:
    """Return the FLOPs of summary.json, or the closed form for a GPT."""
    flops = summary.get("flops_per_token")
    if isinstance(flops, int | float) and is_finite(flops) and flops > 0:
        return float(flops)
    objective, model = as_object(config.get("objective")), as_object(config.get("model"))
    if objective.get("family") not in ("causal", "sft") or model.get("family") != "gpt":
        return None
    if any(isinstance(value, int) and not 0 <= value < _LARGEST_SIZE for value in model.values()):
        return None
    try:
        flops = costs.flops_per_token(from_tree(model, GPTConfig))
    except (UserError, ArithmeticError, ValueError):  # of numbers that no model has
        return None
    return float(flops) if is_finite(flops) and flops > 0 else None


def read_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; it is empty if there is none.

    Raises:
        UserError: The file cannot be read.
    """
    return _parse(_bytes(path)) if path.exists() else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the object of each line of a file; it is empty for a line that is damaged.

    Raises:
        UserError: The file cannot be read.
    """
    return [_parse(line) for line in _bytes(path).splitlines()] if path.exists() else []


def _bytes(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from None


def _parse(text: bytes) -> dict[str, Any]:
    try:
        value = parse_json(text, "it")
    except ValueError:
        return {}
    return as_object(value)


def as_object(value: Any) -> dict[str, Any]:
    """Return an object of JSON; anything else becomes the empty object."""
    return value if isinstance(value, dict) else {}


def is_finite(value: Any) -> bool:
    """Whether a value is a number that sums and products of a figure can use."""
    return isinstance(value, int | float) and abs(value) <= _LARGEST
