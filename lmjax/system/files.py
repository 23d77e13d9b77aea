"""Atomic writes of files, a lock for one process, and the cache folder."""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lmjax.config.errors import UserError


def cache_folder() -> Path:
    """Return the folder of everything that lmjax can recreate.

    It is `$XDG_CACHE_HOME/lmjax`, else `~/.cache/lmjax`.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmjax"


@contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield a partial path to write; it replaces `path` at the end, or is removed on error.

    A process that dies leaves the old file, and perhaps the partial file.

    Args:
        path: The file.
        sync: Sync the content before the rename, so that a power cut also leaves the old file or the new file.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        if sync:
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):  # the error that is raised matters more
            partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` so that a crash leaves either the old file or the new file."""
    with replacing(path, sync=True) as partial:
        partial.write_text(text, encoding="utf-8")
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
        path: The folder or lock file.
        wait: Called before waiting for another process that holds the lock.

    Raises:
        UserError: Another process holds the lock, and there is no `wait`.
    """
    file = path / ".lock" if path.is_dir() else path
    lock = FileLock(file, on_acquired=_write_holder)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if wait is None:
            raise UserError(f"{path} is in use by {_holder(file)}; wait for it, or stop it first") from None
        wait()
        lock.acquire()
    try:
        yield
    finally:
        # Removed while it is locked: a process that waits for the removed file notices, and opens a new one. Windows
        # refuses to remove an open file; there the release removes it.
        with suppress(PermissionError):
            file.unlink(missing_ok=True)
        lock.release()


def _write_holder(descriptor: int) -> None:
    """Write this process into the lock file, which it holds."""
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())


def _holder(file: Path) -> str:
    """The process that holds the lock file, as far as the file tells."""
    try:
        with file.open("rb") as content:
            text = content.read(200).decode(errors="replace").strip()
    except OSError:  # just removed, or on Windows, which locks the content
        text = ""
    return text or "another process"
