"""Registry of objectives: `objective.family` and its class."""

from collections.abc import Mapping

from lmjax.config import Config, UserError, extensions
from lmjax.data.store.store import Store
from lmjax.objectives.causal import Causal
from lmjax.objectives.classification import Classification
from lmjax.objectives.direct import DirectPreference
from lmjax.objectives.masked import Masked
from lmjax.objectives.next_token import NextToken
from lmjax.objectives.objective import Objective
from lmjax.objectives.policy import Policy
from lmjax.objectives.reward import RewardModel
from lmjax.objectives.sft import FineTuning
from lmjax.objectives.translation import Translation

OBJECTIVES: Mapping[str, type[Objective]] = {
    "causal": Causal,
    "masked": Masked,
    "translation": Translation,
    "classification": Classification,
    "sft": FineTuning,
    "reward": RewardModel,
    "dpo": DirectPreference,
    "grpo": Policy,
    "ppo": Policy,
}


def _variant(config: Config) -> type[Objective]:
    family = config.objective.family
    extension = extensions.get("objective.family", family)
    if extension is None and family not in OBJECTIVES:
        raise UserError(f"objective.family: '{family}' is unknown; import the file that registers it")
    objective = OBJECTIVES[family] if extension is None else extension[1]
    if not (isinstance(objective, type) and issubclass(objective, Objective)):
        raise UserError(f"register_objective '{family}': give a subclass of Objective, not {objective}")
    return objective.variant(config)


def build_objective(config: Config, store: Store) -> Objective:
    """Build the objective of a resolved configuration.

    Raises:
        UserError: The settings contradict each other or the data.
    """
    objective = _variant(config)
    if config.evaluate.tasks and not issubclass(objective, NextToken):
        raise UserError(
            f"evaluate.tasks needs an objective that predicts the next token, not objective.family="
            f"{config.objective.family}; leave evaluate.tasks empty"
        )
    return objective.build(config, store)


def objective_without_data(config: Config) -> Objective:
    """Build the objective to load and use parameters; its samples read no data."""
    return _variant(config).without_data(config)
