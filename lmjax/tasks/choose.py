"""From a configuration to its task."""

from typing import Any

from lmjax.config import Config, RNNConfig
from lmjax.data.store import Store
from lmjax.models import families
from lmjax.tasks.masked import Masked
from lmjax.tasks.records import Classification, Translation
from lmjax.tasks.task import Task
from lmjax.tasks.text import Carried, Causal


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


def build(config: Config, store: Store) -> Task:
    """The task of a resolved configuration. UserError: settings that do not fit each other or the data."""
    return _kind(config).build(config, store)


def without_data(config: Config) -> Task:
    """The task with its model, to load and use parameters; what reads samples is not there."""
    kind = _kind(config)
    model = Classification.model_of(config) if kind is Classification else families.build(config.model)
    nothing: Any = None
    return kind(config, nothing, model, nothing)
