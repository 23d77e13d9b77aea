"""The history of a run: a pure fold over the records of its journal.

Resume, rollback and fallback each discard part of the recorded updates. The *path* of a run is the updates and suspects
that led to its present state. Discarded updates remain in the journal; their repetition must have the same results.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Record = dict[str, Any]
Ranges = tuple[tuple[int, int], ...]

# Reasons of `boundary` records.
TRANSIENT, ROLLED_BACK, SAVING = "transient: the spike did not come again", "rolled back", "saving"
# Properties of a record that must be equal for bit-identical results.
MACHINE = ("jax", "devices", "processes", "platform", "mesh", "form", "xla_flags", "updates_at_once")
_DEFAULTS = {"updates_at_once": 1}  # in journals of earlier versions, which lack the key; they may also lack flags
# Prefixes of the keys that select how a run is computed and do not change what is learnt.
MEANS = ("parallel.", "runtime.", "track.", "data.cache:", "train.expect:", "schedule.on_extend:")


@dataclass(frozen=True)
class Tried:
    """A batch that was tried."""

    #: Number of updates applied before it.
    update: int
    #: Cursor before the batch.
    before: int
    #: Cursor after the batch.
    cursor: int
    #: The batch was suspect.
    suspect: bool = False
    #: The batch was a hard suspect.
    hard: bool = False


class Sampled(NamedTuple):
    """What the policy sampled in an update."""

    #: Mean reward of the answers, as `float.hex`.
    reward: str
    #: Mean KL divergence of an answer to the reference, as `float.hex`.
    kl: str
    #: SHA-256 of the tokens.
    tokens: str


#: The explanation of an update whose answers are those in the journal and whose rewards are not.
OTHER_REWARDS = (
    "the answers are the same and their rewards are not: the reward depends on more than the answer and its row (the "
    "time, the process, earlier calls)"
)


class Applied(NamedTuple):
    """An applied update."""

    #: Cursor after its batch.
    cursor: int
    #: Loss, as `float.hex`.
    loss: str
    #: Gradient norm, as `float.hex`.
    grad_norm: str
    #: The machine that computed it, as `machine_of` returns it.
    machine: tuple[Any, ...]
    #: What was sampled in it; None if the run samples nothing.
    sampled: Sampled | None = None


class Announced(NamedTuple):
    """A checkpoint whose save was begun."""

    #: Cursor of the run.
    cursor: int
    #: Digest of the state.
    digest: str


@dataclass
class History:
    """The state of a run according to its journal."""

    #: The applied updates.
    path: list[Applied] = field(default_factory=list)
    #: Records of the suspect batches on the path, which were left out.
    suspects: list[Record] = field(default_factory=list)
    #: Records of all rollbacks.
    rollbacks: list[Record] = field(default_factory=list)
    #: Results of the next updates, by number, if the run has applied them before.
    expected: dict[int, Applied] = field(default_factory=dict)
    #: Ranges of sample ids that rollbacks excluded.
    exclude: Ranges = ()
    #: Cuts of the learning rate that rollbacks decided: (update, factor, updates).
    cuts: tuple[tuple[int, float, int], ...] = ()
    #: The rollback that was announced but not finished.
    pending: Record | None = None
    #: The rollback whose data are being replayed.
    replay: Record | None = None
    #: Digests of the checkpoints begun on the path, by update.
    announced: dict[int, Announced] = field(default_factory=dict)
    #: Updates of the complete checkpoints on the path.
    saved: set[int] = field(default_factory=set)
    #: The machine of the current session, as `machine_of` returns it.
    machine: tuple[Any, ...] = ()

    def cursor(self, update: int) -> int:
        """Return the cursor after the first `update` applied updates."""
        return self.path[update - 1].cursor if update else 0

    def recent(self, count: int, *, cursor: int) -> tuple[Tried, ...]:
        """Return the last `count` batches tried on the path, up to `cursor`."""
        first = max(len(self.path) - count - 1, 0)  # one more update: its cursor is where the next batch begins
        tried = [(applied.cursor, update, False, False) for update, applied in enumerate(self.path[first:], first)]
        tried += [(record["cursor"], record["update"], True, record["hard"]) for record in self.suspects[-count - 1 :]]
        tried = sorted(item for item in tried if item[0] <= cursor)
        pairs = zip([0, *(item[0] for item in tried)], tried, strict=False)
        return tuple(Tried(update, before, at, suspect, hard) for before, (at, update, suspect, hard) in pairs)[-count:]

    def left_out(self, *, cursor: int | None = None) -> Ranges:
        """Return the ranges of sample ids that a fresh run must exclude to take this path.

        With `cursor`, the path up to there.
        """
        suspects = (record for record in self.suspects if cursor is None or record["cursor"] <= cursor)
        return (*self.exclude, *(tuple(pair) for record in suspects for pair in record["samples"]))

    def skipped(self, *, cursor: int | None = None) -> int:
        """Count the samples of `left_out`."""
        return sum(stop - start for start, stop in self.left_out(cursor=cursor))

    def _go_back(self, update: int, cursor: int, *, until: int | None = None) -> None:
        """Discard the path after `update`; expect these updates up to cursor `until` again."""
        self.expected.update(enumerate(self.path[update:], update + 1))
        del self.path[update:]
        if until is not None:
            self.expected = {number: applied for number, applied in self.expected.items() if applied.cursor <= until}
        while self.announced and (newest := next(reversed(self.announced))) > update:  # their updates ascend
            del self.announced[newest]
        self.saved = {at for at in self.saved if at <= update}
        self.suspects = [record for record in self.suspects if record["cursor"] <= cursor]


def fold(records: Iterable[Record]) -> History:
    """Return the history of these records, oldest first."""
    history = History()
    for record in records:
        advance(history, record)
    return history


def advance(history: History, record: Record) -> None:
    """Add the next record to `history`."""
    _applied(history, record)
    match record["event"]:
        case "start":
            history.machine = machine_of(record)
        case "resume":
            history._go_back(record["update"], record["cursor"])
            history.machine = machine_of(record)
            if learnt(record.get("changed", ())):
                history.expected = {}
        case "fallback":  # a rollback went back further; after a failed save this changes nothing
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
                history.announced[record["update"]] = Announced(record["cursor"], record["digest"])


def machine_of(record: Record) -> tuple[Any, ...]:
    """Return the properties of a record's machine that determine the bits of results."""
    return tuple(record.get(name) or _DEFAULTS.get(name) for name in MACHINE)


def learnt(changed: Iterable[str]) -> list[str]:
    """Select the changes of a resume that change what is learnt.

    They are listed as by `codec.differences`. Changes of devices do not change it. `parallel.form` does if there is
    dropout, since `pmap` draws dropout per device.
    """
    return [line for line in changed if not line.startswith(MEANS) or line.startswith("parallel.form:")]


def _applied(history: History, record: Record) -> None:
    applied = record.get("applied")
    if not applied:
        return
    number = applied["first"]
    # A gap means that a resume is missing: after a kill, its record precedes all updates that repeat lost ones.
    assert number == len(history.path) + 1, (number, len(history.path))
    columns = (applied["cursors"], applied["losses"], applied["grad_norms"], sampled_in(applied))
    for cursor, loss, norm, sampled in zip(*columns, strict=True):
        history.path.append(Applied(cursor, loss, norm, history.machine, sampled))
        history.expected.pop(number, None)
        number += 1


def sampled_in(applied: Record) -> list[Sampled | None]:
    """Return what was sampled in each update of the field `applied` of a record."""
    if "tokens" not in applied:
        return [None] * len(applied["cursors"])
    columns = (applied[name] for name in ("rewards", "kls", "tokens"))
    return [Sampled(*values) for values in zip(*columns, strict=True)]


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
    """Return the newest record of an event."""
    return next((record for record in reversed(records) if record["event"] == event), None)
