"""Defaults that commands and functions of Python share."""

#: Settings of a first text: temperature 1 without a limit is poor for small models.
DRAWN: dict[str, float] = {"temperature": 0.8, "top_p": 0.95}
