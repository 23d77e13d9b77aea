"""The report of a spike: `RUN/spikes/UPDATE.md` and its picture."""

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.guard.decision import Decision
from lmjax.journal import journal
from lmjax.journal.history import fold
from lmjax.parallel import mesh, processes
from lmjax.run.build import Run
from lmjax.run.spikes import answers
from lmjax.run.spikes.case import Case, gradient, layer_norms, not_finite
from lmjax.system.files import write_text
from lmjax.training.inputs import ScheduledBatch
from lmjax.training.state import State

SHOWN = 8  # number of sequences and documents
CHARACTERS, BEGINNING = 300, 60  # length of the excerpt of a sequence, of a document
TRIED, BEFORE = 16, 4  # rows of the table of batches; number of rows before the onset
_MARK = "<!-- rollback {} -->"  # begins a section; a decoded text, being indented, cannot contain such a line


def write_report(run: Run, run_dir: Path, state: State, fed: ScheduledBatch, decision: Decision) -> None:
    """Add a section to the report of the update at which the guard fired on the batch `fed`.

    Every process of the run must call this; only the main process writes. If the run was killed right after a report,
    the section is written again. A section that fails contains its error.

    Args:
        run: The run.
        run_dir: Directory of the run.
        state: The current state.
        fed: The batch.
        decision: The decision of the guard.

    Raises:
        UserError: The journal is damaged.
        OSError: The report cannot be written.
    """
    broken = not_finite(state)
    needed = replace(state, opt_state=None, ema=None)  # sharded state may exceed one device; the rest must fit
    state, batch = mesh.local_copy((needed, {name: fed.batch[name] for name in ("arrays", "microbatches")}))
    if not processes.is_main():
        return
    fed = replace(fed, batch=batch)
    folder, update = run_dir / "spikes", decision.trigger.update + 1
    folder.mkdir(exist_ok=True)
    past = fold(journal.read(run_dir / "journal.jsonl"))
    mark = _MARK.format(len(past.rollbacks) + 1)
    before = _read(folder / f"{update}.md", update).partition(f"\n{mark}\n")[0].rstrip()
    number = before.count("\n" + _MARK.partition("{")[0]) + 1
    picture = folder / (f"{update}.png" if number == 1 else f"{update}-{number}.png")

    case = Case(run, run_dir, state, fed, decision, past)
    sections = [
        ("Around it", lambda case: _draw(case, picture)),
        ("What the guard saw", _tried),
        *_of_batch(run),
        ("State", lambda case: _state(broken)),
        ("Documents of the suspects", _documents),
        ("Next steps", _by_hand),
    ]
    body = [f"{mark}\n## {_title(decision)}", _attempt("", _headline, case)]
    body += [_attempt(f"### {title}\n\n", section, case) for title, section in sections]
    write_text(folder / f"{update}.md", "\n\n".join((before, *body)) + "\n")


def conclude_report(run_dir: Path, update: int, text: str) -> None:
    """Add the verdict of a replay to the report of the spike after `update` applied updates."""
    if not processes.is_main():
        return
    path = run_dir / "spikes" / f"{update + 1}.md"
    path.parent.mkdir(exist_ok=True)
    write_text(path, f"{_read(path, update + 1).rstrip()}\n\n## Verdict\n\n{text}\n")


def _of_batch(run: Run) -> list[tuple[str, Callable[[Case], str]]]:
    """Return the sections on the batch; the prompts of a policy have no loss and no gradient."""
    if run.objective.episodic:
        return [("The answers", answers.describe)]
    return [
        ("Is it a few sequences, or all of them?", _spread),
        ("The batch", _sequences),
        ("Gradient by layer", _layers),
    ]


# ---- The sections ---------------------------------------------------------------------------------------------------


def _title(decision: Decision) -> str:
    if decision.verdict:
        return f"Attempt {decision.attempt}: given up"
    if decision.reproduced:
        return f"Replay of attempt {decision.attempt}: the spike recurred"
    return f"Attempt {decision.attempt}: {decision.kind}"


def _headline(case: Case) -> str:
    """Describe the event, its onset, and the reaction."""
    decision, (loss, norm) = case.decision, case.seen
    onset, trigger = decision.onset, decision.trigger
    (median, _), (log_median, _) = case.bands
    usual = f"median {_n(median)} of {case.count} updates" if case.count else "no median yet"
    usual_norm = f"median {_n(math.exp(log_median))}" if case.count else "no median yet"
    return (
        f"**Update {trigger.update + 1}: {decision.rule}.** Loss {_n(loss)} ({usual}), gradient norm {_n(norm)} "
        f"({usual_norm}). It began at update {onset.update + 1}, position {onset.before:,}. {_done(case)}"
    )


def _done(case: Case) -> str:
    decision, total = case.decision, int(case.run.plan.sequences.sum())
    if decision.verdict:
        return (
            f"**The guard gives up:** {decision.verdict}. The run is left at a healthy checkpoint, {decision.target}."
        )
    if decision.positions is None:
        return f"The run goes back to update {decision.target} and replays the same data: does the spike recur?"
    start, stop = decision.positions
    text = (
        f"The run goes back to update {decision.target} and leaves out the positions {start:,} to {stop:,}: "
        f"{stop - start:,} samples, {(stop - start) / total:.2%} of the run."
    )
    if decision.cut:
        text += (
            f" The learning rate is multiplied by {decision.cut[1]:g} and rises back over {decision.cut[2]} updates."
        )
    return text


def _tried(case: Case) -> str:
    """Tabulate the last batches in the order of their trial, from shortly before the onset."""
    decision, config = case.decision, case.run.config.guard
    names = ("loss", "z_loss", "grad_norm", "z_grad_norm", "learning_rate", "update_norm")
    rows: list[tuple[int, int, list[Any]]] = []
    for record in case.suspects:
        values = [_n(float.fromhex(record[name])) if name in record else "" for name in names]
        why = record["reason"] + (", hard" if record["hard"] else "")
        rows.append((record["update"] + 1, 0, [record["update"] + 1, *values, why]))
    for update in range(decision.onset.update + 1 - BEFORE, decision.trigger.update + 2):
        if update in case.accepted:
            loss, norm = case.accepted[update]
            record = case.recorded.get(update, {}) | {"loss": loss, "grad_norm": norm}
            values = [_n(record[name]) if record.get(name) is not None else "" for name in names]
            rows.append((update, 1, [update, *values, "accepted"]))
    rows.sort(key=lambda row: row[:2])
    header = "update|loss|z|gradient norm|z|learning rate|update norm|"
    return (
        f"{_table(header, [cells for _, _, cells in rows[-TRIED:]])}\n\n"
        f"z: robust deviations above the median of the window. Suspect above {config.loss_z:g} (loss) or "
        f"{config.grad_z:g} (gradient norm, with a loss above {config.grad_loss_z:g}); hard above {config.hard_z:g}, "
        "or not finite."
    )


def _spread(case: Case) -> str:
    """Describe the distribution of losses over the sequences, and the mean without the worst."""
    finite = np.sort(case.losses_R[np.isfinite(case.losses_R)])
    odd = len(case.losses_R) - len(finite)
    lines = [f"{odd} of {len(case.losses_R)} sequences have a loss that is not finite."] if odd else []
    if not len(finite):
        return lines[0]
    lines.append(_mean(case, finite, odd))
    counts, edges = np.histogram(finite, bins=10)
    bars = ["#" * math.ceil(40 * count / counts.max()) for count in counts.tolist()]
    bins = zip(edges[:-1].tolist(), edges[1:].tolist(), bars, counts.tolist(), strict=True)
    lines.append(_code("\n".join(f"{_n(low):>9} to {_n(high):<9} {bar} {count}" for low, high, bar, count in bins)))
    return "\n\n".join(lines)


def _mean(case: Case, finite: np.ndarray, odd: int) -> str:
    quarters = ", ".join(_n(value) for value in np.quantile(finite, (0, 0.25, 0.5, 0.75, 1)).tolist())
    text = f"Loss of a sequence in nats per token: mean {_n(finite.mean())}; minimum, quartiles, maximum {quarters}."
    few = min(SHOWN, len(finite) // 4)
    median, deviation = case.bands[0]
    bound = median + case.run.config.guard.loss_z * deviation
    if not few or not case.count:
        return text
    mean = float(finite[:-few].mean())
    if finite.mean() <= bound:
        says = "what can be measured is an ordinary batch" if odd else "the losses of the batch are ordinary"
        return f"{text} The mean is within the guard's bound of {_n(bound)}: **{says}**."
    says = "they cause the spike" if mean <= bound else "the complete batch is abnormal"
    return f"{text} Without the worst {few} the mean is {_n(mean)}, the guard's bound {_n(bound)}: **{says}**."


def _sequences(case: Case) -> str:
    """Show the worst sequences, decoded, with their origin."""
    run, rows, losses = case.run, case.rows, case.losses_R
    stored = run.samples.arrays(case.ids)
    corrupted = sum(any((rows[name][i] != stored[name][i]).any() for name in stored) for i in range(len(losses)))
    parts = [f"{len(losses)} sequences, at the positions {case.fed.before:,} to {case.fed.cursor:,}; the worst first."]
    if corrupted:
        parts.append(
            f"**{corrupted} of them differ from the store's samples**: the data were corrupted after they were read."
        )
    for row in case.worst[:SHOWN].tolist():
        sample = int(case.ids[row])
        source, epoch, window = (int(part) for part in run.order.split_id(sample))
        parts.append(
            f"**Loss {_n(losses[row])}**: sample {sample}, source {_inline(run.samples.source_name(source))}, "
            f"epoch {epoch}, window {window}, {run.samples.place(sample)}"
        )
        parts.append(_code(run.samples.row_text(rows, row)[:CHARACTERS]))
    remaining = losses[case.worst[SHOWN:]]
    if len(remaining):
        parts.append(f"The other {len(remaining)} sequences: loss {_n(remaining[-1])} to {_n(remaining[0])}.")
    return "\n\n".join(parts)


def _layers(case: Case) -> str:
    """Tabulate norms of the batch's gradient and of the parameters by layer."""
    total, weight = gradient(case.run, case.state, case.fed)
    scale = abs(float(weight)) or 1.0
    gradients, params = layer_norms(total), layer_norms(case.state.params)
    norms = {group: math.hypot(*leaves.values()) / scale for group, leaves in gradients.items()}
    largest = max((norm for norm in norms.values() if math.isfinite(norm)), default=math.nan)
    rows = []
    for group, leaves in gradients.items():
        leaf = max(leaves, key=lambda name: leaves[name] if math.isfinite(leaves[name]) else math.inf)
        norm, size = norms[group], math.hypot(*params[group].values())
        mark = "not finite" if not math.isfinite(norm) else "largest" if norm == largest else ""
        most = f"{_inline(leaf)} {_n(leaves[leaf] / scale)}"
        rows.append([group, _n(norm), _n(size), _n(norm / size if size else math.nan), most, mark])
    rows.append(["all", _n(math.hypot(*norms.values())), "", "", "", ""])
    broken = [
        f"{group}/{leaf}" for group, leaves in gradients.items() for leaf in leaves if not math.isfinite(leaves[leaf])
    ]
    text = _table("layer|gradient norm|parameter norm|ratio|largest leaf|", rows)
    return text + (f"\n\nGradients that are not finite: {_names(broken)}." if broken else "")


def _state(names: Sequence[str]) -> str:
    """Name the leaves that are not finite."""
    if names:
        return f"**Not finite**: {_names(names)}."
    return "Parameters, optimizer state and the guard's window are finite."


def _documents(case: Case) -> str:
    """Tabulate the documents of the batches left out since the onset.

    After a divergence, no batch was left out: the documents of the last batch.
    """
    run = case.run
    tried = [[i for pair in record["samples"] for i in range(*pair)] for record in case.suspects] or [case.ids.tolist()]
    samples, batches = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for ids in tried:
        places = Counter(place for sample in ids for place in run.samples.documents_of(sample))
        samples.update(places)
        batches.update(places.keys())
    rows = []
    for place in sorted(samples, key=lambda place: (-batches[place], -samples[place], place))[:SHOWN]:
        begins = _inline(run.samples.beginning(*place, BEGINNING)[:BEGINNING])
        rows.append([_inline(run.samples.source_name(place[0])), place[1], batches[place], samples[place], begins])
    head = f"{sum(map(len, tried)):,} samples of {len(tried)} batches belong to {len(samples):,} documents"
    most = f"; the {SHOWN} most frequent:" if len(samples) > SHOWN else ":"
    return f"{head}{most}\n\n{_table('source|document|batches|samples|begins', rows)}"


def _by_hand(case: Case) -> str:
    target, update = case.decision.target, case.decision.trigger.update
    return "\n".join(
        [
            f"- `lmjax audit {case.run_dir}` checks the run and prints its history;",
            f"- `lmjax audit {case.run_dir} --replay {target + 1}:{max(update, target + 1)}` also computes the updates "
            "up to the spike again and compares the bits;",
            "- `journal.jsonl` has the ids of all samples concerned, at `suspect` and `skip`.",
        ]
    )


def _draw(case: Case, path: Path) -> str:
    from lmjax.display.figures import save  # imports matplotlib, which is slow
    from lmjax.run.spikes.panels import figure

    save(figure(case), path)
    return f"![Loss and gradient norm around update {case.decision.trigger.update + 1}]({path.name})"


# ---- Text -----------------------------------------------------------------------------------------------------------


def _read(path: Path, update: int) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else f"# Spike at update {update}\n"


def _attempt(heading: str, section: Callable[[Case], str], case: Case) -> str:
    try:
        return heading + section(case)
    except Exception as error:  # after a spike any section may fail, or memory run out; the others are still useful
        return f"{heading}Could not be determined: {_printable(str(error) or type(error).__name__)}"


def _table(header: str, rows: Iterable[Sequence[Any]]) -> str:
    columns = header.split("|")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _code(text: str) -> str:
    """Format an indented block, which no content can end; escape unprintable characters."""
    return textwrap.indent("\n".join(map(_printable, text.split("\n"))), "    ", lambda line: True)


def _inline(text: str) -> str:
    return f"`{_printable(text).replace('`', chr(39))}`"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - TRIED} more" if len(names) > TRIED else ""
    return ", ".join(map(_inline, names[:TRIED])) + more


def _n(value: Any) -> str:
    return f"{value:.4g}"
