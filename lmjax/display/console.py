"""Console output of a run: one live line on a terminal, plain lines elsewhere.

Output errors never stop a run: a closed pipe, a full disk or a narrow character set only loses text.
"""

import io
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO, cast

import rich.console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lmjax.display.format import digits, duration, evaluation_line, known, number, printable, quantity

NARROWEST = 20  # columns of a terminal whose width is believed
SMOOTHING = 0.95  # decay of the displayed loss: an average over about 20 records
SETTLING = 10.0  # seconds after which the displayed end of the run follows a change of pace
EARLIEST = 2.0  # seconds of training before the time left is shown: the pace until then is noise


class Console:
    """Shows the progress of a run. Use it as a context manager, which restores the terminal.

    Args:
        file: destination; default: standard output.
        live: draw a line that changes in place. None: only if `file` is a terminal.
        width: number of columns; default: that of the terminal.
        interval: seconds between two plain progress lines.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        file: TextIO | None = None,
        *,
        live: bool | None = None,
        width: int | None = None,
        interval: float = 10.0,
        clock: Any = time.monotonic,
    ):
        file = cast(TextIO, file or sys.stdout or _Nowhere())
        self._file = _Unbreakable(file)
        if live is None:
            live = file.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        self._rich = rich.console.Console(
            file=cast(TextIO, self._file),
            width=width,
            force_terminal=True if live else None,
            force_jupyter=False,
            highlight=False,
            markup=False,
            emoji=False,
        )
        if width is None and self._rich.width < NARROWEST:  # COLUMNS=0: tables would be empty
            self._rich.width = 80
        self._live_wanted = live
        self._live: Live | None = None
        self._interval = interval
        self._clock = clock
        self._printed = -math.inf
        self._begun = clock()
        self._phases: list[tuple[str, float]] = []
        self._phases_seen: set[str] = set()
        self._ingested = self._ingesting = ""  # the displayed line, and its subject
        self._progress = Progress(0, clock=clock)
        self._left = 0  # number of records at the last final state of the live line

    # ---- The run --------------------------------------------------------------------------------------------

    def start(self, updates: int, *, tokens: int = 0, context: int = 0, update: int = 0) -> None:
        """Start or resume a run.

        Args:
            updates: number of updates of the run.
            tokens: number of tokens of the run.
            context: tokens per sequence; with it, batch sizes appear in tokens.
            update: number of updates already done.
        """
        self._progress = Progress(updates, tokens=tokens, context=context, update=update, clock=self._clock)
        self._ingested, self._printed, self._left = "", -math.inf, 0
        self._show()

    def update(self, record: Mapping[str, Any]) -> None:
        """Show a record of metrics.jsonl: every evaluation, and updates at the interval."""
        if "val_loss" in record:
            self.event(evaluation_line(record))
            return
        self._progress.add(record)
        if self._show():
            return
        if self._due() or record["update"] >= self._progress.updates:
            self._print("update " + self._progress.line())

    def event(self, text: str) -> None:
        """Print an event."""
        self._print(text)

    def last_words(self, text: str) -> None:
        """Print an event; on the standard error too if the reader of the output is gone."""
        self._print(text)
        if self._file.lost and sys.stderr is not None:
            _Unbreakable(sys.stderr).write(printable(text) + "\n")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show the current phase of the run within the block: `compiling`, `saving`."""
        begun = self._clock()
        self._phases.append((name, begun))
        if not self._show() and name not in self._phases_seen:
            self._print(f"{name} ...")
        self._phases_seen.add(name)
        try:
            yield
        finally:
            self._phases.remove((name, begun))
            took = self._clock() - begun
            if not self._show() and took >= 1:
                self._print(f"{name}: {duration(took)}")

    def report(self, done: int, total: int | None = None, message: str = "") -> None:
        """Show the progress of data preparation.

        Args:
            done: number of bytes done.
            total: number of bytes in total, if known.
            message: description of the current step.
        """
        share = f" of {quantity(total, 'B')} ({min(done / total, 1):.0%})" if total else ""
        amount = f": {quantity(done, 'B')}{share}" if done or total else " ..."
        begins, self._ingesting = message != self._ingesting, message
        self._ingested = (message or "reading") + amount
        complete = bool(total) and done >= cast(int, total)
        if not self._show() and (self._due() or begins or complete):
            self._print(self._ingested)
        if complete:  # something else runs from now on
            self._ingested = ""

    # ---- Before and after -----------------------------------------------------------------------------------

    def table(self, title: str, rows: Sequence[Sequence[Any]], header: Sequence[str] = ()) -> None:
        """Print a table; with a header, all columns but the first are right-aligned."""
        table = Table(
            title=printable(title) or None, title_justify="left", title_style="bold", box=None, pad_edge=False
        )
        table.show_header = bool(header)
        for i in range(max([len(header), *map(len, rows)])):
            name = printable(header[i]) if i < len(header) else ""
            table.add_column(name, justify="right" if header and i else "left", overflow="fold")
        for row in rows:
            table.add_row(*(printable(str(cell)) for cell in row))
        self._print("")
        self._rich.print(table)

    def text(self, title: str, body: str) -> None:
        """Print a titled, indented block of text, such as a sample, without control characters."""
        width = max(self._rich.width - 2, 20)
        self._print("")
        self._rich.print(Text(printable(title), style="bold"))
        for line in printable(body).splitlines() or [""]:
            for part in Text(line).wrap(self._rich, width) or [Text("")]:
                self._print("  " + part.plain.rstrip())

    def close(self) -> None:
        """End the live line and print its last state; a second call does nothing."""
        if self._live:
            self._live.stop()
            self._live = None
            if self._progress.count > self._left:
                self._print("update " + self._progress.line(self._rich.width - len("update ")))
                self._left = self._progress.count

    def __enter__(self) -> "Console":
        self._begun = self._clock()
        self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- Drawing --------------------------------------------------------------------------------------------

    def _show(self) -> bool:
        """Start the live line if it is wanted, and return whether it is."""
        if self._live_wanted and not self._live:
            self._live = Live(get_renderable=self._status, console=self._rich, refresh_per_second=4, transient=True)
            self._live.start()
        return self._live_wanted

    def _status(self) -> Text:
        width = self._rich.width - 1
        busy = "  ".join(f"{name} {duration(self._clock() - begun)}" for name, begun in tuple(self._phases))
        line = Text(busy, style="yellow")
        room = width - len(busy) - 2 * bool(busy)
        if self._progress.count:
            shown = self._progress.line(room)
            line = Text.assemble(shown, "  " if busy and shown else "", line)
        elif self._ingested or self._progress.updates:
            line = Text.assemble(self._ingested or f"0/{self._progress.updates}", "  " if busy else "", line)
        elif not busy:
            line = Text(f"working {duration(self._clock() - self._begun)}", style="yellow")
        line.truncate(width)
        return line

    def _due(self) -> bool:
        """Return whether the next plain line is due; if so, restart the interval."""
        now = self._clock()
        due = now - self._printed >= self._interval
        self._printed = now if due else self._printed
        return due

    def _print(self, text: str) -> None:
        self._rich.print(Text(printable(text)), soft_wrap=True)


class Progress:
    """The numbers of the progress line, from the records of a run."""

    def __init__(self, updates: int, *, tokens: int = 0, context: int = 0, update: int = 0, clock: Any):
        self.updates, self.count, self.update = updates, 0, update
        self._tokens, self._context, self._clock = tokens, context, clock
        self._loss_sum = self._loss_weight = 0.0
        self._skipped = 0
        self._last: Mapping[str, Any] = {}
        self._first: tuple[float, float, int] | None = None  # (time, share of the run done, number) of a record
        self._latest = 0.0  # time of the last record
        self._end: tuple[float, float] | None = None  # when the run will end, and when that was estimated

    def add(self, record: Mapping[str, Any]) -> None:
        """Add the record of an update."""
        if number(record.get("loss")):
            self._loss_sum = SMOOTHING * self._loss_sum + record["loss"]
            self._loss_weight = SMOOTHING * self._loss_weight + 1
        elif record.get("loss") is not None:  # an average over it would be NaN forever: a new one starts after it
            self._loss_sum = self._loss_weight = 0.0
        self._skipped += int(record.get("skipped") or 0)
        self._last, self.update, self.count = record, record["update"], self.count + 1
        self._anchor(record.get("seconds"))

    def _anchor(self, seconds: Any) -> None:
        """Choose the record from which the pace is measured: the last that came with the first.

        The records of updates that were dispatched together arrive together, in no time.
        """
        self._latest = now = self._clock()
        if self._first is not None:
            took = (self.count - self._first[2]) * seconds if number(seconds) else 0
            if now - self._first[0] >= took / 2:
                return
        self._first = now, self._share(), self.count

    def left(self) -> float | None:
        """Return the remaining seconds; None if unknown.

        They follow from the average pace so far. A change of the pace moves the end of the run slowly.
        """
        share, now = self._share(), self._clock()
        took = self._latest - self._first[0] if self._first else 0.0
        if self._first is not None and share > self._first[1] and took >= EARLIEST:
            end = self._latest + took * max(1 - share, 0) / (share - self._first[1])
            if self._end is not None:
                before, looked = self._end
                end = before + (end - before) * -math.expm1((looked - now) / SETTLING)
            self._end = end, now
            return max(end - now, 0)
        speed, seconds = self._last.get("tokens_per_second"), self._last.get("seconds")
        if not (self._tokens and number(speed) and speed) or (number(seconds) and cast(float, seconds) < EARLIEST):
            return None
        return (1 - self._share()) * self._tokens / cast(float, speed)

    def line(self, width: int | None = None) -> str:
        """Return the progress line in at most `width` columns.

        The least important fields are dropped first.
        """
        record = self._last
        left = self.left() if self.update < self.updates else None
        loss = digits(self._loss_sum / self._loss_weight if self._loss_weight else record.get("loss"))
        fields = [  # (importance, text)
            (9, f"{self.update}/{self.updates}"),
            (8, f"loss {loss}"),
            (3, known(record.get("learning_rate"), lambda rate: f"lr {rate:.1e}")),
            (
                2,
                known(record.get("batch_size"), lambda size: f"batch {quantity(size * (self._context or 1))}"),
            ),
            (5, known(record.get("tokens_per_second"), lambda speed: f"{quantity(speed)} tok/s")),
            (4, known(record.get("mfu"), lambda share: f"{share:.0%} peak")),
            (6, f"{self._skipped} skipped" if self._skipped else ""),
            (7, known(left, lambda seconds: f"{duration(seconds)} left")),
        ]
        fields = [(rank, text) for rank, text in fields if text]
        while width is not None and len("  ".join(text for _, text in fields)) > width and fields:
            fields.remove(min(fields))
        return "  ".join(text for _, text in fields)

    def _share(self) -> float:
        """Return the share of the run that is done, in tokens, because the batch may grow."""
        if self._tokens and number(self._last.get("tokens")):
            return self._last["tokens"] / self._tokens
        return self.update / max(self.updates, 1)


class _Nowhere(io.TextIOBase):
    """The output of a process whose standard output is closed."""

    def write(self, text: str) -> int:
        return len(text)


class _Unbreakable:
    """A text file whose writes never raise; text that cannot be written is lost."""

    def __init__(self, file: TextIO):
        self._file = file
        #: Text was lost.
        self.lost = False

    def write(self, text: str) -> int:
        try:
            self._file.write(text)
        except UnicodeError:
            encoding = self._file.encoding or "ascii"
            self.write(text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError: the file is closed
            self._lost(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._file.flush()
        except (OSError, ValueError) as error:
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        self.lost = True
        # The reader is gone. Otherwise Python's flush at exit would fail and change the exit status.
        if isinstance(error, BrokenPipeError) and self._file is sys.__stdout__:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._file.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
