"""Formatting of numbers, durations and text for readers."""

import math
from collections.abc import Callable, Mapping
from typing import Any


def evaluation_line(record: Mapping[str, Any]) -> str:
    """Format an evaluation record as one line."""
    parts = [
        f"update {record['update']}",
        f"validation loss {digits(record.get('val_loss'))}",
        "" if record.get("val_bits_per_byte") is None else f"{digits(record['val_bits_per_byte'])} bits per byte",
        *(
            f"{key.removeprefix('val_').replace('_', ' ')} {digits(value)}"
            for key, value in record.items()
            if key.startswith("val_") and key not in ("val_loss", "val_bits_per_byte")
        ),
    ]
    return "  ".join(part for part in parts if part)


def quantity(value: float, unit: str = "") -> str:
    """Format a quantity with three significant digits: 32.8k, 4.10M; with a unit 1.20 GB."""
    space = " " if unit else ""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            decimals = 2 if value < 9.995 * size else 1 if value < 99.95 * size else 0
            return f"{value / size:.{decimals}f}{space}{prefix}{unit}"
    return f"{value:.0f}{space}{unit}"


def duration(seconds: float) -> str:
    """Format seconds: 3.2s, 1m05s, 2h03m, 3d04h, 1.5 years, 97,000 years."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 59.5:
        return f"{seconds:.1f}s" if seconds < 9.95 else f"{seconds:.0f}s"
    years = seconds / (365.25 * 86400)
    if years >= 1:
        return f"{years:.1f} years" if years < 9.95 else f"{float(f'{years:.2g}'):,.0f} years"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if not hours:
        return f"{minute}m{second:02}s"
    return f"{days}d{hour:02}h" if days else f"{hour}h{minute:02}m"


def memory(size: float) -> str:
    """Format a number of bytes: 512.0 KiB, 25.3 MiB, 1.50 GiB."""
    if size >= 2**30:
        return f"{size / 2**30:,.2f} GiB"
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"


def printable(text: str) -> str:
    """Replace characters that would move the cursor or change the terminal's state."""
    text = text.replace("\r\n", "\n").expandtabs(4)
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)


def known(value: Any, show: Callable[[Any], str]) -> str:
    """Format a finite number with `show`; anything else becomes the empty text."""
    return show(value) if number(value) else ""


def digits(value: Any) -> str:
    """Format a number with three decimals: `3.210`, `nan`, `inf`; anything else becomes `-`."""
    return f"{value:.3f}" if isinstance(value, int | float) and not isinstance(value, bool) else "-"


def number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
