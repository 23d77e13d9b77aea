"""The files of what an objective takes from its reference."""

import json
from typing import Any

import numpy as np
import pytest

from lmjax.objectives import reference
from lmjax.objectives.reference import ReferenceSamples

TABLE: Any = {
    "train": np.asarray([[-1.5, -2.25], [-3.0, -0.125], [0.0, -7.0]], np.float32),
    "validation": np.asarray([[-4.0, -5.0]], np.float32),
}
COUNTS: Any = {"train": 3, "validation": 1}
SIZES = {"context": 5, "vocab_size": 10}


def test_a_table_is_read_as_it_was_written() -> None:
    table = reference.to_table(reference.from_table(TABLE), COUNTS)
    for side, values in table.items():
        np.testing.assert_array_equal(values, TABLE[side])
    with pytest.raises(ValueError, match="it has 4 pairs, the data have 3"):
        reference.to_table(reference.from_table(TABLE), COUNTS | {"train": 2})


def test_answers_are_read_as_they_were_written() -> None:
    samples = ReferenceSamples([np.asarray([1, 2, 3, 9]), np.asarray([4, 9])], [2, 1])
    assert samples.lengths.tolist() == [2, 1]
    content = reference.from_samples(samples)
    assert [json.loads(line) for line in content.splitlines()] == [
        {"prompt": [1, 2], "answer": [3, 9]},
        {"prompt": [4], "answer": [9]},
    ]
    found = reference.to_samples(content, **SIZES)
    assert [row.tolist() for row in found.rows] == [[1, 2, 3, 9], [4, 9]]
    assert found.prompt_sizes == [2, 1]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[1]",
        '{"prompt":[1]}',
        '{"prompt":[],"answer":[1]}',
        '{"prompt":[1],"answer":[10]}',
        '{"prompt":[1],"answer":[true]}',
        '{"prompt":[1],"answer":[1.0]}',
        '{"prompt":[1],"answer":[-1]}',
        '{"prompt":[1,2,3],"answer":[4,5,6]}',
        "{",
    ],
)
def test_a_file_with_other_lines_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"line 1|has no answer"):
        reference.to_samples(line.encode(), **SIZES)
