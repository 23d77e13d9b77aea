"""Files that are whole or absent, a lock that one process holds, and the folder for what can be made again."""

import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lmjax.typed import UserError


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


@contextmanager
def locked(path: Path, *, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds `path`, a folder or the name of a lock file, for this process alone.

    Where another process holds it: UserError, or, given `wait`, calls that and waits. The system lets go of the lock
    when the process ends, however it ends: a file that is left behind is no obstacle.
    """
    file = path / ".lock" if path.is_dir() else path
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait is None:
                holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
                os.close(descriptor)
                raise UserError(f"{path} is in use by {holder}; wait for it, or stop it first") from None
            wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if os.fstat(descriptor).st_ino == os.stat(file).st_ino:
                break
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its holder removed it just before letting go
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)
