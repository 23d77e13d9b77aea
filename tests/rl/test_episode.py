"""What must not change the numbers of an episode: padding, order of the rows, microbatches, devices."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import ROOT
from tests.rl import episode

SEEDS = st.integers(0, 2**32 - 1)
# float32: sums associate otherwise; the numbers are of the order of 1 to 100.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


@settings(max_examples=10)
@given(SEEDS, st.lists(st.integers(0, episode.PLACES - episode.LONGEST), min_size=6, max_size=6))
def test_side_and_content_of_padding_change_nothing(seed, shifts):
    """Each row has its own number of places before the answer; the content is NaN, infinite or large."""
    arrays = episode.inputs(seed)
    places = (np.arange(episode.PLACES) - np.array(shifts)[:, None]) % episode.PLACES
    shifted = {k: np.take_along_axis(x, places, axis=1) if x.ndim == 2 else x for k, x in arrays.items()}
    rng = np.random.default_rng(seed)
    for name in episode.TOKENS:
        garbage = rng.choice(np.float32([np.nan, np.inf, -np.inf, 3e38, 7]), shifted[name].shape)
        shifted[name] = np.where(shifted["mask"], shifted[name], garbage)
    plain, other = episode.results(arrays), episode.results(shifted)
    for name, array in plain.items():
        expected = np.take_along_axis(np.asarray(array), places, axis=1) if array.ndim == 2 else array
        np.testing.assert_allclose(other[name], expected, err_msg=name, **CLOSE)
        if array.ndim == 2:
            assert not np.any(np.asarray(other[name])[~shifted["mask"]]), name


@pytest.mark.slow
@settings(max_examples=50)
@given(SEEDS, st.booleans(), st.permutations(range(3)), st.permutations(range(3)))
def test_order_of_the_rows_changes_nothing(seed, swap, first, second):
    """The order of groups, and of the rows of a group."""
    arrays = episode.inputs(seed)
    groups = [np.array(first), 3 + np.array(second)]
    order = np.concatenate(groups[::-1] if swap else groups)
    plain, other = episode.results(arrays), episode.results({name: x[order] for name, x in arrays.items()})
    for name, array in plain.items():
        expected = array[order] if name in episode.BY_ROW else array
        np.testing.assert_allclose(other[name], expected, err_msg=name, **CLOSE)


@pytest.mark.slow
@settings(max_examples=50)
@given(SEEDS, st.permutations(range(episode.ROWS)))
def test_microbatches_add_up_to_the_minibatch(seed, order):
    """Sums, weights and gradients of any three pairs of rows."""
    arrays = episode.inputs(seed)
    arrays |= {name: np.asarray(x) for name, x in episode.targets_of(arrays).items() if name in episode.BY_ROW}
    complete = episode.sums_of(arrays)
    pairs = np.reshape(order, (3, 2))
    parts = [episode.sums_of({name: x[pair] for name, x in arrays.items()}) for pair in pairs]
    for name, expected in complete.items():
        if name in episode.BY_ROW:
            joined = np.concatenate([part[name] for part in parts])[np.argsort(pairs.reshape(-1))]
        else:
            joined = sum(part[name] for part in parts)
        np.testing.assert_allclose(joined, expected, err_msg=name, **CLOSE)


@pytest.mark.slow
def test_eight_devices_compute_what_one_does():
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    command = [sys.executable, "-m", "tests.rl.episode"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["devices"] == 8
    assert printed["difference"] < 2e-6  # sums over rows associate otherwise: float32 rounding
