"""Import and export of model folders of Hugging Face transformers.

    config.json              the architecture                  (lmjax.interop.huggingface.config)
    model.safetensors        the weights, or several such files with model.safetensors.index.json
    tokenizer.json           the tokenizer, or GPT-2's two files, or BERT's vocab.txt
    tokenizer_config.json, generation_config.json    read only for the tokens that begin and end a text

All files are read as data: no code of a folder is executed, and pickled weights are an error.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from lmjax import __version__
from lmjax.config import ModelConfig, UserError
from lmjax.data import tokenizer
from lmjax.data.tokenizer import Tokenizer
from lmjax.inference.language_model import LanguageModel
from lmjax.interop.huggingface import layouts, weights
from lmjax.interop.huggingface.config import model_config, transformers_settings
from lmjax.models import registry
from lmjax.system.files import replacing, write_text

CONFIG, TOKENIZER, GENERATION = "config.json", "tokenizer_config.json", "generation_config.json"
_MARK = "exported_by"  # key in the config.json of lmjax's exports


def is_model(path: Path) -> bool:
    """Whether `path` is a folder with the config.json of a transformers model, not of a run."""
    return (path / CONFIG).is_file() and "model_type" in weights.json_object(path / CONFIG)


# ---- Import -----------------------------------------------------------------------------------------------------


def load_config(path: Path) -> ModelConfig:
    """Read the configuration of the model in a folder.

    Raises:
        UserError: There is no configuration, or lmjax does not support it.
    """
    if not (path / CONFIG).is_file():
        raise UserError(f"{path} is not a Hugging Face model: it has no {CONFIG}")
    try:
        return model_config(weights.json_object(path / CONFIG))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def load(path: Path, *, dtype: str = "float32") -> LanguageModel:
    """Load the model in a folder with its tokenizer; stacked layers, float32 weights.

    Args:
        path: The folder.
        dtype: Dtype of the matrix products.

    Raises:
        UserError: A file is missing or malformed, the weights do not match the configuration, or lmjax does not
            support it.
    """
    path = Path(path).expanduser()
    config = load_config(path)
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype={dtype} is not one of float32, bfloat16")
    config = dataclasses.replace(config, dtype=dtype)
    stored, asked = weights.read(path), registry.parameters(config)["total"]
    if asked > 2 * stored.size:  # checked before anything of this size is allocated
        raise UserError(f"{path}: config.json describes {asked:,} parameters, the files hold {stored.size:,}")
    known = tokenizer.load_tokenizer(path)
    if known.vocab_size > config.vocab_size:
        raise UserError(f"{path}: its tokenizer has {known.vocab_size} entries, its model only {config.vocab_size}")
    try:
        params = layouts.from_transformers(stored, config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    first, stops = _ends(path, known)
    return LanguageModel(registry.build(config), params, known, path.resolve().name, first, stops)


def _ends(path: Path, known: Tokenizer) -> tuple[int | None, tuple[int, ...]]:
    """The id that the folder's tokenizer prepends to a text, and the ids that end a text."""
    spoken = _optional(path / TOKENIZER)
    first = next(iter(_around(known.backend)[0]), None)
    if isinstance(spoken.get("add_bos_token"), bool):  # overrides the post-processor in transformers, too
        first = _token(spoken, "bos_token", known) if spoken["add_bos_token"] else None
    ends: list[Any] = [_token(spoken, "eos_token", known)]
    for file in (GENERATION, CONFIG):
        eos_ids = _optional(path / file).get("eos_token_id")
        ends += eos_ids if isinstance(eos_ids, list) else [eos_ids]
    stops = {end for end in ends if type(end) is int and 0 <= end < known.vocab_size and end != known.end_of_text}
    return first, tuple(sorted(stops))


def _around(backend: Backend) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer adds before and after a text."""
    encoding = backend.encode("a")
    places = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    return (encoding.ids[: places[0]], encoding.ids[places[-1] + 1 :]) if places else ([], [])


def _optional(path: Path) -> dict[str, Any]:
    return weights.json_object(path) if path.is_file() else {}


def _token(spoken: dict[str, Any], name: str, known: Tokenizer) -> int | None:
    """The id of a token in a tokenizer_config.json, given as text or as an object."""
    token = spoken.get(name)
    text = token.get("content") if isinstance(token, dict) else token
    return known.backend.token_to_id(text) if isinstance(text, str) else None


# ---- Export -----------------------------------------------------------------------------------------------------


def export_model(language_model: LanguageModel, folder: Path) -> None:
    """Write the model as a folder that transformers loads, with float32 weights.

    The exported model computes the same logits and generates the same text. An earlier export is replaced.

    Raises:
        UserError: No transformers model has these settings, or the folder contains something else.
    """
    config, known, folder = language_model.model.config, language_model.tokenizer, Path(folder).expanduser()
    end = known.end_of_text
    ends = tuple(i for i in (end, *language_model.stops) if i is not None)
    settings = transformers_settings(config, first=language_model.first, ends=ends)
    state = layouts.to_transformers(language_model.params, config)
    _make(folder)
    files = {
        CONFIG: settings | {_MARK: f"lmjax {__version__}"},
        TOKENIZER: _spoken(language_model),
        GENERATION: {"bos_token_id": language_model.first, "eos_token_id": list(ends) or None},
    }
    with replacing(folder / weights.WHOLE) as partial:  # renamed last: a folder with new weights is complete
        save_file(state, partial, metadata={"format": "pt"})
        for name, content in files.items():
            write_text(folder / name, json.dumps(content, indent=2) + "\n")
        write_text(folder / "tokenizer.json", _with_first(language_model).to_str(pretty=True))


def _make(folder: Path) -> None:
    """Create the folder; a UserError if it contains anything but an earlier export."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = [path.name for path in folder.iterdir() if path.suffix != ".partial"]
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another place") from None
    if content and not ((folder / CONFIG).is_file() and _MARK in weights.json_object(folder / CONFIG)):
        raise UserError(
            f"{folder} is not empty and not an earlier export (it has {min(content)}); choose another place"
        )


def _spoken(language_model: LanguageModel) -> dict[str, Any]:
    """The tokenizer_config.json: the special tokens; tokenizer.json defines everything else."""
    known, of_bert = language_model.tokenizer, language_model.model.config.family == "bert"
    ids = {"bos_token": language_model.first, "eos_token": known.end_of_text}
    if of_bert:
        ids = {
            "cls_token": known.cls,
            "sep_token": known.sep,
            "mask_token": known.mask,
            "pad_token": known.pad,
            "unk_token": known.unknown,
        }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": language_model.model.config.context,
        "model_input_names": ["input_ids", *(["token_type_ids"] if of_bert else []), "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **{name: known.token_text(i) for name, i in ids.items() if i is not None},
    }


def _with_first(language_model: LanguageModel) -> Backend:
    """The tokenizer with a post-processor for the first token, or BERT's [CLS] and [SEP]."""
    known, first, last = language_model.tokenizer, language_model.first, None
    if language_model.model.config.family == "bert":
        first, last = known.cls, known.sep
    backend = Backend.from_str(known.json)
    front, back = ([] if i is None else [known.token_text(i)] for i in (first, last))
    if _around(backend) != ([first] * len(front), [last] * len(back)):
        backend.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single=[*front, "$A", *back],
            pair=[*front, "$A", *back, "$B:1", *(f"{name}:1" for name in back)],
            special_tokens=[(known.token_text(i), i) for i in (first, last) if i is not None],
        )
    return backend
