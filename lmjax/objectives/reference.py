"""Log-probabilities of answers under a reference, kept in a file and verified by a hash.

They are computed once, before the first update. The file has the float32 numbers (pairs, 2) of all pairs of the
training split, then those of the validation split. Pairs that are not used have 0.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lmjax.config import UserError
from lmjax.config.regular_files import read_regular
from lmjax.data.sources.tables import SIDES, Side
from lmjax.system.files import write_bytes

NAME = "reference_logprobs.bin"  # in the directory of a run

Table = Mapping[Side, np.ndarray]


def digest(table: Table) -> str:
    """Return the sha256 of the file of a table."""
    return hashlib.sha256(_content(table)).hexdigest()


def write(path: Path, table: Table) -> str:
    """Write a table, and return the sha256 of the file."""
    write_bytes(path, _content(table))
    return digest(table)


def read(path: Path, *, sha256: str, counts: Mapping[Side, int]) -> dict[Side, np.ndarray]:
    """Read a table.

    Args:
        path: The file.
        sha256: Its hash, from the journal of the run.
        counts: Number of pairs of each side.

    Raises:
        UserError: The file is missing, or is not that of the run.
    """
    try:
        content = read_regular(path)
    except OSError as error:
        raise UserError(
            f"cannot read '{path}' ({error.strerror}), the log-probabilities of the reference; bring it back as it "
            "was, or start a new run"
        ) from None
    size = sum(8 * counts[side] for side in SIDES)
    if len(content) != size or hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(
            f"'{path}' was damaged or edited: it is not what the journal of the run records; bring it back as it was, "
            "or start a new run"
        )
    values = np.frombuffer(content, "<f4").reshape(-1, 2)
    return {"train": values[: counts["train"]], "validation": values[counts["train"] :]}


def _content(table: Table) -> bytes:
    return b"".join(np.ascontiguousarray(table[side], "<f4").tobytes() for side in SIDES)
