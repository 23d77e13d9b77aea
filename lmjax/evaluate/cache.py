"""Answers that are kept as they come, so that an evaluation that was stopped goes on where it was."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from lmjax.evaluate.records import Response
from lmjax.files import cache_folder, locked
from lmjax.generate import LanguageModel
from lmjax.pytrees import digest

FORMAT = 1  # raise it when what is kept, or what it was computed with, changes


class Cache:
    """Responses of one model by what was asked: lines of JSON, added to, never rewritten; a torn last line is left out.

    Without a path nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self._known = path, {}
        if path is not None and path.is_file():
            for line in path.read_bytes().split(b"\n"):
                try:
                    key, value = json.loads(line)
                    self._known[str(key)] = value if isinstance(value, str) else (float(value[0]), bool(value[1]))
                except (ValueError, TypeError, LookupError):
                    continue

    def get(self, key: str) -> Response | None:
        """What was answered to it, if it was asked before."""
        return self._known.get(key)

    def add(self, found: Mapping[str, Response]) -> None:
        """Keeps these answers, at once."""
        self._known |= found
        if self.path is None or not found:
            return
        lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in found.items())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_suffix(".lock"), wait=lambda: None), open(self.path, "ab") as file:
            file.write(b"\n" * (file.tell() > 0) + lines.encode())  # behind a line that was torn


def of_model(lm: LanguageModel) -> Cache:
    """The cache of a model in the user's cache folder: it is known by its parameters, configuration and tokenizer."""
    devices = jax.devices()[0].platform
    parts = FORMAT, repr(lm.model), digest(lm.params), lm.tokenizer.sha256, lm.first, lm.ends, devices, jax.__version__
    return Cache(cache_folder() / "evaluations" / f"{key_of(*parts)[:32]}.jsonl")


def key_of(*parts: Any) -> str:
    """A name for what was asked."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()
