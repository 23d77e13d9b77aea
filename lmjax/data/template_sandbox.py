"""Jinja's sandbox with bounds on the sizes of the values that a template computes."""

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

LONGEST = 1 << 24  # characters or items of a value, with those of the values inside it
ITEMS = 1 << 17  # values inside a value
TOTAL = 1 << 28  # bytes of all values that a rendering computes
_ENTRY = 64  # bytes of an item of a list, at most
BITS = 10_000  # of an integer
WIDTH = 10_000  # largest number that widens a text: the argument of `center`, `indent`, `ljust` and others
_WIDENS = ("center", "ljust", "rjust", "zfill", "expandtabs", "indent", "tojson", "batch", "slice", "wordwrap")


class _Code(CodeGenerator):
    """A code generator whose concatenations call the environment, which checks them."""

    def _measured(self, visit: Callable[..., None], node: Any, frame: Any) -> None:
        self.write("environment.measured(")
        visit(node, frame)
        self.write(")")

    def visit_List(self, node: Any, frame: Any) -> None:
        """Write the code of `[a, b]`."""
        self._measured(super().visit_List, node, frame)

    def visit_Dict(self, node: Any, frame: Any) -> None:
        """Write the code of `{a: b}`."""
        self._measured(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: Any, frame: Any) -> None:
        """Write the code of `(a, b)`, which may be the target of an assignment."""
        if node.ctx == "load":
            self._measured(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: Any, frame: Any) -> None:
        """Write the code of `a[b]` and `a[b:c]`."""
        self._measured(super().visit_Getitem, node, frame)

    def visit_Concat(self, node: Any, frame: Any) -> None:
        """Write the code of `a ~ b`."""
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox that bounds the size of the result of an operation, a filter or a method.

    The limit is `LONGEST` characters or items; jinja2's SecurityError reports a larger result.
    """

    intercepted_binops = frozenset(("+", "*", "**", "%"))
    code_generator_class = _Code

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._produced = 0
        self.globals.pop("lipsum", None)
        for name in self.filters:
            self.filters[name] = checked(name, self.filters[name], self.measured)

    def begin(self) -> None:
        """Begin a new rendering."""
        self._produced = 0

    def measured(self, value: Any) -> Any:
        """Return a value that was computed, after a check of its size.

        A value may hold the same list in many places; its text has all of them.
        """
        is_text = isinstance(value, str | bytes)
        _check(len(value) if is_text else _deep_size(value), "an expression")
        self._produced += len(value) if is_text else _ENTRY * _size(value)
        _check(self._produced, "all expressions together", TOTAL)
        return value

    def concat(self, parts: Any) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the text of a block, such as the one of a macro."""
        texts = list(parts)
        _check(sum(map(len, texts)), "a block")
        return self.measured("".join(texts))

    def concatenated(self, parts: tuple[Any, ...]) -> str:
        """Return the text of `a ~ b`."""
        texts = [str(part) for part in parts]
        _check(sum(map(len, texts)), "~")
        return self.measured("".join(texts))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute a binary operation."""
        integers = isinstance(left, int) and isinstance(right, int)
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        elif integers and operator in ("*", "**"):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            _check(bits, operator, BITS)
        elif operator == "*":
            sizes = [_size(a) * b for a, b in ((left, right), (right, left)) if isinstance(b, int)]
            _check(max(sizes, default=0), operator)
        elif operator == "+":
            _check(_size(left) + _size(right), operator)
        return self.measured(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, *arguments: Any, **named: Any) -> Any:  # pyright: ignore
        """Call a function or method."""
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if name == "join" and len(arguments) == 1 and not hasattr(arguments[0], "__len__"):
            arguments = (list(arguments[0]),)  # to know its size
        if isinstance(owner, str | bytes):
            _check_call(name, owner, *arguments, **named)
        return self.measured(super().call(context, function, *arguments, **named))  # pyright: ignore

    def wrap_str_format(self, value: Any) -> Any:
        """Return the safe form of a method `format` of a text; None for anything else."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(str(value.__self__))
        return wrapped


def checked(name: str, function: Callable[..., Any], measured: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return the filter with a check of its arguments and its result.

    jinja2 may pass a context first.
    """
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)  # with the mark that tells jinja2 to pass a context
    def with_check(*arguments: Any, **named: Any) -> Any:
        if name in ("join", "sum") and len(arguments) > first and not hasattr(arguments[first], "__len__"):
            arguments = (*arguments[:first], list(arguments[first]), *arguments[first + 1 :])  # to know its size
        _check_call(name, *arguments[first:], **named)
        return measured(function(*arguments, **named))

    return with_check


def _check_call(name: str, text: Any, *arguments: Any, **named: Any) -> None:
    """Check the arguments of a filter, or of a method of a text."""
    values = (*arguments, *named.values())
    if name in _WIDENS:
        _check(max((abs(value) for value in values if isinstance(value, int)), default=0), name, WIDTH)
    elif name == "format":
        _check_format(str(text))
    elif name == "sum":
        _check(sum(map(_size, text)) if hasattr(text, "__len__") else 0, name)
    elif name == "translate" and values:
        tables = values[0].values() if isinstance(values[0], dict) else ()
        _check(len(text) * max(map(_size, tables), default=0), name)
    elif name == "replace" and len(values) > 1:
        _check((str(text).count(str(values[0])) + 1) * len(str(values[1])), name)
    elif name == "join":
        items, between = (
            (values[0] if values else (), text) if isinstance(text, str) else (text, "".join(map(str, values)))
        )
        _check(sum(_size(item) + len(between) for item in (items if hasattr(items, "__len__") else ())), name)


def _check_format(text: str) -> None:
    """Refuse a format with a width of five digits, or one that is an argument."""
    if re.search(r"%[^a-zA-Z%]*(?:[0-9]{5}|\*)|[:.][^{}]*(?:[0-9]{5}|\{)", text):
        raise SecurityError("a format with a large width or precision is not allowed")


def _deep_size(value: Any) -> int:
    """Count the characters and items of a value, and of the values inside it each time."""
    size, count, todo = 0, 0, [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str | bytes):
            size += len(item)
        elif isinstance(item, dict):
            todo += [*item, *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            todo += item
        elif isinstance(item, Namespace):
            todo += object.__getattribute__(item, "_Namespace__attrs").values()  # it hides its attributes
        count += 1
        if count + len(todo) > ITEMS or size > LONGEST:
            return LONGEST + 1
    return size + count


def _size(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0


def _check(size: int, what: str, most: int = LONGEST) -> None:
    if size > most:
        raise SecurityError(f"the result of '{what}' may be too large")
