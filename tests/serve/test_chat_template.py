"""Chat templates: rendered as transformers renders them, and without a way out of the sandbox."""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")

from jinja2.sandbox import ImmutableSandboxedEnvironment

from lmjax.config import UserError
from lmjax.serve import chat_template
from lmjax.serve.chat_template import ChatTemplates, _of_gguf, of_path
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
        ("{{ 'a' * 10 ** 9 }}", "'*' may be too large"),
        ("{{ [0] * 10 ** 9 }}", "'*' may be too large"),
        ("{{ 10 ** (10 ** 6) }}", "'**' may be too large"),
        ("{% set x = 'a' * 9999 %}" + "{% set x = x ~ x %}" * 30, "'~' may be too large"),
        ("{% set x = [0] * 9999 %}" + "{% set x = x + x %}" * 30, "may be too large"),
        (
            "{% set n = namespace(l=['a' * 9999]) %}" + "{% set n.l = [n.l, n.l] %}" * 60 + "{{ n.l }}",
            "may be too large",
        ),
        ("{% set a = namespace(x=['a']) %}" + "{% set a = namespace(x=a, y=a) %}" * 60 + "{{ a }}", "may be too large"),
        (
            "{% set n = namespace(a=[1], b=[1]) %}"
            + "{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}" * 60
            + "{{ n.a == n.b }}",
            "may be too large",
        ),
        ("{% set a = 'a' * 9999999 %}{% set x %}" + "{{ a }}" * 99 + "{% endset %}", "'a block' may be too large"),
        ("{% set a = 'a' * 9999999 %}" + "".join(f"{{% set x{n} = a[1:] %}}" for n in range(99)), "all expressions"),
        ("{% set a = ('a ' * 4000000).split() %}", "may be too large"),
        ("{{ 'a'.encode().ljust(10 ** 9) }}", "'ljust' may be too large"),
        ("{{ ('a' * 9999).translate({97: 'b' * 9999}) }}", "'translate' may be too large"),
        ("{{ range(999) | map('string') | join('a' * 999999) }}", "'join' may be too large"),
        ("{{ ('a' * 999999).join(range(999) | map('string')) }}", "'join' may be too large"),
        ("{{ ([[0] * 9999] * 9999) | sum(start=[]) }}", "may be too large"),
        ("{{ lipsum(n=999999) }}", "undefined"),
        ("{{ 'a' | center(10 ** 9) }}", "'center' may be too large"),
        ("{{ 'a'.ljust(10 ** 9) }}", "'ljust' may be too large"),
        ("{{ 'a' | indent(10 ** 9) }}", "'indent' may be too large"),
        ("{{ {} | tojson(indent=10 ** 9) }}", "'tojson' may be too large"),
        ("{{ '%999999999d' % 1 }}", "large width"),
        ("{{ '{:999999999}'.format(1) }}", "large width"),
        ("{{ '%*d' | format(10 ** 9, 1) }}", "large width"),
        ("{% set x = 'a' * 9999 %}{{ x | replace('a', x) }}", "'replace' may be too large"),
        ("{% set x = 'a' * 9999 %}{{ x.replace('a', x) }}", "'replace' may be too large"),
        ("{% set x = 'a' * 9999 %}{{ x | join(x) }}", "'join' may be too large"),
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


def test_a_template_that_loops_for_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    source = "{% set r = range(99999) | list %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}"
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"takes more than 0\.3 s to render"):
        ChatTemplates({"default": source}, {}).render(CHAT[:1], reply=True)
    assert time.monotonic() - begun < 5


def test_operations_of_ordinary_size_are_those_of_jinja() -> None:
    source = (
        "{{ 'a' * 3 }}{{ 2 ** 10 }}{{ [1] + [2] }}{{ 7 * 6 }}{{ 'a' ~ 1 ~ none }}{{ '%05.2f' % 1.5 }}"
        "{{ 'a' | center(5) }}"
        "{{ '{:>4}'.format(1) }}{{ '%s' | format('x') }}{{ [1, 2] | join(', ') }}{{ 'aab' | replace('a', 'c') }}"
        "{{ 'x'.join(['a', 'b']) }}{{ 'a\nb' | indent(2) }}{{ {'a': 1} | tojson(indent=2) }}{{ 7 % 4 }}"
    )
    plain = ImmutableSandboxedEnvironment()
    plain.filters["tojson"] = chat_template._to_json
    assert ChatTemplates({"default": source}, {}).render(CHAT[:1], reply=True) == plain.from_string(source).render()


def test_special_tokens_of_a_gguf_file_have_the_names_of_its_metadata() -> None:
    """A SentencePiece vocabulary has usual ids for the beginning and the end, as in llama.cpp."""
    metadata: dict[str, Any] = {"tokenizer.ggml.tokens": [*"abcdef"], "tokenizer.ggml.model": "llama"}
    metadata |= {"tokenizer.ggml.unknown_token_id": 4, "tokenizer.ggml.padding_token_id": 5}
    assert dict(_of_gguf(metadata).tokens) == {"bos_token": "b", "eos_token": "c", "unk_token": "e", "pad_token": "f"}
    named = metadata | {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.bos_token_id": 0}
    assert dict(_of_gguf(named).tokens) == {"bos_token": "a", "unk_token": "e", "pad_token": "f"}


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
