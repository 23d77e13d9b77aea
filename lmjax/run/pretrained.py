"""Loading of trained models by path: a run, a Hugging Face folder, or a .gguf file."""

from pathlib import Path
from typing import Literal

from lmjax.config import CustomModelConfig, GPTConfig, NNLMConfig, RNNConfig, UserError
from lmjax.inference.language_model import LanguageModel
from lmjax.interop.huggingface import folder, hub, weights
from lmjax.objectives.next_token import NextToken
from lmjax.run import saved
from lmjax.run.saved import LoadedRun
from lmjax.system import paths

_FOREIGN = {"architectures", "hidden_size", "n_embd", "transformers_version"}  # keys that a run's config.json lacks


def load(
    path: str | Path, *, checkpoint: str = "newest", dtype: Literal["float32", "bfloat16"] = "float32"
) -> LanguageModel:
    """Load the language model at `path`.

    Args:
        path: A run, a folder of a Hugging Face model, or a .gguf file.
        checkpoint: Checkpoint of a run, as in `trained`.
        dtype: Dtype of the matrix products of a model that is not a run.

    Raises:
        UserError: There is no model, or it is not a causal language model.
    """
    path = Path(path)
    foreign_model = foreign(path, dtype=dtype)
    if foreign_model is not None:
        return causal(foreign_model)
    run = trained(path, checkpoint=checkpoint)
    if not isinstance(run.objective, NextToken):
        raise UserError(f"{path} is not a causal language model: it was trained for {run.config.objective.family}")
    return language_model(run, name=str(path))


def language_model(run: LoadedRun, *, name: str) -> LanguageModel:
    """Return the language model of a run whose objective predicts the next token."""
    assert isinstance(run.objective, NextToken)
    stops = run.objective.stops(run.tokenizer)
    return LanguageModel(run.model, run.params, run.tokenizer, name=name, stops=stops)


def causal(lm: LanguageModel) -> LanguageModel:
    """Return the model if it predicts the next token.

    Raises:
        UserError: The model does not predict the next token.
    """
    config = lm.model.config
    if not isinstance(config, GPTConfig | NNLMConfig | RNNConfig | CustomModelConfig):
        raise UserError(f"{lm.name} is not a causal language model: it is of the family {config.family}")
    return lm


def foreign(path: Path, *, dtype: Literal["float32", "bfloat16"] = "float32") -> LanguageModel | None:
    """Load the model of a .gguf file or of a Hugging Face folder; None if `path` is neither.

    A folder `models--OWNER--NAME` of the Hugging Face cache opens as its snapshot.
    """
    path = hub.snapshot(path)
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        from lmjax.interop.gguf import model  # needs an optional package

        return model.load(path, dtype=dtype)
    return folder.load(path, dtype=dtype) if folder.is_model(path) else None


def trained(run_dir: Path, *, checkpoint: str = "newest") -> LoadedRun:
    """Load a checkpoint of a run.

    Args:
        run_dir: Directory of the run.
        checkpoint: `newest`, `best` (the lowest validation loss), or the number of an update.

    Raises:
        UserError: There is no run, or no such checkpoint.
    """
    if checkpoint not in ("newest", "best") and not (checkpoint.isdecimal() and len(checkpoint) <= 18):
        raise UserError(f"--checkpoint {checkpoint[:40]}: give newest, best, or the number of an update")
    if not (run_dir / "config.json").is_file():
        raise UserError(
            f"cannot open {run_dir}: {problem(run_dir)} (give a run, a folder with config.json, or a .gguf file)"
        )
    foreign_keys = weights.json_object(run_dir / "config.json").keys() & _FOREIGN
    if foreign_keys:
        raise UserError(
            f"cannot open {run_dir}: its config.json has '{min(foreign_keys)}' as that of a Hugging Face model, but no "
            "model_type"
        )
    best = saved.best(run_dir) if checkpoint == "best" else None
    return saved.load(run_dir, best[0] if best else int(checkpoint) if checkpoint.isdecimal() else None)


def problem(path: Path) -> str:
    """Say why a path is neither a run nor a model of another library."""
    if not path.exists():
        return "there is no such file or folder" if not path.is_symlink() else str(paths.missing(path))
    if not path.is_dir():
        inside = path.name == "config.json" or path.suffix.lower() == ".safetensors"
        return f"it is a file; give its folder {path.parent}" if inside else "it is a file of another kind"
    try:
        hub.refuse_incomplete(path, ("config.json",))
        models = [entry for entry in sorted(path.iterdir()) if (entry / "config.json").is_file()]
    except (UserError, OSError) as error:
        return str(error)
    if (path / "adapter_config.json").is_file():
        return (
            "it holds an adapter (LoRA), not a complete model; merge it into its base model first, for instance with "
            "merge_and_unload of peft"
        )
    files = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() == ".gguf")
    if files:
        return f"it holds the file {files[0]}, which opens as a model; give the file"
    if models:
        return f"it holds {len(models)} folders with a model, such as {models[0].name}; give one of them"
    return "it is neither a run nor a Hugging Face model"
