"""Chats are the texts that transformers makes, against transformers itself."""

import pytest

pytest.importorskip("jinja2")

from lmjax.config import UserError
from lmjax.interop.chat_templates import ChatTemplates
from lmjax.serve.chat_template import render

CHAT = [
    {"role": "system", "content": "Answer."},
    {"role": "user", "content": " Who <b>sings</b>? "},
    {"role": "assistant", "content": "The wren "},
]
CHATML = (
    "{{ bos_token }}{% for message in messages %}\n"
    "  {%- if message.role == 'system' and no_system %}{{ raise_exception('no system message') }}{% endif %}\n"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' }}\n"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PARTS = (
    "{% set ns = namespace(count=0) %}{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}"
    "{% set ns.count = ns.count + 1 %}{{ m | tojson }}{% generation %}{{ ns.count }}{% endgeneration %}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"


@pytest.mark.slow
@pytest.mark.parametrize("template", [CHATML, PARTS, PLAIN])
@pytest.mark.parametrize("count", [2, 3])
def test_a_chat_is_the_text_that_transformers_makes(template: str, count: int) -> None:
    chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    for reply in (True, False):
        if not reply and template is PARTS:  # its last message is JSON, which cannot be continued
            continue
        expected = chat_template_utils.render_jinja_template(
            conversations=[CHAT[:count]],
            chat_template=template,
            add_generation_prompt=reply,
            continue_final_message=not reply,
            bos_token="<s>",
        )[0][0]
        assert render(ChatTemplates({"default": template}, {"bos_token": "<s>"}), CHAT[:count], reply=reply) == expected


def test_the_last_message_stays_open_for_its_continuation() -> None:
    templates = ChatTemplates({"default": PLAIN}, {})
    assert render(templates, CHAT[1:], reply=False) == "user:  Who <b>sings</b>? assistant: The wren "
    assert render(ChatTemplates({"default": CHATML}, {}), CHAT[1:], reply=False).endswith("assistant\nThe wren")


def test_a_template_that_refuses_system_messages_gets_the_others() -> None:
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
    assert render(ChatTemplates({"default": source}, {}), CHAT[:2], reply=True) == "user:  Who <b>sings</b>? "
    with pytest.raises(UserError, match="the chat template cannot be rendered: never"):
        render(ChatTemplates({"default": "{{ raise_exception('never') }}"}, {}), CHAT, reply=True)
