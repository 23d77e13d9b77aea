"""The picture of a policy's training shows its series."""

import numpy as np
import pytest

from lmjax.rl.policy_pictures import figure


@pytest.mark.slow
def test_the_panels_show_reward_distance_and_entropy() -> None:
    series = {"update": [1, 2, 3], "reward": [0.1, 0.2, 0.4], "kl": [-1e-9, 1.0, 4.0], "entropy": [2.0, 1.5, 1.0]}
    distance, reward, kl, entropy = figure(series, {"update": [0, 3], "reward": [0.1, 0.35]}).axes
    np.testing.assert_allclose(distance.collections[0].get_offsets(), [[0, 0.1], [1, 0.2], [2, 0.4]])
    for panel, name in ((reward, "reward"), (kl, "kl"), (entropy, "entropy")):
        np.testing.assert_array_equal(panel.lines[0].get_ydata(), series[name])
        np.testing.assert_array_equal(panel.lines[0].get_xdata(), series["update"])
    np.testing.assert_array_equal(reward.lines[-1].get_xydata(), [[0, 0.1], [3, 0.35]])
