"""A trained model by its path: a run, a folder of a Hugging Face model, or a .gguf file."""

from pathlib import Path
from typing import Literal

from lmjax import run as runs
from lmjax.config import CausalConfig, GPTConfig, NNLMConfig, RNNConfig, UserError
from lmjax.generate import LanguageModel
from lmjax.interop import huggingface
from lmjax.run import Trained


def load(
    path: str | Path, *, checkpoint: str = "newest", dtype: Literal["float32", "bfloat16"] = "float32"
) -> LanguageModel:
    """The language model at `path`.

    checkpoint: of a run, as in `trained`. dtype: of the matrix products of a model that is not a run. UserError: there
    is no model, or one of another kind.
    """
    path = Path(path)
    found = foreign(path, dtype=dtype)
    if found is not None:
        return causal(found)
    run = trained(path, checkpoint=checkpoint)
    if not isinstance(run.config.objective, CausalConfig):
        raise UserError(f"{path} is no language model: it was trained for {run.config.objective.family}")
    return LanguageModel(run.model, run.params, run.tokenizer, name=str(path))


def causal(found: LanguageModel) -> LanguageModel:
    """The model itself. UserError: it is none of the next token."""
    config = found.model.config
    if not isinstance(config, GPTConfig | NNLMConfig | RNNConfig):
        raise UserError(f"{found.name} is no language model: it is of the family {config.family}")
    return found


def foreign(path: Path, *, dtype: Literal["float32", "bfloat16"] = "float32") -> LanguageModel | None:
    """The model in a .gguf file or in a folder of Hugging Face's; None: it is neither."""
    if path.suffix == ".gguf":
        from lmjax.interop import gguf  # which needs a package of its own

        return gguf.load(path, dtype=dtype)
    return huggingface.load(path, dtype=dtype) if huggingface.is_model(path) else None


def trained(run_dir: Path, *, checkpoint: str = "newest") -> Trained:
    """A checkpoint of a run: `newest`, `best` (the lowest validation loss), or the number of an update.

    UserError: no run, or no such checkpoint.
    """
    if checkpoint not in ("newest", "best") and not checkpoint.isdecimal():
        raise UserError(f"--checkpoint {checkpoint}: give newest, best, or the number of an update")
    if not (run_dir / "config.json").is_file():
        what = (
            "there is no such file or folder"
            if not run_dir.exists()
            else "it is neither a run nor a Hugging Face model"
        )
        raise UserError(f"cannot open {run_dir}: {what} (give a run, a folder with config.json, or a .gguf file)")
    best = runs.best(run_dir) if checkpoint == "best" else None
    return runs.load(run_dir, best[0] if best else int(checkpoint) if checkpoint.isdecimal() else None)
