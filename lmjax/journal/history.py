"""What a journal says: where the run stands, which way it came, what it has decided. A fold over the records; pure.

A run that resumes, rolls back or falls back leaves the way it had come. Its *path* is what counts: the updates and
suspects that led to the present state. What was left behind stays in the journal, and says what to expect again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Record = dict[str, Any]
Ranges = tuple[tuple[int, int], ...]

# Reasons of `boundary` records.
TRANSIENT, ROLLED_BACK, SAVING = "transient: the spike did not come again", "rolled back", "saving"
# What must be equal for the bits to be.
MACHINE = ("jax", "devices", "processes", "platform", "mesh", "form", "xla_flags", "updates_at_once")
_UNTOLD = {"updates_at_once": 1}  # by a run of before; there may also be no flags
# The keys of how a run is computed, which do not change what is learnt.
MEANS = ("parallel.", "runtime.")


@dataclass(frozen=True)
class Tried:
    """A batch that was tried: the updates applied before it, the cursor before and behind it, and its signs."""

    update: int
    before: int
    cursor: int
    suspect: bool = False
    hard: bool = False


class Applied(NamedTuple):
    """An applied update: the cursor behind its batch, its loss and gradient norm in hexadecimal, on which machine."""

    cursor: int
    loss: str
    grad_norm: str
    machine: tuple[Any, ...]


@dataclass
class History:
    """What the records of a journal say about a run.

    path: the applied updates. suspects: the records of batches left out on the path. rollbacks: all rollbacks.
    expected: the results of the next updates when the run was there before. exclude, cuts: sample ids and
    learning-rate cuts that rollbacks decided. pending: a rollback announced but not finished. replay: a rollback whose
    data are being replayed. digests: of the checkpoints begun on the path, by update. saved: those that are complete.
    """

    path: list[Applied] = field(default_factory=list)
    suspects: list[Record] = field(default_factory=list)
    rollbacks: list[Record] = field(default_factory=list)
    expected: dict[int, Applied] = field(default_factory=dict)
    exclude: Ranges = ()
    cuts: tuple[tuple[int, float, int], ...] = ()
    pending: Record | None = None
    replay: Record | None = None
    digests: dict[int, str] = field(default_factory=dict)
    saved: set[int] = field(default_factory=set)
    machine: tuple[Any, ...] = ()

    def cursor(self, update: int) -> int:
        """The cursor behind the last of `update` applied updates."""
        return self.path[update - 1].cursor if update else 0

    def recent(self, count: int, *, cursor: int) -> tuple[Tried, ...]:
        """The last `count` batches tried on the path, up to `cursor`."""
        first = max(len(self.path) - count - 1, 0)  # one more, to know where the next began
        tried = [(one.cursor, update, False, False) for update, one in enumerate(self.path[first:], first)]
        tried += [(record["cursor"], record["update"], True, record["hard"]) for record in self.suspects[-count - 1 :]]
        tried = sorted(item for item in tried if item[0] <= cursor)
        pairs = zip([0, *(item[0] for item in tried)], tried, strict=False)
        return tuple(Tried(update, before, at, suspect, hard) for before, (at, update, suspect, hard) in pairs)[-count:]

    def left_out(self, *, cursor: int | None = None) -> Ranges:
        """Ranges of sample ids that a fresh run must exclude to take this path (up to `cursor`) from the start."""
        suspects = (record for record in self.suspects if cursor is None or record["cursor"] <= cursor)
        return (*self.exclude, *(tuple(pair) for record in suspects for pair in record["samples"]))

    def skipped(self, *, cursor: int | None = None) -> int:
        """How many samples that is."""
        return sum(stop - start for start, stop in self.left_out(cursor=cursor))

    def _go_back(self, update: int, cursor: int, *, until: int | None = None) -> None:
        """Leaves the path after `update`; what was applied up to cursor `until` is expected to come again."""
        left = dict(enumerate(self.path[update:], update + 1))
        self.expected = {
            number: applied
            for number, applied in {**self.expected, **left}.items()
            if number > update and (until is None or applied.cursor <= until)
        }
        del self.path[update:]
        self.digests = {at: digest for at, digest in self.digests.items() if at <= update}
        self.saved = {at for at in self.saved if at <= update}
        self.suspects = [record for record in self.suspects if record["cursor"] <= cursor]


def fold(records: Iterable[Record]) -> History:
    """The history that these records, oldest first, tell."""
    history = History()
    for record in records:
        advance(history, record)
    return history


def advance(history: History, record: Record) -> None:
    """Adds the next record to what `history` knows."""
    _applied(history, record)
    match record["event"]:
        case "start":
            history.machine = machine_of(record)
        case "resume":
            history._go_back(record["update"], record["cursor"])
            history.machine = machine_of(record)
            if learnt(record.get("changed", ())):
                history.expected = {}
        case "fallback":  # where a rollback had to go back further; after a save that failed this changes nothing
            history._go_back(record["update"], record["cursor"])
        case "suspect":
            history.suspects.append(record)
        case "checkpoint":
            history.saved.add(record["update"])
        case "rollback":
            _rollback(history, record)
        case "skip":
            history.pending = None
            history.exclude = (*history.exclude, *(tuple(pair) for pair in record["samples"]))
        case "boundary":
            if record.get("reason") == ROLLED_BACK:
                history.pending = None
            elif record.get("reason") == TRANSIENT:
                history.replay = None
            elif record.get("reason") == SAVING:
                history.digests[record["update"]] = record["digest"]


def machine_of(record: Record) -> tuple[Any, ...]:
    """What a record says about the machine, as far as it decides about bits."""
    return tuple(record.get(name) or _UNTOLD.get(name) for name in MACHINE)


def learnt(changed: Iterable[str]) -> list[str]:
    """The changes of a resume, as `typed.differences` tells them, that change what is learnt: not those of devices.

    The form does, where there is dropout: `pmap` draws it for each device apart.
    """
    return [line for line in changed if not line.startswith(MEANS) or line.startswith("parallel.form:")]


def _applied(history: History, record: Record) -> None:
    applied = record.get("applied")
    if not applied:
        return
    number = applied["first"]
    # A record tells of updates after a point that a kill kept it from announcing: its resume record went before.
    assert number == len(history.path) + 1, (number, len(history.path))
    for cursor, loss, norm in zip(applied["cursors"], applied["losses"], applied["grad_norms"], strict=True):
        history.path.append(Applied(cursor, loss, norm, history.machine))
        history.expected.pop(number, None)
        number += 1


def _rollback(history: History, record: Record) -> None:
    history.rollbacks.append(record)
    history.pending = record
    replay = record["kind"] == "replay"
    history.replay = record if replay else None
    until = record["onset"]["cursor"] if replay else record["positions"][0]
    history._go_back(record["target"], record["target_cursor"], until=until)
    if record["cut"]:
        history.cuts = (*history.cuts, tuple(record["cut"]))
        history.expected = {}


def last(records: Sequence[Record], event: str) -> Record | None:
    """The newest record of an event."""
    return next((record for record in reversed(records) if record["event"] == event), None)
