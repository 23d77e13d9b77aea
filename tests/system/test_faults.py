"""Failpoints: the grammar, what fires when, and that nothing happens unless armed."""

import errno
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from lmjax.config import UserError
from lmjax.system import faults
from tests import ROOT


def hits(point: str, *, times: int = 6, at: list[int] | None = None) -> list[int]:
    """At which visits (or numbers) a point raises an error."""
    found = []
    for number in at or range(1, times + 1):
        try:
            faults.reach(point, at=number if at else None)
        except OSError:
            found.append(number)
    return found


# ---- When -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "fired"),
    [("", [1]), ("@1", [1]), ("@3", [3]), ("@2-4", [2, 3, 4]), ("@3!", [3]), ("@2-3!", [2, 3]), ("@9", [])],
)
def test_a_point_without_a_number_counts_its_visits(when: str, fired: list[int]) -> None:
    with faults.armed(f"save=error{when}"):
        assert hits("save") == fired
        assert hits("save.rename") == []


def test_a_number_fires_once_or_every_time() -> None:
    """A run that went back comes to the same update again: a transient fault is gone, a lasting one is not."""
    visits = [3, 4, 5, 3, 4, 5]
    with faults.armed("update=error@4"):
        assert hits("update", at=visits) == [4]
    with faults.armed("update=error@4-5"):
        assert hits("update", at=visits) == [4, 5]
    with faults.armed("update=error@4-5!"):
        assert hits("update", at=visits) == [4, 5, 4, 5]


def test_several_faults_are_armed_and_replaced_together() -> None:
    faults.arm("save=error@1-2 journal.write=error@2")
    assert hits("save") == [1, 2]
    assert hits("journal.write") == [2]
    faults.arm("save=error@2")
    assert hits("save") == [2]
    assert hits("journal.write") == []
    faults.arm("")
    assert hits("save") == []


# ---- What -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "code"), [("error", errno.EIO), ("full", errno.ENOSPC)])
def test_errors_are_those_of_the_system(action: str, code: int) -> None:
    with faults.armed(f"save={action}"), pytest.raises(OSError, match=r".") as caught:
        faults.reach("save")
    assert caught.value.errno == code


def test_sleep_takes_its_time() -> None:
    with faults.armed("save=sleep:0.05"):
        before = time.perf_counter()
        faults.reach("save")
        assert time.perf_counter() - before >= 0.05


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signals_reach_their_handler(name: str) -> None:
    seen = []
    before = signal.signal(signal.Signals[name], lambda number, frame: seen.append(number))
    try:
        with faults.armed(f"save={name}"):
            faults.reach("save")
    finally:
        signal.signal(signal.Signals[name], before)
    assert seen == [signal.Signals[name]]


@pytest.mark.slow
def test_kill_ends_the_process_on_the_spot() -> None:
    code = (
        "from lmjax.system import faults; faults.arm('save=kill@2')\nfor n in range(3): faults.reach('save'); print(n)"
    )
    done = subprocess.run([sys.executable, "-u", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "0\n")


def test_values_are_spoiled_in_their_first_floating_point_leaf() -> None:
    tree = {"a": np.arange(3, dtype=np.int32), "b": jnp.ones((2, 2)), "c": np.ones(2, np.float32)}
    for action, first in [("nan", np.nan), ("inf", np.inf)]:
        with faults.armed(f"batch={action}@7"):
            spoiled = faults.change("batch", tree, at=7)
        np.testing.assert_array_equal(spoiled["b"], [[first, 1], [1, 1]])
        np.testing.assert_array_equal(spoiled["c"], tree["c"])
        np.testing.assert_array_equal(spoiled["a"], tree["a"])
        assert isinstance(spoiled["b"], jax.Array)
        assert spoiled["b"].sharding == tree["b"].sharding
    with faults.armed("batch=times:100@7"):
        np.testing.assert_array_equal(faults.change("batch", tree, at=7)["b"], np.full((2, 2), 100))
    np.testing.assert_array_equal(tree["b"], np.ones((2, 2)))  # the caller's own are as before


def test_numbers_are_spoiled_too() -> None:
    with faults.armed("learning_rate=times:100@5-6"):
        rates = [float(faults.change("learning_rate", np.float32(0.5), at=at)) for at in (4, 5, 6, 7)]
    assert rates == [0.5, 50, 50, 0.5]


def test_random_draws_every_integer_anew_from_its_range_and_always_the_same() -> None:
    tree = {"ids": np.arange(1000, dtype=np.int32), "w": np.ones(3, np.float32)}
    with faults.armed("data=random@8!"):
        one, two = (faults.change("data", tree, at=8) for _ in range(2))
    assert one["ids"].dtype == np.int32
    assert one["w"] is tree["w"]
    assert (one["ids"] != tree["ids"]).mean() > 0.9
    assert 0 <= one["ids"].min() <= one["ids"].max() <= 999
    np.testing.assert_array_equal(one["ids"], two["ids"])


# ---- Before and in an update ----------------------------------------------------------------------------------------


@struct.dataclass
class Weights:
    params: np.ndarray
    opt_state: np.ndarray


def stepped(step: Callable[[Any, Any], Any], updates: Iterable[int]) -> list[list[float]]:
    """The parameters and optimizer states that the step is called with."""
    results = []
    for update in updates:
        state = Weights(np.ones(1, np.float32), np.full(1, 2, np.float32))
        results.append([float(x) for array in step(state, [{"update": np.int32(update)}]) for x in array])
    return results


def plain(state: Weights, batches: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    return state.params, state.opt_state


def test_a_step_is_wrapped_only_if_a_fault_precedes_it() -> None:
    assert faults.around(plain) is plain
    with faults.armed("batch=nan@3 save=error"):
        assert not faults.step_armed()
        assert faults.around(plain) is plain
    for point in ("compile", "update", "params", "opt_state"):
        with faults.armed(f"{point}=error@3"):
            assert faults.step_armed()
            assert faults.around(plain) is not plain


def test_the_faults_of_an_update_precede_exactly_its_step() -> None:
    """Update 7 of the failpoints is the batch scheduled after 6 updates; a transient fault fires once."""
    with faults.armed("params=times:10@7 opt_state=times:3@8!"):
        step = faults.around(plain)
        assert stepped(step, [5, 6, 7, 6, 7]) == [[1, 2], [10, 2], [1, 6], [1, 2], [1, 6]]
    with faults.armed("update=error@7"):
        step = faults.around(plain)
        assert stepped(step, [5]) == [[1, 2]]
        with pytest.raises(OSError, match=r"."):
            stepped(step, [6])
    with faults.armed("compile=error"):
        step = faults.around(plain)
        with pytest.raises(OSError, match=r"."):
            stepped(step, [0])


def test_the_faults_of_a_batch_go_by_its_update_and_its_cursor_until_it_is_used() -> None:
    rows = {"x": np.ones(2, np.float32)}

    def corrupted(update: int, cursor: int) -> tuple[float, float]:
        changed, rate = faults.change_batch(rows, np.float32(0.5), update=update, cursor=cursor)
        return float(changed["x"][0]), float(rate)

    assert faults.change_batch(rows, 0.5, update=6, cursor=40)[0] is rows
    with faults.armed("batch=times:10@7 data=times:3@40 learning_rate=times:4@7"):
        assert corrupted(6, 40) == (30, 2)
        assert corrupted(6, 40) == (30, 2)  # scheduled again, and not used before
        assert corrupted(6, 42) == (10, 2)
        assert corrupted(5, 40) == (3, 0.5)
        faults.spend_batch(update=6, cursor=42)
        assert corrupted(6, 40) == (3, 0.5)
        faults.spend_batch(update=6, cursor=40)
        assert corrupted(6, 40) == (1, 0.5)


# ---- Unarmed, and mistakes ------------------------------------------------------------------------------------------


def test_nothing_happens_unless_armed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("looked for a fault")

    monkeypatch.setattr(faults, "_due", never)
    tree = {"a": np.ones(3)}
    for point in faults.POINTS:
        faults.reach(point)
        faults.reach(point, at=3)
        assert faults.change(point, tree, at=3) is tree
    # A tenth of a millisecond would be seen in a small model's update; a look at an empty dict is a thousandth of it.
    before = time.perf_counter()
    for at in range(1000):
        faults.reach("update", at=at)
    assert time.perf_counter() - before < 0.1


def test_armed_is_over_with_its_block_whatever_happens() -> None:
    with pytest.raises(KeyError), faults.armed("save=error"):
        raise KeyError
    assert hits("save") == []
    with faults.armed("save=error@2"):
        tree = {"a": np.ones(3)}
        assert faults.change("batch", tree, at=1) is tree  # another point


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sav=kill", r"LMJAX_FAULTS: no failpoint 'sav'.*save"),
        ("=kill", "no failpoint ''"),
        ("save", "no action ''"),
        ("save=", "no action ''"),
        ("save=kil", r"no action 'kil'.*kill"),
        ("save=kill@x", "'save=kill@x' is not of the form point=action@when"),
        ("save=kill@1-x", "not of the form"),
        ("save=sleep:long@1", "not of the form"),
        ("save=error sav=error", "no failpoint 'sav'"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    try:
        with pytest.raises(UserError, match=message):
            faults.arm(text)
    finally:
        faults.arm("")


def test_a_point_that_the_program_reaches_must_exist() -> None:
    with faults.armed("save=error"), pytest.raises(AssertionError):
        faults.reach("no such point")
