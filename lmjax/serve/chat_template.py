"""Chats as text by the chat templates of a model, for the evaluation harness."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from lmjax.config import UserError
from lmjax.data import template_renderer
from lmjax.interop.chat_templates import ChatTemplates

_log = logging.getLogger(__name__)

_OPEN = "CONTINUE_FINAL_MESSAGE_TAG "  # marks the end of a message that the model continues


def render(
    templates: ChatTemplates, messages: Sequence[Mapping[str, Any]], *, reply: bool, name: str | None = None
) -> str:
    """Render a chat as transformers does.

    Args:
        templates: The templates of the model.
        messages: The messages, each with a role and a content.
        reply: Whether the beginning of a reply follows; otherwise the last message stays open.
        name: Name of the template.

    Raises:
        UserError: The template is malformed, or refuses the chat.
    """
    template = templates.choose(name)
    chat = [{key: value for key, value in message.items() if value is not None} for message in messages]
    last = str(chat[-1].get("content", "")) if chat else ""
    if not reply and chat:
        chat[-1]["content"] = last + _OPEN
    try:
        text = template_renderer.render(template, chat, prompt=reply, now=datetime.now)
    except UserError as error:
        others = [message for message in messages if message.get("role") != "system"]
        if len(others) == len(messages):
            raise
        _log.warning("%s; the system message is left out", error)
        return render(templates, others, reply=reply, name=name)  # as the harness does for Hugging Face models
    return text if reply or not chat else _cut(text, last)


def _cut(text: str, last: str) -> str:
    """The text up to the end of the open last message."""
    if _OPEN.strip() not in text or last.strip() not in text:
        raise UserError("the chat template does not contain the last message, so that it cannot be continued")
    place = text.rindex(_OPEN.strip())
    spaced = text[place : place + len(_OPEN)] == _OPEN  # otherwise the template strips the end of messages
    return text[:place] if spaced else text[:place].rstrip()
