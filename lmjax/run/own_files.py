"""The files of a run that only this process may change while it trains."""

import threading
from collections.abc import Callable
from pathlib import Path

from lmjax.config import user_files
from lmjax.config.errors import RunError, one_line
from lmjax.run import config_hash
from lmjax.system import faults
from lmjax.system.files import Lock, OwnFolder, replacing, sync_folder
from lmjax.training import checkpoint

_CONSTANT = (config_hash.NAME, config_hash.HASHES, "tokenizer.json")
# Of a process that was killed while it replaced a file.
_LEFTOVERS = tuple(f"{name}.partial" for name in (*_CONSTANT, "journal.jsonl", "metrics.jsonl", "summary.json"))


class OwnFiles:
    """Checks that the directory of a run is as this process left it.

    The journal and the metrics check themselves with each record (`lmjax.system.append`).

    Args:
        run_dir: The directory; its files are complete.
        lock: The lock on it.
        report: Called with a line for each file that was deleted or changed from outside and is written again.
    """

    def __init__(self, run_dir: Path, lock: Lock, report: Callable[[str], None]) -> None:
        self._run_dir = OwnFolder(run_dir)
        self._checkpoints: OwnFolder | None = None
        self._lock = lock
        self._report = report
        constant = [*(run_dir / name for name in _CONSTANT), *(run_dir / user_files.FOLDER).rglob("*")]
        for leftover in (run_dir / name for name in _LEFTOVERS):
            if leftover.is_file() or leftover.is_symlink():
                leftover.unlink()
        self._contents = {path: path.read_bytes() for path in constant if path.is_file()}
        self._threads = threading.Lock()  # the loop and the thread of a save call `check`

    def check(self) -> None:
        """Check the directory, the lock and the files; write again what was lost.

        Raises:
            RunError: The directory or its checkpoints were replaced, another process works in it, or a file cannot be
                written again.
        """
        with self._threads:
            faults.reach("own")
            self._run_dir.check()
            self._check_checkpoints(self._run_dir.path / "checkpoints")
            if self._lock.check():
                self._report(f"{self._run_dir.path / '.lock'} was deleted by another program: locked again")
            for path, content in self._contents.items():
                self._check_content(path, content)

    def _check_checkpoints(self, folder: Path) -> None:
        # A write under way makes a deleted folder again: without a checkpoint it counts as deleted.
        if self._checkpoints is not None and (self._checkpoints.is_same() or checkpoint.folders(folder)):
            self._checkpoints.check()
            return
        if self._checkpoints is not None:
            self._report(f"{folder} was deleted by another program: the next checkpoint begins a new folder")
        folder.mkdir(exist_ok=True)
        self._checkpoints = OwnFolder(folder)

    def _check_content(self, path: Path, content: bytes) -> None:
        try:
            with path.open("rb") as file:
                if file.read(len(content) + 1) == content:
                    return
            problem = "was changed"
        except OSError:
            problem = "was deleted"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, sync=True) as partial:
                partial.write_bytes(content)
                faults.reach("own.again")
            sync_folder(path.parent)
        except OSError as error:
            raise RunError(f"{path} {problem} and cannot be written again: {one_line(error)}") from None
        self._report(f"{path} {problem} by another program: written again")
