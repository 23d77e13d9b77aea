"""Chat templates: rendered as transformers renders them, and without a way out of the sandbox."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")

from lmjax.config import UserError
from lmjax.serve.chat_template import ChatTemplates, of_path
from tests.interop.folders import attempt

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
        assert ChatTemplates({"default": template}, {"bos_token": "<s>"}).render(CHAT[:count], reply=reply) == expected


def test_the_last_message_stays_open_for_its_continuation() -> None:
    templates = ChatTemplates({"default": PLAIN}, {})
    assert templates.render(CHAT[1:], reply=False) == "user:  Who <b>sings</b>? assistant: The wren "
    assert ChatTemplates({"default": CHATML}, {}).render(CHAT[1:], reply=False).endswith("assistant\nThe wren")


def test_a_template_that_refuses_system_messages_gets_the_others() -> None:
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
    assert ChatTemplates({"default": source}, {}).render(CHAT[:2], reply=True) == "user:  Who <b>sings</b>? "
    with pytest.raises(UserError, match="the chat template cannot be rendered: never"):
        ChatTemplates({"default": "{{ raise_exception('never') }}"}, {}).render(CHAT, reply=True)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ namespace(__init__=1) }}", ""),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", ""),
        ("{{ dict.__globals__ }}", ""),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ cycler.__init__.__globals__ }}", ""),
        ("{% for i in range(10 ** 9) %}a{% endfor %}", "Range too big"),
        ("{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}", "writes more than"),
        ("{% if %}", "Expected an expression"),
        ("x" * (1 << 20) + "y", "has more than 1048576 characters"),
    ],
)
def test_hostile_and_malformed_templates_are_one_line(source: str, message: str) -> None:
    """Without a message: an error of any kind, or no text."""
    text, refused = attempt(partial(ChatTemplates({"default": source}, {}).render, CHAT[:1], reply=True))
    assert message in refused
    assert not text
    assert "\n" not in refused


def test_templates_are_found_where_transformers_looks(tmp_path: Path) -> None:
    tokens: dict[str, Any] = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}

    def read(**settings: Any) -> ChatTemplates:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokens | settings))
        return of_path(tmp_path)

    assert dict(read().tokens) == {"bos_token": "<s>", "eos_token": "</s>"}
    with pytest.raises(UserError, match="the model has no chat template"):
        read().choose()
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    assert (read(chat_template=named).choose(), read(chat_template=named).choose("tool_use")) == ("a", "b")
    (tmp_path / "chat_template.jinja").write_text("c")
    assert read(chat_template="a").choose() == "c"
    with pytest.raises(UserError, match="the model has no chat template 'rag'; it has default"):
        read(chat_template="a").choose("rag")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("d")
    assert read().choose("rag") == "d"
