"""Failpoints: named places where a fault can be injected, to prove that a run survives it.

Failpoints cost nothing unless armed, by `LMJAX_FAULTS` (read by the command line) or by `armed` in a test. A fault is
written `point=action@when`; spaces separate several faults:

    LMJAX_FAULTS="save.rename=kill@2 batch=nan@40-42 learning_rate=times:100@60-70"

`when` is a number or a range first-last. It counts the visits of the point from 1, or gives the update (or cursor) for
the points marked below. Each number fires once, even if the run reaches it again after a rollback: the fault is
transient. With `!` at the end it fires every time.

Actions: `kill` (SIGKILL), `SIGTERM`, `SIGINT`, `error` (an I/O error), `full` (no space left), `sleep:SECONDS`; on
values `nan`, `inf`, `times:FACTOR`, `random` (integers redrawn from their range).
"""

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmjax.config.errors import UserError, nearest

VARIABLE = "LMJAX_FAULTS"
POINTS = {
    "verify": "before the hash of each file of the prepared data is compared",
    "prepared": "the run is built, nothing has run",
    "compile": "before the first update is compiled",
    "update": "before an update is sent to the devices (by update)",
    "batch": "value: the arrays of a batch (by update)",
    "data": "value: the arrays of a batch (by the cursor before it, so that `!` makes these data bad for good)",
    "learning_rate": "value: the learning rate of a batch (by update)",
    "params": "value: the parameters, before an update (by update)",
    "opt_state": "value: the optimizer state, before an update (by update)",
    "episode.sampled": "the answers of an episode are sampled, no reward is known (by update)",
    "episode.rewarded": "the answers have rewards, nothing is learned from them (by update)",
    "logprobs": "value: the sampler's log-probabilities of the answers of an episode (by update)",
    "rewards": "value: the rewards of an episode (by update)",
    "evaluate": "before an evaluation",
    "evaluate.batch": "before each batch of an evaluation",
    "journal.write": "before a record is written",
    "journal.torn": "a record is half on the disk",
    "journal.written": "a record is on the disk",
    "save": "before a save begins",
    "save.arrays": "the arrays are on their way to the disk",
    "save.read_back": "the metadata of the arrays are right, before all arrays are read back",
    "save.manifest": "the arrays are on the disk, the manifest is not",
    "save.rename": "all is on the disk, under a temporary name",
    "save.committed": "the checkpoint has its name, the journal does not know it",
    "save.retain": "an old checkpoint is about to be deleted",
    "own": "before the files of the run are compared with those that it opened",
    "own.again": "a file that was lost is written again, under a temporary name",
    "rollback": "before a rollback is announced in the journal",
    "rollback.announced": "the rollback is announced, nothing is done",
    "rollback.quarantine": "before each checkpoint that moves to quarantine",
    "rollback.restore": "all later checkpoints are in quarantine, the state is not restored",
    "rollback.done": "the state is restored and the journal records it",
}
_STEP = ("compile", "update", "params", "opt_state")  # before a call of the compiled update
_AHEAD = ("batch", "data", "learning_rate")  # computed before their use, and perhaps never used
ACTIONS = ("kill", "SIGTERM", "SIGINT", "error", "full", "sleep", "nan", "inf", "times", "random")


@dataclass
class _Fault:
    action: str
    argument: float
    first: int
    last: int
    always: bool
    fired: set[int] = field(default_factory=set)
    reached: int = 0
    number: int = 0  # at which it happens


_armed: dict[str, list[_Fault]] = {}  # the one piece of global state of lmjax: empty in every real run


def arm(text: str) -> None:
    """Arm the faults of `text` instead of the previous ones.

    Raises:
        UserError: There is no such point or action.
    """
    _armed.clear()
    for word in text.split():
        point, _, rest = word.partition("=")
        action, _, when = rest.partition("@")
        action, _, argument = action.partition(":")
        first, _, last = when.rstrip("!").partition("-")
        if point not in POINTS:
            raise UserError(f"{VARIABLE}: no failpoint '{point}'{nearest(point, POINTS)}")
        try:
            fault = _Fault(action, float(argument or 0), int(first or 1), int(last or first or 1), when.endswith("!"))
        except ValueError:
            raise UserError(f"{VARIABLE}: '{word}' is not of the form point=action@when") from None
        if action not in ACTIONS:
            raise UserError(f"{VARIABLE}: no action '{action}'{nearest(action, ACTIONS)}")
        _armed.setdefault(point, []).append(fault)


@contextmanager
def armed(text: str) -> Iterator[None]:
    """Arm the faults of `text` within the block."""
    arm(text)
    try:
        yield
    finally:
        _armed.clear()


def reach(point: str, *, at: int | None = None) -> None:
    """Trigger the faults armed at `point` (of update `at`), which the program reaches."""
    if _armed:
        for fault in _due(point, at):
            _happen(fault)


def change(point: str, value: Any, *, at: int) -> Any:
    """Return `value`, a pytree of arrays, corrupted if a fault is armed at `point`."""
    if _armed:
        for fault in _due(point, at):
            value = _spoiled(value, fault)
    return value


def step_armed() -> bool:
    """Whether a fault is armed before an update: each call must apply one update only."""
    return any(point in _armed for point in _STEP)


def around(step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Wrap a step `(state, batches) -> (state, metrics)` in the failpoints before it.

    Args:
        step: the step; called with one batch if one of the failpoints is armed.

    Returns:
        `step` itself if none is armed.
    """
    if not step_armed():
        return step
    import jax

    compiled = False

    def step_with_faults(state: Any, batches: Any) -> Any:
        nonlocal compiled
        number = int(jax.device_get(batches[0]["update"])) + 1
        reach("update", at=number)
        params = change("params", state.params, at=number)
        opt_state = change("opt_state", state.opt_state, at=number)
        if not compiled:
            reach("compile")
            compiled = True
        return step(state.replace(params=params, opt_state=opt_state), batches)

    return step_with_faults


def change_batch(rows: Any, learning_rate: Any, *, update: int, cursor: int) -> tuple[Any, Any]:
    """Return the rows and the learning rate of a batch, corrupted if a fault is armed there.

    Args:
        rows: the arrays of the batch.
        learning_rate: its learning rate.
        update: the number of updates applied before the batch.
        cursor: the cursor before the batch.
    """
    rows = change("data", change("batch", rows, at=update + 1), at=cursor)
    return rows, change("learning_rate", learning_rate, at=update + 1)


def spend_batch(*, update: int, cursor: int) -> None:
    """Mark the faults of a used batch as fired, so that they do not corrupt the next one."""
    for point, number in (("batch", update + 1), ("learning_rate", update + 1), ("data", cursor)):
        for fault in _armed.get(point, ()):
            if fault.first <= number <= fault.last:
                fault.fired.add(number)


def over() -> None:
    """Disarm, after a rollback, the transient faults that have fired."""
    for fault in (fault for faults in _armed.values() for fault in faults):
        if fault.fired and not fault.always:
            fault.first, fault.last = 1, 0


def _due(point: str, at: int | None) -> list[_Fault]:
    """Return the faults that fire at a point, and count the visit for each fault of the point."""
    assert point in POINTS, point
    due = []
    for fault in _armed.get(point, ()):
        fault.reached += 1
        number = fault.reached if at is None else at
        if fault.first <= number <= fault.last and (fault.always or number not in fault.fired):
            fault.number = number
            due.append(fault)
            if point not in _AHEAD:
                fault.fired.add(number)
    return due


def _happen(fault: _Fault) -> None:
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action in ("SIGTERM", "SIGINT"):
        signal.raise_signal(signal.Signals[fault.action])
    elif fault.action == "sleep":
        time.sleep(fault.argument)
    else:
        code = errno.ENOSPC if fault.action == "full" else errno.EIO
        raise OSError(code, os.strerror(code))


def _spoiled(value: Any, fault: _Fault) -> Any:
    """Corrupt the largest floating-point leaf (`random`: every integer leaf) of a pytree."""
    import jax

    leaves, structure = jax.tree.flatten(value)
    kind = np.integer if fault.action == "random" else np.floating
    chosen = [i for i, leaf in enumerate(leaves) if np.issubdtype(getattr(leaf, "dtype", type(leaf)), kind)]
    if fault.action != "random":
        chosen = sorted(chosen, key=lambda i: np.size(leaves[i]))[-1:]
    for i in chosen:
        leaf = leaves[i]
        array = np.array(jax.device_get(leaf))
        if fault.action == "random":
            array = np.random.default_rng(fault.number).integers(0, array.max() + 1, array.shape, array.dtype)
        elif fault.action == "times":
            array *= array.dtype.type(fault.argument)
        else:
            array.reshape(-1)[:1] = np.nan if fault.action == "nan" else np.inf
        leaves[i] = jax.device_put(array, leaf.sharding) if isinstance(leaf, jax.Array) else array
    return jax.tree.unflatten(structure, leaves)
