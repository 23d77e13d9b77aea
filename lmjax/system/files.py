"""Atomic writes of files, a lock for one process, and the cache folder."""

import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lmjax.config.errors import UserError


def cache_folder() -> Path:
    """Return the folder of everything that lmjax can recreate: `$XDG_CACHE_HOME/lmjax`, else `~/.cache/lmjax`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmjax"


def write_text(path: Path, text: str) -> None:
    """Write `text`, synced and renamed into place, so that a crash leaves the old file or the new file."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, *, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Lock `path`, a folder or the name of a lock file, for this process.

    The system releases the lock when the process ends for any reason, so a leftover lock file is harmless.

    Args:
        path: the folder or lock file.
        wait: called before waiting for another process that holds the lock.

    Raises:
        UserError: Another process holds the lock, and there is no `wait`.
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
        os.close(descriptor)  # the holder removed the file just before it released the lock
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)
