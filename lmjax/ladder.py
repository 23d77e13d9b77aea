"""The ladder: the kinds of language models in the order of history, side by side on one text at equal compute.

Counting (an n-gram) and what trains by gradients: each of these is a run of its own, as long as the same training
FLOPs take it. Bits per byte of one validation split compare them all.

Shapes: B rows, T positions, P places that are predicted.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from math import inf, log
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, LogLocator, NullFormatter

from lmjax import launch, optim, plots, presets, typed
from lmjax import run as runs
from lmjax.checks import check
from lmjax.config import BERTConfig, Config, UserError
from lmjax.console import Console, duration, quantity
from lmjax.data import masking
from lmjax.data import store as stores
from lmjax.data.store import Store
from lmjax.files import write_text
from lmjax.models import families
from lmjax.models.ngram import KneserNey
from lmjax.tasks.text import Causal

COUNTED = "ngram"
RUNGS = ("nnlm", "rnn", "lstm", "gpt")  # what trains, oldest first; the preset of each is ladder_NAME
ALL = (COUNTED, *RUNGS)
ORDERS = (1, 2, 3, 4, 5)
COMPUTE = 2e13
PASSAGES = 16  # of the validation split, that BERT is measured on
HEADER = ("rung", "parameters", "compute", "tokens", "bits per byte", "time")
COUNTS = (
    "Compute is that of the matrix products of model and gradient, by their closed form; what the optimizer and the "
    "evaluations do comes on top. Bits per byte are those of the validation split."
)
APART = (
    "BERT sees both sides of each token that it is asked for, and its tokenizer forgets case and spacing: this is no "
    "probability of the text, and does not compare with the others."
)


@dataclass(frozen=True)
class Level:
    """What a rung reached.

    parameters: numbers that the model keeps. compute: training FLOPs. tokens: read in training, each as often as it
    was. bits_per_byte: of the validation split. seconds: of training and measuring.
    """

    rung: str
    parameters: int
    compute: float
    tokens: int
    bits_per_byte: float
    seconds: float


# ---- The command ------------------------------------------------------------------------------------------------


def show(names: Sequence[str], out: Path, *, compute: float, changes: Sequence[str], bert: Path | None) -> int:
    """Climbs the rungs called `names` with `changes` (`key.path=value`) to each; returns an exit status.

    UserError: an unknown rung, and as `climb`.
    """
    for name in names:
        if name not in ALL:
            raise UserError(f"unknown rung '{name}'{typed.nearest(name, ALL)}")
    for change in changes:
        if change.partition("=")[0] in ("train.updates", "train.tokens"):
            raise UserError(f"{change}: the compute decides how long a rung trains; give --compute FLOPS")

    def changed(name: str) -> Config:
        return typed.apply_overrides(presets.load(f"ladder_{name}"), changes)

    chosen = {name: changed(name) for name in RUNGS if name in names}
    text = next(iter(chosen.values()), None) or changed(RUNGS[-1])
    return climb(chosen, out, compute=compute, text=text if COUNTED in names else None, bert=bert)


def climb(
    rungs: Mapping[str, Config], out: Path, *, compute: float, text: Config | None = None, bert: Path | None = None
) -> int:
    """Trains each rung in `out`/NAME with `compute` FLOPs, and writes ladder.md, ladder.json and ladder.png to `out`.

    What an earlier call finished is not trained again, and what it began is gone on with. text: counts the n-grams
    of this configuration's data. bert: the directory of a run whose pseudo-likelihood is put beside.
    Returns 0: finished, or stopped by a signal; 3: a run gave up. UserError: rungs read different text, a rung in
    `out` was made with another configuration, or anything wrong with one.
    """
    whole = [*rungs.values(), *([text] if text else [])]
    _check(whole, compute)
    with Console() as console:
        store = stores.prepare(whole[0].data, report=console.report)
        with console.phase("counting"):
            counted = [count(text, store, order) for order in ORDERS] if text else []
        with console.phase("measuring BERT") if bert else nullcontext():
            apart = [pseudo(bert)] if bert else []
    ready = {name: spend(runs.resolve(c, store.tokenizer.vocab_size), compute) for name, c in rungs.items()}
    for name, config in ready.items():
        _same(config, out / name)
    for name, config in ready.items():
        status = _train(config, out / name)
        if status or _summary(out / name)["status"] != "finished":
            print(f"the ladder stops at {name}; the same command goes on from there")
            return status
    levels = sorted([*counted, *(level(out / name, name) for name in ready)], key=lambda found: found.bits_per_byte)
    _write(out, levels, apart, compute=compute)
    return launch.FINISHED


def _check(configs: Sequence[Config], compute: float) -> None:
    """What can be refused before anything is read."""
    if not configs:
        raise UserError("a ladder needs a rung: give --rungs")
    if not 0 < compute < inf:
        raise UserError(f"--compute {compute:g} must be greater than 0, and finite")
    for config in configs:
        check(config)
        runs.check(config)
    if any(config.data != configs[0].data for config in configs):
        raise UserError("the rungs of a ladder must read the same text: give them equal data.*")


def spend(config: Config, compute: float) -> Config:
    """The configuration with as many updates as reach `compute` training FLOPs, by the closed form.

    What is placed by updates (evaluations and checkpoints) keeps its share of the run. The vocabulary must be known.
    """
    context, train = families.tokens(config.model), config.train
    tokens = max(1, round(compute / families.flops_per_token(config.model)))
    before = optim.batch_plan(config.batch, train, context).updates
    updates = optim.batch_plan(config.batch, replace(train, updates=0, tokens=tokens), context).updates

    def scaled(every: int) -> int:
        return max(1, round(every * updates / before)) if every else 0

    train = replace(train, updates=updates, tokens=0, evaluate_every=scaled(train.evaluate_every), baselines=False)
    return replace(config, train=train, checkpoint=replace(config.checkpoint, every=scaled(config.checkpoint.every)))


def _same(config: Config, run_dir: Path) -> None:
    """UserError: the rung in `run_dir` was made with another configuration."""
    path = run_dir / "config.json"
    if not path.is_file():
        return
    changed = typed.differences(typed.from_json(path.read_text(), Config), launch.absolute(config))
    if changed:
        raise UserError(
            f"{run_dir} was made with another configuration ({'; '.join(changed)}); climb a new ladder with --out DIR"
        )


def _train(config: Config, run_dir: Path) -> int:
    if not (run_dir / "config.json").is_file():
        return launch.start(config, run_dir)
    finished = (run_dir / "summary.json").is_file() and _summary(run_dir)["status"] == "finished"
    return launch.FINISHED if finished else launch.resume(config, run_dir)


def _summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


# ---- The levels -------------------------------------------------------------------------------------------------


def level(run_dir: Path, rung: str) -> Level:
    """What the finished run in `run_dir` reached."""
    found = _summary(run_dir)
    return Level(
        rung=rung,
        parameters=found["parameters"],
        compute=found["tokens"] * _flops_per_token(run_dir),
        tokens=found["tokens"],
        bits_per_byte=found["val_bits_per_byte"],
        seconds=found["seconds"],
    )


def _flops_per_token(run_dir: Path) -> float:
    return families.flops_per_token(typed.from_json((run_dir / "config.json").read_text(), Config).model)


def count(config: Config, store: Store, order: int) -> Level:
    """An interpolated Kneser-Ney model of n-grams up to `order` over the tokens of the training split: all, once."""
    task, begun = runs.build(config, store).task, time.perf_counter()
    if not isinstance(task, Causal):
        raise UserError(f"objective.family={config.objective.family}: n-grams predict the next token; use causal")
    streams, held_out = [tokens.ids for tokens in store.sources], np.asarray(store.validation.ids)
    ends = store.tokenizer.end_of_text
    model = KneserNey.fit(streams, vocab_size=store.tokenizer.vocab_size, order=order, end_of_text=ends)
    nats = float(model.nats(held_out).sum()) / (len(held_out) - 1)
    return Level(
        rung=f"{order}-gram",
        parameters=sum(len(part.shares) + len(part.rests) for part in model.levels),
        compute=0.0,
        tokens=sum(map(len, streams)),
        bits_per_byte=task.bits_per_byte(nats),
        seconds=time.perf_counter() - begun,
    )


# ---- BERT -------------------------------------------------------------------------------------------------------


def pseudo(run_dir: Path) -> Level:
    """BERT on its own validation split by `pseudo_bits_per_byte`. UserError: the run is not BERT's, or not finished."""
    trained, begun = runs.load(run_dir), time.perf_counter()
    if not isinstance(trained.config.model, BERTConfig) or not (run_dir / "summary.json").is_file():
        raise UserError(f"--bert {run_dir}: give a finished run of BERT (python train.py bert_tiny)")
    tokens = stores.prepare(trained.config.data).validation
    documents = np.split(np.asarray(tokens.ids), np.asarray(tokens.starts)[1:])
    bits = pseudo_bits_per_byte(trained, [trained.tokenizer.decode(ids) for ids in documents], limit=PASSAGES)
    found = _summary(run_dir)
    return Level(
        rung="BERT, pseudo-likelihood",
        parameters=found["parameters"],
        compute=found["tokens"] * _flops_per_token(run_dir),
        tokens=found["tokens"],
        bits_per_byte=bits,
        seconds=found["seconds"] + time.perf_counter() - begun,
    )


def pseudo_bits_per_byte(trained: runs.Trained, texts: Sequence[str], *, limit: int = 0) -> float:
    """The pseudo-log-likelihood of Salazar et al. 2020 (equation 1), in bits, over the bytes that are asked for.

    Every token is masked in turn and predicted from all others of its passage. Passages are the texts, cut where they
    exceed a row; `limit` of them, evenly spread, are measured (0: all). Unknown tokens are not asked for, and bytes
    are those of the text that the others decode to. It is no measure of compression. UserError: nothing to ask for.
    """
    facts, tokenizer = masking.facts(trained.tokenizer), trained.tokenizer
    context = trained.config.model.context
    room = context - 2
    cut = [ids[at : at + room] for ids in tokenizer.encode_batch(texts) for at in range(0, len(ids), room)]
    chosen = sorted({int(i) for i in np.linspace(0, len(cut) - 1, limit)}) if 0 < limit < len(cut) else range(len(cut))
    measure = jax.jit(lambda params, batch: trained.task.by_row(params, batch)[0].sum())
    nats, size = 0.0, 0
    for passage in (np.asarray(cut[i]) for i in chosen):
        asked = np.flatnonzero(np.isin(passage, facts.plain_V))
        nats += float(measure(trained.params, masked_in_turn(passage, asked, facts=facts, context=context)))
        size += len(tokenizer.decode(passage[asked]).encode())
    if not size:
        raise UserError("the texts have no tokens that BERT could be asked for")
    return nats / log(2) / size


def masked_in_turn(passage: np.ndarray, asked: np.ndarray, *, facts: masking.Facts, context: int) -> dict[str, Any]:
    """A batch of `context` rows, each [CLS] passage [SEP] with one token of the places `asked` masked.

    Rows that are not needed weigh nothing.
    """
    T, count, length = context, len(asked), len(passage) + 2
    row_T = np.full(T, facts.pad, np.int32)
    row_T[:length] = [facts.cls, *passage, facts.sep]
    inputs_BT, places_B = np.tile(row_T, (T, 1)), np.ones(T, np.int32)
    places_B[:count] = asked + 1
    inputs_BT[np.arange(count), places_B[:count]] = facts.mask
    return {
        "inputs_BT": inputs_BT,
        "kinds_BT": np.zeros((T, T), np.int32),
        "real_BT": np.tile((np.arange(T) < length).astype(np.int32), (T, 1)),
        "places_BP": places_B[:, None],
        "targets_BP": row_T[places_B][:, None],
        "weights_BP": (np.arange(T) < count).astype(np.float32)[:, None],
    }


# ---- The report -------------------------------------------------------------------------------------------------


def _write(out: Path, levels: Sequence[Level], apart: Sequence[Level], *, compute: float) -> None:
    """The table, best first, on the console and as ladder.md, the numbers as ladder.json, the picture as ladder.png."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "ladder.md", markdown(levels, apart))
        found = {"levels": [asdict(one) for one in levels], "not_comparable": [asdict(one) for one in apart]}
        write_text(out / "ladder.json", json.dumps({"compute": compute} | found, indent=1) + "\n")
        partial = out / "ladder.png.partial"
        figure(levels, out).savefig(partial, dpi=150, format="png")
        partial.replace(out / "ladder.png")
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another place with --out") from None
    with Console() as console:
        console.table("The ladder", [_cells(one) for one in levels], HEADER)
        if apart:
            console.table("Not comparable", [_cells(one) for one in apart], HEADER)
            console.event(APART)
        for name in ("ladder.md", "ladder.json", "ladder.png"):
            console.event(str(out / name))


def _cells(one: Level) -> tuple[str, ...]:
    compute = f"{one.compute:.3g}" if one.compute else "counting"
    return (
        one.rung,
        f"{one.parameters:,}",
        compute,
        quantity(one.tokens),
        f"{one.bits_per_byte:.3f}",
        duration(one.seconds),
    )


def markdown(levels: Sequence[Level], apart: Sequence[Level] = ()) -> str:
    """The table for a page: the levels as they stand, and below them what does not compare."""

    def table(rows: Sequence[Level]) -> Iterator[str]:
        yield f"| {' | '.join(HEADER)} |"
        yield f"|---|{'---:|' * (len(HEADER) - 1)}"
        yield from (f"| {' | '.join(_cells(one))} |" for one in rows)

    lines = [*table(levels), "", COUNTS, *(["", APART, "", *table(apart)] if apart else [])]
    return "\n".join(lines) + "\n"


# ---- The picture ------------------------------------------------------------------------------------------------


def figure(levels: Sequence[Level], out: Path) -> Figure:
    """Bits per byte against training compute, by the records of the runs in `out`, and against parameters.

    The levels of counting, which takes no training compute, are lines.
    """
    result = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = result.subplots(1, 2, sharey=True)
    counted = sorted((one for one in levels if not one.compute), key=lambda one: one.rung)
    trained = [one for one in levels if one.compute]
    for axes, label in ((left, "training compute (FLOPs)"), (right, "parameters")):
        plots.plain(axes)
        axes.set_xlabel(label)
    lowest = [one.bits_per_byte for one in levels]
    for at, one in enumerate(trained):
        (run,), colour = plots.load([out / one.rung]), plots.COLOURS[at % len(plots.COLOURS)]
        compute = run.validation["tokens"] * _flops_per_token(out / one.rung)
        bits = run.validation["val_bits_per_byte"]
        left.plot(compute, bits, color=colour, marker="o", markersize=4, linewidth=1.6, label=one.rung)
        right.plot([one.parameters], [one.bits_per_byte], color=colour, marker="o", markersize=8, linestyle="")
        _name(right, one.rung, one.parameters, one.bits_per_byte)
        lowest.extend(bits)
    top = max((one.bits_per_byte for one in trained), default=max(lowest)) * 1.25
    margin = 0.05 * (top - min(lowest))
    left.set_ylim(min(lowest) - margin, top)
    if trained:
        left.legend(loc="upper right", fontsize="small", framealpha=0.9)
        right.margins(x=0.25)
        _logarithmic(left, FuncFormatter(lambda value, _: f"{value:.0e}".replace("+", "")))
        _logarithmic(right, EngFormatter(sep=""))
    _draw_counted(left, right, [one for one in counted if one.bits_per_byte < top])
    left.set_ylabel("validation bits per byte")
    return result


def _draw_counted(left: Axes, right: Axes, counted: Sequence[Level]) -> None:
    style: dict[str, Any] = {"color": "0.3", "linewidth": 1.2, "linestyle": (0, (6, 2)), "zorder": 1}
    for one in counted:
        for axes in (left, right):
            axes.axhline(one.bits_per_byte, **style)
        across = left.get_yaxis_transform()
        left.text(0.01, one.bits_per_byte, one.rung, transform=across, fontsize="small", va="bottom", color="0.3")


def _logarithmic(axes: Axes, form: Formatter) -> None:
    """Marks at 1, 2 and 5, since all runs may lie within one power of ten."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(form)
    axes.xaxis.set_minor_formatter(NullFormatter())


def _name(axes: Axes, name: str, x: float, y: float) -> None:
    axes.annotate(name, (x, y), xytext=(7, 5), textcoords="offset points", fontsize="small")
