"""The callbacks that `train.callbacks` names."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.config import extensions
from lmjax.config.errors import one_line
from lmjax.training.events import Event, Kind, Notify


def notifier(names: Sequence[str], run_dir: Path, *, report: Callable[[str], None]) -> Notify:
    """Return a function that reports an event to all callbacks.

    A callback that raises an error is reported and not called again; the run continues.

    Args:
        names: The registered names.
        run_dir: The run directory.
        report: Shows a line of text.
    """
    active = {name: extensions.get("callback", name) for name in names}

    def notify(kind: Kind, update: int, values: Mapping[str, Any]) -> None:
        for name, call in list(active.items()):
            try:
                call(Event(kind, run_dir, update, values))
            except (Exception, SystemExit) as error:
                del active[name]
                reason = f"{type(error).__name__}: {one_line(error)}"
                report(
                    f"update {update}: the callback {name} failed on '{kind}' ({reason}) and is not called again; "
                    "training continues"
                )

    return notify
