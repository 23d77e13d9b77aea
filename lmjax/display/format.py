"""Formatting of numbers, durations and text for readers."""

import math
from collections.abc import Callable, Mapping
from typing import Any


def evaluation_line(record: Mapping[str, Any]) -> str:
    """Format an evaluation record as one line."""
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
    """Return (name, bits per byte, nats per token) of the model and the baselines, best first."""
    loss, bits = summary.get("val_loss"), summary.get("val_bits_per_byte")
    nats = loss / bits if number(loss) and number(bits) and bits else None  # nats per token of one bit per byte
    baselines = summary.get("baselines") or {}
    named = [
        ("this model", bits),
        ("Kneser-Ney 5-gram", baselines.get("kneser_ney_5gram_bits_per_byte")),
        ("byte unigram", baselines.get("unigram_bits_per_byte")),
    ]
    ranked = sorted(((value, name) for name, value in named if number(value)))
    return [(name, _digits(value), _digits(value * nats if nats else None)) for value, name in ranked]


def score_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return (metric, value, value of a simple baseline, expected range) of each score.

    The result is empty if the run has no other score than loss and bits per byte.
    """
    baselines, expected = (
        summary.get("baselines") or {},
        {name: (low, high) for name, low, high in summary.get("expect", ())},
    )
    rows = []
    for key, value in summary.items():
        if not key.startswith("val_") or not number(value):
            continue
        name, (low, high) = key.removeprefix("val_"), expected.get(key, (None, None))
        simple = [(k.removesuffix(name).replace("_", " ").strip(), v) for k, v in baselines.items() if k.endswith(name)]
        baseline = ", ".join(f"{who} {_digits(v)}" for who, v in simple if "byte" not in name)
        band = f"{_digits(low)} to {_digits(high)}" if low is not None else ""
        rows.append((name.replace("_", " "), _digits(value), baseline, band))
    loss_keys = {"val_loss", "val_bits_per_byte"}
    return rows if expected or any(key.startswith("val_") and key not in loss_keys for key in summary) else []


def quantity(value: float, unit: str = "") -> str:
    """Format a quantity with three significant digits: 32.8k, 4.10M, 1.20G; with a unit 1.20 GB."""
    space = " " if unit else ""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            decimals = 2 if value < 9.995 * size else 1 if value < 99.95 * size else 0
            return f"{value / size:.{decimals}f}{space}{prefix}{unit}"
    return f"{value:.0f}{space}{unit}"


def duration(seconds: float) -> str:
    """Format seconds: 3.2s, 1m05s, 2h03m, 3d04h."""
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
    """Replace the characters of `text` that would move the cursor or change the terminal's state."""
    text = text.replace("\r\n", "\n").expandtabs(4)
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)


def _known(value: Any, show: Callable[[Any], str]) -> str:
    return show(value) if number(value) else ""


def _digits(value: Any) -> str:
    return _known(value, "{:.3f}".format) or "-"


def number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
