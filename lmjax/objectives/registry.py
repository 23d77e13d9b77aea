"""Registry of objectives."""

from typing import Any

from lmjax.config import Config, RNNConfig
from lmjax.data.store.store import Store
from lmjax.models import registry
from lmjax.objectives.carried import Carried
from lmjax.objectives.causal import Causal
from lmjax.objectives.classification import Classification
from lmjax.objectives.masked import Masked
from lmjax.objectives.objective import Objective
from lmjax.objectives.translation import Translation


def _kind(config: Config) -> Any:
    match config.objective.family:
        case "causal":
            return Carried if isinstance(config.model, RNNConfig) and config.model.carried else Causal
        case "masked":
            return Masked
        case "translation":
            return Translation
        case "classification":
            return Classification


def build_objective(config: Config, store: Store) -> Objective:
    """Build the objective of a resolved configuration.

    Raises:
        UserError: The settings contradict each other or the data.
    """
    return _kind(config).build(config, store)


def objective_without_data(config: Config) -> Objective:
    """Build the objective with its model only, to load and use parameters; it reads no samples."""
    kind = _kind(config)
    model = Classification.model_of(config) if kind is Classification else registry.build(config.model)
    nothing: Any = None
    return kind(config, nothing, model, nothing)
