"""Files that are there whole or not at all, and the folder for what can be made again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where lmjax keeps what it can make again: `$XDG_CACHE_HOME/lmjax`, else `~/.cache/lmjax`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmjax"


def write_text(path: Path, text: str) -> None:
    """Writes `text`, synced and renamed into place, so that a crash leaves the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
