"""Checks of a configuration: ranges of fields, rules between fields. Imports no JAX."""

from collections.abc import Sequence

from lmjax.config import extensions
from lmjax.config.chat import AnyDataConfig
from lmjax.config.data import DataConfig, RecordsConfig
from lmjax.config.errors import UserError
from lmjax.config.objectives import CausalConfig, DirectConfig, MaskedConfig, RewardConfig, SFTConfig
from lmjax.config.policies import PolicyConfig, PPOConfig
from lmjax.config.ranges import check_ranges
from lmjax.config.rewards import LearnedRewardConfig
from lmjax.config.schema import Config, GuardConfig, TrainConfig


def check(config: Config) -> None:
    """Check the range of every field, and the rules between fields.

    The rules of models, batches and devices are checked by the packages that use them.

    Raises:
        UserError: A value is outside its range, or two values contradict each other.
    """
    _check_names(config)
    check_ranges(config)
    _check_length(config.train)
    _check_guard(config.guard)
    _check_data(config.data)
    _check_families(config)


def _check_names(config: Config) -> None:
    """Raise UserError if a name is neither lmjax's own nor registered."""
    text = isinstance(config.data, DataConfig)
    own: dict[str, Sequence[str]] = {
        "model.family": extensions.OWN_FAMILIES,
        "objective.family": extensions.OWN_OBJECTIVES,
        "optimizer.name": extensions.OWN_OPTIMIZERS,
        "schedule.shape": extensions.OWN_SHAPES,
        "data.source": {
            "text": extensions.OWN_TEXT_SOURCES,
            "records": extensions.OWN_RECORD_SOURCES,
            "chat": extensions.OWN_CHAT_SOURCES,
            "preferences": extensions.OWN_PREFERENCE_SOURCES,
        }[config.data.family],
        "reward": (),
        "metric": (),
        "callback": (),
    }
    for kind, name in extensions.used(config):
        if not (text and kind == "data.source" and name.startswith("hub:")):
            extensions.check_name(kind, name, own[kind])


def _check_length(train: TrainConfig) -> None:
    for kind in ("updates", "tokens"):
        if train.epochs and getattr(train, kind):
            raise UserError(
                f"train.epochs = {train.epochs:g} and train.{kind} = {getattr(train, kind)} are both set; set one of "
                "them to 0"
            )


def _check_guard(guard: GuardConfig) -> None:
    rules = (
        ("window", guard.window >= guard.armed, "guard.armed"),
        ("armed", guard.armed >= guard.armed_hard, "guard.armed_hard"),
        ("among", guard.among >= guard.several, "guard.several"),
        ("among", guard.among >= guard.in_a_row, "guard.in_a_row"),
        ("window", guard.window >= guard.divergence_window, "guard.divergence_window"),
    )
    for name, holds, lower in rules:
        if not holds:
            raise UserError(f"guard.{name} = {getattr(guard, name)} must be at least {lower}")


def _check_data(data: AnyDataConfig) -> None:
    if data.tokenizer.kind == "file" and not data.tokenizer.path:
        raise UserError("data.tokenizer.path is empty, but data.tokenizer.kind = file needs it; set it to a file")
    if data.tokenizer.kind == "file" and data.tokenizer.reserved:
        raise UserError(
            f"data.tokenizer.reserved = {data.tokenizer.reserved} is for a vocabulary that is trained, not for "
            "data.tokenizer.kind = file; set it to 0"
        )
    if isinstance(data, DataConfig):
        if data.mixture and data.files:
            raise UserError("data.files and data.mixture are both set; leave one of them empty")
        if data.mixture_changes and not data.mixture:
            raise UserError("data.mixture_changes is set but data.mixture is empty; set data.mixture")


# Supported combinations: (model.family, objective.family) -> data.family.
_LEARNS = {
    ("gpt", "causal"): "text",
    ("nnlm", "causal"): "text",
    ("rnn", "causal"): "text",
    ("bert", "masked"): "text",
    ("transformer", "translation"): "records",
    ("gpt", "classification"): "records",
    ("bert", "classification"): "records",
    ("gpt", "sft"): "chat",
    ("gpt", "grpo"): "chat",
    ("gpt", "ppo"): "chat",
    ("gpt", "reward"): "preferences",
    ("gpt", "dpo"): "preferences",
}


def _check_families(config: Config) -> None:
    """Raise UserError if the model, the objective and the data do not fit together."""
    model, objective, data = config.model.family, config.objective.family, config.data.family
    learns = _LEARNS | extensions.combinations({name: kind for (_, name), kind in _LEARNS.items()})
    fitting = [o for m, o in learns if m == model]
    if objective not in fitting:
        raise UserError(
            f"model.family = {model} learns with objective.family = {' or '.join(fitting)}, not {objective}"
        )
    if data != learns[model, objective]:
        raise UserError(
            f"objective.family = {objective} needs data.family = {learns[model, objective]}, not {data}; "
            f"start from a preset that has it"
        )
    if isinstance(config.objective, CausalConfig | SFTConfig) and config.objective.chunk and model != "gpt":
        raise UserError(
            f"objective.chunk = {config.objective.chunk} is for model.family = gpt, not {model}; set it to 0"
        )
    own_objective = objective in extensions.OWN_OBJECTIVES  # else its class decides, when the run is built
    if config.evaluate.tasks and own_objective and objective not in ("causal", "sft"):
        raise UserError(
            f"evaluate.tasks needs objective.family = causal or sft, not {objective}; leave evaluate.tasks empty"
        )
    if isinstance(config.data, RecordsConfig):
        if objective == "classification" and not config.data.label:
            raise UserError("data.label is empty; set it to the column with the label")
        if objective == "translation" and (len(config.data.texts) != 2 or config.data.label):
            raise UserError(
                f"data.texts = {config.data.texts}, data.label = '{config.data.label}': translation needs two columns "
                "in data.texts, and an empty data.label"
            )
    _check_preferences(config)
    _check_policy(config)
    if isinstance(config.objective, MaskedConfig) and not config.objective.rate:
        raise UserError("objective.rate = 0 predicts no token; set it above 0 (BERT: 0.15)")
    if isinstance(config.objective, MaskedConfig) and config.objective.masked + config.objective.random > 1:
        raise UserError("the sum of objective.masked and objective.random is above 1; lower one of them")


def _check_preferences(config: Config) -> None:
    """Raise UserError if settings of a reward model or of DPO contradict each other."""
    objective, family = config.objective, config.objective.family
    if not isinstance(objective, RewardConfig | DirectConfig):
        return
    if config.model.dropout:
        raise UserError(
            f"model.dropout = {config.model.dropout} makes the two answers of a pair incomparable in "
            f"objective.family = {family}; set it to 0"
        )
    if isinstance(objective, DirectConfig):
        if not config.init_from:
            raise UserError("objective.family = dpo needs a reference; set init_from to a fine-tuned model")
        if objective.label_smoothing and objective.loss not in ("sigmoid", "robust"):
            raise UserError(
                f"objective.label_smoothing = {objective.label_smoothing} is for objective.loss = sigmoid or robust, "
                f"not {objective.loss}; set it to 0"
            )


def _check_policy(config: Config) -> None:
    """Raise UserError if the settings of reinforcement learning contradict each other."""
    objective, context = config.objective, getattr(config.model, "context", 0)
    if not isinstance(objective, PolicyConfig):
        return
    if config.model.dropout:
        raise UserError(
            f"model.dropout = {config.model.dropout} makes the policy that learns differ from the one that sampled; "
            f"objective.family = {objective.family} needs 0"
        )
    if objective.answer_tokens >= context:
        raise UserError(
            f"objective.answer_tokens = {objective.answer_tokens} leaves no room for a prompt in model.context = "
            f"{context}; lower it"
        )
    if isinstance(objective.reward, LearnedRewardConfig) and not objective.reward.run:
        raise UserError("objective.reward.family = model needs a reward model; set objective.reward.run to its run")
    if config.parallel.form == "pmap":
        raise UserError("parallel.form = pmap cannot sample answers; set parallel.form = mesh")
    if len({tokens for _, tokens in config.batch.tokens}) > 1:
        raise UserError("batch.tokens grows, but the answers of all updates have one shape; give one size")
    if isinstance(objective, PPOConfig) and objective.kl_target:
        _check_adaptive_penalty(objective, answers=config.batch.tokens[0][1] // context)


def _check_adaptive_penalty(objective: PPOConfig, *, answers: int) -> None:
    """Raise UserError if an adaptive KL coefficient would stay 0 or become negative."""
    if not objective.kl_coefficient:
        raise UserError(
            f"objective.kl_target = {objective.kl_target} multiplies objective.kl_coefficient, which is 0 and stays 0; "
            "set it to a first coefficient, such as 0.05"
        )
    if 5 * objective.kl_horizon <= answers:  # an error counts up to 0.2
        raise UserError(
            f"objective.kl_horizon = {objective.kl_horizon} is at most a fifth of the {answers} answers of an update "
            "(it counts answers): the coefficient would become 0 or negative; raise it"
        )
