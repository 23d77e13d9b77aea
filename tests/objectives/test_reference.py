"""The file of the log-probabilities of a reference."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmjax.config import UserError
from lmjax.objectives import reference

TABLE: Any = {
    "train": np.asarray([[-1.5, -2.25], [-3.0, -0.125], [0.0, -7.0]], np.float32),
    "validation": np.asarray([[-4.0, -5.0]], np.float32),
}
COUNTS: Any = {"train": 3, "validation": 1}


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / reference.NAME
    sha256 = reference.write(path, TABLE)
    assert sha256 == reference.digest(TABLE) == hashlib.sha256(path.read_bytes()).hexdigest()
    table = reference.read(path, sha256=sha256, counts=COUNTS)
    for side, values in table.items():
        np.testing.assert_array_equal(values, TABLE[side])


@pytest.mark.parametrize("change", ["flip", "cut", "counts", "missing"])
def test_another_file_is_refused(tmp_path: Path, change: str) -> None:
    path, counts = tmp_path / reference.NAME, COUNTS
    sha256 = reference.write(path, TABLE)
    content = bytearray(path.read_bytes())
    if change == "flip":
        content[5] ^= 1
    elif change == "cut":
        del content[-8:]
    elif change == "counts":
        counts = {"train": 2, "validation": 1}
    path.write_bytes(content)
    if change == "missing":
        path.unlink()
    with pytest.raises(UserError, match="cannot read" if change == "missing" else "damaged or edited"):
        reference.read(path, sha256=sha256, counts=counts)
