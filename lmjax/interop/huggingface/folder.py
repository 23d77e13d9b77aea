"""Import and export of model folders of Hugging Face transformers.

    config.json              the architecture                  (lmjax.interop.huggingface.config)
    model.safetensors        the weights, or several such files with model.safetensors.index.json
    tokenizer.json           the tokenizer, or GPT-2's two files, or BERT's vocab.txt
    tokenizer_config.json and the like    settings of the tokenizer    (lmjax.data.tokenizer_settings)
    generation_config.json    the tokens that end a text
    chat_template.jinja       the chat template

All files are read as data: no code of a folder is executed, and pickled weights are an error.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import save_file
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from lmjax import __version__
from lmjax.config import ModelConfig, UserError
from lmjax.config.errors import RunError, one_line
from lmjax.data import tokenizer
from lmjax.data.tokenizer import Tokenizer
from lmjax.inference.language_model import LanguageModel
from lmjax.interop.huggingface import layouts, weights
from lmjax.interop.huggingface.config import model_config, transformers_settings
from lmjax.models import registry
from lmjax.system import json_files, paths
from lmjax.system.files import replacing, write_text

CONFIG, TOKENIZER, GENERATION = "config.json", "tokenizer_config.json", "generation_config.json"
TEMPLATE = "chat_template.jinja"
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
    has_weights = any((path / name).is_file() for name in (weights.WHOLE, weights.INDEX))
    try:
        config = model_config(weights.json_object(path / CONFIG))
        return layouts.own_head(weights.read(path), config) if has_weights else config
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None


def load(path: Path, *, dtype: str = "float32") -> LanguageModel:
    """Load the model in a folder with its tokenizer; stacked layers, float32 weights.

    Args:
        path: The folder.
        dtype: Dtype of the matrix products.

    Raises:
        UserError: A file is missing or malformed, the weights do not match the configuration, or lmjax does not
            support it.
    """
    path = paths.local(path, key="the model")
    config = load_config(path)
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype={dtype} is not one of float32, bfloat16")
    config = dataclasses.replace(config, dtype=dtype)
    stored, asked = weights.read(path), registry.parameters(config)["total"]
    if asked > 2 * stored.size:  # checked before anything of this size is allocated
        raise UserError(f"{path}: config.json describes {asked:,} parameters, the files hold {stored.size:,}")
    known = tokenizer.load_tokenizer(path)
    try:
        params = layouts.from_transformers(stored, config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    generation = _optional(path / GENERATION)
    first = _first(path, known) if config.family != "bert" else None
    stops, eos = _ends(known, generation, _optional(path / CONFIG))
    return LanguageModel(
        model=registry.build(config),
        params=params,
        tokenizer=known,
        name=path.resolve().name,
        first=first,
        stops=stops,
        bos=known.id_of("bos_token"),
        eos=eos,
        generation=generation,
    )


def _first(path: Path, known: Tokenizer) -> int | None:
    """Return the id that the folder's tokenizer prepends to a text."""
    front, _ = _around(known.backend)
    if len(front) > 1:
        tokens = " ".join(known.token(id) for id in front)
        raise UserError(f"{path}: its tokenizer begins a text with {len(front)} tokens ({tokens}); lmjax supports one")
    return next(iter(front), None)


def _ends(known: Tokenizer, generation: dict[str, Any], config: dict[str, Any]) -> tuple[tuple[int, ...], int | None]:
    """Return the ids that end a text, in addition to `end_of_text`, and the EOS.

    The EOS is None if the tokenizer has an end of text. As in transformers, config.json counts only if
    generation_config.json names no id.
    """
    eos_ids = next((ids for s in (generation, config) if (ids := s.get("eos_token_id")) is not None), None)
    named = [id for id in (eos_ids if isinstance(eos_ids, list) else [eos_ids]) if type(id) is int]
    ends = [end for end in named if 0 <= end < known.vocab_size]
    eos = None if "eos_token" in known.named or known.end_of_text is not None else next(iter(ends), None)
    return tuple(sorted(set(ends) - {known.end_of_text})), eos


def _around(backend: Backend) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer adds before and after a text."""
    for text in ("a", "A", "0", "?", *(backend.decode([id], skip_special_tokens=False) for id in range(100))):
        encoding = backend.encode(text)
        places = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
        if places:
            return encoding.ids[: places[0]], encoding.ids[places[-1] + 1 :]
    return [], []


def _optional(path: Path) -> dict[str, Any]:
    return weights.json_object(path) if path.is_file() else {}


# ---- Export -----------------------------------------------------------------------------------------------------


def export_model(language_model: LanguageModel, folder: Path) -> None:
    """Write the model as a folder that transformers loads, with float32 weights.

    The exported model computes the same logits and generates the same text. An earlier export is replaced.

    Raises:
        UserError: No transformers model has these settings, or the folder contains something else.
        RunError: The weights cannot be written; an earlier export is as before.
    """
    config, known, folder = (
        language_model.model.config,
        language_model.tokenizer,
        paths.local(folder, key="the folder of the export"),
    )
    end = known.end_of_text
    ends = tuple(i for i in (end, *language_model.stops) if i is not None)
    begins = language_model.begins
    settings = transformers_settings(config, first=begins, ends=ends) | {"pad_token_id": _pad(language_model)}
    state = layouts.to_transformers(language_model.params, config)
    _make(folder)
    files = {
        CONFIG: settings | {_MARK: f"lmjax {__version__}"},
        TOKENIZER: _tokenizer_config(language_model),
        GENERATION: _generation(language_model, ends),
    }
    with replacing(folder / weights.WHOLE) as partial:  # renamed last: a folder with new weights is complete
        try:
            save_file(state, partial, metadata={"format": "pt"})
        except SafetensorError as error:  # of a write, too
            raise RunError(f"cannot write {folder / weights.WHOLE}: {one_line(error)}") from None
        for name, content in files.items():
            write_text(folder / name, json.dumps(json_files.plain(content), indent=2, allow_nan=False) + "\n")
        write_text(folder / "tokenizer.json", _with_first(language_model).to_str(pretty=True))
        os.chmod(partial, (folder / "tokenizer.json").stat().st_mode & 0o777)  # safetensors writes for its owner only
        _write_template(folder / TEMPLATE, known.config.get("chat_template"))


def _write_template(path: Path, template: Any) -> None:
    """Write the chat template, or remove that of an earlier export.

    Several templates are in tokenizer_config.json only.
    """
    if isinstance(template, str):
        write_text(path, template)
    else:
        path.unlink(missing_ok=True)


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


def _pad(language_model: LanguageModel) -> int | None:
    known = language_model.tokenizer
    return known.pad if known.id_of("pad_token") is None else known.id_of("pad_token")


def _generation(language_model: LanguageModel, ends: tuple[int, ...]) -> dict[str, Any]:
    """That of the opened folder, with the tokens that begin and end a text."""
    opened = dict(language_model.generation)
    eos_ids = opened.get("eos_token_id")
    listed = eos_ids if isinstance(eos_ids, list) else [eos_ids]
    if not all(type(id) is int for id in listed) or set(listed) != set(ends):
        opened["eos_token_id"] = list(ends) or None
    if language_model.begins is not None or "bos_token_id" not in opened:
        opened["bos_token_id"] = language_model.begins
    return opened


def _tokenizer_config(language_model: LanguageModel) -> dict[str, Any]:
    """The settings and special tokens; tokenizer.json defines everything else."""
    known, of_bert = language_model.tokenizer, language_model.model.config.family == "bert"
    ids = {"bos_token": language_model.begins, "eos_token": language_model.end}
    if of_bert:
        ids = {
            "cls_token": known.cls,
            "sep_token": known.sep,
            "mask_token": known.mask,
            "pad_token": known.pad,
            "unk_token": known.unknown,
        }
    defaults = {
        "model_max_length": language_model.model.config.context,
        "model_input_names": ["input_ids", *(["token_type_ids"] if of_bert else []), "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    special = {name: known.token_text(id) for name, id in ids.items() if id is not None and name not in known.named}
    return defaults | dict(known.config) | dict(known.named) | special | {"tokenizer_class": "PreTrainedTokenizerFast"}


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
