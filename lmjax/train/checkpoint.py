"""Checkpoints: Orbax arrays, a manifest of their bytes, and a retention of our own.

`checkpoints/<update>/` holds `state/` (Orbax), `meta.json` (counters, digest, fingerprints) and `manifest.json` (the
sha256 of every other file). It is written as `<update>.partial` and renamed when whole, so a crash leaves nothing that
looks like a checkpoint. Orbax alone restores a flipped bit without a word; the manifest is checked before a restore.
"""

import hashlib
import json
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from lmjax.config import CheckpointConfig
from lmjax.files import sync_folder, write_text
from lmjax.pytrees import digest
from lmjax.typed import RunError

MANIFEST = "manifest.json"


class CheckpointError(RunError):
    """A checkpoint could not be written or none could be read: the message names the step or the files."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: `meta` has update, cursor, wall_step, digest and the run's fingerprints."""

    folder: Path
    meta: dict[str, Any]


class Checkpoints:
    """Writes the checkpoints of one run: at most one save is in flight while training goes on.

    Only the one process that trains may make one: leftovers of a crash are removed.
    """

    def __init__(self, folder: Path, *, config: CheckpointConfig) -> None:
        self.folder = folder
        self._config = config
        self._orbax = ocp.StandardCheckpointer()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._committed: list[Checkpoint] = []
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.partial"):
            shutil.rmtree(leftover)

    def save(self, state: Any, meta: dict[str, Any]) -> None:
        """Starts to save `state`; returns once the arrays are copied off the devices. CheckpointError: the save
        before this one failed."""
        self.wait()
        folder = self.folder / f"{meta['update']}.partial"
        try:
            folder.mkdir()
            self._orbax.save(folder.absolute() / "state", state)
        except OSError as error:
            raise CheckpointError(f"cannot write checkpoint {folder}: {error}") from error
        self._thread = threading.Thread(target=self._commit, args=(folder, meta), name="checkpoint")
        self._thread.start()

    def committed(self) -> list[Checkpoint]:
        """The checkpoints committed since the last call. CheckpointError: a save failed."""
        if self._error is not None:
            error, self._error = self._error, None
            raise CheckpointError(f"a checkpoint could not be written: {error}") from error
        done, self._committed = self._committed, []
        return done

    def wait(self) -> None:
        """Waits for the save in flight. CheckpointError: it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            self.committed()

    def close(self) -> None:
        """Waits and releases Orbax's threads."""
        if self._thread is not None:
            self._thread.join()
        self._orbax.close()

    def _commit(self, folder: Path, meta: dict[str, Any]) -> None:
        try:
            self._orbax.wait_until_finished()
            write_text(folder / "meta.json", json.dumps(meta, indent=1))
            write_text(folder / MANIFEST, json.dumps(hashes(folder), indent=1))
            final = folder.with_suffix("")
            if final.exists():  # saved before this update was repeated; the new one is already durable
                shutil.rmtree(final)
            os.replace(folder, final)
            sync_folder(self.folder)
            self._committed.append(Checkpoint(final, meta))
            self._retain()
        except BaseException as error:  # handed to the training thread, whatever it is
            self._error = error

    def _retain(self) -> None:
        """Keeps the last `keep` and every `keep_every`-th update; a crash half-way leaves a `.partial` folder."""
        every = self._config.keep_every
        for folder in folders(self.folder)[: -max(1, self._config.keep)]:
            if not (every and int(folder.name) % every == 0):
                doomed = folder.with_name(folder.name + ".partial")
                os.replace(folder, doomed)
                shutil.rmtree(doomed)


def newest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose files match its manifest, and what is wrong with those that were passed over."""
    problems = []
    for folder in reversed(folders(root)):
        problem = verify(folder)
        if problem is None:
            return Checkpoint(folder, json.loads((folder / "meta.json").read_text())), problems
        problems.append(f"checkpoint {folder.name}: {problem}")
    return None, problems


def restore(checkpoint: Checkpoint, abstract: Any) -> Any:
    """The state saved in `checkpoint`, laid out as `abstract` (shapes, dtypes, shardings) says.

    CheckpointError: the arrays do not fit `abstract`, or do not have the digest that was saved with them.
    """
    orbax = ocp.StandardCheckpointer()
    try:
        state = orbax.restore(checkpoint.folder.absolute() / "state", abstract)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{checkpoint.folder} cannot be restored: {error}") from error
    finally:
        orbax.close()
    if digest(state) != checkpoint.meta["digest"]:
        raise CheckpointError(f"{checkpoint.folder}: the arrays do not have the digest that was saved with them")
    return state


def folders(root: Path) -> list[Path]:
    """The folders named by an update, oldest first."""
    found = [path for path in root.iterdir() if path.name.isdecimal() and path.is_dir()] if root.is_dir() else []
    return sorted(found, key=lambda path: int(path.name))


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file below `folder` except the manifest, by relative path."""
    result = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST):
        with open(path, "rb") as file:
            result[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return result


def verify(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        found = hashes(folder)
    except FileNotFoundError:
        return "not finished (no manifest)"
    except (OSError, ValueError) as error:
        return f"unreadable ({error})"
    for name in manifest | found:
        if name not in found:
            return f"{name} is missing"
        if found[name] != manifest.get(name):
            return f"{name} does not match its sha256"
    return None
