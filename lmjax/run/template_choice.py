"""The chat template of a fine-tuning: that of the model that it starts from."""

from pathlib import Path

from lmjax.config import UserError
from lmjax.data import chat_template
from lmjax.data.chat_tokens import ChatTokens, completed
from lmjax.data.tokenizer import Tokenizer, load_tokenizer
from lmjax.interop import chat_templates
from lmjax.interop.chat_templates import ChatTemplates
from lmjax.interop.huggingface import folder
from lmjax.system.files import cache_folder, write_text


def adopted(source: Path, path: Path, choice: str) -> Path:
    """Return the path of the tokenizer that writes the conversations of a fine-tuning.

    A tokenizer with another chat template than the one at `path` is written to the cache.

    Args:
        source: The model.
        path: Its tokenizer.
        choice: `data.template`.

    Raises:
        UserError: A chat template cannot be read, or the model has several and none is the default.
    """
    known = load_tokenizer(path)
    is_foreign = source.suffix.lower() == ".gguf" or folder.is_model(source)
    own = chat_templates.of_path(source) if is_foreign else ChatTemplates({}, known.named)
    if choice == chat_template.IDS:
        result = chat_template.with_template(known, None)
    elif choice:
        result = chat_template.chosen(known, choice, own.tokens or None)
    else:
        result = _own(known, own)
    if result is known:
        return path
    place = cache_folder() / "tokenizers" / f"{result.sha256}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    write_text(place, result.json)
    return place


def _own(known: Tokenizer, own: ChatTemplates) -> Tokenizer:
    """Return the tokenizer with the chat template in the files of its model.

    That of a run is recorded already.
    """
    if not own.templates:
        return known
    if "default" not in own.templates:
        raise UserError(
            f"the model has several chat templates ({', '.join(sorted(own.templates))}), and none is the default; "
            "choose one with data.template=FILE.jinja, or mark turns by control tokens with data.template=ids"
        )
    template = own.choose()
    if chat_template.recorded(known) is None and template.source == _by_ids(known):
        return known  # an export of a fine-tuned run: its control tokens need no template
    return chat_template.with_template(known, template)


def _by_ids(known: Tokenizer) -> str | None:
    """Return the template of the tokenizer's control tokens; None: it lacks them."""
    return ChatTokens(known).template if completed(known) is known else None
