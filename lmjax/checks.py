"""What a configuration may hold: the ranges of its fields and what must fit together. Needs no JAX."""

import dataclasses
from typing import Any

from lmjax.config import CausalConfig, Config, DataConfig, MaskedConfig, RecordsConfig, RuntimeConfig, UserError


def check(config: Config) -> None:
    """UserError: a value outside its range, of the fields that no other part of lmjax checks."""
    data, train = config.data, config.train
    guard, heartbeat = config.guard, config.parallel.heartbeat_seconds
    in_order = not train.profile or (len(train.profile) == 2 and 1 <= train.profile[0] <= train.profile[1])
    at_least_zero = {
        "seed": config.seed,
        "train.evaluate_every": train.evaluate_every,
        "train.evaluate_batches": train.evaluate_batches,
        "train.final_batches": train.final_batches,
        "train.log_every": train.log_every,
        "train.sample_tokens": train.sample_tokens,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep_every": config.checkpoint.keep_every,
        "checkpoint.retries": config.checkpoint.retries,
        "parallel.devices": config.parallel.devices,
        "runtime.host_devices": config.runtime.host_devices,
        "runtime.updates_at_once": config.runtime.updates_at_once,
        **{
            f"guard.{name}": value
            for name, value in dataclasses.asdict(guard).items()
            if isinstance(value, int | float)
        },
    }
    for key, value in at_least_zero.items():
        if value < 0:
            raise UserError(f"{key} = {value} must not be negative")
    rules = (
        ("checkpoint.keep", config.checkpoint.keep, config.checkpoint.keep >= 1, "must be at least 1"),
        ("name", config.name, bool(config.name) and not set(config.name) & set("/\\"), "must be the name of a folder"),
        ("data.validation_fraction", data.validation_fraction, 0 < data.validation_fraction < 1, "must be in (0, 1)"),
        ("guard.window", guard.window, guard.armed <= guard.window, "must be at least guard.armed"),
        ("guard.armed", guard.armed, 2 <= guard.armed_hard <= guard.armed, "must be at least guard.armed_hard, from 2"),
        ("guard.among", guard.among, guard.among >= max(guard.several, guard.in_a_row, 1), "must be several or more"),
        ("guard.in_a_row", guard.in_a_row, guard.in_a_row >= 1, "must be at least 1"),
        ("guard.hard_in_a_row", guard.hard_in_a_row, guard.hard_in_a_row >= 1, "must be at least 1"),
        ("guard.several", guard.several, guard.several >= 1, "must be at least 1"),
        (
            "guard.divergence_window",
            guard.divergence_window,
            2 <= guard.divergence_window <= guard.window,
            "must be from 2 to guard.window",
        ),
        ("parallel.heartbeat_seconds", heartbeat, heartbeat >= 1, "must be at least 1"),
        ("train.profile", train.profile, in_order, "must be empty or (first, last), counted from 1"),
    )
    of_parts = (*_objective_rules(config.objective), *_in_context_rules(config), *_runtime_rules(config.runtime))
    for key, value, good, rule in (*rules, *of_parts):
        if not good:
            raise UserError(f"{key} = {value} {rule}")
    if data.tokenizer.kind == "file" and not data.tokenizer.path:
        raise UserError("data.tokenizer.path is needed for data.tokenizer.kind = file")
    if isinstance(data, DataConfig):
        if data.mixture and data.files:
            raise UserError("set data.files or data.mixture, not both")
        if data.mixture_changes and not data.mixture:
            raise UserError("data.mixture_changes needs data.mixture")
    _check_families(config)


def _objective_rules(objective: Any) -> list[tuple[str, float, bool, str]]:
    """(key, value, whether it is in range, the rule) for each number of an objective."""
    numbers = {name: value for name, value in dataclasses.asdict(objective).items() if isinstance(value, int | float)}
    shares = {"rate", "masked", "random", "next_sentence", "short", "label_smoothing"}
    return [
        (f"objective.{name}", value, 0 <= value <= 1, "is a share, from 0 to 1")
        if name in shares
        else (f"objective.{name}", value, 0 <= value < float("inf"), "must be a number >= 0")
        for name, value in numbers.items()
    ]


def _runtime_rules(runtime: RuntimeConfig) -> list[tuple[str, Any, bool, str]]:
    """The same of flags for XLA."""
    return [
        (key, flag, flag.startswith("--xla_") and not set(flag) & set(" \t\n"), "must be a flag like --xla_name=value")
        for key, flags in (("runtime.xla_flags", runtime.xla_flags), ("runtime.gpu_flags", runtime.gpu_flags))
        for flag in flags
    ]


def _in_context_rules(config: Config) -> list[tuple[str, Any, bool, str]]:
    """The same of what is rendered to learn from in context, and of what is evaluated."""
    evaluate = config.evaluate
    rules: list[tuple[str, Any, bool, str]] = [
        ("evaluate.limit", evaluate.limit, evaluate.limit >= 1, "must be at least 1"),
        (
            "evaluate.shots",
            evaluate.shots,
            bool(evaluate.shots) and min(evaluate.shots) >= 0 and len(set(evaluate.shots)) == len(evaluate.shots),
            "must be different numbers of examples, from 0",
        ),
    ]
    if isinstance(config.data, DataConfig):
        made = config.data.in_context
        counts, weights = [count for count, _ in made.shots], [weight for _, weight in made.shots]
        weighted = bool(made.shots) and min(counts) >= 0 and min(weights) >= 0 and 0 < sum(weights) < float("inf")
        share = made.held_out_share
        rules += [
            ("data.in_context.documents", made.documents, made.documents >= 1, "must be at least 1"),
            ("data.in_context.shots", made.shots, weighted, "must be ((examples, weight), ...), not all weights 0"),
            ("data.in_context.described", made.described, 0 <= made.described <= 1, "is a share, from 0 to 1"),
            ("data.in_context.held_out_share", share, 0 <= share < 1, "must be in [0, 1)"),
        ]
    return rules


# Which model learns what from which data: (model.family, objective.family) -> data.family.
_LEARNS = {
    ("gpt", "causal"): "text",
    ("nnlm", "causal"): "text",
    ("rnn", "causal"): "text",
    ("bert", "masked"): "text",
    ("transformer", "translation"): "records",
    ("gpt", "classification"): "records",
    ("bert", "classification"): "records",
}


def _check_families(config: Config) -> None:
    """UserError: a model, an objective and data that do not belong together."""
    model, objective, data = config.model.family, config.objective.family, config.data.family
    fitting = [o for m, o in _LEARNS if m == model]
    if objective not in fitting:
        raise UserError(
            f"model.family = {model} learns with objective.family = {' or '.join(fitting)}, not {objective}"
        )
    if data != _LEARNS[model, objective]:
        raise UserError(
            f"objective.family = {objective} needs data.family = {_LEARNS[model, objective]}, not {data}; "
            f"start from a preset that has it"
        )
    if isinstance(config.objective, CausalConfig) and config.objective.chunk and model != "gpt":
        raise UserError(
            f"objective.chunk = {config.objective.chunk} is for model.family = gpt, not {model}; set it to 0"
        )
    if config.evaluate.tasks and objective != "causal":
        raise UserError(f"evaluate.tasks are for models of the next token, not objective.family = {objective}")
    if isinstance(config.data, RecordsConfig):
        if objective == "classification" and not config.data.label:
            raise UserError("data.label is empty: name the column with the label")
        if objective == "translation" and (len(config.data.texts) != 2 or config.data.label):
            raise UserError(f"data.texts = {config.data.texts}: translation needs a source and a target, and no label")
    if isinstance(config.objective, MaskedConfig) and not config.objective.rate:
        raise UserError("objective.rate = 0 predicts nothing; 0.15 is BERT's")
    if isinstance(config.objective, MaskedConfig) and config.objective.masked + config.objective.random > 1:
        raise UserError("objective.masked and objective.random together are more than 1")
