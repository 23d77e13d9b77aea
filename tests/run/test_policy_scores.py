"""Scores of a policy: their errors; the greedy ones are checked with a complete run in `test_policy_progress`."""

import math
import statistics

import numpy as np

from lmjax.run.policy_scores import standard_error


def test_the_standard_error_is_that_of_independent_prompts() -> None:
    values = [0.0, 0.25, 1.0, 0.5]
    assert math.isclose(standard_error(np.asarray(values)), statistics.stdev(values) / 2)
    assert math.isnan(standard_error(np.asarray([1.0])))
