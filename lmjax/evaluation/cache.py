"""A cache of model responses, written during an evaluation so that it can resume."""

import hashlib
import json
from collections.abc import Mapping
from math import isfinite, isnan
from pathlib import Path
from typing import Any

import jax

from lmjax.evaluation.results import Response
from lmjax.inference.language_model import LanguageModel
from lmjax.pytrees import digest
from lmjax.system.files import cache_folder, locked
from lmjax.system.json_files import to_json

FORMAT = 2  # increase it when the format of the entries or their computation changes


class Cache:
    """Responses of one model by the key of the request, in an append-only file of JSON lines.

    Each line ends with a hash of it. An incomplete or damaged line is ignored, and so are log-probabilities that are
    not numbers. Without a path nothing is stored on disk.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self._known = path, {}
        if path is not None and path.is_file():
            for line in path.read_bytes().split(b"\n"):
                try:
                    key, value, check = json.loads(line)
                    if check != _check(key, value):
                        continue
                    response = value if isinstance(value, str) else (float(value[0]), bool(value[1]))
                except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
                    continue
                if isinstance(response, str) or not isnan(response[0]):
                    self._known[str(key)] = response

    def get(self, key: str) -> Response | None:
        """The stored response to a request, or None."""
        return self._known.get(key)

    def add(self, responses: Mapping[str, Response]) -> None:
        """Store responses and append them to the file."""
        self._known |= responses
        if self.path is None or not responses:
            return
        lines = "".join(_line(key, _plain(response)) for key, response in responses.items())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.path.with_suffix(".lock"), wait=lambda: None), open(self.path, "ab") as file:
                file.write(b"\n" * (file.tell() > 0) + lines.encode())  # ends an incomplete last line
        except OSError as error:
            error.filename = error.filename or str(self.path)  # an error of a write names no file
            raise


def _line(key: str, value: Any) -> str:
    return to_json([key, value, _check(key, value)]) + "\n"


def _check(key: Any, value: Any) -> str:
    """Hash of an entry, by which a flipped bit is noticed."""
    return hashlib.sha256(json.dumps([key, value]).encode()).hexdigest()[:16]


def _plain(response: Response) -> Any:
    """A response as JSON; the logarithm of probability 0 is text, which `float` reads."""
    return response if isinstance(response, str) or isfinite(response[0]) else [str(response[0]), response[1]]


def of_model(lm: LanguageModel) -> Cache:
    """The cache of a model in the user's cache folder.

    The file name is a hash of the model's parameters, configuration and tokenizer.
    """
    devices = jax.devices()[0].platform
    parts = FORMAT, repr(lm.model), digest(lm.params), lm.tokenizer.sha256, lm.first, lm.ends, devices, jax.__version__
    return Cache(cache_folder() / "evaluations" / f"{key_of(*parts)[:32]}.jsonl")


def key_of(*parts: Any) -> str:
    """The key of a request: a hash of its parts."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()
