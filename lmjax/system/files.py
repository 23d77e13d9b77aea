"""Atomic writes of files, a lock for one process, and the cache folder."""

import os
import platform
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lmjax.config.errors import RunError, UserError


def cache_folder() -> Path:
    """Return the folder of everything that lmjax can recreate.

    It is `$XDG_CACHE_HOME/lmjax`, else `~/.cache/lmjax`, else a folder of this user among the temporary files.

    Raises:
        UserError: There is neither a home directory nor a folder for temporary files.
    """
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "lmjax"
    try:
        return Path.home() / ".cache" / "lmjax"
    except RuntimeError:  # HOME is not set, and the user has no entry in the password database
        return _temporary_cache()


def _temporary_cache() -> Path:
    """Return a cache folder that only this user can write: programs in it are executed."""
    refusal = UserError("there is no home directory for the cache; set XDG_CACHE_HOME to a folder that you can write")
    try:
        folder = Path(tempfile.gettempdir()) / f"lmjax-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        raise refusal from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise refusal
    return folder


@contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield a partial path to write; it replaces `path` at the end, or is removed on error.

    A process that dies leaves the old file, and perhaps the partial file.

    Args:
        path: The file.
        sync: Sync the content before the rename, so that a power cut also leaves the old file or the new file.

    Raises:
        OSError: The file cannot be written; the error names `path`.
    """
    partial = path.with_name(path.name + ".partial")
    if partial.is_symlink():  # it would be written through
        partial.unlink()
    try:
        yield partial
        if sync:
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):  # the error that is raised matters more
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # an error of a write names no file
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` so that a crash leaves either the old file or the new file."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` so that a crash leaves either the old file or the new file."""
    with replacing(path, sync=True) as partial:
        partial.write_bytes(content)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Lock:
    """A lock on a folder or the name of a lock file, which this process holds; see `locked`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path / ".lock" if path.is_dir() else path
        self._descriptor = -1
        self._lock = self._new_lock()

    def acquire(self, wait: Callable[[], None] | None = None) -> None:
        """Acquire the lock.

        Args:
            wait: Called before waiting for another process that holds the lock.

        Raises:
            UserError: Another process holds the lock, and there is no `wait`.
        """
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            if wait is None:
                holder = _holder(self._file)
                raise UserError(f"{self.path} is in use by {holder}; wait for it, or stop it first") from None
            wait()
            self._lock.acquire()

    def check(self) -> bool:
        """Check that no other process can hold the lock; acquire it again if its file was deleted.

        Returns:
            Whether it had to be acquired again.

        Raises:
            RunError: The file was deleted, and another process holds the lock now.
        """
        if self._is_own_file():
            return False
        before, self._lock = self._lock, self._new_lock()
        try:
            self._lock.acquire(blocking=False)
        except (Timeout, OSError):
            self._lock = before
            raise RunError(
                f"{self._file} was deleted, and {_holder(self._file)} works in {self.path} now: this process stops"
            ) from None
        before.release()
        return True

    def release(self) -> None:
        """Release the lock and remove its file."""
        # Removed while it is locked: a process that waits for the removed file notices, and opens a new one. Windows
        # refuses to remove an open file; there the release removes it.
        if self._is_own_file():
            with suppress(PermissionError):
                self._file.unlink(missing_ok=True)
        self._lock.release()

    def _new_lock(self) -> FileLock:
        return FileLock(self._file, on_acquired=self._own, thread_local=False)  # a save's thread checks it, too

    def _own(self, descriptor: int) -> None:
        """Write this process into the lock file, which it holds."""
        self._descriptor = descriptor
        with suppress(OSError):  # on a full disk the lock holds without a name
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())

    def _is_own_file(self) -> bool:
        """Whether the file at the path is the one that is locked."""
        try:
            return os.path.samestat(os.lstat(self._file), os.fstat(self._descriptor))
        except OSError:
            return False


@contextmanager
def locked(path: Path, *, wait: Callable[[], None] | None = None) -> Iterator[Lock]:
    """Lock `path`, a folder or the name of a lock file, for this process.

    The system releases the lock when the process ends for any reason, so a leftover lock file is harmless.

    Args:
        path: The folder or lock file.
        wait: Called before waiting for another process that holds the lock.

    Yields:
        The lock.

    Raises:
        UserError: Another process holds the lock, and there is no `wait`.
    """
    lock = Lock(path)
    lock.acquire(wait)
    try:
        yield lock
    finally:
        lock.release()


class OwnFolder:
    """A folder that must stay the one that was opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened = os.stat(path)

    def check(self) -> None:
        """Check that the folder at the path is the one that was opened.

        Raises:
            RunError: It was deleted, moved or replaced.
        """
        if self.is_same():
            return
        what = "replaced" if self.path.exists() else "deleted or moved"
        raise RunError(f"{self.path} was {what} while this process used it; bring it back, then resume")

    def is_same(self) -> bool:
        """Return whether the folder at the path is the one that was opened."""
        try:
            return os.path.samestat(os.stat(self.path), self._opened)
        except OSError:
            return False


def _holder(file: Path) -> str:
    """The process that holds the lock file, as far as the file tells."""
    try:
        with file.open("rb") as content:
            text = content.read(200).decode(errors="replace").strip()
    except OSError:  # just removed, or on Windows, which locks the content
        text = ""
    return text or "another process"
