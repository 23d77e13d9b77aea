"""What a person sees: plain lines in a pipe, one live line on a terminal, and nothing that stops a run."""

import io
import math
import os
import re
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.display.console import Console, Progress
from lmjax.display.format import duration, evaluation_line, memory, printable, quantity
from tests import ROOT


class Clock:
    """A clock that the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def record(update: int, **fields) -> dict:
    base = {
        "update": update,
        "loss": 4.0,
        "learning_rate": 6e-4,
        "batch_size": 128,
        "tokens": update * 32_768,
        "tokens_per_second": 12_345.6,
        "mfu": 0.412,
        "skipped": 0,
    }
    return base | fields


def screen(text: str) -> str:
    """The text without the control sequences that colour it or move the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


# ---- Plain lines ------------------------------------------------------------------------------------------------


def test_a_pipe_gets_the_first_update_then_one_line_every_ten_seconds_and_the_last() -> None:
    out, clock = io.StringIO(), Clock()
    with Console(out, clock=clock, width=80) as console:
        console.start(100, tokens=100 * 32_768, context=256)
        for update in range(1, 101):
            console.update(record(update))
            clock.now += 1
    lines = out.getvalue().splitlines()
    assert [int(re.match(r"update (\d+)/100", line)[1]) for line in lines] == [1, *range(11, 100, 10), 100]
    assert lines[1] == "update 11/100  loss 4.000  lr 6.0e-04  batch 32.8k  12.3k tok/s  41% peak  1m29s left"
    assert lines[-1] == "update 100/100  loss 4.000  lr 6.0e-04  batch 32.8k  12.3k tok/s  41% peak"
    assert "\x1b" not in out.getvalue()


def test_titles_and_headers_have_no_control_characters() -> None:
    out = io.StringIO()
    with Console(out, width=80) as console:
        console.table("a\0b", [["c\x1b[2J", "d"]], header=["e\x07", "f"])
        console.text("g\x1b[2J", "h")
    assert not set(out.getvalue()) & set("\0\x1b\x07")
    assert "a\ufffdb" in out.getvalue()


def test_evaluations_and_events_are_always_printed() -> None:
    out, clock = io.StringIO(), Clock()
    console = Console(out, clock=clock, width=40)
    console.start(10)
    console.update(record(1))
    console.update({"update": 1, "tokens": 5, "val_loss": 3.25, "val_bits_per_byte": 1.5})
    console.update({"update": 2, "tokens": 5, "val_loss": None, "val_bits_per_byte": None})
    console.event("an event [with brackets] and a path /long/enough/to/be/wider/than/the/console")
    assert out.getvalue().splitlines()[1:] == [
        "update 1  validation loss 3.250  1.500 bits per byte",
        "update 2  validation loss -",
        "an event [with brackets] and a path /long/enough/to/be/wider/than/the/console",
    ]


def test_phases_are_announced_once_and_timed_when_long() -> None:
    out, clock = io.StringIO(), Clock()
    console = Console(out, clock=clock)
    for seconds in (0.2, 75, 0.1):
        with console.phase("saving"):
            clock.now += seconds
    with pytest.raises(KeyError), console.phase("evaluating"):
        raise KeyError
    assert out.getvalue().splitlines() == ["saving ...", "saving: 1m15s", "evaluating ..."]


def test_reading_data_is_shown_with_its_share_when_known() -> None:
    out, clock = io.StringIO(), Clock()
    console = Console(out, clock=clock)
    for done in range(0, 2001, 100):
        console.report(done * 1_000_000, 2_000_000_000, "tokenizing")
        clock.now += 1
    console.report(2_000_000_000, None, "hashing")
    console.report(0, None, "waiting for another process")
    assert out.getvalue().splitlines() == [
        "tokenizing: 0 B of 2.00 GB (0%)",
        "tokenizing: 1.00 GB of 2.00 GB (50%)",
        "tokenizing: 2.00 GB of 2.00 GB (100%)",
        "hashing: 2.00 GB",
        "waiting for another process ...",
    ]


# ---- The live line ----------------------------------------------------------------------------------------------


def run_on_a_terminal(width: int) -> str:
    out = Terminal()
    with Console(out, width=width) as console:
        console.report(1_000_000, 2_000_000, "tokenizing")
        time.sleep(0.3)  # the line is drawn four times a second
        console.start(2000, tokens=2000 * 32_768, context=256)
        with console.phase("compiling"):
            time.sleep(0.3)
        console.update(record(1))
        time.sleep(0.3)
        console.event("something happened")
        console.update({"update": 1, "tokens": 5, "val_loss": 3.25, "val_bits_per_byte": 1.5})
    return out.getvalue()


def test_a_terminal_gets_one_line_that_changes(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    text = run_on_a_terminal(80)
    shown = screen(text)
    assert "\x1b[?25l" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is given back
    for expected in (
        "tokenizing: 1.00 MB of 2.00 MB (50%)",
        "compiling 0.",
        "1/2000  loss 4.000  lr 6.0e-04",
    ):
        assert expected in shown
    for line in re.split(r"[\r\n]", shown):
        assert len(line) <= 80
    assert shown.count("something happened") == 1
    assert shown.rstrip().splitlines()[-1].startswith("update 1/2000  loss 4.000")  # what stays on the screen


def test_the_last_line_is_left_standing_once(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    console = Console(out, width=80)
    console.start(1)
    console.update(record(1))
    console.close()
    with console.phase("drawing"):  # the live line comes back for it
        pass
    console.close()
    assert screen(out.getvalue()).count("update 1/1") == 1


def test_a_narrow_terminal_keeps_what_matters_most() -> None:
    progress = Progress(2000, tokens=2000 * 32_768, context=256, clock=Clock())
    progress.add(record(1))
    widths = {width: progress.line(width) for width in range(90)}
    assert all(len(line) <= width for width, line in widths.items())
    assert "batch" in widths[79]
    assert widths[40] == "1/2000  loss 4.000  1h28m left"
    assert widths[22] == "1/2000  loss 4.000"
    assert widths[0] == ""


def test_colours_are_off_with_no_color(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    with Console(out, width=80) as console, console.phase("compiling"):
        time.sleep(0.3)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", out.getvalue())


def test_a_dumb_terminal_gets_plain_lines(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    with Console(out, width=80) as console:
        console.start(5)
        console.update(record(1))
    assert out.getvalue().startswith("update 1/5")
    assert "\x1b" not in out.getvalue()


# ---- Numbers ----------------------------------------------------------------------------------------------------


def test_the_loss_shown_is_a_mean_that_ignores_missing_values() -> None:
    progress = Progress(10, clock=Clock())
    for update, loss in enumerate([4.0, None, 2.0], 1):
        progress.add(record(update, loss=loss, skipped=int(loss is None)))
    expected = (0.95 * 4.0 + 2.0) / 1.95
    assert f"loss {expected:.3f}" in progress.line()
    assert "1 skipped" in progress.line()


def test_time_left_counts_tokens_so_that_a_growing_batch_does_not_mislead() -> None:
    clock = Clock()
    progress = Progress(100, tokens=1_000_000, clock=clock)
    progress.add(record(1, tokens=100_000, tokens_per_second=1000.0))
    assert progress.left() == pytest.approx(900)  # from the speed alone
    clock.now += 50
    progress.add(record(2, tokens=200_000))
    assert progress.left() == pytest.approx(400)  # 50 s for each tenth of the tokens
    assert Progress(100, clock=clock).left() is None


def test_a_record_with_nothing_but_its_update_can_be_shown() -> None:
    progress = Progress(3, clock=Clock())
    progress.add({"update": 1})
    assert progress.line() == "1/3  loss -"
    progress.add({"update": 3, "mfu": float("nan"), "tokens_per_second": None, "learning_rate": None})
    assert progress.line() == "3/3  loss -"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.7, "1.00k"),
        (32_768, "32.8k"),
        (4.1e6, "4.10M"),
        (99_950, "100k"),
        (2.5e12, "2.50T"),
    ],
)
def test_quantity(value: float, text: str) -> None:
    assert quantity(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0s"),
        (9.96, "10s"),
        (59.6, "1m00s"),
        (3599.7, "1h00m"),
        (90_000, "1d01h"),
        (365 * 86_400, "365d00h"),
        (1.5 * 365.25 * 86_400, "1.5 years"),
        (97_100 * 365.25 * 86_400, "97,000 years"),
        (float("inf"), "?"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ---- Before and after -------------------------------------------------------------------------------------------


def test_tables_fold_rather_than_cut() -> None:
    out = io.StringIO()
    Console(out, width=40).table("Plan", [("parameters", 1234), ("path", "x" * 60), ("uneven",)])
    text = out.getvalue()
    assert text.count("x") == 60
    assert all(len(line) <= 40 for line in text.splitlines())
    Console(out).table("", [])


def test_text_of_a_model_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b[31mb\r\nc\td\x07\x00é中\u202e") == "a\ufffd[31mb\nc   d\ufffd\ufffdé中\ufffd"


# ---- Nothing stops a run ----------------------------------------------------------------------------------------


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        raise ValueError("I/O operation on closed file")


@pytest.mark.parametrize("live", [False, True])
def test_a_file_that_cannot_be_written_costs_only_the_text(live: bool) -> None:
    with Console(Broken(), live=live, width=80) as console:
        console.start(3)
        with console.phase("compiling"):
            console.update(record(1))
        console.table("Results", [("loss", 1.0)])


def test_a_narrow_character_set_loses_only_what_it_lacks() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    Console(out, width=80).text("Sample", "caf\u00e9 \u4e2d")
    out.flush()
    assert raw.getvalue().decode("ascii").splitlines()[-1] == "  caf? ?"


def test_a_reader_that_leaves_does_not_change_the_exit_status() -> None:
    code = """
import sys
from lmjax.display.console import Console
with Console() as console:
    console.event("first")
    sys.stdin.read()
    for _ in range(1000):
        console.event("x" * 1000)
    print("and what others print")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline() == "first\n"
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0
    process.stderr.close()


# ---- Values that are not finite, and averages that are not full -------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_is_shown_as_it_is_and_leaves_nothing_behind(value: float) -> None:
    progress = Progress(100, clock=Clock())
    for update, loss in enumerate((4.0, 4.0, value), 1):
        progress.add(record(update, loss=loss))
    assert f"loss {value}  " in progress.line()
    progress.add(record(4, loss=2.0))
    assert "loss 2.000  " in progress.line()  # the mean since then


@given(st.lists(st.floats(-10, 10) | st.just(math.nan), min_size=1, max_size=12))
def test_the_shown_loss_is_within_the_losses_since_the_last_nan(losses: list[float]) -> None:
    progress = Progress(100, clock=Clock())
    for update, loss in enumerate(losses, 1):
        progress.add(record(update, loss=loss))
    shown = float(re.search(r"loss (\S+)", progress.line())[1])  # type: ignore[index]
    since = losses[max([-1, *(i for i, loss in enumerate(losses) if math.isnan(loss))]) + 1 :]
    assert math.isnan(shown) if not since else min(since) - 1e-3 <= shown <= max(since) + 1e-3


def test_an_evaluation_that_is_not_finite_says_so() -> None:
    line = evaluation_line({"update": 3, "val_loss": math.nan, "val_bits_per_byte": math.inf, "val_accuracy": None})
    assert line == "update 3  validation loss nan  inf bits per byte  accuracy -"


def test_the_time_left_is_not_that_of_records_which_arrive_together() -> None:
    """Eight updates a dispatch, two seconds each; the records of a dispatch arrive at the same moment."""
    clock = Clock()
    progress, before = Progress(80, clock=clock), None
    for dispatch in range(10):
        clock.now += 16
        for update in range(8):
            progress.add({"update": 8 * dispatch + update + 1, "loss": 1.0, "seconds": 2.0})
        left, true = progress.left(), 16 * (9 - dispatch)
        if dispatch:
            assert left == pytest.approx(true, rel=1e-6)
        else:
            assert left is None  # no pace yet, not "0.0s left"
        before = left
    assert before == 0


def test_memory_is_never_zero_point_zero() -> None:
    sizes = {512: "0.5 KiB", 2**20 - 600: "1023.4 KiB", 2**20: "1.0 MiB", 25 << 20: "25.0 MiB", 3 << 29: "1.50 GiB"}
    assert {size: memory(size) for size in sizes} == sizes


def test_the_time_left_is_not_shown_at_first_and_does_not_jump() -> None:
    """Ten updates a second, and after three seconds the machine is busy for two: the average pace jumps by 65 %."""
    clock = Clock()
    progress, shown = Progress(10_000, clock=clock), []
    for update in range(1, 1000):
        clock.now += 2 if update == 30 else 0.1
        progress.add({"update": update, "loss": 1.0, "seconds": 0.1})
        shown.append(progress.left())
    assert shown[:20] == [None] * 20  # 1.9 seconds after the first record
    assert shown[21] == pytest.approx(997.8)
    assert max(abs(after / before - 1) for before, after in pairwise(shown[21:])) < 0.15
    assert shown[-1] == pytest.approx(9001 * (997 * 0.1 + 2) / 998, rel=0.01)  # the average pace


def test_the_last_words_reach_the_standard_error_if_the_reader_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with Console(Gone()) as console:
        console.event("lost")
        console.last_words("resume with: x")
    assert capsys.readouterr().err == "resume with: x\n"
    with Console(io.StringIO()) as console:
        console.last_words("resume with: x")
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_at_once_that_something_runs_and_no_step_that_is_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    clock = Clock()
    with Console(Terminal(), width=80, clock=clock) as console:
        clock.now += 6
        assert console._status().plain == "working 6.0s"
        console.report(50, 100, "hashing")
        assert console._status().plain == "hashing: 50 B of 100 B (50%)"
        console.report(100, 100, "hashing")
        assert console._status().plain == "working 6.0s"


def test_a_closed_standard_output_and_a_width_of_zero_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with Console() as console:
        console.event("x")
    out = io.StringIO()
    monkeypatch.setenv("COLUMNS", "0")
    Console(out).table("Results", [("loss", "1.0")])
    assert "1.0" in out.getvalue()
