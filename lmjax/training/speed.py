"""The speed of a run, and its share of what the devices can do."""

from collections import deque
from collections.abc import Callable
from math import nan

SPAN = 1.0  # seconds over which a rate is averaged, at least


class Speed:
    """Tokens per second and share of the peak, averaged over at least the last second.

    No share is above 1. A peak that is exceeded was measured while the machine was busy: it is measured once more, and
    raised if it is exceeded still. In the first second, when this cannot be known, the peak bounds the rate.

    Args:
        flops_per_token: FLOPs of a token.
        peak: FLOP/s of all devices together; NaN if unknown.
        measure: Measures the peak again.
    """

    def __init__(self, *, flops_per_token: float, peak: float, measure: Callable[[], float] = lambda: nan) -> None:
        self.peak = peak
        #: Tokens and seconds of everything that was added.
        self.total = (0.0, 0.0)
        self._flops, self._measure, self._measured = flops_per_token, measure, False
        self._window: deque[tuple[float, float]] = deque()
        self._tokens = self._seconds = 0.0

    def add(self, tokens: float, seconds: float) -> tuple[float, float]:
        """Add the tokens of some seconds; return tokens per second and the share of the peak."""
        self.total = (self.total[0] + tokens, self.total[1] + seconds)
        self._window.append((tokens, seconds))
        self._tokens, self._seconds = self._tokens + tokens, self._seconds + seconds
        while self._seconds - self._window[0][1] >= SPAN:
            tokens, seconds = self._window.popleft()
            self._tokens, self._seconds = self._tokens - tokens, self._seconds - seconds
        rate = self._tokens / max(self._seconds, 1e-9)
        if rate * self._flops > self.peak:
            if self._seconds < SPAN:
                rate = self.peak / self._flops
            else:
                self._raise(rate * self._flops)
        return rate, rate * self._flops / self.peak

    def _raise(self, flops: float) -> None:
        """Raise a peak that `flops` FLOP/s exceed."""
        again = nan if self._measured else self._measure()
        self._measured = True
        self.peak = max(flops, again) if again == again else flops
