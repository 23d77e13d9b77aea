"""Typed access to the settings in a config.json of transformers."""

from dataclasses import dataclass
from typing import Any

from lmjax.config import UserError

_LARGEST = 2**31 - 1  # maximum of a size


@dataclass(frozen=True)
class Settings:
    """Typed access to a config.json; a missing setting, or null, gives the default."""

    #: Content of the file, or of an object in it.
    values: dict[str, Any]
    #: Location for messages.
    where: str = "config.json"

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text."""
        return self._get(name, default, str, "text")

    def flag(self, name: str, default: bool) -> bool:
        """Return a truth value."""
        return self._get(name, default, bool, "true or false")

    def integer(self, name: str, default: int | None = None) -> int:
        """Return a size: a positive integer, or the default."""
        value = self._get(name, default, int, "an integer")
        if not 0 < value <= _LARGEST and not (value == default and self.values.get(name) is None):
            raise UserError(f"{self.where}: '{name}' is {value!r:.40}, which is not a valid size")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a finite number."""
        value = self._get(name, default, int | float, "a number")
        if not abs(value) < 1e38:  # also true for NaN
            raise UserError(f"{self.where}: '{name}' is {value!r:.20}, which is too large or not a number")
        return float(value)

    def must(self, name: str, value: bool | str | float, default: Any) -> None:
        """Check that a setting has the only value that lmjax supports.

        Raises:
            UserError: It has another value.
        """
        actual = self.values.get(name)
        if (default if actual is None else actual) != value:
            raise UserError(f"{self.where}: lmjax computes only {name}={value!r}, the model has {actual!r:.80}")

    def absent(self, name: str, why: str) -> None:
        """Check that a setting is missing, null or empty.

        Raises:
            UserError: It has a value.
        """
        if self.values.get(name):
            raise UserError(f"{self.where}: '{name}' is not supported: {why}")

    def same(self, name: str, alias: str) -> str:
        """Return the name under which a setting with two names is given.

        Raises:
            UserError: Both are given, with different values.
        """
        first, second = self.values.get(name), self.values.get(alias)
        if first is not None and second is not None and first != second:
            raise UserError(
                f"{self.where}: '{name}' is {first!r:.40} but '{alias}' is {second!r:.40}; remove one of them"
            )
        return alias if first is None and second is not None else name

    def _get(self, name: str, default: Any, kind: Any, described: str) -> Any:
        value = self.values.get(name)
        value = default if value is None else value
        if value is None:
            raise UserError(f"{self.where} has no '{name}'")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"{self.where}: '{name}' must be {described}, not {value!r:.80}")
        return value
