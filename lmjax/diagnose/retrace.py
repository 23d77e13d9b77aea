"""Retrace a run from its journal, and compare every step with its configuration.

The only side effect is on the findings. Like the loop, this module receives functions and knows neither the data nor
the model.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config import GuardConfig
from lmjax.guard import detector
from lmjax.guard.decision import Decision, decide
from lmjax.guard.detector import Window
from lmjax.journal.history import ROLLED_BACK, History, Ranges, Record, Tried, advance, learnt, sampled_in
from lmjax.journal.records import check_order

_MEASURED = ("loss", "grad_norm", "param_norm", "z_loss", "z_grad_norm")  # fields of a suspect's record
_MOST_POSITIONS = 1 << 28  # positions that batches in a row, with the samples left out between them, can span
_SHOWN = 4  # findings per kind: one mistake often causes many more
# A z is the same function here and in the update, but a separate compilation may round differently.
_close = partial(math.isclose, rel_tol=1e-3, abs_tol=1e-3)


class Findings:
    """Everything that is wrong with a run; the most important kinds come first."""

    def __init__(self) -> None:
        kinds = ("journal", "inputs", "data plan", "guard", "rollback", "checkpoint", "metrics", "replay")
        self._found: dict[str, list[str]] = {kind: [] for kind in kinds}

    def add(self, kind: str, text: str) -> None:
        """Add a finding of a kind."""
        self._found[kind].append(text)

    def lines(self) -> list[str]:
        """Return one line per finding; of a kind with many findings, the first few."""
        lines = []
        for kind, texts in self._found.items():
            more = [f"and {len(texts) - _SHOWN:,} more like these"] if len(texts) > _SHOWN else []
            lines += [f"{kind}: {text}" for text in texts[:_SHOWN] + more]
        return lines


@dataclass(frozen=True)
class Plan:
    """The properties of every batch that follow from a configuration."""

    #: Configuration of the guard.
    guard: GuardConfig
    #: Number of updates between checkpoints.
    every: int
    #: Number of sequences of each update.
    sequences: np.ndarray
    #: (ranges left out) -> (cursor, count) -> (sample ids, cursor after them).
    order: Callable[[Ranges], Callable[[int, int], tuple[np.ndarray, int]]]
    #: (update, cursor after its batch) -> regime: the number of announced changes before it.
    regime: Callable[[int, int], int]
    #: (first position, end, history) -> ids of the samples at these positions that are not left out yet.
    samples: Callable[[int, int, History], Ranges]
    #: A loss that is far too low is suspect, too (`detector.assess`).
    two_sided: bool = False


@partial(jax.jit, static_argnames=("config", "two_sided"))
def _judge(
    window: Window, values: Any, regime: Any, *, config: GuardConfig, two_sided: bool
) -> tuple[detector.Signs, Window, jax.Array]:
    """Judge (loss, gradient norm, parameter norm) as `step.make_update` does."""
    loss, norm, _ = values
    finite, log_norm = jnp.isfinite(jnp.stack(values)).all(), detector.log_norm(norm)
    signs = detector.assess(window, loss, log_norm, finite, regime, config, two_sided=two_sided)
    return signs, *detector.accept(window, loss, log_norm, regime, config)


@dataclass
class Walk:
    """The course of a run, including the updates that rollbacks discarded."""

    #: Plan of each session (the start and each resume). Empty: only the journal itself is checked.
    plans: Sequence[Plan]
    #: Receives everything that is wrong.
    findings: Findings
    #: History of the run at the current record.
    history: History = field(default_factory=History)
    #: Cursor of the run at the current record.
    cursor: int = 0
    #: Batches that the guard remembers.
    recent: tuple[Tried, ...] = ()
    #: Rule of the guard that fired; empty after the rollback.
    fired: str = ""
    #: (cursor, digest) by update of the checkpoints begun on the current path.
    saved: dict[int, tuple[int, str]] = field(default_factory=dict)
    #: Updates of the checkpoints that are complete.
    committed: set[int] = field(default_factory=set)
    #: Window of the guard at each checkpoint.
    windows: dict[int, Window] = field(default_factory=dict)
    #: (update, cursor, digest) of every checkpoint that was ever begun.
    announced: set[tuple[int, int, str]] = field(default_factory=set)
    #: First update with the settings of the last session.
    since: int = 0
    #: Number of records that are consistent.
    followed: int = 0
    #: Wall step of the last record.
    wall_step: int = 0

    def follow(self, records: Sequence[Record]) -> None:
        """Follow the records up to the first that is inconsistent."""
        session = 0
        if self.plans:
            self._use(session)
            self._window = self.windows[0] = detector.empty(self._plan.guard)
        for record in records:
            try:
                if record["wall_step"] < self.wall_step:
                    self.findings.add("journal", f"the wall step goes back: {self.wall_step}, {record['wall_step']}")
                self.wall_step = record["wall_step"]
                session += record["event"] == "resume"
                if problem := check_order(self.history, record):
                    self.findings.add("journal", f"record {self.followed + 1}: {problem}")
                self._batches(record)
                self._event(record)
                self._advance(record, session)
            except (LookupError, ValueError, TypeError, AssertionError, ArithmeticError, MemoryError) as error:
                text = f"record {self.followed + 1} is inconsistent, the rest is not checked: {error!r}"
                self.findings.add("journal", text)
                return
            self.followed += 1

    def _use(self, session: int) -> None:
        self._plan = self.plans[session]
        self._take = self._plan.order(self.history.exclude)

    def _advance(self, record: Record, session: int) -> None:
        event, update = record["event"], record["update"]
        length = len(self.history.path) + len(record.get("applied", {}).get("cursors", ()))
        advance(self.history, record)
        if event == "skip" or record.get("reason") == ROLLED_BACK:  # later checkpoints are in quarantine
            self.saved = {at: saved for at, saved in self.saved.items() if at <= update}
        if event == "end" and "target" in record:
            self.committed = {at for at in self.committed if at <= record["target"]}
        if event in ("resume", "rollback") or len(self.history.path) < length:
            self._go_back(record["target_cursor"] if event == "rollback" else record["cursor"])
            self.since = update if learnt(record.get("changed", ())) else min(self.since, len(self.history.path))
        if event in ("resume", "skip") and self.plans:
            self._use(session)

    def _go_back(self, cursor: int) -> None:
        update = len(self.history.path)
        if (update, cursor) not in {(0, 0)} | {point[:2] for point in self.announced}:
            text = f"the run goes back to update {update}, cursor {cursor}, which never had a checkpoint"
            self.findings.add("journal", text)
        self.cursor, self.fired = cursor, ""
        self.committed = {at for at in self.committed if at <= update}
        if self.plans:
            self._window = self.windows.get(update, self._window)
            self.recent = self.history.recent(detector.remembered(self._plan.guard), cursor=cursor)

    # ---- Batches --------------------------------------------------------------------------------------------

    def _batches(self, record: Record) -> None:
        """Check the applied updates in a record."""
        applied = record.get("applied")
        if not applied:
            return
        columns = (*(applied[name] for name in ("cursors", "losses", "grad_norms")), sampled_in(applied))
        for number, (cursor, loss, grad_norm, sampled) in enumerate(zip(*columns, strict=True), applied["first"]):
            before = self.history.expected.get(number)
            now = (loss, grad_norm)
            # A replay compares the bits itself.
            again = before is not None and self.history.replay is None and before.machine == self.history.machine
            if before is not None and again and (before.loss, before.grad_norm) != now:
                was, is_ = float.fromhex(before.loss), float.fromhex(loss)
                self.findings.add("journal", f"update {number}: the loss was {was}, and {is_} when it was repeated")
            elif before is not None and again and before.sampled != sampled:
                self.findings.add("journal", f"update {number}: its answers were others when it was repeated")
            if self.plans:
                values = (*(np.float32(float.fromhex(text)) for text in now), np.float32(1))
                self._try(number - 1, cursor, values, None)
            self.cursor = cursor

    def _suspect(self, record: Record) -> None:
        before, update, add = self.cursor, record["update"], self.findings.add
        measured = {name: float.fromhex(record[name]) for name in _MEASURED}
        if record["samples"] != _plain(self._plan.samples(before, record["cursor"], self.history)):
            add("data plan", f"update {update + 1}: the suspect batch did not hold the samples in the journal")
        if record["batch"] != self._plan.sequences[update]:
            add("data plan", f"update {update + 1}: the suspect batch has {record['batch']} sequences, not as planned")
        values = tuple(np.float32(measured[name]) for name in _MEASURED[:3])
        signs = self._try(update, record["cursor"], values, record)
        for name in ("z_loss", "z_grad_norm"):
            z = float(getattr(signs, name))
            if not (_close(z, measured[name]) or (math.isnan(z) and math.isnan(measured[name]))):
                add("guard", f"update {update + 1}: {name} of the suspect is {measured[name]:.4g}, it must be {z:.4g}")
        journaled = (record["reason"], record["hard"])
        derived = (detector.reason(measured, self._plan.guard), bool(signs.hard))
        if journaled != derived:
            add(
                "guard", f"update {update + 1}: the suspect is {journaled} (reason, hard) in the journal, not {derived}"
            )

    def _try(self, update: int, cursor: int, values: tuple[Any, ...], suspect: Record | None) -> detector.Signs:
        """Judge the batch that ends at `cursor` and was tried after `update` updates."""
        config = self._plan.guard
        _, planned = self._take(self.cursor, int(self._plan.sequences[update]))
        if planned != cursor:
            text = f"update {update + 1}: its batch ends at cursor {cursor}, by the plan at {planned}"
            self.findings.add("data plan", text)
        if self.fired:
            self._missed(update)
        regime = np.int32(self._plan.regime(update, planned))
        two_sided = self._plan.two_sided
        signs, window, diverged = _judge(self._window, values, regime, config=config, two_sided=two_sided)
        if config.policy != "off" and bool(signs.suspect) != (suspect is not None):
            action = "applied a batch that is suspect" if suspect is None else "left out a batch that is not suspect"
            text = f"the run {action}: loss {values[0]:.4g}, z {signs.z_loss:.3g}; gradient norm {values[1]:.4g}"
            self.findings.add("guard", f"update {update + 1}: {text}")
        hard = suspect is not None and suspect["hard"]
        tried = Tried(update, self.cursor, cursor, suspect is not None, hard)
        self.recent = (*self.recent, tried)[-detector.remembered(config) :]
        self.cursor = cursor
        if suspect is None:
            self._window = window
        if config.policy == "rollback":
            self.fired = detector.rule(self.recent, config=config, diverged=bool(diverged) and suspect is None)
        return signs

    # ---- Events ---------------------------------------------------------------------------------------------

    def _event(self, record: Record) -> None:
        event, update, cursor = record["event"], record["update"], record["cursor"]
        checks = {"suspect": self._suspect, "rollback": self._rollback, "skip": self._skip, "end": self._end}
        if event in checks and self.plans:
            checks[event](record)
        elif event == "signal" and self.fired:
            self._missed(update)
        elif event == "checkpoint":
            if (update, cursor, record["digest"]) not in self.announced:
                self.findings.add(
                    "journal", f"a checkpoint of update {update} is recorded as complete, but was never begun"
                )
            if self.saved.get(update) == (cursor, record["digest"]):
                self.committed.add(update)
        elif event == "boundary" and record["reason"] == "saving":
            self.saved[update] = (cursor, record["digest"])
            self.announced.add((update, *self.saved[update]))
            if cursor != self.cursor:
                self.findings.add(
                    "journal", f"update {update} is saved at cursor {cursor}, but the run was at cursor {self.cursor}"
                )
            if self.plans:
                self.windows[update] = self._window

    def _missed(self, update: int) -> None:
        self.findings.add("rollback", f"update {update}: {self.fired}, and the run did not go back")
        self.fired = ""

    def _rule(self, record: Record) -> None:
        rule = record["rule"]
        if rule not in (self.fired, detector.PARAMETERS):  # the journal does not hold the parameters
            text = f"rule '{rule}' fired in the journal, but by the guard it is '{self.fired or 'nothing'}'"
            self.findings.add("rollback", f"update {record['update']}: {text}")

    def _decide(self, record: Record, checkpoints: dict[int, int]) -> Decision:
        plan, last = self._plan, self.recent[-1]
        if last.cursor - min((tried.before for tried in self.recent), default=0) > _MOST_POSITIONS:
            raise ValueError(f"the batches before cursor {last.cursor} are too far apart")
        return decide(
            self.history,
            self.recent,
            record["rule"],
            checkpoints=checkpoints,
            batch=int(plan.sequences[last.update]),
            samples=int(plan.sequences.sum()),
            every=plan.every,
            config=plan.guard,
        )

    def _rollback(self, record: Record) -> None:
        # Retention deletes checkpoints, so the journal does not say exactly which ones existed. A target that is too
        # late is wrong; an earlier one may have been the only checkpoint.
        self._rule(record)
        decision = self._decide(record, {record["target"]: record["target_cursor"]})
        where = f"update {record['update']}"
        for name, value in _plain(decision.fields()).items():
            if record.get(name) != value:
                text = f"{name} of the rollback is {record.get(name)}, by the guard {value}"
                self.findings.add("rollback", f"{where}: {text}")
        known = {at: cursor for at, (cursor, _) in self.saved.items() if at <= record["update"]} or {0: 0}
        newest = self._decide(record, known).target
        if record["target"] > newest and decision.level < 3:
            text = f"the run went back to update {record['target']}, but the newest healthy checkpoint is {newest}"
            self.findings.add("rollback", f"{where}: {text}")

    def _skip(self, record: Record) -> None:
        pending, (start, stop) = self.history.pending, record["positions"]
        if pending is None or pending["positions"] != [start, stop]:
            self.findings.add("rollback", f"positions {start} to {stop} are skipped, but no rollback decided that")
        if record["samples"] != _plain(self._plan.samples(start, stop, self.history)):
            text = f"the samples skipped are not those at positions {start} to {stop}"
            self.findings.add("data plan", text)

    def _end(self, record: Record) -> None:
        update = record["update"]
        if "rule" in record:
            self._rule(record)
            verdict = self._decide(record, {record["target"]: self.saved[record["target"]][0]}).verdict
            if verdict != record["why"]:
                text = f"given up: '{record['why']}'; by the guard '{verdict or 'no reason to'}'"
                self.findings.add("rollback", f"update {update}: {text}")
        if record["status"] == "finished":
            if self.fired:
                self._missed(update)
            if update != len(self._plan.sequences):
                self.findings.add("journal", f"finished after {update} of {len(self._plan.sequences)} updates")
            if self.saved.get(update, ("", ""))[1] != record["digest"]:
                self.findings.add("journal", f"the digest of the end is not that of the checkpoint of update {update}")


def _plain(value: Any) -> Any:
    """Return a value as it is after a round trip through JSON."""
    return json.loads(json.dumps(value))
