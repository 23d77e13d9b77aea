"""Checkpoints: arrays written by Orbax, a manifest of the files' hashes, and retention.

`checkpoints/<update>/` holds `state/` (Orbax), `meta.json` (counters, digest, fingerprints) and `manifest.json` (the
sha256 of every other file). It is written as `<update>.partial` and renamed when complete, so a crash leaves nothing
that looks like a checkpoint. Orbax restores a flipped bit without an error; the manifest is therefore checked before a
restore. A rollback moves the checkpoints after its target to `checkpoints/quarantine/`.
"""

import hashlib
import json
import math
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lmjax.config import CheckpointConfig
from lmjax.config.errors import RunError, one_line
from lmjax.config.json_text import parse_json
from lmjax.config.regular_files import open_regular, read_regular
from lmjax.journal.history import Announced
from lmjax.parallel import processes
from lmjax.pytrees import all_finite, digest, nbytes
from lmjax.system import faults, machine
from lmjax.system.files import sync_folder, write_text
from lmjax.training.arrays import ArrayWriter, check_saved, digest_of_saved, read_arrays
from lmjax.training.state import abstract_state

MANIFEST = "manifest.json"
_LARGEST = 1 << 26  # bytes of a manifest
_READ_BACK = 4  # a state is read back if this many times its size is free
_PARTIAL = re.compile(r"[0-9]+(\.old)?\.partial")
_UPDATE = re.compile(r"0|[1-9][0-9]{0,17}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class CheckpointError(RunError):
    """A checkpoint could not be written, or no checkpoint could be read.

    The message names the update or the files.
    """


class NotFinite(CheckpointError):
    """A state has an element that is not finite, so it is not saved."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint."""

    #: Its folder.
    folder: Path
    #: Content of meta.json: update, cursor, wall_step, digest and the run's fingerprints.
    meta: dict[str, Any]


class Checkpoints:
    """Writer of the checkpoints of one run, with at most one save in flight.

    Only the run that trains may create it, since it removes the partial folders of a crash.

    Args:
        folder: Folder of the checkpoints.
        config: Retention and other settings.
        scores: Known validation losses by update.
        main: Whether this process commits the files that all processes have written.
        guard: Called before each save and before it is committed; raises a RunError if the run's files are no longer
            those that this process opened.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: CheckpointConfig,
        scores: Mapping[int, float] | None = None,
        main: bool = True,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self._main = main
        self._guard = guard
        self.scores = dict(scores or {})
        self._config = config
        self._arrays = ArrayWriter()
        self._proved = False  # a save of this session was restored, with its digest
        self._thread: threading.Thread | None = None
        self._error: str | None = None
        self._committed: list[Checkpoint] = []
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.iterdir():
                if _PARTIAL.fullmatch(path.name):
                    _remove(path)

    def save(self, state: Any, meta: dict[str, Any], *, protect: Iterable[int] = ()) -> None:
        """Start to save `state`; return once the arrays are copied off the devices.

        `failure` returns the error of a failed save.

        Args:
            state: The state.
            meta: Content of meta.json.
            protect: Updates whose checkpoints retention must not delete.

        Raises:
            NotFinite: The state is not finite; nothing is written.
            RunError: The run's files are no longer those that this process opened.
        """
        self.wait()
        self._guard()
        if not all_finite(state):
            raise NotFinite(f"the state after update {meta['update']} is not finite: it is not saved")
        folder = self.folder / f"{meta['update']}.partial"
        try:
            faults.reach("save")
            if self._main:
                _remove(folder)  # left by a failed save
                folder.mkdir()
            self._arrays.begin(folder, state)
            faults.reach("save.arrays")
        except (OSError, ValueError) as error:
            self._failed(folder, error)
            return
        arguments = (folder, meta, set(protect), abstract_state(state))
        self._thread = threading.Thread(target=self._commit, args=arguments, name="checkpoint")
        self._thread.start()

    def committed(self) -> list[Checkpoint]:
        """Return the checkpoints committed since the last call."""
        done, self._committed = self._committed, []
        return done

    def failure(self) -> str | None:
        """Return the error of a save since the last call."""
        error, self._error = self._error, None
        return error

    def wait(self) -> None:
        """Wait for the save in flight."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Wait for the save in flight and release Orbax's threads."""
        self.wait()
        self._arrays.close()

    def _commit(self, folder: Path, meta: dict[str, Any], protect: set[int], abstract: Any) -> None:
        try:
            self._arrays.finish()
            if not self._main:
                self._committed.append(Checkpoint(folder.with_suffix(""), meta))
                return
            self._prove(folder, meta, abstract)
            faults.reach("save.manifest")
            write_text(folder / "meta.json", json.dumps(meta, indent=1))
            write_text(folder / MANIFEST, json.dumps(hashes(folder), indent=1))
            faults.reach("save.rename")
            self._guard()
            final = folder.with_suffix("")
            if final.exists():  # saved before this update was repeated; the new one is already durable
                _delete(final)
            os.replace(folder, final)
            sync_folder(self.folder)
            faults.reach("save.committed")
            self._committed.append(Checkpoint(final, meta))
            self._retain(protect)
        except BaseException as error:  # any error is passed to the training thread
            self._failed(folder, error)

    def _prove(self, folder: Path, meta: dict[str, Any], abstract: Any) -> None:
        """Check that what was saved can be restored: its metadata, and once a session all of it.

        All of it is read only if it takes a small part of the free memory, next to the state in training.

        Raises:
            CheckpointError: It cannot.
        """
        try:
            check_saved(folder, abstract)
            free = machine.available_memory()
            small = free is None or _READ_BACK * nbytes(abstract) <= free
            if self._proved or not processes.alone() or not small:
                return
            faults.reach("save.read_back")
            read_back = digest_of_saved(folder, abstract)
        except Exception as error:  # of Orbax and TensorStore
            raise CheckpointError(f"what was saved cannot be read back: {one_line(error)}") from None
        if read_back != meta["digest"]:
            raise CheckpointError("what was saved is read back with another digest")
        self._proved = True

    def _failed(self, folder: Path, error: BaseException) -> None:
        self._error = f"checkpoint {folder.stem} could not be written: {self._arrays.explain(error)}"
        self._arrays.abandon()
        with suppress(OSError):
            _remove(folder)

    def _retain(self, protect: set[int]) -> None:
        updates = [int(folder.name) for folder in folders(self.folder)]
        for update in set(updates) - retained(updates, self._config, protect=protect, scores=self.scores):
            faults.reach("save.retain")
            _delete(self.folder / str(update))


def retained(
    updates: Iterable[int], config: CheckpointConfig, *, protect: Iterable[int], scores: Mapping[int, float]
) -> set[int]:
    """Select the updates whose checkpoints are retained.

    These are update 0, the last N, every K-th, the best, and the protected ones.
    """
    updates = sorted(updates)
    keep = {0, *updates[-config.keep :], *protect}
    if config.keep_every:
        keep |= {update for update in updates if update % config.keep_every == 0}
    scored = [update for update in updates if math.isfinite(scores.get(update, math.nan))]  # NaN has no order
    if config.keep_best and scored:
        keep.add(min(scored, key=lambda update: (scores[update], update)))
    return keep & set(updates)


def _delete(folder: Path) -> None:
    """Delete a checkpoint; a crash leaves a `.partial` folder, which is no checkpoint."""
    doomed = folder.with_name(folder.name + ".old.partial")
    _remove(doomed)
    os.replace(folder, doomed)
    _remove(doomed)


def _remove(path: Path) -> None:
    """Remove a folder, a file or a link, if there is one."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


# ---- Reading --------------------------------------------------------------------------------------------------------


def load(
    root: Path,
    abstract: Any,
    *,
    announced: Mapping[int, Announced] | None = None,
    update: int | None = None,
) -> tuple[Checkpoint, Any, list[str]]:
    """Load the newest intact checkpoint.

    Args:
        root: Folder of the checkpoints.
        abstract: Shapes, dtypes and shardings of the state.
        announced: The checkpoints that the journal has on the path of the run, by update; others are not loaded.
            Default: any is loaded.
        update: Load only the checkpoint of this update.

    Returns:
        The checkpoint, its state, and the problems of newer checkpoints that were skipped.

    Raises:
        CheckpointError: There is no intact checkpoint; the message names the problem of each.
    """
    problems = []
    for folder in reversed(folders(root)):
        if update not in (None, int(folder.name)):
            continue
        problem = processes.broadcast_from_main(partial(verify, folder))  # reads all files, so in one process only
        if problem is None:
            try:
                checkpoint = read(folder)
                if announced is not None:
                    _check_announced(checkpoint, announced)
                return checkpoint, restore(checkpoint, abstract), problems
            except (CheckpointError, OSError, ValueError) as error:
                problem = one_line(error)
        problems.append(f"checkpoint {folder.name}: {problem}")
    raise CheckpointError(f"no checkpoint in {root} can be read: {'; '.join(problems) or 'there is none'}")


def _check_announced(checkpoint: Checkpoint, announced: Mapping[int, Announced]) -> None:
    """Check a checkpoint against the journal.

    Raises:
        CheckpointError: The journal does not have it, or has another one.
    """
    meta, entry = checkpoint.meta, announced.get(checkpoint.meta["update"])
    if entry is None:
        raise CheckpointError("the journal does not have it on the path of the run")
    if entry.digest != meta["digest"]:
        raise CheckpointError("its digest is not the one in the journal")
    if entry.cursor != meta["cursor"]:
        raise CheckpointError("its cursor is not the one in the journal")


def restore(checkpoint: Checkpoint, abstract: Any) -> Any:
    """Restore the state of a checkpoint with the shapes, dtypes and shardings of `abstract`.

    Raises:
        CheckpointError: The arrays do not fit `abstract`, or do not have the digest that was saved with them.
    """
    try:
        state = read_arrays(checkpoint.folder, abstract)
    except Exception as error:  # Orbax and TensorStore raise many kinds for files that do not fit each other
        raise CheckpointError(
            f"{checkpoint.folder} cannot be restored into the state of this configuration: {first_line(error)}"
        ) from error
    if digest(state) != checkpoint.meta["digest"]:
        raise CheckpointError(f"{checkpoint.folder}: the arrays do not have the digest that was saved with them")
    return state


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, else its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:500]


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint whose files are intact (see `verify`).

    Raises:
        CheckpointError: meta.json is malformed or cannot be read.
    """
    try:
        meta = _json(folder / "meta.json")
    except (OSError, ValueError) as error:
        raise CheckpointError(one_line(error)) from None
    if not isinstance(meta, dict):
        raise CheckpointError("meta.json is not an object")
    for name in ("update", "cursor", "wall_step"):
        value = meta.get(name)
        if type(value) is not int or not 0 <= value < 2**63:
            raise CheckpointError(f"meta.json: {name} is {value!r:.40}, not a count")
    if not isinstance(meta.get("digest"), str) or not _DIGEST.fullmatch(meta["digest"]):
        raise CheckpointError(f"meta.json: digest is {meta.get('digest')!r:.40}, not 64 hexadecimal digits")
    return Checkpoint(folder, meta)


def _json(path: Path) -> Any:
    return parse_json(read_regular(path, largest=_LARGEST), path.name, largest=_LARGEST)


def folders(root: Path) -> list[Path]:
    """Return the folders that are named by an update, oldest first."""
    paths = [path for path in root.iterdir() if _UPDATE.fullmatch(path.name)] if root.is_dir() else []
    return sorted((path for path in paths if path.is_dir()), key=lambda path: int(path.name))


def quarantined(root: Path) -> list[Path]:
    """Return the folders that rollbacks set aside: `<update>`, then `<update>.<n>`."""
    folder = root / "quarantine"
    paths = list(folder.iterdir()) if folder.is_dir() else []
    return sorted(path for path in paths if _UPDATE.fullmatch(path.name.partition(".")[0]) and path.is_dir())


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below `folder` except the manifest, by relative path.

    Raises:
        ValueError: There is a link or a device, which could lead to anything.
    """
    result = {}
    for path in sorted(path for path in folder.rglob("*") if path != folder / MANIFEST):
        name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if stat.S_ISREG(mode):
            with open_regular(path) as file:
                result[name] = hashlib.file_digest(file, "sha256").hexdigest()
        elif not stat.S_ISDIR(mode):
            raise ValueError(f"{name} is not a regular file")
    return result


def verify(folder: Path) -> str | None:
    """Return the problem of a checkpoint's files, or None."""
    try:
        manifest = _json(folder / MANIFEST)
        if not isinstance(manifest, dict):
            return f"{MANIFEST} is not an object"
        actual = hashes(folder)
        for name in manifest | actual:
            if name not in actual:
                return f"{name:.200} is missing"
            if actual[name] != manifest.get(name):
                return f"{name} does not match its sha256"
        update = read(folder).meta["update"]
    except FileNotFoundError:
        return "not finished (no manifest)"
    except (OSError, ValueError, RecursionError, CheckpointError) as error:
        return f"unreadable ({one_line(error)})"
    return None if str(update) == folder.name else f"it is the checkpoint of update {update} under another name"
