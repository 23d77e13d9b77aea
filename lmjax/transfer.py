"""Starting from what another run, or a model of another library, has learned: its parameters, where names and shapes
match."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmjax import parallel, pretrained, typed
from lmjax import run as runs
from lmjax.config import Config, GPTConfig, ModelConfig, TokenizerConfig, UserError
from lmjax.data import tokenizer
from lmjax.files import cache_folder, write_text
from lmjax.interop import huggingface, weights
from lmjax.pytrees import digest, path_name
from lmjax.run import Run
from lmjax.train.state import State

_OWN = ("dropout", "scan", "remat", "dtype")  # how the new run computes, not what the old one has learned


def adopt(config: Config) -> Config:
    """With `init_from` a run, a folder of a Hugging Face model or a .gguf file: the configuration with that model and
    tokenizer, or parameters would not fit.

    Of the model, how it computes stays as configured (dropout, scan, remat, dtype), where the families agree; and so
    does a shorter context, where positions are rotary, which have no parameters. UserError: no such run or file.
    """
    source = Path(config.init_from)
    if not config.init_from or source.suffix == ".safetensors":
        return config
    (theirs, path), ours = _model_of(source), config.model
    if theirs.family == ours.family:
        own = {name: getattr(ours, name) for name in _OWN if hasattr(ours, name)}
        if isinstance(theirs, GPTConfig) and theirs.positions == "rotary":
            own["context"] = min(ours.context, theirs.context)
        theirs = dataclasses.replace(theirs, **own)
    choice = TokenizerConfig(kind="file", path=str(path))
    return dataclasses.replace(config, model=theirs, data=dataclasses.replace(config.data, tokenizer=choice))


def _model_of(source: Path) -> tuple[ModelConfig, Path]:
    """The configuration of a model, and where its tokenizer is. That of a .gguf file is copied out of it."""
    if source.suffix == ".gguf":
        loaded: Any = pretrained.foreign(source)
        path = cache_folder() / "tokenizers" / f"{loaded.tokenizer.sha256}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, loaded.tokenizer.json)
        return loaded.model.config, path
    if huggingface.is_model(source):
        return huggingface.load_config(source), source
    if not (source / "config.json").is_file():
        raise UserError(
            f"init_from={source} is not a run or a Hugging Face model (it has no config.json), and not a .gguf or "
            f".safetensors file"
        )
    return typed.from_json((source / "config.json").read_text(), Config).model, source / "tokenizer.json"


def begin(run: Run, *, report: Callable[[str], None]) -> tuple[State, dict[str, Any]]:
    """The state before update 0, and what the journal says of where it comes from.

    With `init_from` its parameters (the average, where the source keeps one) replace the initial ones of the same name
    and shape; what was taken, what is new and what was left is reported. UserError: the source cannot be read, has
    another tokenizer or shape, or nothing matches.
    """
    state: Any = runs.init(run)
    source = Path(run.config.init_from)
    if not run.config.init_from:
        return state, {}
    found = _parameters(run, source)
    named = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)}
    wrong = [name for name in named if name in found and found[name].shape != named[name].shape]
    if wrong:
        sizes = ", ".join(f"{name} is {named[name].shape}, there {found[name].shape}" for name in wrong[:3])
        raise UserError(f"init_from={source} has parameters of other shapes: {sizes}; give the model its sizes")
    taken = [name for name in named if name in found]
    if not taken:
        raise UserError(
            f"init_from={source} has no parameter of this model; it has {', '.join(sorted(found)[:5])}, ..."
        )

    def leaf(path: tuple[Any, ...], ours: jax.Array) -> jax.Array:
        name = path_name(path)
        return parallel.put(found[name].astype(ours.dtype), ours.sharding) if name in found else ours

    params = jax.tree_util.tree_map_with_path(leaf, state.params)
    values = sum(named[name].size for name in taken)
    report(f"{source}: {len(taken)} of {len(named)} parameters taken, {values:,} values")
    for what, names in (("begin anew", set(named) - set(taken)), ("are not used", set(found) - set(named))):
        if names:
            report(f"  {what}: {', '.join(sorted(names))}")
    average = None if state.ema is None else jax.tree.map(lambda x: x.copy(), params)
    return state.replace(params=params, ema=average), {"init_from": str(source), "init_sha256": digest(params)}


def _parameters(run: Run, source: Path) -> dict[str, np.ndarray]:
    """Leaves by name, as this run's model has them: stacked over layers if it scans, else not."""
    if source.suffix == ".safetensors":
        try:
            found = {name.replace(".", "/"): leaf for name, leaf in weights.read(source).items()}
        except UserError as error:
            raise UserError(f"init_from={error}") from None
    else:
        found = {
            path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(_params(run, source))
        }
    model: Any = run.config.model
    return _stacked(found) if getattr(model, "scan", False) else _unstacked(found)


def _params(run: Run, source: Path) -> Any:
    """The parameters of a run or of a foreign model. UserError: its tokenizer is not this run's."""
    foreign = pretrained.foreign(source)
    theirs = foreign.tokenizer if foreign else tokenizer.load(source / "tokenizer.json")
    if theirs.sha256 != run.store.tokenizer.sha256:
        raise UserError(
            f"init_from={source} was trained with another tokenizer; set data.tokenizer.kind=file "
            f"data.tokenizer.path={_model_of(source)[1]}"
        )
    return foreign.params if foreign else runs.load(source).params


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
