"""A learning-rate shape: constant, then 1 - sqrt over the last part of the run (Haegele et al. 2024).

python train.py quickstart 'extensions=[examples/sqrt_decay.py]' schedule.shape=sqrt_decay schedule.decay=0.2
"""

import numpy as np

import lmjax
from lmjax.config import ScheduleConfig


def sqrt_decay(progress: np.ndarray, warmup: float, schedule: ScheduleConfig) -> np.ndarray:
    """The share of the peak at each update, from the share of the run at its end."""
    spent = np.clip((progress - (1 - schedule.decay)) / schedule.decay, 0, 1)
    return 1 - (1 - schedule.final) * np.sqrt(spent)


lmjax.register_schedule("sqrt_decay", sqrt_decay)
