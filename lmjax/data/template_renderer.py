"""Rendering of chat templates as transformers renders them; needs the package jinja2.

A template is a program in the language of Jinja that a stranger wrote: it runs in Jinja's sandbox, which gives it no
access to files, modules or attributes, and its size, its time and its output are bounded.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols

from lmjax.config import UserError
from lmjax.data.chat_template import LARGEST, ChatTemplate
from lmjax.data.template_sandbox import BoundedEnvironment, checked
from lmjax.system.time_limit import Allowance, limited

#: Characters for private use that mark in a rendered chat where the template's tag `generation` begins and ends.
OPEN, CLOSE = "\U0010fff0", "\U0010fff1"
_LONGEST = 1 << 24  # characters of a rendered chat
SECONDS = 10.0  # to render a chat
_JINJA = (3, 1, 6)  # older versions have known ways out of the sandbox
_RENDERED = Allowance(20.0, 0.1)  # an honest template is compiled and rendered in about 20 ms


def render(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    *,
    prompt: bool,
    now: Callable[[], datetime],
    marked: bool = False,
) -> str:
    """Render a chat.

    Args:
        template: The template.
        messages: The messages, each with a role and a content.
        prompt: Whether the beginning of an answer follows.
        now: The time that a template may write.
        marked: Keep `OPEN` and `CLOSE` around what the template marks as written by the assistant.

    Raises:
        UserError: The template is malformed, or refuses the chat.
    """
    if tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdecimal()) < _JINJA:
        raise UserError(f"chat templates need jinja2 of version 3.1.6, not {jinja2.__version__}: pip install -U jinja2")
    if len(template.source) > LARGEST:
        raise UserError(f"the chat template has more than {LARGEST} characters")
    variables = {**template.tokens, "messages": messages, "add_generation_prompt": prompt}

    def strftime_now(format: str) -> str:
        return now().strftime(format)

    try:
        text = _bounded(template.source, variables | {"strftime_now": strftime_now})
    except UserError:
        raise
    except Exception as error:  # whatever a program in a template may raise
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"the chat template cannot be rendered: {reason}") from None
    return text if marked else text.replace(OPEN, "").replace(CLOSE, "")


def _bounded(source: str, variables: Mapping[str, Any]) -> str:
    parts, size = [], 0
    limit = limited(SECONDS, f"the chat template takes more than {SECONDS:g} s to render; write it without long loops")
    with limit, _RENDERED.count("the chat templates"):
        environment, compiled = _compiled(source)
        environment.begin()
        for part in compiled.generate(tools=None, documents=None, **variables):
            size += len(part)
            if size > _LONGEST:
                raise UserError(f"the chat template writes more than {_LONGEST} characters")
            parts.append(part)
    return "".join(parts)


class _Generation(Extension):
    """The tag `generation`, which marks answers for training."""

    tags: ClassVar[set[str]] = {"generation"}  # pyright: ignore[reportIncompatibleVariableOverride]

    def parse(self, parser: Any) -> Any:
        """Return the content of the tag between `OPEN` and `CLOSE`.

        It has a scope of its own, as in transformers.
        """
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (nodes.Output([nodes.TemplateData(mark)]) for mark in (OPEN, CLOSE))
        return nodes.Scope([begin, *body, end], lineno=line)


@lru_cache(maxsize=8)
def _compiled(source: str) -> tuple[BoundedEnvironment, jinja2.Template]:
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = checked("tojson", to_json, environment.measured)
    environment.globals |= {"raise_exception": _refuse, "dict": _dict, "namespace": _namespace}
    return environment, environment.from_string(source)


class _Namespace(jinja2.utils.Namespace):
    """A namespace whose attributes cannot have names of Python's internals."""

    def __setitem__(self, name: str, value: Any) -> None:
        _check_names([name])
        super().__setitem__(name, value)


def _namespace(*arguments: Any, **named: Any) -> _Namespace:
    _check_names(dict(*arguments, **named))
    return _Namespace(*arguments, **named)


def _check_names(names: Iterable[Any]) -> None:
    for name in names:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot have the attribute {name!r}")


def _dict(*arguments: Any, **named: Any) -> dict[Any, Any]:
    return dict(*arguments, **named)


def to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, **more: Any) -> str:
    """Write a value as JSON, as the filter `tojson` of transformers."""
    sort_keys = bool(more.get("sort_keys", False))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))
