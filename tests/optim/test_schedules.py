import math
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.config import BatchConfig, Config, ScheduleConfig, TrainConfig, UserError
from lmjax.optim import batch_plan, learning_rate

# ---- Batch size --------------------------------------------------------------------------------------------


def naive_plan(batch: BatchConfig, train: TrainConfig, context: int) -> list[int]:
    """Update by update, in exact fractions."""
    unit, tokens, sizes = batch.microbatch * context, 0, []
    while len(sizes) < train.updates or tokens < train.tokens:
        i = max(i for i, (start, _) in enumerate(batch.tokens) if start <= tokens)
        (t0, b0), following = batch.tokens[i], batch.tokens[i + 1 : i + 2]
        size = Fraction(b0)
        if batch.growth == "linear" and following:
            (t1, b1) = following[0]
            size += Fraction((b1 - b0) * (tokens - t0), t1 - t0)
        count = math.floor(size / unit + Fraction(1, 2))
        sizes.append(count * batch.microbatch)
        tokens += count * unit
    return sizes


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_batch_plan_equals_a_naive_loop(data):
    context, microbatch = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    unit = context * microbatch
    gaps = data.draw(st.lists(st.integers(1, 400), max_size=4))
    sizes = data.draw(st.lists(st.integers(unit, 12 * unit), min_size=len(gaps) + 1, max_size=len(gaps) + 1))
    starts = [sum(gaps[:i]) for i in range(len(sizes))]
    batch = BatchConfig(
        tokens=tuple(zip(starts, sizes, strict=True)),
        growth=data.draw(st.sampled_from(["steps", "linear"])),
        microbatch=microbatch,
    )
    length = data.draw(st.integers(1, 60))
    train = TrainConfig(updates=length) if data.draw(st.booleans()) else TrainConfig(tokens=20 * length)
    plan = batch_plan.batch_plan(batch, train, context)

    assert plan.sequences.tolist() == naive_plan(batch, train, context)
    assert plan.tokens_before.tolist() == [context * int(n) for n in np.cumsum([0, *plan.sequences])[:-1]]
    assert plan.tokens == context * plan.sequences.sum()
    assert (plan.sequences % microbatch == 0).all()
    assert (plan.microbatches >= 1).all()
    if sizes == sorted(sizes):
        assert (np.diff(plan.sequences) >= 0).all()
    if train.updates:
        assert plan.updates == train.updates
    else:
        assert plan.tokens_before[-1] < train.tokens <= plan.tokens
    assert plan.changes.tolist() == [u for u in range(1, plan.updates) if plan.sequences[u] != plan.sequences[u - 1]]


@pytest.mark.parametrize("growth", ["steps", "linear"])
@pytest.mark.parametrize(("epochs", "tokens"), [(1.0, 10_000), (0.25, 2_500), (3.0, 30_000), (1 / 3, 3_334)])
def test_epochs_are_as_many_tokens(growth, epochs, tokens):
    batch = BatchConfig(tokens=((0, 64), (512, 256), (5000, 128)), microbatch=4, growth=growth)
    by_epochs = batch_plan.batch_plan(batch, TrainConfig(epochs=epochs, epoch_tokens=10_000), 8)
    by_tokens = batch_plan.batch_plan(batch, TrainConfig(tokens=tokens), 8)
    assert np.array_equal(by_epochs.sequences, by_tokens.sequences)


@pytest.mark.parametrize("growth", ["steps", "linear"])
@pytest.mark.parametrize("points", [((0, 64),), ((0, 64), (1, 256)), ((0, 256), (1000, 64)), ((0, 33), (512, 640))])
def test_a_run_of_unknown_length_is_planned_with_every_batch_size(growth, points):
    config = Config(batch=BatchConfig(tokens=points, microbatch=4, growth=growth), train=TrainConfig(epochs=2.0))
    some, all_of_it = batch_plan.with_any_length(config), TrainConfig(tokens=10**6)
    sizes = {*batch_plan.batch_plan(config.batch, some.train, 8).sequences.tolist()}
    assert sizes == {*batch_plan.batch_plan(config.batch, all_of_it, 8).sequences.tolist()}
    known = replace(config, train=TrainConfig(updates=3))
    assert batch_plan.with_any_length(known) is known


def test_batch_plan_follows_gpt3():
    """Brown et al. 2020, appendix B: from 32k tokens linearly to the full batch over 4 billion tokens."""
    batch = BatchConfig(tokens=((0, 32_768), (4_000_000_000, 3_200_000)), growth="linear", microbatch=16)
    plan = batch_plan.batch_plan(batch, TrainConfig(tokens=300_000_000_000), 2048)
    assert plan.sequences[0] * 2048 == 32_768
    assert plan.sequences[-1] * 2048 == round(3_200_000 / 32_768) * 32_768
    half = np.searchsorted(plan.tokens_before, 2_000_000_000)
    # Half of the way in tokens the batch is half grown, to within half a microbatch.
    assert abs(plan.sequences[half] * 2048 - (32_768 + 3_200_000) / 2) <= 32_768 / 2 + 1000


def test_a_million_updates_take_well_under_a_second():
    batch = BatchConfig(tokens=((0, 1024), (10**9, 2**22)), growth="linear", microbatch=1)
    start = time.perf_counter()
    plan = batch_plan.batch_plan(batch, TrainConfig(updates=1_000_000), 1024)
    learning_rate.learning_rates(ScheduleConfig(), plan)
    assert time.perf_counter() - start < 2
    assert plan.updates == 1_000_000


@pytest.mark.parametrize(
    ("batch", "train", "words"),
    [
        ({"tokens": ((5, 64),)}, {"updates": 1}, "batch.tokens must begin at token 0"),
        ({"tokens": ((0, 64), (10, 64), (10, 128))}, {"updates": 1}, "batch.tokens must be sorted"),
        ({"tokens": ((0, 64), (20, 64), (10, 128))}, {"updates": 1}, "batch.tokens must be sorted"),
        ({"tokens": ()}, {"updates": 1}, "batch.tokens is empty"),
        ({"tokens": ((0, 63),)}, {"updates": 1}, "lower batch.microbatch to 3"),
        ({"tokens": ((0, 15),)}, {"updates": 1}, "one sequence has 16 tokens"),
        ({"microbatch": 0}, {"updates": 1}, "batch.microbatch = 0"),
        ({}, {}, "train.updates, train.tokens and train.epochs are all 0"),
        ({}, {"updates": -1}, "train.updates = -1"),
        ({}, {"updates": 2**31 - 1}, "train.updates = 2147483647: the schedule .* at most 20000000 updates"),
        ({}, {"tokens": 9 * 10**18}, "train.tokens = 9000000000000000000 in .* updates"),
        ({"tokens": ((0, 2**31 - 1),)}, {"updates": 2**33}, "train.updates = 8589934592 must be an integer from 0"),
        ({"tokens": ((0, 64), (9**18, 2**31 - 64)), "growth": "linear"}, {"updates": 1}, "steps of a microbatch"),
    ],
)
def test_batch_plan_names_the_wrong_key(batch, train, words):
    config = BatchConfig(**{"tokens": ((0, 64),), "microbatch": 4} | batch)
    with pytest.raises(UserError, match=words):
        batch_plan.batch_plan(config, TrainConfig(**train), 16)


# ---- Learning rate -----------------------------------------------------------------------------------------


def closed_form(schedule: ScheduleConfig, warmup: float, s: float, total: float) -> float:
    """In plain Python; `warmup`, `s` and `total` in the unit of the schedule."""
    if s <= warmup:
        return schedule.peak * s / warmup
    share = (s - warmup) / (total - warmup)
    match schedule.shape:
        case "cosine":
            low = schedule.final * schedule.peak
            return low + 0.5 * (schedule.peak - low) * (1 + math.cos(math.pi * share))
        case "linear":
            return schedule.peak * (1 - share * (1 - schedule.final))
        case "wsd":
            left = max(0.0, (s - (1 - schedule.decay) * total) / (schedule.decay * total))
            return schedule.peak * (1 - left * (1 - schedule.final))
        case "inverse_sqrt":
            return schedule.peak * math.sqrt(warmup / s)
        case _:
            return schedule.peak


GROWING = BatchConfig(tokens=((0, 64), (1000, 128), (4000, 512)), microbatch=4)


@pytest.mark.parametrize("shape", ["cosine", "linear", "wsd", "inverse_sqrt", "constant"])
@pytest.mark.parametrize("unit", ["updates", "tokens"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.3])
def test_schedules_equal_their_closed_forms(shape, unit, warmup):
    schedule = ScheduleConfig(peak=3e-3, warmup=warmup, shape=shape, final=0.1, decay=0.25, unit=unit)
    plan = batch_plan.batch_plan(GROWING, TrainConfig(updates=80), 16)
    rates = learning_rate.learning_rates(schedule, plan)
    ends = np.arange(1, 81) if unit == "updates" else plan.tokens_before + 16 * plan.sequences
    boundary = min(ends, key=lambda end: abs(end - warmup * ends[-1]))  # a warm-up is a whole number of updates
    expected = [closed_form(schedule, boundary, float(end), float(ends[-1])) for end in ends]
    np.testing.assert_allclose(rates, expected, rtol=1e-7)  # half a unit in the last place of float32 is 6e-8
    assert rates.dtype == np.float32
    assert rates[0] > 0
    assert rates.max() == np.float32(3e-3)
    if shape in ("cosine", "linear", "wsd"):
        assert rates[-1] == pytest.approx(3e-4, rel=1e-6)


@pytest.mark.parametrize("shape", ["cosine", "linear", "wsd", "inverse_sqrt", "constant"])
def test_units_agree_while_the_batch_is_constant(shape):
    plan = batch_plan.batch_plan(BatchConfig(tokens=((0, 64),), microbatch=4), TrainConfig(updates=57), 16)
    rates = [
        learning_rate.learning_rates(ScheduleConfig(shape=shape, unit=unit, warmup=0.1), plan)
        for unit in ("updates", "tokens")
    ]
    np.testing.assert_array_equal(*rates)


def test_vaswani_et_al():
    """lr = d^-0.5 min(step^-0.5, step warmup^-1.5), section 5.3."""
    d, warmup, updates = 512, 4000, 100_000
    schedule = ScheduleConfig(peak=(d * warmup) ** -0.5, warmup=warmup / updates, shape="inverse_sqrt", unit="updates")
    plan = batch_plan.batch_plan(BatchConfig(tokens=((0, 64),), microbatch=4), TrainConfig(updates=updates), 16)
    expected = [d**-0.5 * min(step**-0.5, step * warmup**-1.5) for step in range(1, updates + 1)]
    np.testing.assert_allclose(learning_rate.learning_rates(schedule, plan), expected, rtol=1e-7)


def test_schedules_equal_those_of_optax():
    """optax counts from 0 and begins at rate 0: its count is our end of an update."""
    plan = batch_plan.batch_plan(BatchConfig(tokens=((0, 64),), microbatch=4), TrainConfig(updates=200), 16)
    count = np.arange(1, 201)
    common = {"peak": 1e-3, "warmup": 0.1, "final": 0.1}
    wsd = optax.join_schedules(
        [
            optax.linear_schedule(0, 1e-3, 20),
            optax.constant_schedule(1e-3),
            optax.linear_schedule(1e-3, 1e-4, 40),
        ],
        [20, 160],
    )
    cosine = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 20, 200, 1e-4)
    for shape, expected in (("cosine", cosine), ("wsd", wsd)):
        rates = learning_rate.learning_rates(ScheduleConfig(shape=shape, **common), plan)
        np.testing.assert_allclose(rates, expected(count), rtol=2e-6)  # optax computes in float32


@pytest.mark.parametrize("shape", ["cosine", "linear", "wsd", "inverse_sqrt", "constant"])
@pytest.mark.parametrize("updates", [1, 2, 3])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_shortest_runs_have_rates(shape, updates, share):
    plan = batch_plan.batch_plan(BatchConfig(tokens=((0, 64),), microbatch=4), TrainConfig(updates=updates), 16)
    schedule = ScheduleConfig(peak=1.0, warmup=share, decay=1 - share, shape=shape)
    rates = learning_rate.learning_rates(schedule, plan)
    assert np.isfinite(rates).all()
    assert (rates > 0).all()
    assert rates.max() == 1 or (shape == "wsd" and share == 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"peak": 0.0},
        {"peak": -1.0},
        {"peak": math.nan},
        {"peak": math.inf},
        {"warmup": -0.1},
        {"warmup": 1.1},
        {"warmup": math.nan},
        {"final": -0.1},
        {"final": 2.0},
        {"decay": 1.5},
        {"shape": "wsd", "decay": 0.6, "warmup": 0.5},
    ],
)
def test_a_wrong_schedule_is_named(wrong):
    plan = batch_plan.batch_plan(BatchConfig(), TrainConfig(updates=3), 1024)
    with pytest.raises(UserError, match=rf"schedule\.{list(wrong)[-1]} = {list(wrong.values())[-1]}"):
        learning_rate.learning_rates(ScheduleConfig(**wrong), plan)
