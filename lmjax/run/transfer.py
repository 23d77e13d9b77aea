"""Initialization from the parameters of another run or of another library's model."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config import (
    Config,
    CustomModelConfig,
    DirectConfig,
    GPTConfig,
    ModelConfig,
    RewardConfig,
    TokenizerConfig,
    UserError,
    extensions,
    presets,
)
from lmjax.config.chat import ConversationConfig
from lmjax.config.objectives import ObjectiveConfig
from lmjax.config.policies import PolicyConfig
from lmjax.data import chat_template, chat_tokens, tokenizer
from lmjax.interop.huggingface import folder, weights
from lmjax.journal.history import Record
from lmjax.models import registry
from lmjax.parallel import mesh
from lmjax.pytrees import digest, path_name
from lmjax.run import build, config_hash, growth, pretrained, saved, template_choice
from lmjax.run.build import Run
from lmjax.system.files import cache_folder, write_text
from lmjax.training.state import State

_OWN = ("dropout", "scan", "remat", "dtype")  # these keys say how a run computes, not what it learned


def adopt(config: Config) -> Config:
    """Replace model and tokenizer of a configuration by those of `init_from`.

    The parameters then fit. `init_from` is a run, a folder of a Hugging Face model, or a .gguf file. If the families
    agree, dropout, scan, remat and dtype stay as configured. A shorter context also stays if positions are rotary,
    which have no parameters.

    Raises:
        UserError: There is no such run or file, or it is a reward model and the objective needs answers.
    """
    source = Path(config.init_from)
    if not config.init_from or source.suffix.lower() == ".safetensors":
        return config
    (source_model, path, learned), model = _model_of(source), config.model
    if isinstance(learned, RewardConfig) and isinstance(config.objective, RewardConfig | DirectConfig | PolicyConfig):
        raise UserError(
            f"init_from={source} is a reward model, which writes no answers, and objective.family="
            f"{config.objective.family} needs a model that does; give the fine-tuned model that it started from"
        )
    if source_model.family == model.family:
        own = {name: getattr(model, name) for name in _OWN if hasattr(model, name)}
        if isinstance(source_model, GPTConfig) and source_model.positions == "rotary":
            own["context"] = min(model.context, source_model.context)
        source_model = dataclasses.replace(source_model, **own)
    if isinstance(config.data, ConversationConfig):
        path = template_choice.adopted(source, path, config.data.template)
    if isinstance(config.data, ConversationConfig) and source_model.vocab_size:  # for the control tokens that it lacks
        size = chat_tokens.completed(tokenizer.load_tokenizer(path)).vocab_size
        source_model = dataclasses.replace(source_model, vocab_size=max(source_model.vocab_size, size))
    choice = TokenizerConfig(kind="file", path=str(path))
    return dataclasses.replace(config, model=source_model, data=dataclasses.replace(config.data, tokenizer=choice))


def _model_of(source: Path) -> tuple[ModelConfig, Path, ObjectiveConfig | None]:
    """Return the configuration of a model, the path of its tokenizer, and what a run learned.

    The tokenizer of a .gguf file is extracted to the cache.
    """
    if source.suffix.lower() == ".gguf":
        loaded: Any = pretrained.foreign(source)
        path = cache_folder() / "tokenizers" / f"{loaded.tokenizer.sha256}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, loaded.tokenizer.json)
        return loaded.model.config, path, None
    if folder.is_model(source):
        return folder.load_config(source), source, None
    if not (source / "config.json").is_file():
        raise UserError(
            f"init_from={source} is not a run or a Hugging Face model (it has no config.json), and not a .gguf or "
            f".safetensors file: {pretrained.problem(source)}"
            f"{saved.earlier_stage(source, otherwise='init_from=MODEL')}"
        )
    config_hash.check(source)
    with extensions.foreign():
        config = presets.read(source / "config.json")
    model = config.model
    own = extensions.find("model.family", model.family)
    if isinstance(model, CustomModelConfig) and (own is None or type(model) is not own.value[0]):
        raise UserError(
            f"init_from={source} has the registered model.family={model.family}; this configuration does not import "
            "the same file: name it in extensions=[FILE.py]"
        )
    return model, source / "tokenizer.json", config.objective


def begin(run: Run, *, report: Callable[[str], None]) -> tuple[State, dict[str, Any]]:
    """Initialize the state of a run.

    With `init_from`, the source's parameters (the average, if the source has one) replace the initial parameters of
    the same name and shape.

    Args:
        run: The new run.
        report: Receives lines about the parameters that were taken, are new, or are not used.

    Returns:
        The state before update 0, and the fields of the journal that describe its origin.

    Raises:
        UserError: The source cannot be read, has another tokenizer or shape, or has no parameter in common.
    """
    state: Any = build.init(run)
    source = Path(run.config.init_from)
    if not run.config.init_from:
        return state, {}
    named = _by_name(state.params)
    source_params, lines = _grown(run, _parameters(run, source), named)
    mismatched = [name for name in named if name in source_params and source_params[name].shape != named[name].shape]
    if mismatched:
        sizes = ", ".join(
            f"{name} is {named[name].shape}, there {source_params[name].shape}" for name in mismatched[:3]
        )
        raise UserError(f"init_from={source} has parameters of other shapes: {sizes}; give the model its sizes")
    taken = [name for name in named if name in source_params]
    if not taken:
        raise UserError(
            f"init_from={source} has no parameter of this model; it has {', '.join(sorted(source_params)[:5])}, ..."
        )

    def leaf(path: tuple[Any, ...], initial: jax.Array) -> jax.Array:
        name = path_name(path)
        return (
            mesh.put_tree(source_params[name].astype(initial.dtype), initial.sharding)
            if name in source_params
            else initial
        )

    params = jax.tree_util.tree_map_with_path(leaf, state.params)
    values = sum(named[name].size for name in taken)
    report(f"{source}: {len(taken)} of {len(named)} parameters taken, {values:,} values")
    for line in lines:
        report(line)
    for description, names in (
        ("newly initialized", set(named) - set(taken)),
        ("not used", set(source_params) - set(named)),
    ):
        if names:
            report(f"  {description}: {', '.join(sorted(names))}")
    average = None if state.ema is None else jax.tree.map(lambda x: x.copy(), params)
    origin = {"init_from": str(source), "init_sha256": digest(params)}
    return build.with_critic(run, state.replace(params=params, ema=average)), origin


def begin_again(run: Run, start: Record, *, report: Callable[[str], None]) -> State:
    """Initialize the state of a run that began before.

    Args:
        run: The run.
        start: The first record of its journal.
        report: Receives lines, as in `begin`.

    Raises:
        UserError: The parameters of `init_from` are others than when the run began.
    """
    state, origin = begin(run, report=report)
    if origin.get("init_sha256") != start.get("init_sha256"):
        raise UserError(f"{origin.get('init_from')} has other parameters than when the run began; start a new run")
    return state


def policy(run: Run, params: Any) -> Any:
    """Return the parameters of the decoder that a reward model starts as.

    They are those of the run; an output layer, which a reward model does not have, is that of `init_from`.

    Args:
        run: The run.
        params: Its parameters before the first update.

    Raises:
        UserError: `init_from` has no such parameter.
    """
    decoder, source = registry.build(run.config.model), run.config.init_from
    shapes: Any = jax.eval_shape(decoder.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    named, own = _by_name(shapes), _by_name(params)
    if named.keys() - own.keys() and source:
        own = {**_grown(run, _parameters(run, Path(source)), named)[0], **own}
    if missing := sorted(named.keys() - own.keys()):
        raise UserError(f"init_from={source} has no {', '.join(missing)}, without which it can write no answers")
    return jax.tree_util.tree_map_with_path(lambda path, _: own[path_name(path)], shapes)


def _by_name(params: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _grown(
    run: Run, leaves: dict[str, np.ndarray], named: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Append rows of control tokens to the parameters of a source.

    Returns the parameters, and lines about those that have grown.
    """
    if not isinstance(run.config.data, ConversationConfig):
        return leaves, []
    return growth.grown(leaves, named, registry.logical_axes(run.config.model), seed=run.config.seed)


def _parameters(run: Run, source: Path) -> dict[str, np.ndarray]:
    """Return the source's leaves by name in the layout of this run's model.

    If the model scans, leaves are stacked over layers.
    """
    if source.suffix.lower() == ".safetensors":
        try:
            leaves = {name.replace(".", "/"): weights.finite(name, leaf) for name, leaf in weights.read(source).items()}
        except UserError as error:
            raise UserError(f"init_from={error}") from None
    else:
        leaves = {name: np.asarray(leaf) for name, leaf in _by_name(_params(run, source)).items()}
    model: Any = run.config.model
    return _stacked(leaves) if getattr(model, "scan", False) else _unstacked(leaves)


def _params(run: Run, source: Path) -> Any:
    """Return the parameters of a run or of a foreign model.

    Raises:
        UserError: Its tokenizer differs from this run's.
    """
    foreign = pretrained.foreign(source)
    source_tokenizer = foreign.tokenizer if foreign else tokenizer.load_tokenizer(source / "tokenizer.json")
    if isinstance(run.config.data, ConversationConfig):
        template = chat_template.recorded(run.store.tokenizer)
        source_tokenizer = chat_tokens.completed(chat_template.with_template(source_tokenizer, template))
    if source_tokenizer.sha256 != run.store.tokenizer.sha256:
        raise UserError(
            f"init_from={source} was trained with another tokenizer; set data.tokenizer.kind=file "
            f"data.tokenizer.path={_model_of(source)[1]}"
        )
    return foreign.params if foreign else saved.load(source).params


def _unstacked(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    result = {}
    for name, leaf in leaves.items():
        if name.startswith("blocks/"):
            result |= {f"block_{i}/{name[len('blocks/') :]}": layer for i, layer in enumerate(leaf)}
        else:
            result[name] = leaf
    return result


def _stacked(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    result = {name: leaf for name, leaf in leaves.items() if not re.match(r"block_\d+/", name)}
    layers: dict[str, dict[int, np.ndarray]] = {}
    for name, leaf in leaves.items():
        if match := re.match(r"block_(\d+)/(.*)", name):
            layers.setdefault(f"blocks/{match[2]}", {})[int(match[1])] = leaf
    return result | {name: np.stack([parts[i] for i in sorted(parts)]) for name, parts in layers.items()}
