"""Checks of the fields of a configuration and of their combinations. Imports no JAX."""

import dataclasses
from typing import Any

from lmjax.config.data import DataConfig, RecordsConfig
from lmjax.config.errors import UserError
from lmjax.config.objectives import CausalConfig, MaskedConfig
from lmjax.config.schema import Config, RuntimeConfig


def check(config: Config) -> None:
    """Check the fields that no other part of lmjax checks.

    Raises:
        UserError: A value is outside its range, or two values contradict each other.
    """
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
        (
            "name",
            config.name,
            bool(config.name) and not set(config.name) & set("/\\"),
            "must be a folder name",
        ),
        ("data.validation_fraction", data.validation_fraction, 0 < data.validation_fraction < 1, "must be in (0, 1)"),
        ("guard.window", guard.window, guard.armed <= guard.window, "must be at least guard.armed"),
        ("guard.armed", guard.armed, 2 <= guard.armed_hard <= guard.armed, "must be at least guard.armed_hard >= 2"),
        (
            "guard.among",
            guard.among,
            guard.among >= max(guard.several, guard.in_a_row, 1),
            "must be >= several, in_a_row",
        ),
        ("guard.in_a_row", guard.in_a_row, guard.in_a_row >= 1, "must be at least 1"),
        ("guard.hard_in_a_row", guard.hard_in_a_row, guard.hard_in_a_row >= 1, "must be at least 1"),
        ("guard.several", guard.several, guard.several >= 1, "must be at least 1"),
        (
            "guard.divergence_window",
            guard.divergence_window,
            2 <= guard.divergence_window <= guard.window,
            "must be between 2 and guard.window",
        ),
        ("parallel.heartbeat_seconds", heartbeat, heartbeat >= 1, "must be at least 1"),
        ("train.profile", train.profile, in_order, "must be empty or (first, last) with 1 <= first <= last"),
    )
    of_parts = (*_objective_rules(config.objective), *_in_context_rules(config), *_runtime_rules(config.runtime))
    for key, value, good, rule in (*rules, *of_parts):
        if not good:
            raise UserError(f"{key} = {value} {rule}")
    if data.tokenizer.kind == "file" and not data.tokenizer.path:
        raise UserError("data.tokenizer.path is empty, but data.tokenizer.kind = file needs it; set it to a file")
    if isinstance(data, DataConfig):
        if data.mixture and data.files:
            raise UserError("data.files and data.mixture are both set; leave one of them empty")
        if data.mixture_changes and not data.mixture:
            raise UserError("data.mixture_changes is set but data.mixture is empty; set data.mixture")
    _check_families(config)


def _objective_rules(objective: Any) -> list[tuple[str, float, bool, str]]:
    """Return (key, value, whether it is valid, the rule) for each number of an objective."""
    numbers = {name: value for name, value in dataclasses.asdict(objective).items() if isinstance(value, int | float)}
    shares = {"rate", "masked", "random", "next_sentence", "short", "label_smoothing"}
    return [
        (f"objective.{name}", value, 0 <= value <= 1, "must be a share in [0, 1]")
        if name in shares
        else (f"objective.{name}", value, 0 <= value < float("inf"), "must be a number >= 0")
        for name, value in numbers.items()
    ]


def _runtime_rules(runtime: RuntimeConfig) -> list[tuple[str, Any, bool, str]]:
    """Return the rules, as `_objective_rules` does, for the flags of XLA."""
    return [
        (key, flag, flag.startswith("--xla_") and not set(flag) & set(" \t\n"), "must be a flag like --xla_name=value")
        for key, flags in (("runtime.xla_flags", runtime.xla_flags), ("runtime.gpu_flags", runtime.gpu_flags))
        for flag in flags
    ]


def _in_context_rules(config: Config) -> list[tuple[str, Any, bool, str]]:
    """Return the rules, as `_objective_rules` does, for the in-context data and evaluation."""
    evaluate = config.evaluate
    rules: list[tuple[str, Any, bool, str]] = [
        ("evaluate.limit", evaluate.limit, evaluate.limit >= 1, "must be at least 1"),
        (
            "evaluate.shots",
            evaluate.shots,
            bool(evaluate.shots) and min(evaluate.shots) >= 0 and len(set(evaluate.shots)) == len(evaluate.shots),
            "must be distinct numbers of examples >= 0",
        ),
    ]
    if isinstance(config.data, DataConfig):
        episodes = config.data.in_context
        counts, weights = [count for count, _ in episodes.shots], [weight for _, weight in episodes.shots]
        weighted = bool(episodes.shots) and min(counts) >= 0 and min(weights) >= 0 and 0 < sum(weights) < float("inf")
        share = episodes.held_out_share
        rules += [
            ("data.in_context.documents", episodes.documents, episodes.documents >= 1, "must be at least 1"),
            ("data.in_context.shots", episodes.shots, weighted, "must be ((examples, weight), ...), weights not all 0"),
            ("data.in_context.described", episodes.described, 0 <= episodes.described <= 1, "must be in [0, 1]"),
            ("data.in_context.held_out_share", share, 0 <= share < 1, "must be in [0, 1)"),
        ]
    return rules


# Supported combinations: (model.family, objective.family) -> data.family.
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
    """Raise UserError if the model, the objective and the data do not fit together."""
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
        raise UserError(f"evaluate.tasks needs objective.family = causal, not {objective}; leave evaluate.tasks empty")
    if isinstance(config.data, RecordsConfig):
        if objective == "classification" and not config.data.label:
            raise UserError("data.label is empty; set it to the column with the label")
        if objective == "translation" and (len(config.data.texts) != 2 or config.data.label):
            raise UserError(
                f"data.texts = {config.data.texts}, data.label = '{config.data.label}': translation needs two columns "
                "in data.texts, and an empty data.label"
            )
    if isinstance(config.objective, MaskedConfig) and not config.objective.rate:
        raise UserError("objective.rate = 0 predicts no token; set it above 0 (BERT: 0.15)")
    if isinstance(config.objective, MaskedConfig) and config.objective.masked + config.objective.random > 1:
        raise UserError("the sum of objective.masked and objective.random is above 1; lower one of them")
