"""Health of reinforcement learning: findings from measured series, and a verdict.

A series is a list of numbers, one for each measurement, with the name of a measure of `measures`. Three further names
have a meaning:

- `update`: number of the update of each measurement.
- `reward`: what the policy is trained on.
- `probe`: an independent measurement of the same quality: the true reward where it is known, or a second reward model.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import Literal

from lmjax.rl.measures import ADVICE, LIMITS, POLICY, Band, Measure, Word

Series = Mapping[str, Sequence[float]]
Status = Literal["healthy", "watch", "alarm"]


@dataclass(frozen=True)
class Finding:
    """The state of one measure."""

    measure: Measure
    value: float
    status: Status

    def __str__(self) -> str:
        """Return one line, with the advice unless the value is healthy."""
        unit = f" {self.measure.unit}" if self.measure.unit else ""
        text = f"{self.measure.title}: {self.value:.3g}{unit} (healthy: {_shown(self.measure.healthy)})"
        return text if self.status == "healthy" else f"{text}; {self.measure.advice}"


@dataclass(frozen=True)
class Verdict:
    """The state of a run in one word."""

    word: Word
    #: What the verdict follows from, a sentence each.
    evidence: tuple[str, ...]
    #: What to try.
    advice: tuple[str, ...]
    #: All measures.
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.word}: {'; '.join(self.evidence)}"


@dataclass(frozen=True)
class Trend:
    """The change of a series from its first to its last third."""

    start: float
    end: float
    #: Standard error of the difference, from the scatter around a smooth curve.
    error: float

    @property
    def rises(self) -> bool:
        """Whether the series rises by more than its scatter explains."""
        return self.end - self.start > LIMITS.deviations * self.error

    @property
    def falls(self) -> bool:
        """Whether the series falls by more than its scatter explains."""
        return self.start - self.end > LIMITS.deviations * self.error


def verdict(
    series: Series,
    *,
    probes: Series | None = None,
    progress: float = 1.0,
    table: Mapping[str, Measure] = POLICY,
) -> Verdict:
    """Judge a run from its series.

    The verdict is the first of these that has evidence:

    - broken: a value is impossible, such as a ratio other than 1 before the first step.
    - hacking: the reward rises while the probe falls, or while length or KL divergence leave their bands.
    - collapsed: entropy or the share of distinct answers is lost, or the reward falls.
    - stalled: the reward does not rise.
    - learning: the reward rises.

    With too few measurements of the reward, or before a fifth of the run if the reward does not rise, the run is
    undecided unless it is broken or collapsed.

    Args:
        series: The measurements; all are optional.
        probes: Measurements of `update`, `reward` and `probe` at other updates, such as those of the evaluations; None:
            those of `series`.
        progress: Share of the run that is done.
        table: The measures.
    """
    found = tuple(findings(series, table))
    alarms = {finding.measure.name: finding for finding in found if finding.status == "alarm"}
    reward = trend(series.get("reward", ()))
    evidence = tuple(_impossible(series, table))
    if evidence:
        return _verdict("broken", evidence, found)
    collapse = tuple(_collapse(reward, alarms))
    probes = series if probes is None else probes
    evidence = tuple(_hacking(probes, reward, alarms))
    if evidence:
        return _verdict("hacking", (*evidence, *collapse), found)
    if collapse:
        return _verdict("collapsed", collapse, found)
    if reward is None:
        return _verdict("undecided", (f"fewer than {LIMITS.least} measurements of the reward",), found)
    change = f"the reward went from {reward.start:.3g} to {reward.end:.3g} (standard error {reward.error:.2g})"
    if reward.rises:
        return _verdict("learning", (change, *_further(series, probes)), found)
    if progress < LIMITS.progress:
        return _verdict("undecided", (change, f"{progress:.0%} of the run is done"), found)
    return _verdict("stalled", (change, *_reasons(series, reward, alarms)), found)


def findings(series: Series, table: Mapping[str, Measure] = POLICY) -> Iterator[Finding]:
    """Yield a finding for each measure of a table that has a series.

    The value is the mean of the last fifth of the measurements; that of a measure that has impossible values is the
    worst of all. Measurements that are not finite are left out.
    """
    count = max((len(values) for values in series.values()), default=0)
    update = max(series.get("update", ()), default=count - 1)
    for name, measure in table.items():
        values = [value for value in series.get(name, ()) if isfinite(value)]
        if not values or update < measure.after:
            continue
        recent = statistics.mean(values[-max(1, len(values) // 5) :])
        if measure.relative:
            start = statistics.mean(values[: max(1, len(values) // 10)])
            if start <= 0:
                continue
            recent /= start
        elif measure.possible[1] < inf:
            recent = max(values)
        elif measure.possible[0] > -inf and min(values) < measure.possible[0]:
            recent = min(values)
        yield judge(measure, recent)


def judge(measure: Measure, value: float) -> Finding:
    """Compare a value with the bands of a measure; NaN is an alarm."""
    if _inside(value, measure.healthy):
        return Finding(measure, value, "healthy")
    return Finding(measure, value, "watch" if _inside(value, measure.tolerable) else "alarm")


def trend(values: Sequence[float]) -> Trend | None:
    """Return the change of a series; None if it has too few measurements."""
    values = [value for value in values if isfinite(value)]
    if len(values) < LIMITS.least:
        return None
    third = len(values) // 3
    start, end = statistics.mean(values[:third]), statistics.mean(values[-third:])
    return Trend(start, end, _scatter(values) * sqrt(2 / third))


def _scatter(values: Sequence[float]) -> float:
    """The standard deviation around a smooth curve.

    Second differences of noise have six times its variance.
    """
    seconds = [a - 2 * b + c for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return sqrt(statistics.mean(second**2 for second in seconds) / 6)


def _verdict(word: Word, evidence: Sequence[str], found: tuple[Finding, ...]) -> Verdict:
    return Verdict(word, tuple(evidence), ADVICE[word], found)


# ---- Evidence -----------------------------------------------------------------------------------------------------


def _impossible(series: Series, table: Mapping[str, Measure]) -> Iterator[str]:
    """Yield what cannot be in a correct program."""
    for name, values in series.items():
        places = [place for place, value in enumerate(values) if not isfinite(value)]
        if places:
            yield f"{name} is {values[places[0]]} at {_at(series, places[0])}"
    for name, measure in table.items():
        for place, value in enumerate(series.get(name, ())):
            if isfinite(value) and not _inside(value, measure.possible):
                yield (
                    f"{measure.title} is {value:.3g} at {_at(series, place)}, possible: {_shown(measure.possible)}; "
                    f"{measure.advice}"
                )
                break


def _collapse(reward: Trend | None, alarms: Mapping[str, Finding]) -> Iterator[str]:
    """Yield what shows that the policy lost its answers."""
    for name in ("entropy", "distinct"):
        if name in alarms and alarms[name].value < alarms[name].measure.tolerable[0]:
            yield f"{alarms[name].measure.title} is {alarms[name].value:.3g}"
    if reward is not None and reward.falls:
        fall = reward.start - reward.end
        if fall > max(LIMITS.reward_drop * abs(reward.start), LIMITS.reward_fall):
            yield f"the reward fell from {reward.start:.3g} to {reward.end:.3g}"


def _hacking(probes: Series, reward: Trend | None, alarms: Mapping[str, Finding]) -> Iterator[str]:
    """Yield what shows that the reward rises and quality does not."""
    if reward is None or not reward.rises:
        return
    yield from _probe_falls(probes)
    for name in ("length", "kl"):
        if name in alarms and alarms[name].value > alarms[name].measure.tolerable[1]:
            yield f"the reward rises, and {alarms[name].measure.title} is {alarms[name].value:.3g}"


def _probe_falls(series: Series) -> Iterator[str]:
    """Compare the best and the last means of three probes with the rewards at the same places."""
    pairs = [
        pair
        for pair in zip(series.get("reward", ()), series.get("probe", ()), strict=False)
        if all(map(isfinite, pair))
    ]
    if len(pairs) < LIMITS.least:
        return
    rewards, probes = (_means_of_three(values) for values in zip(*pairs, strict=True))
    best = max(range(len(probes)), key=lambda place: probes[place])
    drop, rise = probes[best] - probes[-1], probes[best] - probes[0]
    scatter = _scatter([probe for _, probe in pairs]) * sqrt(2 / 3)
    reward_scatter = _scatter([value for value, _ in pairs]) * sqrt(2 / 3)
    falls = drop > LIMITS.deviations * scatter and drop > LIMITS.probe_drop * rise
    if falls and rewards[-1] >= rewards[best] - LIMITS.deviations * reward_scatter:
        yield (
            f"the probe fell from {probes[best]:.3g} (about {_at(series, best + 1)}) to {probes[-1]:.3g}, while the "
            f"reward went from {rewards[best]:.3g} to {rewards[-1]:.3g}"
        )


def _further(series: Series, probes: Series) -> Iterator[str]:
    """Yield what accompanies a rising reward."""
    probe = trend(probes.get("probe", ()))
    if probe is not None:
        direction = "rises too" if probe.rises else "does not rise: watch it"
        yield f"the probe {direction}, from {probe.start:.3g} to {probe.end:.3g}"
    if series.get("kl"):
        yield f"the KL divergence to the reference is {series['kl'][-1]:.3g} nats"


def _reasons(series: Series, reward: Trend, alarms: Mapping[str, Finding]) -> Iterator[str]:
    """Yield why a reward may not rise."""
    if "dead_groups" in alarms:
        share = f"{alarms['dead_groups'].value:.0%} of the groups have no signal"
        solved = reward.end >= LIMITS.solved
        yield f"{share}: " + ("nothing is left to learn" if solved else "almost every prompt is solved always or never")
    if series.get("kl") and abs(series["kl"][-1]) < LIMITS.unmoved:
        yield f"the policy hardly moved: its KL divergence to the reference is {series['kl'][-1]:.3g} nats"


def _means_of_three(values: Sequence[float]) -> list[float]:
    return [statistics.mean(values[place : place + 3]) for place in range(len(values) - 2)]


def _at(series: Series, place: int) -> str:
    updates = series.get("update", ())
    return f"update {updates[place]:.0f}" if place < len(updates) else f"measurement {place + 1}"


def _inside(value: float, band: Band) -> bool:
    return band[0] <= value <= band[1]


def _shown(band: Band) -> str:
    low, high = band
    if low == high:
        return f"{low:.3g}"
    if low == -inf:
        return f"at most {high:.3g}"
    return f"at least {low:.3g}" if high == inf else f"{low:.3g} to {high:.3g}"
