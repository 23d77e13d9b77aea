"""Rendering of chat templates: no way out of the sandbox, and bounds on size and time."""

import time
from datetime import datetime
from functools import partial

import pytest

pytest.importorskip("jinja2")

from jinja2.sandbox import ImmutableSandboxedEnvironment

from lmjax.config import UserError
from lmjax.data import template_renderer
from lmjax.data.chat_template import ChatTemplate
from lmjax.data.template_renderer import CLOSE, OPEN, render
from tests.interop.folders import attempt


def written(source: str, *, marked: bool = False) -> str:
    """The text of a chat of one message."""
    messages = [{"role": "system", "content": "Answer."}]
    now = partial(datetime, 2026, 1, 2)
    return render(ChatTemplate(source), messages, prompt=True, now=now, marked=marked)


def test_the_tag_generation_is_marked_on_request_and_has_a_scope_of_its_own() -> None:
    source = "{% set x = 1 %}a{% generation %}{% set x = 2 %}b{{ x }}{% endgeneration %}{{ x }}"
    assert (written(source), written(source, marked=True)) == ("ab21", f"a{OPEN}b2{CLOSE}1")


def test_the_time_is_given() -> None:
    assert written("{{ strftime_now('%d %B %Y') }}") == "02 January 2026"


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
    text, refused = attempt(partial(written, source))
    assert message in refused
    assert not text
    assert "\n" not in refused


def test_a_template_that_loops_for_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_renderer, "SECONDS", 0.3)
    source = "{% set r = range(99999) | list %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}"
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"takes more than 0\.3 s to render"):
        written(source)
    assert time.monotonic() - begun < 5


def test_operations_of_ordinary_size_are_those_of_jinja() -> None:
    source = (
        "{{ 'a' * 3 }}{{ 2 ** 10 }}{{ [1] + [2] }}{{ 7 * 6 }}{{ 'a' ~ 1 ~ none }}{{ '%05.2f' % 1.5 }}"
        "{{ 'a' | center(5) }}"
        "{{ '{:>4}'.format(1) }}{{ '%s' | format('x') }}{{ [1, 2] | join(', ') }}{{ 'aab' | replace('a', 'c') }}"
        "{{ 'x'.join(['a', 'b']) }}{{ 'a\nb' | indent(2) }}{{ {'a': 1} | tojson(indent=2) }}{{ 7 % 4 }}"
    )
    plain = ImmutableSandboxedEnvironment()
    plain.filters["tojson"] = template_renderer.to_json
    assert written(source) == plain.from_string(source).render()
