"""What a person sees of a run: one live line on a terminal, plain lines anywhere else (pipe, log, notebook).

Nothing here can stop a run: a closed pipe, a full disk or a narrow character set costs the text and no more.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO, cast

import rich.console
from rich.live import Live
from rich.table import Table
from rich.text import Text

SMOOTHING = 0.95  # of the loss shown: about the last 20 records


class Console:
    """Shows the progress of a run on `file` (standard output).

    live: draw a line that changes in place; None: if `file` is a terminal. interval: seconds between two plain
    progress lines. Use it as a context manager, so that the terminal is left as it was found.
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
        file = cast(TextIO, file or sys.stdout)
        if live is None:
            live = file.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        self._rich = rich.console.Console(
            file=cast(TextIO, _Unbreakable(file)),
            width=width,
            force_terminal=True if live else None,
            force_jupyter=False,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self._live_wanted = live
        self._live: Live | None = None
        self._interval = interval
        self._clock = clock
        self._printed = -math.inf
        self._phases: list[tuple[str, float]] = []
        self._phases_seen: set[str] = set()
        self._ingested = self._ingesting = ""  # the line shown, and what it is about
        self._progress = Progress(0, clock=clock)
        self._left = 0  # records shown when the live line was last left standing

    # ---- The run --------------------------------------------------------------------------------------------

    def start(self, updates: int, *, tokens: int = 0, context: int = 0, update: int = 0) -> None:
        """A run of `updates` updates and `tokens` tokens begins (or goes on) after `update`.

        context: tokens a sequence; with it the batch is shown in tokens.
        """
        self._progress = Progress(updates, tokens=tokens, context=context, update=update, clock=self._clock)
        self._ingested, self._printed, self._left = "", -math.inf, 0
        self._show()

    def update(self, record: Mapping[str, Any]) -> None:
        """Shows a record of metrics.jsonl: evaluations always, updates as often as is readable."""
        if "val_loss" in record:
            self.event(evaluation_line(record))
            return
        self._progress.add(record)
        if self._show():
            return
        if self._due() or record["update"] >= self._progress.updates:
            self._print("update " + self._progress.line())

    def event(self, text: str) -> None:
        """Something that happened; always shown."""
        self._print(text)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """While it lasts, what the run is busy with: `compiling`, `evaluating`, `saving`."""
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
        """Progress of preparing data: bytes done, of how many if that is known, and what is being done."""
        share = f" of {quantity(total, 'B')} ({min(done / total, 1):.0%})" if total else ""
        amount = f": {quantity(done, 'B')}{share}" if done or total else " ..."
        begins, self._ingesting = message != self._ingesting, message
        self._ingested = (message or "reading") + amount
        if not self._show() and (self._due() or begins or (total and done >= total)):
            self._print(self._ingested)

    # ---- Before and after -----------------------------------------------------------------------------------

    def table(self, title: str, rows: Sequence[Sequence[Any]], header: Sequence[str] = ()) -> None:
        """A table: the first column to the left, the others to the right if there is a header."""
        table = Table(title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.show_header = bool(header)
        for i in range(max([len(header), *map(len, rows)])):
            name = header[i] if i < len(header) else ""
            table.add_column(name, justify="right" if header and i else "left", overflow="fold")
        for row in rows:
            table.add_row(*(printable(str(cell)) for cell in row))
        self._print("")
        self._rich.print(table)

    def text(self, title: str, body: str) -> None:
        """A titled, indented block of text, such as what the model wrote; control characters are made harmless."""
        width = max(self._rich.width - 2, 20)
        self._print("")
        self._rich.print(Text(title, style="bold"))
        for line in printable(body).splitlines() or [""]:
            for part in Text(line).wrap(self._rich, width) or [Text("")]:
                self._print("  " + part.plain.rstrip())

    def final(
        self,
        summary: Mapping[str, Any],
        *,
        sample: str = "",
        plots: Sequence[Any] = (),
        commands: Sequence[str] = (),
    ) -> None:
        """The end of a run: what it reached beside the baselines (the fields of summary.json), and what to do next."""
        self.close()
        parts = [
            f"{summary.get('status', 'finished')}: {summary.get('updates', 0)} updates",
            _known(summary.get("tokens"), lambda value: f"{quantity(value)} tokens"),
            _known(summary.get("seconds"), duration),
            _known(summary.get("peak_memory_bytes"), lambda value: f"{quantity(value, 'B')} memory"),
        ]
        self._print("")
        self._print(", ".join(part for part in parts if part))
        rows = result_rows(summary)
        if rows:
            self.table("Validation", rows, header=("", "bits per byte", "loss (nats per token)"))
        rows = score_rows(summary)
        if rows:
            self.table("Results", rows, header=("", "this model", "simple baseline", "expected"))
        if best := summary.get("best"):
            self._print(f"\nbest checkpoint: update {best['update']}, validation loss {_digits(best['val_loss'])}")
        if sample:
            self.text("Sample", sample)
        for title, lines in (("Plots", plots), ("Next", commands)):
            for i, line in enumerate(lines):
                self._print(("\n" if i == 0 else "") + f"{title if i == 0 else '':<7}{line}")

    def close(self) -> None:
        """Ends the live line and leaves its last state; calling it again does nothing."""
        if self._live:
            self._live.stop()
            self._live = None
            if self._progress.count > self._left:
                self._print("update " + self._progress.line(self._rich.width - len("update ")))
                self._left = self._progress.count

    def __enter__(self) -> "Console":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- Drawing --------------------------------------------------------------------------------------------

    def _show(self) -> bool:
        """Makes sure the live line is there; False where there is none."""
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
        line.truncate(width)
        return line

    def _due(self) -> bool:
        """Whether it is time for the next plain line; if so, the time to the one after begins."""
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
        self._first: tuple[float, float] | None = None  # (seconds, share of the run done) at the first record

    def add(self, record: Mapping[str, Any]) -> None:
        if _number(record.get("loss")):
            self._loss_sum = SMOOTHING * self._loss_sum + record["loss"]
            self._loss_weight = SMOOTHING * self._loss_weight + 1
        self._skipped += int(record.get("skipped") or 0)
        self._last, self.update, self.count = record, record["update"], self.count + 1
        self._first = self._first or (self._clock(), self._share())

    def left(self) -> float | None:
        """Seconds to the end at the pace since the first record, everything included; None: not known yet."""
        share = self._share()
        if self._first is None or share <= self._first[1]:
            speed = self._last.get("tokens_per_second")
            known = self._tokens and _number(speed) and speed
            return (1 - share) * self._tokens / cast(float, speed) if known else None
        return (self._clock() - self._first[0]) * max(1 - share, 0) / (share - self._first[1])

    def line(self, width: int | None = None) -> str:
        """The progress line, in at most `width` columns: what matters least goes first."""
        record = self._last
        left = self.left() if self.update < self.updates else None
        loss = f"{self._loss_sum / self._loss_weight:.3f}" if self._loss_weight else "-"
        fields = [  # (how much it matters, text)
            (9, f"{self.update}/{self.updates}"),
            (8, f"loss {loss}"),
            (3, _known(record.get("learning_rate"), lambda rate: f"lr {rate:.1e}")),
            (
                2,
                _known(record.get("batch_size"), lambda size: f"batch {quantity(size * (self._context or 1))}"),
            ),
            (5, _known(record.get("tokens_per_second"), lambda speed: f"{quantity(speed)} tok/s")),
            (4, _known(record.get("mfu"), lambda share: f"{share:.0%} peak")),
            (6, f"{self._skipped} skipped" if self._skipped else ""),
            (7, _known(left, lambda seconds: f"{duration(seconds)} left")),
        ]
        fields = [(rank, text) for rank, text in fields if text]
        while width is not None and len("  ".join(text for _, text in fields)) > width and fields:
            fields.remove(min(fields))
        return "  ".join(text for _, text in fields)

    def _share(self) -> float:
        """The share of the run that is done: in tokens, so that a growing batch does not mislead."""
        if self._tokens and _number(self._last.get("tokens")):
            return self._last["tokens"] / self._tokens
        return self.update / max(self.updates, 1)


class _Unbreakable:
    """A text file whose writing never raises: what cannot be written is lost."""

    def __init__(self, file: TextIO):
        self._file = file

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
        # Nobody reads any more. Without this Python's own flush at exit would complain and change the exit status.
        if isinstance(error, BrokenPipeError) and self._file is sys.__stdout__:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._file.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


# ---- Words and numbers ------------------------------------------------------------------------------------------


def evaluation_line(record: Mapping[str, Any]) -> str:
    """One line for an evaluation record."""
    parts = [
        f"update {record['update']}",
        f"validation loss {_digits(record.get('val_loss'))}",
        _known(record.get("val_bits_per_byte"), lambda value: f"{value:.3f} bits per byte"),
        *(
            f"{key.removeprefix('val_').replace('_', ' ')} {_digits(value)}"
            for key, value in record.items()
            if key.startswith("val_") and key not in ("val_loss", "val_bits_per_byte")
        ),
    ]
    return "  ".join(part for part in parts if part)


def result_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, bits per byte, nats per token) of the model and the baselines, best first."""
    loss, bits = summary.get("val_loss"), summary.get("val_bits_per_byte")
    nats = loss / bits if _number(loss) and _number(bits) and bits else None  # nats per token of one bit per byte
    baselines = summary.get("baselines") or {}
    named = [
        ("this model", bits),
        ("Kneser-Ney 5-gram", baselines.get("kneser_ney_5gram_bits_per_byte")),
        ("byte unigram", baselines.get("unigram_bits_per_byte")),
    ]
    found = sorted(((value, name) for name, value in named if _number(value)))
    return [(name, _digits(value), _digits(value * nats if nats else None)) for value, name in found]


def score_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(metric, reached, what a simple means reaches, what the configuration is known to reach), where there is more
    to say than bits per byte."""
    baselines, expected = (
        summary.get("baselines") or {},
        {name: (low, high) for name, low, high in summary.get("expect", ())},
    )
    rows = []
    for key, value in summary.items():
        if not key.startswith("val_") or not _number(value):
            continue
        name, (low, high) = key.removeprefix("val_"), expected.get(key, (None, None))
        simple = [(k.removesuffix(name).replace("_", " ").strip(), v) for k, v in baselines.items() if k.endswith(name)]
        beside = ", ".join(f"{who} {_digits(v)}" for who, v in simple if "byte" not in name)
        band = f"{_digits(low)} to {_digits(high)}" if low is not None else ""
        rows.append((name.replace("_", " "), _digits(value), beside, band))
    told = {"val_loss", "val_bits_per_byte"}
    return rows if expected or any(key.startswith("val_") and key not in told for key in summary) else []


def quantity(value: float, unit: str = "") -> str:
    """Three significant digits: 32.8k, 4.10M, 1.20G; with a unit 1.20 GB."""
    space = " " if unit else ""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            decimals = 2 if value < 9.995 * size else 1 if value < 99.95 * size else 0
            return f"{value / size:.{decimals}f}{space}{prefix}{unit}"
    return f"{value:.0f}{space}{unit}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 3.2s, 1m05s, 2h03m, 3d04h."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 59.5:
        return f"{seconds:.1f}s" if seconds < 9.95 else f"{seconds:.0f}s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if not hours:
        return f"{minute}m{second:02}s"
    return f"{days}d{hour:02}h" if days else f"{hour}h{minute:02}m"


def printable(text: str) -> str:
    """`text` without characters that would move the cursor or change the terminal's state."""
    text = text.replace("\r\n", "\n").expandtabs(4)
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)


def _known(value: Any, show: Callable[[Any], str]) -> str:
    return show(value) if _number(value) else ""


def _digits(value: Any) -> str:
    return _known(value, "{:.3f}".format) or "-"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
