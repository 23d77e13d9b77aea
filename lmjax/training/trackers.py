"""Trackers next to metrics.jsonl: TensorBoard and Weights & Biases."""

import importlib
import math
import netrc
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from urllib.parse import urlsplit

from lmjax.config import TrackConfig
from lmjax.system.extras import missing
from lmjax.system.files import write_text

_SPEED = ("tokens_per_second", "mfu")

Record = dict[str, Any]
Report = Callable[[str], None]


class Sink(Protocol):
    """A tracker: sees every record, and every return of the run to an earlier update."""

    def write(self, record: Record) -> None:
        """Send a record."""

    def rewind(self, update: int) -> None:
        """Note that the run went back to an earlier update."""

    def close(self) -> None:
        """Send what is left and close."""


def open_trackers(
    config: TrackConfig,
    run_dir: str | Path,
    *,
    name: str,
    settings: Mapping[str, Any],
    update: int = 0,
    report: Report = lambda text: None,
) -> list[Sink]:
    """Open the configured trackers; call this on the main process only.

    Args:
        config: The configured trackers.
        run_dir: Folder for their files.
        name: The run's name.
        settings: The run's configuration, which trackers show next to its curves.
        update: The run's update (0: a fresh run).
        report: Called with messages.

    Raises:
        UserError: A configured tracker is not installed.
    """
    run_dir = Path(run_dir)
    sinks: list[Sink] = []
    if config.tensorboard:
        sinks.append(TensorBoard(run_dir / "tensorboard", update=update))
    if config.wandb:
        sinks.append(WandB(run_dir, project=config.wandb, name=name, settings=settings, report=report))
    return sinks


class TensorBoard:
    """Event files for TensorBoard, through tensorboardX."""

    def __init__(self, folder: Path, *, update: int = 0):
        self._folder = folder
        self._module = _optional("tensorboardX", "track.tensorboard")
        self._open(update)

    def _open(self, update: int) -> None:
        # purge_step hides the records from that step on, by an earlier process or by this process before a rollback.
        self._writer = self._module.SummaryWriter(
            str(self._folder.absolute()), purge_step=update + 1, flush_secs=20, filename_suffix=f".from{update}"
        )

    def write(self, record: Record) -> None:
        """Write the numbers of a record."""
        for tag, value in _scalars(record).items():
            self._writer.add_scalar(tag, value, global_step=record["update"])

    def rewind(self, update: int) -> None:
        """Open a new file that replaces the records after `update`."""
        self._writer.close()
        self._open(update)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WandB:
    """Weights & Biases, without prompts; without a login or a network, it records offline.

    The x axis is the record's own `update`, so a rollback draws its second attempt over the first. A resumed run
    continues under the id in `wandb/run_id`.
    """

    def __init__(self, run_dir: Path, *, project: str, name: str, settings: Mapping[str, Any], report: Report):
        wandb = _optional("wandb", "track.wandb")
        mode = _wandb_mode()
        arguments = {
            "project": project,
            "name": name,
            "config": dict(settings),
            "dir": str(run_dir),
            "id": _run_id(run_dir / "wandb" / "run_id"),
            "resume": "allow" if mode == "online" else None,
            "settings": _wandb_settings(wandb),
        }
        try:
            self._run = wandb.init(mode=mode, **arguments)
        except Exception as error:  # no network, a refused key, a proxy
            if mode != "online":
                raise
            report(f"Weights & Biases cannot go online ({first_line(error)})")
            mode = "offline"
            wandb.teardown()  # releases the run's id
            self._run = wandb.init(mode=mode, **arguments | {"resume": None})
        self._run.define_metric("*", step_metric="update")
        if mode == "online":
            report(f"Weights & Biases: {self._run.url}")
        elif mode == "offline":
            report(f"Weights & Biases is offline; upload later with: wandb sync {run_dir / 'wandb'}/offline-run-*")

    def write(self, record: Record) -> None:
        """Send the numbers of a record."""
        self._run.log(_scalars(record) | {"update": record["update"]})

    def rewind(self, update: int) -> None:
        """Do nothing: the x axis is the record's own update."""

    def close(self) -> None:
        """End the tracked run."""
        self._run.finish()


def _scalars(record: Record) -> dict[str, float]:
    """Return the numbers of a record by tag: `train/loss`, `validation/val_loss`.

    A value that is not finite (None in a record) is NaN, so that a tracker does not show the value before it. The speed
    of the first update is not known, and left out.
    """
    group = "validation" if "val_loss" in record else "train"
    known = {
        key: value for key, value in record.items() if key != "update" and (value is not None or key not in _SPEED)
    }
    values = {key: math.nan if value is None else value for key, value in known.items()}
    return {f"{group}/{key}": value for key, value in values.items() if _is_number(value)}


def first_line(error: Exception) -> str:
    """Return the type and the first line of an error."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _optional(module: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise missing(key, module, "track") from None


def _wandb_mode() -> str:
    """Return the mode: `WANDB_MODE` if set, else online with a login, else offline.

    A login is `WANDB_API_KEY` or `wandb login`.
    """
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        login = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        login = None
    return "online" if os.environ.get("WANDB_API_KEY") or login else "offline"


def _wandb_settings(wandb: ModuleType) -> Any:
    # With the console on, wandb would capture the terminal of the progress line. Without `finish_timeout`, releases
    # that know it would wait for the network forever at the end of a run.
    known = getattr(wandb.Settings, "model_fields", {})
    bounded = {"finish_timeout": 60} if "finish_timeout" in known else {}
    return wandb.Settings(console="off", silent=True, init_timeout=20, **bounded)


def _run_id(path: Path) -> str:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, secrets.token_hex(4))
    return path.read_text().strip()
