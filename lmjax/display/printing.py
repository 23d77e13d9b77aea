"""Switch standard output off."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def printing(shown: bool) -> Iterator[None]:
    """Print nothing in the body unless `shown`; errors are raised as always."""
    if shown:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield
