"""Extensions: what a user's Python file adds to lmjax, by kind and name. Imports no JAX.

A file registers at import (`lmjax.register_family(...)` and the like). `lmjax.config.user_files` imports the files that
a configuration lists.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lmjax.config.chat import ChatConfig
from lmjax.config.data import RecordsConfig
from lmjax.config.errors import UserError, nearest
from lmjax.config.models import CustomModelConfig, ModelConfig
from lmjax.config.objectives import CustomObjectiveConfig, ObjectiveConfig
from lmjax.config.preferences import PreferenceConfig
from lmjax.config.rewards import FunctionConfig, RewardFunction
from lmjax.config.schema import OptimizerConfig, ScheduleConfig
from lmjax.config.user_files import Entry, digest_of, imports_of, parse_entry, preserved, remember

Kind = Literal[
    "model.family",
    "objective.family",
    "optimizer.name",
    "schedule.shape",
    "data.source",
    "metric",
    "callback",
    "reward",
]


@dataclass(frozen=True)
class Extension:
    """One registered name."""

    value: Any
    #: The file that registered it.
    path: Path
    #: SHA-256 of that file when it was imported.
    sha256: str


_extensions: dict[tuple[Kind, str], Extension] = {}


# ---- Registration ---------------------------------------------------------------------------------------------------


def register(kind: Kind, name: str, value: Any, *, own: Iterable[str] = (), depth: int = 2) -> None:
    """Register `value` as `name`, for the file of the calling function.

    Args:
        kind: What is registered.
        name: Its name in the configuration.
        value: The object; its type depends on the kind.
        own: Names that lmjax itself uses.
        depth: Frames between this function and the user's file.

    Raises:
        UserError: The name is not an identifier or is in use, or the caller is no file.
    """
    if not (isinstance(value, tuple) or callable(value)):
        raise UserError(f"register {kind} '{name}': give a function, not {value!r}")
    if not name.isidentifier():
        raise UserError(f"register {kind} '{name}': the name must be an identifier (letters, digits, underscores)")
    if name in own:
        raise UserError(f"register {kind} '{name}': lmjax has this name already; choose another one")
    scope = sys._getframe(depth).f_globals
    caller = scope.get("__file__", "")
    if not os.path.isfile(caller):
        raise UserError(
            f"register {kind} '{name}': the call is not in a file, so no run could be resumed; write it into a .py "
            "file and import that"
        )
    path = remember(Path(caller), sys.modules.get(scope.get("__name__", "")))
    known = _extensions.get((kind, name))
    if known is not None and known.path != path:
        raise UserError(f"register {kind} '{name}': {known.path} registered this name before {path}; rename one")
    _extensions[kind, name] = Extension(value, path, digest_of(path))


@contextmanager
def foreign() -> Iterator[None]:
    """Read the configuration of another run; restore what is registered at the end."""
    before = dict(_extensions)
    with preserved():
        try:
            yield
        finally:
            _extensions.clear()
            _extensions.update(before)


def find(kind: Kind, name: str) -> Extension | None:
    """Return what is registered as `name`, or None."""
    return _extensions.get((kind, name))


def get(kind: Kind, name: str) -> Any:
    """Return the registered object, or None."""
    extension = find(kind, name)
    return None if extension is None else extension.value


def configurations(base: type) -> dict[str, type]:
    """Return the registered configuration classes of models or objectives, by family.

    Args:
        base: `CustomModelConfig` or `CustomObjectiveConfig`.
    """
    kind: Kind = "model.family" if base is CustomModelConfig else "objective.family"
    return {name: get(kind, name)[0] for name in names(kind)}


def names(kind: Kind) -> list[str]:
    """Return the registered names of a kind."""
    return [name for of, name in _extensions if of == kind]


def combinations(data: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """Return the combinations of registered families and objectives.

    The result maps (model.family, objective.family) to data.family.

    Args:
        data: The kind of data of each of lmjax's own objectives.
    """
    families = {name: get("model.family", name) for name in names("model.family")}
    objectives = {name: get("objective.family", name) for name in names("objective.family")}
    kinds = {**data, **{name: kind for name, (_, _, _, kind) in objectives.items()}}
    pairs = [(model, name) for model, (_, _, learns) in families.items() for name in learns if name in kinds]
    pairs += [(model, name) for name, (_, _, models, _) in objectives.items() for model in models]
    return {(model, name): kinds[name] for model, name in pairs}


def check_name(key: Kind, name: str, own: Sequence[str]) -> None:
    """Check that a name is one of lmjax's own or registered.

    Raises:
        UserError: It is neither.
    """
    known = [*own, *names(key)]
    if name in known:
        return
    shown = {"metric": "train.metrics", "callback": "train.callbacks", "reward": "objective.reward.name"}.get(key, key)
    if not known:
        raise UserError(f"{shown}: '{name}' is not registered; name its file in extensions=[FILE.py]")
    raise UserError(f"{shown}: '{name}' is unknown{nearest(name, known)}; or name its file in extensions=[FILE.py]")


def register_family(config: type, family: Any, *, objectives: Sequence[str] = ("causal",)) -> None:
    """Add a model family.

    Args:
        config: A frozen dataclass derived from `lmjax.config.CustomModelConfig`; its `family: Literal["NAME"]` is
            the value of `model.family`.
        family: The `lmjax.models.family.Family` record.
        objectives: The values of `objective.family` with which the family is trained.

    Raises:
        UserError: The name is in use, or the caller is no file.
    """
    register("model.family", _family(config, CustomModelConfig), (config, family, tuple(objectives)), own=OWN_FAMILIES)


def register_objective(
    config: type,
    objective: Any,
    *,
    models: Sequence[str],
    data: Literal["text", "records", "chat", "preferences"] = "text",
) -> None:
    """Add an objective.

    Args:
        config: A frozen dataclass derived from `lmjax.config.CustomObjectiveConfig`; its `family: Literal["NAME"]`
            is the value of `objective.family`.
        objective: A subclass of `lmjax.objectives.objective.Objective`.
        models: The model families that can be trained with it.
        data: The kind of data that it reads.

    Raises:
        UserError: The name is in use, or the caller is no file.
    """
    name = _family(config, CustomObjectiveConfig)
    register("objective.family", name, (config, objective, tuple(models), data), own=OWN_OBJECTIVES)


def register_optimizer(name: str, make: Callable[[Any], Any]) -> None:
    """Add an optimizer.

    `make(config.optimizer)` returns an optax transformation from gradients to the direction of the update.

    lmjax clips the gradients before and multiplies the direction by minus the learning rate after it, so that `make`
    applies neither; it applies weight decay itself.

    Raises:
        UserError: The name is in use, or the caller is no file.
    """
    register("optimizer.name", name, make, own=OWN_OPTIMIZERS)


def register_schedule(name: str, shape: Callable[[Any, float, Any], Any]) -> None:
    """Add a shape of the learning rate after the warm-up.

    `shape(progress, warmup, config.schedule)` returns the share of the peak for each update. `progress` (float64
    array) is the share of the run at the end of each update, `warmup` the share at the end of the warm-up.

    Raises:
        UserError: The name is in use, or the caller is no file.
    """
    register("schedule.shape", name, shape, own=OWN_SHAPES)


def register_source(
    name: str, read: Callable[[Any], Iterable[Any]], *, fingerprint: Callable[[Any], Any] | None = None
) -> None:
    """Add a data source: `read(config.data)` yields the documents.

    A document is a text for `data.family=text`, and a dict of columns for `data.family=records`, `chat` and
    `preferences`. Every call must yield the same documents in the same order.

    Args:
        name: The value of `data.source`.
        read: The function.
        fingerprint: Returns a JSON value that changes with the documents; prepared data are reused while it and the
            file that registers the source are the same.

    Raises:
        UserError: The name is in use, or the caller is no file.
    """
    own = (*OWN_TEXT_SOURCES, *OWN_RECORD_SOURCES, *OWN_CHAT_SOURCES, *OWN_PREFERENCE_SOURCES)
    register("data.source", name, (read, fingerprint or (lambda data: None)), own=own)


def register_metric(name: str, measure: Callable[[Any], float]) -> None:
    """Add a metric that `train.metrics` can name.

    `measure(run)` returns a number at each evaluation.

    `run` is a `lmjax.run.saved.LoadedRun`. The value is recorded and drawn as `val_NAME`.

    Raises:
        UserError: The name is in use, or the caller is no file.
    """
    register("metric", name, measure, own=("loss", "bits_per_byte"))


def register_reward(name: str, function: RewardFunction) -> None:
    """Add a reward: `function(text, row)` returns a finite number.

    `text` is the answer, `row` a dict of the columns of its prompt. The function must be pure: equal arguments, equal
    reward. An answer for which it raises an error or returns no finite number gets 0 and is counted.

    Raises:
        UserError: The name is in use, or the caller is no file.
    """
    register("reward", name, function)


def register_callback(name: str, call: Callable[[Any], None]) -> None:
    """Add a callback that `train.callbacks` can name.

    `call(event)` is called in the main process.

    `event` is a `lmjax.training.events.Event`.

    Raises:
        UserError: The name is in use, or the caller is no file.
    """
    register("callback", name, call)


def _literals(config: type, name: str) -> tuple[str, ...]:
    """The names that the type of a field lists."""
    hint = get_type_hints(config)[name]
    members = get_args(hint) if get_origin(hint) is Literal else [n for part in get_args(hint) for n in get_args(part)]
    return tuple(members)


OWN_FAMILIES = tuple(name for config in get_args(ModelConfig) for name in _literals(config, "family"))
OWN_OBJECTIVES = tuple(name for config in get_args(ObjectiveConfig) for name in _literals(config, "family"))
OWN_OPTIMIZERS = _literals(OptimizerConfig, "name")
OWN_SHAPES = _literals(ScheduleConfig, "shape")
OWN_TEXT_SOURCES = ("docstrings", "in_context", "numbers_and_dates", "hub:NAME")
OWN_RECORD_SOURCES = _literals(RecordsConfig, "source")
OWN_CHAT_SOURCES = _literals(ChatConfig, "source")
OWN_PREFERENCE_SOURCES = _literals(PreferenceConfig, "source")


def _family(config: type, base: type) -> str:
    """The name of a family, from the type of its field `family`."""
    if not (isinstance(config, type) and issubclass(config, base)):
        raise UserError(f"register {config}: it must be a frozen dataclass derived from lmjax.config.{base.__name__}")
    args = get_args(get_type_hints(config)["family"])
    if len(args) != 1 or not is_dataclass(config) or getattr(config, "family", None) != args[0]:
        raise UserError(f"register {config.__name__}: it must be a dataclass with family: Literal['NAME'] = 'NAME'")
    return args[0]


# ---- The files of a configuration -----------------------------------------------------------------------------------


def recorded(config: Any) -> tuple[str, ...]:
    """Return the entries of a configuration, with hashes.

    They are the files that it lists, those that registered what it uses, and the files that these import.

    An import counts if it is a file in the same folder or package.
    """
    registering = dict.fromkeys(parse_entry(text).path for text in config.extensions if parse_entry(text).registers)
    registering |= dict.fromkeys(_extensions[key].path for key in used(config) if key in _extensions)
    imported = dict.fromkeys(other for path in registering for other in imports_of(path) if other not in registering)
    entries = [Entry(path, digest_of(path)) for path in registering]
    return tuple(map(str, [*entries, *(Entry(path, digest_of(path), registers=False) for path in imported)]))


def used(config: Any) -> list[tuple[Kind, str]]:
    """Return the kind and name of everything that an extension may have registered."""
    parts = getattr(config.data, "mixture", ()) or (config.data,)
    reward = getattr(config.objective, "reward", None)
    sources = [part.source for part in parts if not part.files]
    return [
        ("model.family", config.model.family),
        ("objective.family", config.objective.family),
        ("optimizer.name", config.optimizer.name),
        ("schedule.shape", config.schedule.shape),
        *(("data.source", name) for name in sources),
        *(("metric", name) for name in config.train.metrics),
        *(("callback", name) for name in config.train.callbacks),
        *([("reward", reward.name)] if isinstance(reward, FunctionConfig) else []),
    ]
