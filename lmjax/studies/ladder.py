"""The ladder: historical kinds of language models on the same text at equal compute.

The rungs are an n-gram model, which counts, and models trained by gradients. Each trained rung is a separate run with
the same training FLOPs. Bits per byte on one validation split compare all rungs.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.config import BERTConfig, Config, UserError, codec, errors, presets
from lmjax.config.checks import check
from lmjax.data.store.preparation import prepare
from lmjax.data.store.store import Store
from lmjax.display.console import Console
from lmjax.evaluation.pseudo_likelihood import pseudo_bits_per_byte
from lmjax.models import registry
from lmjax.models.ngram import KneserNey
from lmjax.objectives.causal import Causal
from lmjax.optim import batch_plan
from lmjax.run import build, identity, launch, resume, saved, session
from lmjax.run.saved import read_summary
from lmjax.studies.ladder_report import Level, rung_flops_per_token, write_ladder

COUNTED = "ngram"
RUNGS = ("nnlm", "rnn", "lstm", "gpt")  # trained rungs, oldest first; the preset of each is ladder_NAME
ALL = (COUNTED, *RUNGS)
ORDERS = (1, 2, 3, 4, 5)
COMPUTE = 2e13
PASSAGES = 16  # passages of the validation split on which BERT is measured


# ---- The command ------------------------------------------------------------------------------------------------


def show(names: Sequence[str], out: Path, *, compute: float, changes: Sequence[str], bert: Path | None) -> int:
    """Climb the rungs `names`, and return the exit status.

    `changes` (`key.path=value`) apply to each rung.

    Raises:
        UserError: A rung is unknown, or any error of `climb`.
    """
    for name in names:
        if name not in ALL:
            raise UserError(f"unknown rung '{name}'{errors.nearest(name, ALL)}")
    for change in changes:
        if change.partition("=")[0] in ("train.updates", "train.tokens", "train.epochs"):
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
        if store.lossless is False:
            raise UserError(
                "a ladder compares bits per byte, but the tokenizer does not give the text back; choose another with "
                "data.tokenizer.kind=bpe, for example"
            )
        with console.phase("counting"):
            counted = [count(text, store, order) for order in ORDERS] if text else []
        with console.phase("measuring BERT") if bert else nullcontext():
            apart = [pseudo(bert)] if bert else []
    ready = {name: spend(build.resolve(c, store.tokenizer.vocab_size), compute) for name, c in rungs.items()}
    for name, config in ready.items():
        check_same(config, out / name)
    for name, config in ready.items():
        status = train_rung(config, out / name)
        if status or not is_finished(out / name):
            print(f"the ladder stops at {name}; run the same command again to continue")
            return status
    levels = sorted([*counted, *(level(out / name, name) for name in ready)], key=_rank)
    write_ladder(out, levels, apart, compute=compute)
    return session.FINISHED


def _rank(level: Level) -> tuple[bool, float]:
    """Sort by bits per byte; a rung without a finite value comes last."""
    return not isfinite(level.bits_per_byte), level.bits_per_byte


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


def check_same(config: Config, run_dir: Path) -> None:
    """Check that a run, if it was begun, has this configuration.

    Raises:
        UserError: The run in `run_dir` has another one.
    """
    path = run_dir / "config.json"
    if not path.is_file():
        return
    before = presets.saved(path)
    changed = codec.differences(before, identity.resolved_like(identity.absolute(config), before))
    if changed := [line for line in changed if not line.startswith("data.cache:")]:
        raise UserError(
            f"{run_dir} has another configuration ({'; '.join(changed)}); choose another folder with --out DIR"
        )


def train_rung(config: Config, run_dir: Path) -> int:
    """Start or resume a rung unless it is finished; return its exit status."""
    if not (run_dir / "config.json").is_file():
        return launch.start(config, run_dir)
    return session.FINISHED if is_finished(run_dir) else resume.resume(config, run_dir)


def is_finished(run_dir: Path) -> bool:
    """Whether the run in a directory is finished."""
    return read_summary(run_dir).get("status") == "finished"


# ---- The levels -------------------------------------------------------------------------------------------------


def level(run_dir: Path, rung: str) -> Level:
    """Return the result of the finished run in `run_dir`."""
    summary = _results(run_dir)
    bits = summary["val_bits_per_byte"]
    return Level(
        rung=rung,
        parameters=summary["parameters"],
        compute=summary["tokens"] * rung_flops_per_token(run_dir),
        tokens=summary["tokens"],
        bits_per_byte=nan if bits is None else bits,  # the loss of a run that diverged is not finite
        seconds=summary["seconds"],
    )


def _results(run_dir: Path) -> dict[str, Any]:
    """Return summary.json of a finished run.

    Raises:
        UserError: It is missing or damaged.
    """
    summary = {"val_bits_per_byte": None} | read_summary(run_dir)
    numbers = [summary.get(key) for key in ("parameters", "tokens", "seconds")] + [summary["val_bits_per_byte"] or 0]
    if not all(isinstance(value, int | float) for value in numbers):
        raise UserError(f"{run_dir / 'summary.json'} is not that of a finished run; train it again in a new folder")
    return summary


def count(config: Config, store: Store, order: int) -> Level:
    """Measure an interpolated Kneser-Ney model of n-grams up to `order`.

    The n-grams are counted once over the training split.
    """
    objective, begun = build.build(config, store).objective, time.perf_counter()
    if not isinstance(objective, Causal):
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
        bits_per_byte=objective.bits_per_byte(nats),
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
    bits = pseudo_bits_per_byte(
        trained.objective,
        trained.params,
        trained.tokenizer,
        [trained.tokenizer.decode(ids) for ids in documents],
        context=trained.config.model.context,
        limit=PASSAGES,
    )
    summary = _results(run_dir)
    return Level(
        rung="BERT, pseudo-likelihood",
        parameters=summary["parameters"],
        compute=summary["tokens"] * rung_flops_per_token(run_dir),
        tokens=summary["tokens"],
        bits_per_byte=bits,
        seconds=summary["seconds"] + time.perf_counter() - begun,
    )
