"""Initialization from the parameters of another run or of another library's model."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmjax.config import (
    ChatConfig,
    Config,
    CustomModelConfig,
    GPTConfig,
    ModelConfig,
    TokenizerConfig,
    UserError,
    extensions,
    presets,
)
from lmjax.data import chat_tokens, tokenizer
from lmjax.interop.huggingface import folder, weights
from lmjax.models import registry
from lmjax.parallel import mesh
from lmjax.pytrees import digest, path_name
from lmjax.run import build, config_hash, growth, pretrained, saved
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
        UserError: There is no such run or file.
    """
    source = Path(config.init_from)
    if not config.init_from or source.suffix.lower() == ".safetensors":
        return config
    (source_model, path), model = _model_of(source), config.model
    if source_model.family == model.family:
        own = {name: getattr(model, name) for name in _OWN if hasattr(model, name)}
        if isinstance(source_model, GPTConfig) and source_model.positions == "rotary":
            own["context"] = min(model.context, source_model.context)
        source_model = dataclasses.replace(source_model, **own)
    if isinstance(config.data, ChatConfig) and source_model.vocab_size:  # for the control tokens that it lacks
        size = chat_tokens.completed(tokenizer.load_tokenizer(path)).vocab_size
        source_model = dataclasses.replace(source_model, vocab_size=max(source_model.vocab_size, size))
    choice = TokenizerConfig(kind="file", path=str(path))
    return dataclasses.replace(config, model=source_model, data=dataclasses.replace(config.data, tokenizer=choice))


def _model_of(source: Path) -> tuple[ModelConfig, Path]:
    """Return the configuration of a model and the path of its tokenizer.

    The tokenizer of a .gguf file is extracted to the cache.
    """
    if source.suffix.lower() == ".gguf":
        loaded: Any = pretrained.foreign(source)
        path = cache_folder() / "tokenizers" / f"{loaded.tokenizer.sha256}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, loaded.tokenizer.json)
        return loaded.model.config, path
    if folder.is_model(source):
        return folder.load_config(source), source
    if not (source / "config.json").is_file():
        raise UserError(
            f"init_from={source} is not a run or a Hugging Face model (it has no config.json), and not a .gguf or "
            f".safetensors file: {pretrained.problem(source)}{_earlier_stage(source)}"
        )
    config_hash.check(source)
    with extensions.foreign():
        model = presets.read(source / "config.json").model
    own = extensions.find("model.family", model.family)
    if isinstance(model, CustomModelConfig) and (own is None or type(model) is not own.value[0]):
        raise UserError(
            f"init_from={source} has the registered model.family={model.family}; this configuration does not import "
            "the same file: name it in extensions=[FILE.py]"
        )
    return model, source / "tokenizer.json"


def _earlier_stage(source: Path) -> str:
    """Return the command that trains a missing run, if its name is that of a preset."""
    if source.exists() or source.parent.name != "runs" or source.name not in presets.names():
        return ""
    return f"; train this stage first with `python train.py {source.name}`, or give init_from=MODEL"


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
    source_params = _parameters(run, source)
    named = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)}
    lines: list[str] = []
    if isinstance(run.config.data, ChatConfig):
        table = registry.logical_axes(run.config.model)
        source_params, lines = growth.grown(source_params, named, table, seed=run.config.seed)
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
        leaves = {
            path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(_params(run, source))
        }
    model: Any = run.config.model
    return _stacked(leaves) if getattr(model, "scan", False) else _unstacked(leaves)


def _params(run: Run, source: Path) -> Any:
    """Return the parameters of a run or of a foreign model.

    Raises:
        UserError: Its tokenizer differs from this run's.
    """
    foreign = pretrained.foreign(source)
    source_tokenizer = foreign.tokenizer if foreign else tokenizer.load_tokenizer(source / "tokenizer.json")
    if isinstance(run.config.data, ChatConfig):
        source_tokenizer = chat_tokens.completed(source_tokenizer)
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
