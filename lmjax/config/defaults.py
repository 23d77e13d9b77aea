"""Defaults that commands and functions of Python share."""

from collections.abc import Mapping
from typing import Any

#: Settings of a first text: temperature 1 without a limit is poor for small models.
DRAWN: Mapping[str, Any] = {"temperature": 0.8, "top_p": 0.95}
