"""The HTML report of one or several runs, from their run directories alone."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lmjax.config import UserError, presets
from lmjax.config.codec import flatten
from lmjax.config.regular_files import open_regular
from lmjax.display.format import digits, duration, quantity
from lmjax.display.report_page import Chart, Folded, Link, Page, Section, Series, Table, Text, render
from lmjax.display.thinning import chosen, smooth
from lmjax.run import samples_over_time
from lmjax.run.recorded import (
    AXES,
    Columns,
    RecordedRun,
    as_object,
    common_axes,
    is_finite,
    load,
    read_lines,
    unit_of_loss,
)
from lmjax.system.files import write_text

NAME = "report.html"
SAMPLE = "sample.txt"
_POINTS = 2000  # of a curve
_ROWS = 30  # of the table of evaluations
_MOST_SPIKES = 100
_OWN_REPORTS = {"rl_report.md": "reinforcement learning", "reward_report.md": "reward model"}
_SAMPLES = 12  # over time that are shown
_LONGEST_SAMPLE = 20_000  # bytes
_SHOWN_APART = {"update", "tokens", "loss", "learning_rate", "batch_size", "grad_norm", "tokens_per_second", "mfu"}
_SHOWN_APART |= {"seconds", "skipped", "update_norm", "param_norm", "weight"}
_OF_POLICY = ("reward", "kl", "entropy", "length", "finished", "distinct")  # shown at first if they are there
_IN_BITS = "_bits_per_byte"
_VERSIONS = ("lmjax", "python", "jax", "platform", "devices", "processes", "mesh")

Kind = Literal["line", "faint", "points", "step", "marks"]


def write(run_dirs: Sequence[str | Path], out: Path | None = None) -> Path:
    """Write the report of runs, which are overlaid.

    Args:
        run_dirs: The run directories.
        out: The file; default: `report.html` of the run, or of the first of several runs `compared.html`.

    Returns:
        The path of the file.

    Raises:
        UserError: A directory is not a run or has no metrics yet, or the file cannot be written.
    """
    runs = load(run_dirs, all_metrics=True)
    path = out or Path(run_dirs[0]) / (NAME if len(runs) == 1 else "compared.html")
    try:
        write_text(path, render(page(runs, base=path.parent)))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another place with --out FILE") from None
    return path


def page(runs: Sequence[RecordedRun], *, base: Path) -> Page:
    """Return the page of runs; links are relative to `base`."""
    axes = {axis: AXES[axis] for axis in common_axes(runs)}
    sections = [
        Section("Results", [_results(runs)]),
        Section("Curves", _curves(runs, axes)),
        Section("Health", _health(runs, axes)),
        Section("Samples", [block for run in runs for block in _samples(run, several=len(runs) > 1)]),
        Section("Evaluations", [table for run in runs if (table := _evaluations(run, several=len(runs) > 1))]),
        Section("Reports", [table for run in runs if (table := _reports(run, base))]),
        Section("Configuration", list(_configurations(runs))),
        Section("Data and machine", [_machine(runs)]),
        Section("Commands", [Text(_commands(run), title=run.name if len(runs) > 1 else "") for run in runs]),
    ]
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    return Page(f"lmjax: {title}", "; ".join(map(_headline, runs)), [run.name for run in runs], axes, sections)


def _headline(run: RecordedRun) -> str:
    status, loss = run.summary.get("status", "not finished"), run.summary.get("val_loss")
    seen = f"{int(run.last('update')):,} updates, {quantity(run.last('tokens'))} tokens"
    return f"{run.name}: {status}, {seen}" + (f", validation loss {digits(loss)}" if is_finite(loss) else "")


# ---- Curves ---------------------------------------------------------------------------------------------------------


def _series(
    name: str, number: int, run: RecordedRun, columns: Columns, y: np.ndarray, axes: Mapping[str, str], kind: Kind
) -> Series:
    kept = chosen(y, _POINTS)
    places = {axis: run.position(axis, columns) for axis in axes}
    return Series(name, number, {a: x[kept] for a, x in places.items() if x is not None}, y[kept], kind)


def _chart(title: str, runs: Sequence[RecordedRun], axes: Mapping[str, str], key: str, **options: Any) -> list[Chart]:
    """Return a chart of a column of the training records; none if no run has it."""
    kind: Kind = options.pop("kind", "line")
    series = [
        _series(title, number, run, run.train, y, axes, kind)
        for number, run in enumerate(runs)
        if np.isfinite(y := run.column(key)).any()
    ]
    return [Chart(title, series, **options)] if series else []


def _curves(runs: Sequence[RecordedRun], axes: Mapping[str, str]) -> list[Chart]:
    series = []
    for number, run in enumerate(runs):
        loss = run.column("loss")
        series.append(_series("training", number, run, run.train, loss, axes, "faint"))
        series.append(_series("training, smooth", number, run, run.train, smooth(loss), axes, "line"))
        if len(run.validation["update"]):
            scored = run.validation["val_loss"]
            series.append(_series("validation", number, run, run.validation, scored, axes, "points"))
    return [
        Chart(f"loss{unit_of_loss(runs)}", series, references=_baselines(runs[0]), wide=True),
        *_chart("learning rate", runs, axes, "learning_rate", from_zero=True),
        *_chart("sequences in a batch", runs, axes, "batch_size", kind="step", from_zero=True),
        *_chart("tokens per second", runs, axes, "tokens_per_second", from_zero=True),
        *_scores(runs, axes),
    ]


def _baselines(run: RecordedRun) -> dict[str, float]:
    """Return the baselines of the loss; bits per byte are converted to nats per token."""
    nats = {key: value * run.nats for key, value in run.baselines.items() if run.nats and key.endswith(_IN_BITS)}
    losses = nats | {key: value for key, value in run.baselines.items() if key.endswith("_loss")}
    return {key.removesuffix(_IN_BITS).replace("_", " "): value for key, value in losses.items()}


def _scores(runs: Sequence[RecordedRun], axes: Mapping[str, str]) -> Iterator[Chart]:
    """Yield a chart of each validation score but the loss."""
    names = dict.fromkeys(name for run in runs for name in run.validation if name.startswith("val_"))
    for name in names:
        series = [
            _series(name, number, run, run.validation, run.validation[name], axes, "points")
            for number, run in enumerate(runs)
            if name in run.validation and np.isfinite(run.validation[name]).any()
        ]
        if series and name != "val_loss":
            yield Chart(name, series)


def _health(runs: Sequence[RecordedRun], axes: Mapping[str, str]) -> list[Any]:
    blocks: list[Any] = []
    for name in _OF_POLICY:
        blocks += _chart(name, runs, axes, name)
    blocks += _chart("gradient norm", runs, axes, "grad_norm", log=True)
    series = []
    for number, run in enumerate(runs):
        with np.errstate(divide="ignore", invalid="ignore"):
            share = run.column("update_norm") / run.column("param_norm")
        if np.isfinite(share).any():
            series.append(_series("update", number, run, run.train, share, axes, "line"))
    blocks += [Chart("norm of an update as a share of the parameters'", series, log=True)] if series else []
    if any(len(run.rejected) for run in runs):
        blocks.append(Chart("batches that were rejected", list(_rejected(runs, axes)), from_zero=True))
    others = dict.fromkeys(name for run in runs for name in run.train if name not in _SHOWN_APART | {*_OF_POLICY})
    rest = [chart for name in others for chart in _chart(name, runs, axes, name)]
    return [*blocks, Folded("all other metrics", rest)] if rest else blocks


def _rejected(runs: Sequence[RecordedRun], axes: Mapping[str, str]) -> Iterator[Series]:
    """Yield the number of rejected batches so far of each run."""
    for number, run in enumerate(runs):
        so_far = np.searchsorted(np.sort(run.rejected), run.train["update"], side="right")
        yield _series("rejected", number, run, run.train, so_far.astype(float), axes, "step")


# ---- Tables ---------------------------------------------------------------------------------------------------------


def _results(runs: Sequence[RecordedRun]) -> Table:
    """Return the fields of summary.json that are numbers, a column for each run."""
    fields: dict[str, Any] = {
        "status": lambda run: str(run.summary.get("status", "not finished")),
        "updates": lambda run: f"{int(run.last('update')):,}",
        "tokens": lambda run: f"{int(run.last('tokens')):,}",
        "time": lambda run: _fact(run, "seconds", duration),
        "parameters": lambda run: _fact(run, "parameters", lambda count: f"{count:,}"),
        "memory": lambda run: _fact(run, "peak_memory_bytes", lambda size: quantity(size, "B")),
    }
    rows = [(name, *(text(run) for run in runs)) for name, text in fields.items()]
    scores = dict.fromkeys(name for run in runs for name in run.summary if name.startswith("val_"))
    rows += [(name, *(_score(run, name) for run in runs)) for name in scores]
    baselines = dict.fromkeys(name for run in runs for name in run.baselines)
    rows += [(name.replace("_", " "), *(_shown(run.baselines.get(name)) for run in runs)) for name in baselines]
    rows = [row for row in rows if any(row[1:])]
    return Table(rows, header=("", *(run.name for run in runs)) if len(runs) > 1 else ())


def _fact(run: RecordedRun, key: str, show: Callable[[Any], str]) -> str:
    """Format a number of summary.json; anything else becomes the empty text."""
    value: Any = run.summary.get(key)
    return show(value) if is_finite(value) and value >= 0 else ""


def _score(run: RecordedRun, name: str) -> str:
    """Format a score, and the range that the configuration expects of it."""
    listed, text = run.summary.get("expect"), _shown(run.summary.get(name))
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, list) and len(entry) == 3 and entry[0] == name and all(map(is_finite, entry[1:])):
            return f"{text} (expected: {digits(entry[1])} to {digits(entry[2])})"
    return text


def _shown(value: Any) -> str:
    return digits(value) if is_finite(value) else ""


def _evaluations(run: RecordedRun, *, several: bool) -> Table | None:
    columns = {name: values for name, values in run.validation.items() if name.startswith("val_")}
    count = len(run.validation["update"])
    if not count:
        return None
    kept = np.unique(np.linspace(0, count - 1, min(count, _ROWS)).astype(int))
    rows = []
    for i in kept:
        place = (f"{int(run.validation['update'][i]):,}", quantity(float(run.validation["tokens"][i])))
        rows.append((*place, *(_shown(float(values[i])) for values in columns.values())))
    return Table(rows, header=("update", "tokens", *columns), title=run.name if several else "")


def _reports(run: RecordedRun, base: Path) -> Table | None:
    """Return a table with links to the other reports of a run and to those of spikes."""
    try:
        reports = sorted((run.folder / "spikes").glob("*.md"))[:_MOST_SPIKES]
        inside = run.folder.resolve().is_relative_to(base.resolve())
    except OSError:
        return None
    prefix = run.folder.resolve().relative_to(base.resolve()) if inside else run.folder.resolve()
    rows = [(Link(path.name, str(prefix / "spikes" / path.name)), "spike") for path in reports]
    own = {name: what for name, what in _OWN_REPORTS.items() if (run.folder / name).is_file()}
    rows = [(Link(name, str(prefix / name)), what) for name, what in own.items()] + rows
    return Table(rows, header=("report", "about"), title=run.name) if rows else None


def _configurations(runs: Sequence[RecordedRun]) -> Iterator[Any]:
    """Yield what differs among the runs, and what each changes in its preset."""
    flat = [{key: _value(value) for key, value in flatten(dict(run.config)).items()} for run in runs]
    if len(runs) > 1:
        keys = [key for key in dict.fromkeys(k for tree in flat for k in tree) if len({t.get(key) for t in flat}) > 1]
        rows = [(key, *(tree.get(key, "") for tree in flat)) for key in keys]
        yield (
            Table(rows, header=("key", *(run.name for run in runs)), title="What differs") if rows else "All are equal."
        )
    for run, tree in zip(runs, flat, strict=True):
        preset = _preset(run)
        changed = {key for key, value in tree.items() if preset.get(key, value) != value}
        name = str(run.config.get("name", ""))
        if preset and changed:
            rows = [(key, tree[key], preset[key]) for key in tree if key in changed]
            yield Table(rows, header=("key", "value", f"in the preset {name}"), title=f"{run.name}: changes")
        marked = frozenset(number for number, key in enumerate(tree) if key in changed)
        yield Folded(f"{run.name}: all keys", [Table(list(tree.items()), header=("key", "value"), marked=marked)])


def _preset(run: RecordedRun) -> dict[str, str]:
    """Return the preset of the run's name as shown values; empty if there is none."""
    name = run.config.get("name")
    if not isinstance(name, str) or name not in presets.names():
        return {}
    return {key: _value(value) for key, value in flatten(asdict(presets.load(name))).items()}


def _value(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value).replace("(", "[").replace(")", "]")


def _machine(runs: Sequence[RecordedRun]) -> Table:
    starts = [_start(run) for run in runs]
    rows = [(name, *(str(start.get(name, "")) for start in starts)) for name in _VERSIONS]
    facts = ("data_sha256", "tokenizer_sha256")
    rows += [(name, *(str(start.get(name, ""))[:16] for start in starts)) for name in facts]
    lost = ("unknown_tokens", "skipped_records", "dropped_records", "duplicate_documents", "truncated", "dropped")
    rows += [
        (name.replace("_", " "), *(str(run.summary.get(name, "")) for run in runs))
        for name in lost
        if any(run.summary.get(name) for run in runs)
    ]
    rows.append(("digest", *(str(run.summary.get("digest", ""))[:16] for run in runs)))
    return Table(rows, header=("", *(run.name for run in runs)) if len(runs) > 1 else ())


def _start(run: RecordedRun) -> Mapping[str, Any]:
    """Return the first record of the journal, which has the versions and the hashes."""
    records = read_lines(run.folder / "journal.jsonl")
    return next((record for record in records if record.get("event") == "start"), {})


# ---- Texts ----------------------------------------------------------------------------------------------------------


def _samples(run: RecordedRun, *, several: bool) -> Iterator[Text]:
    """Yield samples over time, folded, and the one at the end."""
    name = f"{run.name}: " if several else ""
    try:
        found = samples_over_time.read(run.folder / samples_over_time.NAME)
    except OSError:
        found = []
    kept = np.unique(np.linspace(0, max(0, len(found) - 1), min(len(found), _SAMPLES)).astype(int))
    for number in kept.tolist():
        yield Text(found[number]["text"], title=f"{name}update {found[number]['update']:,}", folded=True)
    if text := _sample(run):
        yield Text(text, title=f"{name}at the end")


def _sample(run: RecordedRun) -> str:
    try:
        with open_regular(run.folder / SAMPLE) as file:
            return file.read(_LONGEST_SAMPLE).decode("utf-8", "replace")
    except OSError:
        return ""


def _commands(run: RecordedRun) -> str:
    """Return the commands that train the run again, resume it and check it."""
    folder = shlex.quote(str(run.folder))
    seed = as_object(dict(run.config)).get("seed", 0)
    return (
        f"python train.py {folder}/config.json --run-dir {shlex.quote(str(run.folder) + '-again')}  # seed {seed}\n"
        f"python train.py --resume {folder}\nlmjax audit {folder}\nlmjax plot {folder}\nlmjax report {folder}"
    )
