"""The ladder: historical kinds of language models on the same text at equal compute.

The rungs are an n-gram model, which counts, and models trained by gradients. Each trained rung is a separate run with
the same training FLOPs. Bits per byte on one validation split compare all rungs.

Shapes: B rows, T positions, P places that are predicted.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from math import inf, log
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmjax.config import BERTConfig, Config, UserError, codec, errors, presets
from lmjax.config.checks import check
from lmjax.data.batches import masking
from lmjax.data.store.preparation import prepare
from lmjax.data.store.store import Store
from lmjax.display.console import Console
from lmjax.models import registry
from lmjax.models.ngram import KneserNey
from lmjax.objectives.causal import Causal
from lmjax.optim import batch_plan
from lmjax.run import build, identity, launch, resume, saved, session
from lmjax.studies.ladder_report import Level, read_summary, rung_flops_per_token, write_ladder

COUNTED = "ngram"
RUNGS = ("nnlm", "rnn", "lstm", "gpt")  # trained rungs, oldest first; the preset of each is ladder_NAME
ALL = (COUNTED, *RUNGS)
ORDERS = (1, 2, 3, 4, 5)
COMPUTE = 2e13
PASSAGES = 16  # passages of the validation split on which BERT is measured


# ---- The command ------------------------------------------------------------------------------------------------


def show(names: Sequence[str], out: Path, *, compute: float, changes: Sequence[str], bert: Path | None) -> int:
    """Climb the rungs `names` with `changes` (`key.path=value`) to each, and return the exit status.

    Raises:
        UserError: A rung is unknown, or any error of `climb`.
    """
    for name in names:
        if name not in ALL:
            raise UserError(f"unknown rung '{name}'{errors.nearest(name, ALL)}")
    for change in changes:
        if change.partition("=")[0] in ("train.updates", "train.tokens"):
            raise UserError(f"{change}: the compute decides how long a rung trains; give --compute FLOPS")

    def changed(name: str) -> Config:
        return codec.apply_overrides(presets.load(f"ladder_{name}"), changes)

    chosen = {name: changed(name) for name in RUNGS if name in names}
    text = next(iter(chosen.values()), None) or changed(RUNGS[-1])
    return climb(chosen, out, compute=compute, text=text if COUNTED in names else None, bert=bert)


def climb(
    rungs: Mapping[str, Config], out: Path, *, compute: float, text: Config | None = None, bert: Path | None = None
) -> int:
    """Train each rung in `out`/NAME, and write ladder.md, ladder.json and ladder.png to `out`.

    Rungs that an earlier call finished are not trained again; rungs that it began are resumed.

    Args:
        rungs: configuration of each rung.
        out: folder of the ladder.
        compute: training FLOPs of each rung.
        text: the configuration on whose data n-grams are counted.
        bert: directory of a BERT run whose pseudo-likelihood is shown separately.

    Returns:
        0: finished, or stopped by a signal; 3: a run gave up.

    Raises:
        UserError: Rungs read different text, a rung in `out` has another configuration, or a configuration is invalid.
    """
    configs = [*rungs.values(), *([text] if text else [])]
    _check(configs, compute)
    with Console() as console:
        store = prepare(configs[0].data, report=console.report)
        with console.phase("counting"):
            counted = [count(text, store, order) for order in ORDERS] if text else []
        with console.phase("measuring BERT") if bert else nullcontext():
            apart = [pseudo(bert)] if bert else []
    ready = {name: spend(build.resolve(c, store.tokenizer.vocab_size), compute) for name, c in rungs.items()}
    for name, config in ready.items():
        _same(config, out / name)
    for name, config in ready.items():
        status = _train(config, out / name)
        if status or read_summary(out / name)["status"] != "finished":
            print(f"the ladder stops at {name}; run the same command again to continue")
            return status
    levels = sorted([*counted, *(level(out / name, name) for name in ready)], key=lambda level: level.bits_per_byte)
    write_ladder(out, levels, apart, compute=compute)
    return session.FINISHED


def _check(configs: Sequence[Config], compute: float) -> None:
    """Check everything that needs no data."""
    if not configs:
        raise UserError("a ladder needs a rung: give --rungs")
    if not 0 < compute < inf:
        raise UserError(f"--compute {compute:g} must be greater than 0, and finite")
    for config in configs:
        check(config)
        build.check(config)
    if any(config.data != configs[0].data for config in configs):
        raise UserError("the rungs of a ladder must read the same text: give them equal data.*")


def spend(config: Config, compute: float) -> Config:
    """Set the number of updates so that training takes `compute` FLOPs by the closed form.

    Evaluations and checkpoints keep their share of the run. The vocabulary must be known.
    """
    context, train = registry.tokens(config.model), config.train
    tokens = max(1, round(compute / registry.flops_per_token(config.model)))
    before = batch_plan.batch_plan(config.batch, train, context).updates
    updates = batch_plan.batch_plan(config.batch, replace(train, updates=0, tokens=tokens), context).updates

    def scaled(every: int) -> int:
        return max(1, round(every * updates / before)) if every else 0

    train = replace(train, updates=updates, tokens=0, evaluate_every=scaled(train.evaluate_every), baselines=False)
    return replace(config, train=train, checkpoint=replace(config.checkpoint, every=scaled(config.checkpoint.every)))


def _same(config: Config, run_dir: Path) -> None:
    """Raise a UserError if the rung in `run_dir` has another configuration."""
    path = run_dir / "config.json"
    if not path.is_file():
        return
    changed = codec.differences(codec.from_json(path.read_text(), Config), identity.absolute(config))
    if changed:
        raise UserError(
            f"{run_dir} has another configuration ({'; '.join(changed)}); write a new ladder with --out DIR"
        )


def _train(config: Config, run_dir: Path) -> int:
    if not (run_dir / "config.json").is_file():
        return launch.start(config, run_dir)
    finished = (run_dir / "summary.json").is_file() and read_summary(run_dir)["status"] == "finished"
    return session.FINISHED if finished else resume.resume(config, run_dir)


# ---- The levels -------------------------------------------------------------------------------------------------


def level(run_dir: Path, rung: str) -> Level:
    """Return the result of the finished run in `run_dir`."""
    summary = read_summary(run_dir)
    return Level(
        rung=rung,
        parameters=summary["parameters"],
        compute=summary["tokens"] * rung_flops_per_token(run_dir),
        tokens=summary["tokens"],
        bits_per_byte=summary["val_bits_per_byte"],
        seconds=summary["seconds"],
    )


def count(config: Config, store: Store, order: int) -> Level:
    """Measure an interpolated Kneser-Ney model of n-grams up to `order`, counted once over the training split."""
    task, begun = build.build(config, store).task, time.perf_counter()
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
    """Measure BERT on its own validation split by `pseudo_bits_per_byte`.

    Raises:
        UserError: The run is not a finished run of BERT.
    """
    trained, begun = saved.load(run_dir), time.perf_counter()
    if not isinstance(trained.config.model, BERTConfig) or not (run_dir / "summary.json").is_file():
        raise UserError(f"--bert {run_dir}: give a finished run of BERT (python train.py bert_tiny)")
    tokens = prepare(trained.config.data).validation
    documents = np.split(np.asarray(tokens.ids), np.asarray(tokens.starts)[1:])
    bits = pseudo_bits_per_byte(trained, [trained.tokenizer.decode(ids) for ids in documents], limit=PASSAGES)
    summary = read_summary(run_dir)
    return Level(
        rung="BERT, pseudo-likelihood",
        parameters=summary["parameters"],
        compute=summary["tokens"] * rung_flops_per_token(run_dir),
        tokens=summary["tokens"],
        bits_per_byte=bits,
        seconds=summary["seconds"] + time.perf_counter() - begun,
    )


def pseudo_bits_per_byte(trained: saved.LoadedRun, texts: Sequence[str], *, limit: int = 0) -> float:
    """Return the pseudo-log-likelihood of Salazar et al. 2020 (equation 1) in bits per predicted byte.

    Every token is masked in turn and predicted from all other tokens of its passage. Passages are the texts, cut to
    the length of a row; `limit` of them, evenly spread, are measured (0: all). Unknown tokens are not predicted; bytes
    are those of the text that the predicted tokens decode to. The result is not a measure of compression.

    Raises:
        UserError: The texts have no token to predict.
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
        raise UserError("the texts have no token that BERT can predict; use texts of its vocabulary")
    return nats / log(2) / size


def masked_in_turn(passage: np.ndarray, asked: np.ndarray, *, facts: masking.Facts, context: int) -> dict[str, Any]:
    """Return a batch of `context` rows: each is [CLS] passage [SEP] with one token of the places `asked` masked.

    Unused rows have weight 0.
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
