"""Validation of JSON text by the package jsonschema, in a bounded number of steps."""

from collections.abc import Callable, Iterator
from typing import Any

from lmjax.config import UserError
from lmjax.config.errors import one_line
from lmjax.config.expressions import check_expression
from lmjax.config.json_text import parse_json
from lmjax.system.extras import missing

LONGEST = 4_000  # characters of a text
DEEPEST = 32  # levels of lists and objects inside each other
STEPS = 20_000  # keywords of the schema that are applied to one text
_LATEST = "https://json-schema.org/draft/2020-12/schema"
_UNBOUNDED = 2  # unbounded repetitions of an expression in a schema


class _TooManySteps(Exception):
    """A text needs more than `STEPS` steps."""


class _Steps:
    """Counts the keywords that are applied to one text."""

    def __init__(self) -> None:
        self.count = 0

    def counting(self, keyword: Callable[..., Any]) -> Callable[..., Any]:
        """Return a keyword of jsonschema that is counted."""

        def counted(*arguments: Any) -> Any:
            self.count += 1
            if self.count > STEPS:
                raise _TooManySteps
            return keyword(*arguments)

        return counted


def validator(schema: str, where: str) -> Callable[[str], bool]:
    """Return a function that tells whether a text is JSON that a schema accepts.

    The function never raises an error. It does not accept a text that exceeds a bound of this module, repeats a key in
    an object or has a number that is not finite.

    Args:
        schema: The schema, as JSON text. References must be to parts of it.
        where: The key of the schema, for messages.

    Raises:
        UserError: The schema is invalid or refers to another document, or jsonschema is not installed.
    """
    steps = _Steps()
    checked = _library_validator(parse_json(schema, where), steps, where)

    def accepts(text: str) -> bool:
        try:
            value = parse_json(text, "the answer", largest=LONGEST, deepest=DEEPEST, allow_nan=False, unique_keys=True)
        except UserError:
            return False
        steps.count = 0
        try:
            return checked.is_valid(value)
        except Exception:  # too many steps, too deep, or a number that a keyword cannot compute with
            return False

    return accepts


def _library_validator(tree: Any, steps: _Steps, where: str) -> Any:
    """Return a validator of jsonschema that counts its steps."""
    try:
        import jsonschema
        from jsonschema import validators
        from referencing import Registry, Resource
        from referencing.jsonschema import DRAFT202012
    except ImportError:
        raise missing("a JSON schema", "jsonschema", "rl") from None
    draft = tree.get("$schema", _LATEST) if isinstance(tree, dict) else _LATEST
    nothing: Any = None
    library = validators.validator_for({"$schema": draft}, default=nothing) if isinstance(draft, str) else None
    if library is None:
        raise UserError(f"{where}: $schema = {str(draft)[:100]!r} is no draft of JSON Schema; give {_LATEST}")
    try:
        library.check_schema(tree)
    except (jsonschema.SchemaError, RecursionError) as error:
        raise UserError(f"{where} is not a JSON schema: {one_line(error)[:300]}") from None
    resolver = Registry().resolver_with_root(Resource.from_contents(tree, default_specification=DRAFT202012))
    for reference in _references(tree, where):
        try:
            resolver.lookup(reference)
        except Exception as error:  # of several packages
            raise UserError(f"{where}: the schema has no part {reference[:100]!r}, which it refers to") from error
    keywords = {name: steps.counting(keyword) for name, keyword in library.VALIDATORS.items()}
    # A part with `$schema` would be validated by a validator of the library, which counts nothing.
    plain = {key: value for key, value in tree.items() if key != "$schema"} if isinstance(tree, dict) else tree
    # Without a registry, the library would load the documents that a schema names.
    return validators.extend(library, keywords)(plain, registry=Registry())


def _references(tree: Any, where: str) -> Iterator[str]:
    """Yield the references of a schema; checks its expressions and that it is one document."""
    for part, is_root in _parts(tree):
        if not is_root:
            for key in ("$schema", "$id"):
                if isinstance(part.get(key), str):
                    raise UserError(
                        f"{where}: {key} inside the schema begins another document; write it as a $defs entry"
                    )
        patterns = part.get("patternProperties")
        for pattern in (part.get("pattern"), *(patterns if isinstance(patterns, dict) else ())):
            if isinstance(pattern, str):
                check_expression(pattern, where, unbounded=_UNBOUNDED)
        for key in ("$ref", "$dynamicRef", "$recursiveRef"):
            reference = part.get(key)
            if isinstance(reference, str):
                if not reference.startswith("#"):
                    raise UserError(f"{where}: {key} {reference[:100]!r} names another document; copy it into $defs")
                yield reference


def _parts(tree: Any) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield all objects of a schema, the root first, and whether each is the root."""
    waiting = [tree]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part, part is tree
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
